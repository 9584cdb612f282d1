"""What the scheduler decides by: ready tasks, leases, nodes, and whose turn it is; pure values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ledger.commands import MemberRole
from ledger.device_slots import DeviceSlots, seat_of
from ledger.jobs import Task


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
    as measured.  `labels` are what its owner says of it.  `devices` are those that it told of; to
    the scheduler each is a node of its own (ledger.seats), which then has its name in `device`.
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
    labels: tuple[str, ...] = ()
    devices: tuple[DeviceSlots, ...] = ()
    device: str = ""

    @property
    def takes_work(self) -> bool:
        """Whether it is heard, works at all, and nothing closes it."""
        return self.role != "witness" and self.alive and not self.closed

    @property
    def seat(self) -> str:
        """Its name among all devices."""
        return seat_of(self.node, self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningView:
    """A lease that is out; `task` is what it is for, `device` where on its node.

    `waits` says that it likely waits for a slot of its node, `rest_ms` how long it still takes once
    it has one, `left` which part of it that is, as far as both can be reckoned.  `is_alone` says that
    another attempt may run beside it (ledger.speculation), `ran_ms` since when it is known to run, and
    `told_ms` how long it still takes by its own progress; None: that tells nothing.
    """

    attempt: str
    node: str
    task: TaskView
    waits: bool = False
    rest_ms: float = 0.0
    left: float = 1.0
    device: str = ""
    is_alone: bool = False
    ran_ms: int = 0
    told_ms: float | None = None

    @property
    def seat(self) -> str:
        """The device's name among all."""
        return seat_of(self.node, self.device)


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
    once, `later` are jobs that wait to be planned,
    `running_cost` is what is leased and likely not done yet.  `ahead` allows leases beyond slots:
    every member lets them wait.
    """

    tasks: tuple[TaskView, ...]
    nodes: tuple[NodeView, ...]
    running: tuple[RunningView, ...] = ()
    new_attempt_id: Callable[[], str] = field(default=_no_ids)
    granted_at_ms: int = 0
    turns: Turns = field(default_factory=Turns)
    shares: Mapping[str, int] = field(default_factory=dict[str, int])
    quotas: Mapping[str, int] = field(default_factory=dict[str, int])
    later: int = 0
    running_cost: int = 0
    ahead: bool = False


class JobFacts(NamedTuple):
    """What the scheduler wants to know of a task's job."""

    tenant: str
    profile: str
    source_bytes: int
    place: tuple[str, ...]


def task_view(task: Task, job: JobFacts, disk_full: int = 0) -> TaskView:
    """A task with what its job tells of it."""
    return TaskView(
        task=task.id,
        job=task.job,
        kind=task.kind,
        owner=task.owner,
        needs=task.needs,
        cost=task.cost,
        priority=task.priority,
        seq=task.seq,
        attempts=task.attempts,
        excluded=task.excluded,
        backoff_ms=task.backoff_ms,
        tenant=job.tenant,
        profile=job.profile,
        # Of a slice the share of the film is not known here; it is made for the worker's own disk.
        source_bytes=0 if task.kind == "chunk" else job.source_bytes,
        place=job.place,
        disk_full=disk_full,
    )
