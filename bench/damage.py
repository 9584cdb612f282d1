"""Films damaged at random: what is published of them, judged by a decoder that owes nothing to the product.

    .venv/bin/python bench/damage.py [--quick] [--count 500] [--seed 1] [--jobs 2] [--keep DIR]

Each source is a small sound film in one of many containers and codecs, with bits turned over, its end or
a piece cut out, or a range zeroed; it is probed, converted (every third one in pieces, where it may be
split) and proven as nodes do it.  What was published is compared with an independent decode (PyAV's
FFmpeg, another version than the one that converts) of the damaged source and of the sound one:

- *whole*: the result shows every frame of the sound film; the damage harmed nothing that is seen or heard;
- *unseen*: it does not, but nobody can know: the independent decode of the damaged source is without a
  complaint, and the result is exactly that (a recording cut between two packets is a shorter recording);
- *wrong*: the gate should have refused it.  None may be.

`--keep` leaves the wrong ones there.
"""

import argparse
import asyncio
import json
import multiprocessing
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from independent import FIRST

from node.media.convert import ConversionError
from node.media.errors import MediaError
from tests.film_apart import Apart, MayNotBeSplitError, media_of, nothing, quick
from tests.film_judge import Seen, compare, see
from tests.media_clips import AAC, SWEEP, X264, ffmpeg, make

SECONDS = 4
FLIPS_MAX = 60
HOLE_BYTES_MAX = 12_000
HEADERS_SPARED = 0.5
"""Part of the damages that spare the first twentieth, where headers are: those are refused at once."""
PICTURE = ["-f", "lavfi", "-i", f"testsrc2=s=160x120:r=25:d={SECONDS}"]
SOUND = ["-f", "lavfi", "-i", f"{SWEEP}:d={SECONDS}"]
H264 = [*X264, "-preset", "fast", "-g", "25", *AAC]
HEVC = ["-c:v", "libx265", "-preset", "fast", "-x265-params", "log-level=error:keyint=25", *AAC]
MPEG2 = ["-c:v", "mpeg2video", "-g", "12", "-bf", "2", "-b:v", "600k", "-c:a", "mp2"]
FILMS: dict[str, list[str]] = {
    "h264.mkv": H264,
    "h264.mp4": [*H264, "-movflags", "+faststart"],
    "h264_late.mp4": H264,
    "h264.ts": H264,
    "h264.flv": H264,
    "hevc.mkv": HEVC,
    "hevc.mp4": HEVC,
    "hevc.ts": HEVC,
    "mpeg2.ts": MPEG2,
    "mpeg2.mpg": MPEG2,
    "mpeg2.mkv": MPEG2,
    "asp.avi": ["-c:v", "mpeg4", "-g", "25", "-c:a", "libmp3lame"],
    "asp.mp4": ["-c:v", "mpeg4", "-bf", "2", "-g", "25", *AAC],
    "vp9.webm": ["-c:v", "libvpx-vp9", "-cpu-used", "8", "-deadline", "realtime", "-g", "25", "-b:v", "200k",
                 "-c:a", "libopus"],
    "vp8.webm": ["-c:v", "libvpx", "-cpu-used", "8", "-deadline", "realtime", "-g", "25", "-b:v", "200k",
                 "-c:a", "libvorbis"],
    "av1.mp4": ["-c:v", "libsvtav1", "-preset", "12", "-g", "25", *AAC],
    "theora.ogv": ["-c:v", "libtheora", "-g", "25", "-b:v", "300k", "-c:a", "libvorbis"],
    "ffv1.mkv": ["-c:v", "ffv1", "-slicecrc", "1", "-level", "3", "-g", "5", "-c:a", "flac"],
    "mjpeg.avi": ["-c:v", "mjpeg", "-pix_fmt", "yuvj420p", "-c:a", "pcm_s16le"],
    "prores.mov": ["-c:v", "prores_ks", "-c:a", "pcm_s16le"],
}  # fmt: skip
PROFILES = ("web", "archive")


def flip(data: bytearray, dice: random.Random, first: int) -> str:
    """Turns single bits over."""
    count = dice.choice((1, 2, 5, FLIPS_MAX))
    for _ in range(count):
        at = dice.randrange(first, len(data))
        data[at] ^= 1 << dice.randrange(8)
    return f"{count} flips"


def cut(data: bytearray, dice: random.Random, first: int) -> str:
    """Cuts the end off."""
    del data[dice.randrange(first + 1, len(data)) :]
    return "end cut"


def lose(data: bytearray, dice: random.Random, first: int) -> str:
    """Cuts a piece out."""
    at = dice.randrange(first, len(data))
    del data[at : at + dice.randint(1, HOLE_BYTES_MAX)]
    return "piece cut out"


def zero(data: bytearray, dice: random.Random, first: int) -> str:
    """Zeroes a range."""
    at = dice.randrange(first, len(data))
    size = min(dice.randint(1, HOLE_BYTES_MAX), len(data) - at)
    data[at : at + size] = bytes(size)
    return "zeroed"


DAMAGES: tuple[Callable[[bytearray, random.Random, int], str], ...] = (flip, flip, cut, lose, zero)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one damaged source."""

    seed: int
    film: str
    profile: str
    damage: str
    way: str
    verdict: str
    """`refused`, `whole`, `unseen` or `wrong`."""
    why: str


def attempt(seed: int, folder: Path, keep: Path | None) -> Outcome:
    """Damages, converts and judges one film."""
    dice = random.Random(seed)
    name, profile = dice.choice(list(FILMS)), dice.choice(PROFILES)
    sound = folder / name
    data = bytearray(sound.read_bytes())
    first = len(data) // 20 if dice.random() < HEADERS_SPARED else 0
    damage = dice.choice(DAMAGES)(data, dice, first)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        work = Path(place)
        source = work / f"source{sound.suffix}"
        source.write_bytes(data)
        way = "split" if seed % 3 == 0 else "whole"
        try:
            way, result = convert(source, profile, work, way)
        except (MediaError, ConversionError, BaseExceptionGroup) as error:
            return Outcome(seed, name, profile, damage, way, "refused", _code(error))
        verdict, why = judge(result, source, sound)
        if verdict == "wrong" and keep is not None:
            shutil.copy(source, keep / f"{seed}-source{sound.suffix}")
            shutil.copy(result, keep / f"{seed}-{profile}-result")
        return Outcome(seed, name, profile, damage, way, verdict, why)


def _code(error: BaseException) -> str:
    if isinstance(error, ConversionError):
        return error.error.code
    if isinstance(error, BaseExceptionGroup):
        return _code(error.exceptions[0])
    return error.code if isinstance(error, MediaError) else repr(error)


def convert(source: Path, profile: str, work: Path, way: str) -> tuple[str, Path]:
    """As nodes do it: probe, make, prove, and the owner's second judgement.  How, and the result."""
    media, wanted = media_of(ffmpeg()), quick(profile)
    if way == "split":
        try:
            return "split", Apart(media, source, wanted, work, 1_000).encode_all().assemble()
        except MayNotBeSplitError:
            pass
    output, size = work / "out", source.stat().st_size

    async def whole() -> None:
        probe = await media.probe(source, size=size)
        made = await media.convert(source, output, probe, wanted, on_progress=nothing)
        encoder = made.report.encoder
        verdict = await media.check_delivered(
            output, probe, wanted, made.facts, encoder=encoder, source=source, seed=source.name
        )
        if not verdict.ok:
            raise verdict.error()

    asyncio.run(whole())
    return "whole", output


def judge(result: Path, source: Path, sound: Path) -> tuple[str, str]:
    """Whether this result may be published, and why not."""
    shown, complaints = decoded(result)
    if shown is None or complaints:
        return "wrong", f"the result: {complaints[:1]}"
    origin, _ = decoded(sound)
    assert origin is not None
    if not faults(shown, origin):
        return "whole", ""
    damaged, complaints = decoded(source)
    if complaints or damaged is None:
        return "wrong", f"the source: {complaints[:1]}"
    found = faults(shown, damaged)
    return ("wrong", f"not what its source shows: {found}") if found else ("unseen", "")


def faults(shown: Seen, origin: Seen) -> list[str]:
    """What two films differ in."""
    if len(shown.sounds) != len(origin.sounds) or not origin.frames:
        return ["streams"]
    try:
        return compare(shown, origin).faults()
    except AssertionError as error:
        return [str(error)]


def decoded(path: Path) -> tuple[Seen | None, list[str]]:
    """What PyAV shows of a film, in a process of its own, and what it complains of."""
    argv = [sys.executable, Path(__file__).with_name("independent.py"), path]
    done = subprocess.run(argv, capture_output=True, timeout=120, check=False)
    lines = done.stderr.decode(errors="replace").splitlines()
    # A recording that begins between two keyframes complains until its first picture, and may.
    begun = lines.index(FIRST) + 1 if FIRST in lines else 0
    complaints = [line for line in lines[begun:] if line.strip()]
    if done.returncode or complaints:
        return None, complaints or [f"ended with {done.returncode}"]
    return see(path), []


def table(outcomes: list[Outcome]) -> None:
    """For people."""
    kinds = sorted({o.film for o in outcomes})
    print(
        f"{'film':<16}{'sources':>8}{'refused':>9}{'whole':>7}{'unseen':>8}{'wrong':>7}  refused as"
    )
    for kind in [*kinds, "all"]:
        rows = [o for o in outcomes if kind in (o.film, "all")]
        count = Counter(o.verdict for o in rows)
        codes = Counter(o.why for o in rows if o.verdict == "refused").most_common(4)
        told = ", ".join(f"{code} {number}" for code, number in codes)
        print(
            f"{kind:<16}{len(rows):>8}{count['refused']:>9}{count['whole']:>7}"
            f"{count['unseen']:>8}{count['wrong']:>7}  {told}"
        )
    for o in outcomes:
        if o.verdict in ("wrong", "unseen"):
            print(f"{o.verdict}: seed {o.seed} {o.film} {o.profile} {o.way}, {o.damage}: {o.why}")


def main() -> int:
    """Exit code 1 when something wrong was published."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="20 sources")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1, help="of the first source")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="where wrong ones are left")
    wanted = parser.parse_args()
    count = 20 if wanted.quick else wanted.count
    with tempfile.TemporaryDirectory(prefix="darkstream-damage-") as name:
        folder = Path(name)
        for film, words in FILMS.items():
            make(folder / film, *PICTURE, *SOUND, *words)
        with multiprocessing.get_context("spawn").Pool(wanted.jobs) as pool:
            runs = [
                pool.apply_async(attempt, (seed, folder, wanted.keep))
                for seed in range(wanted.seed, wanted.seed + count)
            ]
            outcomes = [run.get() for run in runs]
    table(outcomes)
    verdicts = Counter(outcome.verdict for outcome in outcomes)
    line = {"bench": "damage", "count": count, "quick": wanted.quick, "seed": wanted.seed}
    print(json.dumps(line | {k: verdicts[k] for k in ("refused", "whole", "unseen", "wrong")}))
    return 1 if verdicts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
