"""A hardware encoder is proven by its picture (FACTS.md): it encodes, and what it made is compared.

`-encoders` lists what was compiled in, and an exit code of 0 says that something was written: on Mesa
22.3's software device FFmpeg 9.0.2's `prores_ks_vulkan` writes ten pictures of 5.8 dB without a word.
So each candidate makes a test picture with the options that profiles use, a decoder on the processor
reads it, and every picture of it is measured against the source.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from node.media.child import ChildRunner, Limits, RunResult
from node.media.command import GLOBAL
from node.media.encoders import (
    FORMS,
    UPLOADED,
    device_options,
    device_words,
    encoder_options,
    input_format,
)
from node.media.ffmpeg_binary import FFmpegBinary
from node.media.profiles import AudioPolicy, Profile, VideoCodec, VideoPolicy

PSNR_DB_MIN: Final = 25.0
"""Right pictures have 35 and more, the wrong ones that were seen had 5 to 8."""
FRAMES: Final = 10
SIZE: Final = "256x256"
"""NVENC refuses 64 and 128."""
PICTURE: Final = f"testsrc2=s={SIZE}:r=25:d={FRAMES / 25}"
PROOF_LIMITS: Final = Limits(time_ms=20_000, output_bytes=16 << 20)
COMPARE_LIMITS: Final = Limits(time_ms=20_000, output_bytes=64 << 20, stdout_bytes=64 << 10)
"""It writes nothing, but software devices keep their memory in files without a name."""
SPEED_FRAMES: Final = 50
SPEED_SIZE: Final = (1280, 720)
SPEED_LIMITS: Final = Limits(time_ms=4_000, output_bytes=1 << 30)
"""A slow one is measured by what it did in this time."""
TYPICAL: Final[dict[VideoCodec, VideoPolicy]] = {
    "h264": VideoPolicy(codec="h264", crf=22, speed="fast"),
    "hevc": VideoPolicy(codec="hevc", crf=22, speed="medium"),
    "av1": VideoPolicy(codec="av1", crf=28, speed="medium"),
    "ffv1": VideoPolicy(codec="ffv1", crf=0),
    "prores": VideoPolicy(codec="prores", crf=0),
}
"""What a candidate is tried with: the quality and speed of common profiles."""
_NO_DEVICE: Final = re.compile(
    r"Cannot load|No capable devices|No NVENC capable|MFX session|failed to open|Cannot open the DRI"
    r"|No VA display|Device creation failed|Could not find a valid device|No device available",
    re.IGNORECASE,
)
_PREFIX: Final = re.compile(r"^(\[[^\]]*\]\s*)+")
_PSNR: Final = re.compile(r"^n:\d+ .*?psnr_avg:(\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What became of one candidate on one device; `psnr_db` is that of its worst picture, 0 where it made none."""

    why: str = ""
    psnr_db: float = 0.0
    no_device: bool = False
    """The failure was the device's: the family's other encoders would meet it too."""


def _typical(encoder: str) -> Profile:
    codec = FORMS[encoder].codec
    return Profile(
        name="proof", container="matroska", video=TYPICAL[codec], audio=AudioPolicy(codec="copy")
    )


def _pixel_format(encoder: str) -> str:
    return "yuv422p10le" if FORMS[encoder].codec == "prores" else "yuv420p"


def encode_command(
    ffmpeg: str, encoder: str, device: str, picture: str, output: str
) -> tuple[str, ...]:
    """Encodes a test picture as a conversion would; to nowhere when `output` is `-`."""
    chain = f"format={input_format(encoder, _pixel_format(encoder))}"
    if FORMS[encoder].family in UPLOADED:
        chain += ",hwupload"
    given = (*encoder_options(encoder, _typical(encoder), None), *device_options(encoder, device))
    words = [ffmpeg, *GLOBAL, *device_words(encoder, device), "-f", "lavfi", "-i", picture]
    words += ["-vf", chain, "-c:v", encoder]
    words += [word for key, value in given for word in (f"-{key}:v", value)]
    return (*words, "-f", "null" if output == "-" else "matroska", output)


def compare_command(
    ffmpeg: str, first: tuple[str, ...], chain: str, pixel_format: str
) -> tuple[str, ...]:
    """Measures every picture of `first` (input words) behind `chain` against the test picture."""
    same = f"settb=1/25,format={pixel_format}"
    size = "128:128:flags=bicubic" if chain else "256:256"
    graph = f"[0:v]{chain}{same}[a];[1:v]scale={size},{same}[b];[a][b]psnr=stats_file=-"
    quiet = [word for word in GLOBAL if word not in ("-progress", "pipe:1")]
    return (
        ffmpeg, *quiet, *first, "-f", "lavfi", "-i", PICTURE, "-lavfi", graph, "-f", "null", "-",
    )  # fmt: skip


def worst_psnr_db(said: bytes) -> tuple[int, float]:
    """How many pictures were measured, and the lowest of their values; equal pictures have 100."""
    found = [min(100.0, float(value)) for value in _PSNR.findall(said.decode("ascii", "replace"))]
    return len(found), min(found, default=0.0)


async def prove(
    runner: ChildRunner, ffmpeg: FFmpegBinary, encoder: str, device: str, scratch: str
) -> Proof:
    """Whether this encoder makes right pictures on this device; writes `scratch`, a name that is free."""
    made = await runner.run(
        encode_command(ffmpeg.path, encoder, device, PICTURE, scratch),
        limits=PROOF_LIMITS,
        on_progress=lambda _: None,
    )
    if not made.ok:
        return _failed(made)
    compared = await runner.run(
        compare_command(ffmpeg.path, ("-i", scratch), "", _pixel_format(encoder)),
        limits=COMPARE_LIMITS,
    )
    return _judged(compared)


async def prove_scaler(runner: ChildRunner, ffmpeg: FFmpegBinary, device: str) -> Proof:
    """Whether `scale_vulkan` makes right pictures of each pixel format that encoders are given."""
    proof = Proof()
    for pixel_format in ("nv12", "yuv422p10le"):
        chain = (
            f"format={pixel_format},hwupload,scale_vulkan=128:128,hwdownload,format={pixel_format},"
        )
        opened = ("-init_hw_device", f"vulkan=dev:{device}", "-filter_hw_device", "dev")
        first = (*opened, "-f", "lavfi", "-i", PICTURE)
        compared = await runner.run(
            compare_command(ffmpeg.path, first, chain, pixel_format), limits=COMPARE_LIMITS
        )
        proof = _judged(compared)
        if proof.why:
            return proof
    return proof


async def measure_fps(
    runner: ChildRunner, ffmpeg: FFmpegBinary, encoder: str, device: str
) -> float | None:
    """Pictures a second at 1280x720 of a test picture, its start included; None when it made none."""
    width, height = SPEED_SIZE
    picture = f"testsrc2=s={width}x{height}:r=25:d={SPEED_FRAMES / 25}"
    run = await runner.run(
        encode_command(ffmpeg.path, encoder, device, picture, "-"),
        limits=SPEED_LIMITS,
        on_progress=lambda _: None,
    )
    if run.progress is None or not run.progress.frame or run.reason not in ("exited", "time"):
        return None
    return round(1000 * run.progress.frame / max(1, run.duration_ms), 1)


def _judged(compared: RunResult) -> Proof:
    count, psnr_db = worst_psnr_db(compared.stdout)
    if not compared.ok or not count:
        why = _first_line(compared) or "what it made cannot be decoded"
        return Proof(why=why)
    if count != FRAMES:
        return Proof(why=f"it made {count} pictures of {FRAMES}", psnr_db=psnr_db)
    if psnr_db < PSNR_DB_MIN:
        return Proof(
            why=f"its picture is wrong: {psnr_db:.1f} dB against the source, {PSNR_DB_MIN:.0f} are needed",
            psnr_db=psnr_db,
        )
    return Proof(psnr_db=psnr_db)


def _failed(made: RunResult) -> Proof:
    line = _first_line(made)
    if made.reason == "time":
        return Proof(why="it hung: ten pictures took over 20 s", no_device=True)
    if made.exit_code is None:
        return Proof(why=f"its driver crashed (signal {made.signal})", no_device=True)
    return Proof(why=line, no_device=_NO_DEVICE.search(line) is not None)


def _first_line(run: RunResult) -> str:
    line = _PREFIX.sub("", run.stderr.first_error).strip()
    return line[:200] or f"FFmpeg ended with code {run.exit_code}"


def proven(proofs: Mapping[str, Proof]) -> tuple[str, ...]:
    """The devices on which it works."""
    return tuple(device for device, proof in proofs.items() if not proof.why)
