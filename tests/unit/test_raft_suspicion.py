"""What shortens the time without a leader: a connection that broke, a better log, a leader that is deaf."""

import pytest

from mesh.ids import RaftId
from mesh.messages import ConsensusMessage, HeartbeatAck
from mesh.protocol import Role, Timing
from tests.scenarios.cluster import Cluster, configuration_of

A, B, C = RaftId("a"), RaftId("b"), RaftId("c")
TIMES = Timing()
SPREAD_MS = (TIMES.election_max_ms - TIMES.election_min_ms) // 4


def led() -> Cluster:
    """a leads b and c, who heard it just now."""
    cluster = Cluster()
    cluster.mesh("abc")
    cluster.lead("a")
    cluster.tick("a")
    cluster.deliver()
    return cluster


def suspect(cluster: Cluster, *names: str, leader: RaftId = A) -> None:
    for name in names:
        cluster.nodes[name].suspect(leader, cluster.now_ms)


def wait(cluster: Cluster, time_ms: int, *names: str) -> None:
    """Time goes on; these notice what is due."""
    until_ms = cluster.now_ms + time_ms
    while due := [n for n in names if cluster.nodes[n].next_deadline_ms() <= until_ms]:
        first = min(due, key=lambda name: cluster.nodes[name].next_deadline_ms())
        cluster.tick(first)
        cluster.deliver()
    cluster.now_ms = until_ms


def test_a_leader_whose_connections_broke_is_replaced_without_waiting_for_its_silence() -> None:
    cluster = led()
    cluster.crash("a")
    suspect(cluster, "b", "c")
    wait(cluster, TIMES.heartbeat_ms + SPREAD_MS, "b", "c")
    assert {cluster.nodes["b"].role, cluster.nodes["c"].role} == {Role.LEADER, Role.FOLLOWER}
    assert TIMES.heartbeat_ms + SPREAD_MS < TIMES.election_min_ms


def test_a_leader_that_is_heard_again_is_no_longer_suspected() -> None:
    cluster = led()
    suspect(cluster, "b", "c")
    cluster.tick("a")
    cluster.deliver()
    for name in "bc":
        waits_ms = cluster.nodes[name].next_deadline_ms() - cluster.now_ms
        assert waits_ms >= TIMES.election_min_ms
    cluster.messages.clear()
    suspect(cluster, "b", leader=C)
    assert cluster.nodes["b"].next_deadline_ms() - cluster.now_ms >= TIMES.election_min_ms


def test_one_that_lost_its_connection_does_not_unseat_a_leader_that_others_hear() -> None:
    cluster = led()
    suspect(cluster, "b")
    wait(cluster, TIMES.heartbeat_ms + SPREAD_MS, "b")
    assert cluster.nodes["b"].role is Role.PRE_CANDIDATE
    assert cluster.nodes["a"].role is Role.LEADER
    assert {raft.term for raft in cluster.nodes.values()} == {cluster.nodes["a"].term}
    cluster.tick("a")
    cluster.deliver()
    assert cluster.nodes["b"].leader == A


def test_who_grants_a_pre_vote_starts_no_campaign_of_its_own_beside_it() -> None:
    cluster = led()
    cluster.crash("a")
    suspect(cluster, "b", "c")
    # c is the first: b's own short wait would be over in the same moment.
    cluster.tick("c")
    cluster.deliver("c", "b", rounds=1)
    assert cluster.nodes["b"].next_deadline_ms() - cluster.now_ms > SPREAD_MS
    cluster.deliver()
    assert cluster.nodes["c"].role is Role.LEADER


def test_of_two_that_ask_at_one_time_one_gives_way_and_no_vote_is_split() -> None:
    cluster = led()
    cluster.crash("a")
    cluster.now_ms += TIMES.election_max_ms
    cluster.tick("b")
    cluster.tick("c")
    assert {raft.role for raft in cluster.nodes.values()} == {Role.PRE_CANDIDATE}
    cluster.deliver(rounds=1)
    assert cluster.nodes["b"].role is Role.FOLLOWER
    cluster.deliver()
    assert cluster.nodes["c"].role is Role.LEADER


def test_a_longer_log_does_not_wait_while_another_asks_in_vain() -> None:
    cluster = Cluster()
    voters = configuration_of("abc")
    cluster.node("b", [1], voters, term=1)
    cluster.node("c", [1, 1], voters, term=1)
    cluster.now_ms += TIMES.election_min_ms
    # A longer time-out than b's, as if drawn.
    cluster.nodes["c"].stretch(400)
    cluster.now_ms += TIMES.election_max_ms
    cluster.tick("b")
    cluster.deliver("b", "c", rounds=1)
    waits_ms = cluster.nodes["c"].next_deadline_ms() - cluster.now_ms
    assert 0 < waits_ms <= TIMES.heartbeat_ms
    cluster.deliver()
    cluster.tick("c")
    cluster.deliver()
    assert cluster.nodes["c"].role is Role.LEADER


@pytest.mark.parametrize("heard", [True, False])
def test_a_leader_that_hears_nobody_resigns_and_says_so(heard: bool) -> None:
    cluster = led()
    begin_ms = cluster.now_ms
    while cluster.nodes["a"].role is Role.LEADER:
        cluster.tick("a")
        # What it says arrives; what others answer does not.
        cluster.take(to="a")
        if heard:
            cluster.deliver("a", rounds=1)
            cluster.take(to="a")
    passed_ms = cluster.now_ms - begin_ms
    assert passed_ms <= TIMES.election_max_ms + TIMES.heartbeat_ms
    if not heard:
        assert cluster.nodes["b"].role is Role.FOLLOWER
        return
    assert cluster.nodes["b"].role is Role.CANDIDATE, "nobody waited for anything"
    cluster.deliver()
    assert cluster.nodes["b"].role is Role.LEADER


def test_a_leader_that_stood_still_reads_before_it_resigns() -> None:
    cluster = led()
    cluster.tick("a")
    cluster.now_ms += TIMES.election_max_ms - TIMES.heartbeat_ms // 2
    answers = cluster.take()
    cluster.tick("a")
    assert cluster.nodes["a"].role is Role.LEADER
    for answer in answers:
        cluster.receive(answer)
    cluster.deliver()
    cluster.now_ms += TIMES.heartbeat_ms
    cluster.tick("a")
    assert cluster.nodes["a"].role is Role.LEADER


def lead_with_answers(cluster: Cluster, time_ms: int, *, every: int, appends: bool) -> bool:
    """Whether a still leads after so long, when only each so many-th round of answers arrives."""
    until_ms, beats = cluster.now_ms + time_ms, 0
    while cluster.now_ms < until_ms and cluster.nodes["a"].role is Role.LEADER:
        cluster.tick("a")
        beats += 1
        cluster.take("a", "c")
        cluster.deliver("a", "b", rounds=1)
        for answer in cluster.take("b", "a"):
            if beats % every == 0 and (appends or isinstance(answer, HeartbeatAck)):
                cluster.receive(answer)
    return cluster.nodes["a"].role is Role.LEADER


def test_a_leader_that_is_answered_in_gusts_and_decides_nothing_resigns() -> None:
    cluster = led()
    cluster.propose("a", "x")
    cluster.take()
    begin_ms = cluster.now_ms
    assert not lead_with_answers(cluster, 5_000, every=4, appends=False)
    passed_ms = cluster.now_ms - begin_ms
    assert TIMES.election_max_ms <= passed_ms <= TIMES.election_max_ms + 2 * TIMES.heartbeat_ms
    assert cluster.nodes["b"].role is Role.CANDIDATE, "its last word arrived"


def test_a_leader_whose_decisions_trickle_late_makes_room_too() -> None:
    cluster = led()
    late: list[tuple[int, ConsensusMessage]] = []
    commits = set[int]()
    for beat in range(60):
        if cluster.nodes["a"].role is not Role.LEADER:
            break
        commits.add(cluster.nodes["a"].commit_index)
        if beat % 3 == 0:
            cluster.propose("a", str(beat))
        cluster.tick("a")
        cluster.take("a", "c")
        cluster.deliver("a", "b", rounds=1)
        # Each entry takes a little longer than the one before; something is decided all the time.
        for answer in cluster.take("b", "a"):
            if isinstance(answer, HeartbeatAck):
                late += [(cluster.now_ms, answer)] if beat % 4 == 0 else []
            else:
                late.append((cluster.now_ms + 40 * beat, answer))
        for due in [one for one in late if one[0] <= cluster.now_ms]:
            late.remove(due)
            if cluster.nodes["a"].role is Role.LEADER:
                cluster.receive(due[1])
    assert cluster.nodes["a"].role is not Role.LEADER
    assert len(commits) > 3


def test_slow_disks_unseat_no_leader_and_neither_does_an_idle_bad_link() -> None:
    slow = led()
    slow.propose("a", "x")
    slow.take()
    assert lead_with_answers(slow, 5_000, every=1, appends=False)
    idle = led()
    assert lead_with_answers(idle, 5_000, every=4, appends=True)


def test_of_two_voters_none_resigns_for_being_stuck() -> None:
    cluster = Cluster()
    cluster.mesh("ab")
    cluster.lead("a")
    cluster.propose("a", "x")
    cluster.take()
    assert lead_with_answers(cluster, 5_000, every=4, appends=False)
