"""From a request to jobs: what this machine found, without what is converted or queued already."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from ledger.commands import JobSpec
from ledger.jobs import Job
from ledger.queries import Reader
from mesh.errors import DarkStreamError, DuplicateError
from node.faces.mesh_view import Parts
from node.gateway.models import PathFault, SubmitRequest, SubmitResult, Submitted
from node.work.submission import Submission, commands_of

Digest = Callable[[str], Awaitable[str]]
"""The digest of an allowed film's content, as the ledger keeps it."""


async def submit(parts: Parts, request: SubmitRequest, digest: Digest) -> SubmitResult:
    """Makes the jobs; with `dry_run` only says which, and to how many bytes."""
    made, schema = await _without_queued(parts, await parts.prepare(request))
    if request.once:
        made = await _without_converted(parts, made, digest)
    if not request.dry_run:
        for command in commands_of(made.jobs, schema):
            await parts.proposer.commit(command, cause=made.jobs[0].id)
    share = await parts.replica.read(lambda reader: reader.result_share(request.profile))
    return SubmitResult(
        jobs=[
            Submitted(
                id=None if request.dry_run else job.id,
                source=job.source,
                output=job.output,
                source_bytes=job.source_bytes,
                expected_bytes=None if share is None else int(job.source_bytes * share),
            )
            for job in made.jobs
        ],
        faults=list(made.faults),
        dry_run=request.dry_run,
    )


async def _without_queued(parts: Parts, made: Submission) -> tuple[Submission, int]:
    """Films whose output another job is about to write are told, and hold up nobody else.

    With the form of the ledger, which one look tells as well.
    """

    def read(reader: Reader) -> tuple[dict[str, Job], int]:
        found = ((job, reader.job_of_output(job.owner, job.output)) for job in made.jobs)
        queued = {j.id: other for j, other in found if other is not None and not other.is_final}
        return queued, reader.schema()

    others, schema = await parts.replica.read(read)
    faults = [
        PathFault(
            path=job.source,
            code="conflict",
            what=f"job {others[job.id].id} already writes {job.output}",
            todo="wait for it, or choose another --output",
        )
        for job in made.jobs
        if job.id in others
    ]
    return _left(made, set(others), faults), schema


async def _without_converted(parts: Parts, made: Submission, digest: Digest) -> Submission:
    """Films whose content was converted with this profile, or waits to be, under whatever name."""
    faults: list[PathFault] = []
    gone: set[str] = set()
    seen: dict[str, JobSpec] = {}
    for job in made.jobs:
        try:
            content = await digest(job.source)
        except DarkStreamError as error:
            fault = PathFault(path=job.source, code=error.code, what=error.what, todo=error.todo)
        else:
            what = await _known(parts, job, content, seen.setdefault(content, job))
            if not what:
                continue
            todo = "use that, or submit it without --once"
            fault = PathFault(path=job.source, code=DuplicateError.code, what=what, todo=todo)
        faults.append(fault)
        gone.add(job.id)
    return _left(made, gone, faults)


async def _known(parts: Parts, job: JobSpec, content: str, first: JobSpec) -> str:
    if first is not job:
        return f"{first.source} has the same content"

    def asked(reader: Reader) -> str:
        if reader.is_result(job.source_bytes, content):
            return "it is a result of a conversion itself"
        known = reader.converted(job.source_bytes, content, job.profile_json)
        if known is None:
            return ""
        if isinstance(known, Job):
            return f"job {known.id} has the same content and profile and is {known.state}: {known.output}"
        return f"the same content was converted with this profile: {known.output}"

    return await parts.replica.read(asked)


def _left(made: Submission, gone: set[str], faults: Sequence[PathFault]) -> Submission:
    jobs = tuple(job for job in made.jobs if job.id not in gone)
    return replace(made, jobs=jobs, faults=(*made.faults, *faults))
