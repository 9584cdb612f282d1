"""A live mesh under the words of a member gone bad: its key is real, its messages are bent.

No node ends, holds ever more, or comes to another state than the rest; the mesh decides again once
it is quiet.  Raft is no protocol against liars: what a member may still do is disturb.
"""

import random
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
import zmq

from ledger.queries import Reader
from mesh.errors import WireError
from mesh.ids import RaftId
from mesh.messages import (
    WIRE,
    Append,
    ConsensusMessage,
    Heartbeat,
    Hello,
    SnapshotOffer,
    TimeoutNow,
)
from mesh.trust_files import load_or_create_identity
from tests.cluster import START_S, Node, cluster, form, wait_for
from tests.fuzz.mutation import Mutator, Names, messages_of
from tests.strangers import client

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]

BENT = 20_000
MESSAGES_EACH = 60
GROWN_MAX = 96 << 20
SEED = 3


class Live:
    """Three nodes that run, and the key of a fourth."""

    def __init__(self, nodes: list[Node], bad: Node) -> None:
        self.nodes, self.bad = nodes, bad
        self.before = {node.name: self._process(node).memory_info().rss for node in nodes}
        reader = Reader(str(nodes[0].home / "ledger.db"))
        self.raft_ids = {member.name: str(member.raft_id) for member in reader.members()}
        reader.close()

    @staticmethod
    def _process(node: Node) -> psutil.Process:
        assert node.process is not None
        assert node.process.poll() is None, node.log_tail()
        return psutil.Process(node.process.pid)

    @staticmethod
    def control_port(node: Node) -> int:
        found = re.search(r"ports=(\d+),", node.errors.read_text())
        assert found is not None
        return int(found[1])

    def grown(self) -> int:
        """The most that one of them holds beyond what it held."""
        return max(self._process(n).memory_info().rss - self.before[n.name] for n in self.nodes)

    def decides(self) -> None:
        """Each node has a decision made and sees the same members and jobs."""
        for node in self.nodes:
            wait_for(f"{node.name} decides", node.token, START_S)

        def same() -> bool:
            what = "SELECT name, state FROM members ORDER BY name"
            rows = [node.cli("ledger", "query", what) for node in self.nodes]
            faults = [node.status().get("fault") for node in self.nodes]
            return all(row == rows[0] for row in rows) and not any(faults)

        wait_for("all say the same", same, START_S)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    with cluster(tmp_path, ["anna", "bert", "cleo", "dora"]) as nodes:
        form(nodes, "--slots", "0")
        *good, bad = nodes
        bad.kill()
        yield Live(good, bad)


def bent(live: Live, to: Node, draw: random.Random) -> Mutator:
    """Messages as the bad one would send them to this node, bent."""
    names: Names = {
        "to": (live.raft_ids[to.name],),
        "sender": (live.raft_ids[live.bad.name],),
        "candidate": (live.raft_ids[live.bad.name],),
        "raft_id": (live.raft_ids[live.bad.name],),
        "term": (0, 1, 2, 3, 4),
        "prev_term": (0, 1, 2),
        "kind": ("command", "configuration", "empty"),
        "method": ("propose", "worker.heartbeat", "film.cut", "read.index"),
    }
    corpus: list[bytes] = []
    for message in messages_of(WIRE, draw, names, MESSAGES_EACH):
        try:
            corpus.append(WIRE.encode(message))
        except (OverflowError, ValueError, TypeError):
            continue
        if isinstance(message, ConsensusMessage):
            corpus += corpus[-1:] * 2  # most of it
    return Mutator(corpus, draw)


def is_a_followers(data: bytes) -> bool:
    """Not what a leader alone says: two leaders of a term are a broken promise, and a member's word
    is enough for that, so one gone bad can stop nodes with it (mesh/DESIGN.md).
    """
    try:
        message = WIRE.decode(data)
    except WireError:
        return True
    return not isinstance(message, Append | Heartbeat | SnapshotOffer | TimeoutNow)


def send_bent(live: Live, node: Node, draw: random.Random) -> int:
    """So many messages to one node."""
    keys, own = (load_or_create_identity(one.home).keys for one in (live.bad, node))
    mutator = bent(live, node, draw)
    sent = 0
    with client(live.control_port(node), keys, own.public) as dealer:
        dealer.setsockopt(zmq.SNDTIMEO, 30_000)
        while sent < BENT // len(live.nodes):
            data = mutator.next()
            if is_a_followers(data):
                dealer.send(data)
                sent += 1
        dealer.setsockopt(zmq.LINGER, 2_000)
    return sent


def test_a_member_gone_bad_does_no_harm(live: Live, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(SEED)
    sent = sum(send_bent(live, node, draw) for node in live.nodes)
    assert live.grown() < GROWN_MAX
    live.decides()
    with capsys.disabled():
        print(f"\n{sent} bent messages, seed {SEED}: {live.grown() >> 20} MiB more")


def was_asked(node: Node) -> bool:
    return "speaks of a later epoch and does not stand by it" in node.log_tail()


def test_a_later_epoch_is_believed_only_of_who_stands_by_it(live: Live) -> None:
    """Nodes that believed a hello would set aside what they hold, all of them."""
    for node in live.nodes:
        hello = Hello(
            raft_id=RaftId(live.raft_ids[live.bad.name]),
            mesh=node.status()["mesh"],
            protocol=1,
            incarnation="0badc0de",
            name=live.bad.name,
            hosts=("127.0.0.1",),
            control_port=1,
            bulk_port=1,
            join_port=1,
            members_epoch=1,
            known=(),
            status=b"\x80",
            epoch=1 << 20,
        )
        keys, own = (load_or_create_identity(one.home).keys for one in (live.bad, node))
        with client(live.control_port(node), keys, own.public) as dealer:
            for _ in range(3):
                dealer.send(WIRE.encode(hello))
            wait_for("it was asked", partial(was_asked, node), 30)
    live.decides()
    for node in live.nodes:
        assert "overtaken" not in node.errors.read_text()
        assert not (node.home / "former").exists()
