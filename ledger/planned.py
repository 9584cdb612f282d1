"""The tasks that a plan makes of a job."""

from collections.abc import Iterator, Sequence

from ledger.commands import PieceSpec, PlanJob, PlanPieces, TaskSpec
from ledger.jobs import SEQ_BITS, Job, Task


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
