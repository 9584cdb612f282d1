"""Snapshots of the ledger: one finished file, named by what it holds, checked before it is used.

A snapshot is what a follower gets that lacks more than the log still has, and what a backup is.
"""

import contextlib
import errno
import os
import tempfile
from collections.abc import Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import apsw
from blake3 import blake3

from ledger.soundness_sqlite import faults_of
from ledger.store_sqlite import LedgerStore, open_immutable, storage_error
from mesh.errors import DamagedError, DiskFullError, StorageError

_READ_BYTES: Final = 1 << 20
_DIGEST_CHARS: Final = 16
_PARTIAL: Final = ".snapshot-"


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotFile:
    """A finished snapshot; `digest` is BLAKE3 of the whole file, 64 hexadecimal digits."""

    path: Path
    applied_index: int
    applied_term: int
    checksum: bytes
    size: int
    digest: str

    @property
    def handle(self) -> str:
        """The name under which another node may fetch it."""
        return f"snapshot-{self.applied_index}-{self.digest[:_DIGEST_CHARS]}"


def write_snapshot(
    source: str | apsw.Connection, folder: Path, *, durable: bool = True
) -> SnapshotFile:
    """Writes a consistent copy of the ledger to `folder`/`<handle>.db`, synced where it has to last.

    `source` is the ledger's file, of which a connection of its own is opened, or a connection that
    is the caller's (in memory: tests, simulator).  The writer goes on; it waits neither for this
    nor this for it.  Readable by this user alone.  Raises `StorageError`, `DamagedError` when the
    copy is not sound; then nothing is left behind.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=_PARTIAL, dir=folder)
        os.close(handle)
    except OSError as error:
        raise os_error(error, folder) from None
    partial = Path(name)
    try:
        copy_ledger(source, partial, durable=durable)
        found = verify_snapshot(partial)
        final = folder / f"{found.handle}.db"
        partial.replace(final)
        if durable:
            sync_folder(folder)
    except OSError as error:
        raise os_error(error, partial) from None
    finally:
        partial.unlink(missing_ok=True)
    return replace(found, path=final)


def copy_ledger(source: str | apsw.Connection, target: Path, *, durable: bool = True) -> None:
    """Writes a copy to a file that is empty or not there, synced unless told otherwise.  Raises `StorageError`.

    By VACUUM INTO: one reading transaction, no free pages, hence nothing that was deleted.  A copy
    that no start will look for needs no sync: one of 300 MB holds up the log's for 90 to 160 ms,
    without it writes waited 20 to 75 ms, as they do alone on that machine.
    """
    connection: apsw.Connection | None = None
    name = str(target)
    try:
        if isinstance(source, str):
            connection = apsw.Connection(source, flags=apsw.SQLITE_OPEN_READONLY)
            connection.set_busy_timeout(5_000)
            connection.pragma("synchronous", 2 if durable else 0)
        reading = source if connection is None else connection
        assert isinstance(reading, apsw.Connection)
        reading.execute("VACUUM INTO ?", (name,))
    except apsw.FullError:
        # What is read needs no space: it is the copy's disk.
        raise DiskFullError(
            f"the disk of {target.parent} is full", "free some space, then try again"
        ) from None
    except apsw.Error as error:
        raise storage_error(error, source if isinstance(source, str) else name) from None
    finally:
        if connection is not None:
            connection.close()
    if not durable:
        return
    try:
        with target.open("rb+") as stream:
            os.fsync(stream.fileno())
    except OSError as error:
        raise os_error(error, target) from None


def verify_snapshot(path: Path, *, thorough: bool = False) -> SnapshotFile:
    """What a snapshot holds, after its check; `thorough` reads every page and every promise.

    Raises `DamagedError` when it is no sound ledger, `StorageError` when it cannot be read or a
    newer version wrote it.
    """
    with reading_snapshot(path) as connection:
        faults = faults_of(connection, thorough=thorough)
        if faults:
            raise DamagedError(f"{path} is no sound ledger: {faults[0]}", "use another snapshot")
        index, term, checksum = connection.execute(
            "SELECT applied_index, applied_term, checksum FROM state"
        ).get
    size, digest = _digest_of(path)
    return SnapshotFile(
        path=path,
        applied_index=index,
        applied_term=term,
        checksum=checksum,
        size=size,
        digest=digest,
    )


@contextmanager
def reading_snapshot(path: Path) -> Generator[apsw.Connection, None, None]:
    """A connection to a finished file.  Raises `DamagedError` for what is no database."""
    if not path.is_file():
        raise StorageError(f"there is no file {path}", "name one that mesh-cli ledger backup made")
    connection: apsw.Connection | None = None
    try:
        connection = open_immutable(str(path))
        yield connection
    except (apsw.NotADBError, apsw.CorruptError, apsw.SQLError, apsw.FormatError) as error:
        raise DamagedError(f"{path} is no ledger: {error}", "use another snapshot") from None
    except apsw.Error as error:
        raise storage_error(error, str(path)) from None
    finally:
        if connection is not None:
            connection.close()


def install_snapshot(path: Path, ledger_path: str) -> SnapshotFile:
    """Verifies a snapshot, then makes it the ledger at `ledger_path`, which no node has open.

    Through SQLite's backup and not by a rename: a write-ahead log that a kill left beside the old
    file would be played into the new one, and what others have open cannot be renamed on Windows.
    A kill leaves the old ledger or the new one.
    """
    found = verify_snapshot(path)
    store = LedgerStore(ledger_path)
    try:
        store.replace_by(str(path))
        if (store.applied_index, store.checksum) != (found.applied_index, found.checksum):
            raise DamagedError(f"{path} changed while it was read", "use another snapshot")
    finally:
        store.close()
    return found


def remove_snapshots(folder: Path, keep: Collection[Path] = ()) -> None:
    """Removes snapshots whose paths are not in `keep`, and what kills left of unfinished ones."""
    names = {path.name for path in keep}
    with contextlib.suppress(OSError):  # what cannot be removed now is tried again the next time
        for pattern in ("snapshot-*.db", f"{_PARTIAL}*"):
            for path in folder.glob(pattern):
                if path.name not in names:
                    path.unlink(missing_ok=True)


# --- inside ---------------------------------------------------------------------------------------


def _digest_of(path: Path) -> tuple[int, str]:
    digest, size = blake3(), 0
    try:
        with path.open("rb") as stream:
            while block := stream.read(_READ_BYTES):
                digest.update(block)
                size += len(block)
    except OSError as error:
        raise os_error(error, path) from None
    return size, digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable, where a system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def os_error(error: OSError, path: Path) -> StorageError:
    """What an error of the system means for a person."""
    what = f"{path}: {error.strerror}"
    if error.errno == errno.ENOSPC:
        return DiskFullError(what, "free some space, then try again")
    return StorageError(what, "check the disk and its permissions")
