"""The consensus core: Raft as in Ongaro's dissertation, values in, effects out.

No I/O, no clock, no threads.  `receive`, `tick`, `propose`, `change_configuration`, `persisted` and
`applied` take `now_ms` and return an ordered list of effects; `next_deadline_ms` says when to tick.
`mesh.effects` says what the driver owes.
"""

from collections.abc import Iterable, Sequence
from typing import assert_never

from mesh.effects import Effect
from mesh.election import Ballot, ElectionTimer, RandomSource, Role, Timing, may_grant
from mesh.errors import BusyError, ConflictError, DivergenceError, NotLeaderError, UsageError
from mesh.ids import RaftId
from mesh.log import ENTRY_BYTES_MAX, Base, Entry, EntryKind, LogStorage
from mesh.membership import Configuration, changed_voters, founding_entries
from mesh.messages import (
    Append,
    AppendAck,
    ConsensusMessage,
    Heartbeat,
    HeartbeatAck,
    SnapshotOffer,
    TimeoutNow,
    Vote,
    VoteRequest,
)
from mesh.outbox import Outbox
from mesh.raftlog import RaftLog
from mesh.replication import FollowerStatus, Limits, Replication

__all__ = [
    "FollowerStatus",
    "Limits",
    "Raft",
    "RandomSource",
    "Role",
    "Timing",
    "founding_entries",
]


class Raft:
    """One node's part in the mesh's agreement on one log."""

    def __init__(
        self,
        *,
        raft_id: RaftId,
        storage: LogStorage,
        timing: Timing,
        random: RandomSource,
        applied_index: int,
        now_ms: int,
        limits: Limits | None = None,
    ) -> None:
        """Goes on from what is durable.  Raises `DivergenceError` when log and ledger do not fit."""
        hard_state = storage.hard_state()
        self.raft_id = raft_id
        self._timing = timing
        self._limits = limits or Limits()
        self._now_ms = now_ms
        self._log = RaftLog(storage, commit_index=hard_state.commit, applied_index=applied_index)
        self._applied_index = applied_index
        self._term = hard_state.term
        self._vote = hard_state.vote
        self._role = Role.FOLLOWER
        self._leader: RaftId | None = None
        self._timer = ElectionTimer(timing, random, now_ms)
        self._ballot = Ballot(raft_id)
        self._replication = Replication(raft_id, 0, self._log, self._limits)
        self._heartbeat_deadline_ms = 0
        self._quorum_deadline_ms = 0
        self._term_first_index = 0
        self._term_is_durable = False
        self._outbox = Outbox(raft_id, self._log, self._limits, hard_state)
        # A restart with committed entries to apply wants its first tick at once.
        self._start_ms = now_ms if self._log.commit_index > applied_index else None
        if self._is_sole_voter():
            self._timer.expire(now_ms)

    # --- status -------------------------------------------------------------------------------

    @property
    def role(self) -> Role:
        """What this node is in its term."""
        return self._role

    @property
    def term(self) -> int:
        """The current term."""
        return self._term

    @property
    def leader(self) -> RaftId | None:
        """Who leads this term, as far as this node knows; its own id when it leads."""
        return self._leader

    @property
    def commit_index(self) -> int:
        """Up to here the log is decided."""
        return self._log.commit_index

    @property
    def applied_index(self) -> int:
        """Up to here the driver reported entries as applied."""
        return self._applied_index

    @property
    def last_index(self) -> int:
        """Index of the newest entry of this node's log, persisted or not."""
        return self._log.last_index

    @property
    def configuration(self) -> Configuration | None:
        """The configuration in force here: the newest in the log; None before the first."""
        return self._log.configuration

    @property
    def pending_configuration(self) -> Configuration | None:
        """The configuration in force while it is not committed yet, else None."""
        pending = self._log.configuration_index > self._log.commit_index
        return self._log.configuration if pending else None

    @property
    def term_committed(self) -> bool:
        """Whether this node leads and an entry of its own term is committed."""
        return self._role is Role.LEADER and self._log.commit_index >= self._term_first_index

    def term_at(self, index: int) -> int | None:
        """Term of the entry at `index` of this node's log; None where it has none."""
        return self._log.term(index)

    def progress(self) -> tuple[FollowerStatus, ...]:
        """What a leader knows of each other id of the configuration; empty elsewhere."""
        if self._role is not Role.LEADER:
            return ()
        return self._replication.status(heard_since_ms=self._now_ms - self._timing.election_max_ms)

    def next_deadline_ms(self) -> int:
        """When `tick` wants to be called; after a tick it always lies in that tick's future."""
        if self._start_ms is not None:
            return self._start_ms
        if self._role is Role.LEADER:
            return min(self._heartbeat_deadline_ms, self._quorum_deadline_ms)
        return self._timer.deadline_ms

    # --- inputs -------------------------------------------------------------------------------

    def receive(self, message: ConsensusMessage, now_ms: int) -> list[Effect]:
        """Takes a message of another node; one for another data directory of this node is dropped."""
        self._advance(now_ms)
        if message.to == self.raft_id != message.sender and self._is_current(message):
            match message:
                case VoteRequest():
                    self._on_vote_request(message)
                case Vote():
                    self._on_vote(message)
                case Append():
                    self._on_append(message)
                case AppendAck():
                    self._on_append_ack(message)
                case Heartbeat():
                    self._on_heartbeat(message)
                case HeartbeatAck():
                    self._on_heartbeat_ack(message)
                case SnapshotOffer() | TimeoutNow():
                    pass
                case _:
                    assert_never(message)
        return self._flush()

    def tick(self, now_ms: int) -> list[Effect]:
        """Time went on: heartbeats and the check of the quorum on a leader, elections elsewhere."""
        self._advance(now_ms)
        if self._role is Role.LEADER:
            if self._now_ms >= self._quorum_deadline_ms:
                self._check_quorum()
            if self._role is Role.LEADER and self._now_ms >= self._heartbeat_deadline_ms:
                self._heartbeat_deadline_ms = self._now_ms + self._timing.heartbeat_ms
                for raft in self._replication.followers():
                    self._send(self._replication.heartbeat(raft))
        elif self._now_ms >= self._timer.deadline_ms:
            self._on_election_timeout()
        return self._flush()

    def propose(self, datas: Sequence[bytes], now_ms: int) -> tuple[range, list[Effect]]:
        """Appends commands to the log, all or none; returns the range of their indexes.

        Whether they are decided shows when they come back in a `Commit`, at these indexes or not.
        Raises `NotLeaderError`, `BusyError` when too much waits for a majority, and `UsageError`
        for one above ENTRY_BYTES_MAX.
        """
        self._advance(now_ms)
        self._require_leader()
        if any(len(data) > ENTRY_BYTES_MAX for data in datas):
            raise UsageError(f"a command has more than {ENTRY_BYTES_MAX} bytes", "split it")
        waiting = self._log.last_index - self._log.commit_index
        if (
            waiting + len(datas) > self._limits.uncommitted_entries_max
            or self._log.uncommitted_bytes + sum(map(len, datas))
            > self._limits.uncommitted_bytes_max
        ):
            raise BusyError(f"{waiting} commands wait for a majority", "retry in a moment")
        first = self._log.last_index + 1
        self._append_own("command", datas)
        return range(first, first + len(datas)), self._flush()

    def change_configuration(self, configuration: Configuration, now_ms: int) -> list[Effect]:
        """Starts a change to `configuration`, in force at once, done when it is committed.

        Raises `NotLeaderError`, and `ConflictError` when another change or this leader's first
        entry is not committed yet, or when more than one node starts or stops to vote.
        """
        self._advance(now_ms)
        self._require_leader()
        current = self._log.configuration
        assert current is not None, "a leader without a configuration"
        if self.pending_configuration is not None or not self.term_committed:
            raise ConflictError("a change of the voters is not decided yet", "retry in a moment")
        if len(changed_voters(current, configuration)) > 1:
            raise ConflictError("two voters at once would change", "change one at a time")
        # Followed from before the entry, so that newcomers are probed with it.
        self._replication.follow(configuration)
        self._append_own("configuration", [configuration.encode()])
        return self._flush()

    def persisted(self, index: int, term: int, now_ms: int) -> list[Effect]:
        """The driver made everything up to the entry (`index`, `term`) durable."""
        self._advance(now_ms)
        self._log.persisted(index, term)
        if self._role is Role.LEADER:
            self._term_is_durable = self._term_is_durable or term == self._term
            self._advance_commit()
        return self._flush()

    def applied(self, index: int, now_ms: int) -> list[Effect]:
        """The driver applied everything up to `index`."""
        self._advance(now_ms)
        self._applied_index = max(self._applied_index, index)
        return self._flush()

    def transfer_leadership(self, to: RaftId | None, now_ms: int) -> list[Effect]:
        """Hands the lead over to the voter `to`, or to the one that fits best.

        Raises `NotLeaderError`, and `ConflictError` when `to` is no other voter or nobody fits.
        """
        self._advance(now_ms)
        self._require_leader()
        raise ConflictError("no other voter can take over", f"{to or 'nobody'} does not vote")

    def read_index(self, now_ms: int) -> tuple[int, list[Effect]]:
        """Asks for a linearizable read: `ReadReady` with this id says from which index on.

        Raises `NotLeaderError`, `BusyError`.  A read that is not ready when the leader changes
        never will be.
        """
        self._advance(now_ms)
        self._require_leader()
        return 0, self._flush()

    def base_at(self, index: int) -> Base | None:
        """The base of a snapshot at an applied index; None when the log begins behind it."""
        term, configuration = self._log.term(index), self._log.configuration
        if term is None or configuration is None:
            return None
        return Base(index, term, configuration.encode())

    def compacted(self, base: Base) -> None:
        """The driver compacted the log, or is about to."""

    def offer_snapshot(  # noqa: PLR0917 - the fields of the offer
        self, to: RaftId, base: Base, size: int, digest: str, handle: str, now_ms: int
    ) -> list[Effect]:
        """Answers `SnapshotNeeded`: a snapshot at `base` can be fetched under `handle`."""
        self._advance(now_ms)
        assert (to, base, size, digest, handle)
        return self._flush()

    def snapshot_unavailable(self, to: RaftId, now_ms: int) -> list[Effect]:
        """Answers `SnapshotNeeded`: not now; the core asks again later."""
        self._advance(now_ms)
        assert to
        return self._flush()

    def installed(self, base: Base, now_ms: int) -> list[Effect]:
        """Answers `InstallSnapshot`: ledger and log are at `base` now, durably."""
        self._advance(now_ms)
        assert base.index >= 0
        return self._flush()

    def install_failed(self, now_ms: int) -> list[Effect]:
        """Answers `InstallSnapshot`: ledger and log are what they were."""
        self._advance(now_ms)
        return self._flush()

    def stretch(self, factor_percent: int) -> None:
        """Widens the election time-outs to so many percent, 100 to 400: this machine is late."""

    @property
    def protected_index(self) -> int:
        """Up to here another machine holds the log durably, as far as this node knows."""
        return self._log.commit_index

    # --- terms and elections ------------------------------------------------------------------

    def _is_current(self, message: ConsensusMessage) -> bool:
        """Brings terms in line; False when the message is answered or ignored for its term alone."""
        if message.term > self._term:
            return self._on_later_term(message)
        if message.term < self._term:
            self._on_earlier_term(message)
            return False
        return True

    def _on_later_term(self, message: ConsensusMessage) -> bool:
        match message:
            case VoteRequest():
                if self._has_fresh_leader():
                    # Who cannot hear the leader (cut off, removed) must not unseat it: 4.2.3.
                    return False
                if not message.pre:
                    self._become_follower(message.term, None)
            case Vote(pre=True, granted=True):
                pass  # the term that we asked about, not one that anybody is in
            case Append() | Heartbeat():
                self._become_follower(message.term, message.sender)
            case _:
                self._become_follower(message.term, None)
        return True

    def _on_earlier_term(self, message: ConsensusMessage) -> None:
        match message:
            case Append() | Heartbeat():
                # A leader that is behind our term can never convince us, nor we it by campaigning
                # while others hear it: it must learn the term to step down (etcd 5451, 8501).
                self._outbox.refuse(message.sender, self._term, 0)
            case VoteRequest():
                self._outbox.vote(message, self._term, granted=False)
            case _:
                pass

    def _has_fresh_leader(self) -> bool:
        if self._role is Role.LEADER:
            return True
        return self._leader is not None and self._timer.is_leader_fresh(self._now_ms)

    def _on_election_timeout(self) -> None:
        configuration = self._log.configuration
        self._leader = None
        if configuration is None or self.raft_id not in configuration.voters:
            self._timer.restart(self._now_ms)
        elif self._is_sole_voter():
            self._campaign()
        else:
            self._become(Role.PRE_CANDIDATE)
            self._request_votes(configuration, self._term + 1, pre=True)

    def _campaign(self) -> None:
        configuration = self._log.configuration
        assert configuration is not None, "a candidate without a configuration"
        self._term += 1
        self._vote = self.raft_id
        self._become(Role.CANDIDATE)
        if self._is_sole_voter():
            self._become_leader(configuration)
        else:
            self._request_votes(configuration, self._term, pre=False)

    def _request_votes(self, configuration: Configuration, term: int, *, pre: bool) -> None:
        for voter in configuration.voters:
            if voter != self.raft_id:
                self._send(
                    VoteRequest(
                        sender=self.raft_id,
                        to=voter,
                        term=term,
                        last_index=self._log.last_index,
                        last_term=self._log.last_term,
                        pre=pre,
                    )
                )

    def _on_vote_request(self, request: VoteRequest) -> None:
        granted = may_grant(
            request, term=self._term, vote=self._vote, leader=self._leader, log=self._log
        )
        if granted and not request.pre:
            self._vote = request.sender
            self._timer.restart(self._now_ms)
        term = request.term if granted else self._term
        self._outbox.vote(request, term, granted=granted)

    def _on_vote(self, vote: Vote) -> None:
        campaigning = Role.PRE_CANDIDATE if vote.pre else Role.CANDIDATE
        asked = self._term + 1 if vote.pre and vote.granted else self._term
        configuration = self._log.configuration
        if self._role is not campaigning or vote.term != asked or configuration is None:
            return
        self._ballot.record(vote.sender, granted=vote.granted)
        match self._ballot.outcome(configuration):
            case "won" if vote.pre:
                self._campaign()
            case "won":
                self._become_leader(configuration)
            case "lost":
                self._become_follower(self._term, None)
            case "open":
                pass

    def _become(self, role: Role) -> None:
        self._role = role
        self._ballot = Ballot(self.raft_id)
        self._timer.restart(self._now_ms)

    def _become_follower(self, term: int, leader: RaftId | None) -> None:
        if term != self._term:
            self._term = term
            self._vote = None
        self._leader = leader
        self._term_is_durable = False
        self._become(Role.FOLLOWER)

    def _become_leader(self, configuration: Configuration) -> None:
        self._become(Role.LEADER)
        self._leader = self.raft_id
        self._term_is_durable = False
        self._term_first_index = self._log.last_index + 1
        self._heartbeat_deadline_ms = self._now_ms + self._timing.heartbeat_ms
        self._quorum_deadline_ms = self._now_ms + self._timing.election_max_ms
        self._replication = Replication(self.raft_id, self._term, self._log, self._limits)
        self._replication.follow(configuration)
        # Only an entry of its own term lets a leader commit what it inherited (Raft paper, 5.4.2).
        self._append_own("empty", [b""])

    def _check_quorum(self) -> None:
        """A leader that a majority cannot hear makes room and answers nobody any more."""
        self._quorum_deadline_ms = self._now_ms + self._timing.election_max_ms
        configuration = self._log.configuration
        assert configuration is not None, "a leader without a configuration"
        if not self._replication.check_quorum(configuration):
            self._become_follower(self._term, None)

    # --- replication: follower ----------------------------------------------------------------

    def _follow(self, leader: RaftId) -> None:
        """A leader of this term spoke."""
        if self._role is Role.LEADER or self._leader not in (None, leader):
            raise DivergenceError(
                f"{leader} and {self._leader} both lead term {self._term}",
                "stop both nodes and keep their data directories for an analysis",
            )
        if self._role is not Role.FOLLOWER or self._leader is None:
            self._become_follower(self._term, leader)
        self._timer.heard_leader(self._now_ms)

    def _on_append(self, append: Append) -> None:
        self._follow(append.sender)
        if append.prev_index < self._log.commit_index:
            # Old news; what is committed here cannot differ (Raft paper, 5.4.3).
            self._outbox.acknowledge(append.sender, self._term, self._log.commit_index)
            return
        matched = self._log.match_and_append(append.prev_index, append.prev_term, append.entries)
        if matched is None:
            self._outbox.refuse(append.sender, self._term, append.prev_index, append.prev_term)
            return
        # Never past the last entry that came: what stands behind it here may differ (figure 2).
        self._log.commit_to(min(append.commit, matched))
        self._outbox.acknowledge(append.sender, self._term, matched)

    def _on_heartbeat(self, heartbeat: Heartbeat) -> None:
        self._follow(heartbeat.sender)
        self._log.commit_to(heartbeat.commit)
        self._send(HeartbeatAck(sender=self.raft_id, to=heartbeat.sender, term=self._term))

    # --- replication: leader ------------------------------------------------------------------

    def _append_own(self, kind: EntryKind, datas: Iterable[bytes]) -> None:
        first = self._log.last_index + 1
        entries = [
            Entry(index=index, term=self._term, kind=kind, data=data)
            for index, data in enumerate(datas, first)
        ]
        self._log.append(entries)
        self._broadcast()

    def _broadcast(self) -> None:
        for raft in self._replication.followers():
            self._send_appends(self._replication.appends(raft))

    def _on_append_ack(self, ack: AppendAck) -> None:
        if self._role is not Role.LEADER:
            return
        progress = self._replication.heard(ack.sender, self._now_ms)
        if progress is None:
            return
        if not ack.ok:
            if self._replication.refused(progress, ack):
                self._send_appends(self._replication.appends(ack.sender))
        elif ack.index <= self._log.last_index:
            if progress.matched(ack.index):
                self._advance_commit()
            if self._leader == self.raft_id:
                self._send_appends(self._replication.appends(ack.sender))

    def _on_heartbeat_ack(self, ack: HeartbeatAck) -> None:
        if (
            self._role is Role.LEADER
            and self._replication.heard(ack.sender, self._now_ms) is not None
        ):
            self._send_appends(self._replication.nudge(ack.sender))

    def _advance_commit(self) -> None:
        """Commits what a majority holds, if it is of this leader's own term (figure 8)."""
        configuration = self._log.configuration
        assert configuration is not None, "a leader without a configuration"
        index = self._replication.majority_index(configuration)
        if index <= self._log.commit_index or self._log.term(index) != self._term:
            return
        self._log.commit_to(index)
        self._broadcast()
        if self.pending_configuration is None and self.raft_id not in configuration.voters:
            # It has led its own removal to the end (dissertation, 4.2.2).
            self._become_follower(self._term, None)

    # --- inside -------------------------------------------------------------------------------

    def _advance(self, now_ms: int) -> None:
        self._now_ms = max(self._now_ms, now_ms)

    def _is_sole_voter(self) -> bool:
        configuration = self._log.configuration
        return configuration is not None and configuration.voters == (self.raft_id,)

    def _require_leader(self) -> None:
        if self._role is not Role.LEADER:
            raise NotLeaderError("this node is not the coordinator", "ask the coordinator")

    def _send(self, message: ConsensusMessage) -> None:
        self._outbox.send(message)

    def _send_appends(self, appends: Sequence[Append]) -> None:
        # A sole voter leads before its term is synced: nothing of a term that a crash could make
        # it use twice may leave.  Later appends of the term promise nothing and need not wait.
        if self._term_is_durable:
            self._outbox.send_early(appends)
        else:
            for append in appends:
                self._outbox.send(append)

    def _flush(self) -> list[Effect]:
        self._start_ms = None
        return self._outbox.flush(
            term=self._term,
            vote=self._vote,
            leader=self._leader,
            applied_index=self._applied_index,
        )
