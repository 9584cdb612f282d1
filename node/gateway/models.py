"""What the HTTP API says and hears: strict, bounded, versioned by the path `/api/v1`.

Times end in `_ms`: wall clock of the node that wrote them, milliseconds since 1970, unless the
docstring says that it is a duration.  Paths are absolute and mean something on the owner's machine.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from ledger.jobs import JobState
from ledger.placing import LABEL, LABELS_MAX, checked_label
from node.gateway.base_models import Answer, Question
from node.gateway.device_models import SlotsInfo

PATHS_PER_SUBMIT_MAX = 1_000
"""Paths in one request: one command of the ledger carries as many jobs."""
PATH_CHARS_MAX = 4_096
"""PATH_MAX of Linux; longer paths cannot be opened anywhere."""
NAME_CHARS_MAX = 64
DEFINITION_CHARS_MAX = 16 << 10
"""A profile has some hundred characters; the ledger keeps its text."""
PAGE_MAX = 1_000
PAGE_DEFAULT = 100
TOKEN_USES_MAX = 1_000
TOKEN_TTL_S_MAX = 30 * 24 * 3_600
"""Thirty days: an invitation that lives longer is a password."""
PRIORITY_MAX = 100
NODES_ASKED_MAX = 64

Phase = Literal["hashing", "fetching", "encoding", "verifying", "returning", "publishing"]
EventKind = Literal["job", "progress", "node", "mesh", "gap"]

Name = Annotated[str, Field(min_length=1, max_length=NAME_CHARS_MAX)]
Label = Annotated[
    str, AfterValidator(checked_label), WithJsonSchema({"type": "string", "pattern": LABEL})
]
PathText = Annotated[str, Field(min_length=1, max_length=PATH_CHARS_MAX, pattern=r"^[^\x00]+$")]


class Fault(Answer):
    """What went wrong, as everywhere: a stable code, what happened, what to do, and on which node."""

    code: str
    what: str
    todo: str = ""
    node: str = ""


class Progress(Answer):
    """How far an attempt is, live.  Never in the log: it is lost with the process, and that is right.

    `done` of `total` are frames while encoding, else bytes; `total` 0 and `speed` 0.0 mean unknown.
    `fps` is frames encoded a second, `speed` is times real time, `bytes_s` is bytes a second;
    `node` is the name of the node that works on it.
    """

    job: str
    attempt: str
    node: str
    phase: Phase
    done: int = 0
    total: int = 0
    fps: float = 0.0
    speed: float = 0.0
    bytes_s: int = 0
    left_s: int | None = None
    """Seconds until this phase is over, at the present rate; null while nobody knows."""

    def share(self) -> float | None:
        """How much of this phase is done, 0.0 to 1.0; None when the whole is unknown."""
        return min(1.0, self.done / self.total) if self.total > 0 else None


class ResultInfo(Answer):
    """A published result: frames in and out are counted by decoding, durations are milliseconds."""

    output: str
    bytes: int
    digest: str
    frames_in: int
    frames_out: int
    duration_ms: int
    """How long the film plays."""
    node: str
    """Name of the node that encoded."""
    encoder: str = ""
    fetch_ms: int = 0
    encode_ms: int = 0
    verify_ms: int = 0
    total_ms: int = 0
    """From submission to the file in its place."""
    vmaf: float | None = None
    """How much the worst sample looks like the film, where the job asked for a floor."""


class JobSummary(Answer):
    """One line of the list of jobs; `nodes` are the names of those that work on it now or did last."""

    id: str
    state: JobState
    source: str
    output: str
    profile: str
    owner: str
    nodes: list[str]
    tenant: str
    priority: int
    source_bytes: int
    submitted_at_ms: int
    finished_at_ms: int | None = None
    unprotected: bool = False
    """Acknowledged by one machine alone: lost when that machine's disk is lost."""
    fault: Fault | None = None
    progress: Progress | None = None
    result: ResultInfo | None = None


class AttemptInfo(Answer):
    """One run of a task on one node, with the exact command line and the end of FFmpeg's stderr."""

    id: str
    number: int
    node: str
    state: str
    device: str = ""
    """Of its node, as `NodeInfo.devices` names it; empty: any."""
    encoder: str = ""
    ffmpeg: str = ""
    command_line: list[str] = Field(default_factory=list[str])
    stderr_tail: str = ""
    started_at_ms: int | None = None
    fetch_ms: int = 0
    encode_ms: int = 0
    verify_ms: int = 0
    fetched_bytes: int = 0
    frames: int = 0
    result_bytes: int = 0
    result_digest: str = ""
    fault: Fault | None = None


class TaskInfo(Answer):
    """One unit of leasable work; any one of the encoders in `needs` will do."""

    id: str
    kind: str
    state: str
    needs: list[str]
    cost: int
    attempts: list[AttemptInfo]


class JobDetail(JobSummary):
    """Everything about a job; `waiting` says why nothing runs, a true reason each, `why_waiting` in one line."""

    source_digest: str = ""
    probe: dict[str, Any] | None = None
    plan: dict[str, Any] | None = None
    tasks: list[TaskInfo] = Field(default_factory=list[TaskInfo])
    waiting: list[str] = Field(default_factory=list[str])
    why_waiting: str = ""
    needs: list[str] = Field(default_factory=list[str])
    """Labels that a node has to have."""
    on: list[str] = Field(default_factory=list[str])
    """Nodes that may work on it; none: any."""


class JobsPage(Answer):
    """One page of jobs, newest first; `next` is the cursor of the next page."""

    jobs: list[JobSummary]
    next: str | None = None


class JobFilter(Question):
    """Which jobs are wanted; `node` is a name or id of owner or worker, `since_ms` a submission time."""

    status: JobState | None = None
    node: Name | None = None
    since_ms: int | None = Field(default=None, ge=0, lt=1 << 53)
    tenant: Name | None = None
    until_ms: int | None = Field(default=None, ge=0, lt=1 << 53)
    profile: Name | None = None
    folder: PathText | None = None
    limit: int = Field(default=PAGE_DEFAULT, ge=1, le=PAGE_MAX)
    cursor: str | None = Field(default=None, min_length=1, max_length=128)


class NodeInfo(Answer):
    """One member of the mesh as this node sees it."""

    id: str
    name: str
    role: Literal["full", "witness"]
    state: Literal["member", "revoked", "removed"]
    alive: bool
    """Heard within the heartbeat limits; always true for the node that answers."""
    coordinator: bool
    vote: Literal["voter", "learner", "none"]
    this: bool = False
    """It is the node that answers."""
    last_heard_ms: int | None = None
    """Duration since its last word."""
    addresses: list[str] = Field(default_factory=list[str])
    ffmpeg: str = ""
    encoders: list[str] = Field(default_factory=list[str])
    slots: int = 0
    """Of all its devices together."""
    slots_busy: int = 0
    """Leases that it has; more than slots where some wait for one."""
    devices: list[SlotsInfo] = Field(default_factory=list[SlotsInfo])
    """Slots of each device; none: an older version, whose slots are for everything."""
    closed: str = ""
    """Why it takes no new work now."""
    labels: list[str] = Field(default_factory=list[str])
    """What its owner says of it; jobs can ask for it."""
    cpus: int = 0
    platform: str = ""
    version: str = ""
    jobs: list[str] = Field(default_factory=list[str])
    """What it runs now."""
    sent_bytes: int = 0
    """Film bytes that this node sent to others since its start."""
    received_bytes: int = 0
    limit_up: int = 0
    """Bytes a second that it sends at most; 0: no limit."""
    limit_down: int = 0


class PendingJoin(Answer):
    """A node that asks to be admitted; a person compares `code` with what the new node shows."""

    id: str
    name: str
    code: str
    address: str
    asked_at_ms: int


class NodesPage(Answer):
    """Members and those that ask to become one; `next` is the cursor of the next page of members."""

    nodes: list[NodeInfo]
    pending: list[PendingJoin]
    next: str | None = None


class BackupInfo(Answer):
    """One way in which the node that answers backs up by itself; `here`: it runs on this node now.

    Everything up to log index `index` was there at `done_at_ms`; None before the first success.
    """

    kind: Literal["archive", "litestream"]
    target: str
    here: bool
    index: int = 0
    done_at_ms: int | None = None
    drilled_at_ms: int | None = None
    """When what was backed up was last brought back and found equal."""
    failures: int = 0
    fault: Fault | None = None


class Status(Answer):
    """The mesh in one look, as the node that answers sees it."""

    node: str
    node_id: str
    version: str
    mesh: str | None
    state: Literal["looking", "forming", "waiting", "member"]
    """looking for a mesh, forming one, waiting for approval, or member of one."""
    join_code: str | None = None
    """The six digits to compare while this node waits for approval."""
    open: bool = False
    """Everyone on the network is admitted without asking."""
    coordinator: str | None = None
    quorum: bool = False
    unprotected: bool = False
    """What is acknowledged now is held by one machine alone."""
    term: int = 0
    commit_index: int = 0
    applied_index: int = 0
    voters: list[str] = Field(default_factory=list[str])
    learners: list[str] = Field(default_factory=list[str])
    nodes_alive: int = 0
    nodes_total: int = 0
    jobs: dict[str, int] = Field(default_factory=dict[str, int])
    """Number of jobs by state."""
    running: list[Progress] = Field(default_factory=list[Progress])
    backups: list[BackupInfo] = Field(default_factory=list[BackupInfo])
    """What `[backup]` of this node's configuration asks for."""
    notes: list[str] = Field(default_factory=list[str])
    """What a person should know and do, one sentence each: quorum lost, another mesh nearby."""


class SubmitRequest(Question):
    """Films and folders on the machine of the node that is asked."""

    paths: list[PathText] = Field(min_length=1, max_length=PATHS_PER_SUBMIT_MAX)
    profile: Name
    definition: str = Field(default="", max_length=DEFINITION_CHARS_MAX)
    """A profile of the person's own, as JSON; `profile` is its name then."""
    encoders: list[str] = Field(default_factory=list[str], max_length=8)
    """Families that may make the picture, best first (`NVENC`, ..., `CPU`); empty: as the profile says."""
    replace: bool = False
    """The result takes the film's place; the original goes to a trash (`/jobs/{id}/restore`)."""
    trash_days: int | None = Field(default=None, ge=1, le=3_650)
    times: Literal["new", "source"] | None = None
    permissions: Literal["new", "source"] | None = None
    vmaf_min: float | None = Field(default=None, ge=0, le=100)
    """A result that looks less like its film is refused."""
    larger: Literal["keep", "discard"] | None = None
    """Whether a result that is no smaller than its film is published."""
    metadata: Literal["keep", "no-location", "none"] | None = None
    output: PathText | None = None
    overwrite: bool = False
    priority: int = Field(default=0, ge=-PRIORITY_MAX, le=PRIORITY_MAX)
    tenant: str = Field(default="", max_length=NAME_CHARS_MAX)
    split: bool = True
    dry_run: bool = False
    needs: list[Label] = Field(default_factory=list[Label], max_length=LABELS_MAX)
    """Labels that a node has to have, all of them, to work on these jobs."""
    on: list[Name] = Field(default_factory=list[Name], max_length=NODES_ASKED_MAX)
    """Names or ids of the nodes that may work on them; none: any node."""
    once: bool = False
    """Films whose content was converted with this profile already, or waits to be, are left out."""


class Restored(Answer):
    """A replaced original that is back at its name, and where the result lies now."""

    id: str
    source: str
    result: str


class Submitted(Answer):
    """A job that was made, or with `dry_run` would be (then `id` is None)."""

    id: str | None
    source: str
    output: str
    source_bytes: int = 0
    expected_bytes: int | None = None
    """What the result is likely to have, by earlier results of this profile; None: there are none."""


class PathFault(Fault):
    """Why one of the paths gave no job."""

    path: str


class SubmitResult(Answer):
    """What became of a submission: the jobs in the order of the paths, and each path that gave none."""

    jobs: list[Submitted]
    faults: list[PathFault]
    results: int = 0
    """Results of this mesh that a search met and left out."""
    dry_run: bool = False


class TokenRequest(Question):
    """An invitation for `uses` nodes that ends after `ttl_s` seconds."""

    uses: int = Field(default=1, ge=1, le=TOKEN_USES_MAX)
    ttl_s: int = Field(default=3_600, ge=1, le=TOKEN_TTL_S_MAX)


class TokenResult(Answer):
    """The token, shown once: only its verifier is kept."""

    token: str
    uses: int
    expires_at_ms: int


class ApproveRequest(Question):
    """The code that the person compared; a join with another code under that name is refused."""

    code: str | None = Field(default=None, pattern=r"^[0-9]{6}$")


class Approved(Answer):
    """The node that was admitted."""

    id: str
    name: str
    code: str


class Revoked(Answer):
    """The node that was distrusted for good."""

    id: str
    name: str


class Removed(Answer):
    """The node that left for good; it may join anew."""

    id: str
    name: str


class Check(Answer):
    """One line of a health report."""

    name: str
    ok: bool
    reason: str


class Health(Answer):
    """Whether the node can take work; every check with its reason, also the good ones."""

    ready: bool
    checks: list[Check]


class Metric(Answer):
    """One sample for Prometheus; `name` without the prefix `darkstream_`."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    kind: Literal["counter", "gauge"]
    help: str
    value: float
    labels: dict[str, str] = Field(default_factory=dict[str, str])


class Event(Answer):
    """Something changed.  Exactly the field that `kind` names is set; `mesh` carries a new Status.

    `gap` says that events were lost to this listener: read again what you show.
    """

    id: int = Field(ge=0, lt=1 << 53)
    kind: EventKind
    at_ms: int
    job: JobSummary | None = None
    progress: Progress | None = None
    node: NodeInfo | None = None
    mesh: Status | None = None


class Problem(Answer):
    """RFC 9457 problem document with our stable code; `faults` names each wrong field of a request."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    todo: str = ""
    faults: list[Fault] = Field(default_factory=list[Fault])
