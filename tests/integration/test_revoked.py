"""A member revoked in the middle of a transfer, with real nodes and links: what still reaches it."""

import itertools
import threading
from pathlib import Path

import pytest

from mesh.clock import monotonic_ms
from tests.cluster import cluster, form, wait_for
from tests.films import make_raw_film
from tests.inside import inside
from tests.netns import Lan, available

REASON = available()
pytestmark = [pytest.mark.network, pytest.mark.skipif(REASON is not None, reason=REASON or "")]

FILM_SECONDS = 6
SECOND_MS = 1_000
NOISE_BYTES_S = 32 << 10
"""What a host hears when nobody speaks to it: mDNS, and answers to its own tries to connect."""


def heard_bytes(lan: Lan, host: int) -> int:
    """What came out of the cable of a host so far."""

    def read() -> str:
        return Path("/proc/thread-self/net/dev").read_text()

    (line,) = [row for row in inside(lan, host, read).splitlines() if "eth0:" in row]
    return int(line.partition(":")[2].split()[0])


@pytest.mark.parametrize("rate", ["100mbit", pytest.param("10mbit", marks=pytest.mark.acceptance)])
def test_no_byte_reaches_a_revoked_member_after_a_second(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rate: str
) -> None:
    with Lan(3) as lan, cluster(tmp_path, ["anna", "bert", "cleo"], lan) as nodes:
        anna, _, cleo = nodes
        form(nodes, "--slots", "0")
        lan.limit(2, rate)
        anna.cli("nodes", "limit", "bert", "--slots", "1")
        film = make_raw_film(anna.films / "film.mkv", FILM_SECONDS)
        anna.cli("submit", str(film), "--profile", "web", "--no-split")
        start = heard_bytes(lan, 2)
        wait_for("bytes flow", lambda: heard_bytes(lan, 2) - start > 2 << 20, 30)

        pause = threading.Event()
        asked_ms = monotonic_ms()
        cleo.cli("nodes", "revoke", "bert")
        revoked_ms = monotonic_ms()
        marks: list[tuple[int, int]] = []
        while monotonic_ms() - revoked_ms < 3 * SECOND_MS:
            marks.append((monotonic_ms() - revoked_ms, heard_bytes(lan, 2)))
            pause.wait(0.05)
        steps = [(at, later - now) for (at, now), (_, later) in itertools.pairwise(marks)]
        last_ms = max((at for at, heard in steps if heard > 4_096), default=0)
        second = next(heard for at, heard in marks if at >= SECOND_MS)
        after = marks[-1][1] - second
        with capsys.disabled():
            print(
                f"\n{rate}: revoked in {revoked_ms - asked_ms} ms, last of the film {last_ms} ms after, "
                f"heard from 1 to 3 s after: {after} B; before: {second - marks[0][1]} B"
            )
        assert after < 2 * NOISE_BYTES_S
        assert heard_bytes(lan, 2) - start < film.stat().st_size
