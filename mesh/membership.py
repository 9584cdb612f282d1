"""Who votes: configurations of the log, quorum arithmetic, and the autopilot that keeps voters right.

A configuration is in force from the moment it stands in a node's log, committed or not (Ongaro's
dissertation, section 4.1), and two that follow each other differ in at most one voter, so any
majority of the one meets any majority of the other.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from mesh.codec import Vocabulary
from mesh.errors import WireError
from mesh.ids import RaftId
from mesh.log import Entry, HardState

_CONFIGURATIONS = Vocabulary("configuration")

PROMOTE_BEHIND_MAX: Final = 250
"""Entries that a learner may lack when it is promoted: about one batch, closed within one round trip."""
STEADY_MS: Final = 30_000
"""A node that fell silent is steady again after so long: a link that flaps every few seconds never is.

Half of REPLACE_MS, and of what a configuration says instead.
"""
SUSPECT_MS: Final = 10_000
"""A voter silent for so long is told to people: longer than a restart, a pause of the system, a new route."""
REPLACE_MS: Final = 60_000
"""A voter silent for so long is replaced: longer than a reboot of a small machine."""
PARKED_MS: Final = 72 * 3_600_000
"""A learner silent for so long is left out until it is heard again: longer than a weekend away.

Counted by one leader: its successor counts anew.
"""
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
    """A member as the applied ledger of the leader lists it; revoked ones are not listed.

    `heard`: it said hello lately, which needs no place in the configuration.  `leaving`: it said
    that it goes, or was removed and is about to: its vote is wanted elsewhere, at once.
    """

    raft_id: RaftId
    role: MemberRole
    heard: bool = True
    leaving: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerView:
    """What the leader knows of another id of the configuration.

    `active`: it answered within an election time-out; `silent_ms`: since when it did not; `steady_ms`:
    how long it answers without a break; `broke`: it fell silent at least once under this leader.
    """

    raft_id: RaftId
    match: int
    active: bool
    silent_ms: int = 0
    steady_ms: int = STEADY_MS
    broke: bool = False

    @property
    def is_suspect(self) -> bool:
        """Silent for longer than what passes by itself."""
        return self.silent_ms >= SUSPECT_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class AutopilotView:
    """Everything the autopilot decides by.

    `change_pending`: a configuration in the log is not committed yet.  `term_committed`: an entry
    of the leader's own term is (before that a change can break the overlap of majorities: Ongaro,
    raft-dev 2015).  `replace_ms`: a voter silent for so long is replaced.
    """

    leader: RaftId
    configuration: Configuration
    members: tuple[MemberView, ...]
    peers: tuple[PeerView, ...]
    last_index: int
    change_pending: bool
    term_committed: bool
    replace_ms: int = REPLACE_MS

    @property
    def steady_ms(self) -> int:
        """Who fell silent is steady again after so long."""
        return self.replace_ms // 2

    def member(self, raft: RaftId) -> MemberView | None:
        """The member with this id."""
        return next((member for member in self.members if member.raft_id == raft), None)

    def peer(self, raft: RaftId) -> PeerView | None:
        """What is known of another id."""
        return next((peer for peer in self.peers if peer.raft_id == raft), None)

    def is_leaving(self, raft: RaftId) -> bool:
        """Whether it said that it goes."""
        member = self.member(raft)
        return member is not None and member.leaving


class Followed(Protocol):
    """What the core tells of another id: `mesh.replication.FollowerStatus`."""

    @property
    def raft_id(self) -> RaftId:
        """Whose."""
        ...

    @property
    def match(self) -> int:
        """Up to here it holds the leader's log."""
        ...

    @property
    def active(self) -> bool:
        """It answered within an election time-out."""
        ...


@dataclass(slots=True)
class _Heard:
    since_ms: int
    last_ms: int
    active: bool = False
    ever: bool = False
    broke: bool = False


class PeerWatch:
    """Since when the others answer or are silent, as one leader saw it: make a new one with each lead.

    Looks are samples; what happens between two of them is not seen, so look a few times a second.
    """

    def __init__(self) -> None:
        self._heard: dict[RaftId, _Heard] = {}

    def look(self, followed: Iterable[Followed], now_ms: int) -> tuple[PeerView, ...]:
        """The others as they are now; ids that are not followed any more are forgotten."""
        seen: dict[RaftId, _Heard] = {}
        views: list[PeerView] = []
        for one in followed:
            heard = self._heard.get(one.raft_id) or _Heard(now_ms, now_ms)
            seen[one.raft_id] = heard
            if one.active:
                if not heard.active:
                    heard.since_ms = now_ms
                heard.last_ms, heard.ever = now_ms, True
            else:
                heard.broke = heard.broke or heard.ever
            heard.active = one.active
            views.append(
                PeerView(
                    raft_id=one.raft_id,
                    match=one.match,
                    active=one.active,
                    silent_ms=now_ms - heard.last_ms,
                    steady_ms=now_ms - heard.since_ms if one.active else 0,
                    broke=heard.broke,
                )
            )
        self._heard = seen
        return tuple(views)


def target_voters(members: int) -> int:
    """How many voters a mesh of so many members should have."""
    return next((voters for least, voters in _VOTERS_BY_MEMBERS if members >= least), 1)


def is_growing(view: AutopilotView) -> bool:
    """Whether live learners are on their way to become voters: worth looking often."""
    live = _active(view) & set(view.configuration.learners)
    wanted = 2 if len(view.configuration.voters) % 2 else 1
    target = target_voters(len(view.members))
    return len(view.configuration.voters) < target and len(live) >= wanted


def next_change(view: AutopilotView) -> Configuration | None:
    """The next single step towards the configuration that fits the members, or None.

    In this order: members that are heard become learners (that costs nobody anything); ids that no
    member has any more go; missing voters are promoted; an even set becomes odd; voters that go or
    were silent for too long are replaced, the stand-in first; learners silent for days are left out.
    """
    if view.change_pending or not view.term_committed or not view.members:
        return None
    placed = frozenset(view.configuration.ids)
    known = frozenset(member.raft_id for member in view.members)
    new = [m.raft_id for m in view.members if m.heard and m.raft_id not in placed]
    if new:
        return view.configuration.with_learner(min(new))
    if not known >= placed:
        return _removal(view, known)
    voters, target = len(view.configuration.voters), target_voters(len(known))
    if voters < target:
        return _growth(view)
    return _demotion(view) if voters > target else (_replacement(view) or _parking(view))


def _removal(view: AutopilotView, members: frozenset[RaftId]) -> Configuration | None:
    """Takes out an id that no member has any more: learners first, the leader itself last.

    Out of an even set the leader never takes itself: with that entry in its own log alone it would
    neither campaign nor vote for those who lack it, and of two nobody would be left to elect.  It
    hands over the lead instead.

    Such an id never comes back, so to take it out before its successor is promoted loses no
    availability: of three voters with one gone two must answer, and of two also.  A stand-in comes
    first where the one that goes votes alone, or where the rest could not decide without it.
    """
    configuration = view.configuration
    gone = [raft for raft in configuration.ids if raft not in members]
    chosen = min(gone, key=lambda raft: (raft == view.leader, raft in configuration.voters, raft))
    if chosen == view.leader and len(configuration.voters) % 2 == 0:
        return None
    alone = configuration.voters == (chosen,)
    removal = None if alone else _if_reachable(view, configuration.without(chosen))
    return removal or _promotion(view, _caught_up(view))


def _growth(view: AutopilotView) -> Configuration | None:
    """Promotes where voters are missing; an even set never lasts.

    From an odd number on a promotion raises the quorum: two must be ready, so that the next odd
    number follows at once, and steady, unless they never fell silent since they came (a mesh that
    grows should stand within a second).  From an even number on it does not: whoever has caught up
    will do, and where nobody is left to wait for, the set goes back to the odd number below.
    """
    ready = _caught_up(view)
    if len(view.configuration.voters) % 2:
        sound = [peer for peer in ready if not peer.broke or peer.steady_ms >= view.steady_ms]
        return _promotion(view, sound) if len(sound) >= 2 else None
    if ready:
        return _promotion(view, ready)
    active = _active(view)
    return None if active & set(view.configuration.learners) else _demotion(view)


def _replacement(view: AutopilotView) -> Configuration | None:
    """Promotes the stand-in of a voter that goes or was silent for too long; its demotion follows.

    Without a stand-in nothing changes: silence alone never shrinks the set.
    """
    ready = _caught_up(view)
    if any(view.is_leaving(voter) for voter in view.configuration.voters):
        return _promotion(view, ready)
    lost = {peer.raft_id for peer in view.peers if peer.silent_ms >= view.replace_ms}
    if lost & set(view.configuration.voters):
        return _promotion(view, [peer for peer in ready if peer.steady_ms >= view.steady_ms])
    return None


def _promotion(view: AutopilotView, ready: Sequence[PeerView]) -> Configuration | None:
    """A witness first: to vote is all it is there for, and no encoder starves it."""
    if not ready:
        return None
    roles = {member.raft_id: member.role for member in view.members}
    chosen = min(
        (peer.raft_id for peer in ready), key=lambda raft: (roles.get(raft) != "witness", raft)
    )
    return _if_reachable(view, view.configuration.with_voter(chosen))


def _demotion(view: AutopilotView) -> Configuration | None:
    """Makes a voter too many a learner: one that goes, the one silent for longest, a witness last.

    Never the leader: when it is the one that goes, it hands over the lead first.
    """
    silent = {peer.raft_id: peer.silent_ms for peer in view.peers if not peer.active}
    witnesses = {member.raft_id for member in view.members if member.role == "witness"}
    others = [voter for voter in view.configuration.voters if voter != view.leader]
    chosen = max(
        others,
        key=lambda raft: (
            view.is_leaving(raft),
            raft in silent,
            silent.get(raft, 0),
            raft not in witnesses,
            raft,
        ),
    )
    if view.is_leaving(view.leader) and not view.is_leaving(chosen):
        return None
    return _if_reachable(view, view.configuration.with_learner(chosen))


def _parking(view: AutopilotView) -> Configuration | None:
    """Leaves out a learner that was silent for days; it remains a member and returns when heard."""
    for learner in view.configuration.learners:
        peer = view.peer(learner)
        member = view.member(learner)
        silent = peer is not None and peer.silent_ms >= PARKED_MS
        if silent and not (member is not None and member.heard):
            return view.configuration.without(learner)
    return None


def _caught_up(view: AutopilotView) -> list[PeerView]:
    """The learners that could vote now: they answer, lack little, stay, and are members."""
    return [
        peer
        for peer in view.peers
        if peer.raft_id in view.configuration.learners
        and peer.active
        and view.last_index - peer.match <= PROMOTE_BEHIND_MAX
        and (member := view.member(peer.raft_id)) is not None
        and not member.leaving
    ]


def _if_reachable(view: AutopilotView, changed: Configuration) -> Configuration | None:
    """The change, unless its own majority could not be reached now to commit it."""
    active = _active(view)
    reachable = sum(1 for voter in changed.voters if voter in active)
    return changed if reachable >= changed.quorum else None


def _active(view: AutopilotView) -> frozenset[RaftId]:
    return frozenset(peer.raft_id for peer in view.peers if peer.active) | {view.leader}
