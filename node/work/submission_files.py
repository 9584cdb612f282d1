"""From the paths of a submission to jobs: films found, outputs named, every fault told by its path.

Blocking (it searches folders and looks at files): call it in a thread.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from ledger.submissions import JobSpec
from mesh.errors import DarkStreamError
from mesh.transfer import kept_inode
from node.gateway.models import PathFault, SubmitRequest
from node.media.profiles import Profile, output_name, replacing_name
from node.work.scan_files import Film, scan
from node.work.submission import Submission

SplitOutput = Callable[[str], object]
"""Raises `PathError` for an output outside the allowed folders."""


def prepare(
    request: SubmitRequest,
    profile: Profile,
    *,
    owner: str,
    allowed: Sequence[Path],
    check_output: SplitOutput,
    profile_names: Sequence[str],
    new_id: Callable[[], str],
) -> Submission:
    """Everything about the request that this machine alone can know."""
    found = scan(request.paths, allowed, profile_names)
    faults = [PathFault(path=f.path, code=f.code, what=f.what, todo=f.todo) for f in found.faults]
    jobs: list[JobSpec] = []
    searched: set[str] = set()
    taken: set[Path] = set()
    for film in found.films:
        output = _output(film, request.output, profile)
        fault = _fault(film, output, request, check_output, taken)
        if profile.publish.replace and output == film.path and output not in taken:
            fault = None  # its own name is the one that it shall have
        if fault is not None:
            faults.append(fault)
            continue
        try:
            facts = film.path.stat()
        except OSError as error:
            faults.append(
                PathFault(
                    path=str(film.path),
                    code="unreadable_source",
                    what=f"{film.path} cannot be read: {error.strerror}",
                    todo="check the path",
                )
            )
            continue
        taken.add(output)
        job = new_id()
        if film.folder is not None:
            searched.add(job)
        jobs.append(
            JobSpec(
                id=job,
                owner=owner,
                source=str(film.path),
                source_bytes=facts.st_size,
                source_mtime_ns=facts.st_mtime_ns,
                source_inode=kept_inode(facts.st_ino),
                output=str(output),
                overwrite=request.overwrite,
                profile=profile.name,
                profile_json=profile.to_json(),
                priority=request.priority,
                tenant=request.tenant,
                split=request.split,
            )
        )
    return Submission(jobs=tuple(jobs), faults=tuple(faults), searched=frozenset(searched))


def _output(film: Film, folder: str | None, profile: Profile) -> Path:
    """Beside the source, or in `--output`, where a searched folder's tree is mirrored."""
    if profile.publish.replace:
        return film.path.with_name(replacing_name(film.path.stem, profile))
    name = output_name(film.path.stem, profile)
    if folder is None:
        return film.path.with_name(name)
    inner = film.path.parent.relative_to(film.folder) if film.folder is not None else Path()
    # Resolved where it exists, so that a link in the person's own path is no surprise later.
    return Path(folder).resolve() / inner / name


def _fault(
    film: Film, output: Path, request: SubmitRequest, check_output: SplitOutput, taken: set[Path]
) -> PathFault | None:
    path = str(film.path)
    try:
        check_output(str(output))
    except DarkStreamError as error:
        return PathFault(path=path, code=error.code, what=error.what, todo=error.todo)
    if output == film.path or output in taken:
        what = f"{output} would be written twice" if output in taken else f"{output} is the source"
        return PathFault(path=path, code="conflict", what=what, todo="choose another --output")
    if output.exists() and not request.overwrite:
        return PathFault(
            path=path,
            code="conflict",
            what=f"{output} exists already",
            todo="remove it, choose another --output, or say --overwrite",
        )
    return None
