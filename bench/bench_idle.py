"""What an idle node costs: memory, CPU, and the time from its start until it is ready.

    .venv/bin/python bench/bench_idle.py [--quick]

Beside the node runs a bare interpreter that imports the same libraries and waits on an event loop:
what Python itself costs here.  `ratio` is the node's memory by that one's; below 1.5 is good.
Aims: under 100 MB, under 1 % of a core, ready in under 1.5 s.  Needs nothing but `make env`.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from mesh.clock import monotonic_ms

READY_S_MAX = 30
SETTLE_MS_MAX = 120_000
"""On a busy machine the children that prove encoders step back for that long."""
RSS_MB_AIM, CPU_PERCENT_AIM, READY_S_AIM = 100, 1.0, 1.5
LOOPBACK = "lo" if "lo" in {name for _, name in socket.if_nameindex()} else "lo0"
BARE = """
import asyncio, apsw, blake3, click, fastapi, httpx, ifaddr, msgpack, pydantic, structlog, uvicorn
import zeroconf.asyncio, zmq.asyncio
async def idle():
    print("ready", flush=True)
    await asyncio.Event().wait()
asyncio.run(idle())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Medians of one kind of process."""

    rss_mb: float
    cpu_percent: float
    ready_s: float


@contextlib.contextmanager
def running(
    argv: list[str], environment: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours, stopped politely at the end."""
    with log.open("ab") as stream:
        process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=stream)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def node_is_ready(home: Path) -> bool:
    """Whether /readyz says so."""
    with contextlib.suppress(OSError, urllib.error.URLError):
        address = (home / "api.address").read_text().strip()
        with urllib.request.urlopen(f"http://{address}/readyz", timeout=1) as answer:
            return answer.status == 200
    return False


def measure(process: subprocess.Popen[bytes], seconds: float) -> tuple[float, float]:
    """Memory in MB at the end and CPU in percent of a core over so many seconds, children included."""
    root = psutil.Process(process.pid)

    def cpu_s() -> float:
        family = [root, *root.children(recursive=True)]
        return sum(t.user + t.system for t in (member.cpu_times() for member in family))

    before, started = cpu_s(), monotonic_ms()
    threading.Event().wait(seconds)
    used, passed = cpu_s() - before, (monotonic_ms() - started) / 1_000
    rss = sum(member.memory_info().rss for member in [root, *root.children(recursive=True)])
    return rss / 1e6, used / passed * 100


def one_node(folder: Path, seconds: float) -> Cost:
    """A fresh node on the loopback interface, alone in a new mesh."""
    home = Path(tempfile.mkdtemp(prefix="home-", dir=folder))
    argv = [
        str(Path(sys.executable).with_name("mesh-node")),
        "start",
        "--new-mesh",
        "--name",
        "bench",
    ]
    argv += ["--interface", LOOPBACK, "--listen", "127.0.0.1:0", "--api", "127.0.0.1:0"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DARKSTREAM")}
    log, pace = folder / "node.log", threading.Event()
    started = monotonic_ms()
    with running(argv, {**clean, "DARKSTREAM_HOME": str(home)}, log) as process:
        while not node_is_ready(home):
            late = monotonic_ms() - started > READY_S_MAX * 1_000
            if process.poll() is not None or late:
                tail = log.read_text(errors="replace")[-2_000:]
                raise SystemExit(f"the node is not ready ({'late' if late else 'ended'}):\n{tail}")
            pace.wait(0.005)
        ready_s = (monotonic_ms() - started) / 1_000
        # What starting leaves to do is not idling: encoders are proven in children of low priority.
        while psutil.Process(process.pid).children() and monotonic_ms() - started < SETTLE_MS_MAX:
            pace.wait(0.1)
        pace.wait(2)
        rss_mb, cpu_percent = measure(process, seconds)
    return Cost(rss_mb=rss_mb, cpu_percent=cpu_percent, ready_s=ready_s)


def one_bare(folder: Path, seconds: float) -> Cost:
    """The bare interpreter with the same libraries."""
    started = monotonic_ms()
    argv = [sys.executable, "-c", BARE]
    with running(argv, dict(os.environ), folder / "bare.log") as process:
        assert process.stdout is not None
        process.stdout.readline()
        ready_s = (monotonic_ms() - started) / 1_000
        rss_mb, cpu_percent = measure(process, min(seconds, 2))
    return Cost(rss_mb=rss_mb, cpu_percent=cpu_percent, ready_s=ready_s)


def median(costs: list[Cost]) -> Cost:
    """Each figure's own median."""
    return Cost(
        rss_mb=statistics.median(cost.rss_mb for cost in costs),
        cpu_percent=statistics.median(cost.cpu_percent for cost in costs),
        ready_s=statistics.median(cost.ready_s for cost in costs),
    )


def main() -> int:
    """Measures and prints; always 0: a bench tells, it does not judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="two runs of 5 s instead of three of 20 s"
    )
    quick = parser.parse_args().quick
    runs, seconds = (2, 5.0) if quick else (3, 20.0)
    with tempfile.TemporaryDirectory(prefix="darkstream-bench-") as name:
        folder = Path(name)
        pairs = [(one_node(folder, seconds), one_bare(folder, seconds)) for _ in range(runs)]
    node, bare = median([pair[0] for pair in pairs]), median([pair[1] for pair in pairs])
    print(f"{'':24}{'memory':>10}{'CPU':>10}{'ready':>10}")
    for label, cost in (("idle node", node), ("Python, same libraries", bare)):
        figures = f"{cost.rss_mb:>7.1f} MB{cost.cpu_percent:>8.2f} %{cost.ready_s:>8.2f} s"
        print(f"{label:24}{figures}")
    aims = f"{RSS_MB_AIM:>7} MB{CPU_PERCENT_AIM:>8.2f} %{READY_S_AIM:>8.2f} s"
    print(f"{'aim, below':24}{aims}")
    print(
        json.dumps(
            {
                "bench": "idle",
                "ratio": round(node.rss_mb / bare.rss_mb, 3),
                "ready_ratio": round(node.ready_s / bare.ready_s, 3),
                "rss_mb": round(node.rss_mb, 1),
                "cpu_percent": round(node.cpu_percent, 2),
                "ready_s": round(node.ready_s, 3),
                "runs": runs,
                "quick": quick,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
