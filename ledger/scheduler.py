"""Which task goes to which node: pure, from a view to commands, and why a job waits, from the same code.

Order: priority, then the tenant that had least of its share, then age; every `OLDEST_EVERY`th lease
goes to the oldest task that is not of the highest priority, so that none waits for ever.  Choice: among the nodes
that can, where it is likely to be done first, by the measured speeds of nodes and links.  Where
nothing was measured yet: the least share of slots taken, then the owner, which fetches nothing, then
more processors; load comes before locality, so that the films of one owner are spread.  Near the end
a slow node does not begin what a faster one, though still busy, would have done sooner.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from ledger.commands import LEASES_PER_COMMAND_MAX, Command, GrantLeases, Lease, MemberRole
from ledger.jobs import AT_OWNER, can_do
from ledger.placing import lacks

OLDEST_EVERY: Final = 8
"""Leases of which one goes to the oldest task: an eighth of the mesh is what its wait may cost."""
PLANNED_AHEAD_MAX: Final = 16
"""Planned tasks of a kind (tenant, profile, place) of one owner that wait: enough for every slot, without reading a library ahead."""
SPARE_BYTES: Final = 256 << 20
"""Disk that work leaves free: logs, the ledger and the machine's owner need some."""
LINK_BYTES_S: Final = 50_000_000
"""Of a link that was not measured yet: half a gigabit, between Wi-Fi and a wired home."""
NAMED_MAX: Final = 4
"""Nodes that one sentence names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskView:
    """A task that is ready; `eligible_at_ms` is on the coordinator's monotonic clock.

    `source_bytes` is what a node other than the owner has to fetch for it; `disk_full` says how often
    a disk was too small for it, `place` where it may be done (ledger.placing).
    """

    task: str
    job: str
    kind: str = "whole"
    owner: str
    needs: tuple[str, ...]
    cost: int
    priority: int
    seq: int
    attempts: int
    excluded: tuple[str, ...]
    backoff_ms: int
    eligible_at_ms: int = 0
    tenant: str = ""
    profile: str = ""
    source_bytes: int = 0
    disk_full: int = 0
    place: tuple[str, ...] = ()

    def bytes_at(self, node: str) -> int:
        """Disk that a node needs for it: the result, and the source where it is not at home.

        As much again for each disk that filled: then its result is larger than was thought.
        """
        needed = self.source_bytes if node == self.owner else 2 * self.source_bytes
        return (1 + self.disk_full) * needed


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """A member that may work; `busy` counts its leases, `alive` says that it was heard lately.

    `closed` is why it takes no work now, in its own words; `free_bytes` its free disk as far as it
    is known.  `speeds` are cost units a second by profile, `links` bytes a second by sender, both
    as measured; `free_in_ms` is when a slot is likely to be free, where all are taken.  `labels` are
    what its owner says of it.
    """

    node: str
    name: str
    role: MemberRole
    encoders: tuple[str, ...]
    ffmpeg: str = ""
    slots: int
    busy: int
    cpus: int
    alive: bool = False
    closed: str = ""
    free_bytes: int | None = None
    speeds: Mapping[str, int] = field(default_factory=dict[str, int])
    links: Mapping[str, int] = field(default_factory=dict[str, int])
    free_in_ms: int = 0
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningView:
    """A lease that is out."""

    attempt: str
    node: str
    cost: int
    profile: str
    tenant: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """Whose turn it is: start-time fair queueing over tenants, and leases since the oldest had one.

    `served` is each tenant's virtual time (cost by its share), `now` that of the latest lease.  A
    tenant that comes back begins at `now`: what it did not use is not saved up.
    """

    served: Mapping[str, float] = field(default_factory=dict[str, float])
    now: float = 0.0
    since_oldest: int = 0


def _no_ids() -> str:
    raise AssertionError("the coordinator gives attempts their ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerView:
    """Ready tasks (bounded), nodes, and a source of attempt ids.

    `shares` weigh tenants (1 where nothing is said), `quotas` are leases that a tenant has at most at
    once, `later` are jobs that wait to be planned, `running_cost` is what is leased and likely not
    done yet.
    """

    tasks: tuple[TaskView, ...]
    nodes: tuple[NodeView, ...]
    running: tuple["RunningView", ...] = ()
    new_attempt_id: Callable[[], str] = field(default=_no_ids)
    granted_at_ms: int = 0
    turns: Turns = field(default_factory=Turns)
    shares: Mapping[str, int] = field(default_factory=dict[str, int])
    quotas: Mapping[str, int] = field(default_factory=dict[str, int])
    later: int = 0
    running_cost: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to grant now, and whose turn it is afterwards."""

    commands: tuple[Command, ...]
    turns: Turns


def plan(view: SchedulerView, now_ms: int) -> list[Command]:
    """The leases to grant now, in batches."""
    return list(decide(view, now_ms).commands)


def decide(view: SchedulerView, now_ms: int) -> Decision:
    """The leases to grant now, in batches, and the turns that follow from them."""
    round_ = _Round(view, now_ms)
    leases = [
        Lease(task=task.task, attempt=view.new_attempt_id(), node=node.node)
        for task, node in round_.matches()
    ]
    commands = tuple(
        GrantLeases(
            leases=tuple(leases[start : start + LEASES_PER_COMMAND_MAX]),
            granted_at_ms=view.granted_at_ms,
        )
        for start in range(0, len(leases), LEASES_PER_COMMAND_MAX)
    )
    return Decision(commands=commands, turns=round_.turns())


_Kind = tuple[tuple[str, ...], tuple[str, ...], str]
"""Tasks of one kind can be done by the same nodes: what they need, where, and the owner where only that will do."""


def _kind(task: TaskView) -> _Kind:
    return task.needs, task.place, task.owner if task.kind in AT_OWNER else ""


class _Round:
    """One decision: which slots, disks and turns are left while leases are chosen."""

    def __init__(self, view: SchedulerView, now_ms: int) -> None:
        self._view = view
        self._tasks = [task for task in view.tasks if task.eligible_at_ms <= now_ms]
        self._busy = {node.node: node.busy for node in view.nodes}
        self._free = {node.node: node.free_bytes for node in view.nodes}
        self._able: dict[_Kind, list[NodeView]] = {}
        self._open: dict[_Kind, list[NodeView]] = {}
        self._speeds = _Speeds(view)
        self._slots = sum(max(0, n.slots - n.busy) for n in view.nodes if _takes_work(n))
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
            if self._slots <= 0:
                return

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
        able = [node for node in self._open_for(task) if self._can(task, node)]
        node = self._chosen(task, able) if able else None
        if node is None:
            return None
        self._leased.add(task.task)
        if task.tenant in self._quota_left:
            self._quota_left[task.tenant] -= 1
        self._take_slot(node)
        if (free := self._free[node.node]) is not None:
            self._free[node.node] = free - task.bytes_at(node.node)
        self._now = self._start(task.tenant)
        share = max(1, self._view.shares.get(task.tenant, 1))
        self._served[task.tenant] = self._now + max(1, task.cost) / share
        return node

    def _take_slot(self, node: NodeView) -> None:
        self._busy[node.node] += 1
        self._slots -= 1
        if self._busy[node.node] >= node.slots:
            for nodes in self._open.values():
                if node in nodes:
                    nodes.remove(node)

    def _open_for(self, task: TaskView) -> list[NodeView]:
        """The nodes that can do such tasks and have a slot left."""
        kind = _kind(task)
        if kind not in self._open:
            able = self._able_for(task)
            self._open[kind] = [node for node in able if self._busy[node.node] < node.slots]
        return self._open[kind]

    def _able_for(self, task: TaskView) -> list[NodeView]:
        kind = _kind(task)
        if kind not in self._able:
            self._able[kind] = [
                node for node in self._view.nodes if _takes_work(node) and not _unable(task, node)
            ]
        return self._able[kind]

    def _can(self, task: TaskView, node: NodeView) -> bool:
        busy, free = self._busy[node.node], self._free[node.node]
        return not any(_obstacles(task, node, busy=busy, free=free))

    def _chosen(self, task: TaskView, able: Sequence[NodeView]) -> NodeView | None:
        if not self._speeds.known(task.profile):
            return min(able, key=lambda node: _rank(task, node, self._busy[node.node]))
        took = {node.node: self._takes_ms(task, node) for node in able}
        best = min(able, key=lambda node: (took[node.node], *_rank(task, node, 0)))
        takes_ms = took[best.node]
        if takes_ms <= self._speeds.all_done_ms(task.profile):
            return best
        # What would end after everything else: a faster node may be worth the wait.
        others = (node for node in self._able_for(task) if node.node not in task.excluded)
        sooner = any(
            node.free_in_ms + self._takes_ms(task, node) < takes_ms
            for node in others
            if self._busy[node.node] >= node.slots > 0
        )
        return None if sooner else best

    def _takes_ms(self, task: TaskView, node: NodeView) -> float:
        at_home = node.node == task.owner
        fetch_ms = 0.0 if at_home else _fetch_ms(task, node)
        # Slots share the machine: a node that has nothing else to do is the faster one.
        load = 1 + min(self._busy[node.node], node.slots - 1) / max(1, node.slots)
        return fetch_ms + 1_000 * task.cost / self._speeds.of(node, task.profile) * load


def _quota_left(view: SchedulerView) -> dict[str, int]:
    """Leases that tenants may still get, where somebody said how many they may have."""
    running = Counter(run.tenant for run in view.running)
    return {tenant: slots - running[tenant] for tenant, slots in view.quotas.items()}


def _fetch_ms(task: TaskView, node: NodeView) -> float:
    return 1_000 * task.source_bytes / max(1, node.links.get(task.owner, LINK_BYTES_S))


class _Speeds:
    """Cost units a second of each node by profile; of what was not measured the mean of the others."""

    def __init__(self, view: SchedulerView) -> None:
        self._nodes = [node for node in view.nodes if _takes_work(node) and node.slots > 0]
        costs = [task.cost for task in view.tasks]
        mean = sum(costs) / len(costs) if costs else 0
        self._left = sum(costs) + view.running_cost + view.later * mean
        self._means: dict[str, float] = {}
        self._ends: dict[str, float] = {}

    def known(self, profile: str) -> bool:
        return self._mean(profile) > 0

    def of(self, node: NodeView, profile: str) -> float:
        return max(1.0, node.speeds.get(profile) or self._mean(profile))

    def all_done_ms(self, profile: str) -> float:
        """When all that is left would be done, were it spread evenly."""
        if profile not in self._ends:
            speed = sum(self.of(node, profile) * node.slots for node in self._nodes)
            self._ends[profile] = 1_000 * self._left / max(1.0, speed)
        return self._ends[profile]

    def _mean(self, profile: str) -> float:
        if profile not in self._means:
            found = [speed for n in self._nodes if (speed := n.speeds.get(profile, 0)) > 0]
            self._means[profile] = sum(found) / len(found) if found else 0.0
        return self._means[profile]


def with_estimates(view: SchedulerView, since_ms: Mapping[str, int], now_ms: int) -> SchedulerView:
    """The view with when slots are likely to be free; `since_ms` says since when each attempt runs."""
    left_ms: dict[str, list[float]] = {}
    cost_left = 0.0
    speeds = _Speeds(view)
    nodes = {node.node: node for node in view.nodes}
    for run in view.running:
        if (node := nodes.get(run.node)) is None:
            continue
        speed = speeds.of(node, run.profile)
        takes_ms = 1_000 * run.cost / speed
        rest_ms = max(0.0, takes_ms - (now_ms - since_ms.get(run.attempt, now_ms)))
        left_ms.setdefault(run.node, []).append(rest_ms)
        cost_left += rest_ms * speed / 1_000
    return replace(
        view,
        running_cost=int(cost_left),
        nodes=tuple(
            replace(node, free_in_ms=int(min(left_ms.get(node.node, (0.0,)))))
            for node in view.nodes
        ),
    )


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
    for node in view.nodes:
        obstacles = _obstacles(task, node, busy=node.busy, free=node.free_bytes)
        nodes_of.setdefault(", ".join(obstacles), []).append(node.name)
    could = nodes_of.pop("", [])
    found += [f"{_named(names)}: {obstacle}" for obstacle, names in nodes_of.items()]
    if could:
        found.append(f"{_named(could)}: could take it")
    return found + _before(view, task, now_ms)


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


def _takes_work(node: NodeView) -> bool:
    return node.role != "witness" and node.alive and not node.closed


def _obstacles(task: TaskView, node: NodeView, *, busy: int, free: int | None) -> Iterator[str]:
    """Every reason why the node cannot take the task."""
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
    if node.slots <= 0:
        yield "has no slots (`mesh-cli nodes limit NAME --slots N`)"
    elif busy >= node.slots:
        yield f"has no free slot ({busy} of {node.slots} taken)"
    needed = task.bytes_at(node.node) + SPARE_BYTES
    if free is not None and free < needed:
        yield f"has too little disk ({free >> 20} MiB free, {needed >> 20} MiB needed)"


def _unable(task: TaskView, node: NodeView) -> str:
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
