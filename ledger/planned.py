"""What commands on their way into the log will make: the first job of a submission, the tasks of a plan."""

from collections.abc import Iterator, Sequence

from ledger.commands import PieceSpec, PlanJob, PlanPieces, TaskSpec
from ledger.jobs import SEQ_BITS, Job, Task
from ledger.submissions import SubmitFilms, SubmitPlacedFilms


def first_job(command: SubmitFilms) -> Job | None:
    """The first job of a submission as it will enter the ledger, but for its place there and its times.

    None for one that has none, which the ledger will refuse.
    """
    columns = (
        command.ids,
        command.sources,
        command.source_bytes,
        command.source_mtimes_ns,
        command.source_inodes,
        command.outputs,
    )
    if not all(columns):
        return None
    return Job(
        id=command.ids[0],
        seq=0,
        state="queued",
        planned=0,
        owner=command.owner,
        source=command.sources[0],
        source_bytes=command.source_bytes[0],
        source_mtime_ns=command.source_mtimes_ns[0],
        source_inode=command.source_inodes[0],
        output=command.outputs[0],
        overwrite=int(command.overwrite),
        profile=command.profile,
        profile_json=command.profile_json,
        priority=command.priority,
        tenant=command.tenant,
        split=int(command.split),
        created_at_ms=0,
        updated_at_ms=0,
        place=command.place if isinstance(command, SubmitPlacedFilms) else (),
    )


def planned_tasks(job: Job, plan: PlanJob | PlanPieces) -> Iterator[Task]:
    """As they enter the ledger: all ready, but for the assembly, which waits for the others."""
    tasks: Sequence[TaskSpec | PieceSpec] = plan.tasks
    for position, spec in enumerate(tasks):
        yield Task(
            id=spec.id,
            job=job.id,
            seq=(job.seq << SEQ_BITS) | position,
            kind=spec.kind,
            state="blocked" if spec.kind == "assemble" else "ready",
            owner=job.owner,
            needs=spec.needs,
            cost=spec.cost,
            priority=job.priority,
        )
