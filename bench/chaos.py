"""Random faults to a mesh of five hosts whose clients submit and read all the time.

    .venv/bin/python bench/chaos.py [--quick] [--faults N] [--minutes M] [--only NAME]... [--seed S] [--logs DIR]

Each host is a network namespace with a disk of its own (needs root, iproute2), on a switch of the
tests' own.  One fault after the other: kill -9, SIGSTOP, a pulled cable, a host that is not heard,
one that hears nothing, two hosts that do not reach each other, one that another does not hear, a
cable that loses 30 % and delays by 200 ms each way, a full disk.  At the end everything is healed,
and then: what was acknowledged and is missing, what is there twice, whether the history of all
clients is linearizable, and whether all ledgers are equal.  `ratio` is the median time without a
coordinator by etcd's 1.3 s on this kind of machine.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from ledger.queries import AppliedState, Reader
from mesh.clock import monotonic_ms, wall_ms
from tests.cluster import Node, cluster, wait_for
from tests.films import make_film
from tests.inside import Face, enter
from tests.linearizability import Submit
from tests.mesh_clients import Client, History, end
from tests.netns import available
from tests.switched_lan import SwitchedLan

HOSTS: Final = 5
CLIENTS_A_HOST: Final = 2
CLIENT_PAUSE_S: Final = 0.05
"""Between two calls of a client: five nodes share the cores of one machine with all of them."""
DISK_MB: Final = 512
COORDINATOR_KILLS: Final = 0.33
"""Share of faults that are a kill of the coordinator."""
TO_COORDINATOR: Final = 0.4
"""How many of the others hit the coordinator; by chance alone one in five would."""
LOSS, DELAY_MS = 0.3, 200
ETCD_MS: Final = 1_300
P50_AIM_MS, P99_AIM_MS = 800, 2_000
PROBE_S: Final = 0.05
PROBES_MS_MAX: Final = 15_000
_NEVER = threading.Event()


@dataclass(slots=True)
class Chaos:
    """The mesh, its clients, and what was done to it."""

    lan: SwitchedLan
    nodes: list[Node]
    faces: list[Face]
    draw: random.Random
    history: History = field(default_factory=History)
    faults: Counter[str] = field(default_factory=Counter)
    on_coordinator: int = 0
    coordinators_killed: int = 0
    without_ms: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """From a fault that hit the coordinator until a write that began later was acknowledged, by fault."""

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

    def is_whole(self, struck: Node, healed_ms: int) -> bool:
        """Whether every node knows a coordinator, and the one that was struck and all others heard each other since."""
        told = [face.ask("/status") for face in self.faces]
        if not all(s is not None and s["coordinator"] and s["nodes_alive"] == HOSTS for s in told):
            return False
        for node, face in zip(self.nodes, self.faces, strict=True):
            asked_ms = monotonic_ms()
            others = (face.ask("/nodes") or {"nodes": []})["nodes"]
            heard = {
                other["name"]: other["last_heard_ms"]
                for other in others
                if other["last_heard_ms"] is not None
            }
            since_ms = asked_ms - healed_ms
            wanted = self.nodes if node is struck else [struck]
            if any(heard.get(each.name, since_ms + 1) > since_ms for each in wanted):
                return False
        return True


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
    others = [host for host in chaos.lan.hosts if host != chaos.host(node)]
    for host in others:
        chaos.lan.mute(host, chaos.host(node))
    yield
    for host in others:
        chaos.lan.unmute(host)


def _another(chaos: Chaos, node: Node) -> int:
    return chaos.host(chaos.draw.choice([each for each in chaos.nodes if each is not node]))


@contextlib.contextmanager
def half_parted(chaos: Chaos, node: Node) -> Generator[None]:
    """One other does not hear the node, which hears it."""
    chaos.lan.mute(chaos.host(node), _another(chaos, node))
    yield
    chaos.lan.unmute(chaos.host(node))


@contextlib.contextmanager
def spoiled(chaos: Chaos, node: Node) -> Generator[None]:
    chaos.lan.spoil(chaos.host(node), loss=LOSS, delay_ms=DELAY_MS)
    yield
    chaos.lan.mend(chaos.host(node))


@contextlib.contextmanager
def parted(chaos: Chaos, node: Node) -> Generator[None]:
    """The node and another one reach all but each other: a bridge between two views."""
    pair = (chaos.host(node), _another(chaos, node))
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
    "killed": (killed, 6, True),
    "stopped": (stopped, 4, True),
    "unplugged": (unplugged, 3, True),
    "not heard": (muted, 3, True),
    "hears nothing": (deafened, 3, True),
    "loses and delays": (spoiled, 3, True),
    "parted from one": (parted, 2, False),
    "not heard by one": (half_parted, 2, False),
    "disk full": (full, 2, False),
}
"""What, how often, and whether a coordinator that it hits may have to be replaced."""


def deck(draw: random.Random, count: int, only: Sequence[str]) -> list[tuple[str, bool]]:
    """The faults in their order, and which of them hit the coordinator."""
    names = list(only) or list(FAULTS)
    kills = int(count * COORDINATOR_KILLS) if "killed" in names else 0
    weights = [FAULTS[name][1] for name in names]
    rest = draw.choices(names, weights, k=count - kills)
    # Asked for by name: to see what it costs.
    to_coordinator = 1.0 if only else TO_COORDINATOR
    cards = [("killed", True)] * kills + [(name, draw.random() < to_coordinator) for name in rest]
    draw.shuffle(cards)
    return cards


def strike(chaos: Chaos, name: str, *, to_leader: bool) -> None:
    """One fault, for one to three seconds."""
    leader = wait_for("a coordinator", chaos.coordinator, 60)
    node = leader if to_leader else chaos.draw.choice(chaos.nodes)
    fault, _, replaces = FAULTS[name]
    lasts_s = chaos.draw.uniform(1, 3)
    chaos.faults[name] += 1
    chaos.on_coordinator += node is leader
    chaos.coordinators_killed += node is leader and name == "killed"
    begin, at = monotonic_ms(), datetime.fromtimestamp(wall_ms() / 1000, UTC)
    with fault(chaos, node):
        took_ms = None
        if replaces and node is leader:
            took_ms = without_coordinator(chaos, node)
            chaos.without_ms[name].append(took_ms)
        left_s = lasts_s - (monotonic_ms() - begin) / 1000
        _NEVER.wait(max(0.0, left_s))
    took = "" if took_ms is None else f", no coordinator for {took_ms} ms"
    lasted_s = (monotonic_ms() - begin) / 1000
    print(f"  {at:%H:%M:%S.%f} {node.name} {name} for {lasted_s:.1f} s{took}", flush=True)
    # A second voter struck while the first is still on its way back is no quorum for anybody: what
    # is measured is one fault at a time.
    healed_ms = monotonic_ms()
    wait_for("all see all again", lambda: chaos.is_whole(node, healed_ms), 60)
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
    nodes[0].start("--new-mesh", "--slots", "0").ready(60)
    token = nodes[0].token(len(nodes) - 1)
    for node in nodes[1:]:
        node.start("--join", token, "--slots", "0")
    for node in nodes:
        node.ready(60).sees(len(nodes), 60)
    wait_for("three voters", lambda: len(nodes[0].status()["voters"]) == 3, 30)


def run(chaos: Chaos, faults: Sequence[tuple[str, bool]], until_ms: int) -> None:
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
                pause_s=CLIENT_PAUSE_S,
            )
            for n in range(CLIENTS_A_HOST)
        ]
    for client in clients:
        client.start()
    for name, to_leader in faults:
        if monotonic_ms() >= until_ms:
            print("  the time is over", flush=True)
            break
        strike(chaos, name, to_leader=to_leader)
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
    times = sorted(ms for found in chaos.without_ms.values() for ms in found)
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


def _all_but_logs(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not name.endswith(".log")]


def main() -> int:
    """Strikes and judges: 1 when a promise was broken, 2 where no network namespaces can be made."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10 faults instead of 200")
    parser.add_argument("--faults", type=int)
    parser.add_argument("--minutes", type=float, default=60, help="strikes no longer than so")
    parser.add_argument("--only", action="append", default=[], choices=list(FAULTS))
    parser.add_argument("--logs", type=Path, help="keeps what the nodes log in this folder")
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
        lan = stack.enter_context(SwitchedLan(HOSTS))
        nodes = stack.enter_context(cluster(root, names, lan))
        faces = [Face(lan, host, node) for host, node in enumerate(nodes, start=1)]
        chaos = Chaos(lan, nodes, faces, random.Random(given.seed))
        if given.logs is not None:
            stack.callback(shutil.copytree, root, given.logs, ignore=_all_but_logs)
        form(nodes)
        until_ms = monotonic_ms() + int(given.minutes * 60_000)
        run(chaos, deck(chaos.draw, faults, given.only), until_ms)
        found = judged(chaos)
    print(f"{'fault':24}{'count':>8}{'of the coordinator: p50':>26}{'max ms':>8}")
    for name, count in chaos.faults.most_common():
        times = sorted(chaos.without_ms[name]) or [0]
        print(f"{name:24}{count:>8}{times[len(times) // 2] or '':>26}{times[-1] or '':>8}")
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
