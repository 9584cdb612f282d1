"""Which task goes to which node: pure, from a view to commands, and why a job waits, from the same code.

Order: priority, then the tenant that had least of its share, then age; every `OLDEST_EVERY`th lease
goes to the oldest task that is not of the highest priority, so that none waits for ever.  Choice: among the nodes
that can, where it is likely to be done first, by the measured speeds of nodes and links.  Where
nothing was measured yet: the least share of slots taken, then the owner, which fetches nothing, then
more processors; load comes before locality, so that the films of one owner are spread.  Near the end
a slow node does not begin what a faster one, though still busy, would have done sooner.

A lease is granted ahead of a slot that is about to be free (`lines`), so that a node fetches while it
encodes and never idles between two tasks; what waits so long elsewhere that an idle node would have
done it sooner is asked back.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from ledger.commands import LEASES_PER_COMMAND_MAX, Command, GrantLeases, Lease, SpeculateLeases
from ledger.device_slots import CPU, DeviceLease, GrantDevices
from ledger.estimates import Speeds
from ledger.jobs import AT_OWNER, can_do
from ledger.lines import AHEAD_MS_MAX, Line, ends_of_waiting, lead_ms, lines_of
from ledger.placing import lacks
from ledger.scheduler_view import NodeView, SchedulerView, TaskView, Turns
from ledger.seats import choice_at, is_at_processor, wanted_most, with_seats
from ledger.speculation import speculate

OLDEST_EVERY: Final = 8
"""Leases of which one goes to the oldest task: an eighth of the mesh is what its wait may cost."""
PLANNED_AHEAD_MAX: Final = 16
"""Planned tasks of a kind (tenant, profile, place) of one owner that wait: enough for every slot, without reading a library ahead."""
SPARE_BYTES: Final = 256 << 20
"""Disk that work leaves free: logs, the ledger and the machine's owner need some."""
LINK_BYTES_S: Final = 50_000_000
"""Of a link that was not measured yet: half a gigabit, between Wi-Fi and a wired home."""
AHEAD_LOOKED_AT_MAX: Final = 64
"""Tasks that one round tries in vain to lease ahead once all slots are taken: each costs a look at every node."""
BACK_MS: Final = 2_000
"""What a lease that is asked back must win by at least: asking and granting anew take a heartbeat."""
LATE_TIMES: Final = 2
"""Times the time that a lease may be granted ahead: one that likely waits longer, because others take longer than was reckoned or more urgent ones came, is asked back."""
PRIORITY_MAX: Final = 1 << 31
NAMED_MAX: Final = 4
"""Nodes that one sentence names."""


Granting = GrantLeases | GrantDevices | SpeculateLeases
"""What leases tasks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to grant now, whose turn it is afterwards, and which waiting leases to ask back (node, attempt)."""

    commands: tuple[Granting, ...]
    turns: Turns
    back: tuple[tuple[str, str], ...] = ()


def plan(view: SchedulerView, now_ms: int) -> list[Command]:
    """The leases to grant now, in batches."""
    return list(decide(view, now_ms).commands)


def decide(view: SchedulerView, now_ms: int) -> Decision:
    """The leases to grant now, in batches, the turns that follow from them, and what to ask back."""
    seats = with_seats(view)
    round_ = _Round(seats, now_ms)
    leases = [
        DeviceLease(
            task=task.task, attempt=view.new_attempt_id(), node=node.node, device=node.device
        )
        for task, node in round_.matches()
    ]
    commands: list[Granting] = [
        _granted(leases[start : start + LEASES_PER_COMMAND_MAX], view.granted_at_ms)
        for start in range(0, len(leases), LEASES_PER_COMMAND_MAX)
    ]
    back = tuple(round_.back())
    commands += speculate(seats, round_)
    return Decision(commands=tuple(commands), turns=round_.turns(), back=back)


def _granted(leases: Sequence[DeviceLease], at_ms: int) -> Granting:
    """One command; without devices the one that every version reads."""
    if any(lease.device for lease in leases):
        return GrantDevices(leases=tuple(leases), granted_at_ms=at_ms)
    plain = (Lease(task=one.task, attempt=one.attempt, node=one.node) for one in leases)
    return GrantLeases(leases=tuple(plain), granted_at_ms=at_ms)


_Kind = tuple[tuple[str, ...], tuple[str, ...], str]
"""Tasks of one kind can be done by the same nodes: what they need, where, and the owner where only that will do."""


def _kind(task: TaskView) -> _Kind:
    return task.needs, task.place, task.owner if task.kind in AT_OWNER else ""


class _Round:
    """One decision: which slots, disks and turns are left while leases are chosen."""

    def __init__(self, view: SchedulerView, now_ms: int) -> None:
        self._view = view
        self._tasks = [task for task in view.tasks if task.eligible_at_ms <= now_ms]
        self._places = _Places(view)
        self._able: dict[_Kind, list[NodeView]] = {}
        self._open: dict[_Kind, list[NodeView]] = {}
        self._left_ahead = AHEAD_LOOKED_AT_MAX if view.ahead else 0
        self._served = dict(view.turns.served)
        self._now = view.turns.now
        self._since_oldest = view.turns.since_oldest
        self._leased: set[str] = set()
        self._quota_left = _quota_left(view)

    def turns(self) -> Turns:
        """Whose turn it is after this round; of tenants behind the present nothing is worth keeping."""
        served = {tenant: at for tenant, at in self._served.items() if at > self._now}
        return Turns(served=served, now=self._now, since_oldest=self._since_oldest)

    def matches(self) -> Iterator[tuple[TaskView, NodeView]]:
        # Within one priority nobody overtakes but by the shares of tenants, which stay as they are.
        highest = max((task.priority for task in self._tasks), default=0)
        lower = (task for task in self._tasks if task.priority < highest)
        by_age = deque(sorted(lower, key=lambda task: task.seq))
        for task in self._in_turn():
            while self._since_oldest >= OLDEST_EVERY - 1 and by_age:
                oldest = by_age.popleft()
                if (node := self._lease(oldest)) is not None:
                    self._since_oldest = 0
                    yield oldest, node
            if (node := self._lease(task)) is not None:
                self._since_oldest += 1
                yield task, node
            elif not self._has_free(task):
                self._left_ahead -= 1
            if self._places.free <= 0 and self._left_ahead <= 0:
                return

    def back(self) -> Iterator[tuple[str, str]]:
        """Leases that wait too long where they are, or longer than a slot that is left would take to do them."""
        if not self._view.ahead:
            return
        nodes = {node.seat: node for node in self._view.nodes}
        ends_ms = ends_of_waiting(self._view)
        for run in reversed([run for run in self._view.running if run.attempt in ends_ms]):
            lead = lead_ms(_fetch_ms(run.task, nodes[run.seat]))
            if ends_ms[run.attempt] - run.rest_ms > LATE_TIMES * lead:
                yield run.node, run.attempt
                continue
            able = [node for node in self._open_for(run.task) if self._places.is_free(node)]
            able = [node for node in able if self._places.can(run.task, node)]
            held = choice_at(run.task, nodes[run.seat])
            able = [node for node in able if choice_at(run.task, node) <= held]
            if not able or not self._places.speeds.known(run.task.profile):
                continue
            best = min(able, key=lambda node: self._places.takes_ms(run.task, node))
            if self._places.takes_ms(run.task, best) + BACK_MS < ends_ms[run.attempt]:
                self._take(run.task, best)
                yield run.node, run.attempt

    # --- what is left when nothing more is leased: `ledger.speculation.Idle` -------------------------

    @cached_property
    def _not_leased(self) -> list[TaskView]:
        """One of each kind."""
        return list({_kind(o): o for o in self._tasks if o.task not in self._leased}.values())

    def idle_for(self, task: TaskView) -> Sequence[NodeView]:
        """Nodes with a slot that can do it and no task that waits."""
        if self._quota_left.get(task.tenant, 1) <= 0:
            return []
        able = [node for node in self._open_for(task) if self._places.is_free(node)]
        wanted = self._not_leased
        can = self._places.can
        return [n for n in able if can(task, n) and not any(can(other, n) for other in wanted)]

    def takes_ms(self, task: TaskView, node: NodeView) -> float:
        """How long it takes there; 0 where no speed was measured."""
        known = self._places.speeds.known(task.profile)
        return self._places.takes_ms(task, node) if known else 0.0

    def _in_turn(self) -> Iterator[TaskView]:
        """Tasks in their order; whose turn is next depends on what was leased so far."""
        queues: dict[int, dict[str, deque[TaskView]]] = {}
        for task in sorted(self._tasks, key=self._age):
            queues.setdefault(task.priority, {}).setdefault(task.tenant, deque()).append(task)
        for priority in sorted(queues, reverse=True):
            tenants = queues[priority]
            while tenants:
                tenant = min(tenants, key=lambda name: (self._start(name), name))
                yield tenants[tenant].popleft()
                if not tenants[tenant]:
                    del tenants[tenant]

    def _age(self, task: TaskView) -> tuple[bool, int, int]:
        # When all that is left is in view, what one node alone can do goes first, then long ones: they
        # are what the end waits for.
        if self._view.later:
            return False, 0, task.seq
        return task.kind not in AT_OWNER, -task.cost, task.seq

    def _start(self, tenant: str) -> float:
        return max(self._served.get(tenant, 0.0), self._now)

    def _lease(self, task: TaskView) -> NodeView | None:
        if task.task in self._leased or self._quota_left.get(task.tenant, 1) <= 0:
            return None
        if self._left_ahead <= 0 and not self._has_free(task):
            return None
        able = [node for node in self._open_for(task) if self._places.can(task, node)]
        node = self._chosen(task, wanted_most(task, able)) if able else None
        if node is None:
            return None
        self._leased.add(task.task)
        self.grant(task, node)
        return node

    def grant(self, task: TaskView, node: NodeView) -> None:
        """A slot is taken, and its tenant has had its turn."""
        if task.tenant in self._quota_left:
            self._quota_left[task.tenant] -= 1
        self._take(task, node)
        self._now = self._start(task.tenant)
        share = max(1, self._view.shares.get(task.tenant, 1))
        self._served[task.tenant] = self._now + max(1, task.cost) / share

    def _has_free(self, task: TaskView) -> bool:
        """Whether a slot is free that such tasks may have."""
        return any(self._places.is_free(node) for node in self._open_for(task))

    def _take(self, task: TaskView, node: NodeView) -> None:
        self._places.take(task, node)
        if not self._places.is_open(node):
            for nodes in self._open.values():
                if node in nodes:
                    nodes.remove(node)

    def _open_for(self, task: TaskView) -> list[NodeView]:
        """The nodes that can do such tasks and have a slot left, now or soon."""
        kind = _kind(task)
        if kind not in self._open:
            self._open[kind] = [n for n in self._able_for(task) if self._places.is_open(n)]
        return self._open[kind]

    def _able_for(self, task: TaskView) -> list[NodeView]:
        kind = _kind(task)
        if kind not in self._able:
            self._able[kind] = [
                node for node in self._view.nodes if node.takes_work and not _unable(task, node)
            ]
        return self._able[kind]

    def _chosen(self, task: TaskView, able: Sequence[NodeView]) -> NodeView | None:
        places = self._places
        if not places.speeds.known(task.profile):
            return min(able, key=lambda node: _rank(task, node, places.line(node.seat).held))
        took = {node.seat: places.ends_ms(task, node) for node in able}
        best = min(able, key=lambda node: (took[node.seat], *_rank(task, node, 0)))
        ends_ms = took[best.seat]
        if ends_ms <= places.speeds.all_done_ms(task.profile, self._able_for(task)):
            return best
        # What would end after everything else: a faster node may be worth the wait.
        others = (node for node in self._able_for(task) if node.node not in task.excluded)
        sooner = any(
            places.ends_ms(task, node) < ends_ms
            for node in others
            if not places.is_free(node) and node.slots > 0
        )
        return None if sooner else best


class _Places:
    """Slots, the lines at them and disks, as they are left while leases are chosen."""

    def __init__(self, view: SchedulerView) -> None:
        self.speeds = Speeds(view)
        self._ahead = view.ahead
        self._lines = lines_of(view)
        self._disks = {node.node: node.free_bytes for node in view.nodes}
        self._kept: Counter[str] = Counter()
        """Bytes of disks that are free and spoken for: what runs has not written them yet."""
        for run in view.running:
            self._kept[run.node] += int(run.left * run.task.bytes_at(run.node))
        working = [node.seat for node in view.nodes if node.takes_work]
        self.free = sum(max(0, self._lines[name].free) for name in working)
        """Slots that are left."""

    def line(self, seat: str) -> Line:
        return self._lines[seat]

    def is_free(self, node: NodeView) -> bool:
        """Whether a lease would begin at once."""
        return self._lines[node.seat].free > 0

    def is_open(self, node: NodeView) -> bool:
        """Whether a lease may be granted at all, whatever it is for."""
        line = self._lines[node.seat]
        return line.free > 0 or (self._ahead and line.starts_ms(PRIORITY_MAX) <= AHEAD_MS_MAX)

    def can(self, task: TaskView, node: NodeView) -> bool:
        return not any(self.obstacles(task, node))

    def obstacles(self, task: TaskView, node: NodeView) -> Iterator[str]:
        """Every reason why the node cannot have the task now."""
        kept = self._kept[node.node]
        free = self._disks[node.node]
        disk = "" if free is None else _no_room(task, node, free - kept, kept)
        yield from _obstacles(task, node, slot=self._no_slot(task, node), disk=disk)

    def _no_slot(self, task: TaskView, node: NodeView) -> str:
        line = self._lines[node.seat]
        if line.free > 0:
            return ""
        whose = f"all slots of {node.device} are taken" if node.device else "has no free slot"
        taken = f"{whose} ({min(line.held, node.slots)} of {node.slots}"
        taken = taken if node.device else f"{taken} taken"
        if not self._ahead or not node.speeds.get(task.profile):
            return (
                f"{taken})"  # of what was never measured here nobody knows how long it would wait
            )
        if line.starts_ms(task.priority) > lead_ms(_fetch_ms(task, node)):
            return f"{taken})"
        if not line.has_room(task.priority):
            return f"{taken}, {line.held - node.slots} wait for one)"
        return ""

    def take(self, task: TaskView, node: NodeView) -> None:
        line = self._lines[node.seat]
        if line.free > 0:
            self.free -= 1
        line.add(task.priority, self.takes_ms(task, node))
        self._kept[node.node] += task.bytes_at(node.node)

    def takes_ms(self, task: TaskView, node: NodeView) -> float:
        """From the moment that it has a slot and nothing was fetched before."""
        return _fetch_ms(task, node) + self._encode_ms(task, node)

    def ends_ms(self, task: TaskView, node: NodeView) -> float:
        """From now; what waits is fetched meanwhile."""
        starts_ms = self._lines[node.seat].starts_ms(task.priority)
        return max(starts_ms, _fetch_ms(task, node)) + self._encode_ms(task, node)

    def _encode_ms(self, task: TaskView, node: NodeView) -> float:
        # Slots share the machine: a node that has nothing else to do is the faster one.
        held = self._lines[node.seat].held
        load = 1 + max(0, min(held, node.slots - 1)) / max(1, node.slots)
        return 1_000 * task.cost / self.speeds.of(node, task.profile) * load


def _quota_left(view: SchedulerView) -> dict[str, int]:
    """Leases that tenants may still get, where somebody said how many they may have."""
    running = Counter(run.task.tenant for run in view.running)
    return {tenant: slots - running[tenant] for tenant, slots in view.quotas.items()}


def _fetch_ms(task: TaskView, node: NodeView) -> float:
    if node.node == task.owner:
        return 0.0
    return 1_000 * task.source_bytes / max(1, node.links.get(task.owner, LINK_BYTES_S))


# --- why a task waits -------------------------------------------------------------------------------


def explain(view: SchedulerView, task: TaskView, now_ms: int) -> list[str]:
    """Every true reason why this task is not leased now, a sentence each."""
    found: list[str] = []
    if task.eligible_at_ms > now_ms:
        left_s = (task.eligible_at_ms - now_ms + 999) // 1000
        found.append(f"it failed and is tried again in {left_s} s")
    if _quota_left(view).get(task.tenant, 1) <= 0:
        whose = f"tenant {task.tenant}" if task.tenant else "tenant (none)"
        found.append(
            f"its {whose} has as many slots as its quota allows, {view.quotas[task.tenant]}"
            " (`mesh-cli tenants set NAME --slots N`)"
        )
    if not view.nodes:
        return [*found, "no node works in this mesh"]
    nodes_of: dict[str, list[str]] = {}
    seats = with_seats(view)
    places = _Places(seats)
    for node in view.nodes:
        # Of a machine's devices those that could do it; where none can, one stands for all.
        own = [seat for seat in seats.nodes if seat.node == node.node]
        for seat in [seat for seat in own if not _unable(task, seat)] or own[:1]:
            obstacles = places.obstacles(task, seat)
            nodes_of.setdefault(", ".join(obstacles), []).append(node.name)
    could = nodes_of.pop("", [])
    found += [f"{_named(names)}: {obstacle}" for obstacle, names in nodes_of.items()]
    if could:
        found.append(f"{_named(could)}: could take it")
    return found + _before(view, task, now_ms)


def explain_lease(view: SchedulerView, job: str) -> list[str]:
    """Where leases of a job wait for a slot, which they were granted ahead of."""
    names = {node.node: node.name for node in view.nodes}
    return [
        f"{names.get(run.node, run.node)} has it next: it begins there when a slot is free"
        for run in view.running
        if run.waits and run.task.job == job
    ]


def _before(view: SchedulerView, task: TaskView, now_ms: int) -> list[str]:
    """Which other tasks come first."""
    others = [o for o in view.tasks if o.eligible_at_ms <= now_ms and o.task != task.task]
    higher = sum(o.priority > task.priority for o in others)
    older = sum(o.priority == task.priority and o.seq < task.seq for o in others)
    found: list[str] = []
    if higher and higher == len(others):
        found.append(
            f"its priority {task.priority} is lower than that of all {higher} others that are ready"
        )
    elif higher:
        found.append(f"{higher} of higher priority than {task.priority} come first")
    if older:
        found.append(f"{older} older of the same priority come first")
    return found


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(sorted(names)[:NAMED_MAX])
    more = len(names) - NAMED_MAX
    return f"{shown} and {more} more" if more > 0 else shown


def _no_room(task: TaskView, node: NodeView, free: int, kept: int) -> str:
    """Why a disk will not do of which so much is free beside what is kept for what the node has already."""
    needed = task.bytes_at(node.node) + SPARE_BYTES
    if free >= needed:
        return ""
    besides = f" beside {kept >> 20} MiB for what it has" if kept >> 20 else ""
    return (
        f"has too little disk ({max(0, free) >> 20} MiB free{besides}, {needed >> 20} MiB needed)"
    )


def _obstacles(task: TaskView, node: NodeView, *, slot: str, disk: str) -> Iterator[str]:
    """Every reason why the node cannot take the task; `slot` and `disk` are why it has no place or room for it."""
    if node.role == "witness":
        yield "is a witness and does no work"
        return
    if not node.alive:
        yield "is not heard"
        return
    if unable := _unable(task, node):
        yield unable
    if node.closed:
        yield node.closed
    if node.node in task.excluded:
        yield "failed this task before"
    if node.slots <= 0 and node.device not in ("", CPU):
        yield f"{node.device} has no slots (`mesh-cli nodes limit NAME --device {node.device}=N`)"
    elif node.slots <= 0:
        yield "has no slots (`mesh-cli nodes limit NAME --slots N`)"
    elif slot:
        yield slot
    if disk:
        yield disk


def _unable(task: TaskView, node: NodeView) -> str:
    if is_at_processor(task) and node.device not in ("", CPU):
        return f"{node.device} makes pictures only"
    if task.kind in AT_OWNER:
        at_home = node.node == task.owner
        return "" if at_home else "does not have the film, which this needs as a whole"
    if missing := list(lacks(task.place, node.node, node.labels)):
        return ", ".join(missing)
    if not can_do(task.needs, node.encoders, node.ffmpeg):
        return f"has none of the encoders {', '.join(task.needs)}"
    return ""


def _rank(task: TaskView, node: NodeView, busy: int) -> tuple[float, bool, int, str]:
    return busy / max(1, node.slots), node.node != task.owner, -node.cpus, node.node


def find(tasks: Sequence[TaskView], job: str) -> TaskView | None:
    """The first ready task of a job."""
    return next((task for task in tasks if task.job == job), None)
