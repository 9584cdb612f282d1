"""Applies what makes new jobs."""

from collections.abc import Sequence
from typing import Final

from ledger.change import Change, RefusedError
from ledger.jobs import FINAL_JOB_STATES, SEQ_BITS, Definition, Job, Member
from ledger.placing import LABELS_MAX
from ledger.submissions import JOBS_PER_COMMAND_MAX, SubmitFilms, SubmitJobs, SubmitPlacedFilms

PLACE_CHARS_MAX: Final = 4_096
"""Of all terms together: each job carries them."""

assert JOBS_PER_COMMAND_MAX <= 1 << SEQ_BITS


def submit_jobs(change: Change, command: SubmitJobs) -> None:
    """New jobs; all or none, so that a repeated submission cannot half succeed."""
    change.mesh()
    specs = command.jobs
    _check_new(change, [(spec.id, spec.owner, spec.output) for spec in specs])
    for position, spec in enumerate(specs):
        job = Job(
            id=spec.id,
            seq=(change.index << SEQ_BITS) | position,
            state="queued",
            planned=0,
            owner=spec.owner,
            source=spec.source,
            source_bytes=spec.source_bytes,
            source_mtime_ns=spec.source_mtime_ns,
            source_inode=spec.source_inode,
            output=spec.output,
            overwrite=int(spec.overwrite),
            profile=spec.profile,
            profile_json=spec.profile_json if change.rows.schema < 2 else "",
            definition=_defined(change, spec.profile_json, position),
            priority=spec.priority,
            tenant=spec.tenant,
            split=int(spec.split),
            created_at_ms=change.at_ms,
            updated_at_ms=change.at_ms,
        )
        change.rows.put(job)
        if change.rows.schema < 2:
            change.tell("job.queued", job=job.id, node=job.owner)


def submit_films(change: Change, command: SubmitFilms) -> None:
    """The same, told in columns."""
    change.mesh()
    place = command.place if isinstance(command, SubmitPlacedFilms) else ()
    _check_place(place)
    columns = (
        command.ids,
        command.sources,
        command.source_bytes,
        command.source_mtimes_ns,
        command.source_inodes,
        command.outputs,
    )
    if len(set(map(len, columns))) != 1:
        raise RefusedError("usage", "the columns of the films differ in length")
    owner, outputs = command.owner, command.outputs
    _check_new(change, [(job, owner, out) for job, out in zip(command.ids, outputs, strict=True)])
    first_seq = change.index << SEQ_BITS
    like = Job(
        id="",
        seq=first_seq,
        state="queued",
        planned=0,
        owner=owner,
        source="",
        source_bytes=0,
        source_mtime_ns=0,
        source_inode=0,
        output="",
        overwrite=int(command.overwrite),
        profile=command.profile,
        definition=_defined(change, command.profile_json, 0),
        priority=command.priority,
        tenant=command.tenant,
        split=int(command.split),
        created_at_ms=change.at_ms,
        updated_at_ms=change.at_ms,
        place=place,
    )
    change.rows.put_like(
        like,
        (
            "id",
            "source",
            "source_bytes",
            "source_mtime_ns",
            "source_inode",
            "output",
            "seq",
        ),
        zip(*columns, range(first_seq, first_seq + len(outputs)), strict=True),
    )


def _check_place(place: Sequence[str]) -> None:
    if len(place) > LABELS_MAX + 1 or sum(map(len, place)) > PLACE_CHARS_MAX:
        raise RefusedError("usage", "it asks for too many labels or nodes")


def _check_new(change: Change, jobs: Sequence[tuple[str, str, str]]) -> None:
    """Whether jobs of these ids, owners and outputs may all begin."""
    if not 0 < len(jobs) <= JOBS_PER_COMMAND_MAX:
        raise RefusedError("usage", f"1 to {JOBS_PER_COMMAND_MAX} jobs in one command")
    known = {job.id for job in change.rows.where_any(Job, "id", [job for job, _, _ in jobs])}
    written: dict[tuple[str, str], str] = {}
    for other in change.rows.where_any(Job, "output", [output for _, _, output in jobs]):
        if other.state not in FINAL_JOB_STATES:
            written.setdefault((other.owner, other.output), other.id)
    for job, owner, output in jobs:
        if job in known:
            raise RefusedError("conflict", f"a job {job} exists already")
        member = change.rows.get(Member, owner)
        if member is None or member.state != "active":
            raise RefusedError("not_found", f"the owner {owner} is no member")
        if (writer := written.get((owner, output))) is not None:
            raise RefusedError(
                "conflict",
                f"job {writer} already writes {output}",
                "wait for it, or choose another --output",
            )
        known.add(job)
        written[owner, output] = job


def _defined(change: Change, text: str, position: int) -> int:
    """The id of a profile's text, which is kept once; `position` is the job's that may be its first."""
    if change.rows.schema < 2:
        return 0
    known = change.rows.where(Definition, text=text)
    if known:
        return known[0].id
    definition = Definition(id=(change.index << SEQ_BITS) | position, text=text)
    change.rows.put(definition)
    return definition.id
