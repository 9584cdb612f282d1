"""From a request to jobs: what this machine found, without what is converted or queued already."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from ledger.jobs import Job, Tenant
from ledger.placing import place_of
from ledger.queries import Reader
from ledger.submissions import JobSpec
from mesh.errors import DarkStreamError, DuplicateError, NotFoundError
from node.faces.mesh_view import Parts
from node.faces.quotas import quota_of, within_quota
from node.gateway.models import PathFault, SubmitRequest, SubmitResult, Submitted
from node.media.profiles import profile_from_json
from node.work.submission import Submission, commands_of

Digest = Callable[[str], Awaitable[str]]
"""The digest of an allowed film's content, as the ledger keeps it."""


async def submit(parts: Parts, request: SubmitRequest, digest: Digest) -> SubmitResult:
    """Makes the jobs; with `dry_run` only says which, and to how many bytes."""
    made = await parts.prepare(request)
    # One look for all: each waits for a thread, and the person for each.
    known = await parts.replica.read(lambda reader: _looked_up(reader, request, made.jobs))
    made = _without_queued(made, known.writers)
    made, results = await _without_results(parts, made, known.results, digest)
    if request.once:
        made = await _without_converted(parts, made, digest)
    async with within_quota(parts, known.quota, made.jobs):
        if not request.dry_run:
            for command in commands_of(made.jobs, known.schema, known.place):
                await parts.submit(command)
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
        results=results,
        dry_run=request.dry_run,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What the ledger knows of a submission's films, by the ids of their jobs."""

    writers: dict[str, Job]
    """Who is about to write their outputs."""
    results: dict[str, tuple[str | None, bool]]
    """The profile whose result each is by its name and size, and whether its content may be one's."""
    schema: int
    place: tuple[str, ...]
    quota: Tenant | None


def _looked_up(reader: Reader, request: SubmitRequest, jobs: Sequence[JobSpec]) -> _Known:
    found = ((job, reader.job_of_output(job.owner, job.output)) for job in jobs)
    return _Known(
        writers={job.id: other for job, other in found if other is not None and not other.is_final},
        results={
            job.id: (
                reader.result_at(job.owner, job.source, job.source_bytes),
                reader.has_results_of(job.source_bytes),
            )
            for job in jobs
        },
        schema=reader.schema(),
        place=_place(reader, request),
        quota=quota_of(reader, request.tenant),
    )


def _place(reader: Reader, request: SubmitRequest) -> tuple[str, ...]:
    """Where the jobs may be worked on.  Raises `NotFoundError` for a node that nobody knows."""
    nodes: list[str] = []
    for name in request.on:
        member = reader.member_by_name(name)
        if member is None:
            raise NotFoundError(f"no node {name}", "see `mesh-cli nodes`")
        nodes.append(member.node)
    return place_of(request.needs, nodes)


async def _without_results(
    parts: Parts, made: Submission, known: dict[str, tuple[str | None, bool]], digest: Digest
) -> tuple[Submission, int]:
    """Our own results are no films to convert: not with the same profile, and none is ever replaced.

    What a search met is left out and counted; what was named itself is told.
    """
    replaces = bool(made.jobs) and profile_from_json(made.jobs[0].profile_json).publish.replace
    faults: list[PathFault] = []
    gone: set[str] = set()
    for job, profiles in (await _made_by(parts, made.jobs, known, digest)).items():
        if not profiles or not (replaces or job.profile in profiles):
            continue
        gone.add(job.id)
        if job.id in made.searched:
            continue
        faults.append(
            PathFault(
                path=job.source,
                code=DuplicateError.code,
                what=f"it is a result of this mesh itself, made with {', '.join(profiles)}",
                todo="bring its original back (`mesh-cli job restore ID`) and convert that"
                if replaces
                else "nothing: it has this profile already",
            )
        )
    return _left(made, gone, faults), len(gone) - len(faults)


async def _made_by(
    parts: Parts,
    jobs: Sequence[JobSpec],
    known: dict[str, tuple[str | None, bool]],
    digest: Digest,
) -> dict[JobSpec, tuple[str, ...]]:
    """The profiles that made each of these films; it is read only where a result has its size.

    What lies under a result's name and has its size is taken for it: a library that was replaced is
    not read again whenever it is submitted.
    """
    found: dict[JobSpec, tuple[str, ...]] = {}
    for job in jobs:
        profile, worth_reading = known[job.id]
        found[job] = () if profile is None else (profile,)
        if profile is None and worth_reading:
            # What cannot be read is told when it is planned.
            with suppress(DarkStreamError):
                found[job] = await _profiles_of(parts, job, await digest(job.source))
    return found


async def _profiles_of(parts: Parts, job: JobSpec, content: str) -> tuple[str, ...]:
    return await parts.replica.read(lambda r: r.result_profiles(job.source_bytes, content))


def _without_queued(made: Submission, writers: dict[str, Job]) -> Submission:
    """Films whose output another job is about to write are told, and hold up nobody else."""
    faults = [
        PathFault(
            path=job.source,
            code="conflict",
            what=f"job {writers[job.id].id} already writes {job.output}",
            todo="wait for it, or choose another --output",
        )
        for job in made.jobs
        if job.id in writers
    ]
    return _left(made, set(writers), faults)


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
