"""The read index (dissertation, 6.4)."""

from dataclasses import replace

import pytest

from mesh import reading
from mesh.effects import ReadReady
from mesh.errors import BusyError, NotLeaderError
from mesh.ids import RaftId
from mesh.messages import Heartbeat, HeartbeatAck
from mesh.protocol import Role
from mesh.reading import Reads
from tests.scenarios.cluster import Cluster, configuration_of

A, B = map(RaftId, "ab")


def three(learners: str = "") -> Cluster:
    cluster = Cluster()
    cluster.mesh("abc", learners)
    cluster.lead("a")
    cluster.lines.clear()
    return cluster


def ready(cluster: Cluster) -> list[str]:
    found = [line for line in cluster.lines if "read ready" in line]
    cluster.lines.clear()
    return found


def test_a_read_is_ready_after_one_round() -> None:
    cluster = three()
    cluster.propose("a", "x")
    cluster.deliver()
    cluster.read("a")
    assert ready(cluster) == []
    cluster.deliver()
    assert ready(cluster) == ["a: read ready 1 at 3"]


def test_reads_that_came_during_a_round_share_the_next() -> None:
    cluster = three()
    for _ in range(5):
        cluster.read("a")
    rounds = [m.round for m in cluster.messages if isinstance(m, Heartbeat)]
    assert rounds == [1, 1], "one round at a time"
    cluster.deliver()
    assert ready(cluster) == ["a: read ready 1 at 2", "a: read ready 2,3,4,5 at 2"]


def test_a_read_needs_what_was_committed_when_it_came_and_no_more() -> None:
    cluster = three()
    cluster.read("a")
    cluster.propose("a", "x")
    cluster.deliver()
    assert cluster.nodes["a"].commit_index == 3
    assert ready(cluster) == ["a: read ready 1 at 2"]


def test_an_answer_from_before_the_read_proves_nothing() -> None:
    cluster = three()
    old = HeartbeatAck(sender=B, to=A, term=2)
    cluster.read("a")
    cluster.receive(old)
    assert ready(cluster) == []
    cluster.deliver()
    cluster.lines.clear()
    cluster.read("a")
    cluster.receive(replace(old, round=1))
    assert ready(cluster) == [], "of the round before"
    cluster.receive(replace(old, round=2))
    assert ready(cluster) == ["a: read ready 2 at 2"]


def test_an_answer_from_the_future_counts_for_the_present_only() -> None:
    cluster = three()
    cluster.read("a")
    cluster.receive(HeartbeatAck(sender=B, to=A, term=2, round=99))
    assert ready(cluster) == ["a: read ready 1 at 2"]
    cluster.read("a")
    assert ready(cluster) == []


def test_learners_and_strangers_prove_nothing() -> None:
    cluster = three(learners="d")
    cluster.isolated = {"b", "c"}
    cluster.read("a")
    for _ in range(5):
        cluster.tick("a")
        cluster.deliver()
    cluster.receive(HeartbeatAck(sender=RaftId("s"), to=A, term=2, round=1))
    assert ready(cluster) == []


def test_a_lost_round_is_repeated_with_the_heartbeats() -> None:
    cluster = three()
    cluster.read("a")
    cluster.read("a")
    cluster.take()
    cluster.tick("a")
    cluster.deliver()
    assert ready(cluster) == ["a: read ready 1,2 at 2"]
    cluster.tick("a")
    assert all(m.round == 0 for m in cluster.messages if isinstance(m, Heartbeat))


def test_a_new_leader_reads_only_behind_its_first_entry() -> None:
    cluster = Cluster()
    cluster.node("a", [1, 1, 1], configuration_of("abc"), commit=3)
    cluster.node("b", [1, 1, 1], configuration_of("abc"))
    cluster.node("c", [1, 1, 1], configuration_of("abc"))
    cluster.campaign("a")
    cluster.deliver(rounds=4)
    raft = cluster.nodes["a"]
    assert raft.role is Role.LEADER
    assert raft.commit_index == 3
    cluster.lines.clear()
    cluster.read("a")
    cluster.receive(HeartbeatAck(sender=B, to=A, term=2, round=1))
    assert ready(cluster) == [], "a majority follows, but what is decided is not known"
    cluster.deliver()
    assert ready(cluster) == ["a: read ready 1 at 4"]


def test_reads_of_a_lost_lead_are_never_ready_and_ids_go_on() -> None:
    cluster = three()
    cluster.isolated = {"a"}
    assert cluster.read("a") == 1
    cluster.deliver()
    cluster.lead("b")
    cluster.isolated.clear()
    cluster.tick("b")
    cluster.deliver()
    with pytest.raises(NotLeaderError):
        cluster.read("a")
    cluster.lead("a")
    assert ready(cluster) == []
    assert cluster.read("a") == 2
    cluster.deliver()
    assert ready(cluster) == [f"a: read ready 2 at {cluster.nodes['a'].commit_index}"]


def test_a_sole_voter_reads_at_once() -> None:
    cluster = Cluster()
    cluster.found("a")
    cluster.tick("a")
    _, effects = cluster.nodes["a"].read_index(cluster.now_ms)
    assert effects == [ReadReady((1,), 2)]


def test_a_sole_voter_reads_nothing_before_its_first_entry_is_durable() -> None:
    cluster = Cluster()
    cluster.found("a")
    cluster.hold("a")
    cluster.tick("a")
    _, effects = cluster.nodes["a"].read_index(cluster.now_ms)
    assert effects == []
    cluster.lines.clear()
    cluster.sync("a")
    assert ready(cluster) == ["a: read ready 1 at 2"]


def test_waiting_reads_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "READS_MAX", 3)
    reads = Reads()
    for read_id in range(3):
        reads.add(read_id, 1)
    with pytest.raises(BusyError):
        reads.add(3, 1)
    reads.start_round()
    reads.confirm(1)
    assert reads.take_ready(0) == []
    assert reads.take_ready(1) == [((0, 1, 2), 1)]
    reads.add(3, 1)
