"""Random faults to a mesh of five hosts whose clients submit and read all the time.

    .venv/bin/python bench/chaos.py [--quick] [--faults N] [--seed S]

Each host is a network namespace with a disk of its own (needs root, iproute2).  One fault after the
other: kill -9, SIGSTOP, a pulled cable, a host that is not heard, one that hears nothing, two hosts
that do not reach each other, a full disk.  At the end everything is healed, and then: what was
acknowledged and is missing, what is there twice, whether the history of all clients is
linearizable, and whether all ledgers are equal.  `ratio` is the median time without a coordinator
by etcd's 1.3 s on this kind of machine.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from ledger.queries import AppliedState, Reader
from mesh.clock import monotonic_ms
from tests.cluster import Node, cluster, wait_for
from tests.films import make_film
from tests.inside import Face, enter
from tests.linearizability import Submit
from tests.mesh_clients import Client, History, end
from tests.netns import Lan, available

HOSTS: Final = 5
CLIENTS_A_HOST: Final = 2
DISK_MB: Final = 512
TO_COORDINATOR: Final = 0.6
"""How many faults hit the coordinator; by chance alone one in five would."""
ETCD_MS: Final = 1_300
P50_AIM_MS, P99_AIM_MS = 800, 2_000
PROBE_S: Final = 0.05
PROBES_MS_MAX: Final = 15_000
_NEVER = threading.Event()


@dataclass(slots=True)
class Chaos:
    """The mesh, its clients, and what was done to it."""

    lan: Lan
    nodes: list[Node]
    faces: list[Face]
    draw: random.Random
    history: History = field(default_factory=History)
    faults: Counter[str] = field(default_factory=Counter)
    on_coordinator: int = 0
    coordinators_killed: int = 0
    without_ms: list[int] = field(default_factory=list)
    """From a fault that took the coordinator away until a write that began later was acknowledged."""

    def host(self, node: Node) -> int:
        return self.nodes.index(node) + 1

    def coordinator(self) -> Node | None:
        """Whom most nodes name."""
        told = [face.ask("/status") for face in self.faces]
        names = Counter(s["coordinator"] for s in told if s is not None and s["coordinator"])
        if not names:
            return None
        name = names.most_common(1)[0][0]
        return next(node for node in self.nodes if node.name == name)

    def is_whole(self) -> bool:
        """Whether every node sees every other and a coordinator."""
        told = [face.ask("/status") for face in self.faces]
        return all(s is not None and s["coordinator"] and s["nodes_alive"] == HOSTS for s in told)


# --- faults: each is a context in which it lasts ------------------------------------------------------


@contextlib.contextmanager
def killed(chaos: Chaos, node: Node) -> Generator[None]:
    node.kill()
    yield
    node.start("--slots", "0")


@contextlib.contextmanager
def stopped(_: Chaos, node: Node) -> Generator[None]:
    assert node.process is not None
    node.process.send_signal(signal.SIGSTOP)
    yield
    node.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def unplugged(chaos: Chaos, node: Node) -> Generator[None]:
    chaos.lan.unplug(chaos.host(node))
    yield
    chaos.lan.plug(chaos.host(node))


@contextlib.contextmanager
def muted(chaos: Chaos, node: Node) -> Generator[None]:
    chaos.lan.mute(chaos.host(node))
    yield
    chaos.lan.unmute(chaos.host(node))


@contextlib.contextmanager
def deafened(chaos: Chaos, node: Node) -> Generator[None]:
    others = [host for host in range(1, HOSTS + 1) if host != chaos.host(node)]
    for host in others:
        chaos.lan.mute(host, chaos.host(node))
    yield
    for host in others:
        chaos.lan.unmute(host)


@contextlib.contextmanager
def parted(chaos: Chaos, node: Node) -> Generator[None]:
    """The node and another one reach all but each other: a bridge between two views."""
    other = chaos.draw.choice([each for each in chaos.nodes if each is not node])
    pair = (chaos.host(node), chaos.host(other))
    chaos.lan.isolate(*pair)
    yield
    chaos.lan.join(*pair)


@contextlib.contextmanager
def full(chaos: Chaos, node: Node) -> Generator[None]:
    """No byte is left on the node's disk: it must stop, and go on when there is room."""
    filler = node.user_home / "filler"
    with filler.open("wb") as file, contextlib.suppress(OSError):
        while True:
            os.posix_fallocate(file.fileno(), file.tell(), 64 << 10)
            file.seek(64 << 10, os.SEEK_CUR)
    yield
    filler.unlink()
    assert node.process is not None
    with contextlib.suppress(subprocess.TimeoutExpired):
        node.process.wait(timeout=2)
    if node.process.poll() is not None:
        node.start("--slots", "0")


Fault = Callable[[Chaos, Node], contextlib.AbstractContextManager[None]]
FAULTS: Final[dict[str, tuple[Fault, int, bool]]] = {
    "killed": (killed, 12, True),
    "stopped": (stopped, 3, True),
    "unplugged": (unplugged, 2, True),
    "not heard": (muted, 2, True),
    "hears nothing": (deafened, 2, True),
    "parted from one": (parted, 2, False),
    "disk full": (full, 1, False),
}
"""What, how often, and whether a coordinator that it hits has to be replaced."""


def strike(chaos: Chaos) -> None:
    """One fault, for one to four seconds."""
    leader = wait_for("a coordinator", chaos.coordinator, 60)
    to_leader = chaos.draw.random() < TO_COORDINATOR
    node = leader if to_leader else chaos.draw.choice(chaos.nodes)
    name = chaos.draw.choices(list(FAULTS), [weight for _, weight, _ in FAULTS.values()])[0]
    fault, _, replaces = FAULTS[name]
    lasts_s = chaos.draw.uniform(1, 4)
    chaos.faults[name] += 1
    chaos.on_coordinator += node is leader
    chaos.coordinators_killed += node is leader and name == "killed"
    begin = monotonic_ms()
    with fault(chaos, node):
        took_ms = None
        if replaces and node is leader:
            took_ms = without_coordinator(chaos, node)
            chaos.without_ms.append(took_ms)
        left_s = lasts_s - (monotonic_ms() - begin) / 1000
        _NEVER.wait(max(0.0, left_s))
    took = "" if took_ms is None else f", no coordinator for {took_ms} ms"
    print(f"  {node.name} {name} for {(monotonic_ms() - begin) / 1000:.1f} s{took}", flush=True)
    # A second voter struck while the first is still on its way back is no quorum for anybody: what
    # is measured is one fault at a time.
    wait_for("all see all again", chaos.is_whole, 60)
    _NEVER.wait(chaos.draw.uniform(0.2, 1.5))


def without_coordinator(chaos: Chaos, hit: Node) -> int:
    """From now until a write that began later is acknowledged, on any node that was not hit."""
    begin = monotonic_ms()
    done, first = threading.Event(), [PROBES_MS_MAX]

    def probe(face: Face) -> None:
        if face.ask("/tokens", {"uses": 1, "ttl_s": 60}) is not None and not done.is_set():
            first[0] = monotonic_ms() - begin
            done.set()

    probes: list[threading.Thread] = []
    while not done.is_set() and monotonic_ms() - begin < PROBES_MS_MAX:
        others = [f for f, n in zip(chaos.faces, chaos.nodes, strict=True) if n is not hit]
        probes.append(threading.Thread(target=probe, args=(chaos.draw.choice(others),)))
        probes[-1].start()
        done.wait(PROBE_S)
    for thread in probes:
        thread.join()
    return first[0]


# --- the run -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def disks(root: Path, names: Sequence[str]) -> Generator[None]:
    """A small disk in memory for each node: one can be filled without filling all."""
    made: list[Path] = []
    try:
        for name in names:
            folder = root / name
            folder.mkdir()
            options = f"size={DISK_MB}m,mode=0700"
            argv = ["mount", "-t", "tmpfs", "-o", options, "darkstream-bench", str(folder)]
            subprocess.run(argv, check=True)
            made.append(folder)
        yield
    finally:
        for folder in made:
            subprocess.run(["umount", "-l", str(folder)], check=False)


def form(nodes: Sequence[Node]) -> None:
    nodes[0].start("--new-mesh", "--slots", "0").ready()
    token = nodes[0].token(len(nodes) - 1)
    for node in nodes[1:]:
        node.start("--join", token, "--slots", "0")
    for node in nodes:
        node.ready(60).sees(len(nodes), 60)
    wait_for("three voters", lambda: len(nodes[0].status()["voters"]) == 3, 30)


def run(chaos: Chaos, faults: int) -> None:
    """Clients on every host, one fault after the other, then peace."""
    stop = threading.Event()
    clients: list[Client] = []
    for host, node in enumerate(chaos.nodes, start=1):
        film = make_film(node.films / "film.mp4", seconds=1)
        clients += [
            Client(
                f"{node.name}-{n}",
                node,
                film,
                chaos.history,
                stop,
                consistent=True,
                enter=partial(enter, chaos.lan, host),
            )
            for n in range(CLIENTS_A_HOST)
        ]
    for client in clients:
        client.start()
    for _ in range(faults):
        strike(chaos)
    for node in chaos.nodes:
        node.ready(60).sees(HOSTS, 60)
    end(clients, stop)


def applied(node: Node) -> AppliedState:
    with contextlib.closing(Reader(str(node.home / "ledger.db"))) as reader:
        return reader.applied()


def jobs_by_film(node: Node) -> dict[str, list[str]]:
    """Ids of all jobs in a node's own ledger."""
    found: dict[str, list[str]] = {}
    with contextlib.closing(Reader(str(node.home / "ledger.db"))) as reader:
        for job in reader.jobs(limit=10_000_000):
            found.setdefault(job.source, []).append(job.id)
    return found


def equal(nodes: Sequence[Node]) -> bool:
    """Whether all ledgers are at one index with one checksum, within a minute."""
    try:
        return wait_for("all are equal", lambda: len({applied(n) for n in nodes}) == 1, 60)
    except AssertionError:
        return False


def judged(chaos: Chaos) -> dict[str, Any]:
    """Everything that was promised, counted."""
    same = equal(chaos.nodes)
    accepted = chaos.history.accepted()
    lost, doubled = set[str](), set[str]()
    for node in chaos.nodes:
        there = jobs_by_film(node)
        for key, ids in accepted.items():
            lost.update(set(ids) - set(there.get(key, [])))
        doubled.update(key for key, ids in there.items() if len(ids) > 1)
    faults = chaos.history.faults()
    for fault in faults[:5]:
        print(fault)
    times = sorted(chaos.without_ms)
    said = chaos.history.said
    submits = sum(isinstance(s.call.operation, Submit) for s in said)
    return {
        "bench": "chaos",
        "ratio": round(times[len(times) // 2] / ETCD_MS, 3) if times else None,
        "faults": chaos.faults.total(),
        "on_coordinator": chaos.on_coordinator,
        "coordinators_killed": chaos.coordinators_killed,
        "calls": len(said),
        "submits": submits,
        "acknowledged": len(accepted),
        "unanswered": sum(not s.call.answered for s in said),
        "lost": len(lost),
        "doubled": len(doubled),
        "linearizable": not faults,
        "equal": same,
        "without_p50_ms": times[len(times) // 2] if times else None,
        "without_p99_ms": times[int(len(times) * 0.99)] if times else None,
        "without_max_ms": times[-1] if times else None,
    }


def main() -> int:
    """Strikes and judges: 1 when a promise was broken, 2 where no network namespaces can be made."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10 faults instead of 200")
    parser.add_argument("--faults", type=int)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    given = parser.parse_args()
    if reason := available():
        print(f"error[namespaces]: {reason}; run it as root")
        return 2
    faults = given.faults or (10 if given.quick else 200)
    names = [f"host-{number}" for number in range(1, HOSTS + 1)]
    print(f"seed {given.seed}: {faults} faults to {HOSTS} hosts", flush=True)
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="darkstream-bench-")))
        stack.enter_context(disks(root, names))
        lan = stack.enter_context(Lan(HOSTS))
        nodes = stack.enter_context(cluster(root, names, lan))
        faces = [Face(lan, host, node) for host, node in enumerate(nodes, start=1)]
        chaos = Chaos(lan, nodes, faces, random.Random(given.seed))
        form(nodes)
        run(chaos, faults)
        found = judged(chaos)
    for name, count in chaos.faults.most_common():
        print(f"{name:24}{count:>8}")
    for name, value in found.items():
        print(f"{name:24}{value!s:>8}")
    print(
        f"aims: without a coordinator p50 {P50_AIM_MS} ms, p99 {P99_AIM_MS} ms; lost 0, doubled 0"
    )
    print(json.dumps({**found, "seed": given.seed, "quick": given.quick}))
    kept = found["linearizable"] and found["equal"] and not found["lost"] and not found["doubled"]
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
