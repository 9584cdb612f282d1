"""A million jobs: how fast they come in, and what the ledger's answers cost when it is full.

    .venv/bin/python bench/bench_million.py [--quick] [--jobs N]

Three `mesh-node` processes on loopback; a member submits in commands of a thousand jobs, eight
commands in flight.  Reads are measured at 1,000 jobs and at the end: the coordinator's next task
(its view of the ledger and the plan), the first page of the list and one from its middle through
the HTTP API, and the list by filters.  Then a fourth node joins while writes go on, once on a disk
of its own and once on the one that all share here: the longest stall of a write.  `ratio` is the
worst read at the end by the same at 1,000.
"""

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from bench_ledger import mesh

from ledger.commands import GrantLeases
from ledger.queries import Reader
from ledger.scheduler import plan
from tests.cluster import Node, wait_for
from tests.films import make_film
from tests.mesh_clients import Api

JOBS = 1_000_000
FEW = 1_000
JOBS_A_COMMAND = 1_000
SEQ_BITS = 10
KEEP_MIB = 2  # of the log: a thousandth of the films
IN_FLIGHT = 8
MEMORY_FREE_MIN = 4 << 30
PER_S_AIM, RATIO_AIM, MEMORY_MB_AIM, STALL_MS_AIM = 30_000, 1.5, 250, 100


def coordinator(nodes: Sequence[Node]) -> tuple[Node, str]:
    """The node that leads, and its id."""
    found = next(n for n in nodes[0].cli("nodes")["nodes"] if n["coordinator"])
    return next(node for node in nodes if node.name == found["name"]), found["id"]


@contextlib.contextmanager
def client(
    nodes: Sequence[Node], member: Node, *words: object
) -> Iterator["subprocess.Popen[str]"]:
    """The process of a member that only proposes."""
    home, leader = coordinator(nodes)
    script = Path(__file__).with_name("member_client.py")
    argv = [sys.executable, script, member.home, home.home / "ledger.db", leader, *words]
    with subprocess.Popen(list(map(str, argv)), stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def submit(nodes: Sequence[Node], member: Node, jobs: int) -> dict[str, Any]:
    """So many jobs; what the client measured."""
    size = min(JOBS_A_COMMAND, jobs)
    words = (IN_FLIGHT, 0, "--jobs", size, "--commands", jobs // size)
    with client(nodes, member, *words) as process:
        out, _ = process.communicate(timeout=3_600)
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


# --- what reads cost --------------------------------------------------------------------------------


def milliseconds(act: Callable[[], object], times: int) -> float:
    """The median of so many."""
    found: list[float] = []
    for _ in range(times):
        begin = time.perf_counter_ns()
        act()
        found.append((time.perf_counter_ns() - begin) / 1e6)
    return statistics.median(found)


def reads(node: Node, member: Node, times: int, *, many: bool) -> dict[str, float]:
    """Milliseconds of each kind of read."""
    with contextlib.closing(Reader(str(node.home / "ledger.db"))) as reader:
        found = {"next task": milliseconds(lambda: next_task(reader), times)}
        found["what its owner plans next"] = milliseconds(
            lambda: reader.jobs_to_plan(member_of(reader, node), 16), times
        )
    with contextlib.closing(Api(node.home)) as api:

        def page(query: str) -> dict[str, Any]:
            status, body = api.ask(f"/api/v1/jobs?limit=100{query}")
            assert status == 200, body
            return dict(body)

        # A cursor is a place in the order: log index and number within its command.
        half = (int(page("")["next"]) >> SEQ_BITS) // 2 if many else 0
        middle = half << SEQ_BITS | 500 if many else int(page("")["next"]) - 300
        for name, query in {
            "first page": "",
            "page in the middle": f"&cursor={middle}",
            "first page of the queued": "&status=queued",
            "the failed, of which there are none": "&status=failed",
            "those of a node that has few": f"&node={node.name}",
            "those of the node that has most": f"&node={member.name}",
            "those of a tenant that has none": "&tenant=nobody",
            "those since a moment ago": f"&since_ms={time.time_ns() // 1_000_000}",
        }.items():
            found[name] = milliseconds(lambda query=query: page(query), times)
        found["status"] = milliseconds(lambda: api.ask("/api/v1/status"), times)
    return found


def member_of(reader: Reader, node: Node) -> str:
    member = reader.member_by_name(node.name)
    assert member is not None
    return member.node


def next_task(reader: Reader) -> None:
    """What the coordinator does in a round that leases the next task."""
    view = reader.schedulable()
    nodes = tuple(replace(node, alive=True, slots=4) for node in view.nodes)
    numbers = iter(range(1_000_000))
    commands = plan(
        replace(view, nodes=nodes, new_attempt_id=lambda: f"a{next(numbers)}"), now_ms=0
    )
    assert any(isinstance(command, GrantLeases) for command in commands), "a task is ready"


# --- a node joins while writes go on ------------------------------------------------------------------


def stall(
    nodes: Sequence[Node], member: Node, name: str, root: Path, config: str
) -> dict[str, float]:
    """Latencies of single submissions while a new node takes the ledger over, into a home below `root`."""
    newcomer = Node(root, name)
    with client(nodes, member, 1, 20) as process:
        threading.Event().wait(3)
        begin = time.perf_counter_ns()
        newcomer.start("--join", nodes[0].token(), "--slots", "0", "--config", config)
        try:
            newcomer.ready(120)
            index = applied(nodes[0])
            wait_for("the newcomer has the ledger", lambda: applied(newcomer) >= index, 300)
            took = (time.perf_counter_ns() - begin) / 1e9
            assert "snapshot installed" in newcomer.errors.read_text(), "by the log alone"
            out, _ = process.communicate(timeout=300)
        finally:
            newcomer.kill()
    found = json.loads(out.splitlines()[-1])
    return {"join_s": took, "stall_ms": found["max_ms"], "p99_ms": found["p99_ms"]}


@contextlib.contextmanager
def memory_folder() -> Iterator[Path | None]:
    """A folder on a file system in memory with room for a full ledger."""
    place = Path("/dev/shm")
    if not place.is_dir() or shutil.disk_usage(place).free < MEMORY_FREE_MIN:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="darkstream-bench-", dir=place) as name:
        yield Path(name)


def applied(node: Node) -> int:
    with contextlib.closing(Reader(str(node.home / "ledger.db"))) as reader:
        return reader.applied().index


def memory_mb(node: Node) -> float:
    assert node.process is not None
    return float(psutil.Process(node.process.pid).memory_info().rss / 1e6)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one run found."""

    submitted: dict[str, float]
    few: dict[str, float]
    many: dict[str, float]
    small_mb: float
    memory_mb: dict[bool, float]
    """By whether it is the coordinator's."""
    disk_mb: dict[str, float]
    own: dict[str, float]
    """A newcomer with a disk of its own."""
    shared: dict[str, float]
    """The same on the disk of all others."""


def measure(jobs: int, times: int) -> Found:
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="darkstream-bench-")))
        few_entries = root / "few-entries.toml"
        # So little of the log is kept that the new node needs the whole ledger.
        few_entries.write_text(f"[ledger]\nkeep_mib = {KEEP_MIB}\n")
        nodes, member = stack.enter_context(mesh(root, "--config", str(few_entries)))
        ready_task(nodes, root)
        submit(nodes, member, FEW)
        few = reads(nodes[0], member, times, many=False)
        small_mb = max(memory_mb(node) for node in nodes)
        submitted = submit(nodes, member, jobs - FEW)
        many = reads(nodes[0], member, times, many=True)
        leader, _ = coordinator(nodes)
        memory = {node is leader: memory_mb(node) for node in nodes}
        files = ("ledger.db", "raft.db")
        disk = {file: (leader.home / file).stat().st_size / 1e6 for file in files}
        # In a mesh a newcomer has a disk of its own; memory stands in for it where there is some.
        own = stack.enter_context(memory_folder()) or root
        return Found(
            submitted=submitted,
            few=few,
            many=many,
            small_mb=small_mb,
            memory_mb=memory,
            disk_mb=disk,
            own=stall(nodes, member, "late", own, str(few_entries)),
            shared=stall(nodes, member, "later", root, str(few_entries)),
        )


def main() -> int:
    """Measures and prints; always 0: a bench tells, it does not judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="30,000 jobs instead of a million")
    parser.add_argument("--jobs", type=int)
    given = parser.parse_args()
    jobs = given.jobs or (30_000 if given.quick else JOBS)
    found = measure(jobs, 9 if given.quick else 25)
    few, many, memory = found.few, found.many, found.memory_mb
    rate = found.submitted["per_s"] * JOBS_A_COMMAND
    ratios = {what: many[what] / few[what] for what in few}
    print(f"{jobs:,} jobs: {rate:,.0f} a second (aim {PER_S_AIM:,}),", end=" ")
    print(f"p99 {found.submitted['p99_ms']:.0f} ms")
    print(f"{'':40}{f'at {FEW:,}':>12}{f'at {jobs:,}':>14}{'ratio':>8}")
    for what in few:
        print(f"{what:40}{few[what]:>9.2f} ms{many[what]:>11.2f} ms{ratios[what]:>8.2f}")
    print(f"aim: ratio under {RATIO_AIM}")
    print(f"memory: coordinator {memory[True]:.0f} MB, follower {memory[False]:.0f} MB", end="")
    print(f" (aim under {MEMORY_MB_AIM}; at {FEW:,}: {found.small_mb:.0f} MB)")
    print(", ".join(f"{file} {size:,.0f} MB" for file, size in found.disk_mb.items()))
    for what, one in (("its own disk", found.own), ("the disk of all", found.shared)):
        print(f"a new node on {what} took {one['join_s']:.1f} s; longest stall of a write", end=" ")
        print(f"{one['stall_ms']:.0f} ms (aim {STALL_MS_AIM}), p99 {one['p99_ms']:.1f} ms")
    aimed = [ratios[what] for what in ("next task", "first page", "page in the middle")]
    result = {
        "bench": "million",
        "ratio": round(max(aimed), 3),
        "ratio_worst": round(max(ratios.values()), 3),
        "jobs": jobs,
        "jobs_per_s": round(rate),
        "coordinator_mb": round(memory[True], 1),
        "follower_mb": round(memory[False], 1),
        "ledger_mb": round(found.disk_mb["ledger.db"], 1),
        "raft_mb": round(found.disk_mb["raft.db"], 1),
        "stall_ms": round(found.own["stall_ms"], 1),
        "stall_shared_disk_ms": round(found.shared["stall_ms"], 1),
        "join_s": round(found.own["join_s"], 1),
        "quick": given.quick,
    }
    print(json.dumps(result))
    return 0


def ready_task(nodes: Sequence[Node], root: Path) -> None:
    """One planned job of the node that is asked, which no worker takes: nobody has slots."""
    film = make_film(nodes[0].films / "film.mp4", seconds=1)
    nodes[0].cli("submit", str(film), "--profile", "web")
    wait_for("the job is planned", lambda: _ready(nodes[0]), 60)


def _ready(node: Node) -> bool:
    with contextlib.closing(Reader(str(node.home / "ledger.db"))) as reader:
        return bool(reader.schedulable().tasks)


if __name__ == "__main__":
    sys.exit(main())
