"""Terms, votes and the time-outs that start elections."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from mesh.ids import RaftId
from mesh.membership import Configuration, Outcome, election_outcome
from mesh.messages import VoteRequest
from mesh.raftlog import RaftLog


class Role(StrEnum):
    """What a node is in its term."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre_candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class RandomSource(Protocol):
    """Where randomness comes from; `random.Random` fits."""

    def randrange(self, start: int, stop: int, /) -> int:
        """A number start <= n < stop."""
        ...


_BROADCASTS_MIN: Final = 3
"""Heartbeats that must fit the shortest election time-out: two may be lost without an election."""

STRETCH_PERCENT_MIN: Final = 100
"""Time-outs are widened, never narrowed: the configured ones are the ones that were thought about."""
STRETCH_PERCENT_MAX: Final = 400
"""A machine that is late by more than this holds up everybody who waits for it to notice a dead leader."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Heartbeat interval and the range of election time-outs, in milliseconds.

    On a LAN the defaults replace a dead leader within about a second.  Where machines starve or
    links are slow raise all three together; the shortest election time-out holds at least three
    heartbeats, and the range is wide enough that two candidates seldom wake together.
    """

    heartbeat_ms: int = 100
    election_min_ms: int = 500
    election_max_ms: int = 1_000

    def __post_init__(self) -> None:
        """Raises ValueError when the three do not fit each other."""
        if self.heartbeat_ms < 1:
            raise ValueError(f"heartbeat_ms is {self.heartbeat_ms}, at least 1")
        if self.election_min_ms < _BROADCASTS_MIN * self.heartbeat_ms:
            raise ValueError(
                f"election_min_ms is {self.election_min_ms}, "
                f"at least {_BROADCASTS_MIN} times heartbeat_ms ({self.heartbeat_ms})"
            )
        if 2 * self.election_max_ms < 3 * self.election_min_ms:
            raise ValueError(
                f"election_max_ms is {self.election_max_ms}, "
                f"at least one and a half times election_min_ms ({self.election_min_ms})"
            )

    def stretched(self, percent: int) -> "Timing":
        """The same with election time-outs of so many percent; heartbeats stay as they are."""
        # Rounded apart, so that the relations above hold for every percentage from 100 on.
        return Timing(
            heartbeat_ms=self.heartbeat_ms,
            election_min_ms=self.election_min_ms * percent // 100,
            election_max_ms=-(-self.election_max_ms * percent // 100),
        )


class ElectionTimer:
    """When to campaign, and how long a leader that was heard keeps this node from voting."""

    def __init__(self, timing: Timing, random: RandomSource, now_ms: int) -> None:
        self.timing = timing
        """The times in force: as configured, or stretched."""
        self._configured = timing
        self._random = random
        self._heard_ms = now_ms
        self._since_ms = now_ms
        self._timeout_ms = 0
        self._percent = STRETCH_PERCENT_MIN
        self._suspect_ms: int | None = None
        """From then on the leader is not fresh: the way to it broke, and it was not heard since."""
        self._soon_ms: int | None = None
        """A deadline before the regular one: there is a reason not to wait."""
        self.restart(now_ms)

    @property
    def deadline_ms(self) -> int:
        """When the time-out is over."""
        regular_ms = self._since_ms + self._timeout_ms * self._percent // 100
        if self._soon_ms is None:
            return regular_ms
        return min(regular_ms, self._soon_ms)

    def restart(self, now_ms: int) -> None:
        """Draws a new time-out: after every change of role or term, so that split votes dissolve."""
        configured = self._configured
        self._timeout_ms = self._random.randrange(
            configured.election_min_ms, configured.election_max_ms + 1
        )
        self._since_ms = now_ms
        self._soon_ms = None

    def expire(self, now_ms: int) -> None:
        """The time-out is over at once: nobody else could be waited for."""
        self._timeout_ms = 0
        self._since_ms = now_ms

    def heard_leader(self, now_ms: int) -> None:
        """The leader lives: the same time-out again."""
        self._heard_ms = self._since_ms = now_ms
        self._suspect_ms = self._soon_ms = None

    def suspect(self, now_ms: int) -> None:
        """The way to the leader broke: if it lives, it speaks with the next heartbeat.

        A process that ended closes its connections; nobody has to wait for its silence.
        """
        if self._suspect_ms is not None:
            return
        configured = self._configured
        self._suspect_ms = now_ms + configured.heartbeat_ms * self._percent // 100
        # All notice it at about one time; those that ask at one time give way to each other.
        spread_ms = (configured.election_max_ms - configured.election_min_ms) // 4
        self._soon_ms = self._suspect_ms + self._random.randrange(0, spread_ms + 1)

    def hurry(self, now_ms: int) -> None:
        """Somebody campaigns who may not win: unless a leader is heard, this node is the next."""
        if self._soon_ms is None:
            heartbeat_ms = self._configured.heartbeat_ms
            # Whoever asked has the head start of a round trip: it may win after all.
            self._soon_ms = now_ms + self._random.randrange(heartbeat_ms // 2, heartbeat_ms + 1)

    def give_way(self) -> None:
        """Another campaigns: what is suspected starts no second campaign beside it."""
        self._soon_ms = None

    def is_leader_fresh(self, now_ms: int) -> bool:
        """Whether a leader was heard within the shortest election time-out (dissertation, 4.2.3)."""
        if self._suspect_ms is not None and now_ms >= self._suspect_ms:
            return False
        return now_ms - self._heard_ms < self.timing.election_min_ms

    def stretch(self, percent: int) -> None:
        """From now on, also for the time-out that runs, time-outs are so many percent long."""
        self._percent = min(max(percent, STRETCH_PERCENT_MIN), STRETCH_PERCENT_MAX)
        self.timing = self._configured.stretched(self._percent)


class Ballot:
    """The answers to one campaign."""

    def __init__(self, candidate: RaftId) -> None:
        self._votes: dict[RaftId, bool] = {candidate: True}

    def record(self, voter: RaftId, *, granted: bool) -> None:
        """Counts an answer; the first one of a voter stands."""
        self._votes.setdefault(voter, granted)

    def outcome(self, configuration: Configuration) -> Outcome:
        """What the answers decide."""
        return election_outcome(configuration.voters, self._votes)


def may_grant(
    request: VoteRequest, *, term: int, vote: RaftId | None, leader: RaftId | None, log: RaftLog
) -> bool:
    """Whether a request of this term or a later one gets the vote (Raft paper, 5.2 and 5.4.1).

    A pre-vote for a later term promises nothing and may be given to many.
    """
    free = (
        vote == request.sender
        or (vote is None and leader is None)
        or (request.pre and request.term > term)
    )
    return free and log.is_up_to_date(request.last_index, request.last_term)


def gives_way(own: RaftId, request: VoteRequest, log: RaftLog) -> bool:
    """Whether of two that ask for pre-votes at one time the other goes on.

    Both would win them, vote for themselves and wait for another time-out.
    """
    other = (request.last_term, request.last_index, request.sender)
    return other > (log.last_term, log.last_index, own)
