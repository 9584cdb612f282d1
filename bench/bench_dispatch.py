"""Tasks that do nothing: how many a second, and how soon after its submission one starts on an idle mesh.

    .venv/bin/python bench/bench_dispatch.py [--quick] [--rivals PYTHON]

Three `mesh-node` processes that vote, with eight slots in all and a log that is durable on all three;
their films cost nothing (dispatch_node.py).  A job goes its whole way: submitted through the HTTP API,
planned by its owner, leased, begun, handed back, accepted, published.  In the same run Celery with
Redis and Dask distributed, eight workers each, whose tasks are one message there and one back and are
durable nowhere.  Set-up of these, once: `python -m venv V && V/bin/pip install "celery[redis]"
distributed`, then `--rivals V/bin/python`; and Debian's redis-server.  Without it ours runs alone.
`ratio` is our p99 of the start by the better one of theirs.  Aims: p50 under 10 ms, ratio under 1.
"""

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import cluster
from tests.cluster import Node, form, wait_for
from tests.mesh_clients import Api

SLOTS = (3, 3, 2)
IDLE_S = 0.5
"""Between two jobs that are alone: the mesh has come to rest."""
ON_ITS_WAY_S = 0.1
"""After each of these nobody asks how it stands: the rivals' clients wait for their results as well."""
FILM = b"a film"
"""Of another size than the results: what could be one of them is read before it is taken."""
HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Tasks a second, and milliseconds to the start of one that is alone."""

    per_s: float
    p50_ms: float
    p99_ms: float


def figures(per_s: float, waits_ms: list[float]) -> Figures:
    cuts = statistics.quantiles(waits_ms, n=100, method="inclusive")
    return Figures(per_s=per_s, p50_ms=cuts[49], p99_ms=cuts[98])


def starts(root: Path) -> dict[str, int]:
    """When each film's task began, by its path."""
    found: dict[str, int] = {}
    for line in (root / "starts").read_text().splitlines():
        path, _, at = line.rpartition(" ")
        found[path] = int(at)
    return found


def done(api: Api) -> int:
    return int(api.ask("/api/v1/status")[1]["jobs"].get("done", 0))


def ours(tasks: int, alone: int) -> Figures:
    with (
        tempfile.TemporaryDirectory(prefix="darkstream-bench-") as name,
        contextlib.ExitStack() as stack,
    ):
        root = Path(name)
        os.environ["DISPATCH_STARTS"] = str(root / "starts")
        made: Any = cluster
        made.MESH_NODE = (sys.executable, str(HERE / "dispatch_node.py"))
        nodes = stack.enter_context(cluster.cluster(root, ["one", "two", "three"]))
        form(nodes)
        wait_for("three voters", lambda: len(nodes[0].status()["voters"]) == 3, 30)
        for node, slots in zip(nodes, SLOTS, strict=True):
            nodes[0].cli("nodes", "limit", node.name, "--slots", str(slots))
        wait_for("slots are known", lambda: _slots(nodes[0]) == sum(SLOTS), 60)
        return _measured(root, nodes[0], tasks, alone)


def _slots(node: Node) -> int:
    return sum(one["slots"] for one in node.cli("nodes")["nodes"] if one["encoders"])


def _measured(root: Path, node: Node, tasks: int, alone: int) -> Figures:
    with contextlib.closing(Api(node.home)) as api:
        sent = {}
        _submit(api, _film(node, "warm.mkv"))
        wait_for("one is done", lambda: done(api) == 1, 30)
        for number in range(alone):
            film = _film(node, f"alone{number}.mkv")
            threading.Event().wait(IDLE_S)
            sent[str(film)] = time.time_ns()
            _submit(api, film)
            threading.Event().wait(ON_ITS_WAY_S)
            wait_for("it is done", lambda n=number: done(api) == n + 2, 30)
        begun = starts(root)
        waits = [(begun[film] - at) / 1e6 for film, at in sent.items()]
        folder = node.films / "many"
        folder.mkdir()
        for number in range(tasks):
            (folder / f"{number}.mkv").write_bytes(FILM)
        at = time.perf_counter_ns() / 1e9
        _submit(api, folder)
        wait_for("all are done", lambda: done(api) == alone + 1 + tasks, 600)
        return figures(tasks / (time.perf_counter_ns() / 1e9 - at), waits)


def _film(node: Node, name: str) -> Path:
    path = node.films / name
    path.write_bytes(FILM)
    return path


def _submit(api: Api, path: Path) -> None:
    status, body = api.ask("/api/v1/jobs", {"paths": [str(path)], "profile": "web"})
    assert status == 200, body
    assert not body["faults"], body


@contextlib.contextmanager
def redis() -> Iterator[int]:
    """A Redis of its own, as it comes: in memory."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as server:
        try:
            threading.Event().wait(1)
            yield port
        finally:
            server.terminate()


def theirs(python: str, name: str, tasks: int, alone: int) -> Figures | None:
    if name == "celery" and shutil.which("redis-server") is None:
        print("no redis-server here: apt-get install -y redis-server")
        return None
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(redis()) if name == "celery" else 0
        argv = [python, str(HERE / "dispatch_rivals.py"), name, str(tasks), str(alone)]
        environment = {**os.environ, "DISPATCH_PORT": str(port)}
        environment.pop("PYTHONPATH", None)
        ran = subprocess.run(
            argv, env=environment, capture_output=True, text=True, timeout=280, check=False
        )
    if ran.returncode:
        print(f"{name} did not run: {ran.stderr.strip().splitlines()[-1:]}")
        return None
    found = json.loads(ran.stdout.splitlines()[-1])
    return figures(found["per_s"], found["waits_ms"])


def main() -> int:
    """Measures and prints; always 0: a bench tells, it does not judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer tasks")
    parser.add_argument("--rivals", metavar="PYTHON", help="where Celery and Dask are installed")
    given = parser.parse_args()
    tasks, alone = (200, 40) if given.quick else (1_000, 100)
    found = {"mesh": ours(tasks, alone)}
    for name in ("celery", "dask") if given.rivals else ():
        if (figure := theirs(given.rivals, name, tasks, alone)) is not None:
            found[name] = figure
    print("                tasks/s   start p50   p99 (ms)")
    for name, one in found.items():
        print(f"{name:12} {one.per_s:10.0f} {one.p50_ms:11.1f} {one.p99_ms:10.1f}")
    others = [one.p99_ms for name, one in found.items() if name != "mesh"]
    told: dict[str, object] = {
        "bench": "dispatch",
        "ratio": round(found["mesh"].p99_ms / min(others), 2) if others else None,
        "quick": given.quick,
    }
    for name, one in found.items():
        told |= {f"{name}_per_s": round(one.per_s), f"{name}_p50_ms": round(one.p50_ms, 1)}
        told[f"{name}_p99_ms"] = round(one.p99_ms, 1)
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
