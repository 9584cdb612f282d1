"""What a person does with a whole ledger: check it, back it up, put one in its place.

Files of one home on this machine, with the node running or stopped as each function says; I/O is
all this module is.
"""

import os
import tempfile
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import apsw

from ledger.export_sqlite import Exported, write_rows
from ledger.log_soundness_sqlite import faults_of_log
from ledger.log_sqlite import LogView, view_log
from ledger.queries import open_replica
from ledger.snapshot_sqlite import (
    SnapshotFile,
    copy_ledger,
    os_error,
    sync_folder,
    verify_snapshot,
)
from ledger.soundness_sqlite import content_digest, faults_of, row_counts
from mesh.errors import ConflictError, DamagedError, NotFoundError, StorageError

VIEWS_OF_LOG_MAX: Final = 5
"""Tries to see log and ledger of a running node at moments that fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What is known of a replica, and what is wrong with it; sound when `faults` is empty."""

    path: str
    schema: int
    applied_index: int
    applied_term: int
    checksum: str
    content: str
    """BLAKE3 over all rows: equal on every replica at this index."""
    rows: dict[str, int]
    log: LogView | None
    log_unread: str
    """Why the log could not be compared, when it could not."""
    faults: tuple[str, ...]


def verify_replica(ledger_path: str, log_path: str) -> Verification:
    """Reads every page and row of a replica, and compares it with its log; nothing is changed.

    Works while the node runs and when none does.  Raises `StorageError` when there is no ledger,
    `DamagedError` when it is too damaged to say more.
    """
    with closing(open_replica(ledger_path)) as connection:
        try:
            connection.execute("BEGIN")
            faults = faults_of(connection)
            state: Any = connection.execute(
                "SELECT applied_index, applied_term, checksum FROM state"
            ).fetchone() or (0, 0, b"")
            found = Verification(
                path=ledger_path,
                schema=int(connection.pragma("user_version")),
                applied_index=state[0],
                applied_term=state[1],
                checksum=state[2].hex(),
                content=content_digest(connection),
                rows=row_counts(connection),
                log=None,
                log_unread="",
                faults=tuple(faults),
            )
        except apsw.Error as error:
            raise DamagedError(
                f"{ledger_path} is damaged: {error}",
                "restore it with mesh-cli ledger restore, or let the node join anew",
            ) from None
    return _with_log(found, log_path)


def _with_log(found: Verification, log_path: str) -> Verification:
    """Compares the ledger with the log that it was applied from."""
    if not Path(log_path).is_file():
        missing = f"there is no log at {log_path}"
        what = f"{missing}: no node goes on with this ledger alone"
        return replace(found, log_unread=missing, faults=(*found.faults, what))
    index = found.applied_index
    faults: list[str] = []
    try:
        faults = faults_of_log(log_path)
        if faults:
            return replace(found, log_unread=faults[0], faults=(*found.faults, *faults))
        log = view_log(log_path, index)
        for _ in range(VIEWS_OF_LOG_MAX):
            if index >= log.base.index:
                break
            # A running node went on and forgot the entries: the ledger went on before the log did.
            with closing(open_replica(found.path)) as connection:
                index = int(connection.execute("SELECT applied_index FROM state").get)
            log = view_log(log_path, index)
    except StorageError as error:
        return replace(found, log_unread=error.what)
    if index < log.base.index:
        faults.append(
            f"the log begins behind entry {log.base.index}, and the ledger is applied only to {index}"
        )
    elif index > log.last_index:
        faults.append(
            f"the ledger is applied to entry {index}, and the log ends at {log.last_index}"
        )
    elif index == found.applied_index and log.term_at != found.applied_term and index > 0:
        faults.append(
            f"entry {index} is of term {log.term_at} in the log and {found.applied_term} in the ledger"
        )
    return replace(found, log=log, faults=(*found.faults, *faults))


def back_up(ledger_path: str, file: str) -> SnapshotFile:
    """Writes a copy of one moment, thoroughly checked, to a file that does not exist yet.

    Works while the node runs and when none does.  Readable by this user alone: it holds what is
    needed to check open tokens.  Raises `ConflictError` when the file exists, `NotFoundError` when
    its folder does not, `DamagedError` when the ledger is not sound, `StorageError`.
    """
    with closing(open_replica(ledger_path)) as connection, _NewFile(Path(file)) as new:
        copy_ledger(connection, new.partial)
        found = verify_snapshot(new.partial, thorough=True)
        new.publish()
    return replace(found, path=Path(file))


def export_to(ledger_path: str, file: str) -> Exported:
    """Writes every row as a line of JSON to a file that does not exist yet.

    Works while the node runs and when none does; tokens are not in it.  Raises as `back_up` does.
    """
    with closing(open_replica(ledger_path)) as connection, _NewFile(Path(file)) as new:
        try:
            connection.execute("BEGIN")
            if faults := faults_of(connection):
                raise DamagedError(f"{ledger_path} is no sound ledger: {faults[0]}", "restore it")
            with new.partial.open("w", encoding="utf-8", newline="\n") as out:
                exported = write_rows(connection, out)
                out.flush()
                os.fsync(out.fileno())
        except apsw.Error as error:
            raise DamagedError(f"{ledger_path} is damaged: {error}", "restore it") from None
        except OSError as error:
            raise os_error(error, new.path) from None
        if not exported.mesh:
            raise ConflictError(f"{ledger_path} holds no mesh yet", "export it later")
        new.publish()
    return exported


class _NewFile:
    """A file that appears under its name when it is whole, and never in the place of another."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path
        if os.path.lexists(path):
            raise ConflictError(f"{path} exists", "name a new file, or remove that one")
        if not path.parent.is_dir():
            raise NotFoundError(f"there is no folder {path.parent}", "make it, or name another")

    def __enter__(self) -> "_NewFile":
        try:
            handle, name = tempfile.mkstemp(prefix=f".{self.path.name}-", dir=self.path.parent)
            os.close(handle)
        except OSError as error:
            raise os_error(error, self.path) from None
        self.partial = Path(name)
        return self

    def publish(self) -> None:
        """The synced partial file gets its name; raises `ConflictError` when another took it."""
        try:
            try:
                self.path.hardlink_to(self.partial)
            except FileExistsError:
                raise ConflictError(f"{self.path} exists", "name a new file") from None
            except OSError:  # a file system without links
                if os.path.lexists(self.path):
                    raise ConflictError(f"{self.path} exists", "name a new file") from None
                self.partial.replace(self.path)
            sync_folder(self.path.absolute().parent)
        except OSError as error:
            raise os_error(error, self.path) from None

    def __exit__(self, *_: object) -> None:
        self.partial.unlink(missing_ok=True)
