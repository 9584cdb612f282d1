"""Snapshots and compaction in the core (dissertation, 5)."""

from dataclasses import replace

import pytest

from mesh.effects import Commit, InstallSnapshot, Send
from mesh.errors import DivergenceError
from mesh.ids import RaftId
from mesh.log import Base, Entry, HardState
from mesh.messages import (
    Append,
    AppendAck,
    ConsensusMessage,
    Heartbeat,
    HeartbeatAck,
    SnapshotOffer,
    TimeoutNow,
)
from mesh.protocol import Limits, Raft, Role
from tests.scenarios.cluster import Cluster, Shortest, Timing, configuration_of
from tests.simulator.storage import MemoryLog

A, B, C = map(RaftId, "abc")
VOTERS = configuration_of("abc").encode()


def follower(*terms: int, commit: int = 0, limits: Limits | None = None) -> tuple[Cluster, Raft]:
    """a, which follows b in term 2."""
    cluster = Cluster(limits)
    cluster.node("a", terms, configuration_of("abc"), term=2, commit=commit)
    cluster.receive(Heartbeat(sender=B, to=A, term=2, commit=0))
    cluster.messages.clear()
    return cluster, cluster.nodes["a"]


def offer(index: int, base_term: int, *, term: int = 2, sender: RaftId = B) -> SnapshotOffer:
    return SnapshotOffer(
        sender=sender,
        to=A,
        term=term,
        base_index=index,
        base_term=base_term,
        configuration=configuration_of("abc", "d").encode(),
        size=1_000,
        digest="d1",
        handle=f"snapshot-{index}",
    )


def append(prev: tuple[int, int], *terms: int, term: int = 2, commit: int = 0) -> Append:
    index, prev_term = prev
    entries = tuple(Entry(index + n, of, "command", b"") for n, of in enumerate(terms, 1))
    return Append(
        sender=B,
        to=A,
        term=term,
        prev_index=index,
        prev_term=prev_term,
        entries=entries,
        commit=commit,
    )


def behind() -> Cluster:
    """a leads; what c lacks is compacted."""
    cluster = Cluster()
    cluster.mesh("abc")
    cluster.lead("a")
    cluster.isolated = {"c"}
    cluster.propose("a", "x")
    cluster.deliver()
    cluster.compact("a", 3)
    cluster.isolated.clear()
    return cluster


def needed(cluster: Cluster) -> int:
    found = len([line for line in cluster.lines if "snapshot needed" in line])
    cluster.lines.clear()
    return found


def beat(cluster: Cluster) -> None:
    cluster.tick("a")
    cluster.deliver()


def answers(cluster: Cluster) -> list[ConsensusMessage]:
    return cluster.take("a")


# --- the follower --------------------------------------------------------------------------------


def test_what_is_not_here_is_installed_once() -> None:
    cluster, raft = follower(1, 1)
    assert raft.receive(offer(5, 2), 0) == [InstallSnapshot(offer(5, 2))]
    assert raft.is_installing
    assert raft.receive(offer(5, 2), 0) == [], "a repetition"
    assert raft.receive(offer(9, 2), 0) == [], "a newer one: one at a time"
    cluster.offers["a"] = offer(5, 2)
    cluster.install("a")
    assert not raft.is_installing
    assert (raft.last_index, raft.commit_index, raft.applied_index) == (5, 5, 5)
    assert (raft.term_at(5), raft.term_at(4)) == (2, None)
    assert raft.configuration == configuration_of("abc", "d")
    assert answers(cluster) == [AppendAck(sender=A, to=B, term=2, ok=True, index=5)]
    cluster.receive(append((5, 2), 2, 2, commit=6))
    assert [entry.index for entry in cluster.applied["a"]] == [6]
    assert raft.last_index == 7


@pytest.mark.parametrize(("index", "term"), [(1, 1), (2, 1), (3, 1)])
def test_a_snapshot_behind_the_commit_index_is_only_acknowledged(index: int, term: int) -> None:
    cluster, raft = follower(1, 1, 1, 2, commit=3)
    cluster.receive(offer(index, term))
    assert answers(cluster) == [AppendAck(sender=A, to=B, term=2, ok=True, index=3)]
    assert raft.last_index == 4, "and the entries behind it stay"


def test_a_snapshot_of_entries_that_are_here_says_that_they_are_decided() -> None:
    """etcd's rule: to install it would forget what may have been acknowledged behind it."""
    cluster, raft = follower(1, 1, 1, 2, 2, commit=1)
    cluster.receive(offer(4, 2))
    assert answers(cluster) == [AppendAck(sender=A, to=B, term=2, ok=True, index=4)]
    assert (raft.commit_index, raft.last_index) == (4, 5)
    assert [entry.index for entry in cluster.applied["a"]] == [1, 2, 3, 4]


def test_a_snapshot_against_other_entries_replaces_them() -> None:
    _, raft = follower(1, 1, 1, 1, 1)
    assert raft.receive(offer(4, 2), 0) == [InstallSnapshot(offer(4, 2))]


def test_nothing_moves_while_it_is_installed() -> None:
    cluster, raft = follower(1, 1, 1, commit=1, limits=Limits(applying_entries_max=1))
    cluster.receive(append((3, 1), 2, commit=1))
    cluster.messages.clear()
    raft.receive(offer(9, 2), 0)
    assert raft.receive(append((4, 2), 2, commit=5), 0) == []
    (answer,) = raft.receive(Heartbeat(sender=B, to=A, term=2, commit=4, round=7), 0)
    assert answer == Send(HeartbeatAck(sender=A, to=B, term=2, round=7))
    assert (raft.last_index, raft.commit_index) == (4, 1)
    assert not [e for e in raft.applied(1, 0) if isinstance(e, Commit)]
    raft.receive(TimeoutNow(sender=B, to=A, term=2), 0)
    assert raft.role is Role.FOLLOWER
    cluster.now_ms = 60_000
    raft.tick(cluster.now_ms)
    assert (raft.role, raft.term) == (Role.FOLLOWER, 2), "no campaign either"
    assert raft.next_deadline_ms() > cluster.now_ms


def test_what_was_committed_is_applied_when_the_installation_failed() -> None:
    _, raft = follower(1, 1, 1, limits=Limits(applying_entries_max=1))
    effects = raft.receive(append((3, 1), commit=3), 0)
    assert [e for e in effects if isinstance(e, Commit)]
    raft.receive(offer(9, 2), 0)
    assert raft.applied(1, 0) == []
    failed = raft.install_failed(0)
    assert not raft.is_installing
    assert any(isinstance(effect, Commit) for effect in failed)
    refusals = [e.message for e in failed if isinstance(e, Send)]
    assert refusals == [
        AppendAck(sender=A, to=B, term=2, ok=False, index=9, hint_index=3, hint_term=1)
    ]
    assert raft.receive(offer(9, 2), 0) == [InstallSnapshot(offer(9, 2))], "and again"


def test_votes_go_on_while_it_is_installed_and_the_next_leader_is_told() -> None:
    cluster, raft = follower(1, 1)
    cluster.receive(offer(5, 2))
    cluster.receive(Heartbeat(sender=C, to=A, term=3, commit=0))
    cluster.messages.clear()
    cluster.install("a")
    assert raft.term == 3
    assert answers(cluster) == [AppendAck(sender=A, to=C, term=3, ok=True, index=5)]
    assert cluster.disks["a"].hard_state().term == 3


def test_an_offer_of_an_earlier_term_is_told_so_and_one_of_a_later_followed() -> None:
    cluster, raft = follower(1, 1)
    cluster.receive(offer(5, 1, term=1))
    (answer,) = answers(cluster)
    assert isinstance(answer, AppendAck)
    assert (answer.ok, answer.term) == (False, 2)
    cluster.receive(offer(5, 3, term=3, sender=C))
    assert (raft.term, raft.leader, raft.is_installing) == (3, C, True)


def test_it_starts_again_from_where_the_snapshot_left_it() -> None:
    cluster, _ = follower(1, 1)
    cluster.receive(offer(5, 2))
    cluster.install("a")
    cluster.receive(append((5, 2), 2))
    cluster.start("a")
    raft = cluster.nodes["a"]
    assert (raft.last_index, raft.commit_index, raft.applied_index) == (6, 5, 5)
    assert raft.configuration == configuration_of("abc", "d")


def test_a_ledger_behind_the_base_is_refused() -> None:
    disk = MemoryLog()
    disk.restart_from(Base(5, 2, VOTERS), HardState(term=2, commit=5))
    with pytest.raises(DivergenceError):
        Raft(
            raft_id=A,
            storage=disk,
            timing=Timing(),
            random=Shortest(),
            applied_index=4,
            now_ms=0,
        )


# --- the leader ----------------------------------------------------------------------------------


def test_a_snapshot_is_needed_only_for_one_that_was_heard() -> None:
    cluster = behind()
    cluster.isolated = {"c"}
    cluster.lines.clear()
    for _ in range(20):
        beat(cluster)
        cluster.propose("a", "y")
    assert needed(cluster) == 0
    cluster.isolated.clear()
    beat(cluster)
    beat(cluster)
    assert needed(cluster) == 1
    for _ in range(20):
        beat(cluster)
    assert needed(cluster) == 0, "the driver makes one: it is not asked twice"


def test_status_tells_what_must_not_be_compacted() -> None:
    cluster = behind()
    beat(cluster)
    raft = cluster.nodes["a"]
    assert [(p.state, p.snapshot_index) for p in raft.progress()] == [
        ("replicate", 0),
        ("snapshot", 0),
    ]
    cluster.offer("a", "c")
    assert [p.snapshot_index for p in raft.progress()] == [0, 3]
    cluster.deliver()
    cluster.install("c")
    cluster.deliver()
    assert [(p.match, p.state, p.snapshot_index) for p in raft.progress()][1] == (3, "replicate", 0)


def test_offers_that_nobody_waits_for_are_dropped() -> None:
    cluster = behind()
    for to in "bc":
        cluster.offer("a", to)
    assert cluster.messages == []
    base = cluster.nodes["a"].base_at(3)
    assert base is not None
    raft = cluster.nodes["a"]
    assert raft.offer_snapshot(RaftId("stranger"), base, 1, "d", "h", cluster.now_ms) == []
    assert raft.snapshot_unavailable(RaftId("stranger"), cluster.now_ms) == []
    assert cluster.nodes["b"].offer_snapshot(C, base, 1, "d", "h", cluster.now_ms) == []
    assert cluster.nodes["b"].snapshot_unavailable(C, cluster.now_ms) == []


def test_an_offer_from_which_the_log_does_not_go_on_is_not_sent() -> None:
    cluster = behind()
    beat(cluster)
    raft = cluster.nodes["a"]
    assert raft.offer_snapshot(C, Base(2, 2, VOTERS), 1, "d", "h", cluster.now_ms) == []
    assert raft.offer_snapshot(C, Base(3, 1, VOTERS), 1, "d", "h", cluster.now_ms) == []
    needed(cluster)
    cluster.now_ms += 1_900
    beat(cluster)
    assert needed(cluster) == 0
    cluster.now_ms += 100
    beat(cluster)
    assert needed(cluster) == 1, "later again"


def test_a_lost_offer_is_repeated_and_a_lost_success_shows_in_the_next_answer() -> None:
    cluster = behind()
    beat(cluster)
    cluster.offer("a", "c")
    cluster.take("a", "c")
    beat(cluster)
    assert "c" not in cluster.offers
    cluster.now_ms += 1_000
    beat(cluster)
    cluster.install("c")
    cluster.take("c", "a")
    beat(cluster)
    assert cluster.nodes["a"].progress()[1].state == "snapshot"
    cluster.now_ms += 1_000
    beat(cluster)
    assert cluster.nodes["a"].progress()[1].state == "replicate"


def test_a_stale_success_does_not_end_the_wait() -> None:
    cluster = behind()
    beat(cluster)
    cluster.offer("a", "c")
    cluster.take("a", "c")
    needed(cluster)
    cluster.receive(AppendAck(sender=C, to=A, term=2, ok=True, index=2))
    assert cluster.nodes["a"].progress()[1].snapshot_index == 3
    assert needed(cluster) == 0


def test_a_stale_refusal_does_not_end_the_wait() -> None:
    cluster = behind()
    beat(cluster)
    cluster.offer("a", "c")
    cluster.take("a", "c")
    refusal = AppendAck(sender=C, to=A, term=2, ok=False, index=2, hint_index=1, hint_term=1)
    cluster.receive(refusal)
    assert cluster.nodes["a"].progress()[1].snapshot_index == 3
    cluster.receive(replace(refusal, index=3))
    assert cluster.nodes["a"].progress()[1].snapshot_index == 0


def test_a_new_leader_brings_in_line_whoever_compacted_more_or_less_than_it() -> None:
    cluster = behind()
    beat(cluster)
    cluster.offer("a", "c")
    cluster.deliver()
    cluster.install("c")
    cluster.deliver()
    cluster.isolated = {"a"}
    cluster.lead("b")
    cluster.propose("b", "y")
    cluster.deliver()
    cluster.isolated.clear()
    cluster.tick("b")
    cluster.deliver()
    cluster.lead("c")
    assert {raft.commit_index for raft in cluster.nodes.values()} == {6}
    assert {raft.last_index for raft in cluster.nodes.values()} == {6}


def test_storage_may_compact_before_the_core_is_told() -> None:
    """It does so in a thread: between two calls the entries are gone."""
    cluster = Cluster(Limits(append_entries_max=1))
    cluster.node("a", [1] * 9, configuration_of("abc"), commit=9)
    cluster.node("b", [1] * 9, configuration_of("abc"))
    cluster.node("c", [1], configuration_of("abc"))
    cluster.isolated = {"c"}
    cluster.lead("a")
    cluster.isolated.clear()
    base = cluster.nodes["a"].base_at(5)
    assert base is not None
    cluster.disks["a"].compact(base)
    beat(cluster)
    beat(cluster)
    assert needed(cluster) == 1
    assert cluster.nodes["a"].base_at(5) == base
    assert cluster.nodes["a"].base_at(4) is None
    cluster.nodes["a"].compacted(base)
    assert cluster.nodes["a"].base_at(5) == base


def test_a_learner_that_is_new_gets_a_snapshot() -> None:
    cluster = Cluster()
    cluster.found("a")
    cluster.lead("a")
    cluster.propose("a", *"1234567")
    cluster.compact("a", 8)
    cluster.empty("b")
    cluster.change("a", configuration_of("a", "b"))
    cluster.deliver()
    assert needed(cluster) == 1
    cluster.offer("a", "b")
    cluster.deliver()
    cluster.install("b")
    cluster.deliver()
    raft = cluster.nodes["b"]
    assert (raft.commit_index, raft.last_index) == (10, 10)
    assert raft.configuration == configuration_of("a", "b")
