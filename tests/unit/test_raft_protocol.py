"""Rules of the Raft paper and of the dissertation, each with its section."""

from dataclasses import replace
from random import Random

import pytest

from mesh.effects import Effect, Persist, Send
from mesh.errors import BusyError, ConflictError, DivergenceError, NotLeaderError, UsageError
from mesh.ids import RaftId
from mesh.log import ENTRY_BYTES_MAX, Entry, HardState
from mesh.membership import Configuration
from mesh.messages import (
    Append,
    AppendAck,
    ConsensusMessage,
    Heartbeat,
    HeartbeatAck,
    Vote,
    VoteRequest,
)
from mesh.protocol import Limits, Raft, Role, Timing
from tests.scenarios.cluster import Cluster, configuration_of
from tests.simulator.storage import MemoryLog

A, B, C = RaftId("a"), RaftId("b"), RaftId("c")


def three(limits: Limits | None = None) -> Cluster:
    """a leads b and c."""
    cluster = Cluster(limits)
    cluster.mesh("abc")
    cluster.campaign("a")
    cluster.deliver()
    cluster.tick("a")
    cluster.deliver()
    assert cluster.nodes["a"].role is Role.LEADER
    assert cluster.nodes["a"].term_committed
    return cluster


def sent(effects: list[Effect]) -> list[ConsensusMessage]:
    return [effect.message for effect in effects if isinstance(effect, Send)]


def role(raft: Raft) -> str:
    return str(raft.role)


def pending(cluster: Cluster) -> Configuration | None:
    return cluster.nodes["a"].pending_configuration


def append(term: int, prev: tuple[int, int], *terms: int, commit: int = 0) -> Append:
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


def follower(*terms: int, term: int | None = None, commit: int = 0) -> tuple[Cluster, Raft]:
    cluster = Cluster()
    cluster.node("a", terms, configuration_of("abc"), term=term, commit=commit)
    return cluster, cluster.nodes["a"]


# --- timing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [(0, 500, 1000), (100, 299, 1000), (100, 500, 700)])
def test_times_that_do_not_fit_are_refused(values: tuple[int, int, int]) -> None:
    heartbeat_ms, least_ms, most_ms = values
    with pytest.raises(ValueError, match="_ms is"):
        Timing(heartbeat_ms=heartbeat_ms, election_min_ms=least_ms, election_max_ms=most_ms)


def test_time_outs_are_drawn_from_the_whole_range() -> None:
    """9.3: randomized time-outs."""
    disk = MemoryLog()
    drawn = {
        Raft(
            raft_id=A,
            storage=disk,
            timing=Timing(),
            random=Random(seed),
            applied_index=0,
            now_ms=10_000,
        ).next_deadline_ms()
        - 10_000
        for seed in range(300)
    }
    assert min(drawn) >= 500
    assert max(drawn) <= 1_000
    assert len(drawn) > 100


@pytest.mark.parametrize("late_ms", [0, 1, 5_000])
def test_after_a_tick_the_next_deadline_lies_ahead(late_ms: int) -> None:
    cluster = three()
    cluster.empty("d")
    for name in ("a", "b", "c", "d"):
        for _ in range(20):
            cluster.now_ms = max(cluster.now_ms, cluster.nodes[name].next_deadline_ms()) + late_ms
            cluster.tick(name)
            assert cluster.nodes[name].next_deadline_ms() > cluster.now_ms
            cluster.deliver()


def test_a_clock_that_goes_back_is_not_followed() -> None:
    cluster = three()
    deadline_ms = cluster.nodes["a"].next_deadline_ms()
    assert cluster.nodes["a"].tick(deadline_ms - 5_000) == []
    assert cluster.nodes["a"].next_deadline_ms() == deadline_ms


def test_what_was_committed_is_handed_out_at_once_after_a_restart() -> None:
    _, raft = follower(1, 1, commit=2)
    assert raft.next_deadline_ms() == 0
    raft.tick(0)
    assert raft.role is Role.FOLLOWER, "no needless election"
    assert raft.next_deadline_ms() == 500


@pytest.mark.parametrize("percent", [100, 101, 133, 250, 399, 400])
@pytest.mark.parametrize("values", [(100, 300, 450), (20, 61, 92), (1, 3, 5), (100, 500, 1_000)])
def test_times_stretched_still_fit_each_other(values: tuple[int, int, int], percent: int) -> None:
    heartbeat_ms, least_ms, most_ms = values
    timing = Timing(heartbeat_ms=heartbeat_ms, election_min_ms=least_ms, election_max_ms=most_ms)
    stretched = timing.stretched(percent)
    assert stretched.heartbeat_ms == heartbeat_ms
    assert stretched.election_min_ms == least_ms * percent // 100
    assert 0 <= stretched.election_max_ms - most_ms * percent / 100 < 1


def test_a_stretched_node_waits_longer_at_once_and_not_beyond_its_bounds() -> None:
    cluster, raft = follower(1)
    for percent, deadline_ms in ((200, 1_000), (1_000, 2_000), (10, 500), (400, 2_000)):
        raft.stretch(percent)
        assert raft.next_deadline_ms() == deadline_ms, percent
    cluster.now_ms = 1_500
    raft.tick(cluster.now_ms)
    assert raft.role is Role.FOLLOWER
    raft.stretch(100)
    assert raft.next_deadline_ms() == 500, "and shorter at once too"


def test_a_stretched_follower_trusts_its_leader_longer() -> None:
    cluster = three()
    request = VoteRequest(sender=C, to=B, term=9, last_index=9, last_term=9, pre=False)
    cluster.nodes["b"].stretch(200)
    assert cluster.nodes["b"].receive(request, cluster.now_ms + 999) == []
    assert cluster.nodes["b"].receive(request, cluster.now_ms + 1_000) != []


def test_a_stretched_leader_waits_longer_for_its_quorum_and_beats_as_before() -> None:
    cluster = three()
    cluster.nodes["a"].stretch(300)
    cluster.isolated = {"b", "c"}
    start_ms = cluster.now_ms
    beats = 0
    while role(cluster.nodes["a"]) == "leader":
        cluster.tick("a")
        cluster.deliver()
        beats += 1
    assert 3_000 <= cluster.now_ms - start_ms <= 6_000
    assert beats >= (cluster.now_ms - start_ms) // 100


# --- terms and votes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "granted"),
    [((3, 2), True), ((4, 2), True), ((1, 3), True), ((2, 2), False), ((9, 1), False)],
)
def test_a_vote_needs_a_log_as_new(last: tuple[int, int], *, granted: bool) -> None:
    """5.4.1."""
    cluster, raft = follower(1, 2, 2)
    request = VoteRequest(sender=B, to=A, term=3, last_index=last[0], last_term=last[1], pre=False)
    effects = raft.receive(request, cluster.now_ms)
    assert sent(effects) == [Vote(sender=A, to=B, term=3, granted=granted, pre=False)]
    assert isinstance(effects[0], Persist), "the promise is durable before it leaves"


def test_one_vote_a_term_also_over_a_restart() -> None:
    """5.2, and figure 2: votedFor is persistent."""
    cluster, _ = follower(1)
    request = VoteRequest(sender=B, to=A, term=2, last_index=5, last_term=1, pre=False)
    cluster.receive(request)
    cluster.start("a")
    cluster.messages.clear()
    cluster.receive(replace(request, sender=C))
    cluster.receive(request)
    votes = [m for m in cluster.messages if isinstance(m, Vote)]
    assert [(vote.to, vote.granted) for vote in votes] == [(C, False), (B, True)]


def test_a_pre_vote_promises_nothing() -> None:
    """9.6."""
    cluster, raft = follower(1)
    request = VoteRequest(sender=B, to=A, term=2, last_index=1, last_term=1, pre=True)
    for sender in (B, C):
        effects = raft.receive(replace(request, sender=sender), cluster.now_ms)
        assert effects == [Send(Vote(sender=A, to=sender, term=2, granted=True, pre=True))]
    assert raft.term == 1


def test_nobody_votes_while_a_leader_is_heard() -> None:
    """4.2.3."""
    cluster = three()
    for pre in (True, False):
        request = VoteRequest(sender=C, to=B, term=9, last_index=9, last_term=9, pre=pre)
        assert cluster.nodes["b"].receive(request, cluster.now_ms) == []
        assert cluster.nodes["a"].receive(replace(request, to=A), cluster.now_ms) == []
    assert cluster.nodes["b"].receive(request, cluster.now_ms + 600) != []


def test_a_late_candidate_learns_the_term() -> None:
    cluster, raft = follower(1, term=5)
    request = VoteRequest(sender=B, to=A, term=3, last_index=1, last_term=1, pre=False)
    assert sent(raft.receive(request, cluster.now_ms)) == [
        Vote(sender=A, to=B, term=5, granted=False, pre=False)
    ]


def test_old_votes_and_votes_of_others_elect_nobody() -> None:
    cluster = Cluster()
    cluster.mesh("abc", "d")
    cluster.campaign("a")
    raft = cluster.nodes["a"]
    assert role(raft) == "pre_candidate"
    yes = Vote(sender=RaftId("d"), to=A, term=2, granted=True, pre=True)
    raft.receive(yes, cluster.now_ms)
    raft.receive(replace(yes, sender=RaftId("stranger")), cluster.now_ms)
    assert role(raft) == "pre_candidate"
    raft.receive(replace(yes, sender=B), cluster.now_ms)
    assert role(raft) == "candidate"
    raft.receive(replace(yes, sender=C), cluster.now_ms)
    assert role(raft) == "candidate", "a pre-vote is no vote"
    raft.receive(replace(yes, sender=C, pre=False), cluster.now_ms)
    assert role(raft) == "leader"


def test_a_candidate_that_is_refused_by_a_majority_gives_up() -> None:
    cluster = Cluster()
    cluster.mesh("abc")
    cluster.campaign("a")
    for sender in (B, C):
        vote = Vote(sender=sender, to=A, term=1, granted=False, pre=True)
        cluster.nodes["a"].receive(vote, cluster.now_ms)
    assert cluster.nodes["a"].role is Role.FOLLOWER
    assert cluster.nodes["a"].term == 1


@pytest.mark.parametrize("kind", ["append", "heartbeat"])
def test_a_candidate_follows_a_leader_of_its_term(kind: str) -> None:
    """5.2."""
    cluster = Cluster()
    cluster.mesh("abc")
    cluster.campaign("a")
    cluster.receive(Vote(sender=B, to=A, term=2, granted=True, pre=True))
    raft = cluster.nodes["a"]
    assert raft.role is Role.CANDIDATE
    message: ConsensusMessage = (
        append(2, (1, 1), 2) if kind == "append" else Heartbeat(sender=B, to=A, term=2, commit=0)
    )
    cluster.receive(message)
    assert (raft.role, raft.leader, raft.term) == (Role.FOLLOWER, B, 2)


def test_two_leaders_of_one_term_stop_the_node() -> None:
    cluster = three()
    with pytest.raises(DivergenceError):
        cluster.receive(Heartbeat(sender=B, to=A, term=2, commit=0))
    with pytest.raises(DivergenceError):
        cluster.receive(Heartbeat(sender=C, to=B, term=2, commit=0))


def test_messages_for_another_data_directory_are_dropped() -> None:
    cluster = three()
    old = Heartbeat(sender=A, to=RaftId("b.old"), term=99, commit=0)
    assert cluster.nodes["b"].receive(old, cluster.now_ms) == []
    assert cluster.nodes["b"].receive(replace(old, sender=B, to=B), cluster.now_ms) == []
    assert cluster.nodes["b"].term == 2


def test_a_node_without_configuration_waits_and_accepts_a_leader() -> None:
    cluster = Cluster()
    cluster.empty("a")
    raft = cluster.nodes["a"]
    for _ in range(5):
        cluster.tick("a")
    assert (raft.role, raft.term, cluster.messages) == (Role.FOLLOWER, 0, [])
    cluster.receive(append(3, (0, 0), 1, 3, commit=1))
    assert (raft.term, raft.leader, raft.last_index, raft.commit_index) == (3, B, 2, 1)


# --- replication -------------------------------------------------------------------------------------


def test_a_follower_commits_no_further_than_what_came() -> None:
    """Figure 2, AppendEntries 5: behind the last new entry its log may differ."""
    cluster, raft = follower(1, 1, 1, 1)
    cluster.receive(append(2, (1, 1), 1, commit=4))
    assert raft.commit_index == 2
    cluster.receive(append(2, (2, 1), commit=4))
    assert raft.commit_index == 2


def test_a_follower_answers_old_appends_with_what_is_committed() -> None:
    cluster, raft = follower(1, 1, 1, commit=3)
    effects = raft.receive(append(1, (1, 1), 1), cluster.now_ms)
    assert sent(effects) == [AppendAck(sender=A, to=B, term=1, ok=True, index=3)]


def test_an_acknowledgement_stands_behind_the_write() -> None:
    cluster, raft = follower(1)
    effects = raft.receive(append(2, (1, 1), 2), cluster.now_ms)
    kinds = [type(effect) for effect in effects]
    assert kinds.index(Persist) < kinds.index(Send)
    assert not any(isinstance(effect, Send) and effect.before_sync for effect in effects)


def test_a_leader_of_an_earlier_term_learns_it() -> None:
    cluster, raft = follower(1, term=7)
    early: list[ConsensusMessage] = [
        append(3, (1, 1), 3),
        Heartbeat(sender=B, to=A, term=3, commit=0),
    ]
    for message in early:
        (answer,) = sent(raft.receive(message, cluster.now_ms))
        assert isinstance(answer, AppendAck)
        assert (answer.ok, answer.term) == (False, 7)
    late: list[ConsensusMessage] = [
        AppendAck(sender=B, to=A, term=3, ok=True, index=1),
        HeartbeatAck(sender=B, to=A, term=3),
    ]
    for message in late:
        assert raft.receive(message, cluster.now_ms) == []


def test_nothing_of_a_term_leaves_early_before_the_term_is_durable() -> None:
    """A sole voter leads before its first sync; a crash could make it use the same term twice."""
    cluster = Cluster()
    cluster.node("a", [1], configuration_of("a", "b"))
    cluster.empty("b")
    cluster.hold("a")
    cluster.tick("a")
    cluster.propose("a", "x")
    assert cluster.nodes["a"].role is Role.LEADER
    assert cluster.messages == []
    cluster.sync("a")
    assert any(isinstance(message, Append) for message in cluster.messages)
    cluster.deliver()
    cluster.hold("a")
    cluster.propose("a", "y")
    assert any(isinstance(message, Append) for message in cluster.messages), "later ones do"


def test_the_window_bounds_what_is_on_its_way() -> None:
    cluster = three(Limits(append_entries_max=1, window_appends_max=4))
    for number in range(20):
        cluster.propose("a", str(number))
    for name in "bc":
        assert len([m for m in cluster.messages if m.to == name]) <= 4
    cluster.deliver()
    assert {raft.commit_index for raft in cluster.nodes.values()} == {22}


def test_the_window_grows_with_what_arrives_and_starts_again_after_a_gap() -> None:
    cluster = three(Limits(append_entries_max=1))
    cluster.isolated = {"c"}
    for number in range(40):
        cluster.propose("a", str(number))
    lengths = []
    for _ in range(8):
        appends = [m for m in cluster.take("a", "b") if isinstance(m, Append)]
        lengths.append(len(appends))
        for message in [*appends, *cluster.take("b", "a")]:
            cluster.receive(message)
        for message in cluster.take("b", "a"):
            cluster.receive(message)
    assert max(lengths) > 4 * lengths[0]
    refusal = AppendAck(sender=B, to=A, term=2, ok=False, index=99, hint_index=2, hint_term=2)
    cluster.receive(refusal)
    assert len([m for m in cluster.take("a", "b") if isinstance(m, Append)]) <= 1


def test_large_entries_travel_apart() -> None:
    cluster = three(Limits(append_bytes_max=100))
    cluster.propose("a", "x" * 90, "y" * 90, "z" * 90)
    cluster.deliver()
    assert [len(entry.data) for entry in cluster.applied["b"]][-3:] == [90, 90, 90]


def test_answers_of_strangers_and_of_the_future_count_for_nothing() -> None:
    cluster = three()
    cluster.propose("a", "x")
    before = cluster.nodes["a"].commit_index
    cluster.receive(AppendAck(sender=RaftId("s"), to=A, term=2, ok=True, index=4))
    cluster.receive(AppendAck(sender=B, to=A, term=2, ok=True, index=1_000))
    cluster.receive(HeartbeatAck(sender=RaftId("s"), to=A, term=2))
    assert cluster.nodes["a"].commit_index == before


def test_a_doubled_refusal_changes_nothing() -> None:
    cluster = three()
    old = AppendAck(sender=B, to=A, term=2, ok=False, index=1, hint_index=0, hint_term=0)
    cluster.receive(old)
    assert cluster.messages == []
    assert cluster.nodes["a"].progress()[0].match == 2


def test_a_partitioned_leader_piles_up_only_so_much() -> None:
    cluster = three(Limits(uncommitted_entries_max=10, uncommitted_bytes_max=100))
    cluster.isolated = {"b", "c"}
    cluster.propose("a", "x" * 60)
    with pytest.raises(BusyError):
        cluster.propose("a", "y" * 60)
    cluster.propose("a", *"1234")
    with pytest.raises(BusyError):
        cluster.propose("a", *"567890")
    cluster.isolated = set()
    cluster.messages.clear()
    for _ in range(3):
        cluster.tick("a")
        cluster.deliver()
    cluster.propose("a", "y" * 60)


def test_a_command_above_the_limit_is_refused() -> None:
    cluster = three()
    with pytest.raises(UsageError):
        cluster.nodes["a"].propose([b"x" * (ENTRY_BYTES_MAX + 1)], cluster.now_ms)


def test_only_a_leader_takes_proposals_and_changes() -> None:
    cluster = three()
    with pytest.raises(NotLeaderError):
        cluster.propose("b", "x")
    with pytest.raises(NotLeaderError):
        cluster.change("b", configuration_of("ab"))
    assert cluster.nodes["b"].progress() == ()


def test_proposals_take_consecutive_indexes() -> None:
    cluster = three()
    indexes, effects = cluster.nodes["a"].propose([b"x", b"y"], cluster.now_ms)
    assert indexes == range(3, 5)
    cluster.perform("a", effects)
    cluster.deliver()
    assert [entry.data for entry in cluster.applied["c"]][-2:] == [b"x", b"y"]


def test_commits_wait_for_the_ledger() -> None:
    cluster = Cluster(Limits(applying_entries_max=2))
    cluster.found("a")
    raft = cluster.nodes["a"]
    cluster.tick("a")
    applied_before = raft.applied_index
    _, effects = raft.propose([b"1", b"2", b"3", b"4", b"5"], cluster.now_ms)
    cluster.perform("a", effects)
    assert applied_before == 2
    assert [entry.index for entry in cluster.applied["a"]] == list(range(1, 8))
    commits = [line for line in cluster.lines if line.startswith("a: commit")]
    assert max(line.count("/") for line in commits) <= 2


# --- membership ------------------------------------------------------------------------------------


def test_a_newcomer_counts_from_the_entry_that_adds_it() -> None:
    """4.1: a configuration is in force as soon as it is in the log."""
    cluster = Cluster()
    cluster.found("a")
    cluster.tick("a")
    cluster.empty("b")
    cluster.change("a", configuration_of("ab"))
    assert pending(cluster) == configuration_of("ab")
    assert cluster.nodes["a"].commit_index == 2
    cluster.deliver()
    assert pending(cluster) is None
    assert cluster.nodes["b"].configuration == configuration_of("ab")


def test_a_configuration_that_is_replaced_in_the_log_is_not_in_force() -> None:
    cluster, raft = follower(1)
    cluster.receive(
        Append(
            sender=B,
            to=A,
            term=2,
            prev_index=1,
            prev_term=1,
            entries=(Entry(2, 2, "configuration", configuration_of("ab").encode()),),
            commit=0,
        )
    )
    assert raft.configuration == configuration_of("ab")
    cluster.receive(replace(append(3, (1, 1), 3), sender=C))
    assert raft.configuration == configuration_of("abc")


def test_a_change_waits_for_the_leaders_own_term() -> None:
    """Ongaro, raft-dev 2015: else two majorities need not meet."""
    cluster = Cluster()
    cluster.mesh("abc")
    cluster.campaign("a")
    cluster.deliver("a", "b", rounds=1)
    cluster.deliver("b", "a", rounds=1)
    cluster.deliver("a", "b", rounds=1)
    cluster.deliver("b", "a", rounds=1)
    raft = cluster.nodes["a"]
    assert raft.role is Role.LEADER
    assert not raft.term_committed
    with pytest.raises(ConflictError):
        cluster.change("a", configuration_of("abcd"))


def test_a_change_waits_for_it_although_no_other_change_is_open() -> None:
    cluster = Cluster()
    for name in "abc":
        cluster.node(name, [1, 1], configuration_of("abc"), commit=2)
    cluster.campaign("a")
    cluster.deliver(rounds=4)
    raft = cluster.nodes["a"]
    assert raft.role is Role.LEADER
    assert raft.pending_configuration is None
    with pytest.raises(ConflictError):
        cluster.change("a", configuration_of("abcd"))
    cluster.deliver()
    cluster.change("a", configuration_of("abcd"))


def test_silence_shows_in_progress() -> None:
    cluster = three()
    assert [(p.raft_id, p.match, p.active) for p in cluster.nodes["a"].progress()] == [
        (B, 2, True),
        (C, 2, True),
    ]
    cluster.isolated = {"c"}
    for _ in range(15):
        cluster.tick("a")
        cluster.deliver()
    assert [p.active for p in cluster.nodes["a"].progress()] == [True, False]


def test_the_quorum_is_checked_by_what_was_heard_since_the_last_check() -> None:
    cluster = three()
    cluster.isolated = {"b"}
    for _ in range(40):
        cluster.tick("a")
        cluster.deliver()
    assert role(cluster.nodes["a"]) == "leader", "c is enough"
    cluster.isolated = {"b", "c"}
    start_ms = cluster.now_ms
    while role(cluster.nodes["a"]) == "leader":
        cluster.tick("a")
        cluster.deliver()
    assert cluster.now_ms - start_ms <= 2_000


# --- who may campaign --------------------------------------------------------------------------------


@pytest.mark.parametrize("is_decided", [False, True])
def test_a_demoted_voter_leads_its_demotion_to_the_end(*, is_decided: bool) -> None:
    """4.2.2: it may be the only one that holds the change, and votes for no shorter log."""
    log = MemoryLog()
    both, alone = Configuration.of([A, B]), Configuration.of([A], [B])
    entries = [
        Entry(index, 1, "configuration", configuration.encode())
        for index, configuration in enumerate([both, alone], 1)
    ]
    log.persist(HardState(term=1, commit=2 if is_decided else 1), entries)
    demoted = Raft(
        raft_id=B, storage=log, timing=Timing(), random=Random(1), applied_index=1, now_ms=0
    )
    asked = [m.to for m in sent(demoted.tick(5_000)) if isinstance(m, VoteRequest)]
    assert asked == ([] if is_decided else [A])
    if is_decided:
        return
    granted = Vote(sender=A, to=B, term=2, granted=True, pre=True)
    demoted.receive(granted, 5_001)
    demoted.receive(replace(granted, pre=False), 5_002)
    assert role(demoted) == "leader"
    demoted.persisted(3, 2, 5_003)
    demoted.receive(AppendAck(sender=A, to=B, term=2, ok=True, index=3), 5_004)
    assert demoted.commit_index == 3
    assert role(demoted) == "follower"
