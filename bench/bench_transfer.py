"""How fast bytes go from node to node, beside what people use today.

    .venv/bin/python bench/bench_transfer.py [--quick] [--folder DIR] [--disk]

One file of 2 GiB and 10,000 files of 200 kB on loopback: the product's engine (server and client in
processes of their own), HTTPS (nginx, curl, TLS 1.3), scp and rsync over ssh with their fastest
cipher, turn by turn, medians of five.  All read and write the same file system; in memory (the
default, /dev/shm) nobody's sync costs anything, with `--disk` each one's time includes a sync of
the whole file system.  `ratio` is our speed by the fastest rival's; aim: 1.4, with no more CPU.

Set-up on Debian: apt-get install -y nginx-light curl openssh-server openssh-client rsync openssl
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
from rival_servers import HTTPS, RSYNC, SCP, SET_UP, Rivals, missing, rivals

from mesh.clock import monotonic_ms
from mesh.trust_files import load_or_create_identity

OURS: Final = "darkstream"
GIB: Final = 1 << 30
SMALL_BYTES: Final = 200_000
RATIO_AIM: Final = 1.4
EXTRA_MB_AIM: Final = 64
PEER: Final = Path(__file__).with_name("transfer_peer.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One transfer: speed, processor seconds a GiB of each side, and memory beyond the rest's."""

    mb_s: float
    sender_s_gib: float
    receiver_s_gib: float
    extra_mb: float

    @property
    def cpu_s_gib(self) -> float:
        """Of both."""
        return self.sender_s_gib + self.receiver_s_gib


class Meter:
    """Processor time and peak memory of process trees while a transfer runs; the first root is the sender."""

    def __init__(self, roots: list[int]) -> None:
        self._roots = [psutil.Process(pid) for pid in roots]
        self._over = threading.Event()
        self._peak = 0
        self._rest = self._memory()
        self._cpu = self._cpu_s()
        self._waited = resource.getrusage(resource.RUSAGE_CHILDREN)
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Meter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _family(self) -> list[psutil.Process]:
        found = list(self._roots)
        with contextlib.suppress(psutil.Error):
            # The bench's own children that are no servers: the rival's client.
            found += psutil.Process().children(recursive=True)
        for root in self._roots:
            with contextlib.suppress(psutil.Error):
                found += root.children(recursive=True)
        return list(dict.fromkeys(found))

    def _memory(self) -> int:
        total = 0
        for process in self._family():
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self._peak = max(self._peak, self._memory())

    def _cpu_s(self) -> list[float]:
        # A child that was waited for counts with its parent's `children_*`.
        found: list[float] = []
        for root in self._roots:
            times = [p.cpu_times() for p in (root, *root.children(recursive=True))]
            found.append(
                sum(t.user + t.system + t.children_user + t.children_system for t in times)
            )
        return found

    def settle(self) -> None:
        """Waits until the servers' children of this transfer are gone and counted."""
        deadline = monotonic_ms() + 2_000
        while monotonic_ms() < deadline and any(
            child.name().startswith("sshd") for root in self._roots for child in root.children()
        ):
            self._over.wait(0.01)

    def cpu_s(self) -> tuple[float, float]:
        """Of sender and receiver since the start; the bench's own waited-for children receive."""
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        mine = now.ru_utime + now.ru_stime - self._waited.ru_utime - self._waited.ru_stime
        sender, *rest = (
            after - before for before, after in zip(self._cpu, self._cpu_s(), strict=True)
        )
        return sender, mine + sum(rest)

    def extra_mb(self) -> float:
        """The peak above what was there before."""
        return max(0, self._peak - self._rest) / 1e6


class Ours:
    """The product's two sides, started once as a node is."""

    def __init__(
        self, folder: Path, root: Path, host: str, prefixes: tuple[list[str], list[str]]
    ) -> None:
        keys = folder / "keys.json"
        pairs = [load_or_create_identity(folder / name).keys for name in ("owner", "member")]
        keys.write_text(
            json.dumps([half.hex() for pair in pairs for half in (pair.public, pair.secret)])
        )
        argv = [sys.executable, str(PEER)]
        self._host = host
        self._serve = [*prefixes[0], *argv, "serve", str(root), str(keys), host]
        self._fetch = [*prefixes[1], *argv, "fetch", str(keys)]
        self.member = self._start(self._fetch)
        self._port = 0
        self.start_owner()

    def start_owner(self) -> None:
        """The owner's side, at the same port when it ran before."""
        self.owner = self._start([*self._serve, str(self._port)])
        hello = self._line(self.owner)
        self._port, self._files = hello["port"], hello["files"]

    def start_member(self) -> None:
        """The member's side anew, after it was killed."""
        self.member = self._start(self._fetch)

    @staticmethod
    def _start(argv: list[str]) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True)

    @staticmethod
    def _line(process: subprocess.Popen[str]) -> Any:  # noqa: ANN401 - plain values of JSON
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit("error[bench]: our own side ended")
        return json.loads(line)

    def fetch(self, what: str, to: Path) -> Any:  # noqa: ANN401 - plain values of JSON
        """Brings a file, or a folder's files, into `to`; what the member says of it."""
        names = [name for name in self._files if name == what or name.startswith(what + "/")]
        files = [[name, *self._files[name]] for name in names]
        task = {"host": self._host, "port": self._port, "folder": str(to), "files": files}
        assert self.member.stdin is not None
        self.member.stdin.write(json.dumps(task) + "\n")
        self.member.stdin.flush()
        return self._line(self.member)

    def limit_up(self, rate: int) -> None:
        """The owner sends so many bytes a second from now on; 0: as fast as it goes."""
        self._ask({"up": rate})

    def sent_bytes(self) -> int:
        """What the owner sent so far."""
        return int(self._ask({})["sent"])

    def _ask(self, what: dict[str, int]) -> Any:  # noqa: ANN401 - plain values of JSON
        assert self.owner.stdin is not None
        self.owner.stdin.write(json.dumps(what) + "\n")
        self.owner.stdin.flush()
        return self._line(self.owner)

    def close(self) -> None:
        """Ends both."""
        for process in (self.owner, self.member):
            process.communicate()


def check(root: Path, to: Path, what: str) -> None:
    """Everything arrived: sizes of all, bytes of one."""
    wanted = [root / what] if (root / what).is_file() else sorted((root / what).iterdir())
    for path in wanted:
        assert (to / path.relative_to(root)).stat().st_size == path.stat().st_size, path
    last = wanted[-1]
    subprocess.run(["cmp", str(last), str(to / last.relative_to(root))], check=True)


def measure(
    roots: list[int], go: Callable[[Path], None], place: Path, what: str, root: Path, *, disk: bool
) -> Run:
    """One transfer into an empty folder, checked and removed."""
    source = root / what
    size = sum(p.stat().st_size for p in ([source] if source.is_file() else source.iterdir()))
    to = Path(tempfile.mkdtemp(prefix="to-", dir=place))
    if disk:
        os.sync()
    with Meter(roots) as meter:
        started_ms = monotonic_ms()
        go(to)
        if disk:
            subprocess.run(["sync", "-f", str(to)], check=True)
        seconds = (monotonic_ms() - started_ms) / 1_000
        meter.settle()
        sender_s, receiver_s = meter.cpu_s()
    check(root, to, what)
    shutil.rmtree(to)
    return Run(
        mb_s=size / seconds / 1e6,
        sender_s_gib=sender_s * GIB / size,
        receiver_s_gib=receiver_s * GIB / size,
        extra_mb=meter.extra_mb(),
    )


def rounds(
    place: Path, names: list[str], runs: int, *, disk: bool
) -> dict[str, dict[str, list[Run]]]:
    """Every way takes its turn in every round, so that noise falls on all."""
    root, work = place / "root", place / "work"
    work.mkdir()
    found: dict[str, dict[str, list[Run]]] = {name: {} for name in names}
    ours = Ours(work, root, "127.0.0.1", ([], []))
    with contextlib.closing(ours), rivals(work, root) as servers:
        for _ in range(runs):
            for what in names:
                for way, roots, go in turns(ours, servers, what):
                    run = measure(roots, go, place, what, root, disk=disk)
                    found[what].setdefault(way, []).append(run)
    return found


def turns(
    ours: Ours, servers: Rivals, what: str
) -> Iterator[tuple[str, list[int], Callable[[Path], None]]]:
    """The ways of one round: name, processes to watch, what to do."""
    yield OURS, [ours.owner.pid, ours.member.pid], lambda to: ours.fetch(what, to)
    for way in (HTTPS, SCP, RSYNC):

        def go(to: Path, way: str = way) -> None:
            subprocess.run(servers.argv(way, what, to), check=True)

        yield way, [servers.server_of(way)], go


def median(runs: list[Run]) -> Run:
    """Each figure's own median."""
    return Run(
        mb_s=statistics.median(run.mb_s for run in runs),
        sender_s_gib=statistics.median(run.sender_s_gib for run in runs),
        receiver_s_gib=statistics.median(run.receiver_s_gib for run in runs),
        extra_mb=max(run.extra_mb for run in runs),
    )


def report(found: dict[str, dict[str, list[Run]]]) -> dict[str, float]:
    """The table; and ratio, CPU ratio and memory of each kind."""
    figures: dict[str, float] = {}
    for what, ways in found.items():
        middle = {way: median(runs) for way, runs in ways.items()}
        print(f"\n{what:28}{'MB/s':>8}{'CPU s/GiB':>12}{'sender':>9}{'receiver':>10}{'memory':>12}")
        for way, run in middle.items():
            print(
                f"{way:28}{run.mb_s:>8.0f}{run.cpu_s_gib:>12.2f}{run.sender_s_gib:>9.2f}"
                f"{run.receiver_s_gib:>10.2f}{run.extra_mb:>9.0f} MB"
            )
        others = [run for way, run in middle.items() if way != OURS]
        prefix = "" if what == "film" else "small_"
        figures[f"{prefix}ratio"] = middle[OURS].mb_s / max(run.mb_s for run in others)
        figures[f"{prefix}cpu_ratio"] = middle[OURS].cpu_s_gib / min(
            run.cpu_s_gib for run in others
        )
        figures[f"{prefix}mb_s"] = middle[OURS].mb_s
        figures[f"{prefix}cpu_s_gib"] = middle[OURS].cpu_s_gib
        figures[f"{prefix}extra_mb"] = middle[OURS].extra_mb
    return figures


def make_files(root: Path, film_bytes: int, small: int) -> None:
    """Bytes that no packing shrinks, as films are."""
    (root / "small").mkdir(parents=True)
    block = os.urandom(8 << 20)
    with (root / "film").open("wb") as file:
        for done in range(0, film_bytes, len(block)):
            file.write(done.to_bytes(8, "big") + block[8:])
        file.truncate(film_bytes)
    for number in range(small):
        head = number.to_bytes(8, "big")
        (root / "small" / f"{number:05}").write_bytes(head + block[8:SMALL_BYTES])


def main() -> int:
    """Measures and prints; always 0 when all arrived: a bench tells, it does not judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="256 MiB and 500 files, three times")
    parser.add_argument(
        "--only", choices=("film", "small"), help="the large file, or the small ones"
    )
    parser.add_argument("--folder", default="/dev/shm", help="file system for source and target")
    parser.add_argument("--disk", action="store_true", help="each one's time includes a sync")
    options = parser.parse_args()
    if missing():
        raise SystemExit(f"error[bench]: missing: {', '.join(missing())}; {SET_UP}")
    film_bytes, small, runs = (GIB // 4, 500, 3) if options.quick else (2 * GIB, 10_000, 5)
    with tempfile.TemporaryDirectory(prefix="darkstream-bench-", dir=options.folder) as name:
        place = Path(name)
        place.chmod(0o755)
        names = [options.only] if options.only else ["film", "small"]
        make_files(place / "root", film_bytes, small if "small" in names else 0)
        found = rounds(place, names, runs, disk=options.disk)
    figures = report(found)
    print(
        f"{'aim':28}{RATIO_AIM} times the fastest, no more CPU, extra memory below {EXTRA_MB_AIM} MB"
    )
    line = {"bench": "transfer", **{name: round(value, 3) for name, value in figures.items()}}
    print(json.dumps({**line, "runs": runs, "quick": options.quick}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
