"""Sets aside what a node held of a mesh, so that it can begin anew with the same key."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from mesh.errors import StorageError
from node.settings.home_paths import FORMER_FOLDER, LEDGER_FILE, RAFT_FILE

_SUFFIXES: Final = ("", "-wal", "-shm")
"""SQLite's files beside a database: without its WAL a database may lack what was committed last."""
_TRIES_MAX: Final = 100


def set_aside(home: Path, wall_ms: int) -> Path:
    """Moves the log and the ledger into a new folder of `former/`; nothing is deleted.

    The log goes last: as long as it is in its place, a crash on the way leads here again.  Both
    must be closed.  Raises `StorageError`.
    """
    stamp = datetime.fromtimestamp(wall_ms / 1000, UTC).strftime("%Y%m%dT%H%M%SZ")
    try:
        folder = _new_folder(home / FORMER_FOLDER, stamp)
        for name in (LEDGER_FILE, RAFT_FILE):
            # The side files first: a database without them may still be opened, they alone may not.
            for suffix in reversed(_SUFFIXES):
                path = home / f"{name}{suffix}"
                if path.exists():
                    path.rename(folder / path.name)
        for path in (folder, folder.parent, home):
            _sync_folder(path)
    except OSError as error:
        raise StorageError(
            f"{home}: what this node held of its mesh cannot be set aside: {error}",
            "check the permissions of the data directory",
        ) from None
    return folder


def has_former(home: Path) -> bool:
    """Whether this node belonged to a mesh before its present files, also after a crash on the way."""
    return (home / FORMER_FOLDER).is_dir()


def _new_folder(parent: Path, name: str) -> Path:
    parent.mkdir(mode=0o700, exist_ok=True)
    for number in range(_TRIES_MAX):
        folder = parent / (f"{name}-{number}" if number else name)
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"{parent / name} and {_TRIES_MAX} more exist")


def _sync_folder(path: Path) -> None:
    if os.name == "nt":
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
