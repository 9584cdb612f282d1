"""The effects of one call of the core, in the order that its driver owes them."""

from collections.abc import Iterable

from mesh.effects import (
    Commit,
    Effect,
    InstallSnapshot,
    LeaderChanged,
    Persist,
    ReadReady,
    Send,
    SnapshotNeeded,
)
from mesh.ids import RaftId
from mesh.log import HardState
from mesh.messages import Append, AppendAck, ConsensusMessage, Vote, VoteRequest
from mesh.raftlog import RaftLog
from mesh.replication import Limits


class Outbox:
    """Collects messages, and finds out at the end of a call what else is news since the last one."""

    def __init__(
        self, raft_id: RaftId, log: RaftLog, limits: Limits, hard_state: HardState
    ) -> None:
        self._raft_id = raft_id
        self._log = log
        self._limits = limits
        self._saved = hard_state
        self._told = LeaderChanged(term=hard_state.term, leader=None)
        self._early: list[Send] = []
        self._late: list[Send] = []
        self._asked: list[SnapshotNeeded | InstallSnapshot | ReadReady] = []

    def send(self, message: ConsensusMessage) -> None:
        """Queues a message that leaves when everything before it is durable."""
        self._late.append(Send(message))

    def request_vote(self, voter: RaftId, term: int, *, pre: bool, transfer: bool) -> None:
        """Asks for a vote or a pre-vote for a log that ends like this node's."""
        self.send(
            VoteRequest(
                sender=self._raft_id,
                to=voter,
                term=term,
                last_index=self._log.last_index,
                last_term=self._log.last_term,
                pre=pre,
                transfer=transfer,
            )
        )

    def vote(self, request: VoteRequest, term: int, *, granted: bool) -> None:
        """Answers a request for a vote or a pre-vote."""
        self.send(
            Vote(
                sender=self._raft_id,
                to=request.sender,
                term=term,
                granted=granted,
                pre=request.pre,
            )
        )

    def acknowledge(self, leader: RaftId, term: int, index: int) -> None:
        """Promises that the log up to `index` matches the leader's and is durable."""
        self.send(AppendAck(sender=self._raft_id, to=leader, term=term, ok=True, index=index))

    def refuse(self, leader: RaftId, term: int, index: int, prev_term: int = 0) -> None:
        """Says that (`index`, `prev_term`) does not match, and where the logs may."""
        hint_index, hint_term = self._log.agreeing(index, prev_term)
        self.send(
            AppendAck(
                sender=self._raft_id,
                to=leader,
                term=term,
                ok=False,
                index=index,
                hint_index=hint_index,
                hint_term=hint_term,
            )
        )

    def send_early(self, appends: Iterable[Append]) -> None:
        """Queues appends that promise nothing of this node's own disk."""
        for append in appends:
            self._early.append(Send(append, before_sync=True))

    def ask(self, effect: SnapshotNeeded | InstallSnapshot | ReadReady) -> None:
        """Queues what the driver has to do, behind what was committed before."""
        self._asked.append(effect)

    def flush(
        self, *, term: int, vote: RaftId | None, leader: RaftId | None, applied_index: int | None
    ) -> list[Effect]:
        """Early messages, what to persist, the other messages, what to apply, what to do, who leads.

        `applied_index` is None while a snapshot replaces the ledger: nothing is applied meanwhile.
        """
        log = self._log
        effects: list[Effect] = [*self._early]
        saved = self._saved
        # The commit index alone is not worth a sync: it is learnt again.
        if log.has_unpersisted or term != saved.term or vote != saved.vote:
            effects.append(self._persist(HardState(term=term, vote=vote, commit=log.commit_index)))
        effects += self._late
        if effects:
            self._early.clear()
            self._late.clear()
        if applied_index is not None and log.handed_index < log.commit_index:
            self._commit(effects, applied_index)
        if self._asked:
            effects += self._asked
            self._asked.clear()
        told = self._told
        if leader != told.leader or (leader is not None and term != told.term):
            self._told = LeaderChanged(term=term, leader=leader)
            effects.append(self._told)
        return effects

    def _persist(self, state: HardState) -> Persist:
        changed = None if state == self._saved else state
        self._saved = state
        return Persist(changed, self._log.take_unpersisted())

    def _commit(self, effects: list[Effect], applied_index: int) -> None:
        while True:
            ahead = self._log.handed_index - applied_index
            entries = self._log.take_committed(
                ahead_max=self._limits.applying_entries_max - ahead,
                bytes_max=self._limits.commit_bytes_max,
            )
            if not entries:
                return
            effects.append(Commit(entries))
