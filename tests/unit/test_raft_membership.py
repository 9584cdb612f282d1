from dataclasses import replace
from itertools import combinations, pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.codec import pack
from mesh.errors import WireError
from mesh.ids import RaftId
from mesh.membership import (
    PARKED_MS,
    PROMOTE_BEHIND_MAX,
    REPLACE_MS,
    STEADY_MS,
    SUSPECT_MS,
    AutopilotView,
    Configuration,
    MemberView,
    PeerView,
    PeerWatch,
    changed_voters,
    election_outcome,
    founding_entries,
    is_growing,
    majority_index,
    next_change,
    quorum_of,
    target_voters,
)
from mesh.replication import FollowerStatus

A, B, C, D, E = (RaftId(f"{name}.0") for name in "abcde")
MESH = tuple(RaftId(f"{name}.0") for name in "abcdefghi")


# --- configurations ------------------------------------------------------------------------------


def test_a_configuration_survives_the_log() -> None:
    configuration = Configuration.of([B, A], [D, C])
    assert configuration == Configuration((A, B), (C, D))
    assert Configuration.decode(configuration.encode()) == configuration


@pytest.mark.parametrize(
    ("voters", "learners"), [((), ()), ((), (A,)), ((A, A), ()), ((A,), (A,)), ((B, A), ())]
)
def test_impossible_configurations_are_refused(
    voters: tuple[RaftId, ...], learners: tuple[RaftId, ...]
) -> None:
    with pytest.raises(ValueError, match=r"configuration|sorted"):
        Configuration(voters, learners)
    fields = {"voters": voters, "learners": learners}
    with pytest.raises(WireError):
        Configuration.decode(pack((1, "configuration", fields)))


def test_steps_from_one_configuration_to_the_next() -> None:
    start = Configuration.of([A, B], [C])
    assert start.with_voter(C) == Configuration.of([A, B, C])
    assert start.with_voter(D) == Configuration.of([A, B, D], [C])
    assert start.with_learner(B) == Configuration.of([A], [B, C])
    assert start.with_learner(D) == Configuration.of([A, B], [C, D])
    assert start.without(B) == Configuration.of([A], [C])
    assert start.without(C) == Configuration.of([A, B])
    assert start.quorum == 2
    assert changed_voters(start, start.with_voter(C)) == (C,)
    with pytest.raises(ValueError, match="without a voter"):
        Configuration.of([A]).without(A)


def test_the_founder_alone_votes() -> None:
    hard_state, entries = founding_entries(A)
    assert (hard_state.term, hard_state.vote, hard_state.commit) == (1, A, 1)
    assert [(e.index, e.term, e.kind) for e in entries] == [(1, 1, "configuration")]
    assert Configuration.decode(entries[0].data) == Configuration.of([A])


# --- quorum arithmetic, against its definition -----------------------------------------------------


def is_majority(some: int, of: int) -> bool:
    return some > of - some


def obvious_majority_index(voters: tuple[RaftId, ...], held: dict[RaftId, int]) -> int:
    """The highest index such that the voters holding it are more than those that do not."""
    return max(
        index
        for index in range(max(held.values()) + 1)
        if is_majority(sum(1 for voter in voters if held[voter] >= index), len(voters))
    )


def obvious_outcome(voters: tuple[RaftId, ...], votes: dict[RaftId, bool]) -> str:
    """Won or lost when every way of filling in the missing votes gives that."""
    missing = [voter for voter in voters if voter not in votes]
    results = {
        is_majority(sum(votes.get(voter, voter in yes) for voter in voters), len(voters))
        for count in range(len(missing) + 1)
        for yes in combinations(missing, count)
    }
    return "open" if len(results) == 2 else "won" if True in results else "lost"


def test_quorums_agree_with_their_definition() -> None:
    random = Random(1)
    for _ in range(5_000):
        voters = tuple(sorted(random.sample(MESH, random.randrange(1, 8))))
        held = {voter: random.randrange(12) for voter in voters}
        assert majority_index(voters, held.__getitem__) == obvious_majority_index(voters, held)
        answered = random.sample(MESH, random.randrange(len(MESH) + 1))
        votes = {voter: random.random() < 0.5 for voter in answered}
        assert election_outcome(voters, votes) == obvious_outcome(voters, votes)


def test_any_two_majorities_one_step_apart_share_a_voter() -> None:
    for size in range(1, 7):
        smaller, larger = MESH[:size], MESH[: size + 1]
        for left in combinations(smaller, quorum_of(size)):
            for right in combinations(larger, quorum_of(size + 1)):
                assert set(left) & set(right)


# --- autopilot -------------------------------------------------------------------------------------


def view(
    configuration: Configuration,
    members: tuple[RaftId, ...],
    *,
    leader: RaftId = A,
    match: dict[RaftId, int] | None = None,
    silent: tuple[RaftId, ...] = (),
    silent_ms: int = 1_500,
    witnesses: tuple[RaftId, ...] = (),
    leaving: tuple[RaftId, ...] = (),
    unheard: tuple[RaftId, ...] = (),
    flapping: tuple[RaftId, ...] = (),
    steady_ms: int = STEADY_MS,
) -> AutopilotView:
    return AutopilotView(
        leader=leader,
        configuration=configuration,
        members=tuple(
            MemberView(
                raft_id=raft,
                role="witness" if raft in witnesses else "full",
                heard=raft not in unheard and raft not in silent,
                leaving=raft in leaving,
            )
            for raft in members
        ),
        peers=tuple(
            PeerView(
                raft_id=raft,
                match=(match or {}).get(raft, 1_000),
                active=raft not in silent,
                silent_ms=silent_ms if raft in silent else 0,
                steady_ms=0 if raft in silent else steady_ms,
                broke=raft in flapping,
            )
            for raft in configuration.ids
            if raft != leader
        ),
        last_index=1_000,
        change_pending=False,
        term_committed=True,
    )


def of(voters: str, learners: str = "") -> Configuration:
    return Configuration.of(
        (RaftId(f"{v}.0") for v in voters), (RaftId(f"{v}.0") for v in learners)
    )


def members(names: str) -> tuple[RaftId, ...]:
    return tuple(RaftId(f"{name}.0") for name in names)


def test_target_is_one_three_or_five() -> None:
    assert [target_voters(count) for count in range(1, 10)] == [1, 1, 3, 3, 3, 3, 5, 5, 5]


def test_nothing_changes_while_something_is_undecided() -> None:
    ready = view(of("a"), members("ab"))
    assert next_change(ready) == of("a", "b")
    assert next_change(replace(ready, change_pending=True)) is None
    assert next_change(replace(ready, term_committed=False)) is None
    assert next_change(replace(ready, members=())) is None


@pytest.mark.parametrize("size", range(1, 10))
def test_a_mesh_that_grows_ends_with_its_target(size: int) -> None:
    configuration = of("a")
    everybody = MESH[:size]
    for _ in range(3 * size):
        changed = next_change(view(configuration, everybody, steady_ms=0))
        if changed is None:
            break
        assert len(changed_voters(configuration, changed)) <= 1
        configuration = changed
    assert len(configuration.voters) == target_voters(size)
    assert set(configuration.ids) == set(everybody)


def test_two_voters_only_on_the_way_to_three() -> None:
    # With one learner ready, two voters would stop when either is lost: wait for the second.
    assert next_change(view(of("a", "bc"), members("abc"), silent=(C,))) is None
    assert next_change(view(of("a", "bc"), members("abc"))) == of("ab", "c")
    assert next_change(view(of("ab", "c"), members("abc"))) == of("abc")


def test_two_voters_do_not_last_when_the_third_is_lost_on_the_way() -> None:
    half = of("ab", "c")
    assert next_change(view(half, members("abc"), silent=(C,))) == of("a", "bc")
    # It answers and only lacks entries: it is waited for.
    assert next_change(view(half, members("abc"), match={C: 0})) is None
    # And b itself is not there to commit anything but its own demotion.
    assert next_change(view(half, members("abc"), silent=(B, C))) == of("a", "bc")


def test_who_flaps_is_promoted_when_it_was_steady_again() -> None:
    three = of("a", "bc")
    everybody = members("abc")
    newcomers = view(three, everybody, steady_ms=0)
    assert next_change(newcomers) == of("ab", "c")
    flapping = view(three, everybody, steady_ms=STEADY_MS - 1, flapping=(C,))
    assert next_change(flapping) is None
    assert next_change(view(three, everybody, flapping=(C,))) == of("ab", "c")
    # The third of three costs no quorum: it need not be steady.
    late = view(of("ab", "c"), everybody, steady_ms=0, flapping=(C,))
    assert next_change(late) == of("abc")


def test_only_live_learners_below_the_target_are_on_their_way() -> None:
    two, three = Configuration.of([A], [B]), Configuration.of([A], [B, C])
    assert not is_growing(view(two, (A, B)))
    assert is_growing(view(three, (A, B, C)))
    assert not is_growing(view(three, (A, B, C), silent=(C,)))
    assert is_growing(view(Configuration.of([A, B], [C]), (A, B, C)))
    assert not is_growing(view(Configuration.of([A, B, C], [D]), (A, B, C, D)))


def test_only_a_learner_that_caught_up_is_promoted() -> None:
    just = {C: 1_000 - PROMOTE_BEHIND_MAX - 1, D: 1_000 - PROMOTE_BEHIND_MAX}
    changed = next_change(view(of("ab", "cd"), members("abcd"), match=just))
    assert changed == of("abd", "c")


def test_a_witness_votes_first() -> None:
    changed = next_change(view(of("a", "bcd"), members("abcd"), witnesses=(D,)))
    assert changed == of("ad", "bc")


def test_a_voter_silent_for_a_minute_is_replaced_the_stand_in_first() -> None:
    four = members("abcd")
    for silent_ms in (0, SUSPECT_MS, REPLACE_MS - 1):
        assert next_change(view(of("abc", "d"), four, silent=(B,), silent_ms=silent_ms)) is None
    lost = view(of("abc", "d"), four, silent=(B,), silent_ms=REPLACE_MS)
    assert next_change(lost) == of("abcd")
    assert next_change(view(of("abcd"), four, silent=(B,), silent_ms=REPLACE_MS)) == of("acd", "b")
    assert next_change(view(of("acd", "b"), four, silent=(B,), silent_ms=REPLACE_MS)) is None
    # Back in between: somebody is a voter too many all the same.
    assert next_change(view(of("abcd"), four)) == of("abc", "d")


def test_silence_alone_never_shrinks_the_set() -> None:
    assert (
        next_change(view(of("abc"), members("abc"), silent=(B,), silent_ms=2 * PARKED_MS)) is None
    )
    # A stand-in that is not steady, not level or silent itself is none.
    four, lost = members("abcd"), {"silent": (B,), "silent_ms": REPLACE_MS}
    just_came = view(of("abc", "d"), four, steady_ms=STEADY_MS - 1, **lost)  # type: ignore[arg-type]  # see above
    assert next_change(just_came) is None
    assert next_change(view(of("abc", "d"), four, match={D: 0}, **lost)) is None  # type: ignore[arg-type]  # see above
    assert next_change(view(of("abc", "d"), four, silent=(B, D), silent_ms=REPLACE_MS)) is None


def test_of_two_silent_voters_the_one_silent_for_longer_goes() -> None:
    seven = members("abcdefg")
    start = view(of("abcdef", "g"), seven, silent=(C, D))
    peers = tuple(
        replace(peer, silent_ms=90_000) if peer.raft_id == C else peer for peer in start.peers
    )
    assert next_change(replace(start, peers=peers)) == of("abdef", "cg")


def test_a_learner_away_for_days_is_left_out_and_returns_when_heard() -> None:
    four = members("abcd")
    almost = view(of("abc", "d"), four, silent=(D,), silent_ms=PARKED_MS - 1)
    assert next_change(almost) is None
    gone = view(of("abc", "d"), four, silent=(D,), silent_ms=PARKED_MS)
    assert next_change(gone) == of("abc")
    # It says hello and only its log is silent: left out, it would be taken in again at once.
    greeting = tuple(replace(member, heard=True) for member in gone.members)
    assert next_change(replace(gone, members=greeting)) is None
    assert next_change(view(of("abc"), four, unheard=(D,))) is None
    assert next_change(view(of("abc"), four)) == of("abc", "d")
    # The members still count: three voters of seven would follow from silence otherwise.
    assert next_change(view(of("abcde"), members("abcdefg"), unheard=MESH[5:7])) is None


def test_who_goes_politely_is_replaced_at_once() -> None:
    four = members("abcd")
    assert next_change(view(of("abc", "d"), four, leaving=(B,), steady_ms=0)) == of("abcd")
    assert next_change(view(of("abcd"), four, leaving=(B,))) == of("acd", "b")
    assert next_change(view(of("acd", "b"), four, leaving=(B,))) is None
    # Without a stand-in it keeps its vote: it will return.
    assert next_change(view(of("abc"), members("abc"), leaving=(B,))) is None
    assert next_change(view(of("abc", "d"), four, leaving=(B, D))) is None


def test_with_two_nodes_the_vote_moves_to_the_one_that_stays() -> None:
    two = members("ab")
    assert next_change(view(of("a", "b"), two, leaving=(A,))) == of("ab")
    # The lead is handed over before anything else; then the new leader demotes the old one.
    assert next_change(view(of("ab"), two, leaving=(A,))) is None
    assert next_change(view(of("ab"), two, leader=B, leaving=(A,))) == of("b", "a")
    assert next_change(view(of("b", "a"), two, leader=B, leaving=(A,), silent=(A,))) is None
    # Both go, or the other is not there: it stays as it is.
    assert next_change(view(of("a", "b"), two, leaving=(A, B))) is None
    assert next_change(view(of("a", "b"), two, leaving=(A,), silent=(B,))) is None
    # The learner goes: nothing to do.
    assert next_change(view(of("a", "b"), two, leaving=(B,))) is None


def test_who_left_is_taken_out_learners_first() -> None:
    assert next_change(view(of("abc", "d"), members("ab"))) == of("abc")
    assert next_change(view(of("abc"), members("ab"))) == of("ab")
    # Two members: one vote.
    assert next_change(view(of("ab"), members("ab"))) == of("a", "b")


def test_a_leader_that_belongs_no_more_takes_itself_out_last() -> None:
    assert next_change(view(of("abc"), members("c"))) == of("ac")
    assert next_change(view(of("abc"), members("bc"))) == of("bc")
    # Of two it hands over the lead first, see `_removal`.
    assert next_change(view(of("ac"), members("c"))) is None
    assert next_change(view(of("ac"), members("c"), leader=C)) == of("c")
    assert next_change(view(of("a"), members("b"))) == of("a", "b")
    # It alone votes: a stand-in first.
    assert next_change(view(of("a", "b"), members("b"))) == of("ab")
    assert next_change(view(of("a", "b"), members("b"), silent=(B,))) is None


def test_a_stand_in_comes_first_where_the_rest_could_not_decide() -> None:
    # c was removed and still answers, b is silent: without c, a and b could decide nothing.
    assert next_change(view(of("abc", "d"), members("abd"), silent=(B,))) == of("abcd")
    assert next_change(view(of("abcd"), members("abd"), silent=(B,))) == of("abd")


def test_a_new_data_directory_replaces_the_old_one() -> None:
    renewed = RaftId("c.1")
    steps = [of("abc")]
    while (changed := next_change(view(steps[-1], (A, B, renewed), silent=(C,)))) is not None:
        steps.append(changed)
    assert steps[1:] == [
        Configuration.of([A, B, C], [renewed]),
        Configuration.of([A, B], [renewed]),
        Configuration.of([A, B, renewed]),
    ]


def test_no_change_whose_own_majority_is_out_of_reach() -> None:
    # b and c do not answer, d was revoked: of a, b, c, e three would be needed.
    assert next_change(view(of("abcde"), members("abce"), silent=(B, C, D))) is None
    assert next_change(view(of("abcde"), members("abce"), silent=(C, D))) is not None


def test_too_many_voters_the_silent_one_goes_and_the_leader_stays() -> None:
    five = members("abcde")
    assert next_change(view(of("abcde"), five, leader=E)) == of("abce", "d")
    assert next_change(view(of("abcde"), five, silent=(C,))) == of("abde", "c")
    assert next_change(view(of("abcde"), five, witnesses=(E,))) == of("abce", "d")


# --- the watch -------------------------------------------------------------------------------------


def test_the_watch_tells_silence_and_steadiness() -> None:
    watch = PeerWatch()

    def look(now_ms: int, *active: bool) -> tuple[PeerView, ...]:
        followed = zip((B, C), active, strict=False)
        return watch.look(
            [
                FollowerStatus(raft_id=raft, match=7, active=is_active)
                for raft, is_active in followed
            ],
            now_ms,
        )

    (fresh,) = look(1_000, True)
    assert (fresh.active, fresh.silent_ms, fresh.steady_ms, fresh.broke) == (True, 0, 0, False)
    # c is new and was never heard: silent since it is followed, but it never broke off.
    b, c = look(3_000, True, False)
    assert (b.steady_ms, b.silent_ms) == (2_000, 0)
    assert (c.steady_ms, c.silent_ms, c.broke) == (0, 0, False)
    b, c = look(15_000, False, True)
    assert (b.silent_ms, b.steady_ms, b.broke, b.is_suspect) == (12_000, 0, True, True)
    assert (c.silent_ms, c.steady_ms, c.broke) == (0, 0, False)
    b, c = look(16_000, True, True)
    assert (b.silent_ms, b.steady_ms, b.broke, b.is_suspect) == (0, 0, True, False)
    assert c.steady_ms == 1_000
    # Followed no more, then again: it begins anew.
    look(17_000, True)
    b, c = look(18_000, True, True)
    assert (b.steady_ms, c.steady_ms) == (2_000, 0)


# --- properties ------------------------------------------------------------------------------------


@st.composite
def situations(draw: st.DrawFn) -> AutopilotView:
    """Any mesh whose leader has a quorum, as it has to be to lead."""
    ids = list(MESH[: draw(st.integers(1, 9))])
    placed = draw(st.lists(st.sampled_from(ids), unique=True, min_size=1))
    voters = placed[: draw(st.integers(1, min(len(placed), 6)))]
    configuration = Configuration.of(voters, (raft for raft in placed if raft not in voters))
    leader = draw(st.sampled_from(sorted(voters)))
    others = sorted(set(voters) - {leader})
    heard = draw(st.permutations(others))[: configuration.quorum - 1]
    active = {leader, *heard} | {raft for raft in ids if draw(st.booleans())}
    known = [raft for raft in ids if draw(st.integers(0, 5))] or [leader]
    return AutopilotView(
        leader=leader,
        configuration=configuration,
        members=tuple(
            MemberView(
                raft_id=raft,
                role=draw(st.sampled_from(["full", "full", "witness"])),
                heard=raft in active,
                leaving=draw(st.integers(0, 7)) == 0,
            )
            for raft in known
        ),
        peers=tuple(_peer(draw, raft, active=raft in active) for raft in ids if raft != leader),
        last_index=1_000,
        change_pending=False,
        term_committed=True,
    )


def _peer(draw: st.DrawFn, raft: RaftId, *, active: bool) -> PeerView:
    times = st.sampled_from([0, SUSPECT_MS, STEADY_MS, REPLACE_MS, PARKED_MS])
    return PeerView(
        raft_id=raft,
        match=draw(st.sampled_from([0, 1_000, 1_000, 1_000])),
        active=active,
        silent_ms=0 if active else draw(times),
        steady_ms=draw(times) if active else 0,
        broke=draw(st.booleans()),
    )


def settled(start: AutopilotView) -> list[Configuration]:
    """All configurations until nothing changes any more, while nobody comes, goes or catches up."""
    steps = [start.configuration]
    while (changed := next_change(replace(start, configuration=steps[-1]))) is not None:
        steps.append(changed)
        assert len(steps) < 60, "the autopilot goes in circles"
    return steps


def reachable(situation: AutopilotView, configuration: Configuration) -> bool:
    active = {peer.raft_id for peer in situation.peers if peer.active} | {situation.leader}
    return len(active & set(configuration.voters)) >= configuration.quorum


@given(situations())
def test_each_step_is_single_and_keeps_its_quorum(situation: AutopilotView) -> None:
    steps = settled(situation)
    for before, after in pairwise(steps):
        assert len(changed_voters(before, after)) <= 1
        assert reachable(situation, after), (before, after)
        # The leader takes itself out only when it belongs no more.
        if situation.leader not in after.voters:
            assert situation.member(situation.leader) is None
            break


@given(situations())
def test_an_even_set_is_always_on_its_way(situation: AutopilotView) -> None:
    end = settled(situation)[-1]
    if len(end.voters) % 2:
        return
    leader = situation.member(situation.leader)
    members_ids = {member.raft_id for member in situation.members}
    waits_for_a_learner = any(
        peer.active and peer.raft_id in end.learners for peer in situation.peers
    )
    assert (
        leader is None  # it goes itself
        or leader.leaving  # it hands over the lead first
        or waits_for_a_learner
        or not members_ids >= set(end.ids)  # somebody gone without whom nobody could decide
    ), end


@given(situations())
def test_silence_never_shrinks_the_set(situation: AutopilotView) -> None:
    known = {member.raft_id for member in situation.members}
    start = situation.configuration
    if len(start.voters) % 2 and known >= set(start.ids):
        least = min(len(start.voters), target_voters(len(known)))
        assert len(settled(situation)[-1].voters) >= least


@given(situations())
def test_where_all_answer_and_stay_the_target_is_reached(situation: AutopilotView) -> None:
    calm = replace(
        situation,
        members=tuple(
            MemberView(raft_id=raft, role="full")
            for raft in sorted(
                {member.raft_id for member in situation.members} | {situation.leader}
            )
        ),
        peers=tuple(PeerView(raft_id=raft, match=1_000, active=True) for raft in MESH),
    )
    end = settled(calm)[-1]
    assert set(end.ids) == {member.raft_id for member in calm.members}
    assert len(end.voters) == target_voters(len(calm.members))
