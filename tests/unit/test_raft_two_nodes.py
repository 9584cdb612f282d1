"""The two-node rule: a sole voter waits for a learner that lives, and only for such a one."""

from mesh.ids import RaftId
from mesh.messages import AppendAck, HeartbeatAck
from mesh.protocol import Role
from tests.scenarios.cluster import Cluster, configuration_of


def two(learners: str = "b") -> Cluster:
    """a votes and leads; the learners hold everything."""
    cluster = Cluster()
    cluster.found("a")
    cluster.lead("a")
    for number, name in enumerate(learners, 1):
        cluster.empty(name)
        cluster.change("a", configuration_of("a", learners[:number]))
        cluster.deliver()
        beat(cluster)
    assert {raft.commit_index for raft in cluster.nodes.values()} == {2 + len(learners)}
    return cluster


def beat(cluster: Cluster) -> None:
    cluster.tick("a")
    cluster.deliver()


def commits(cluster: Cluster) -> tuple[int, int]:
    raft = cluster.nodes["a"]
    return raft.commit_index, raft.protected_index


def test_alone_from_the_start_it_decides_alone() -> None:
    cluster = Cluster()
    cluster.found("a")
    cluster.lead("a")
    cluster.propose("a", "x")
    assert commits(cluster) == (3, 0)


def test_what_is_decided_is_on_the_disk_of_the_learner() -> None:
    cluster = two()
    cluster.hold("b")
    cluster.propose("a", "x")
    cluster.deliver()
    assert commits(cluster) == (3, 3), "b has it, but not durably"
    cluster.sync("b")
    cluster.deliver()
    assert commits(cluster) == (4, 4)


def test_and_on_the_voters_own() -> None:
    cluster = two()
    cluster.hold("a")
    cluster.propose("a", "x")
    cluster.deliver()
    assert commits(cluster)[0] == 3
    cluster.sync("a")
    assert commits(cluster)[0] == 4


def test_a_learner_that_answers_and_stores_nothing_holds_everything_up() -> None:
    """That is the promise: as long as it lives, nothing is acknowledged that it does not hold."""
    cluster = two()
    cluster.hold("b")
    cluster.propose("a", "x")
    cluster.deliver()
    for _ in range(20):
        beat(cluster)
        cluster.receive(AppendAck(sender=RaftId("b"), to=RaftId("a"), term=2, ok=True, index=3))
    assert cluster.nodes["a"].role is Role.LEADER
    assert commits(cluster) == (3, 3)


def test_when_it_is_silent_for_an_election_time_out_the_voter_goes_on_alone() -> None:
    cluster = two()
    cluster.isolated = {"b"}
    cluster.propose("a", "x")
    since_ms = cluster.now_ms
    while commits(cluster)[0] == 3:
        beat(cluster)
    assert 1_000 <= cluster.now_ms - since_ms <= 1_200
    assert commits(cluster) == (4, 3)
    cluster.propose("a", "y")
    assert commits(cluster) == (5, 3), "nothing waits any more"


def test_a_wider_time_out_waits_longer_for_it() -> None:
    cluster = two()
    cluster.nodes["a"].stretch(400)
    cluster.isolated = {"b"}
    cluster.propose("a", "x")
    since_ms = cluster.now_ms
    while commits(cluster)[0] == 3:
        beat(cluster)
    assert 4_000 <= cluster.now_ms - since_ms <= 4_200


def test_it_is_waited_for_again_only_when_it_has_caught_up() -> None:
    cluster = two()
    cluster.isolated = {"b"}
    for _ in range(13):
        beat(cluster)
    cluster.propose("a", *"123456789")
    cluster.deliver()
    assert commits(cluster) == (12, 3)
    cluster.isolated.clear()
    cluster.tick("a")
    cluster.deliver("a", "b", rounds=1)
    cluster.deliver("b", "a", rounds=1)
    cluster.propose("a", "x")
    assert commits(cluster) == (13, 3), "heard, but behind"
    cluster.deliver()
    assert commits(cluster) == (13, 13)
    cluster.propose("a", "y")
    assert commits(cluster) == (13, 13), "in line"


def test_one_of_two_learners_is_enough() -> None:
    cluster = two("bc")
    cluster.isolated = {"b"}
    cluster.propose("a", "x")
    assert commits(cluster) == (4, 4)
    cluster.deliver()
    assert commits(cluster) == (5, 5)


def test_a_newcomer_is_not_waited_for() -> None:
    cluster = two()
    cluster.empty("c")
    cluster.isolated = {"c"}
    cluster.change("a", configuration_of("a", "bc"))
    cluster.deliver()
    assert commits(cluster) == (4, 4)
    cluster.isolated = {"b", "c"}
    for _ in range(13):
        beat(cluster)
    cluster.propose("a", "x")
    assert commits(cluster) == (5, 4)


def test_one_that_needs_a_snapshot_is_not_waited_for() -> None:
    cluster = two()
    cluster.isolated = {"b"}
    for _ in range(13):
        beat(cluster)
    cluster.propose("a", "x")
    cluster.deliver()
    cluster.compact("a", 4)
    cluster.isolated.clear()
    beat(cluster)
    beat(cluster)
    cluster.propose("a", "y")
    assert commits(cluster) == (5, 3)
    cluster.offer("a", "b")
    cluster.deliver()
    cluster.install("b")
    cluster.deliver()
    cluster.propose("a", "z")
    assert commits(cluster) == (5, 5)
    cluster.deliver()
    assert commits(cluster) == (6, 6)


def heard(cluster: Cluster, name: str) -> None:
    """Time goes on; only this one answers heartbeats, and gets nothing else."""
    for _ in range(13):
        beat(cluster)
        cluster.receive(HeartbeatAck(sender=RaftId(name), to=RaftId("a"), term=2))


def test_a_guard_that_fell_behind_another_and_needs_a_snapshot_is_not_waited_for() -> None:
    cluster = two("bc")
    cluster.isolated = {"b"}
    cluster.propose("a", "x")
    cluster.deliver()
    cluster.propose("a", "y")
    cluster.deliver()
    cluster.compact("a", 6)
    cluster.receive(
        AppendAck(
            sender=RaftId("b"),
            to=RaftId("a"),
            term=2,
            ok=False,
            index=5,
            hint_index=4,
            hint_term=2,
        )
    )
    assert cluster.nodes["a"].progress()[0].state == "snapshot"
    cluster.isolated = {"b", "c"}
    heard(cluster, "b")
    cluster.propose("a", "z")
    assert commits(cluster) == (7, 6)


def test_a_learner_that_was_silent_while_others_voted_is_not_waited_for() -> None:
    cluster = two("bc")
    cluster.change("a", configuration_of("ab", "c"))
    cluster.deliver()
    cluster.isolated = {"c"}
    for _ in range(25):
        beat(cluster)
    cluster.propose("a", "x")
    cluster.deliver()
    heard(cluster, "c")
    cluster.change("a", configuration_of("a", "bc"))
    cluster.deliver()
    assert commits(cluster)[0] == 7
    cluster.isolated = {"b", "c"}
    heard(cluster, "c")
    cluster.propose("a", "y")
    assert commits(cluster) == (8, 7)


def test_two_voters_need_each_other_and_no_learner() -> None:
    cluster = two("bc")
    cluster.change("a", configuration_of("ab", "c"))
    cluster.deliver()
    cluster.isolated = {"c"}
    cluster.propose("a", "x")
    cluster.deliver()
    assert commits(cluster) == (6, 6)
    cluster.isolated = {"b"}
    cluster.propose("a", "y")
    cluster.deliver()
    assert commits(cluster)[0] == 6


def test_what_a_follower_knows_to_be_decided_is_on_two_machines() -> None:
    cluster = two()
    cluster.propose("a", "x")
    cluster.deliver()
    raft = cluster.nodes["b"]
    assert raft.protected_index == raft.commit_index == 4


def test_the_first_follower_makes_no_heartbeat_late() -> None:
    cluster = Cluster()
    cluster.found("a")
    cluster.lead("a")
    # Alone nothing is due but the check of the quorum: much later than a heartbeat.
    cluster.now_ms = cluster.nodes["a"].next_deadline_ms() - 1
    cluster.empty("b")
    cluster.change("a", configuration_of("a", "b"))
    assert cluster.nodes["a"].next_deadline_ms() >= cluster.now_ms
