"""The last step of a film: its result comes to its place, and never at the cost of an original.

Blocking, and made to be done again: whatever step a crash came after, doing all of it once more ends
the same way.  A film that is replaced gets a second name first, in a trash beside it (a link: no byte
is moved), then the result takes its place, then the film's own name goes.  So at every moment the
original has a name, and `restore` brings it back until its days are over.
"""

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from ledger.jobs import Job
from mesh import clock
from mesh.destination_files import Destination, publish_new, safe_destination, sync_folder
from mesh.errors import (
    ConflictError,
    NotFoundError,
    SourceChangedError,
    StorageError,
    TransferError,
)
from mesh.transfer import Manifest, kept_inode
from node.gateway.models import Restored
from node.media.profiles import PublishPolicy, output_name, profile_from_json
from node.work.film_pieces import holds, plain

TRASH: Final = ".darkstream-trash"
"""Beside the film, because a name can only be given on the same disk; hidden, so folders' scans leave it out."""
DAY_MS: Final = 24 * 3_600_000
SWEEP_MS: Final = 3_600_000
RECORD_BYTES_MAX: Final = 64 << 10
_NO_LINKS: Final = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}

_log = structlog.get_logger("owner")


class Kept(BaseModel):
    """What is remembered of an original in the trash, in the node's home: `trash/<job>.json`."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    job: str
    source: str
    aside: str
    """Where the original lies."""
    output: str
    bytes: int
    digest: str
    result_bytes: int
    result_digest: str
    until_ms: int
    """Wall clock of this node."""


class Allowed(Protocol):
    """Which folders this node may write."""

    def split(self, text: str) -> tuple[Path, str]:
        """The allowed folder and the name below it.  Raises `PathError`."""
        ...


class Publishing:
    """Publishes results of this node's films, replaces films, and restores them."""

    def __init__(self, *, allowed: Allowed, records: Path) -> None:
        self._allowed = allowed
        self._records = records
        self._swept_ms = -SWEEP_MS

    # --- publishing -------------------------------------------------------------------------------

    def publish(self, job: Job, staging: Path, expected: Manifest) -> None:
        """Brings a staged result to its place; says nothing when exactly this result lies there already.

        Raises `TransferError` when staging is not there or not whole, `ConflictError` when another
        file is in the way, `SourceChangedError` when the film to be replaced is another one now.
        """
        policy = profile_from_json(job.profile_json).publish
        with self._place(job.output) as result:
            if staging.exists():
                # As it lies on the disk now, whatever it was when it came.
                if not holds(staging, expected):
                    raise TransferError("the staged result is damaged", "it is fetched again")
            elif not (result.exists() and holds(result.path, expected)):
                raise TransferError("the staged result is gone", "it is fetched again")
            if policy.replace:
                self._replace(job, staging, expected, result, policy)
            elif staging.exists():
                if result.exists() and _is_same(result.path, Path(job.source)):
                    raise ConflictError(
                        f"{job.output} is the film itself", "choose another --output"
                    )
                _dress(staging, Path(job.source), policy)
                _put(staging, result, expected, overwrite=bool(job.overwrite))

    def _replace(
        self,
        job: Job,
        staging: Path,
        expected: Manifest,
        result: Destination,
        policy: PublishPolicy,
    ) -> None:
        in_place = job.output == job.source
        with self._place(job.source) as film, self._place(self._aside(job)) as aside:
            if not (_is_original(film, job) or _is_original(aside, job)):
                raise SourceChangedError(
                    f"{film.name} is not the film any more that was converted, so it is not replaced",
                    "its result is thrown away; submit it again",
                )
            self._remember(job, aside, expected, policy)
            _secure(film, aside, move=in_place)
            if staging.exists():
                original = film if _is_original(film, job) else aside
                _dress(staging, original.path, policy)
                if in_place and film.exists() and not _is_original(film, job):
                    raise ConflictError(
                        f"{film.path} is another file now", "move it away and retry the job"
                    )
                _put(staging, result, expected, overwrite=in_place or bool(job.overwrite))
            if not in_place and _is_original(film, job):
                _let_go(film, aside)

    def undo(self, job: Job) -> None:
        """A job is given up: its film is as it was, whatever step of replacing it was reached."""
        kept = self._known(job.id)
        if kept is None:
            return
        with self._place(job.source) as film, self._place(kept.aside) as aside:
            if _is_original(film, job):
                _unlink(aside)
            elif not film.exists() and aside.exists():
                _move(aside, film)
            else:
                return
        self._forget(kept)

    def _aside(self, job: Job) -> str:
        source = Path(job.source)
        return str(source.parent / TRASH / plain(job.id) / source.name)

    def _place(self, text: str) -> Destination:
        root, name = self._allowed.split(text)
        return safe_destination(root, name, make_folders=True)

    # --- what is remembered -----------------------------------------------------------------------

    def _record(self, job: str) -> Path:
        return self._records / f"{plain(job)}.json"

    def _known(self, job: str) -> Kept | None:
        try:
            with self._record(job).open("rb") as file:
                return Kept.model_validate_json(file.read(RECORD_BYTES_MAX))
        except FileNotFoundError:
            return None
        except ValidationError:
            raise StorageError(
                f"{self._record(job)} cannot be read", f"look for the original in {TRASH}"
            ) from None

    def _remember(
        self, job: Job, aside: Destination, expected: Manifest, policy: PublishPolicy
    ) -> None:
        if self._record(job.id).exists():
            return
        kept = Kept(
            job=job.id,
            source=job.source,
            aside=str(aside.path),
            output=job.output,
            bytes=job.source_bytes,
            digest=job.source_digest,
            result_bytes=expected.size,
            result_digest=expected.digest,
            until_ms=clock.wall_ms() + policy.trash_days * DAY_MS,
        )
        self._records.mkdir(parents=True, exist_ok=True)
        beside = self._record(job.id).with_suffix(".new")
        with beside.open("w", encoding="utf-8") as file:
            file.write(kept.model_dump_json())
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._record(job.id))
        sync_folder(self._records)

    def _forget(self, kept: Kept) -> None:
        self._record(kept.job).unlink(missing_ok=True)
        inner = Path(kept.aside).parent
        for folder in (inner, inner.parent):
            with contextlib.suppress(OSError):  # others lie there
                folder.rmdir()

    # --- restoring --------------------------------------------------------------------------------

    def restore(self, job: Job) -> Restored:
        """Brings a replaced original back to its name; the result stays, under its ordinary name if need be.

        Raises `NotFoundError` when nothing of the job is in the trash, `ConflictError` when another
        file has the film's name.
        """
        kept = self._known(job.id)
        if kept is None:
            raise NotFoundError(
                f"no original of job {job.id} is in the trash of its node",
                "only jobs with --replace have one, for --trash-days days",
            )
        with self._place(kept.source) as film, self._place(kept.aside) as aside:
            result = kept.output
            if not aside.exists():
                if not film.exists() or film.path.stat().st_size != kept.bytes:
                    raise NotFoundError(f"{aside.path} is gone", "somebody emptied the trash")
            elif not film.exists():
                _move(aside, film)
            elif _is_same(film.path, aside.path):
                _unlink(aside)
            else:
                result = self._exchange(job, kept, film, aside)
        self._forget(kept)
        _log.info("original restored", job=job.id)
        return Restored(id=job.id, source=kept.source, result=result)

    def _exchange(self, job: Job, kept: Kept, film: Destination, aside: Destination) -> str:
        """The result gets its ordinary name before the original takes its own back."""
        expected = Manifest(size=kept.result_bytes, digest=kept.result_digest)
        if kept.output != kept.source or not holds(film.path, expected):
            raise ConflictError(
                f"{film.path} is another file now", "move it away, then restore again"
            )
        profile = profile_from_json(job.profile_json)
        wanted = film.path.with_name(output_name(film.path.stem, profile))
        with self._place(str(wanted)) as beside:
            if not (beside.exists() and holds(beside.path, expected)):
                _link(film, beside)
            _sync(beside)
            _move(aside, film)
        return str(wanted)

    # --- the trash --------------------------------------------------------------------------------

    def sweep(self, is_done: Callable[[str], bool]) -> None:
        """Deletes originals whose days are over; looks once an hour.

        `is_done` says whether the ledger knows that a job came to its end: an original of any other
        may be the only copy of its film.
        """
        now_ms = clock.monotonic_ms()
        if now_ms - self._swept_ms < SWEEP_MS or not self._records.exists():
            return
        self._swept_ms = now_ms
        for path in sorted(self._records.glob("*.json")):
            kept = self._known(path.stem)
            if kept is None or kept.until_ms > clock.wall_ms() or not is_done(kept.job):
                continue
            with self._place(kept.aside) as aside:
                _unlink(aside)
            self._forget(kept)
            _log.info("original deleted, its days are over", job=kept.job)


# --- names --------------------------------------------------------------------------------------------


def _at(place: Destination) -> tuple[str, int | None]:
    if place.folder_fd >= 0:
        return place.name, place.folder_fd
    return str(place.path), None


def _lstat(place: Destination) -> os.stat_result | None:
    name, folder = _at(place)
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_original(place: Destination, job: Job) -> bool:
    """Whether the film as it was planned lies there, by what the planner saw of it."""
    found = _lstat(place)
    return (
        found is not None
        and stat.S_ISREG(found.st_mode)
        and (found.st_size, found.st_mtime_ns, kept_inode(found.st_ino))
        == (job.source_bytes, job.source_mtime_ns, job.source_inode)
    )


def _secure(film: Destination, aside: Destination, *, move: bool) -> None:
    """A second name for the film; where the disk knows no links, it is moved if it has to go at once."""
    if aside.exists():
        return
    (name, folder), (new, trash) = _at(film), _at(aside)
    try:
        os.link(name, new, src_dir_fd=folder, dst_dir_fd=trash, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if not move:
            return  # it is moved when its result has its place
        os.rename(name, new, src_dir_fd=folder, dst_dir_fd=trash)
        _sync(film)
    _sync(aside)
    sync_folder(aside.path.parent.parent)


def _let_go(film: Destination, aside: Destination) -> None:
    if aside.exists():
        _unlink(film)
    else:
        _move(film, aside)


def _move(source: Destination, target: Destination) -> None:
    (name, folder), (new, other) = _at(source), _at(target)
    os.replace(name, new, src_dir_fd=folder, dst_dir_fd=other)
    _sync(target)
    _sync(source)


def _unlink(place: Destination) -> None:
    name, folder = _at(place)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
    _sync(place)


def _link(source: Destination, target: Destination) -> None:
    """A second name, never over another's."""
    (name, folder), (new, other) = _at(source), _at(target)
    try:
        os.link(name, new, src_dir_fd=folder, dst_dir_fd=other, follow_symlinks=False)
    except FileExistsError:
        raise ConflictError(f"{target.path} exists already", "move it away") from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        raise StorageError(
            f"the disk of {source.path} knows no links", f"rename {source.path}, restore again"
        ) from None


def _sync(place: Destination) -> None:
    if place.folder_fd >= 0:
        os.fsync(place.folder_fd)
    else:
        sync_folder(place.path.parent)


def _put(staging: Path, result: Destination, expected: Manifest, *, overwrite: bool) -> None:
    try:
        publish_new(staging, result, overwrite=overwrite)
    except ConflictError:
        # A crash between the new name and the end of the old one leaves both.
        if not holds(result.path, expected):
            raise
        staging.unlink()


def _dress(staging: Path, like: Path, policy: PublishPolicy) -> None:
    """Permissions and times of the result, before it has its name."""
    staging.chmod(0o666 & ~_UMASK)
    try:
        found = like.stat()
    except FileNotFoundError:
        return
    if policy.permissions == "source":
        if sys.platform != "win32":
            with contextlib.suppress(PermissionError):  # only root gives files away
                os.chown(staging, found.st_uid, found.st_gid)
        staging.chmod(stat.S_IMODE(found.st_mode) & 0o777)
    if policy.times == "source":
        os.utime(staging, ns=(found.st_atime_ns, found.st_mtime_ns))


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except FileNotFoundError:
        return False


def _umask() -> int:
    # Reading it means setting it: done once, before there are threads.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


_UMASK: Final = _umask()
