"""One FFmpeg program: where it came from, its version, and a mark of its build."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from node.media.child import ChildRunner, Limits
from node.media.errors import FFmpegMissingError

Origin = Literal["configured", "system", "imageio-ffmpeg"]
VERSION_MIN: Final = (5, 1)
"""The first with -fps_mode; tests run with 5.1.9 and 9.0.2."""
ANSWER_LIMITS: Final = Limits(time_ms=20_000, output_bytes=0, stdout_bytes=1 << 20)
"""For questions that FFmpeg answers at once; a cold disk may take seconds to load 170 MB."""
BUILD_CHARS: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A program that may be an FFmpeg."""

    origin: Origin
    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FFmpegBinary:
    """`build` is a digest of everything that `-version` prints: release, configure line, library versions."""

    origin: Origin
    path: str
    version: str
    build: str
    size: int
    mtime_ns: int
    passed_over: tuple[str, ...] = ()
    """Candidates before it, and why they were not taken."""

    @property
    def group(self) -> str:
        """Equal on nodes whose FFmpegs count and encode alike: version and build."""
        return f"{self.version} {self.build}"


def parse_version(text: str) -> tuple[str, tuple[int, int] | None]:
    """The version word and its two leading numbers; None for development builds that have none."""
    match = re.match(r"ffmpeg version (\S{1,80})", text)
    if match is None:
        raise ValueError("not an FFmpeg")
    word = match.group(1)
    numbers = re.match(r"n?(\d{1,4})\.(\d{1,4})", word)
    return word, (int(numbers[1]), int(numbers[2])) if numbers else None


def parse_encoders(text: str) -> dict[str, str]:
    """Encoder name to kind letter (V, A or S) from `-encoders`."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        match = re.match(r" ([VAS])[F.][S.][X.][B.][D.] (\w{1,64})\s", line)
        if match is not None:
            found[match.group(2)] = match.group(1)
    return found


async def choose(runner: ChildRunner, candidates: Sequence[Candidate]) -> FFmpegBinary:
    """The first candidate that runs and is new enough.

    A configured one that does not is an error, not a reason to take another: the person named it.
    Raises `FFmpegMissingError`.
    """
    passed_over: list[str] = []
    for candidate in candidates:
        result = await runner.run((candidate.path, "-version"), limits=ANSWER_LIMITS)
        text = result.stdout.decode("utf-8", "replace")
        try:
            version, numbers = parse_version(text) if result.ok else ("", (0, 0))
        except ValueError:
            version, numbers = "", (0, 0)
        if numbers is None or numbers >= VERSION_MIN:
            digest = hashlib.blake2b(text.encode()).hexdigest()[:BUILD_CHARS]
            return FFmpegBinary(
                origin=candidate.origin,
                path=candidate.path,
                version=version,
                build=digest,
                size=candidate.size,
                mtime_ns=candidate.mtime_ns,
                passed_over=tuple(passed_over),
            )
        why = f"{candidate.path}: " + (
            f"version {version} is too old" if version else "does not run"
        )
        passed_over.append(why)
        if candidate.origin == "configured":
            break
    raise FFmpegMissingError(
        "; ".join(passed_over) or "no FFmpeg was found",
        "install FFmpeg 5.1 or newer, or name one with DARKSTREAM_FFMPEG",
    )


async def list_encoders(runner: ChildRunner, ffmpeg: FFmpegBinary) -> dict[str, str]:
    """Every encoder that was compiled in: candidates, not capabilities."""
    result = await runner.run((ffmpeg.path, "-hide_banner", "-encoders"), limits=ANSWER_LIMITS)
    return parse_encoders(result.stdout.decode("utf-8", "replace")) if result.ok else {}
