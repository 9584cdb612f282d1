"""The one loop that feeds the consensus core and performs its effects, in their order.

Inputs that arrive while a sync runs wait and form the next batch: that is the group commit.
Applying runs beside the loop, so that a large batch of commands delays no heartbeat, and so do
snapshots (`node.consensus.snapshot_duty`) and the care of the log (`node.consensus.upkeep`).
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import structlog

from ledger.commands import Outcome
from mesh import clock
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
from mesh.errors import BusyError, ConflictError, DarkStreamError, NotLeaderError
from mesh.ids import CommandId, NodeId, RaftId, node_of
from mesh.log import Base, Entry, HardState, LogStorage
from mesh.membership import Configuration
from mesh.messages import ConsensusMessage, HeartbeatAck, Message, VoteRequest
from mesh.protocol import Raft, Timing
from node.consensus.compaction import Keep
from node.consensus.divergence import OwnMarks
from node.consensus.ledger_port import APPLY_BATCH_MAX, Ledger, apply_own, next_batch
from node.consensus.log_writer import LogWriter
from node.consensus.news import News, Touches
from node.consensus.outgoing import Outgoing
from node.consensus.proposals import Proposals, Waiting, outcomes_of
from node.consensus.snapshot_duty import Shelf, SnapshotDuty
from node.consensus.upkeep import Upkeep
from node.signals import Alarm, IndexWaits, Quiet, Signal

INBOX_MAX: Final = 4_096
"""Consensus messages waiting; more are dropped, which Raft repairs by repeating."""
BATCH_MAX: Final = 512
"""Inputs handled before effects are performed: bounds the time between two syncs."""
APPLY_WAIT_S: Final = 0.01
"""A follower for which nobody waits applies in one transaction what comes meanwhile: a commit of its own costs each some 0.2 ms."""
APPLIES_AT_ONCE: Final = 8
"""But so many at once after quiet: the lease of a lone job is for one of the followers, mostly."""
APPLY_AGAIN_MS: Final = 50
"""One more of these so often."""
CALLS_MAX: Final = 64
"""Membership changes, transfers and answers about snapshots that wait; more are answered `busy`."""
READS_MAX: Final = 4_096
"""Linearizable reads that wait for a majority's word; more are answered `busy`."""

_log = structlog.get_logger("consensus")

T = TypeVar("T")
CoreNews = LeaderChanged | ReadReady | SnapshotNeeded | InstallSnapshot
"""What neither the disk nor another node is concerned with."""


class Driver:
    """Runs one `Raft`; the rest of the node proposes through it and waits on its signals."""

    def __init__(
        self,
        raft: Raft,
        log: LogStorage,
        ledger: Ledger,
        send: Callable[[NodeId, Message], bool],
        *,
        shelf: Shelf,
        keep: Keep | None = None,
        timing: Timing | None = None,
    ) -> None:
        self.raft = raft
        self.leader_changed = Signal()
        self.news = News(node_of(raft.raft_id))
        self.ledger_changed = self.news.all
        self.applied_index = raft.applied_index
        self._log = log
        self._ledger = ledger
        self._outgoing = Outgoing(send)
        self._inbox: asyncio.Queue[ConsensusMessage] = asyncio.Queue(INBOX_MAX)
        self._proposals = Proposals()
        self._calls: asyncio.Queue[_Call] = asyncio.Queue(CALLS_MAX)
        self._reads: list[asyncio.Future[int]] = []
        self._reading: dict[int, list[asyncio.Future[int]]] = {}
        self._restart: tuple[Base, asyncio.Future[None]] | None = None
        self._to_apply: list[Entry] = []
        self._newly_applied = raft.applied_index
        self._wake = asyncio.Event()
        self._alarm = Alarm(self._wake.set)
        self._apply_wake = asyncio.Event()
        self._apply_later: asyncio.TimerHandle | None = None
        self._quiet = Quiet(APPLY_AGAIN_MS, APPLIES_AT_ONCE)
        self._applied = IndexWaits()
        self._writer = LogWriter(raft, log, send=self._outgoing.say, tell=self._tell)
        self._apply_thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self.dropped = 0
        self.marks = OwnMarks(ledger.checksum_at)
        self.marks.replaced(raft.applied_index)
        self.abstains = False
        """No vote is given: this replica is wrong, and none that trusts it should lead."""
        self.snapshots = SnapshotDuty(self, log, ledger, shelf, keep or Keep())
        self.upkeep = Upkeep(
            self,
            log,
            keep=keep or Keep(),
            election_min_ms=(timing or Timing()).election_min_ms,
            held=self.snapshots.held,
        )

    # --- what others ask --------------------------------------------------------------------

    @property
    def leader(self) -> RaftId | None:
        """Who leads, as far as this node knows."""
        return self.raft.leader

    @property
    def is_leader(self) -> bool:
        """Whether this node leads."""
        return self.raft.leader == self.raft.raft_id

    @property
    def log_writes(self) -> int:
        """Writes of the log so far, each with one sync."""
        return self._writer.writes

    def receive(self, message: ConsensusMessage) -> None:
        """Takes a consensus message; drops it when too many wait."""
        if self.abstains and isinstance(message, VoteRequest):
            return
        if isinstance(message, HeartbeatAck) and self._writer.heard(message):
            return
        try:
            self._inbox.put_nowait(message)
        except asyncio.QueueFull:
            self.dropped += 1
        self._wake.set()

    def link_lost(self, node: NodeId) -> None:
        """The connection to this node broke: if it leads, its process may have ended."""
        leader = self.raft.leader
        if leader is not None and node_of(leader) == node:
            self.raft.suspect(leader, clock.monotonic_ms())
            self._wake.set()

    async def propose(self, command_id: CommandId, data: bytes, timeout_s: float) -> Outcome:
        """Commits and applies a sealed command here, on the leader.

        Raises `NotLeaderError`, `BusyError`, `UsageError` (too large), or TimeoutError when it is not known whether the
        command was committed: repeat it with the same id.
        """
        # A time-out leaves the future for a repetition of the same id; losing the lead ends it.
        async with asyncio.timeout(timeout_s):
            return await asyncio.shield(self._enqueue(command_id, data))

    async def propose_all(
        self, commands: Sequence[tuple[CommandId, bytes]], timeout_s: float
    ) -> list[Outcome | DarkStreamError]:
        """Like `propose` for several commands: each one's outcome, or why it has none (yet)."""
        asked: list[Waiting | DarkStreamError] = []
        for command_id, data in commands:
            try:
                asked.append(self._enqueue(command_id, data))
            except DarkStreamError as error:
                asked.append(error)
        return await outcomes_of(asked, timeout_s)

    def _enqueue(self, command_id: CommandId, data: bytes) -> Waiting:
        if not self.is_leader:
            raise NotLeaderError("this node is not the coordinator", "ask the coordinator")
        future = self._proposals.add(command_id, data)
        self._wake.set()
        return future

    async def change_configuration(self, configuration: Configuration) -> None:
        """Starts a membership change.  Raises `NotLeaderError`, `ConflictError`, `BusyError`."""
        await self.ask_core(lambda now_ms: self.raft.change_configuration(configuration, now_ms))

    async def transfer_leadership(self, to: NodeId | None, timeout_s: float) -> NodeId:
        """Hands the lead to the voter `to`, or to the one that fits best; returns who leads then.

        Raises `NotLeaderError`, `ConflictError` when nobody fits, `BusyError`, and TimeoutError when
        nobody took over in time: then this node goes on leading, or an election runs.
        """
        configuration = self.raft.configuration
        voters = configuration.voters if configuration is not None else ()
        target = next((voter for voter in voters if node_of(voter) == to), None)
        if to is not None and target is None:
            raise ConflictError(f"node {to} does not vote", "choose a voter: `mesh-cli nodes`")
        async with asyncio.timeout(timeout_s):
            await self.ask_core(lambda now_ms: self.raft.transfer_leadership(target, now_ms))
            while self.leader is None or self.is_leader:
                await self.leader_changed.wait(self.leader_changed.count)
            return node_of(self.leader)

    async def read_index(self, timeout_s: float) -> int:
        """An index with everything that was acknowledged before this call; confirmed by a majority.

        A ledger that has applied it may answer a linearizable read.  On the leader alone.  Raises
        `NotLeaderError`, `BusyError`, TimeoutError.
        """
        if not self.is_leader:
            raise NotLeaderError("this node is not the coordinator", "ask the coordinator")
        if len(self._reads) >= READS_MAX:
            raise BusyError("too many reads wait", "retry in a moment")
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._reads.append(future)
        self._wake.set()
        async with asyncio.timeout(timeout_s):
            return await future

    async def wait_applied(self, index: int, timeout_s: float) -> bool:
        """Whether this node's ledger holds the entry of this index before the time is over."""
        if self.applied_index >= index:
            return True
        self._apply_wake.set()
        return await self._applied.wait(index, timeout_s)

    def tell_commit(self, node: NodeId) -> None:
        """This node waits for what was just decided: it hears of it before anything else."""
        self._outgoing.tell(node)

    # --- what snapshots and upkeep ask ----------------------------------------------------------

    async def ask_core(self, call: Callable[[int], list[Effect]]) -> None:
        """Has the core answer within the loop's order; raises its `DarkStreamError`, and `BusyError`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            self._calls.put_nowait((call, future))
        except asyncio.QueueFull:
            raise BusyError("too many changes wait", "retry in a moment") from None
        self._wake.set()
        await future

    async def on_log_thread(self, work: Callable[[], T]) -> T:
        """Runs between two writes of the log."""
        return await self._writer.run(work)

    async def on_ledger_thread(self, work: Callable[[], T]) -> T:
        """Runs between two batches of applied entries."""
        return await asyncio.get_running_loop().run_in_executor(self._apply_thread, work)

    async def make_durable(self) -> int:
        """The applied index that the ledger holds durably from now on."""
        return await self.on_ledger_thread(self._ledger.make_durable)

    def log_base(self) -> Base:
        """What stands before the first entry that the log has."""
        return self._log.base()

    async def restart_log(self, base: Base) -> None:
        """The ledger was replaced by a snapshot at `base`: log and core follow."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._restart = (base, future)
        self._wake.set()
        await future

    # --- the loops ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs until cancelled or until storage fails, which must end the node."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._consensus_loop(), name="consensus")
                group.create_task(self._apply_loop(), name="apply")
                group.create_task(self.snapshots.run(), name="snapshots")
                group.create_task(self.upkeep.run(), name="upkeep")
        finally:
            self._proposals.cancel()
            self._outgoing.close()
            self._alarm.close()
            if self._apply_later is not None:
                self._apply_later.cancel()
            self._writer.close()
            self._apply_thread.shutdown(wait=True)

    async def _consensus_loop(self) -> None:
        while True:
            await self._wait_for_input()
            effects = self._take_inputs()
            while effects:
                effects = await self._perform(effects)
            if self._restart is not None:
                base, future = self._restart
                self._restart = None
                effects = await self._follow_ledger(base)
                while effects:
                    effects = await self._perform(effects)
                future.set_result(None)

    async def _follow_ledger(self, base: Base) -> list[Effect]:
        # Between two batches: what the last one promised is in the log's hard state.
        state = self._log.hard_state()
        restarted = HardState(term=state.term, vote=state.vote, commit=base.index)
        await self.on_log_thread(lambda: self._log.restart_from(base, restarted))
        effects = self.raft.installed(base, clock.monotonic_ms())
        self.marks.replaced(base.index)
        self._moved(base.index, None)
        return effects

    async def _wait_for_input(self) -> None:
        if self._wake.is_set():
            await asyncio.sleep(0)
            return
        self._alarm.set(self.raft.next_deadline_ms())
        await self._wake.wait()

    def _take_inputs(self) -> list[Effect]:
        self._wake.clear()
        now_ms = clock.monotonic_ms()
        effects: list[Effect] = []
        if self._newly_applied > self.raft.applied_index:
            effects += self.raft.applied(self._newly_applied, now_ms)
        for _ in range(min(BATCH_MAX, self._inbox.qsize())):
            effects += self.raft.receive(self._inbox.get_nowait(), now_ms)
        effects += self._take_calls(now_ms)
        effects += self._take_proposals(now_ms)
        effects += self._take_reads(now_ms)
        overdue_ms = now_ms - self.raft.next_deadline_ms()
        if overdue_ms >= 0:
            # Told first: a loop that stood still has not read yet what its leader said meanwhile,
            # and the stretch gives it the time to.
            self.upkeep.late(overdue_ms, now_ms)
        if now_ms >= self.raft.next_deadline_ms():
            effects += self.raft.tick(now_ms)
        if not (self._inbox.empty() and self._proposals.is_empty):
            self._wake.set()
        return effects

    def _take_calls(self, now_ms: int) -> list[Effect]:
        effects: list[Effect] = []
        while not self._calls.empty():
            call, future = self._calls.get_nowait()
            try:
                effects += call(now_ms)
            except (NotLeaderError, ConflictError, BusyError) as error:
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(None)
        return effects

    def _take_reads(self, now_ms: int) -> list[Effect]:
        if not self._reads:
            return []
        reads, self._reads = self._reads, []
        try:
            # All that wait share one round of the leader's word.
            read_id, effects = self.raft.read_index(now_ms)
        except (NotLeaderError, BusyError) as error:
            _refuse(reads, error)
            return []
        self._reading[read_id] = reads
        return effects

    def _take_proposals(self, now_ms: int) -> list[Effect]:
        batch = self._proposals.take(BATCH_MAX)
        if not batch:
            return []
        try:
            _, effects = self.raft.propose([data for _, data in batch], now_ms)
        except (NotLeaderError, BusyError) as error:
            for command_id, _ in batch:
                self._proposals.fail(command_id, error)
            return []
        return effects

    def _follow_leader(self, term: int, leader: RaftId | None) -> None:
        _log.info("leader", term=term, leader=leader and node_of(leader))
        lost = NotLeaderError("this node lost the lead", "ask again")
        if leader != self.raft.raft_id:
            self._proposals.fail_all(lost)
        # A read that was not ready never will be, even when this node leads again.
        for reads in self._reading.values():
            _refuse(reads, lost)
        self._reading.clear()
        self.leader_changed.set()

    def _reads_ready(self, read_ids: Sequence[int], index: int) -> None:
        for read_id in read_ids:
            for future in self._reading.pop(read_id, ()):
                if not future.done():
                    future.set_result(index)

    async def _perform(self, effects: list[Effect]) -> list[Effect]:
        late: list[ConsensusMessage] = []
        hard_state: HardState | None = None
        entries: list[Entry] = []
        committed: list[Entry] = []
        for effect in effects:
            match effect:
                case Send(message=message, before_sync=True):
                    self._outgoing.say(message)
                case Send(message=message):
                    late.append(message)
                case Persist(hard_state=state, entries=more):
                    hard_state = state or hard_state
                    entries = _overlay(entries, more)
                case Commit(entries=more):
                    committed.extend(more)
                case LeaderChanged() | ReadReady() | SnapshotNeeded() | InstallSnapshot():
                    self._tell(effect)
        held: list[Effect] = []
        if hard_state is not None or entries:
            held = await self._writer.persist(hard_state, tuple(entries))
        self._outgoing.say_all(late)
        if committed:
            self._take_committed(committed)
        if not entries:
            return held
        last = entries[-1]
        return held + self.raft.persisted(last.index, last.term, clock.monotonic_ms())

    def _tell(self, effect: CoreNews) -> None:
        match effect:
            case LeaderChanged(term=term, leader=leader):
                self._follow_leader(term, leader)
            case ReadReady(read_ids=read_ids, index=index):
                self._reads_ready(read_ids, index)
            case SnapshotNeeded(to=to):
                self.snapshots.needed(to)
            case InstallSnapshot(offer=offer):
                self.snapshots.install(offer)

    def _take_committed(self, entries: Sequence[Entry]) -> None:
        self._to_apply.extend(entries)
        full = len(self._to_apply) >= APPLY_BATCH_MAX
        if self.is_leader or self._applied.is_waited_for or full:
            self._apply_wake.set()
        elif self._apply_later is not None:
            pass
        elif self._quiet.allows(clock.monotonic_ms()):
            self._apply_wake.set()
        else:
            loop = asyncio.get_running_loop()
            self._apply_later = loop.call_later(APPLY_WAIT_S, self._apply_now)

    def _apply_now(self) -> None:
        self._apply_later = None
        self._apply_wake.set()

    async def _apply_loop(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._apply_wake.wait()
            self._apply_wake.clear()
            while self._to_apply:
                batch = next_batch(self._to_apply)
                del self._to_apply[: len(batch)]
                done = await loop.run_in_executor(
                    self._apply_thread, apply_own, self._ledger, batch
                )
                self.upkeep.applied([(entry.index, len(entry.data)) for entry in batch])
                for _, command_id, outcome in done:
                    if command_id is not None and outcome is not None:
                        self._proposals.resolve(CommandId(command_id), outcome)
                self._moved(batch[-1].index, self._ledger.touched)

    def _moved(self, index: int, touched: Touches) -> None:
        """The ledger is at `index`, or further already: a snapshot overtakes what waited."""
        before = self.applied_index
        self.applied_index = self._newly_applied = max(index, before)
        self.marks.applied(self.applied_index)
        self._applied.reached(self.applied_index)
        self.news.tell(touched, self.applied_index - before)
        self._wake.set()


_Call = tuple[Callable[[int], list[Effect]], asyncio.Future[None]]


def _refuse(futures: Sequence[asyncio.Future[int]], error: DarkStreamError) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)


def _overlay(entries: list[Entry], more: Sequence[Entry]) -> list[Entry]:
    """Two persist effects of one batch as one: the later replaces from its first index on."""
    if not more or not entries:
        return entries + list(more)
    kept = [entry for entry in entries if entry.index < more[0].index]
    return kept + list(more)
