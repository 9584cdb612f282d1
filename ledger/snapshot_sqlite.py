"""Snapshots of the ledger: one finished file, named by what it holds, checked before it is used.

A snapshot is what a follower gets that lacks more than the log still has, and what a backup is.
"""

import contextlib
import errno
import os
import tempfile
from collections.abc import Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import apsw
from blake3 import blake3

from ledger.log_sqlite import LogStore
from ledger.soundness_sqlite import faults_of
from ledger.store_sqlite import LedgerStore, open_immutable, storage_error
from mesh.errors import DamagedError, DiskFullError, StorageError
from mesh.log import Base, HardState

_READ_BYTES: Final = 1 << 20
_DIGEST_CHARS: Final = 16
_PARTIAL: Final = ".snapshot-"
_REPLACING: Final = "replacing"
"""Value of the log between the replacement of the ledger and that of the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotFile:
    """A finished snapshot; `digest` is BLAKE3 of the whole file, 64 hexadecimal digits."""

    path: str
    applied_index: int
    applied_term: int
    checksum: bytes
    size: int
    digest: str

    @property
    def handle(self) -> str:
        """The name under which another node may fetch it."""
        return f"snapshot-{self.applied_index}-{self.digest[:_DIGEST_CHARS]}"


def write_snapshot(source: str | apsw.Connection, folder: str) -> SnapshotFile:
    """Writes a consistent copy of the ledger, synced, to `folder`/`<handle>.db`.

    `source` is the ledger's file, of which a connection of its own is opened, or a connection that
    is the caller's (in memory: tests, simulator).  The writer goes on; it waits neither for this
    nor this for it.  Readable by this user alone.  Raises `StorageError`, `DamagedError` when the
    copy is not sound; then nothing is left behind.
    """
    target = Path(folder)
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=_PARTIAL, dir=target)
        os.close(handle)
    except OSError as error:
        raise _os_error(error, folder) from None
    partial = Path(name)
    try:
        _copy(source, partial)
        found = verify_snapshot(name)
        final = target / f"{found.handle}.db"
        partial.replace(final)
        sync_folder(target)
    except OSError as error:
        raise _os_error(error, name) from None
    finally:
        partial.unlink(missing_ok=True)
    return SnapshotFile(
        path=str(final),
        applied_index=found.applied_index,
        applied_term=found.applied_term,
        checksum=found.checksum,
        size=found.size,
        digest=found.digest,
    )


def _copy(source: str | apsw.Connection, target: Path) -> None:
    """VACUUM INTO: one reading transaction, no free pages, hence nothing that was deleted."""
    connection: apsw.Connection | None = None
    name = str(target)
    try:
        if isinstance(source, str):
            connection = apsw.Connection(source, flags=apsw.SQLITE_OPEN_READONLY)
            connection.set_busy_timeout(5_000)
        reading = source if connection is None else connection
        assert isinstance(reading, apsw.Connection)
        reading.execute("VACUUM INTO ?", (name,))
    except apsw.Error as error:
        raise storage_error(error, source if isinstance(source, str) else name) from None
    finally:
        if connection is not None:
            connection.close()
    with target.open("rb+") as stream:
        os.fsync(stream.fileno())


def verify_snapshot(path: str, *, thorough: bool = False) -> SnapshotFile:
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
def reading_snapshot(path: str) -> Generator[apsw.Connection, None, None]:
    """A connection to a finished file.  Raises `DamagedError` for what is no database."""
    if not Path(path).is_file():
        raise StorageError(f"there is no file {path}", "name one that mesh-cli ledger backup made")
    connection: apsw.Connection | None = None
    try:
        connection = open_immutable(path)
        yield connection
    except (apsw.NotADBError, apsw.CorruptError, apsw.SQLError, apsw.FormatError) as error:
        raise DamagedError(f"{path} is no ledger: {error}", "use another snapshot") from None
    except apsw.Error as error:
        raise storage_error(error, path) from None
    finally:
        if connection is not None:
            connection.close()


def install_snapshot(path: str, ledger_path: str) -> SnapshotFile:
    """Verifies a snapshot, then makes it the ledger at `ledger_path`, which no node has open.

    Through SQLite's backup and not by a rename: a write-ahead log that a kill left beside the old
    file would be played into the new one, and what others have open cannot be renamed on Windows.
    A kill leaves the old ledger or the new one.
    """
    found = verify_snapshot(path)
    store = LedgerStore(ledger_path)
    try:
        store.replace_by(path)
        if (store.applied_index, store.checksum) != (found.applied_index, found.checksum):
            raise DamagedError(f"{path} changed while it was read", "use another snapshot")
    finally:
        store.close()
    return found


def remove_snapshots(folder: str, keep: Collection[str] = ()) -> None:
    """Removes snapshots whose paths are not in `keep`, and what kills left of unfinished ones."""
    names = {Path(path).name for path in keep}
    with contextlib.suppress(OSError):  # what cannot be removed now is tried again the next time
        for pattern in ("snapshot-*.db", f"{_PARTIAL}*"):
            for path in Path(folder).glob(pattern):
                if path.name not in names:
                    path.unlink(missing_ok=True)


# --- ledger and log together ----------------------------------------------------------------------


def replace_ledger(
    log: LogStore, ledger: LedgerStore, snapshot: str, base: Base, hard_state: HardState
) -> None:
    """Replaces the ledger by a verified snapshot at `base`, and the log by its base.

    These are two files: what a kill in between leaves is finished by `finish_replacing`.  A node
    that runs does the four steps by itself, each on the thread that it belongs to.
    """
    note_replacing(log, base)
    ledger.replace_by(snapshot)
    log.restart_from(base, hard_state)
    forget_replacing(log)


def note_replacing(log: LogStore, base: Base) -> None:
    """First step: durably notes the base that the log needs once the ledger is replaced."""
    log.set_value(_REPLACING, [base.index, base.term, base.configuration.hex()])


def forget_replacing(log: LogStore) -> None:
    """Last step: log and ledger fit each other again."""
    log.set_value(_REPLACING, None)


def finish_replacing(log: LogStore, ledger: LedgerStore) -> bool:
    """At the start, before anything reads the log: finishes a replacement that a kill interrupted.

    True when there was one to finish.  When the ledger is still the old one, nothing happened yet.
    """
    match log.get_value(_REPLACING):
        case [int(index), int(term), str(configuration)]:
            base = Base(index, term, bytes.fromhex(configuration))
        case _:
            return False
    mine = (ledger.applied_index, ledger.applied_term) == (base.index, base.term)
    if mine and log.base() != base:
        kept = log.hard_state()
        log.restart_from(base, HardState(kept.term, kept.vote, base.index))
    log.set_value(_REPLACING, None)
    return mine


# --- inside ---------------------------------------------------------------------------------------


def _digest_of(path: str) -> tuple[int, str]:
    digest, size = blake3(), 0
    try:
        with Path(path).open("rb") as stream:
            while block := stream.read(_READ_BYTES):
                digest.update(block)
                size += len(block)
    except OSError as error:
        raise _os_error(error, path) from None
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


def _os_error(error: OSError, path: str) -> StorageError:
    what = f"{path}: {error.strerror}"
    if error.errno == errno.ENOSPC:
        return DiskFullError(what, "free some space, then try again")
    return StorageError(what, "check the disk and its permissions")
