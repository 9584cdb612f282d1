"""Every change of the ledger is one of these commands, committed through the replicated log.

Commands carry resolved values: ids, wall-clock times and random draws are the proposer's; applying
one reads no clock and draws nothing.  The only value that applying makes is the fencing token
(`fencing_token`), because it must grow with the log.

Times end in `_ms` (wall clock of the proposer, milliseconds since 1970, for people and records
only: no decision compares two machines' clocks).  Digests are BLAKE3, 64 hexadecimal digits.
"""

from dataclasses import dataclass
from typing import Final, Literal, get_args

from ledger.device_slots import GrantDevices, ReportSlots
from ledger.orders import Order
from ledger.schema import FIRST_SCHEMA
from ledger.submissions import SubmitFilms, SubmitJobs, SubmitPlacedFilms
from ledger.vocabulary import COMMANDS
from mesh.codec import Vocabulary, value
from mesh.errors import WireError

MemberRole = Literal["full", "witness"]
PieceKind = Literal["chunk", "audio", "assemble"]
FailureClass = Literal["input", "encoder", "transient"]
"""input: the source is unusable, never retried; encoder: not on this node; transient: again, after a wait."""

TEXT_BYTES_MAX = 8 << 10
"""FFmpeg's stderr tail and every other free text that enters the ledger."""
LEASES_PER_COMMAND_MAX = 256
TASKS_PER_PLAN_MAX = 514
"""512 chunks, the sound and the assembly of one film."""
ATTEMPTS_MAX = 4
"""Attempts of one task before its job fails: enough for a node or two that die, few enough to end."""
_EPOCH_SHIFT = 40
EPOCH_MAX = (1 << 63 - _EPOCH_SHIFT) - 1
"""Fencing tokens are signed 64-bit integers in SQLite."""


def fencing_token(epoch: int, index: int) -> int:
    """Grows with every grant, also over a forced recovery (which raises the epoch): epoch * 2^40 + log index."""
    assert 0 < index < 1 << _EPOCH_SHIFT
    return (epoch << _EPOCH_SHIFT) | index


@value
@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """One log entry of kind `command`: who proposed what, idempotent by `id`."""

    id: str
    proposer: str
    proposed_at_ms: int
    cause: str
    command: bytes


ENVELOPES = Vocabulary("envelope")
ENVELOPES.kind("envelope")(Envelope)


@value
@dataclass(frozen=True, slots=True, kw_only=True)
class MemberSpec:
    """A node that may speak: `public_key` is its CURVE key (32 bytes), `raft_id` its consensus identity."""

    node: str
    raft_id: str
    public_key: bytes
    name: str
    role: MemberRole


@COMMANDS.kind("mesh.form", version=2)
@dataclass(frozen=True, slots=True, kw_only=True)
class FormMesh:
    """The first command of every ledger; `schema` is the form that it begins with.

    Version 1 named none and meant the first; who knows only that must not read this one.
    """

    mesh: str
    founder: MemberSpec
    schema: int = FIRST_SCHEMA


@COMMANDS.kind("ledger.migrate")
@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateLedger:
    """From here on the ledger has this form, the next after the present one.

    The coordinator proposes it once every member knows that form.
    """

    schema: int


@COMMANDS.kind("member.add")
@dataclass(frozen=True, slots=True, kw_only=True)
class AddMember:
    """Admits a node, by a use of `invitation` (its id) or, when None, by a person's approval.

    A known node with a new `raft_id` (a new data directory) replaces its row; a removed node comes
    back as a newcomer does; a revoked node is refused (`revoked`); a used-up or unknown invitation is refused (`join_refused`); a name that
    another member has gets a suffix `-2`, `-3`, ...
    """

    member: MemberSpec
    invitation: str | None


@COMMANDS.kind("member.revoke")
@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeMember:
    """Distrusts a key for good and voids all open invitations; its leases are given back."""

    node: str
    by: str


@COMMANDS.kind("member.remove")
@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveMember:
    """A node leaves for good, trusted to the end: its leases are given back, it may join anew later."""

    node: str
    by: str


@COMMANDS.kind("mesh.recover")
@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverMesh:
    """One survivor goes on without a majority, by a person's order (`mesh-cli ledger recover`).

    `epoch` grows, so that no fencing token of the past is taken; refused unless it does.  The other
    members stay trusted, but their data directories are none of this past any more: each has to
    come back with a new one.
    """

    node: str
    epoch: int


@COMMANDS.kind("invitation.create")
@dataclass(frozen=True, slots=True, kw_only=True)
class CreateInvitation:
    """A token's verifier key (32 bytes, derived from its secret), for `uses` admissions until `expires_at_ms`."""

    id: str
    key: bytes
    uses: int
    expires_at_ms: int


@COMMANDS.kind("node.report")
@dataclass(frozen=True, slots=True, kw_only=True)
class ReportNode:
    """What a node can do: encoders as FFmpeg names them, the FFmpeg version group, parallel slots, CPUs."""

    node: str
    ffmpeg: str
    encoders: tuple[str, ...]
    slots: int
    cpus: int
    platform: str
    version: str
    devices: str
    """JSON list of devices, for people."""


# --- jobs ---------------------------------------------------------------------------------------


@COMMANDS.kind("job.start_planning")
@dataclass(frozen=True, slots=True, kw_only=True)
class StartPlanning:
    """The owner begins to probe and hash the source."""

    job: str


@value
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """A whole film as leasable work; `needs` are FFmpeg encoder names, any one of which will do."""

    id: str
    kind: Literal["whole"]
    needs: tuple[str, ...]
    cost: int
    """Frames times pixels to encode: what the scheduler weighs."""


@COMMANDS.kind("job.plan")
@dataclass(frozen=True, slots=True, kw_only=True)
class PlanJob:
    """The owner's plan: digest and probe of the source as it was before any transfer, and its one task."""

    job: str
    source_digest: str
    source_bytes: int
    probe_json: str
    plan_json: str
    tasks: tuple[TaskSpec, ...]


@value
@dataclass(frozen=True, slots=True, kw_only=True)
class PieceSpec:
    """One unit of leasable work on a film in pieces.

    `needs` as of `TaskSpec`, or `encoder@group`: of exactly this build of FFmpeg, because chunks of
    one film must fit together; empty: any node.
    """

    id: str
    kind: PieceKind
    needs: tuple[str, ...]
    cost: int


@COMMANDS.kind("job.plan_pieces")
@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPieces:
    """A film in pieces: `chunk`s of its picture, at most one `audio`, and last `assemble`, when all are there."""

    job: str
    source_digest: str
    source_bytes: int
    probe_json: str
    plan_json: str
    tasks: tuple[PieceSpec, ...]


@COMMANDS.kind("job.fail")
@dataclass(frozen=True, slots=True, kw_only=True)
class FailJob:
    """The owner or the coordinator gives a job up, with a stable code, what happened, and what to do."""

    job: str
    node: str
    code: str
    what: str
    todo: str


# --- leases and results ---------------------------------------------------------------------------


@value
@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Task to node, as attempt `attempt`; applying gives it its fencing token."""

    task: str
    attempt: str
    node: str


@COMMANDS.kind("lease.grant")
@dataclass(frozen=True, slots=True, kw_only=True)
class GrantLeases:
    """The coordinator leases tasks; a task that is not ready any more is skipped, the rest are granted."""

    leases: tuple[Lease, ...]
    granted_at_ms: int


@value
@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculativeLease:
    """One more lease of a task that `beside` holds and is slow with: to another node's `device`, as attempt `attempt`."""

    task: str
    attempt: str
    node: str
    device: str
    beside: str


@COMMANDS.kind("lease.speculate")
@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculateLeases:
    """The coordinator has parts of films run a second time; the first result that an owner keeps counts.

    Skipped where `beside` is not what runs alone any more.
    """

    leases: tuple[SpeculativeLease, ...]
    granted_at_ms: int


@COMMANDS.kind("lease.expire")
@dataclass(frozen=True, slots=True, kw_only=True)
class ExpireLeases:
    """The coordinator takes leases back from silent workers; finished attempts are untouched."""

    attempts: tuple[str, ...]
    what: str


@COMMANDS.kind("lease.release")
@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseLeases:
    """A worker gives leases back (shutdown); does not count as a failure."""

    node: str
    attempts: tuple[str, ...]
    what: str


@value
@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptReport:
    """How an attempt went, kept for people: exact command line (JSON list), end of FFmpeg's stderr, durations."""

    command_line: str
    stderr_tail: str
    encoder: str
    ffmpeg: str
    started_at_ms: int
    fetch_ms: int
    encode_ms: int
    verify_ms: int
    fetched_bytes: int
    frames: int


@COMMANDS.kind("attempt.finish")
@dataclass(frozen=True, slots=True, kw_only=True)
class FinishAttempt:
    """The worker's own judgement passed; it holds the result for the owner.  Refused with an old token (`stale_token`)."""

    attempt: str
    token: int
    result_bytes: int
    result_digest: str
    result_json: str
    """Facts of the result (frames, duration_ms, streams), as judged by decoding it."""
    report: AttemptReport


@COMMANDS.kind("attempt.fail")
@dataclass(frozen=True, slots=True, kw_only=True)
class FailAttempt:
    """The attempt failed on `node`; `backoff_ms` (exponential, jitter drawn by the worker) is waited by the coordinator's own clock."""

    attempt: str
    token: int
    node: str
    failure: FailureClass
    code: str
    what: str
    todo: str
    backoff_ms: int
    report: AttemptReport


@COMMANDS.kind("result.accept")
@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptResult:
    """The owner holds the result, verified, in its staging place: from here on the job is publishing.

    Of a part (chunk, audio): the owner keeps it for the assembly, and `output` says nothing.
    """

    job: str
    attempt: str
    token: int
    output: str
    """The path that will be published; resolved by the owner, may differ from the asked one only by policy."""
    result_bytes: int
    result_digest: str


@COMMANDS.kind("result.refuse")
@dataclass(frozen=True, slots=True, kw_only=True)
class RefuseResult:
    """The owner could not get or would not take the result; the task is ready again, until attempts run out."""

    job: str
    attempt: str
    token: int
    code: str
    what: str
    todo: str


@COMMANDS.kind("job.published")
@dataclass(frozen=True, slots=True, kw_only=True)
class FinishJob:
    """The output is in place, synced, with this digest: done."""

    job: str
    token: int
    finished_at_ms: int


Command = (
    FormMesh
    | MigrateLedger
    | AddMember
    | RevokeMember
    | RemoveMember
    | RecoverMesh
    | CreateInvitation
    | ReportNode
    | ReportSlots
    | SubmitJobs
    | SubmitFilms
    | SubmitPlacedFilms
    | StartPlanning
    | PlanJob
    | PlanPieces
    | FailJob
    | GrantLeases
    | SpeculateLeases
    | GrantDevices
    | ExpireLeases
    | ReleaseLeases
    | FinishAttempt
    | FailAttempt
    | AcceptResult
    | RefuseResult
    | FinishJob
    | Order
)


SINCE: Final[dict[type[Command], int]] = {
    SubmitFilms: 2,
    PlanPieces: 2,
    SubmitPlacedFilms: 3,
    SpeculateLeases: 3,
    ReportSlots: 3,
    GrantDevices: 3,
} | dict.fromkeys(get_args(Order), 3)
"""The form of the ledger from which on a command may be proposed: members of before cannot read it."""


@value
@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What applying a command gave: remembered by command id, so that a repeated command answers the same."""

    ok: bool
    index: int
    code: str = ""
    what: str = ""
    todo: str = ""


ENVELOPES.kind("outcome")(Outcome)


def seal(
    command: Command, *, command_id: str, proposer: str, proposed_at_ms: int, cause: str
) -> bytes:
    """The data of a log entry of kind `command`."""
    return ENVELOPES.encode(
        Envelope(
            id=command_id,
            proposer=proposer,
            proposed_at_ms=proposed_at_ms,
            cause=cause,
            command=COMMANDS.encode(command),
        )
    )


def unseal(data: bytes) -> tuple[Envelope, Command]:
    """Envelope and command of a log entry.  Raises `WireError`, `UnknownKindError`."""
    envelope = ENVELOPES.decode(data)
    if not isinstance(envelope, Envelope):
        raise WireError("envelope: an outcome is no command")
    command: Command = COMMANDS.decode(envelope.command)
    return envelope, command
