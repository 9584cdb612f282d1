"""Commands a second of the replicated ledger, beside etcd in the same run.

    apt-get install etcd-server wrk          # what it is compared with, and what loads it
    .venv/bin/python bench/bench_ledger.py [--quick]

Three `mesh-node` processes and three etcd members on loopback, each with its data below one folder
of the same disk, both durable: an answer comes when a majority has synced the command and the
coordinator has applied it.  bench/README.md says what exactly is compared.  `ratio` is our smallest
commands a second at 128 in flight by etcd's, `job_ratio` the same with submissions of a job.
"""

import argparse
import contextlib
import json
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench_idle import running
from member_client import submission

from tests.cluster import Node, cluster, form, wait_for

IN_FLIGHT = (1, 16, 128, 1_000)
MEASURED = 128
"""The number in flight by which `ratio` is taken."""
ROW, JOB = "mesh: row", "mesh: job"
"""The smallest command (a node reports itself: one row) and a submission of one job."""
ETCD_NAMES = ("e1", "e2", "e3")
WRK = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local number, thread = 0, 0
function setup(t) t:set("id", thread); thread = thread + 1 end
function request()
  number = number + 1
  return wrk.format(nil, "/v3/kv/put", nil,
    string.format('{{"key":"%s","value":"{value}"}}', key(id, number)))
end
local letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
function key(a, b)  -- sixteen letters of base64, another one for each call
  local text, n = "", a * 1000000000 + b
  for _ = 1, 16 do
    local digit = n % 64
    text = letters:sub(digit + 1, digit + 1) .. text
    n = (n - digit) / 64
  end
  return text
end
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One system at one number in flight; latencies in milliseconds."""

    per_s: float
    p50_ms: float
    p99_ms: float
    syncs: float
    """Syncs of one member's log for each command."""
    note: str = ""


# --- ours -----------------------------------------------------------------------------------------


def metric(node: Node, name: str) -> float:
    """A series of a node's /metrics, 0 where it has none."""
    address = (node.home / "api.address").read_text("ascii").strip()
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.search(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


@contextlib.contextmanager
def mesh(folder: Path, *options: str) -> Iterator[tuple[list[Node], Node]]:
    """Three nodes that vote and take no work, and the home of a member that is not running."""
    with cluster(folder, ["one", "two", "three", "client"]) as nodes:
        voters, client = nodes[:3], nodes[3]
        form(voters, "--slots", "0", *options)
        wait_for("three voters", lambda: len(voters[0].status()["voters"]) == 3, 20)
        client.start("--join", voters[0].token(), "--slots", "0", *options).ready(60)
        known = client.home / "peers.json"
        wait_for("it knows where all are", lambda: known.is_file() and _places(known) == 3, 40)
        client.stop()
        yield voters, client


def _places(path: Path) -> int:
    with contextlib.suppress(ValueError):
        return len(json.loads(path.read_text()))
    return 0


def ours(
    voters: Sequence[Node], client: Node, in_flight: int, seconds: float, jobs: int = 1
) -> Figures:
    """Loads the coordinator from a process of its own; no jobs: the smallest command."""
    leader = next(n for n in voters[0].cli("nodes")["nodes"] if n["coordinator"])
    home = next(node for node in voters if node.name == leader["name"])
    before = metric(home, "darkstream_log_syncs_total")
    applied = metric(home, "darkstream_log_applied_index")
    script = Path(__file__).with_name("member_client.py")
    words = [client.home, home.home / "ledger.db", leader["id"], in_flight, seconds, "--jobs", jobs]
    done = subprocess.run(
        [sys.executable, str(script), *map(str, words)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=seconds * 4 + 60,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    syncs = metric(home, "darkstream_log_syncs_total") - before
    entries = metric(home, "darkstream_log_applied_index") - applied
    failed = ", ".join(f"{count} x {name}" for name, count in found["failures"].items())
    return Figures(
        per_s=found["per_s"],
        p50_ms=found["p50_ms"],
        p99_ms=found["p99_ms"],
        syncs=syncs / max(1.0, entries),
        note=failed or f"client {found['client_cpu'] * 100:.0f} % of a core",
    )


# --- etcd -----------------------------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def etcd(folder: Path) -> Iterator[list[str]]:
    """Three members; the URLs of their clients, the leader's first."""
    ports = free_ports(6)
    peers = [f"http://127.0.0.1:{port}" for port in ports[:3]]
    clients = [f"http://127.0.0.1:{port}" for port in ports[3:]]
    everybody = ",".join(f"{n}={url}" for n, url in zip(ETCD_NAMES, peers, strict=True))
    with contextlib.ExitStack() as stack:
        for name, peer, url in zip(ETCD_NAMES, peers, clients, strict=True):
            argv = ["etcd", "--name", name, "--data-dir", str(folder / name)]
            argv += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
            argv += ["--listen-client-urls", url, "--advertise-client-urls", url]
            argv += ["--initial-cluster", everybody, "--initial-cluster-state", "new"]
            argv += ["--log-level", "error"]
            stack.enter_context(running(argv, {"PATH": "/usr/bin"}, folder / f"{name}.log"))
        wait_for("etcd has a leader", lambda: _leaders(clients) == 1, 30)
        yield sorted(clients, key=lambda url: -_etcd_metric(url, "etcd_server_is_leader"))


def _leaders(urls: Sequence[str]) -> float:
    try:
        return sum(_etcd_metric(url, "etcd_server_is_leader") for url in urls)
    except (OSError, urllib.error.URLError):
        return 0


def _etcd_metric(url: str, name: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def theirs(url: str, folder: Path, in_flight: int, seconds: float, size: int) -> Figures:
    """wrk loads the leader's own HTTP gateway with puts of new keys, `size` bytes each."""
    script = folder / "put.lua"
    script.write_text(WRK.format(value=b64encode(bytes(size)).decode()))
    before = _etcd_metric(url, "etcd_disk_wal_fsync_duration_seconds_count")
    put = _etcd_metric(url, "etcd_mvcc_put_total")
    argv = ["wrk", "-t", str(min(2, in_flight)), "-c", str(in_flight), "-d", f"{seconds:.0f}s"]
    argv += ["--latency", "--timeout", "10s", "-s", str(script), url]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=seconds * 4 + 30, check=True
    )
    syncs = _etcd_metric(url, "etcd_disk_wal_fsync_duration_seconds_count") - before
    puts = _etcd_metric(url, "etcd_mvcc_put_total") - put
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout)
    return Figures(
        per_s=_figure(done.stdout, r"Requests/sec:\s+([\d.]+)"),
        p50_ms=_time_ms(done.stdout, "50%"),
        p99_ms=_time_ms(done.stdout, "99%"),
        syncs=syncs / max(1.0, puts),
        note=f"{bad[1]} refused" if bad else "",
    )


def _figure(text: str, pattern: str) -> float:
    found = re.search(pattern, text)
    assert found is not None, text
    return float(found[1])


def _time_ms(text: str, share: str) -> float:
    found = re.search(rf"{share}\s+([\d.]+)(us|ms|s|m)\b", text)
    assert found is not None, text
    return float(found[1]) * {"us": 1e-3, "ms": 1, "s": 1e3, "m": 6e4}[found[2]]


# --- the bench ------------------------------------------------------------------------------------


def medians(runs: Sequence[Figures]) -> Figures:
    """Each figure's own median."""
    return Figures(
        per_s=statistics.median(run.per_s for run in runs),
        p50_ms=statistics.median(run.p50_ms for run in runs),
        p99_ms=statistics.median(run.p99_ms for run in runs),
        syncs=statistics.median(run.syncs for run in runs),
        note=runs[-1].note,
    )


def show(name: str, in_flight: int, figures: Figures) -> None:
    print(
        f"{name:12}{in_flight:>10,}{figures.per_s:>14,.0f}{figures.p50_ms:>10.2f}"
        f"{figures.p99_ms:>10.2f}{figures.syncs:>10.3f}  {figures.note}",
        flush=True,
    )


def main() -> int:
    """Measures and prints; 2 when what it compares with is not installed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one run of 2 s instead of three of 8")
    parser.add_argument("--only-ours", action="store_true", help="without etcd")
    given = parser.parse_args()
    runs, seconds = (1, 2.0) if given.quick else (3, 8.0)
    missing = [tool for tool in ("etcd", "wrk") if shutil.which(tool) is None]
    if missing and not given.only_ours:
        print(f"error[missing]: no {', '.join(missing)}; apt-get install etcd-server wrk")
        return 2
    found: dict[tuple[str, int], list[Figures]] = {}
    with tempfile.TemporaryDirectory(prefix="darkstream-bench-") as name:
        folder = Path(name)
        with mesh(folder) as (voters, client):
            size = command_bytes()
            # One after the other: an idle neighbour costs the measured one next to nothing.
            with contextlib.ExitStack() as stack:
                url = "" if given.only_ours else stack.enter_context(etcd(folder))[0]
                for _ in range(runs):
                    for in_flight in IN_FLIGHT:
                        figures = ours(voters, client, in_flight, seconds)
                        found.setdefault((JOB, in_flight), []).append(figures)
                        figures = ours(voters, client, in_flight, seconds, jobs=0)
                        found.setdefault((ROW, in_flight), []).append(figures)
                        if url:
                            figures = theirs(url, folder, in_flight, seconds, size)
                            found.setdefault(("etcd", in_flight), []).append(figures)
    print(f"commands of {size} bytes, three members, durable; medians of {runs} runs")
    print(f"{'':12}{'in flight':>10}{'commands/s':>14}{'p50 ms':>10}{'p99 ms':>10}{'syncs':>10}")
    result: dict[str, object] = {"bench": "ledger"}
    table = {key: medians(value) for key, value in found.items()}
    for (system, in_flight), figures in sorted(table.items(), key=lambda item: item[0][::-1]):
        show(system, in_flight, figures)
        name = f"{system.replace(': ', '_')}_{in_flight}"
        result[f"{name}_per_s"] = round(figures.per_s)
        result[f"{name}_p50_ms"] = round(figures.p50_ms, 3)
        result[f"{name}_p99_ms"] = round(figures.p99_ms, 3)
    if ("etcd", MEASURED) in table:
        etcd_per_s, etcd_ms = table["etcd", MEASURED].per_s, table["etcd", 1].p50_ms
        for what, name in ((ROW, ""), (JOB, "job_")):
            result[f"{name}ratio"] = round(table[what, MEASURED].per_s / etcd_per_s, 3)
            result[f"{name}latency_ratio"] = round(table[what, 1].p50_ms / etcd_ms, 3)
    print(json.dumps({**result, "runs": runs, "quick": given.quick}))
    return 0


def command_bytes() -> int:
    """The size of the command that the mesh is loaded with."""
    return len(submission("x" * 32, 1))


if __name__ == "__main__":
    sys.exit(main())
