"""One simulated node: the driver's loop of `mesh.effects` in virtual time, over a disk that survives."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import ceil
from random import Random
from typing import Any

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
from mesh.election import Role
from mesh.errors import BusyError, ConflictError, NotLeaderError
from mesh.ids import RaftId, node_of
from mesh.log import Base, Entry, HardState, LogStorage
from mesh.membership import (
    AutopilotView,
    Configuration,
    MemberView,
    PeerWatch,
    next_change,
)
from mesh.messages import ConsensusMessage, Vote
from mesh.protocol import Limits, Raft, Timing
from tests.simulator.checks import Checks
from tests.simulator.machine import Machine
from tests.simulator.network import Network, Time
from tests.simulator.parameters import Parameters
from tests.simulator.snapshots import Snapshots

AUTOPILOT_MS = 100
AUTOPILOT_SPEED = 20
"""Its clock runs so much faster than the mesh's: it waits a minute before it replaces a voter."""
INBOX_MAX = 4_096
HEALTHY_DISK_MS_MAX = 2


@dataclass
class World:
    """What all nodes share."""

    parameters: Parameters
    random: Random
    time: Time
    network: Network
    checks: Checks
    disks: dict[RaftId, LogStorage]
    open_machine: Callable[[RaftId, Any], Machine]
    crash: Callable[["Node", int], None]
    split_change: Callable[["Node", frozenset[RaftId]], None]
    leaving: set[RaftId] = field(default_factory=set)
    """Who said that it goes."""
    trace: list[str] = field(default_factory=list)
    snapshots: list[tuple[Base, Any]] = field(default_factory=list)
    """Every snapshot that was offered; its handle is its place."""
    aimed: int = 0
    """Aimed crashes so far: a mesh that dies at every step decides nothing and shows nothing."""

    def aims(self, chance: float) -> bool:
        """Whether an aimed crash happens now."""
        bound = self.parameters.aimed_crashes_max
        if self.network.healed or self.aimed >= bound or self.random.random() >= chance:
            return False
        self.aimed += 1
        return True


@dataclass
class _Writing:
    """A batch whose sync runs."""

    hard_state: HardState | None
    entries: tuple[Entry, ...]
    late: list[ConsensusMessage]
    committed: list[Entry]


class Node:
    """A node with one data directory; `crash` and `start` again with the same."""

    def __init__(self, world: World, raft_id: RaftId) -> None:
        self.world = world
        self.raft_id = raft_id
        self.disk = world.disks[raft_id]
        self.skew_ms = world.random.randrange(world.parameters.skew_ms_max + 1)
        self.rate = 1 + world.random.uniform(-1, 1) * world.parameters.drift
        self.disk_ms_max = world.parameters.disk_ms_max
        if world.random.random() < 0.3:
            self.disk_ms_max = max(self.disk_ms_max, world.parameters.slow_disk_ms_max)
        self.images: list[Any] = []
        self.raft: Raft | None = None
        self.machine: Machine | None = None
        self.retired = False
        self.act_as_leader: Callable[[], None] | None = None
        self.life = 0
        self._inbox: list[ConsensusMessage] = []
        self._proposals: list[bytes] = []
        self._writing: _Writing | None = None
        self._to_apply: list[Entry] = []
        self.applied_index = 0
        self._paused_until_ms = 0
        self._wake_ms: int | None = None
        self._autopilot_ms = 0
        self._full_until_ms = 0
        self._voters: frozenset[RaftId] = frozenset()
        self._calls: list[Callable[[Raft], list[Effect]]] = []
        self._reads: dict[int, int] = {}
        self._inherits = False
        self._watch = PeerWatch()
        self._watched_term = 0
        self._snapshots = Snapshots(self)

    # --- life ---------------------------------------------------------------------------------

    @property
    def now_ms(self) -> int:
        """This node's monotonic clock: it goes a little wrong, and a suspended machine's jumps."""
        return self.skew_ms + int(self.world.time.now_ms * self.rate)

    @property
    def is_up(self) -> bool:
        return self.raft is not None

    @property
    def is_paused(self) -> bool:
        return self.world.time.now_ms < self._paused_until_ms

    @property
    def is_leader(self) -> bool:
        return self.raft is not None and self.raft.role is Role.LEADER

    def start(self) -> None:
        parameters = self.world.parameters
        self.life += 1
        self._wake_ms = None  # set where the clock of a machine that is down jumps
        self.machine = self.world.open_machine(
            self.raft_id, self.images[-1] if self.images else None
        )
        self.applied_index = self.machine.applied_index
        self.raft = Raft(
            raft_id=self.raft_id,
            storage=self.disk,
            timing=Timing(
                heartbeat_ms=parameters.heartbeat_ms,
                election_min_ms=parameters.election_min_ms,
                election_max_ms=parameters.election_max_ms,
            ),
            random=Random(f"{parameters.seed} {self.raft_id} {self.life}"),
            applied_index=self.applied_index,
            now_ms=self.now_ms,
            limits=Limits(
                append_entries_max=parameters.append_entries_max,
                window_appends_max=parameters.window_appends_max,
                applying_entries_max=parameters.applying_entries_max,
            ),
        )
        if not self.world.network.healed:
            self.raft.stretch(self.world.random.choice([100, 100, 100, 150, 400]))
        self._wake(0)

    def crash(self) -> None:
        """Everything in memory is gone; a write under way happened or not."""
        if self._writing is not None and self.world.random.random() < 0.5:
            self._write(self._writing)
        if self.machine is not None and not self.world.parameters.ledger_loses_tail:
            self._keep(self.machine.image())
        self.vanish()

    def vanish(self) -> None:
        """Nothing is left of the process; what its disk holds is for others to say."""
        if self.machine is not None:
            self.machine.close()
        self.life += 1
        self.raft = None
        self.machine = None
        self._inbox.clear()
        self._proposals.clear()
        self._calls.clear()
        self._reads.clear()
        self._inherits = False
        self._writing = None
        self._to_apply.clear()
        self._wake_ms = None
        self.world.checks.crashed(self.raft_id)

    def pause(self, length_ms: int) -> None:
        """The whole process stands still, as under SIGSTOP or a starving machine."""
        self._paused_until_ms = self.world.time.now_ms + length_ms

    def jump(self, length_ms: int) -> None:
        """The clock goes forward at once, as after a suspension."""
        self.skew_ms += length_ms
        self._wake(0)

    def fill_disk(self, length_ms: int) -> None:
        """No write succeeds for a while: each stops the node, until somebody has made room."""
        self._full_until_ms = self.world.time.now_ms + length_ms

    def heal(self) -> None:
        """No faults from now on."""
        self._paused_until_ms = self._full_until_ms = 0
        self.disk_ms_max = min(self.disk_ms_max, HEALTHY_DISK_MS_MAX)
        if self.raft is not None:
            self.raft.stretch(100)
            self._wake(0)

    def replace_machine(self, image: Any) -> None:
        """The state machine is another one from now on, durably."""
        if self.machine is not None:
            self.machine.close()
        self._to_apply.clear()
        self._keep(image)
        self.machine = self.world.open_machine(self.raft_id, image)
        self.applied_index = self.machine.applied_index
        self.world.checks.applied(self.raft_id, self.applied_index, self.machine.checksum())

    def _keep(self, image: Any) -> None:
        """This is what the next crash leaves of the state machine."""
        self.images = [image]

    # --- inputs -------------------------------------------------------------------------------

    def receive(self, message: ConsensusMessage) -> None:
        if self.raft is not None and len(self._inbox) < INBOX_MAX:
            self._inbox.append(message)
            self._wake(0)

    def propose(self, data: bytes) -> bool:
        if not self.is_leader:
            return False
        self._proposals.append(data)
        self._wake(0)
        return True

    def call(self, act: Callable[[Raft], list[Effect]]) -> None:
        """Something for the node's loop to do with its core."""
        if self.raft is not None:
            self._calls.append(act)
            self._wake(0)

    def transfer(self, to: RaftId | None) -> None:
        """Hands the lead over, if it has it and `to` can take it."""

        def act(raft: Raft) -> list[Effect]:
            with suppress(NotLeaderError, ConflictError):
                return raft.transfer_leadership(to, self.now_ms)
            return []

        self.call(act)

    def _wake(self, delay_ms: int) -> None:
        at_ms = max(self.world.time.now_ms + delay_ms, self._paused_until_ms)
        if self._wake_ms is not None and self._wake_ms <= at_ms:
            return
        self._wake_ms = at_ms
        life = self.life
        self.world.time.after(at_ms - self.world.time.now_ms, lambda: self._awake(life, at_ms))

    def _awake(self, life: int, at_ms: int) -> None:
        if life != self.life or self._wake_ms != at_ms:
            return
        self._wake_ms = None
        if self.world.time.now_ms < self._paused_until_ms:
            self._wake(0)
        elif self.raft is not None and self._writing is None:
            self._perform(self._take_inputs(self.raft))
            self._schedule()

    def _schedule(self) -> None:
        if self.raft is None or self._writing is not None:
            return
        if self._inbox or self._proposals or self._calls:
            self._wake(0)
            return
        waiting_ms = self.raft.next_deadline_ms() - self.now_ms
        if self.is_leader:
            waiting_ms = min(waiting_ms, AUTOPILOT_MS)
        self._wake(ceil(max(0, waiting_ms) / self.rate))

    def _take_inputs(self, raft: Raft) -> list[Effect]:
        batch_max = INBOX_MAX if self.world.network.healed else self.world.parameters.batch_max
        effects: list[Effect] = []
        if self.applied_index > raft.applied_index:
            effects += self._step(raft.applied(self.applied_index, self.now_ms))
        taken, self._inbox = self._inbox[:batch_max], self._inbox[batch_max:]
        for message in taken:
            effects += self._step(raft.receive(message, self.now_ms))
        proposals, self._proposals = self._proposals[:batch_max], self._proposals[batch_max:]
        if proposals:
            # A refused client asks again.
            with suppress(NotLeaderError, BusyError):
                effects += self._step(raft.propose(proposals, self.now_ms)[1])
        calls, self._calls = self._calls, []
        for act in calls:
            effects += self._step(act(raft))
        links = self.world.parameters.broken_links
        if links and raft.leader is not None and self.world.random.random() < links:
            # The connection to the leader broke; whether the leader lives is another matter.
            raft.suspect(raft.leader, self.now_ms)
        effects += self._read(raft)
        effects += self._lead(raft)
        if self.now_ms >= raft.next_deadline_ms():
            effects += self._step(raft.tick(self.now_ms))
            assert raft.next_deadline_ms() > self.now_ms, "the core would spin"
        return effects

    def _read(self, raft: Raft) -> list[Effect]:
        """A client reads, now and then, whatever was decided until now."""
        if not self.is_leader or self.world.random.random() >= self.world.parameters.reads:
            return []
        with suppress(NotLeaderError, BusyError):
            read_id, effects = raft.read_index(self.now_ms)
            self._reads[read_id] = len(self.world.checks.decided)
            return self._step(effects)
        return []

    def _lead(self, raft: Raft) -> list[Effect]:
        now_ms = self.world.time.now_ms
        if raft.role is not Role.LEADER or now_ms < self._autopilot_ms or self.machine is None:
            return []
        self._autopilot_ms = now_ms + AUTOPILOT_MS
        if self.act_as_leader is not None and raft.term_committed:
            self.act_as_leader()
        view = self._autopilot_view(raft, self.machine.members())
        change = next_change(view)
        if change is None:
            return self._hand_over(raft, view)
        try:
            return self._step(raft.change_configuration(change, self.now_ms))
        except BusyError:
            return []  # the lead is being handed over
        except ConflictError as error:
            raise AssertionError(
                f"the autopilot asked for what the core refuses: {error}"
            ) from None

    def _autopilot_view(self, raft: Raft, members: Sequence[MemberView]) -> AutopilotView:
        if self._watched_term != raft.term:
            self._watch, self._watched_term = PeerWatch(), raft.term
        assert raft.configuration is not None
        return AutopilotView(
            leader=raft.raft_id,
            configuration=raft.configuration,
            members=tuple(
                replace(member, leaving=member.raft_id in self.world.leaving) for member in members
            ),
            peers=self._watch.look(raft.progress(), self.now_ms * AUTOPILOT_SPEED),
            last_index=raft.last_index,
            change_pending=raft.pending_configuration is not None,
            term_committed=raft.term_committed,
        )

    def _hand_over(self, raft: Raft, view: AutopilotView) -> list[Effect]:
        """A leader that goes, or is taken out, leads until somebody else can."""
        own = view.member(raft.raft_id)
        stays = own is not None and not own.leaving
        if stays or not view.members or view.change_pending or not view.term_committed:
            return []
        if raft.transfer_to is not None:
            return []
        with suppress(ConflictError):
            return self._step(raft.transfer_leadership(None, self.now_ms))
        return []

    def _step(self, effects: list[Effect]) -> list[Effect]:
        assert self.raft is not None
        self.world.checks.stepped(self.raft, self.world.disks)
        return effects

    # --- effects, in their order ----------------------------------------------------------------

    def _perform(self, effects: Sequence[Effect]) -> None:  # noqa: PLR0912 - one arm for each effect
        raft = self.raft
        assert raft is not None
        batch = _Writing(None, (), [], [])
        wanted = False
        for effect in effects:
            match effect:
                case Send(message=message, before_sync=True):
                    self.send(message)
                case Send(message=message):
                    batch.late.append(message)
                case Persist(hard_state=hard_state, entries=entries):
                    wanted = True
                    batch.hard_state = hard_state or batch.hard_state
                    if entries:
                        kept = [e for e in batch.entries if e.index < entries[0].index]
                        batch.entries = (*kept, *entries)
                case Commit(entries=entries):
                    self.world.checks.committed(raft, entries)
                    batch.committed.extend(entries)
                    self._note_voters(entries)
                case SnapshotNeeded(to=to):
                    self._snapshots.make(to)
                case InstallSnapshot(offer=offer):
                    self._snapshots.install(offer)
                case ReadReady(read_ids=read_ids, index=index):
                    for read_id in read_ids:
                        self.world.checks.read(self.raft_id, self._reads.pop(read_id), index)
                case LeaderChanged(term=term, leader=leader):
                    self.world.trace.append(
                        f"{self.world.time.now_ms} {self.raft_id} term {term} leader {leader}"
                    )
        if not wanted:
            self._finish(batch)
            return
        self._writing = batch
        self.before_sync(batch.late)
        if self._is_aimed_at_change(batch):
            return
        life = self.life
        delay_ms = self.world.random.randrange(self.disk_ms_max + 1)
        self.world.time.after(delay_ms, lambda: self._synced(life, batch))

    def _note_voters(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.kind == "configuration":
                self._voters = frozenset(Configuration.decode(entry.data).voters)

    def _is_aimed_at_change(self, batch: _Writing) -> bool:
        """Whether the leader dies while others know of its change of the voters and its disk does not."""
        if not self.is_leader or all(entry.kind != "configuration" for entry in batch.entries):
            return False
        if self.world.aims(self.world.parameters.aimed_at_changes):
            if self.world.random.random() < 0.3:
                self.world.crash(self, self.world.parameters.aimed_down_ms_max)
                return True
            self.world.split_change(self, self._voters)
        return False

    def _cannot_write(self) -> bool:
        """Whether a write fails now."""
        if self.world.network.healed:
            return False
        if self.world.time.now_ms < self._full_until_ms:
            return True
        return self.world.random.random() < self.world.parameters.failing_writes

    def before_sync(self, late: list[ConsensusMessage]) -> None:
        """Nothing leaves here; a planted bug sends too early."""

    def persist(self, hard_state: HardState | None, entries: tuple[Entry, ...]) -> None:
        """Writes to the disk; a planted bug forgets some of it."""
        self.disk.persist(hard_state, entries)

    def _write(self, batch: _Writing) -> None:
        if batch.entries:
            prev_term = self.disk.term(batch.entries[0].index - 1)
            assert prev_term is not None
            self.world.checks.written(self.raft_id, prev_term, batch.entries)
        self.persist(batch.hard_state, batch.entries)

    def send(self, message: ConsensusMessage) -> None:
        """It leaves the host, with whatever it promises."""
        self.world.checks.promised(message, self.disk)
        self.world.network.send(message)

    def _synced(self, life: int, batch: _Writing) -> None:
        if life != self.life or self.raft is None:
            return
        if self._cannot_write():
            self.world.crash(self, self.world.parameters.down_ms_max)
            return
        self._write(batch)
        self._writing = None
        if self._is_aimed_at(batch):
            for message in batch.late:
                self.send(message)
            self._crash_aimed()
            return
        self._finish(batch)
        if batch.entries and self.raft is not None:
            last = batch.entries[-1]
            self._perform(self._step(self.raft.persisted(last.index, last.term, self.now_ms)))
        self._schedule()

    def _is_aimed_at(self, batch: _Writing) -> bool:
        """Whether a crash hits the moment after a sync at which it can do most harm."""
        parameters = self.world.parameters
        if any(isinstance(m, Vote) and m.granted and not m.pre for m in batch.late):
            return self.world.aims(parameters.aimed_at_votes)
        first = next((entry.index for entry in batch.entries if entry.kind == "empty"), None)
        if not self.is_leader or first is None:
            return False
        self._inherits = first > len(self.world.checks.decided) + 1
        if parameters.aimed_at_tails:
            aimed = self._may_diverge and not self._inherits
            return aimed and self.world.aims(parameters.aimed_at_tails)
        return self.world.aims(parameters.aimed_at_new_leaders)

    @property
    def _may_diverge(self) -> bool:
        """Whether others could lead while this leader is down."""
        configuration = None if self.raft is None else self.raft.configuration
        return configuration is not None and len(configuration.voters) > 2

    def _is_aimed_at_commit(self, batch: _Writing) -> bool:
        """Whether a leader dies just after it decided."""
        parameters = self.world.parameters
        if not batch.committed or not self.is_leader:
            return False
        if parameters.aimed_at_tails:
            aimed = self._may_diverge and self._inherits
            return aimed and self.world.aims(parameters.aimed_at_tails)
        return self.world.aims(parameters.aimed_at_commits)

    def _crash_aimed(self) -> None:
        """Down at once, perhaps with everything that had not left the host yet."""
        parameters = self.world.parameters
        if self.world.random.random() < parameters.aimed_crash_takes_sent:
            self.world.network.take_back(node_of(self.raft_id))
        self.world.crash(self, parameters.aimed_down_ms_max)

    def _finish(self, batch: _Writing) -> None:
        if self._is_aimed_at_commit(batch):
            for message in batch.late:
                self.send(message)
            self._crash_aimed()
            return
        for message in batch.late:
            self.send(message)
        if batch.committed:
            if not self._to_apply:
                life = self.life
                delay_ms = self.world.random.randrange(self.disk_ms_max + 1)
                self.world.time.after(delay_ms, lambda: self._apply(life))
            self._to_apply.extend(batch.committed)

    def _apply(self, life: int) -> None:
        if life != self.life or self.machine is None:
            return
        if self.world.time.now_ms < self._paused_until_ms:
            wait_ms = self._paused_until_ms - self.world.time.now_ms
            self.world.time.after(wait_ms, lambda: self._apply(life))
            return
        if self._cannot_write():
            self.world.crash(self, self.world.parameters.down_ms_max)
            return
        batch, self._to_apply = self._to_apply, []
        if not batch:
            return  # a snapshot came in between
        for command_id, index in self.machine.apply(batch):
            self.world.checks.took_effect(self.raft_id, command_id, index)
        self.applied_index = self.machine.applied_index
        assert self.applied_index == batch[-1].index, "everything handed out is applied"
        self.world.checks.applied(self.raft_id, self.applied_index, self.machine.checksum())
        if self.world.random.random() < self.world.parameters.images:
            self._keep(self.machine.image())
            self._snapshots.compact(self.applied_index)
        self._wake(0)
