from dataclasses import replace
from itertools import combinations
from random import Random

import pytest

from mesh.codec import pack
from mesh.errors import WireError
from mesh.ids import RaftId
from mesh.membership import (
    PROMOTE_BEHIND_MAX,
    AutopilotView,
    Configuration,
    MemberView,
    PeerView,
    changed_voters,
    election_outcome,
    founding_entries,
    majority_index,
    next_change,
    quorum_of,
    target_voters,
)

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
    witnesses: tuple[RaftId, ...] = (),
) -> AutopilotView:
    return AutopilotView(
        leader=leader,
        configuration=configuration,
        members=tuple(
            MemberView(raft_id=raft, role="witness" if raft in witnesses else "full")
            for raft in members
        ),
        peers=tuple(
            PeerView(raft_id=raft, match=(match or {}).get(raft, 1_000), active=raft not in silent)
            for raft in configuration.ids
            if raft != leader
        ),
        last_index=1_000,
        change_pending=False,
        term_committed=True,
    )


def test_target_is_one_three_or_five() -> None:
    assert [target_voters(members) for members in range(1, 10)] == [1, 1, 3, 3, 3, 3, 5, 5, 5]


def test_nothing_changes_while_something_is_undecided() -> None:
    ready = view(Configuration.of([A]), (A, B))
    assert next_change(ready) == Configuration.of([A], [B])
    assert next_change(replace(ready, change_pending=True)) is None
    assert next_change(replace(ready, term_committed=False)) is None
    assert next_change(replace(ready, members=())) is None


@pytest.mark.parametrize("size", range(1, 10))
def test_a_mesh_that_grows_ends_with_its_target(size: int) -> None:
    configuration = Configuration.of([A])
    members = MESH[:size]
    for _ in range(3 * size):
        changed = next_change(view(configuration, members))
        if changed is None:
            break
        assert len(changed_voters(configuration, changed)) <= 1
        configuration = changed
    assert len(configuration.voters) == target_voters(size)
    assert set(configuration.ids) == set(members)


def test_two_voters_only_on_the_way_to_three() -> None:
    # With one learner ready, two voters would stop when either is lost: wait for the second.
    two_ready = Configuration.of([A], [B, C])
    assert next_change(view(two_ready, (A, B, C), silent=(C,))) is None
    assert next_change(view(two_ready, (A, B, C))) == Configuration.of([A, B], [C])
    assert next_change(view(Configuration.of([A, B], [C]), (A, B, C))) == Configuration.of(
        [A, B, C]
    )


def test_only_a_learner_that_caught_up_is_promoted() -> None:
    configuration = Configuration.of([A, B], [C, D])
    just = {C: 1_000 - PROMOTE_BEHIND_MAX - 1, D: 1_000 - PROMOTE_BEHIND_MAX}
    changed = next_change(view(configuration, (A, B, C, D), match=just))
    assert changed == Configuration.of([A, B, D], [C])


def test_a_witness_votes_first() -> None:
    configuration = Configuration.of([A], [B, C, D])
    changed = next_change(view(configuration, (A, B, C, D), witnesses=(D,)))
    assert changed == Configuration.of([A, D], [B, C])


def test_who_left_is_taken_out_learners_first() -> None:
    configuration = Configuration.of([A, B, C], [D])
    assert next_change(view(configuration, (A, B))) == Configuration.of([A, B, C])
    assert next_change(view(Configuration.of([A, B, C]), (A, B))) == Configuration.of([A, B])
    # Two members: one vote.
    assert next_change(view(Configuration.of([A, B]), (A, B))) == Configuration.of([A], [B])


def test_a_revoked_leader_takes_itself_out_last() -> None:
    configuration = Configuration.of([A, B, C])
    assert next_change(view(configuration, (C,), leader=A)) == Configuration.of([A, C])
    assert next_change(view(Configuration.of([A, C]), (C,), leader=A)) == Configuration.of([C])
    assert next_change(view(Configuration.of([A]), (B,), leader=A)) == Configuration.of([A], [B])
    assert next_change(view(Configuration.of([A], [B]), (B,), leader=A)) is None


def test_a_new_data_directory_replaces_the_old_one() -> None:
    renewed = RaftId("c.1")
    configuration = Configuration.of([A, B, C])
    steps = [configuration]
    while (changed := next_change(view(steps[-1], (A, B, renewed), silent=(C,)))) is not None:
        steps.append(changed)
    assert steps[1:] == [
        Configuration.of([A, B, C], [renewed]),
        Configuration.of([A, B], [renewed]),
        Configuration.of([A, B, renewed]),
    ]


def test_no_change_whose_own_majority_is_out_of_reach() -> None:
    five = Configuration.of([A, B, C, D, E])
    # b and c do not answer, d was revoked: of a, b, c, e three would be needed.
    assert next_change(view(five, (A, B, C, E), silent=(B, C, D))) is None
    assert next_change(view(five, (A, B, C, E), silent=(C, D))) is not None


def test_too_many_voters_the_silent_one_goes_and_the_leader_stays() -> None:
    five = Configuration.of([A, B, C, D, E])
    members = (A, B, C, D, E)
    assert next_change(view(five, members, leader=E)) == Configuration.of([A, B, C, E], [D])
    assert next_change(view(five, members, silent=(C,))) == Configuration.of([A, B, D, E], [C])
    assert next_change(view(five, members, witnesses=(E,))) == Configuration.of([A, B, C, E], [D])
