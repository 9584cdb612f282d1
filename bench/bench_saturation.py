"""Every core of every node encodes, and the mesh must go on as if nothing were the matter.

    .venv/bin/python bench/bench_saturation.py [--quick] [--seconds S] [--nodes N]

Five nodes on this machine, each with a slot whose encoder takes every core, are given more films
than they can do.  Meanwhile every node is asked for a read that needs a round of the voters, and for
a write.  Wanted: no election and no lost lease.  `ratio` is the 99th percentile of the rounds by the
time after which a silent coordinator is replaced; below 1 is good.
"""

import argparse
import contextlib
import http.client
import json
import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from ledger.queries import Reader
from mesh.clock import monotonic_ms
from node.settings.config import Timings
from tests.cluster import Node, cluster, wait_for
from tests.films import make_film
from tests.mesh_clients import Api, NoAnswerError, RefusedError

SECONDS, QUICK_SECONDS = 600, 60
NODES: Final = 5
WAITING_A_NODE: Final = 2
"""Jobs that wait for each node, so that no slot is ever free."""
PROBE_S: Final = 0.5
FILM_S, FILM_SIZE = 8, "480x270"
"""Some ten seconds of work for a core of its own: five share what is there, and leases change hands."""
START_S: Final = 120
_NEVER = threading.Event()


@dataclass(slots=True)
class Seen:
    """What was watched; times in milliseconds."""

    rounds_ms: list[int] = field(default_factory=list)
    writes_ms: list[int] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    leads: list[tuple[int, str]] = field(default_factory=list)
    """Each (term, coordinator) that any node named, in the order of the terms."""
    lag_ms: int = 0
    """The worst lateness of a loop, of any node."""
    leader_lag_ms: int = 0
    stretch_percent: int = 100
    busy_percent: list[float] = field(default_factory=list)
    """Of all cores, of whatever runs here."""


class Prober(threading.Thread):
    """Asks one node for a read that needs a round of the voters, then for a write, twice a second."""

    def __init__(self, node: Node, seen: Seen, stop: threading.Event) -> None:
        super().__init__(name=f"prober-{node.name}", daemon=True)
        self._node, self._seen, self._stopping = node, seen, stop

    def run(self) -> None:
        with contextlib.closing(Api(self._node.home)) as api:
            while not self._stopping.wait(PROBE_S):
                self._one(api, "/api/v1/status?consistent=true", None, self._seen.rounds_ms)
                token = {"uses": 1, "ttl_s": 1}
                self._one(api, "/api/v1/tokens", token, self._seen.writes_ms)

    def _one(self, api: Api, path: str, body: object, times: list[int]) -> None:
        begin_ms = monotonic_ms()
        try:
            status, answer = api.ask(path, body)
        except (NoAnswerError, RefusedError) as error:
            self._seen.failures[type(error).__name__] += 1
            return
        if status == 200:
            times.append(monotonic_ms() - begin_ms)
        else:
            self._seen.failures[answer["code"]] += 1


class Feeder(threading.Thread):
    """Keeps more films waiting than there are slots; all nodes own some."""

    def __init__(self, nodes: Sequence[Node], film: Path, stop: threading.Event) -> None:
        super().__init__(name="feeder", daemon=True)
        self._nodes, self._film, self._stopping = nodes, film, stop
        self.submitted = 0

    def run(self) -> None:
        while not self._stopping.is_set():
            for node in self._nodes:
                with (
                    contextlib.closing(Api(node.home)) as api,
                    contextlib.suppress(NoAnswerError, RefusedError),
                ):
                    self._feed(node, api)
                if self._stopping.wait(1):
                    return

    def _feed(self, node: Node, api: Api) -> None:
        _, told = api.ask("/api/v1/status")
        open_jobs = sum(told["jobs"].get(s, 0) for s in ("queued", "planning", "waiting"))
        if open_jobs >= WAITING_A_NODE * len(self._nodes):
            return
        self.submitted += 1
        path = node.films / f"film-{self.submitted}{self._film.suffix}"
        os.link(self._film, path)
        api.ask("/api/v1/jobs", {"paths": [str(path)], "profile": "archive"})


def form(nodes: Sequence[Node]) -> None:
    """A slot on each, all see all; with the patience that a busy machine needs."""
    nodes[0].start("--new-mesh", "--slots", "1").ready(START_S)
    token = nodes[0].token(len(nodes) - 1)
    for node in nodes[1:]:
        node.start("--join", token, "--slots", "1")
    for node in nodes:
        node.ready(START_S).sees(len(nodes), START_S)


def metrics(node: Node) -> dict[str, float]:
    """The node's own word in Prometheus' text form, by series; nothing when it does not answer."""
    host, _, port = (node.home / "api.address").read_text("ascii").rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException):
            return {}
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def watch(nodes: Sequence[Node], seen: Seen, seconds: float) -> None:
    """Looks at every node once a second, until the time is over."""
    end_ms = monotonic_ms() + int(seconds * 1000)
    apis = [Api(node.home) for node in nodes]
    psutil.cpu_percent()
    while monotonic_ms() < end_ms:
        for node, api in zip(nodes, apis, strict=True):
            with contextlib.suppress(NoAnswerError, RefusedError):
                _, told = api.ask("/api/v1/status")
                lead = (int(told["term"]), str(told["coordinator"]))
                if told["coordinator"] and lead not in seen.leads:
                    seen.leads.append(lead)
                said = metrics(node)
                lag_ms = round(said.get("darkstream_loop_lag_seconds", 0) * 1000)
                stretch = round(said.get("darkstream_election_stretch_ratio", 1) * 100)
                seen.lag_ms = max(seen.lag_ms, lag_ms)
                seen.stretch_percent = max(seen.stretch_percent, stretch)
                if told["coordinator"] == node.name:
                    seen.leader_lag_ms = max(seen.leader_lag_ms, lag_ms)
        _NEVER.wait(1)
        seen.busy_percent.append(psutil.cpu_percent())
    for api in apis:
        api.close()


def children_s(nodes: Sequence[Node]) -> float:
    """CPU seconds that all nodes and what they started have used."""
    used = 0.0
    for node in nodes:
        assert node.process is not None
        root = psutil.Process(node.process.pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                used += times.user + times.system + times.children_user + times.children_system
    return used


def attempts(node: Node) -> Counter[str]:
    """Leases by what became of them."""
    with contextlib.closing(Reader(str(node.home / "ledger.db"))) as reader:
        found = Counter[str]()
        for job in reader.jobs(limit=1_000_000):
            found.update(attempt.state for attempt in reader.attempts(job.id))
    return found


def run(nodes: Sequence[Node], seconds: float) -> tuple[Seen, dict[str, Any]]:
    """Loads the mesh, watches it, and counts."""
    stop, seen = threading.Event(), Seen()
    film = make_film(nodes[0].user_home.parent / "film.mp4", seconds=FILM_S, size=FILM_SIZE)
    feeder = Feeder(nodes, film, stop)
    feeder.start()
    running = "every slot encodes"
    first = nodes[0]
    wait_for(running, lambda: first.status()["jobs"].get("running", 0) >= len(nodes), 120)
    probers = [Prober(node, seen, stop) for node in nodes]
    for prober in probers:
        prober.start()
    before_s, begin_ms = children_s(nodes), monotonic_ms()
    watch(nodes, seen, seconds)
    passed_s = (monotonic_ms() - begin_ms) / 1000
    used_s = children_s(nodes) - before_s
    jobs = first.status()["jobs"]
    stop.set()
    for thread in (feeder, *probers):
        thread.join(timeout=60)
    ended = attempts(first)
    return seen, {
        "seconds": round(passed_s),
        "submitted": feeder.submitted,
        "done": jobs.get("done", 0),
        "failed": jobs.get("failed", 0),
        "attempts": dict(ended),
        "lost_leases": ended["expired"],
        "mesh_cpu_percent": round(used_s / passed_s / (psutil.cpu_count() or 1) * 100),
    }


def percentile(times_ms: Sequence[int], part: float) -> int | None:
    """Of some times; None of none."""
    ordered = sorted(times_ms)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else None


def judged(seen: Seen, found: dict[str, Any]) -> dict[str, Any]:
    """All figures by name."""
    terms = [term for term, _ in seen.leads]
    p99 = percentile(seen.rounds_ms, 0.99)
    patience_ms = Timings().election_min_ms
    return {
        "bench": "saturation",
        "ratio": None if p99 is None else round(p99 / patience_ms, 3),
        **found,
        "needless_elections": max(terms) - min(terms) if terms else None,
        "machine_busy_percent": round(sum(seen.busy_percent) / max(1, len(seen.busy_percent))),
        "rounds": len(seen.rounds_ms),
        "round_p50_ms": percentile(seen.rounds_ms, 0.5),
        "round_p99_ms": p99,
        "round_max_ms": max(seen.rounds_ms, default=None),
        "write_p50_ms": percentile(seen.writes_ms, 0.5),
        "write_p99_ms": percentile(seen.writes_ms, 0.99),
        "write_max_ms": max(seen.writes_ms, default=None),
        "failures": dict(seen.failures),
        "loop_lag_max_ms": seen.lag_ms,
        "coordinator_lag_max_ms": seen.leader_lag_ms,
        "stretch_max_percent": seen.stretch_percent,
    }


def main() -> int:
    """1 when there was an election or a lease was lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SECONDS} s")
    parser.add_argument("--seconds", type=int)
    parser.add_argument("--nodes", type=int, default=NODES)
    given = parser.parse_args()
    seconds = given.seconds or (QUICK_SECONDS if given.quick else SECONDS)
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="darkstream-bench-")))
        names = [f"n{number}" for number in range(1, given.nodes + 1)]
        nodes = stack.enter_context(cluster(root, names))
        form(nodes)
        found = judged(*run(nodes, seconds))
        for node in nodes:
            text = node.errors.read_text(errors="replace")
            lines = text.splitlines()
            told = [x for x in lines if " warning " in x or " error " in x]
            if found["needless_elections"]:  # what each saw of them
                told += [x for x in lines if "leader term=" in x or "time-outs follow" in x]
            for line in sorted(told)[-20:]:
                print(f"{node.name}: {line[:200]}")
    for name, value in found.items():
        print(f"{name:28}{value}")
    print(json.dumps({**found, "nodes": given.nodes, "quick": given.quick}))
    return 1 if found["needless_elections"] or found["lost_leases"] else 0


if __name__ == "__main__":
    sys.exit(main())
