"""Who votes: configurations of the log, quorum arithmetic, and the autopilot that keeps voters right.

A configuration is in force from the moment it stands in a node's log, committed or not (Ongaro's
dissertation, section 4.1), and two that follow each other differ in at most one voter, so any
majority of the one meets any majority of the other.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from mesh.codec import Vocabulary
from mesh.errors import WireError
from mesh.ids import RaftId
from mesh.log import Entry, HardState

_CONFIGURATIONS = Vocabulary("configuration")

PROMOTE_BEHIND_MAX: Final = 250
"""Entries that a learner may lack when it is promoted: about one batch, closed within one round trip."""
_VOTERS_BY_MEMBERS: Final = ((7, 5), (3, 3), (1, 1))
"""From so many members on, so many voters; even numbers add a voter without bearing one more failure."""

MemberRole = Literal["full", "witness"]
Outcome = Literal["won", "lost", "open"]


@_CONFIGURATIONS.kind("configuration")
@dataclass(frozen=True, slots=True)
class Configuration:
    """Voters and learners, each sorted; learners receive everything and count for nothing."""

    voters: tuple[RaftId, ...]
    learners: tuple[RaftId, ...]

    def __post_init__(self) -> None:
        """Raises ValueError unless both are sorted, disjoint, and somebody votes."""
        if not self.voters:
            raise ValueError("a configuration without a voter can never decide anything")
        together = self.voters + self.learners
        if len(set(together)) != len(together):
            raise ValueError("an id stands twice in one configuration")
        if list(self.voters) != sorted(self.voters) or list(self.learners) != sorted(self.learners):
            raise ValueError("voters and learners are sorted")

    @classmethod
    def of(cls, voters: Iterable[RaftId], learners: Iterable[RaftId] = ()) -> "Configuration":
        """A configuration from ids in any order."""
        return cls(tuple(sorted(voters)), tuple(sorted(learners)))

    @classmethod
    def decode(cls, data: bytes) -> "Configuration":
        """The configuration in the data of a `configuration` entry.  Raises `WireError`."""
        decoded = _CONFIGURATIONS.decode(data)
        if not isinstance(decoded, cls):
            raise WireError("configuration: another kind of value")
        return decoded

    def encode(self) -> bytes:
        """The data of a `configuration` entry."""
        return _CONFIGURATIONS.encode(self)

    @property
    def ids(self) -> tuple[RaftId, ...]:
        """Voters, then learners."""
        return self.voters + self.learners

    @property
    def quorum(self) -> int:
        """How many voters make a majority."""
        return quorum_of(len(self.voters))

    def with_learner(self, raft: RaftId) -> "Configuration":
        """The same with `raft` as a learner: added, or demoted from voter."""
        return Configuration.of(
            (voter for voter in self.voters if voter != raft), (*self._learners_but(raft), raft)
        )

    def with_voter(self, raft: RaftId) -> "Configuration":
        """The same with `raft` as a voter: added, or promoted from learner."""
        voters = (voter for voter in self.voters if voter != raft)
        return Configuration.of((*voters, raft), self._learners_but(raft))

    def without(self, raft: RaftId) -> "Configuration":
        """The same without `raft`.  Raises ValueError when nobody would be left to vote."""
        return Configuration.of(
            (voter for voter in self.voters if voter != raft), self._learners_but(raft)
        )

    def _learners_but(self, raft: RaftId) -> tuple[RaftId, ...]:
        return tuple(learner for learner in self.learners if learner != raft)


def quorum_of(voters: int) -> int:
    """The smallest majority of so many voters."""
    return voters // 2 + 1


def majority_index(voters: Sequence[RaftId], matched: Callable[[RaftId], int]) -> int:
    """The highest index that a majority of voters holds durably."""
    held = sorted((matched(voter) for voter in voters), reverse=True)
    return held[quorum_of(len(held)) - 1]


def election_outcome(voters: Sequence[RaftId], votes: Mapping[RaftId, bool]) -> Outcome:
    """What these answers decide; answers of others than voters do not count."""
    granted = sum(1 for voter in voters if votes.get(voter) is True)
    refused = sum(1 for voter in voters if votes.get(voter) is False)
    needed = quorum_of(len(voters))
    if granted >= needed:
        return "won"
    return "lost" if len(voters) - refused < needed else "open"


def changed_voters(before: Configuration, after: Configuration) -> tuple[RaftId, ...]:
    """Ids that vote in exactly one of the two."""
    return tuple(sorted(set(before.voters) ^ set(after.voters)))


def founding_entries(raft_id: RaftId) -> tuple[HardState, tuple[Entry, ...]]:
    """What the first node of a mesh persists before it makes its `Raft`: it alone votes."""
    configuration = Configuration.of([raft_id])
    entry = Entry(index=1, term=1, kind="configuration", data=configuration.encode())
    return HardState(term=1, vote=raft_id, commit=1), (entry,)


# --- autopilot -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberView:
    """A member as the applied ledger of the leader lists it; revoked and removed ones are not listed."""

    raft_id: RaftId
    role: MemberRole


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerView:
    """What the leader knows of another id of the configuration."""

    raft_id: RaftId
    match: int
    active: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AutopilotView:
    """Everything the autopilot decides by.

    `change_pending`: a configuration in the log is not committed yet.  `term_committed`: an entry
    of the leader's own term is (before that a change can break the overlap of majorities: Ongaro,
    raft-dev 2015).
    """

    leader: RaftId
    configuration: Configuration
    members: tuple[MemberView, ...]
    peers: tuple[PeerView, ...]
    last_index: int
    change_pending: bool
    term_committed: bool


def target_voters(members: int) -> int:
    """How many voters a mesh of so many members should have."""
    return next((voters for least, voters in _VOTERS_BY_MEMBERS if members >= least), 1)


def next_change(view: AutopilotView) -> Configuration | None:
    """The next single step towards the configuration that fits the members, or None.

    Joined members become learners first of all (that costs nobody anything); ids that no member
    has any more go next: a member that was revoked, or the former incarnation of a node whose data
    directory is new.  Such an id never comes back, so to take it out before its successor is
    promoted loses no availability: of three voters with one gone two must answer, and of two also.
    """
    if view.change_pending or not view.term_committed or not view.members:
        return None
    members = frozenset(member.raft_id for member in view.members)
    if not members <= set(view.configuration.ids):
        return view.configuration.with_learner(min(members - set(view.configuration.ids)))
    if not members >= set(view.configuration.ids):
        return _removal(view, members)
    target = target_voters(len(members))
    if len(view.configuration.voters) < target:
        return _promotion(view)
    return _demotion(view) if len(view.configuration.voters) > target else None


def _removal(view: AutopilotView, members: frozenset[RaftId]) -> Configuration | None:
    """Takes out an id that no member has any more: learners first, the leader itself last."""
    configuration = view.configuration
    gone = [raft for raft in configuration.ids if raft not in members]
    chosen = min(gone, key=lambda raft: (raft == view.leader, raft in configuration.voters, raft))
    if configuration.voters == (chosen,):
        return None
    return _if_reachable(view, configuration.without(chosen))


def _promotion(view: AutopilotView) -> Configuration | None:
    """Promotes a learner, when as many are ready as the next odd number of voters needs."""
    roles = {member.raft_id: member.role for member in view.members}
    peers = {peer.raft_id: peer for peer in view.peers}
    ready = [
        learner
        for learner in view.configuration.learners
        if learner in peers
        and peers[learner].active
        and view.last_index - peers[learner].match <= PROMOTE_BEHIND_MAX
    ]
    wanted = 2 if len(view.configuration.voters) % 2 else 1
    if len(ready) < wanted:
        return None
    # A witness first: to vote is all it is there for, and no encoder starves it.
    chosen = min(ready, key=lambda raft: (roles.get(raft) != "witness", raft))
    return _if_reachable(view, view.configuration.with_voter(chosen))


def _demotion(view: AutopilotView) -> Configuration | None:
    """Makes a voter too many a learner: a silent one first, a witness last, never the leader."""
    roles = {member.raft_id: member.role for member in view.members}
    active = _active(view)
    others = [voter for voter in view.configuration.voters if voter != view.leader]
    chosen = max(others, key=lambda raft: (raft not in active, roles.get(raft) != "witness", raft))
    return _if_reachable(view, view.configuration.with_learner(chosen))


def _if_reachable(view: AutopilotView, changed: Configuration) -> Configuration | None:
    """The change, unless its own majority could not be reached now to commit it."""
    active = _active(view)
    reachable = sum(1 for voter in changed.voters if voter in active)
    return changed if reachable >= changed.quorum else None


def _active(view: AutopilotView) -> frozenset[RaftId]:
    return frozenset(peer.raft_id for peer in view.peers if peer.active) | {view.leader}
