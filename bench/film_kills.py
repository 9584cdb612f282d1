"""What kill -9 at random moments costs a film in pieces: that every film comes out right, and what is made again.

    .venv/bin/python bench/film_kills.py [--quick] [--count 50] [--first 0] [--minutes M] [--seed S]

Three nodes on this machine convert one film after the other, each in pieces; at a random moment one of
these is killed, in turn: a worker that is neither owner nor coordinator, the owner, the coordinator, all
three nodes, a running FFmpeg.  Killed nodes come back up to three seconds later.  Each result is
compared with its source by decoding both: every frame once, in order and at its time, and the sound.
Work done again is every run that ended without a result; aim: at most what ran on the killed at that
moment.  `ratio` is the runs made again by the runs that were killed.
"""

import argparse
import json
import random
import signal
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent))

from mesh.clock import monotonic_ms
from tests.cluster import Node, cluster, form, wait_for
from tests.film_judge import Seen, compare, see
from tests.media_clips import AAC, SWEEP, make
from tests.mesh_clients import Api, NoAnswerError, RefusedError

NAMES: Final = ("anna", "bert", "carl")
FILM_S: Final = 40
SIZE: Final = "320x180"
SLOTS: Final = 1
AT_A_SLOT: Final = 2
"""Parts that one slot has begun at most: one is judged while the next is encoded."""
BACK_S_MAX: Final = 3.0
DONE_S: Final = 240.0
"""A lease of a silent node is taken back after 20 s, and a film takes ten."""
POLL_S: Final = 0.2
ENDED: Final = ("finished", "kept", "accepted")
"""Attempts that came to a result."""
_PAUSE = threading.Event()


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One film that was interrupted."""

    number: int
    kind: str
    after_s: float
    killed: int
    """Runs that were under way on what was killed."""
    again: int
    """Runs that came to nothing."""
    lost: int
    """Parts that the owner had kept before and that were made once more."""
    took_s: float
    faults: tuple[str, ...]


class Mesh:
    """The nodes, and one question to whichever answers."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes

    def ask(self, path: str) -> Any:  # noqa: ANN401 - JSON
        """The answer of any living node; None where nobody answers."""
        for node in self.nodes:
            with closing(Api(node.home)) as api:
                try:
                    status, told = api.ask(path)
                except (NoAnswerError, RefusedError):
                    continue
            if status == 200:
                return told
        return None

    def job(self, job: str) -> dict[str, Any]:
        """A job as a node tells it."""
        return self.ask(f"/api/v1/jobs/{job}") or {"state": "unknown", "tasks": []}

    def coordinator(self) -> Node:
        """The node that leads now."""
        name = wait_for("a coordinator", lambda: (self.ask("/api/v1/status") or {}).get("coordinator"), 60)  # fmt: skip
        return next(node for node in self.nodes if name == node.name)


def running(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Attempts that are under way."""
    return [a for task in job["tasks"] for a in task["attempts"] if a["state"] == "leased"]


def encoders(nodes: Sequence[Node]) -> list[psutil.Process]:
    """FFmpegs that encode now."""
    found: list[psutil.Process] = []
    for node in nodes:
        if node.process is None or node.process.poll() is not None:
            continue
        try:
            children = psutil.Process(node.process.pid).children(recursive=True)
            found += [c for c in children if "-progress" in c.cmdline() and "null" not in c.cmdline()]  # fmt: skip
        except psutil.Error:
            continue
    return found


def victims(kind: str, mesh: Mesh, owner: Node, draw: random.Random) -> list[Node]:
    """The nodes that are killed."""
    leads = mesh.coordinator()
    match kind:
        case "worker":
            others = [node for node in mesh.nodes if node not in (owner, leads)]
            return [draw.choice(others)]
        case "owner":
            return [owner]
        case "coordinator":
            return [leads]
        case _:
            return list(mesh.nodes)


def strike(
    kind: str, mesh: Mesh, owner: Node, job: str, draw: random.Random
) -> tuple[int, set[str]]:
    """Kills, and brings killed nodes back: how much ran there, and what was kept before."""
    if kind == "ffmpeg":
        processes = wait_for("an FFmpeg", lambda: encoders(mesh.nodes) or mesh.job(job)["state"] == "done", 60)  # fmt: skip
        before = mesh.job(job)
        if processes is not True:
            draw.choice(processes).kill()
        return 1, kept(before)
    chosen = victims(kind, mesh, owner, draw)
    before = mesh.job(job)
    for node in chosen:
        node.kill()
    names = {node.name for node in chosen}
    # Another may have been granted since it was asked; a node never has begun more than this.
    ran = min(len(chosen) * SLOTS * AT_A_SLOT, sum(a["node"] in names for a in running(before)) + 1)
    for node in chosen:
        _PAUSE.wait(draw.uniform(0, BACK_S_MAX))
        node.start("--slots", str(SLOTS))
    return ran, kept(before)


def behind(job: dict[str, Any], parts: int) -> bool:
    """Whether so many parts of it are made: by the film's own progress, whatever else the machine does."""
    made = sum(task["state"] in ENDED for task in job["tasks"])
    return made >= parts or job["state"] in ("done", "failed")


def kept(job: dict[str, Any]) -> set[str]:
    """Parts that the owner holds."""
    return {a["id"] for t in job["tasks"] for a in t["attempts"] if a["state"] == "kept"}


def one(number: int, mesh: Mesh, origin: Seen, usual_s: float, draw: random.Random) -> Kill:
    """Converts one film, kills in its middle, and looks at what became of it."""
    kind = KINDS[number % len(KINDS)]
    owner = mesh.nodes[draw.randrange(len(mesh.nodes))]
    source = film_of(owner)
    begun_ms = monotonic_ms()
    job = submitted(owner, source, number)
    wait_for("it runs", lambda: mesh.job(job)["state"] in ("running", "done"), 60)
    parts = wait_for("its parts", lambda: len(mesh.job(job)["tasks"]), 60)
    done = draw.randrange(parts)
    wait_for("the moment", lambda: behind(mesh.job(job), done), DONE_S)
    _PAUSE.wait(draw.uniform(0, usual_s / parts))
    after_s = (monotonic_ms() - begun_ms) / 1000
    killed, before = strike(kind, mesh, owner, job, draw)
    told = ended(mesh, job)
    took_s = (monotonic_ms() - begun_ms) / 1000
    faults = [] if told["state"] == "done" else [f"{told['state']}: {told.get('fault')}"]
    if not faults:
        output = Path(told["output"])
        faults = compare(see(output), origin).faults()
        output.unlink()
    if not source.exists():
        faults.append("the source is gone")
    attempts = [a for task in told["tasks"] for a in task["attempts"]]
    again = sum(a["state"] not in ENDED for a in attempts)
    for node in mesh.nodes:
        node.ready().sees(len(mesh.nodes))
    return Kill(
        number=number,
        kind=kind,
        after_s=after_s,
        killed=killed,
        again=again,
        lost=len(before - kept(told)),
        took_s=took_s,
        faults=tuple(faults),
    )


def film_of(node: Node) -> Path:
    """Each has the same."""
    return node.films / "film.mp4"


def submitted(owner: Node, source: Path, number: int) -> str:
    """The id of a new job."""
    folder = owner.films / f"out-{number}"
    folder.mkdir(exist_ok=True)
    words = ("--profile", "web", "--output", str(folder), "--overwrite")
    (job,) = owner.cli("submit", str(source), *words)["jobs"]
    return str(job["id"])


def ended(mesh: Mesh, job: str) -> dict[str, Any]:
    """The job when it is over, or as it stands after the longest time."""
    deadline = monotonic_ms() + int(DONE_S * 1000)
    while (told := mesh.job(job))["state"] not in ("done", "failed"):
        if monotonic_ms() > deadline:
            break
        _PAUSE.wait(POLL_S)
    return told


KINDS: Final = ("worker", "owner", "coordinator", "all", "ffmpeg")


def table(kills: Sequence[Kill]) -> None:
    """For people."""
    print(f"{'killed':<13}{'times':>6}{'right':>7}{'ran there':>11}{'made again':>12}{'most':>6}{'kept lost':>11}{'median s':>10}")  # fmt: skip
    for kind in [*KINDS, "together"]:
        rows = [kill for kill in kills if kind in (kill.kind, "together")]
        if rows:
            print(
                f"{kind:<13}{len(rows):>6}{sum(not k.faults for k in rows):>7}{sum(k.killed for k in rows):>11}"
                f"{sum(k.again for k in rows):>12}{max(k.again for k in rows):>6}{sum(k.lost for k in rows):>11}"
                f"{statistics.median(k.took_s for k in rows):>10.1f}"
            )
    for kill in kills:
        if kill.faults or kill.again > kill.killed or kill.lost:
            print(f"number {kill.number} ({kill.kind} after {kill.after_s:.1f} s): {kill.again} again of {kill.killed}, {kill.lost} lost; {', '.join(kill.faults)}")  # fmt: skip


def rounds(wanted: argparse.Namespace, mesh: Mesh, say: Callable[[str], None]) -> list[Kill]:
    """All of them, one after the other."""
    words = ("-f", "lavfi", "-i", f"testsrc2=s={SIZE}:r=25:d={FILM_S}", "-f", "lavfi", "-i", f"{SWEEP}:d={FILM_S}")  # fmt: skip
    codec = ("-c:v", "libx264", "-preset", "fast", "-g", "25", "-pix_fmt", "yuv420p")
    first, *others = (film_of(node) for node in mesh.nodes)
    make(first, *words, *codec, *AAC)
    for other in others:
        other.write_bytes(first.read_bytes())
    origin = see(first)
    begun_ms = monotonic_ms()
    told = ended(mesh, submitted(mesh.nodes[0], first, 999))
    assert told["state"] == "done", told
    usual_s = (monotonic_ms() - begun_ms) / 1000
    chunks = sum(task["kind"] == "chunk" for task in told["tasks"])
    say(
        f"{FILM_S} s of film at {SIZE}, {chunks} chunks on {len(mesh.nodes)} nodes, {usual_s:.1f} s undisturbed"
    )
    kills: list[Kill] = []
    for number in range(wanted.first, wanted.first + wanted.count):
        if monotonic_ms() - begun_ms > wanted.minutes * 60_000:
            say(f"time is over; go on with --first {number}")
            break
        draw = random.Random(wanted.seed * 1_000 + number)
        kills.append(one(number, mesh, origin, usual_s, draw))
        say(f"{kills[-1]}")
    return kills


def main() -> int:
    """Prints the table and the JSON line; 1 when a film is wrong or more was made again than ran."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="five kills")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first: 50 can be had in parts"
    )
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 16))
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="begin none after these"
    )
    wanted = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # nodes are stopped whoever ends it
    wanted.count = 5 if wanted.quick else wanted.count
    with (
        tempfile.TemporaryDirectory(prefix="darkstream-film-kills-") as name,
        cluster(Path(name), NAMES) as nodes,
    ):
        form(nodes, "--slots", str(SLOTS))
        wait_for("three voters", lambda: len(nodes[0].status()["voters"]) == len(NAMES), 60)
        wait_for(
            "all can work", lambda: all(n["slots"] for n in nodes[0].cli("nodes")["nodes"]), 60
        )
        kills = rounds(wanted, Mesh(nodes), lambda line: print(line, file=sys.stderr, flush=True))
    table(kills)
    killed, again = sum(k.killed for k in kills), sum(k.again for k in kills)
    wrong = sum(bool(k.faults) for k in kills)
    beyond = sum(k.again > k.killed for k in kills) + sum(k.lost for k in kills)
    line = {
        "bench": "film_kills", "ratio": round(again / max(1, killed), 3), "kills": len(kills), "wrong": wrong,
        "again": again, "ran": killed, "beyond": beyond, "seed": wanted.seed, "first": wanted.first,
        "quick": wanted.quick,
    }  # fmt: skip
    print(json.dumps(line))
    return 1 if wrong or beyond else 0


if __name__ == "__main__":
    sys.exit(main())
