"""Leadership transfer (dissertation, 3.10), with the cases of etcd's own tests of it."""

from dataclasses import replace

import pytest

from mesh.effects import Send
from mesh.errors import BusyError, ConflictError, NotLeaderError
from mesh.ids import RaftId
from mesh.messages import TimeoutNow, Vote, VoteRequest
from mesh.protocol import Role
from tests.scenarios.cluster import Cluster, configuration_of

A, B, C = map(RaftId, "abc")


def three(learners: str = "") -> Cluster:
    """a leads b and c."""
    cluster = Cluster()
    cluster.mesh("abc", learners)
    cluster.lead("a")
    return cluster


def leader(cluster: Cluster) -> str:
    names = [name for name, raft in cluster.nodes.items() if raft.role is Role.LEADER]
    assert len(names) == 1
    return names[0]


def test_to_a_follower_that_holds_everything() -> None:
    cluster = three()
    cluster.transfer("a", "b")
    assert cluster.nodes["a"].transfer_to == B
    cluster.deliver()
    assert leader(cluster) == "b"
    assert cluster.nodes["b"].term_committed
    assert cluster.nodes["a"].transfer_to is None


def test_to_a_slow_follower_after_it_caught_up() -> None:
    cluster = three()
    cluster.isolated = {"b"}
    for number in range(20):
        cluster.propose("a", str(number))
        cluster.deliver()
    cluster.isolated.clear()
    cluster.transfer("a", "b")
    assert not [m for m in cluster.messages if isinstance(m, TimeoutNow)], "not before"
    cluster.tick("a")
    cluster.deliver()
    assert leader(cluster) == "b"
    assert cluster.nodes["b"].last_index == 23


def test_to_a_follower_that_needs_a_snapshot_first() -> None:
    cluster = three()
    cluster.isolated = {"b"}
    cluster.propose("a", "x")
    cluster.deliver()
    cluster.compact("a", 3)
    cluster.isolated.clear()
    cluster.transfer("a", "b")
    cluster.tick("a")
    cluster.deliver()
    cluster.offer("a", "b")
    cluster.deliver()
    assert leader(cluster) == "a"
    cluster.install("b")
    cluster.deliver()
    assert leader(cluster) == "b"


@pytest.mark.parametrize("to", ["a", "d", "nobody"])
def test_only_another_voter_takes_over(to: str) -> None:
    cluster = three(learners="d")
    with pytest.raises(ConflictError):
        cluster.transfer("a", to)
    assert cluster.nodes["a"].transfer_to is None
    cluster.propose("a", "x")


def test_only_a_leader_hands_over() -> None:
    with pytest.raises(NotLeaderError):
        three().transfer("b", "c")


def test_nothing_is_accepted_meanwhile_and_all_of_it_after_a_time_out() -> None:
    cluster = three()
    cluster.isolated = {"b"}
    cluster.transfer("a", "b")
    for _ in range(9):
        with pytest.raises(BusyError):
            cluster.propose("a", "x")
        with pytest.raises(BusyError):
            cluster.change("a", configuration_of("ab"))
        cluster.tick("a")
        cluster.deliver()
    # To ask again for the same does not begin anew.
    cluster.transfer("a", "b")
    cluster.now_ms += 101
    assert cluster.nodes["a"].tick(cluster.now_ms)
    assert cluster.nodes["a"].transfer_to is None
    cluster.propose("a", "x")
    cluster.deliver()
    assert leader(cluster) == "a"
    assert cluster.nodes["c"].last_index == 3
    cluster.isolated.clear()
    for _ in range(3):
        cluster.tick("a")
        cluster.deliver()
    assert leader(cluster) == "a", "it is over: nobody is told any more"


def test_another_successor_replaces_the_first() -> None:
    cluster = three()
    cluster.isolated = {"b"}
    cluster.transfer("a", "b")
    cluster.now_ms += 500
    cluster.transfer("a", "c")
    cluster.now_ms += 600
    with pytest.raises(BusyError):
        cluster.propose("a", "x")
    cluster.deliver()
    assert leader(cluster) == "c"


def test_a_leader_that_is_replaced_meanwhile_forgets_it() -> None:
    cluster = three()
    cluster.isolated = {"b"}
    cluster.transfer("a", "b")
    cluster.isolated = {"a"}
    cluster.messages.clear()
    cluster.lead("c")
    cluster.isolated.clear()
    cluster.tick("c")
    cluster.deliver()
    cluster.lead("a")
    assert cluster.nodes["a"].transfer_to is None
    cluster.propose("a", "x")


def test_a_vote_for_a_successor_does_not_wait_for_the_leaders_silence() -> None:
    """Without the mark nobody votes while a leader is heard (4.2.3), and a pre-vote is never marked."""
    cluster = three()
    request = VoteRequest(sender=C, to=B, term=3, last_index=2, last_term=2, pre=False)
    b = cluster.nodes["b"]
    assert b.receive(request, cluster.now_ms) == []
    (answer,) = (
        effect.message
        for effect in b.receive(replace(request, transfer=True), cluster.now_ms)
        if isinstance(effect, Send)
    )
    assert answer == Vote(sender=B, to=C, term=3, granted=True, pre=False)
    shorter = replace(request, to=A, last_index=1, last_term=1, transfer=True)
    answers = cluster.nodes["a"].receive(shorter, cluster.now_ms)
    assert Send(Vote(sender=A, to=C, term=3, granted=False, pre=False)) in answers


def test_timeout_now_moves_only_a_follower_that_votes() -> None:
    cluster = three(learners="d")

    def told(name: str, term: int, sender: RaftId = A) -> Role:
        message = TimeoutNow(sender=sender, to=RaftId(name), term=term)
        cluster.nodes[name].receive(message, cluster.now_ms)
        return cluster.nodes[name].role

    assert told("d", 2) is Role.FOLLOWER, "a learner"
    assert told("b", 1) is Role.FOLLOWER, "of an earlier term"
    assert told("b", 2, sender=C) is Role.FOLLOWER, "not of its leader"
    assert told("b", 2) is Role.CANDIDATE
    assert cluster.nodes["b"].term == 3
    assert told("b", 3) is Role.CANDIDATE
    assert cluster.nodes["b"].term == 3, "a candidate is one already"
    assert told("c", 7) is Role.CANDIDATE, "the word of a leader that it had not heard of"
    assert cluster.nodes["c"].term == 8
