"""What only a leader does: replicate, commit, confirm reads, hand over, and notice that it is cut off.

A `Leadership` lives from the election to the end of its term; everything that a leader knows of
others dies with it.
"""

from collections.abc import Iterable, Sequence

from mesh.effects import ReadReady, SnapshotNeeded
from mesh.election import ElectionTimer
from mesh.errors import BusyError, ConflictError
from mesh.ids import RaftId
from mesh.log import Base, Entry, EntryKind
from mesh.membership import Configuration, changed_voters
from mesh.messages import AppendAck, Heartbeat, HeartbeatAck, SnapshotOffer, TimeoutNow
from mesh.outbox import Outbox
from mesh.raftlog import RaftLog
from mesh.reading import Reads
from mesh.replication import FollowerStatus, Limits, Replication


class Leadership:
    """One node's lead of one term."""

    def __init__(
        self,
        *,
        raft_id: RaftId,
        term: int,
        log: RaftLog,
        limits: Limits,
        timer: ElectionTimer,
        outbox: Outbox,
        now_ms: int,
    ) -> None:
        self.raft_id = raft_id
        self.is_over = False
        """This node leads no more: it cannot hear a majority, or has led its own removal to the end."""
        self.first_index = log.last_index + 1
        """Index of the first entry of this term."""
        self._term = term
        self._log = log
        self._limits = limits
        self._timer = timer
        self._outbox = outbox
        self._term_is_durable = False
        self._heartbeat_deadline_ms = now_ms + timer.timing.heartbeat_ms
        self._quorum_checked_ms = self._began_ms = self._listening_ms = now_ms
        self._watched, self._watched_since_ms = self.first_index, now_ms
        """An entry on its way, and since when: the next one is watched when it is decided."""
        self._gap_ms = now_ms - timer.timing.election_max_ms
        """When a majority was unheard for some heartbeats."""
        self._replication = Replication(raft_id, term, log, limits)
        self._replication.follow(self._configuration)
        self._reads = Reads()
        self._successor: RaftId | None = None
        self._successor_told = False
        self._transfer_deadline_ms = now_ms
        # Only an entry of its own term lets a leader commit what it inherited (Raft paper, 5.4.2).
        self._append_own("empty", [b""])

    # --- status -------------------------------------------------------------------------------

    @property
    def next_deadline_ms(self) -> int:
        """When `tick` wants to be called."""
        quorum_ms = self._quorum_checked_ms + self._timer.timing.election_max_ms
        if not self._replication.followers():
            return quorum_ms  # a heartbeat would reach nobody
        return min(self._heartbeat_deadline_ms, quorum_ms)

    @property
    def term_committed(self) -> bool:
        """Whether an entry of this term is committed."""
        return self._log.commit_index >= self.first_index

    @property
    def protected_index(self) -> int:
        """Up to here some other machine holds the log durably."""
        return self._replication.match_max()

    def transfer_to(self, now_ms: int) -> RaftId | None:
        """To whom the lead is being handed over."""
        return self._successor if now_ms < self._transfer_deadline_ms else None

    def progress(self, now_ms: int) -> tuple[FollowerStatus, ...]:
        """What is known of each other id of the configuration."""
        return self._replication.status(heard_since_ms=self._live_since_ms(now_ms))

    # --- time ---------------------------------------------------------------------------------

    def tick(self, now_ms: int) -> None:
        """Heartbeats, and the check of the quorum."""
        if now_ms >= self._quorum_checked_ms + self._timer.timing.election_max_ms:
            self._quorum_checked_ms = now_ms
            if not self._replication.check_quorum(self._configuration):
                self._resign()
                return
        if now_ms >= self._heartbeat_deadline_ms:
            if now_ms - self._heartbeat_deadline_ms >= self._timer.timing.election_min_ms:
                # It stood still: what others answered meanwhile is still to be read.
                self._listening_ms = self._watched_since_ms = now_ms
            if not self._hears_quorum(now_ms) or self._is_stuck(now_ms):
                self._resign()
                return
            self._heartbeat_deadline_ms = now_ms + self._timer.timing.heartbeat_ms
            if self._reads.wants_round:
                self._reads.start_round()
            for raft in self._replication.followers():
                self._send_heartbeat(raft)
            self._successor_told = False
            self._hand_over(now_ms)
            # A learner may have fallen silent, which frees what waited for it.
            self._advance_commit(now_ms)

    def _hears_quorum(self, now_ms: int) -> bool:
        """Looked at with each heartbeat: a check once in an election time-out misses nearly two."""
        since_ms = self._live_since_ms(now_ms)
        return since_ms < self._listening_ms or self._replication.hears_quorum(
            self._configuration, since_ms
        )

    def _is_stuck(self, now_ms: int) -> bool:
        """Whether an entry waits for an election time-out, and a majority is heard in gusts only.

        A link that loses much lets a heartbeat through now and then: enough that nobody campaigns,
        too little for a log.  Where the answers to heartbeats come steadily it is the disks that are
        slow, and another leader would wait for the same ones.
        """
        timing, configuration = self._timer.timing, self._configuration
        if self._watched <= self._log.commit_index:
            self._watched, self._watched_since_ms = self._log.last_index, now_ms
        lately_ms = now_ms - timing.election_min_ms // 2
        if lately_ms > self._listening_ms and not self._replication.hears_quorum(
            configuration, lately_ms
        ):
            self._gap_ms = now_ms
        return (
            configuration.quorum < len(configuration.voters)
            and self._watched > self._log.commit_index
            and now_ms - self._watched_since_ms >= timing.election_max_ms
            and now_ms - self._gap_ms < timing.election_max_ms
        )

    def _resign(self) -> None:
        """A leader that cannot hear a majority makes room and answers nobody any more.

        Perhaps it is heard all the same (a one-way cut): then nobody campaigns while it speaks, and
        its last word spares them the wait.
        """
        self.is_over = True
        others = [voter for voter in self._configuration.voters if voter != self.raft_id]
        successor = self._replication.best(others, self._began_ms)
        if successor is not None:
            self._outbox.send(TimeoutNow(sender=self.raft_id, to=successor, term=self._term))

    # --- what others ask ----------------------------------------------------------------------

    def propose(self, datas: Sequence[bytes], now_ms: int) -> range:
        """Appends commands.  Raises `BusyError`."""
        self._require_no_transfer(now_ms)
        waiting = self._log.last_index - self._log.commit_index
        if (
            waiting + len(datas) > self._limits.uncommitted_entries_max
            or self._log.uncommitted_bytes + sum(map(len, datas))
            > self._limits.uncommitted_bytes_max
        ):
            raise BusyError(f"{waiting} commands wait for a majority", "retry in a moment")
        first = self._log.last_index + 1
        self._append_own("command", datas)
        return range(first, first + len(datas))

    def change_configuration(self, configuration: Configuration, now_ms: int) -> None:
        """Starts a membership change.  Raises `ConflictError`, `BusyError`."""
        self._require_no_transfer(now_ms)
        if self._log.is_configuration_pending or not self.term_committed:
            raise ConflictError("a change of the voters is not decided yet", "retry in a moment")
        if len(changed_voters(self._configuration, configuration)) > 1:
            raise ConflictError("two voters at once would change", "change one at a time")
        if not self._replication.followers():
            # Nobody was told anything so far: the first heartbeat is not late.
            self._heartbeat_deadline_ms = now_ms + self._timer.timing.heartbeat_ms
        # Followed from before the entry, so that newcomers are probed with it.
        self._replication.follow(configuration)
        self._append_own("configuration", [configuration.encode()])

    def read(self, read_id: int) -> None:
        """Takes a linearizable read.  Raises `BusyError`."""
        # What earlier leaders decided is known to be so only behind the first own entry.
        self._reads.add(read_id, max(self._log.commit_index, self.first_index))
        self._confirm_reads()

    def transfer(self, to: RaftId | None, now_ms: int) -> None:
        """Hands over to the voter `to`, None: to the best.  Raises `ConflictError`.

        It ends with an election, or after one election time-out without a change.
        """
        others = [voter for voter in self._configuration.voters if voter != self.raft_id]
        chosen = to or self._replication.best(others, self._live_since_ms(now_ms))
        if chosen not in others:
            raise ConflictError(
                f"{to} is no other voter" if to else "no other voter is there to take over",
                "see `mesh-cli nodes` for who votes",
            )
        if chosen != self.transfer_to(now_ms):
            self._transfer_deadline_ms = now_ms + self._timer.timing.election_max_ms
        self._successor, self._successor_told = chosen, False
        self._hand_over(now_ms)

    def _require_no_transfer(self, now_ms: int) -> None:
        if self.transfer_to(now_ms) is not None:
            raise BusyError("the lead is being handed over", "retry in a moment")

    # --- snapshots ----------------------------------------------------------------------------

    def offer_snapshot(  # noqa: PLR0917 - the fields of the offer
        self, to: RaftId, base: Base, size: int, digest: str, handle: str, now_ms: int
    ) -> None:
        """Offers a snapshot to a follower that still needs one."""
        offer = SnapshotOffer(
            sender=self.raft_id,
            to=to,
            term=self._term,
            base_index=base.index,
            base_term=base.term,
            configuration=base.configuration,
            size=size,
            digest=digest,
            handle=handle,
        )
        if self._replication.offer(offer, now_ms):
            self._outbox.send(offer)

    def snapshot_unavailable(self, to: RaftId, now_ms: int) -> None:
        """There is none now; it is asked for again later."""
        self._replication.snapshot_unavailable(to, now_ms)

    # --- answers ------------------------------------------------------------------------------

    def persisted(self, term: int, now_ms: int) -> None:
        """This node's own log grew durably, up to an entry of `term`."""
        self._term_is_durable = self._term_is_durable or term == self._term
        self._advance_commit(now_ms)

    def receive(self, ack: AppendAck | HeartbeatAck, now_ms: int) -> None:
        """A follower's answer in this term."""
        match ack:
            case AppendAck():
                self._on_append_ack(ack, now_ms)
            case HeartbeatAck():
                self._on_heartbeat_ack(ack, now_ms)

    def _on_append_ack(self, ack: AppendAck, now_ms: int) -> None:
        """A follower says what it holds, or refuses."""
        progress = self._replication.heard(ack.sender, now_ms)
        if progress is None:
            return
        if not ack.ok:
            if self._replication.refused(progress, ack, now_ms):
                self._send_appends(ack.sender)
        elif ack.index <= self._log.last_index:
            if self._replication.matched(ack.sender, ack.index):
                self._advance_commit(now_ms)
            if not self.is_over:
                self._send_appends(ack.sender)
                self._hand_over(now_ms)

    def _on_heartbeat_ack(self, ack: HeartbeatAck, now_ms: int) -> None:
        """A follower follows; what it may have lost is sent again."""
        progress = self._replication.heard(ack.sender, now_ms)
        if progress is None:
            return
        if ack.round > progress.round:
            progress.round = min(ack.round, self._reads.round)
            self._confirm_reads()
        offer = self._replication.offer_due(ack.sender, now_ms)
        if offer is not None:
            self._outbox.send(offer)
        self._send_appends(ack.sender, nudge=True)

    # --- inside -------------------------------------------------------------------------------

    @property
    def _configuration(self) -> Configuration:
        configuration = self._log.configuration
        assert configuration is not None, "a leader without a configuration"
        return configuration

    def _live_since_ms(self, now_ms: int) -> int:
        return now_ms - self._timer.timing.election_max_ms

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
            self._send_appends(raft)

    def _send_appends(self, raft: RaftId, *, nudge: bool = False) -> None:
        ready = self._replication.nudge(raft) if nudge else self._replication.appends(raft)
        # A sole voter leads before its term is synced: nothing of a term that a crash could make
        # it use twice may leave.  Later appends of the term promise nothing and need not wait.
        if self._term_is_durable:
            self._outbox.send_early(ready)
        else:
            for append in ready:
                self._outbox.send(append)
        for behind in self._replication.take_snapshots_needed():
            self._outbox.ask(SnapshotNeeded(behind))

    def _send_heartbeat(self, raft: RaftId) -> None:
        self._outbox.send(
            Heartbeat(
                sender=self.raft_id,
                to=raft,
                term=self._term,
                # Never past what the follower is known to hold: behind it its log may differ.
                commit=self._replication.commit_for(raft),
                round=self._reads.round if self._reads.is_open else 0,
            )
        )

    def _advance_commit(self, now_ms: int) -> None:
        """Commits what a majority holds, if it is of this leader's own term (figure 8)."""
        configuration = self._configuration
        index = self._replication.majority_index(configuration)
        if configuration.voters == (self.raft_id,):
            index = min(index, self._protected(configuration, now_ms))
        if index <= self._log.commit_index or self._log.term(index) != self._term:
            return
        self._log.commit_to(index)
        self._release_reads()
        self._broadcast()
        if not self._log.is_configuration_pending and self.raft_id not in configuration.voters:
            # It has led its own removal to the end (dissertation, 4.2.2).
            self.is_over = True

    def _protected(self, configuration: Configuration, now_ms: int) -> int:
        """The two-node rule: while a learner lives, a sole voter decides only what it holds too.

        Without one it goes on alone: everything on its disk counts.
        """
        held = self._replication.held_by_guards(configuration.learners, self._live_since_ms(now_ms))
        return self._log.last_index if held is None else held

    def _confirm_reads(self) -> None:
        """Ends the round that a majority answered, and starts the next one that is waited for."""
        self._count_round()
        if self._reads.wants_round and not self._reads.is_open:
            self._reads.start_round()
            # A sole voter is a majority.
            if not self._count_round():
                for voter in self._configuration.voters:
                    if voter != self.raft_id:
                        self._send_heartbeat(voter)
        self._release_reads()

    def _count_round(self) -> bool:
        own_round = self._reads.round
        self._reads.confirm(self._replication.majority_round(self._configuration, own_round))
        return not self._reads.is_open

    def _release_reads(self) -> None:
        for read_ids, index in self._reads.take_ready(self._log.commit_index):
            self._outbox.ask(ReadReady(read_ids, index))

    def _hand_over(self, now_ms: int) -> None:
        """Tells the successor to campaign as soon as it holds everything."""
        successor = self.transfer_to(now_ms)
        self._successor = successor
        if (
            successor is not None
            and not self._successor_told
            and self._replication.match(successor) == self._log.last_index
        ):
            self._successor_told = True
            self._outbox.send(TimeoutNow(sender=self.raft_id, to=successor, term=self._term))
