"""The rows of the ledger and the life of a job: one home for states and transitions.

Every row class is a table (its name in lower case), its fields are the columns, the first field is
the key; fields that hold tuples are JSON text in SQL.  Times end in `_ms` and are wall clock of the
proposer, for people only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from ledger.commands import MemberRole
from ledger.orders import Action
from ledger.schema import FIRST_SCHEMA, column

JobState = Literal[
    "queued",
    "planning",
    "running",
    "verifying",
    "publishing",
    "done",
    "failed",
    "cancelled",
    "waiting",
    "paused",
]
TaskState = Literal[
    "blocked", "ready", "leased", "finished", "kept", "accepted", "failed", "cancelled"
]
"""blocked: it waits for other tasks of its job; kept: the owner holds this part of the film."""
AttemptState = Literal[
    "leased",
    "finished",
    "kept",
    "accepted",
    "failed",
    "expired",
    "released",
    "refused",
    "abandoned",
]
MemberState = Literal["active", "revoked", "removed"]

JobEvent = Literal[
    "start_planning",
    "plan",
    "lease",
    "finish",
    "again",
    "wait",
    "part",
    "accept",
    "publish",
    "fail",
    "cancel",
    "retry",
]
"""again: the task is ready once more at once; wait: it is, after a wait; part: something became of
one task of a film in pieces, which goes on."""
TaskEvent = Literal[
    "unblock",
    "lease",
    "finish",
    "again",
    "go_on",
    "keep",
    "accept",
    "fail",
    "cancel",
    "revive",
    "hold",
]
"""go_on: a result was refused while another attempt runs beside it; revive, hold: a person wants the
job once more, its parts are ready, its assembly waits for them."""
AttemptEvent = Literal["finish", "keep", "accept", "fail", "expire", "release", "refuse", "abandon"]

JOB_TRANSITIONS: Final[dict[tuple[JobState, JobEvent], JobState]] = {
    ("queued", "start_planning"): "planning",
    ("queued", "plan"): "queued",  # planned before anybody had to be told that it is
    ("queued", "lease"): "running",
    ("queued", "fail"): "failed",
    ("planning", "start_planning"): "planning",  # the owner started anew
    ("planning", "plan"): "queued",
    ("planning", "fail"): "failed",
    ("running", "lease"): "running",  # another task of a film in pieces
    ("running", "part"): "running",
    ("running", "finish"): "verifying",
    ("running", "again"): "queued",
    ("running", "wait"): "waiting",
    ("running", "fail"): "failed",
    ("waiting", "lease"): "running",
    ("waiting", "fail"): "failed",
    ("verifying", "accept"): "publishing",
    ("verifying", "again"): "queued",
    ("verifying", "part"): "running",  # the assembled film was refused
    ("verifying", "fail"): "failed",
    ("publishing", "publish"): "done",
    ("publishing", "fail"): "failed",
    ("queued", "cancel"): "cancelled",
    ("planning", "cancel"): "cancelled",
    ("running", "cancel"): "cancelled",
    ("waiting", "cancel"): "cancelled",
    ("verifying", "cancel"): "cancelled",
    ("failed", "retry"): "queued",
    ("cancelled", "retry"): "queued",
}
"""What is not here is refused.  `paused` has no way in: nodes are paused, not jobs."""

TASK_TRANSITIONS: Final[dict[tuple[TaskState, TaskEvent], TaskState]] = {
    ("blocked", "unblock"): "ready",
    ("blocked", "fail"): "failed",
    ("ready", "lease"): "leased",
    ("ready", "fail"): "failed",
    ("leased", "finish"): "finished",
    ("leased", "again"): "ready",
    ("leased", "fail"): "failed",
    ("finished", "keep"): "kept",
    ("finished", "accept"): "accepted",
    ("finished", "again"): "ready",
    ("finished", "finish"): "finished",  # both attempts at it came to their ends
    ("finished", "go_on"): "leased",
    ("finished", "fail"): "failed",
    ("kept", "fail"): "failed",
    ("accepted", "fail"): "failed",
    ("blocked", "cancel"): "cancelled",
    ("ready", "cancel"): "cancelled",
    ("leased", "cancel"): "cancelled",
    ("finished", "cancel"): "cancelled",
    ("kept", "cancel"): "cancelled",
    ("failed", "revive"): "ready",
    ("failed", "hold"): "blocked",
    ("cancelled", "revive"): "ready",
    ("cancelled", "hold"): "blocked",
}

ATTEMPT_TRANSITIONS: Final[dict[tuple[AttemptState, AttemptEvent], AttemptState]] = {
    ("leased", "finish"): "finished",
    ("leased", "fail"): "failed",
    ("leased", "expire"): "expired",
    ("leased", "release"): "released",
    ("leased", "abandon"): "abandoned",
    ("finished", "keep"): "kept",
    ("finished", "accept"): "accepted",
    ("finished", "refuse"): "refused",
    ("finished", "abandon"): "abandoned",
    ("kept", "abandon"): "abandoned",
    ("accepted", "abandon"): "abandoned",
}

JOB_STATES: Final[tuple[JobState, ...]] = get_args(JobState)
FINAL_JOB_STATES: Final[frozenset[JobState]] = frozenset({"done", "failed", "cancelled"})
OPEN_JOB_STATES: Final[tuple[JobState, ...]] = tuple(
    state for state in JOB_STATES if state not in FINAL_JOB_STATES
)
WAITING_JOB_STATES: Final[tuple[JobState, ...]] = ("queued", "planning", "waiting")
"""What a quota of queued jobs counts: nobody works on them."""
PARTS: Final = frozenset({"chunk", "audio"})
"""Kinds of tasks whose results the owner keeps until the film is assembled of them."""
TWICE: Final = frozenset({"chunk"})
"""Kinds of which a second attempt may run beside one that is slow: other nodes can do them, and the film goes on with the first result."""
LIVE: Final[tuple[AttemptState, ...]] = ("leased", "finished", "kept", "accepted")
"""States of attempts that may still give, or gave, their task's result."""
OVERTAKEN: Final = "overtaken"
"""Code of an attempt that was ended because another one's result was kept: nobody's failure."""
AT_OWNER: Final = frozenset({"audio", "assemble"})
"""Kinds that only the node with the film can do: they need all of it."""
COUNTED_ENDS: Final[frozenset[AttemptState]] = frozenset({"failed", "expired", "refused"})
"""Ends of attempts that count towards ATTEMPTS_MAX; a release by shutdown is nobody's failure."""
DISK_FULL: Final = frozenset({"disk_full", "work_disk_full"})
"""Codes of failures for want of disk: nobody's encoder is to blame, and there may be room again."""

PLANNED_AT_ONCE: Final = 3
"""The form of the ledger from which on a plan needs no `job.start_planning` before it."""

RESULT_OF: Final = "@"
"""Marks what is remembered of a forgotten job's result: no definition's number begins so."""
SEQ_BITS: Final = 10
"""A job's `seq` is log index * 2^10 + its place in the command; a task's is its job's, shifted alike."""


def can_do(needs: Sequence[str], encoders: Sequence[str], ffmpeg: str) -> bool:
    """Whether a node with these encoders and this build of FFmpeg meets one of the needs (`PieceSpec`)."""
    if not needs:
        return True
    split = (need.partition("@") for need in needs)
    return any(name in encoders and group in ("", ffmpeg) for name, _, group in split)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Base of all rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh(Row):
    """The one mesh of this ledger.  `epoch` grows with every forced recovery, `members_epoch` with every change of members."""

    id: str
    founder: str
    founder_key: bytes
    epoch: int
    members_epoch: int
    formed_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Member(Row):
    """A node that may speak (or, revoked, never again; or, removed, once it has joined anew).

    `raft_id` is empty after a recovery, until the node comes back with a new data directory.
    """

    node: str
    raft_id: str
    public_key: bytes
    name: str
    role: MemberRole
    state: MemberState
    since_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation(Row):
    """A token's verifier; never visible through a view."""

    id: str
    key: bytes
    uses_left: int
    expires_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Node(Row):
    """What a member can do, as it reported last, and how its latest work ended.

    `strikes` are jobs that failed here in a row and nowhere else; `quarantine` says why it gets no
    work until its encoder is proven anew, and is empty while it does.
    """

    node: str
    ffmpeg: str
    encoders: tuple[str, ...]
    slots: int
    cpus: int
    platform: str
    version: str
    devices: str
    reported_at_ms: int
    strikes: tuple[str, ...] = column(since=3, default=())
    quarantine: str = column(since=3, default="")
    device_slots: str = column(since=3, default="[]")
    """JSON (ledger.device_slots): the slots of each device; `slots` are those of the processor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(Row):
    """One film, one profile, one output.

    `seq` orders jobs by age: log index * 2^10 + place in its command; `planned` is 0 or 1.
    `definition` names the profile's text as it was at submission; in schema 1 each job had it in
    `profile_json`, and there readers still put it (`Reader.job`).  `place` is where it may be worked
    on (ledger.placing).
    """

    id: str
    seq: int
    state: JobState
    planned: int
    owner: str
    source: str
    source_bytes: int
    source_mtime_ns: int
    source_inode: int
    output: str
    overwrite: int
    profile: str
    profile_json: str = column(until=1, default="")
    definition: int = column(since=2, default=0)
    priority: int
    tenant: str
    split: int
    source_digest: str = ""
    probe_json: str = ""
    plan_json: str = ""
    created_at_ms: int
    updated_at_ms: int
    finished_at_ms: int = 0
    error_code: str = ""
    error: str = ""
    todo: str = ""
    error_node: str = ""
    place: tuple[str, ...] = column(since=3, default=())

    @property
    def is_final(self) -> bool:
        """Whether nothing will happen to it any more."""
        return self.state in FINAL_JOB_STATES


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition(Row):
    """A profile's whole text, once for all jobs that have it; `id` is the seq of the first of them."""

    id: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(Row):
    """A unit of leasable work; `tries` are attempts that count, `excluded` nodes that failed it by themselves."""

    id: str
    job: str
    seq: int
    kind: str
    state: TaskState
    owner: str
    needs: tuple[str, ...]
    cost: int
    priority: int
    tries: int = 0
    attempts: int = 0
    backoff_ms: int = 0
    excluded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt(Row):
    """One lease of a task to a node and what became of it; `device` is where (ledger.device_slots)."""

    id: str
    task: str
    job: str
    node: str
    number: int
    state: AttemptState
    token: int
    granted_at_ms: int
    ended_at_ms: int = 0
    command_line: str = ""
    stderr_tail: str = ""
    encoder: str = ""
    ffmpeg: str = ""
    started_at_ms: int = 0
    fetch_ms: int = 0
    encode_ms: int = 0
    verify_ms: int = 0
    fetched_bytes: int = 0
    frames: int = 0
    result_bytes: int = 0
    result_digest: str = ""
    result_json: str = ""
    failure: str = ""
    error_code: str = ""
    error: str = ""
    todo: str = ""
    device: str = column(since=3, default="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event(Row):
    """One line of history: `kind` is `job.<state>`, `member.<state>`, ...; ordered by `id`.

    From schema 2 on the first line of a job is the job itself (`first_event`), not stored again.
    """

    id: int
    log_index: int
    at_ms: int
    kind: str
    job: str
    node: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch(Row):
    """A watched folder of a node's machine; `settings` is JSON of that node."""

    id: str
    node: str
    folder: str
    profile: str
    settings: str = column(since=3, default="{}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile(Row):
    """A profile of the mesh's own people; `definition` is its JSON, which this package does not read."""

    name: str
    definition: str
    updated_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep(Row):
    """One order about many jobs, on its way from the newest of them to the oldest.

    Jobs of a seq below `cursor` are still to be looked at; 0: it is done.
    """

    id: str
    action: Action
    value: int
    states: tuple[str, ...]
    folder: str
    node: str
    profile: str
    tenant: str
    since_ms: int
    until_ms: int
    by: str
    cursor: int
    changed: int = 0
    skipped: int = 0
    created_at_ms: int
    finished_at_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant(Row):
    """Whose jobs they are: its share beside others, and slots that it may have at once (-1: any number).

    `queued_jobs` and `queued_bytes` are how many of its films, of how many bytes, may wait (-1: any).
    """

    name: str
    share: int
    slots: int
    queued_jobs: int
    queued_bytes: int
    updated_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted(Row):
    """What a job that was forgotten had made: `id` is the source's size, its digest and the profile's definition, with slashes between.

    For its result the same, with `RESULT_OF` and the profile's name last.
    """

    id: str
    output: str
    at_ms: int


ROW_CLASSES: Final[tuple[type[Row], ...]] = (
    Mesh,
    Member,
    Invitation,
    Node,
    Job,
    Task,
    Attempt,
    Event,
    Definition,
    Watch,
    Profile,
    Sweep,
    Converted,
    Tenant,
)
_TABLE_SINCE: Final[dict[type[Row], int]] = {
    Definition: 2,
    Watch: 3,
    Profile: 3,
    Sweep: 3,
    Converted: 3,
    Tenant: 3,
}


def row_classes(schema: int) -> tuple[type[Row], ...]:
    """The tables that a ledger of this form has."""
    return tuple(cls for cls in ROW_CLASSES if _TABLE_SINCE.get(cls, FIRST_SCHEMA) <= schema)
