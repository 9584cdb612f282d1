"""A second copy of a replica, brought up to date from the log beside the running node.

For tools that must not touch the ledger itself: litestream makes tables of its own in the database
that it watches, and takes over its checkpoints.  Entries are applied as the node applies them, so a
round changes the pages that the entries change and no others, and its result is compared with the
node's own checksum: what leaves the machine is proven first.  I/O is all this module is.
"""

import os
import shutil
import tempfile
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import apsw

from ledger.log_sqlite import read_entries
from ledger.queries import open_replica
from ledger.snapshot_sqlite import (
    SnapshotFile,
    copy_ledger,
    os_error,
    reading_snapshot,
    verify_snapshot,
)
from ledger.store_sqlite import LedgerStore, storage_error
from mesh.errors import ConflictError, DamagedError, DiskFullError, StorageError

ENTRIES_AT_ONCE: Final = 2_000
BYTES_AT_ONCE: Final = 4 << 20
"""Of one transaction of the mirror."""
_GUESTS: Final = ("_litestream_seq", "_litestream_lock")
"""Tables that litestream makes in what it watches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirrored:
    """What one round brought into the mirror; `copied`: it began anew from the whole ledger."""

    index: int
    checksum: bytes
    entries: int
    copied: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Now:
    mesh: tuple[str, int]
    index: int
    checksum: bytes


def mirror(ledger_path: str, log_path: str, file: Path) -> Mirrored:
    """Brings the mirror up to what the node has applied, whether it runs or not.

    A new file, one of another mesh or epoch, and one that lacks more than the log has begin with a
    copy of the ledger, in one transaction.  Raises `ConflictError` before a mesh is formed,
    `DamagedError` when the mirror is not readable, or ledger and log do not lead to the same contents,
    `StorageError`.
    """
    now = _seen(ledger_path)
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise os_error(error, file.parent) from None
    with closing(_opened(file)) as store:
        begun = store.applied_index
        fits = 0 < begun <= now.index and _mesh_of(store.connection) == now.mesh
        copied = not (fits and _replayed(store, log_path, now.index))
        if copied:
            now = _copied(store, ledger_path)
        if (store.applied_index, store.checksum) != (now.index, now.checksum):
            raise DamagedError(
                f"the log of this node does not lead to its ledger at entry {now.index}",
                "run mesh-cli ledger verify on this node",
            )
        entries = 0 if copied else now.index - begun
        return Mirrored(index=now.index, checksum=now.checksum, entries=entries, copied=copied)


def _opened(file: Path) -> LedgerStore:
    try:
        return LedgerStore(str(file))
    except DiskFullError:
        raise
    except StorageError as error:
        raise DamagedError(error.what, "check its folder, and remove the mirror") from None


def _seen(ledger_path: str) -> _Now:
    with closing(open_replica(ledger_path)) as connection:
        return _state_of(connection, ledger_path)


def _state_of(connection: apsw.Connection, path: str) -> _Now:
    # One statement: a running node applies between two.
    found: Any = connection.execute(
        "SELECT mesh.id, mesh.epoch, applied_index, checksum FROM state LEFT JOIN mesh"
    ).fetchone()
    if found is None or found[0] is None:
        raise ConflictError(f"{path} holds no mesh yet", "mirror it later")
    return _Now(mesh=(found[0], found[1]), index=found[2], checksum=found[3])


def _mesh_of(connection: apsw.Connection) -> tuple[str, int] | None:
    found: Any = connection.execute("SELECT id, epoch FROM mesh").fetchone()
    return None if found is None else (found[0], found[1])


def _replayed(store: LedgerStore, log_path: str, index: int) -> bool:
    """Applies entries up to an index; False where the log forgot some of them."""
    while store.applied_index < index:
        first = store.applied_index + 1
        last = min(index, store.applied_index + ENTRIES_AT_ONCE)
        entries = read_entries(log_path, first, last + 1, BYTES_AT_ONCE)
        if not entries or entries[0].index != first:
            return False
        store.apply(entries)
    return True


def _copied(store: LedgerStore, ledger_path: str) -> _Now:
    """The mirror becomes the ledger of this moment, whole, in one transaction."""
    path = Path(store.path)
    try:
        handle, name = tempfile.mkstemp(prefix=".copy-", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise os_error(error, path.parent) from None
    try:
        copy_ledger(ledger_path, Path(name))
        verify_snapshot(Path(name))
        store.replace_by(name)
    finally:
        Path(name).unlink(missing_ok=True)
    return _state_of(store.connection, store.path)


def without_guests(file: Path) -> None:
    """Takes out of a restored mirror what litestream put there; it is then as a backup is.

    Raises `DamagedError` for what is no database, `StorageError`.
    """
    clean = file.with_name(f".{file.name}.clean")
    try:
        with closing(apsw.Connection(str(file))) as connection:
            for table in _GUESTS:
                connection.execute(f"DROP TABLE IF EXISTS {table}")
            connection.pragma("journal_mode", "DELETE")
            clean.unlink(missing_ok=True)
            connection.execute("VACUUM INTO ?", (str(clean),))
        clean.chmod(0o600)
        clean.replace(file)
    except (apsw.NotADBError, apsw.CorruptError) as error:
        raise DamagedError(f"{file} is no ledger: {error}", "use another one") from None
    except apsw.Error as error:
        raise storage_error(error, str(file)) from None
    except OSError as error:
        raise os_error(error, file) from None
    finally:
        with suppress(OSError):
            clean.unlink(missing_ok=True)
        for side in ("-wal", "-shm"):
            with suppress(OSError):
                file.with_name(file.name + side).unlink(missing_ok=True)


def verify_file(file: Path) -> SnapshotFile:
    """Checks a backup, or what litestream restored, thoroughly; nothing is changed.

    The tables of litestream's own are left out, in a copy.  Raises as `verify_snapshot` does.
    """
    with reading_snapshot(file) as connection:
        names = {str(name) for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
    if names.isdisjoint(_GUESTS):
        return verify_snapshot(file, thorough=True)
    with tempfile.TemporaryDirectory(prefix="darkstream-") as folder:
        copy = Path(folder) / file.name
        try:
            shutil.copyfile(file, copy)
        except OSError as error:
            raise os_error(error, copy) from None
        without_guests(copy)
        return replace(verify_snapshot(copy, thorough=True), path=file)


def epoch_and_index(file: Path) -> tuple[int, int]:
    """How far a ledger's file goes, to find the furthest of several.  Raises as `verify_snapshot`."""
    with reading_snapshot(file) as connection:
        found: Any = connection.execute(
            "SELECT coalesce(mesh.epoch, 0), applied_index FROM state LEFT JOIN mesh"
        ).fetchone()
    if found is None:
        raise StorageError(f"{file} has lost its state", "use another one")
    return found[0], found[1]
