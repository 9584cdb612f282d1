"""What other members say is judged here before it becomes a path or enters the log.

A member's key proves who speaks, not that its words are sound: an id may be a path in disguise, a
command may act in another's name, and text that a parser expects may be anything.
"""

import re
from collections.abc import Iterable
from typing import Final

from ledger.commands import (
    SINCE,
    AcceptResult,
    AddMember,
    Command,
    ExpireLeases,
    FailAttempt,
    FailJob,
    FinishAttempt,
    FinishJob,
    FormMesh,
    GrantLeases,
    MemberSpec,
    MigrateLedger,
    PlanJob,
    PlanPieces,
    RecoverMesh,
    RefuseResult,
    ReleaseLeases,
    ReportNode,
    SpeculateLeases,
    StartPlanning,
)
from ledger.device_slots import GrantDevices, ReportSlots
from ledger.orders import AddWatch, ForgetJobs, StepSweep
from ledger.queries import Reader
from ledger.submissions import SubmitFilms, SubmitJobs
from mesh.errors import BusyError, NotAllowedError
from mesh.ids import NodeId, RaftId, node_id_of, node_of
from mesh.transport import KEY_BYTES

FOREIGN_FAULTS: Final = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
)
"""What working on malformed rows of another node can raise: it fails that job, never this node."""

_PLAIN_ID: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}", re.ASCII)


def is_plain_id(text: str) -> bool:
    """Whether an id of a job or attempt may be part of a file's name: no separator, dot or control."""
    return _PLAIN_ID.fullmatch(text) is not None


def needs_ledger(command: Command) -> bool:
    """Whether `check_authority` must look something up: others are judged by their own words."""
    return isinstance(command, _OF_A_JOB | _OF_AN_ATTEMPT) or type(command) in SINCE


def check_authority(reader: Reader | None, caller: NodeId, command: Command) -> None:
    """Whether this member may propose this to the coordinator; `reader` only where it is needed.

    Raises `NotAllowedError` for a command in another's name, `BusyError` while the replica does
    not know yet what it speaks of: the caller's may be ahead, and it asks again.
    """
    if type(command) in SINCE:
        assert reader is not None, "the ledger says which form it has"
        if reader.schema() < SINCE[type(command)]:
            # A member that cannot read it would stop; the caller's replica may be ahead.
            raise BusyError("the ledger does not have the form for this yet", "ask again")
    if not _may(reader, caller, command):
        raise NotAllowedError(
            f"node {caller} may not propose {type(command).__name__} here", "update that node"
        )


_OF_A_JOB = StartPlanning | PlanJob | PlanPieces | FailJob | AcceptResult | RefuseResult | FinishJob
_OF_AN_ATTEMPT = FinishAttempt | FailAttempt
_OF_THE_COORDINATOR = (
    GrantLeases
    | SpeculateLeases
    | GrantDevices
    | ExpireLeases
    | FormMesh
    | MigrateLedger
    | RecoverMesh
    | StepSweep
    | ForgetJobs
)


def _may(reader: Reader | None, caller: NodeId, command: Command) -> bool:
    if isinstance(command, _OF_A_JOB | _OF_AN_ATTEMPT):
        assert reader is not None, "whose job or lease it is stands in the ledger"
        if isinstance(command, _OF_A_JOB):
            return _owner(reader, command.job) == caller
        return _holder(reader, command.attempt) == caller
    match command:
        case SubmitJobs() | SubmitFilms():
            return all(node == caller and is_plain_id(job) for job, node in _new_jobs(command))
        case (
            ReportNode(node=node)
            | ReportSlots(node=node)
            | ReleaseLeases(node=node)
            | AddWatch(node=node)
        ):
            return node == caller
        case AddMember(member=member):
            return _is_itself(member)
        case _:
            # Leases and the mesh itself are the coordinator's own, who asks nobody.
            return not isinstance(command, _OF_THE_COORDINATOR)


def _new_jobs(command: SubmitJobs | SubmitFilms) -> Iterable[tuple[str, str]]:
    """Ids and owners."""
    if isinstance(command, SubmitJobs):
        return ((job.id, job.owner) for job in command.jobs)
    return ((job, command.owner) for job in command.ids)


def _is_itself(member: MemberSpec) -> bool:
    key = member.public_key
    return (
        len(key) == KEY_BYTES
        and node_id_of(key) == member.node
        and node_of(RaftId(member.raft_id)) == member.node
    )


def _owner(reader: Reader, job_id: str) -> str:
    job = reader.job(job_id)
    if job is None:
        raise BusyError(f"job {job_id[:64]} is not known here yet", "ask again")
    return job.owner


def _holder(reader: Reader, attempt_id: str) -> str:
    attempt = reader.attempt(attempt_id)
    if attempt is None:
        raise BusyError(f"attempt {attempt_id[:64]} is not known here yet", "ask again")
    return attempt.node
