"""The consensus core: Raft as in Ongaro's dissertation, values in, effects out.

No I/O, no clock, no threads.  Each input takes `now_ms` and returns an ordered list of effects;
`next_deadline_ms` says when to tick.  `mesh.effects` says what the driver owes.
"""

from collections.abc import Sequence
from typing import assert_never

from mesh.effects import Effect
from mesh.election import Ballot, ElectionTimer, RandomSource, Role, Timing, gives_way, may_grant
from mesh.errors import DivergenceError, NotLeaderError, UsageError
from mesh.following import Following
from mesh.ids import RaftId
from mesh.leadership import Leadership
from mesh.log import ENTRY_BYTES_MAX, Base, LogStorage
from mesh.membership import Configuration, founding_entries
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
from mesh.replication import FollowerStatus, Limits

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
        self._outbox = Outbox(raft_id, self._log, self._limits, hard_state)
        self._following = Following(raft_id, self._log, self._outbox)
        self._lead: Leadership | None = None
        """There exactly while the role is LEADER."""
        self._reads_made = 0
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
        return self._log.configuration if self._log.is_configuration_pending else None

    @property
    def term_committed(self) -> bool:
        """Whether this node leads and an entry of its own term is committed."""
        return self._lead is not None and self._lead.term_committed

    @property
    def protected_index(self) -> int:
        """Up to here another machine holds the log durably, as far as this node knows.

        What a sole voter decided while no learner lived lies behind it (the two-node rule).
        """
        return self._log.commit_index if self._lead is None else self._lead.protected_index

    @property
    def transfer_to(self) -> RaftId | None:
        """To whom this leader hands over at the moment; proposals are refused meanwhile."""
        return None if self._lead is None else self._lead.transfer_to(self._now_ms)

    @property
    def is_installing(self) -> bool:
        """Whether `InstallSnapshot` waits for its answer."""
        return self._following.installing is not None

    def term_at(self, index: int) -> int | None:
        """Term of the entry at `index` of this node's log; None where it has none."""
        return self._log.term(index)

    def base_at(self, index: int) -> Base | None:
        """The base of a snapshot that has applied `index`, to compact behind it or to offer it.

        None when the log here does not hold that entry, or not durably.
        """
        return self._log.base_at(index)

    def progress(self) -> tuple[FollowerStatus, ...]:
        """What a leader knows of each other id of the configuration; empty elsewhere."""
        return () if self._lead is None else self._lead.progress(self._now_ms)

    def next_deadline_ms(self) -> int:
        """When `tick` wants to be called; after a tick it always lies in that tick's future."""
        if self._start_ms is not None:
            return self._start_ms
        return self._timer.deadline_ms if self._lead is None else self._lead.next_deadline_ms

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
                case Append() | Heartbeat() | SnapshotOffer():
                    self._on_leader(message)
                case AppendAck() | HeartbeatAck():
                    self._on_ack(message)
                case TimeoutNow():
                    self._on_timeout_now(message)
                case _:
                    assert_never(message)
        return self._flush()

    def tick(self, now_ms: int) -> list[Effect]:
        """Time went on: heartbeats and the check of the quorum on a leader, elections elsewhere."""
        self._advance(now_ms)
        if self._lead is not None:
            self._lead.tick(self._now_ms)
            self._settle()
        elif self._now_ms >= self._timer.deadline_ms:
            self._on_election_timeout()
        return self._flush()

    def propose(self, datas: Sequence[bytes], now_ms: int) -> tuple[range, list[Effect]]:
        """Appends commands to the log, all or none; returns the range of their indexes.

        Whether they are decided shows when they come back in a `Commit`, at these indexes or not.
        Raises `NotLeaderError`, `BusyError` when too much waits for a majority or the lead is being
        handed over, and `UsageError` for one above ENTRY_BYTES_MAX.
        """
        self._advance(now_ms)
        lead = self._require_leader()
        if any(len(data) > ENTRY_BYTES_MAX for data in datas):
            raise UsageError(f"a command has more than {ENTRY_BYTES_MAX} bytes", "split it")
        return lead.propose(datas, self._now_ms), self._flush()

    def change_configuration(self, configuration: Configuration, now_ms: int) -> list[Effect]:
        """Starts a change to `configuration`, in force at once, done when it is committed.

        Raises `NotLeaderError`, `BusyError` while the lead is being handed over, and `ConflictError`
        when another change or this leader's first entry is not committed yet, or when more than one
        node starts or stops to vote.
        """
        self._advance(now_ms)
        self._require_leader().change_configuration(configuration, self._now_ms)
        return self._flush()

    def transfer_leadership(self, to: RaftId | None, now_ms: int) -> list[Effect]:
        """Hands the lead over to the voter `to`, None: to the one that holds most (3.10).

        Proposals are refused until another leads or one election time-out is over.  Raises
        `NotLeaderError`, and `ConflictError` when `to` is no other voter or nobody is there.
        """
        self._advance(now_ms)
        self._require_leader().transfer(to, self._now_ms)
        return self._flush()

    def read_index(self, now_ms: int) -> tuple[int, list[Effect]]:
        """Asks for a linearizable read: `ReadReady` with this id says from which index on.

        A read that is not ready when this node stops to lead never will be: ask again elsewhere.
        Raises `NotLeaderError`, `BusyError`.
        """
        self._advance(now_ms)
        self._require_leader().read(self._reads_made + 1)
        self._reads_made += 1
        return self._reads_made, self._flush()

    def persisted(self, index: int, term: int, now_ms: int) -> list[Effect]:
        """The driver made everything up to the entry (`index`, `term`) durable."""
        self._advance(now_ms)
        self._log.persisted(index, term)
        if self._lead is not None:
            self._lead.persisted(term, self._now_ms)
            self._settle()
        return self._flush()

    def applied(self, index: int, now_ms: int) -> list[Effect]:
        """The driver applied everything up to `index`."""
        self._advance(now_ms)
        self._applied_index = max(self._applied_index, index)
        return self._flush()

    def stretch(self, factor_percent: int) -> None:
        """Election time-outs are so many percent long from now on (100 to 400; others are clipped).

        For a machine that notices that it is late: it must neither depose a leader that it was too
        slow to hear, nor give up a lead because it was too slow to read the answers.
        """
        self._timer.stretch(factor_percent)

    def suspect(self, leader: RaftId, now_ms: int) -> None:
        """The connection to `leader` broke: a hint that it is gone, until it is heard again."""
        self._advance(now_ms)
        if self._role is Role.FOLLOWER and self._leader == leader:
            self._timer.suspect(self._now_ms)

    # --- snapshots ----------------------------------------------------------------------------

    def compacted(self, base: Base) -> None:
        """The driver compacts storage to `base`, which is durably applied: before or after it does."""
        self._log.compacted(base)

    def offer_snapshot(  # noqa: PLR0917 - the fields of the offer
        self, to: RaftId, base: Base, size: int, digest: str, handle: str, now_ms: int
    ) -> list[Effect]:
        """Answers `SnapshotNeeded`: a snapshot at `base` (see `base_at`) lies ready as `handle`."""
        self._advance(now_ms)
        if self._lead is not None:
            self._lead.offer_snapshot(to, base, size, digest, handle, self._now_ms)
        return self._flush()

    def snapshot_unavailable(self, to: RaftId, now_ms: int) -> list[Effect]:
        """Answers `SnapshotNeeded`: not now; the core asks again later."""
        self._advance(now_ms)
        if self._lead is not None:
            self._lead.snapshot_unavailable(to, self._now_ms)
        return self._flush()

    def installed(self, base: Base, now_ms: int) -> list[Effect]:
        """Answers `InstallSnapshot`: ledger and log (`restart_from`) stand durably at `base`."""
        self._advance(now_ms)
        self._following.installed(base, self._leader, self._term)
        self._applied_index = base.index
        return self._flush()

    def install_failed(self, now_ms: int) -> list[Effect]:
        """Answers `InstallSnapshot`: ledger and log are what they were."""
        self._advance(now_ms)
        self._following.install_failed(self._leader, self._term)
        return self._flush()

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
                if self._has_fresh_leader() and not message.transfer:
                    # Who cannot hear the leader (cut off, removed) must not unseat it: 4.2.3.
                    return False
                if not message.pre:
                    self._become_follower(message.term, None)
            case Vote(pre=True, granted=True):
                pass  # the term that we asked about, not one that anybody is in
            case Append() | Heartbeat() | SnapshotOffer() | TimeoutNow():
                self._become_follower(message.term, message.sender)
            case _:
                self._become_follower(message.term, None)
        return True

    def _on_earlier_term(self, message: ConsensusMessage) -> None:
        match message:
            case Append() | Heartbeat() | SnapshotOffer():
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
        if configuration is None or self.is_installing or not self._log.may_vote(self.raft_id):
            # While a snapshot is installed, what this node knows to be decided is not in its log.
            self._timer.restart(self._now_ms)
        elif self._is_sole_voter():
            self._campaign()
        else:
            self._become(Role.PRE_CANDIDATE)
            self._request_votes(configuration, self._term + 1, pre=True)

    def _on_timeout_now(self, message: TimeoutNow) -> None:
        configuration = self._log.configuration
        if (
            configuration is not None
            and self.raft_id in configuration.voters
            and self._role is Role.FOLLOWER
            and self._leader in {None, message.sender}
            and not self.is_installing
        ):
            # No pre-vote: the leader itself says that its time is over.
            self._leader = None
            self._campaign(transfer=True)

    def _campaign(self, *, transfer: bool = False) -> None:
        configuration = self._log.configuration
        assert configuration is not None, "a candidate without a configuration"
        self._term += 1
        self._vote = self.raft_id
        self._become(Role.CANDIDATE)
        if self._is_sole_voter():
            self._become_leader()
        else:
            self._request_votes(configuration, self._term, pre=False, transfer=transfer)

    def _request_votes(
        self, configuration: Configuration, term: int, *, pre: bool, transfer: bool = False
    ) -> None:
        for voter in configuration.voters:
            if voter != self.raft_id:
                self._outbox.request_vote(voter, term, pre=pre, transfer=transfer)

    def _on_vote_request(self, request: VoteRequest) -> None:
        granted = may_grant(
            request, term=self._term, vote=self._vote, leader=self._leader, log=self._log
        )
        if granted and not request.pre:
            self._vote = request.sender
            self._timer.restart(self._now_ms)
        elif granted:
            self._timer.give_way()
            if self._role is Role.PRE_CANDIDATE and gives_way(self.raft_id, request, self._log):
                self._become_follower(self._term, None)
        elif request.pre and self._role is Role.FOLLOWER and not self._has_fresh_leader():
            # Refused for the better log here, or for a vote given away: this node may be the next.
            self._timer.hurry(self._now_ms)
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
                self._become_leader()
            case "lost":
                self._become_follower(self._term, None)
            case "open":
                pass

    def _become(self, role: Role) -> None:
        self._role = role
        self._lead = None
        self._ballot = Ballot(self.raft_id)
        self._timer.restart(self._now_ms)

    def _become_follower(self, term: int, leader: RaftId | None) -> None:
        if term != self._term:
            self._term = term
            self._vote = None
        self._leader = leader
        self._become(Role.FOLLOWER)

    def _become_leader(self) -> None:
        self._become(Role.LEADER)
        self._leader = self.raft_id
        self._lead = Leadership(
            raft_id=self.raft_id,
            term=self._term,
            log=self._log,
            limits=self._limits,
            timer=self._timer,
            outbox=self._outbox,
            now_ms=self._now_ms,
        )

    # --- replication --------------------------------------------------------------------------

    def _on_leader(self, message: Append | Heartbeat | SnapshotOffer) -> None:
        """A leader of this term spoke."""
        leader = message.sender
        if self._role is Role.LEADER or self._leader not in (None, leader):
            raise DivergenceError(
                f"{leader} and {self._leader} both lead term {self._term}",
                "stop both nodes and keep their data directories for an analysis",
            )
        if self._role is not Role.FOLLOWER or self._leader is None:
            self._become_follower(self._term, leader)
        self._timer.heard_leader(self._now_ms)
        self._following.receive(message)

    def _on_ack(self, message: AppendAck | HeartbeatAck) -> None:
        if self._lead is not None:
            self._lead.receive(message, self._now_ms)
            self._settle()

    def _settle(self) -> None:
        if self._lead is not None and self._lead.is_over:
            self._become_follower(self._term, None)

    # --- inside -------------------------------------------------------------------------------

    def _advance(self, now_ms: int) -> None:
        self._now_ms = max(self._now_ms, now_ms)

    def _is_sole_voter(self) -> bool:
        configuration = self._log.configuration
        return configuration is not None and configuration.voters == (self.raft_id,)

    def _require_leader(self) -> Leadership:
        if self._lead is None:
            raise NotLeaderError("this node is not the coordinator", "ask the coordinator")
        return self._lead

    def _flush(self) -> list[Effect]:
        self._start_ms = None
        return self._outbox.flush(
            term=self._term,
            vote=self._vote,
            leader=self._leader,
            applied_index=None if self.is_installing else self._applied_index,
        )
