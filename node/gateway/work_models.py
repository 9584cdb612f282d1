"""What the HTTP API says and hears about work: orders about many jobs, history, folders, a node's hours.

As in `node.gateway.models`: strict, bounded, times in `_ms`.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ledger.device_slots import DEVICES_MAX
from ledger.jobs import JobState
from ledger.orders import ORDERED_PER_COMMAND_MAX, SHARE_MAX
from ledger.placing import LABELS_MAX
from mesh.limits import RATE_BYTES_S_MAX
from node.gateway.base_models import Answer, Question
from node.gateway.models import (
    NAME_CHARS_MAX,
    PATH_CHARS_MAX,
    PRIORITY_MAX,
    AttemptInfo,
    Label,
    Name,
    SubmitRequest,
)
from node.settings.sections import DEVICE_NAME, SLOTS_MAX
from node.work.hours import RANGES_MAX
from node.work.watch_rules import Filters
from node.work.working import FINISH_S_MAX, MEMORY_MIB_MAX, NICE_MAX, THREADS_MAX

Id = Annotated[str, Field(min_length=1, max_length=64)]
Text = Annotated[str, Field(max_length=NAME_CHARS_MAX)]
Moment = Annotated[int, Field(ge=0, lt=1 << 53)]
Hours = Annotated[str, Field(min_length=1, max_length=64)]
DeviceName = Annotated[str, Field(pattern=DEVICE_NAME)]
ActionName = Literal["cancel", "retry", "priority"]


class JobsChosen(Question):
    """Which jobs: all conditions together; empty ones say nothing, so nothing at all means every job.

    `node` is a name or id of owner or worker; `folder` holds the source, on its owner's machine;
    times are those of submission, `until_ms` is outside.
    """

    states: list[JobState] = Field(default_factory=list[JobState], max_length=16)
    folder: str = Field(default="", max_length=PATH_CHARS_MAX)
    node: Text = ""
    profile: Text = ""
    tenant: Text = ""
    since_ms: Moment = 0
    until_ms: Moment = 0


class ChangeRequest(Question):
    """One thing done to many jobs: to these by their ids, or to all that are chosen."""

    action: ActionName
    jobs: list[Id] = Field(default_factory=list[Id], max_length=ORDERED_PER_COMMAND_MAX)
    chosen: JobsChosen | None = None
    priority: int = Field(default=0, ge=-PRIORITY_MAX, le=PRIORITY_MAX)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if bool(self.jobs) == (self.chosen is not None):
            raise ValueError("give ids of jobs, or what they are chosen by")
        return self


class Unchanged(Answer):
    """A job in whose state the order makes no sense."""

    id: str
    state: JobState
    what: str


class OrderInfo(Answer):
    """An order about many jobs, carried out in steps; `changed` and `skipped` grow until it is `done`."""

    id: str
    action: ActionName
    by: str
    done: bool
    changed: int
    skipped: int
    created_at_ms: int
    finished_at_ms: int | None = None


class Changed(Answer):
    """Jobs that were named: which were changed, and why others were not.  Jobs that were chosen: the order."""

    changed: list[str] = Field(default_factory=list[str])
    unchanged: list[Unchanged] = Field(default_factory=list[Unchanged])
    order: OrderInfo | None = None


class LimitRequest(Question):
    """What a node may do for others; rates in bytes a second, 0 for no limit, -1 for as configured.

    Absent: as it is.  With `link`, another node's name or id, the rates hold for that link alone.
    """

    slots: int | None = Field(default=None, ge=-1, le=SLOTS_MAX)
    up: int | None = Field(default=None, ge=-1, le=RATE_BYTES_S_MAX)
    down: int | None = Field(default=None, ge=-1, le=RATE_BYTES_S_MAX)
    link: Name | None = None
    devices: dict[DeviceName, Annotated[int, Field(ge=-1, le=SLOTS_MAX)]] = Field(
        default_factory=dict[str, int], max_length=DEVICES_MAX
    )
    """Films at once on single devices, by the names of `NodeInfo.devices`; -1 for as configured."""


class Limited(Answer):
    """What holds now, in bytes a second, 0 for no limit; `slots` is null for as configured."""

    id: str
    name: str
    slots: int | None
    up: int
    down: int
    devices: dict[str, int] = Field(default_factory=dict[str, int])
    """Films at once on single devices, where a person said so."""


class WorkRequest(Question):
    """When and how a node works; absent: as it is, -1 and `["default"]`: as configured.

    `hours` are `["mon-fri 22:00-06:00"]`, in that machine's own time, or `["always"]`.  A drain finishes
    what runs, at most for `finish_s`, and takes nothing new.
    """

    paused: bool | None = None
    draining: bool | None = None
    finish_s: int | None = Field(default=None, ge=0, le=FINISH_S_MAX)
    hours: list[Hours] | None = Field(default=None, min_length=1, max_length=RANGES_MAX)
    busy_percent: int | None = Field(default=None, ge=-1, le=100)
    nice: int | None = Field(default=None, ge=-1, le=NICE_MAX)
    threads: int | None = Field(default=None, ge=-1, le=THREADS_MAX)
    gpu_percent: int | None = Field(default=None, ge=-1, le=100)
    memory_mib: int | None = Field(default=None, ge=-1, le=MEMORY_MIB_MAX)
    labels: list[Label] | None = Field(default=None, min_length=1, max_length=LABELS_MAX)
    """All of its labels from now on; `["none"]`: none, `["default"]`: as configured."""


class NodeWork(Answer):
    """What holds now; `closed` is why the node takes no new work, `running` counts what it works on."""

    id: str
    name: str
    paused: bool
    draining: bool
    hours: list[str]
    busy_percent: int
    nice: int
    threads: int
    closed: str
    running: int
    gpu_percent: int = 0
    memory_mib: int = 0
    labels: list[str] = Field(default_factory=list[str])


class Released(Answer):
    """The node that gets work again."""

    id: str
    name: str


class WatchRequest(Question):
    """A folder of the machine of the node that is asked: the one path of `submit`, converted as that says."""

    submit: SubmitRequest
    filters: Filters = Field(default_factory=Filters)


class WatchInfo(Answer):
    """A watched folder.  `counts` are its files by what became of them, where its own node is asked."""

    id: str
    node: str
    folder: str
    profile: str
    output: str | None = None
    filters: Filters = Field(default_factory=Filters)
    counts: dict[str, int] = Field(default_factory=dict[str, int])
    """seen (it settles or waits), submitted, known (converted, queued, or a result of ours), refused."""
    fault: str = ""


class Watches(Answer):
    """All watched folders of the mesh."""

    watches: list[WatchInfo]


class HistoryLine(Answer):
    """One line of a job's history: `kind` is `job.<state>`, `node` a name, `what` more for people."""

    at_ms: int
    kind: str
    node: str = ""
    what: str = ""


class JobHistory(Answer):
    """Everything that happened to a job, and every attempt with its command line and its reason."""

    id: str
    state: JobState
    source: str
    lines: list[HistoryLine]
    attempts: list[AttemptInfo]


class DoneLine(Answer):
    """Attempts counted under one name: of a node, a profile, or a day (`2026-11-27`, UTC).

    `good` ended with a result, `bad` failed, expired or were refused; durations and bytes are sums.
    """

    name: str
    attempts: int
    good: int
    bad: int
    frames: int
    fps: float
    """Frames encoded a second, over all."""
    encode_ms: int
    fetch_ms: int
    fetched_bytes: int
    result_bytes: int


class Stats(Answer):
    """What was done since `since_ms`."""

    since_ms: int
    nodes: list[DoneLine]
    profiles: list[DoneLine]
    days: list[DoneLine]


class TenantInfo(Answer):
    """What is said of a tenant; of others: a share of 1 and no quota."""

    name: str
    share: int
    slots: int | None
    """Tasks that it has running at once at most; null: any number."""
    queued_jobs: int | None
    """Films that may wait; null: any number."""
    queued_bytes: int | None
    """Bytes of films that may wait; null: any number."""
    waiting_jobs: int
    """Films that wait now."""
    waiting_bytes: int


class Tenants(Answer):
    """Tenants of whom something is said, by name."""

    tenants: list[TenantInfo]


class TenantRequest(Question):
    """What is to hold of a tenant; absent: as it is.  An empty name is who names no tenant."""

    name: Text
    share: int | None = Field(default=None, ge=1, le=SHARE_MAX)
    slots: int | None = Field(default=None, ge=-1, le=1 << 31)
    """-1: any number."""
    queued_jobs: int | None = Field(default=None, ge=-1, le=1 << 31)
    """Beyond it submissions are refused (`quota`), whole; -1: any number."""
    queued_bytes: int | None = Field(default=None, ge=-1, le=1 << 53)


class RemoveTenantRequest(Question):
    """Whom nothing is to be said of any more."""

    name: Text
