"""Where files of others may be put: the walk below a root, and renaming without replacing.

`safe_destination` is the only way from a name to a place, and its result type the only thing that
`publish_new` takes.
"""

import contextlib
import ctypes
import errno
import os
import shutil
import stat
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from mesh import walk_files
from mesh.errors import ConflictError, DiskFullError, PathError, StorageError
from mesh.names import checked_name
from mesh.walk_files import BINARY, CLOEXEC, NOFOLLOW, check_folders, is_file, open_folder

_FULL: Final = {errno.ENOSPC, errno.EDQUOT}
_NO_LINKS: Final = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_COPY_BYTES: Final = 1 << 20


@contextlib.contextmanager
def as_storage(what: str, where: str) -> Generator[None]:
    """Turns the system's errors into ours, by class."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(f"the disk is full: {what} {where}", "free some space") from error
        raise StorageError(
            f"cannot {what} {where}: {error.strerror}", "check disk and permissions"
        ) from error


def sync_folder(folder: Path) -> None:
    """Makes names in a folder durable, where the system can (Windows does so by itself)."""
    if sys.platform == "win32":
        return
    fd = os.open(folder, os.O_RDONLY | CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# --- the walk -----------------------------------------------------------------------------------

_MADE_HERE: Final = object()


@dataclass(frozen=True, slots=True)
class Destination:
    """A name in a folder that was reached without following a link; only `safe_destination` makes one.

    Holds the open folder: whatever is renamed meanwhile, the name is in that one.  Close it after
    use (`with`).
    """

    path: Path
    name: str
    folder_fd: int
    proof: object

    def __post_init__(self) -> None:
        if self.proof is not _MADE_HERE:
            raise TypeError("only safe_destination() makes destinations")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the folder."""
        if self.folder_fd >= 0:
            os.close(self.folder_fd)

    def exists(self) -> bool:
        """Whether anything, a dangling link too, has this name."""
        try:
            self._lstat()
        except FileNotFoundError:
            return False
        return True

    def _lstat(self) -> os.stat_result:
        if self.folder_fd >= 0:
            return os.stat(self.name, dir_fd=self.folder_fd, follow_symlinks=False)
        return self.path.lstat()


def safe_destination(root: Path, relative_name: str, *, make_folders: bool = False) -> Destination:
    """The one way from a name that others gave to a place on disk, below `root`.

    Opens folder by folder without following links, so that no swap of a folder for a link leads
    outside (checking a path and opening it later did, in 2 % of tries).  Raises `PathError`, and
    `DiskFullError` or `StorageError` where a folder cannot be made.
    """
    *folders, name = checked_name(relative_name, windows=sys.platform == "win32")
    path = root.joinpath(*folders, name)
    with as_storage("make the folders of", str(path)):
        if not walk_files.HAS_DIR_FD:
            if (check_folders(root, folders, make=make_folders) / name).is_symlink():
                raise PathError(f"{path} is a link", "choose another name")
            return Destination(path, name, -1, _MADE_HERE)
        fd = open_folder(root, folders, relative_name, make=make_folders)
    try:
        _refuse_other_than_file(fd, name, relative_name)
    except BaseException:
        os.close(fd)
        raise
    return Destination(path, name, fd, _MADE_HERE)


def _refuse_other_than_file(fd: int, name: str, whole: str) -> None:
    try:
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    except OSError as error:
        raise PathError(f"the name {whole[:80]!a} is refused: {error.strerror}") from error
    if not is_file(found):
        raise PathError(
            f"the name {whole[:80]!a} is refused: a link, folder or device has it", "choose another"
        )


# --- publishing ---------------------------------------------------------------------------------


def publish_new(partial: Path, destination: Destination, *, overwrite: bool = False) -> None:
    """Moves a whole file to its name, durably, never over another file unless told to.

    Raises `ConflictError` when the name is taken, `DiskFullError`, `StorageError`.  The partial
    file may lie on another disk; then it is copied beside the destination first.
    """
    folder = destination.folder_fd if destination.folder_fd >= 0 else None
    with as_storage("publish", str(destination.path)):
        _sync_file(partial)
        try:
            _move(str(partial), None, destination, overwrite=overwrite)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            beside = _copied_beside(partial, destination)
            try:
                _move(beside, folder, destination, overwrite=overwrite)
            except BaseException:
                os.unlink(beside, dir_fd=folder)
                raise
            partial.unlink()
        if folder is not None:
            os.fsync(folder)
        sync_folder(partial.parent)


def _move(source: str, source_fd: int | None, to: Destination, *, overwrite: bool) -> None:
    folder = to.folder_fd if to.folder_fd >= 0 else None
    name = to.name if folder is not None else str(to.path)
    if overwrite:
        os.replace(source, name, src_dir_fd=source_fd, dst_dir_fd=folder)
        return
    try:
        if sys.platform == "win32":
            os.rename(source, name)  # noqa: PTH104 - the names may be relative to open folders
            return
        # A link is made or is not; a rename would replace.
        os.link(source, name, src_dir_fd=source_fd, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        raise _taken(to) from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _rename_exclusively(source, source_fd, to)
        return
    os.unlink(source, dir_fd=source_fd)


def _taken(to: Destination) -> ConflictError:
    return ConflictError(f"{to.path} exists already", "move it away, or submit with --overwrite")


_RENAME_NOREPLACE: Final = 1
_AT_FDCWD: Final = -100


def _rename_exclusively(source: str, source_fd: int | None, to: Destination) -> None:
    """For file systems without hard links (FAT, many network shares): Linux's renameat2."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None or to.folder_fd < 0:
        raise StorageError(
            f"the file system of {to.path} has no way to rename without replacing",
            "choose an output folder on another disk",
        )
    start = _AT_FDCWD if source_fd is None else source_fd
    old, new = os.fsencode(source), os.fsencode(to.name)
    if rename(start, old, to.folder_fd, new, _RENAME_NOREPLACE) != 0:
        code = ctypes.get_errno()
        if code == errno.EEXIST:
            raise _taken(to)
        raise OSError(code, os.strerror(code))


def _copied_beside(partial: Path, to: Destination) -> str:
    """Copies into the destination's own folder under a hidden name; that name, or its path."""
    hidden = f".{to.name[:100]}.part"
    folder = to.folder_fd if to.folder_fd >= 0 else None
    name = hidden if folder is not None else str(to.path.with_name(hidden))
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY | NOFOLLOW | CLOEXEC
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
    fd = os.open(name, flags, 0o600, dir_fd=folder)
    try:
        with partial.open("rb") as source, os.fdopen(fd, "wb") as target:
            shutil.copyfileobj(source, target, _COPY_BYTES)
            target.flush()
            _dress_like(os.fstat(source.fileno()), target.fileno())
            os.fsync(target.fileno())
    except BaseException:
        os.unlink(name, dir_fd=folder)
        raise
    return name


def _dress_like(source: os.stat_result, target: int) -> None:
    """Permissions, owner and times of what was copied, as a rename would have kept them."""
    if hasattr(os, "fchown") and hasattr(os, "fchmod"):
        with contextlib.suppress(PermissionError):  # only root gives files away
            os.fchown(target, source.st_uid, source.st_gid)
        os.fchmod(target, stat.S_IMODE(source.st_mode))
    if os.utime in os.supports_fd:
        os.utime(target, ns=(source.st_atime_ns, source.st_mtime_ns))


def _sync_file(path: Path) -> None:
    # Windows syncs only what is open for writing.
    fd = os.open(path, os.O_RDWR | BINARY | NOFOLLOW | CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
