"""What became of the paths of a submission, and the commands that make jobs of it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Final

from ledger.commands import SINCE
from ledger.submissions import (
    JOBS_PER_COMMAND_MAX,
    JobSpec,
    SubmitFilms,
    SubmitJobs,
    SubmitPlacedFilms,
)
from mesh.errors import UsageError
from node.gateway.models import PathFault

PROPOSAL_BYTES_MAX: Final = 512 << 10
"""Half of what an entry of the log may have: the jobs' numbers and envelope are not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """Jobs in the order of the paths, and why other paths gave none.

    `searched` are the ids of jobs whose films were not named but found in a folder.
    """

    jobs: tuple[JobSpec, ...]
    faults: tuple[PathFault, ...]
    searched: frozenset[str] = frozenset()


def commands_of(
    jobs: Sequence[JobSpec], schema: int, place: tuple[str, ...] = ()
) -> Iterator[SubmitJobs | SubmitFilms]:
    """The commands that submit these jobs in their order, in a ledger of this form.

    Raises `UsageError` for a place (ledger.placing) that it cannot hold yet.
    """
    if place and schema < SINCE[SubmitPlacedFilms]:
        raise UsageError(
            "a member runs a version that knows no labels of nodes", "update it, or leave them out"
        )
    in_columns = schema >= SINCE[SubmitFilms]
    for _, like in groupby(jobs, key=_in_common if in_columns else lambda _: None):
        for batch in _batches(like, in_columns=in_columns):
            yield _films(batch, place) if in_columns else SubmitJobs(jobs=batch)


def _batches(jobs: Iterable[JobSpec], *, in_columns: bool) -> Iterator[tuple[JobSpec, ...]]:
    batch: list[JobSpec] = []
    size = 0
    for job in jobs:
        texts = (job.source, job.output, "" if in_columns else job.profile_json)
        weight = sum(len(text.encode()) for text in texts)
        if batch and (size + weight > PROPOSAL_BYTES_MAX or len(batch) == JOBS_PER_COMMAND_MAX):
            yield tuple(batch)
            batch, size = [], 0
        batch.append(job)
        size += weight
    if batch:
        yield tuple(batch)


def _in_common(job: JobSpec) -> tuple[object, ...]:
    return (
        job.owner,
        job.profile,
        job.profile_json,
        job.overwrite,
        job.priority,
        job.tenant,
        job.split,
    )


def _films(jobs: tuple[JobSpec, ...], place: tuple[str, ...]) -> SubmitFilms:
    first = jobs[0]
    made = partial(SubmitPlacedFilms, place=place) if place else SubmitFilms
    return made(
        owner=first.owner,
        profile=first.profile,
        profile_json=first.profile_json,
        overwrite=first.overwrite,
        priority=first.priority,
        tenant=first.tenant,
        split=first.split,
        ids=tuple(job.id for job in jobs),
        sources=tuple(job.source for job in jobs),
        source_bytes=tuple(job.source_bytes for job in jobs),
        source_mtimes_ns=tuple(job.source_mtime_ns for job in jobs),
        source_inodes=tuple(job.source_inode for job in jobs),
        outputs=tuple(job.output for job in jobs),
    )
