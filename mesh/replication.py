"""How a leader brings its followers' logs in line with its own, and what it may count.

A follower is *probed* (one append at a time, until its log is known to match), *replicated to*
(appends leave without waiting, within a bounded window), or waits for a *snapshot* because what it
lacks is compacted (nothing leaves but heartbeats and the offer).  A refusal carries a hint that
skips a whole term at once, so that a long divergent tail costs few round trips.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from mesh.ids import RaftId
from mesh.membership import Configuration, majority_index
from mesh.messages import Append, AppendAck, SnapshotOffer
from mesh.raftlog import RaftLog


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of queues and windows; one append must fit a control frame (4 MiB) with its headers."""

    append_entries_max: int = 1_024
    """Entries of one append: a bound on the work of one message."""
    append_bytes_max: int = 1 << 20
    """Bytes of one append; a single entry may be as large (ENTRY_BYTES_MAX)."""
    window_appends_max: int = 64
    """Appends on their way to one follower; fewer than a transport's send queue holds."""
    window_bytes_max: int = 8 << 20
    """Bytes on their way to one follower: the product of 1 Gbit/s and 60 ms."""
    uncommitted_entries_max: int = 65_536
    """Entries that may wait for a majority before proposals are refused as busy."""
    uncommitted_bytes_max: int = 64 << 20
    """The same in bytes: what a leader cut off from its majority may pile up."""
    applying_entries_max: int = 8_192
    """Entries handed out and not yet applied."""
    commit_bytes_max: int = 4 << 20
    """Bytes of one `Commit` effect."""


ProgressState = Literal["probe", "replicate", "snapshot"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowerStatus:
    """What the leader knows of another id: `active` when it answered within an election time-out.

    `snapshot_index`: of the snapshot that it was offered and has not confirmed, else 0.  To compact
    the log past it would send the follower for another one.
    """

    raft_id: RaftId
    match: int
    active: bool
    state: ProgressState = "probe"
    snapshot_index: int = 0


SNAPSHOT_REPEAT_MS: Final = 1_000
"""An offer may be lost; it is repeated until the follower has what was offered."""
SNAPSHOT_RETRY_MS: Final = 2_000
"""Between a snapshot that could not be made or installed and the next one: both cost a whole copy."""

_NEVER_MS: Final = -(1 << 62)
_WINDOW_MAX: Final = 1 << 16
"""Where doubling stops; the limits of the leader are lower."""


class Progress:
    """One follower as the leader sees it."""

    __slots__ = (
        "active",
        "bytes_in_flight",
        "commit_sent",
        "guards",
        "heard_ms",
        "in_flight",
        "match",
        "next",
        "offer",
        "offer_due_ms",
        "paused",
        "round",
        "state",
        "window",
    )

    def __init__(self, next_index: int) -> None:
        self.match = 0
        self.next = next_index
        self.state: ProgressState = "probe"
        self.paused = False
        """Probing: an append is out, the next one waits for an answer or a heartbeat's."""
        self.in_flight: deque[tuple[int, int]] = deque()
        """Replicating: last index and bytes of each append on its way."""
        self.bytes_in_flight = 0
        self.window = 1
        """Appends that may be on their way: doubles with each that arrives, starts again after a gap.

        On a link that reorders, a full window after each gap multiplied every entry by 70.
        """
        self.commit_sent = 0
        self.active = False
        """Heard since the last check of the quorum."""
        self.heard_ms = _NEVER_MS
        self.round = 0
        """The newest round of confirmation that it answered."""
        self.guards = False
        """It held all that was committed, and was not silent since: it may be waited for."""
        self.offer: SnapshotOffer | None = None
        self.offer_due_ms: int | None = None
        """Snapshot: when the offer, or the wish for one, is repeated; None while one is made."""

    def sent(self, last_index: int, size: int) -> None:
        """An append with entries up to `last_index` left."""
        if self.state == "replicate":
            self.next = last_index + 1
            self.in_flight.append((last_index, size))
            self.bytes_in_flight += size
        else:
            self.paused = True

    def is_full(self, limits: Limits) -> bool:
        """Whether no further entries may leave now."""
        if self.state != "replicate":
            return self.paused
        return (
            len(self.in_flight) >= min(self.window, limits.window_appends_max)
            or self.bytes_in_flight >= limits.window_bytes_max
        )

    def matched(self, index: int) -> bool:
        """The follower holds everything up to `index`; True when that is news."""
        news = index > self.match
        if news:
            self.match = index
            self.next = max(self.next, index + 1)
            self.window = min(2 * self.window, _WINDOW_MAX)
        while self.in_flight and self.in_flight[0][0] <= index:
            self.bytes_in_flight -= self.in_flight.popleft()[1]
        # An answer from before the probe started says nothing about the probe.
        if self.state == "probe" and index >= self.next - 1:
            self.replicate()
        return news

    def replicate(self) -> None:
        """Its log is known to match up to `match`: what follows leaves without waiting."""
        self.state = "replicate"
        self.next = self.match + 1
        self.paused = False
        self.offer = None

    def refused(self, index: int, hint: int) -> bool:
        """An append behind `index` did not fit; goes on from `hint`.  False when the refusal is stale."""
        stale = index <= self.match if self.state == "replicate" else index != self.next - 1
        if stale:
            return False
        self._stop()
        self.state = "probe"
        self.paused = False
        self.next = max(min(index, hint + 1), self.match + 1)
        return True

    def wait_for_snapshot(self) -> None:
        """What it lacks is compacted."""
        self._stop()
        self.state = "snapshot"
        self.paused = True
        self.guards = False
        self.offer = None
        self.offer_due_ms = None

    def offered(self, offer: SnapshotOffer | None, due_ms: int) -> None:
        """It was offered a snapshot, or there is none; either is repeated when it is due."""
        self.offer = offer
        self.offer_due_ms = due_ms

    def _stop(self) -> None:
        self.window = 1
        self.in_flight.clear()
        self.bytes_in_flight = 0


class Replication:
    """The leader's book of followers."""

    def __init__(self, raft_id: RaftId, term: int, log: RaftLog, limits: Limits) -> None:
        self._raft_id = raft_id
        self._term = term
        self._log = log
        self._limits = limits
        self._followers: dict[RaftId, Progress] = {}
        self._snapshots_needed: list[RaftId] = []

    # --- answers ------------------------------------------------------------------------------

    def follow(self, configuration: Configuration) -> None:
        """Keeps exactly the others of this configuration, in its order."""
        self._followers = {
            raft: self._followers.get(raft) or Progress(self._log.last_index + 1)
            for raft in configuration.ids
            if raft != self._raft_id
        }

    def followers(self) -> tuple[RaftId, ...]:
        """Everybody to be kept in line."""
        return tuple(self._followers)

    def heard(self, raft: RaftId, now_ms: int) -> Progress | None:
        """Notes a sign of life; None for an id that is not followed (any more)."""
        progress = self._followers.get(raft)
        if progress is not None:
            progress.active = True
            progress.heard_ms = now_ms
        return progress

    def matched(self, raft: RaftId, index: int) -> bool:
        """The follower holds everything up to `index`; True when that is news."""
        progress = self._followers[raft]
        news = progress.matched(index)
        if progress.state == "snapshot":
            # By a snapshot or by appends of its own past, now or before: it only matters that it is there.
            if progress.match >= self._log.base.index:
                progress.replicate()
            elif progress.offer is not None and progress.match >= progress.offer.base_index:
                self._need_snapshot(raft, progress)
        if progress.match >= self._log.commit_index:
            progress.guards = True
        return news

    def refused(self, progress: Progress, ack: AppendAck, now_ms: int) -> bool:
        """Steps back to where the logs can agree; False when the refusal is stale."""
        if progress.state == "snapshot":
            if progress.offer is not None and ack.index == progress.offer.base_index:
                progress.offered(None, now_ms + SNAPSHOT_RETRY_MS)
            return False
        hint, _ = self._log.agreeing(ack.hint_index, ack.hint_term)
        return progress.refused(ack.index, hint)

    # --- appends ------------------------------------------------------------------------------

    def appends(self, raft: RaftId) -> list[Append]:
        """Appends with entries that may leave now; one without when only the commit index is news."""
        progress = self._followers[raft]
        limits = self._limits
        ready: list[Append] = []
        while progress.next <= self._log.last_index and not progress.is_full(limits):
            append = self._append(raft, progress, limits.append_entries_max)
            if append is None:
                return ready
            ready.append(append)
        if not ready and progress.state == "replicate" and not progress.in_flight:
            commit = self._log.commit_index
            if progress.commit_sent < min(commit, progress.match):
                ready += self._empty_append(raft, progress)
        return ready

    def nudge(self, raft: RaftId) -> list[Append]:
        """After a heartbeat's answer: if the follower is still behind, something may be lost.

        When nothing else may leave, an append without entries asks what the follower holds: a gap
        makes it refuse, which starts a probe.
        """
        progress = self._followers[raft]
        if progress.state == "snapshot":
            return []
        progress.paused = False
        ready = self.appends(raft)
        behind = progress.match < self._log.last_index
        if not ready and (behind or progress.state == "probe"):
            ready += self._empty_append(raft, progress)
        return ready

    def commit_for(self, raft: RaftId) -> int:
        """The commit index within what the follower is known to hold."""
        return min(self._followers[raft].match, self._log.commit_index)

    # --- snapshots ----------------------------------------------------------------------------

    def take_snapshots_needed(self) -> list[RaftId]:
        """Followers that turned out to lack what is compacted."""
        taken, self._snapshots_needed = self._snapshots_needed, []
        return taken

    def offer(self, offer: SnapshotOffer, now_ms: int) -> bool:
        """Whether this offer is to be sent: its follower waits for one, and the log goes on from it."""
        progress = self._followers.get(offer.to)
        if progress is None or progress.state != "snapshot":
            return False
        if self._log.term(offer.base_index) != offer.base_term:
            self.snapshot_unavailable(offer.to, now_ms)
            return False
        progress.offered(offer, now_ms + SNAPSHOT_REPEAT_MS)
        return True

    def snapshot_unavailable(self, raft: RaftId, now_ms: int) -> None:
        """No snapshot could be made now."""
        progress = self._followers.get(raft)
        if progress is not None and progress.state == "snapshot":
            progress.offered(None, now_ms + SNAPSHOT_RETRY_MS)

    def offer_due(self, raft: RaftId, now_ms: int) -> SnapshotOffer | None:
        """The offer to repeat now; without one a snapshot is asked for again."""
        progress = self._followers[raft]
        due_ms = progress.offer_due_ms
        if progress.state != "snapshot" or due_ms is None or now_ms < due_ms:
            return None
        if progress.offer is None:
            self._need_snapshot(raft, progress)
            return None
        progress.offered(progress.offer, now_ms + SNAPSHOT_REPEAT_MS)
        return progress.offer

    # --- what counts --------------------------------------------------------------------------

    def match(self, raft: RaftId) -> int:
        """Up to here a follower holds the log durably; 0 for an id that is not followed."""
        progress = self._followers.get(raft)
        return 0 if progress is None else progress.match

    def match_max(self) -> int:
        """Up to here at least one follower does."""
        return max((progress.match for progress in self._followers.values()), default=0)

    def best(self, candidates: Iterable[RaftId], heard_since_ms: int) -> RaftId | None:
        """Who of these was heard and holds most."""
        heard = [raft for raft in candidates if self._followers[raft].heard_ms >= heard_since_ms]
        return min(heard, key=lambda raft: (-self._followers[raft].match, raft), default=None)

    def held_by_guards(self, learners: Iterable[RaftId], heard_since_ms: int) -> int | None:
        """What the best of these holds that was in line once and is heard since; None without one.

        A newcomer that still catches up is not waited for: nothing would be decided meanwhile.
        """
        held: int | None = None
        for raft in learners:
            progress = self._followers[raft]
            progress.guards = progress.guards and progress.heard_ms >= heard_since_ms
            if progress.guards:
                held = max(held or 0, progress.match)
        return held

    def majority_round(self, configuration: Configuration, own_round: int) -> int:
        """The newest round that a majority of voters answered."""
        return majority_index(
            configuration.voters,
            lambda raft: own_round if raft == self._raft_id else self._followers[raft].round,
        )

    def majority_index(self, configuration: Configuration) -> int:
        """The highest index that a majority of voters holds durably, this node by its own sync."""
        return majority_index(configuration.voters, self._matched)

    def check_quorum(self, configuration: Configuration) -> bool:
        """Whether a majority of voters was heard since the last check; starts the next one."""
        heard = sum(
            1
            for voter in configuration.voters
            if voter == self._raft_id or self._followers[voter].active
        )
        for progress in self._followers.values():
            progress.guards = progress.guards and progress.active
            progress.active = False
        return heard >= configuration.quorum

    def hears_quorum(self, configuration: Configuration, since_ms: int) -> bool:
        """Whether a majority of voters was heard since then."""
        heard = sum(
            1
            for voter in configuration.voters
            if voter == self._raft_id or self._followers[voter].heard_ms >= since_ms
        )
        return heard >= configuration.quorum

    def status(self, *, heard_since_ms: int) -> tuple[FollowerStatus, ...]:
        """What is known of each follower."""
        return tuple(
            FollowerStatus(
                raft_id=raft,
                match=progress.match,
                active=progress.heard_ms >= heard_since_ms,
                state=progress.state,
                snapshot_index=progress.offer.base_index if progress.offer else 0,
            )
            for raft, progress in self._followers.items()
        )

    def _matched(self, raft: RaftId) -> int:
        if raft == self._raft_id:
            return self._log.stable_index
        return self._followers[raft].match

    def _need_snapshot(self, raft: RaftId, progress: Progress) -> None:
        progress.wait_for_snapshot()
        self._snapshots_needed.append(raft)

    def _empty_append(self, raft: RaftId, progress: Progress) -> list[Append]:
        append = self._append(raft, progress, 0)
        return [] if append is None else [append]

    def _append(self, raft: RaftId, progress: Progress, entries_max: int) -> Append | None:
        prev_index = progress.next - 1
        prev_term = self._log.term(prev_index)
        entries = self._log.entries(
            progress.next,
            self._log.last_index + 1,
            bytes_max=self._limits.append_bytes_max,
            entries_max=entries_max,
        )
        if prev_term is None or (entries_max and not entries):
            # Compacted.  Only an answer leads here: no snapshot is made for one that is silent.
            self._need_snapshot(raft, progress)
            return None
        if entries:
            progress.sent(entries[-1].index, sum(len(entry.data) for entry in entries))
        elif progress.state == "probe":
            progress.paused = True
        progress.commit_sent = min(
            self._log.commit_index, entries[-1].index if entries else prev_index
        )
        return Append(
            sender=self._raft_id,
            to=raft,
            term=self._term,
            prev_index=prev_index,
            prev_term=prev_term,
            entries=entries,
            commit=self._log.commit_index,
        )
