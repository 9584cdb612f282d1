"""How full a transfer makes a link, beside scp, and how exactly it keeps to a limit.

    sudo .venv/bin/python bench/links.py [--quick] [--only NAME]

Two network namespaces on a switch of the bench's own: links of 100 Mbit/s, 1 and 2.5 Gbit/s (tc
tbf), and a far one through the software switch (20 ms there and back, 0.1 % of frames lost).  Then
a limit of 20 MB/s over ten seconds, changed to 40 while it runs.  Aims: 95 % of the link and never
less than scp; a limit within 5 %.  Sources and targets lie in memory.  `ratio` is the smallest of ours
by scp's.  Needs root, iproute2 and the tools of bench_transfer.py.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench_transfer import OURS, Ours, check, make_files
from rival_servers import SCP, SET_UP, missing, rivals

from mesh.clock import monotonic_ms
from tests.netns import Lan, available
from tests.switched_lan import SwitchedLan

LINK_AIM, LIMIT_AIM = 95.0, 5.0
LIMITS_MB_S = (20, 40)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One kind of link, and how much travels over it."""

    name: str
    rate: str
    mbit: float
    size: int
    far: bool = False


LINKS = (
    Link(name="100 Mbit/s", rate="100mbit", mbit=100, size=96 << 20),
    Link(name="1 Gbit/s", rate="1gbit", mbit=1_000, size=768 << 20),
    Link(name="2.5 Gbit/s", rate="2500mbit", mbit=2_500, size=1536 << 20),
    Link(name="20 ms, 0.1 % lost", rate="", mbit=100, size=24 << 20, far=True),
)


def inside(lan: Lan, host: int) -> list[str]:
    """What goes before a command that runs on a host."""
    return ["ip", "netns", "exec", lan.namespace(host)]


def mb_s(go: Callable[[Path], None], place: Path, root: Path) -> float:
    """The speed of one transfer into an empty folder, checked."""
    with tempfile.TemporaryDirectory(prefix="to-", dir=place) as to:
        started_ms = monotonic_ms()
        go(Path(to))
        seconds = (monotonic_ms() - started_ms) / 1_000
        check(root, Path(to), "film")
    return (root / "film").stat().st_size / seconds / 1e6


def over(link: Link, runs: int, part: int) -> dict[str, float]:
    """Medians of both ways over one link."""
    found: dict[str, list[float]] = {OURS: [], SCP: []}
    with (
        tempfile.TemporaryDirectory(prefix="darkstream-links-", dir="/dev/shm") as name,
        SwitchedLan(2) if link.far else Lan(2) as lan,
    ):
        place = Path(name)
        place.chmod(0o755)
        root, work = place / "root", place / "work"
        work.mkdir()
        make_files(root, link.size // part, 0)
        if isinstance(lan, SwitchedLan):
            lan.spoil(1, loss=0.001, delay_ms=10, rate_mbit=link.mbit)
        else:
            lan.limit(1, link.rate)
        sides = inside(lan, 1), inside(lan, 2)
        ours = Ours(work, root, lan.address(1), sides)
        with contextlib.closing(ours), rivals(work, root, lan.address(1), sides[0]) as servers:

            def scp(to: Path) -> None:
                subprocess.run([*sides[1], *servers.argv(SCP, "film", to)], check=True)

            for _ in range(runs):
                found[OURS].append(mb_s(lambda to: ours.fetch("film", to), place, root))
                found[SCP].append(mb_s(scp, place, root))
    return {way: statistics.median(speeds) for way, speeds in found.items()}


def limited(seconds: float) -> dict[int, float]:
    """Megabytes a second measured under each limit, changed while the transfer runs."""
    with tempfile.TemporaryDirectory(prefix="darkstream-links-", dir="/dev/shm") as name:
        place = Path(name)
        root, work = place / "root", place / "work"
        work.mkdir()
        make_files(root, int((sum(LIMITS_MB_S) * seconds + 200) * 1e6), 0)
        ours = Ours(work, root, "127.0.0.1", ([], []))
        with contextlib.closing(ours):
            found: dict[int, float] = {}
            ours.limit_up(LIMITS_MB_S[0] * 1_000_000)
            thread = threading.Thread(target=ours.fetch, args=("film", place))
            thread.start()
            pause = threading.Event()
            for rate in LIMITS_MB_S:
                ours.limit_up(rate * 1_000_000)
                pause.wait(1)  # what was asked for under the limit before is on its way
                before, started_ms = ours.sent_bytes(), monotonic_ms()
                pause.wait(seconds)
                passed_s = (monotonic_ms() - started_ms) / 1_000
                found[rate] = (ours.sent_bytes() - before) / passed_s / 1e6
            ours.limit_up(0)
            thread.join()
    return found


def main() -> int:
    """Measures and prints; always 0 when all arrived: a bench tells, it does not judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of the bytes, once")
    parser.add_argument("--only", metavar="NAME", help="links whose name begins so, or `limit`")
    options = parser.parse_args()
    why = f"missing: {', '.join(missing())}; {SET_UP}" if missing() else available()
    if why:
        raise SystemExit(f"error[bench]: {why}")
    runs, part = (1, 4) if options.quick else (3, 1)
    only = options.only or ""
    line: dict[str, object] = {"bench": "links"}
    ratios: list[float] = []
    print(f"{'':20}{'ours':>12}{'scp':>12}{'of the link':>14}")
    for link in (link for link in LINKS if link.name.startswith(only)):
        speeds = over(link, runs, part)
        share = speeds[OURS] * 8 / link.mbit * 100
        ratios.append(speeds[OURS] / speeds[SCP])
        shown = f"{share:>12.1f} %" if not link.far else f"{'':>14}"
        print(f"{link.name:20}{speeds[OURS]:>7.1f} MB/s{speeds[SCP]:>7.1f} MB/s{shown}", flush=True)
        line[link.name] = round(speeds[OURS], 2)
    if "limit".startswith(only):
        measured = limited(3 if options.quick else 10)
        for rate, speed in measured.items():
            off = (speed / rate - 1) * 100
            print(f"{f'limit {rate} MB/s':20}{speed:>7.2f} MB/s{'':12}{off:>+12.2f} %")
        line["limit_error"] = round(max(abs(s / r - 1) for r, s in measured.items()), 4)
    print(
        f"{'aim':20}never less than scp, {LINK_AIM:.0f} % of the link, limits within {LIMIT_AIM:.0f} %"
    )
    if ratios:
        line["ratio"] = round(min(ratios), 3)
    print(json.dumps({**line, "runs": runs, "quick": options.quick}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
