"""A live node under floods: ten thousand half-open connections at each port, garbage, bent messages.

It stays able to decide, to answer and to hand out films; memory and descriptors stay bounded.
"""

import contextlib
import random
import re
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import zmq

from mesh.clock import monotonic_ms
from mesh.joining import JOIN
from mesh.transfer import BULK
from mesh.transport import STRANGERS_MAX
from mesh.trust import JOIN_KEY
from mesh.trust_files import load_or_create_identity
from node.gateway.connection import IDLE_MAX
from tests.cluster import Node, cluster, form
from tests.fuzz.mutation import Mutator
from tests.fuzz.targets import encoded
from tests.meshwork import wait_until
from tests.strangers import GARBAGE, GREETING, LOOPBACK, client, poke

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]

CONNECTIONS = 10_000
BENT = 20_000
USUAL_LIMIT = 1_024
"""Descriptors that most systems give a process, softly: what a node starts with here."""
GROWN_MAX = 96 << 20
HALF = {
    "control": GREETING + b"CURVE" + bytes(47),
    "bulk": GREETING,
    "join": b"",
    "api": b"GET /api/v1/status HT",
}


class Live:
    """The node that is attacked, and another member beside it."""

    def __init__(self, node: Node, other: Node) -> None:
        self.node, self.other = node, other
        assert node.process is not None
        self.process = psutil.Process(node.process.pid)
        found = re.search(r"ports=(\d+),(\d+),(\d+) api=127\.0\.0\.1:(\d+)", node.log_tail())
        assert found is not None
        self.ports = dict(
            zip(("control", "bulk", "join", "api"), map(int, found.groups()), strict=True)
        )
        self.rss = self.process.memory_info().rss

    def works(self) -> tuple[int, int]:
        """Decides through the other one and answers itself; how long each took, in ms."""
        began_ms = monotonic_ms()
        self.other.token()
        decided_ms = monotonic_ms()
        assert self.node.status()["state"] == "member"
        return decided_ms - began_ms, monotonic_ms() - decided_ms

    def is_bounded(self, descriptors: int) -> str:
        """What it holds now, if that is not more than so many descriptors and some memory."""
        fds, grown = self.process.num_fds(), self.process.memory_info().rss - self.rss
        assert fds < descriptors, fds
        assert grown < GROWN_MAX, grown
        return f"{fds} descriptors, {grown >> 20} MiB more"


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with cluster(tmp_path, ["anna", "bert"]) as nodes:
        resource.setrlimit(resource.RLIMIT_NOFILE, (USUAL_LIMIT, hard))
        try:
            form(nodes, "--slots", "0")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536), hard))
        try:
            yield Live(*nodes)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("port", sorted(HALF))
def test_ten_thousand_half_open_connections(
    live: Live, capsys: pytest.CaptureFixture[str], port: str
) -> None:
    idle = live.process.num_fds()
    before = live.works()
    begun_ms = monotonic_ms()
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS):
            raw = stack.enter_context(socket.create_connection((LOOPBACK, live.ports[port]), 10))
            with contextlib.suppress(OSError):
                raw.sendall(HALF[port])
        took_ms = monotonic_ms() - begun_ms
        during = live.works()
        held = live.is_bounded(idle + max(STRANGERS_MAX, IDLE_MAX) + 64)
    wait_until(lambda: live.process.num_fds() < idle + 32, 20)
    after = live.works()
    with capsys.disabled():
        print(
            f"\n{port}: {CONNECTIONS} in {took_ms / 1_000:.1f} s; {held}; "
            f"(decides, answers) in ms before {before}, during {during}, after {after}"
        )
    assert max(during) < 5_000


def test_garbage_at_every_port(live: Live, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(1)
    for port in live.ports.values():
        for data in GARBAGE:
            poke(port, data)
        for _ in range(300):
            poke(port, draw.randbytes(draw.randrange(1, 5_000)))
            poke(port, GREETING[: draw.randrange(12)] + draw.randbytes(draw.randrange(200)))
    with capsys.disabled():
        print(f"\n{live.is_bounded(1_000)}; (decides, answers) in ms {live.works()}")


@pytest.mark.parametrize("port", ["bulk", "join"])
def test_bent_messages_from_who_may_speak(
    live: Live, capsys: pytest.CaptureFixture[str], port: str
) -> None:
    """Of a member at the bulk port, of a stranger at the join port."""
    draw = random.Random(2)
    own = load_or_create_identity(live.node.home).keys
    member = load_or_create_identity(live.other.home).keys
    server_key = own.public if port == "bulk" else JOIN_KEY.public
    mutator = Mutator(encoded(BULK if port == "bulk" else JOIN, draw), draw)
    answers = 0
    with client(live.ports[port], member, server_key) as dealer:
        dealer.setsockopt(zmq.SNDTIMEO, 10_000)
        for _ in range(BENT):
            dealer.send(mutator.next())
            while dealer.poll(0):
                dealer.recv_multipart()
                answers += 1
    with capsys.disabled():
        print(f"\n{port}: {answers} answers; {live.is_bounded(1_000)}; {live.works()}")
    assert live.process.is_running()
