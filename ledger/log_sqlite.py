"""The replicated log and the hard state in a SQLite file of their own, synced at every write.

The file also holds the few values that a node must never forget: its incarnation, its mesh, a
promise not to form one.  One process at a time: the writer's lock lives and dies with it.
"""

import json
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import apsw

from ledger.transaction_sqlite import transaction
from mesh.errors import DiskFullError, InUseError, StorageError
from mesh.ids import RaftId
from mesh.log import Base, Entry, HardState

_VERSION_1: Final = """
CREATE TABLE entry (
    log_index INTEGER PRIMARY KEY,
    term INTEGER NOT NULL,
    kind TEXT NOT NULL,
    data BLOB NOT NULL
) STRICT;
CREATE TABLE hard_state (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    term INTEGER NOT NULL,
    vote TEXT,
    commit_index INTEGER NOT NULL
) STRICT;
INSERT INTO hard_state VALUES (1, 0, NULL, 0);
CREATE TABLE value (name TEXT PRIMARY KEY, json TEXT NOT NULL) STRICT;
"""
_VERSION_2: Final = """
CREATE TABLE base (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    log_index INTEGER NOT NULL,
    term INTEGER NOT NULL,
    configuration BLOB NOT NULL
) STRICT;
INSERT INTO base VALUES (1, 0, 0, x'');
"""
_MIGRATIONS: Final = (_VERSION_1, _VERSION_2)
LOG_VERSION: Final = len(_MIGRATIONS)
"""Of the file; a newer one is refused."""

FORGOTTEN_A_WRITE: Final = 1_024
"""Compacted entries removed with one write of new ones: more than a write brings (512), so they run out."""
PAGES_FREED_A_WRITE: Final = 64
"""Pages (4 KiB) given back to the file system with one write: under a millisecond of copying."""
_VIEW_BUSY_MS: Final = 2_000
RESTORING: Final = ".restoring"
"""A folder beside the log while a restore puts other files in place: no node may start between them."""
PAGES_KEPT: Final = 4_096
"""Free pages kept in the file (16 MiB), because new entries fill them again at once."""


class _Extent(NamedTuple):
    """What the log holds; one value, so that a reading thread never sees half of a change."""

    base: Base
    last: int


class LogStore:
    """`LogStorage` on disk, or in memory with `":memory:"` (tests)."""

    def __init__(self, path: str, *, incarnation: str) -> None:
        """Opens or creates it; `incarnation` (8 hexadecimal digits) is taken only by a new file.

        Raises `InUseError` when another process holds it, `StorageError` when it is damaged.
        """
        self.path = path
        if path != ":memory:" and Path(path).with_name(RESTORING).exists():
            raise StorageError(
                f"a restore of {Path(path).parent} was interrupted",
                "run mesh-cli ledger restore or import once more; nothing was lost",
            )
        self._lock = _hold(path)
        self._reading = threading.Lock()
        opened: list[apsw.Connection] = []
        try:
            self._connection = apsw.Connection(path)
            opened.append(self._connection)
            # Before the first page is written, else it means nothing.
            self._connection.pragma("auto_vacuum", 2)
            self._connection.pragma("journal_mode", "WAL")
            self._connection.pragma("synchronous", 2)
            # macOS: fsync alone leaves data in the drive's cache; elsewhere these do nothing.
            self._connection.pragma("fullfsync", 1)
            self._connection.pragma("checkpoint_fullfsync", 1)
            self._create()
            # Reads go on while a sync runs; in memory there is only one connection.
            self._reader = self._connection if path == ":memory:" else apsw.Connection(path)
            opened.append(self._reader)
            self._load()
            if self.get_value("incarnation") is None:
                self.set_value("incarnation", incarnation)
        except (apsw.Error, StorageError) as error:
            for connection in opened:
                connection.close()
            self._release()
            if isinstance(error, StorageError):
                raise
            raise _storage_error(error, path) from None

    def _create(self) -> None:
        version = self._connection.pragma("user_version")
        if version > LOG_VERSION:
            raise StorageError(
                f"{self.path} was written by a newer version", "update DarkStream on this node"
            )
        if version < LOG_VERSION:
            # The log is this node's own, so its file is brought up to date when it is opened.
            with transaction(self._connection):
                for sql in _MIGRATIONS[version:]:
                    self._connection.execute(sql)
                self._connection.pragma("user_version", LOG_VERSION)
        if version == 1:
            # What version 1 made gives no page back before it was written anew once.
            self._connection.execute("VACUUM")

    def _load(self) -> None:
        row: Any = self._connection.execute(
            "SELECT term, vote, commit_index FROM hard_state"
        ).fetchone()
        if row is None:
            raise StorageError(f"{self.path} has lost its hard state", "let the node join anew")
        term, vote, commit = row
        self._hard_state = HardState(
            term=term, vote=None if vote is None else RaftId(vote), commit=commit
        )
        kept: Any = self._connection.execute(
            "SELECT log_index, term, configuration FROM base"
        ).fetchone()
        if kept is None:
            raise StorageError(f"{self.path} has lost its base", "let the node join anew")
        base = Base(index=kept[0], term=kept[1], configuration=kept[2])
        first, last, count = self._connection.execute(
            "SELECT min(log_index), max(log_index), count(*) FROM entry WHERE log_index > ?",
            (base.index,),
        ).get
        if count and (first != base.index + 1 or last - base.index != count):
            raise StorageError(
                f"{self.path}: the log has gaps", "restore this node from a backup, or join anew"
            )
        self._extent = _Extent(base, last if count else base.index)
        oldest = self._connection.execute("SELECT min(log_index) FROM entry").get
        self._oldest = base.index + 1 if oldest is None else int(oldest)

    @contextmanager
    def _read(self) -> Generator[None, None, None]:
        with self._reading:
            try:
                yield
            except apsw.Error as error:
                raise _storage_error(error, self.path) from None

    @property
    def incarnation(self) -> str:
        """Of this data directory: 8 hexadecimal digits, drawn when it was made."""
        return str(self.get_value("incarnation"))

    def hard_state(self) -> HardState:
        """The last persisted hard state."""
        return self._hard_state

    def first_index(self) -> int:
        """Index of the first entry that is kept."""
        return self._extent.base.index + 1

    def last_index(self) -> int:
        """Index of the last persisted entry."""
        return self._extent.last

    def base(self) -> Base:
        """What stands before the first kept entry."""
        return self._extent.base

    def term(self, index: int) -> int | None:
        """Term of a persisted entry or of the base (0 for index 0), None when it is not there."""
        base, last = self._extent
        if index == base.index:
            return base.term
        if not base.index < index <= last:
            return None
        with self._read():
            found = self._reader.execute("SELECT term FROM entry WHERE log_index = ?", (index,)).get
        return None if found is None else int(found)

    def entries(self, low: int, high: int, bytes_max: int) -> tuple[Entry, ...]:
        """Entries low <= index < high, at least one if any, about `bytes_max` bytes at most."""
        taken: list[Entry] = []
        size = 0
        with self._read():
            cursor = self._reader.execute(
                "SELECT log_index, term, kind, data FROM entry"
                " WHERE log_index >= ? AND log_index < ? ORDER BY log_index",
                (max(low, self._extent.base.index + 1), high),
            )
            for index, term, kind, data in cursor:
                size += len(data)
                if taken and size > bytes_max:
                    cursor.close(True)
                    break
                taken.append(Entry(index=index, term=term, kind=kind, data=data))
        return tuple(taken)

    def persist(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        """Durably replaces everything from the first entry's index on, and the hard state: one sync."""
        with self._write():
            if entries:
                self._replace(entries)
                self._sweep(self._extent.base)
            if hard_state is not None:
                self._put(hard_state)
        if entries:
            self._extent = _Extent(self._extent.base, entries[-1].index)
        if hard_state is not None:
            self._hard_state = hard_state

    def _replace(self, entries: Sequence[Entry]) -> None:
        (base, last), first = self._extent, entries[0].index
        if not base.index < first <= last + 1:
            raise StorageError(
                f"{self.path}: entry {first} does not follow {last}", "this is a fault: report it"
            )
        if first <= last:
            self._connection.execute("DELETE FROM entry WHERE log_index >= ?", (first,))
        self._connection.executemany(
            "INSERT INTO entry VALUES (?, ?, ?, ?)",
            [(entry.index, entry.term, entry.kind, entry.data) for entry in entries],
        )

    def compact(self, base: Base) -> None:
        """Durably forgets the entries up to the base; nothing when they are forgotten already.

        One row says so: the cost does not grow with the log.  The entries themselves go a few at a
        time with the writes that follow.
        """
        if base.index <= self._extent.base.index:
            return
        if self.term(base.index) != base.term:
            raise StorageError(
                f"{self.path} has no entry {base.index} of term {base.term} to begin behind",
                "this is a fault: report it",
            )
        with self._write():
            self._put_base(base)
            self._sweep(base)
        self._extent = _Extent(base, self._extent.last)

    def restart_from(self, base: Base, hard_state: HardState) -> None:
        """Durably forgets every entry: the ledger was replaced by a snapshot at the base."""
        if hard_state.commit > base.index:
            raise StorageError(
                f"{self.path}: {hard_state.commit} was committed, and the log would end at {base.index}",
                "this is a fault: report it",
            )
        with self._write():
            self._connection.execute("DELETE FROM entry")
            self._put_base(base)
            self._put(hard_state)
        self._extent = _Extent(base, base.index)
        self._hard_state = hard_state
        self._oldest = base.index + 1

    @contextmanager
    def _write(self) -> Generator[None, None, None]:
        try:
            with transaction(self._connection):
                yield
        except apsw.Error as error:
            raise _storage_error(error, self.path) from None

    def _put(self, hard_state: HardState) -> None:
        self._connection.execute(
            "UPDATE hard_state SET term = ?, vote = ?, commit_index = ?",
            (hard_state.term, hard_state.vote, hard_state.commit),
        )

    def _put_base(self, base: Base) -> None:
        self._connection.execute(
            "UPDATE base SET log_index = ?, term = ?, configuration = ?",
            (base.index, base.term, base.configuration),
        )

    def _sweep(self, base: Base) -> None:
        """Removes some of what was compacted, then gives pages that nothing needs back."""
        end = min(base.index + 1, self._oldest + FORGOTTEN_A_WRITE)
        if self._oldest < end:
            self._connection.execute("DELETE FROM entry WHERE log_index < ?", (end,))
            self._oldest = end
        elif self._connection.pragma("freelist_count") > PAGES_KEPT:
            self._connection.execute(f"PRAGMA incremental_vacuum({PAGES_FREED_A_WRITE})").fetchall()

    def get_value(self, name: str) -> object:
        """A remembered value (JSON), or None."""
        with self._read():
            found = self._reader.execute("SELECT json FROM value WHERE name = ?", (name,)).get
        return None if found is None else json.loads(found)

    def set_value(self, name: str, value: object) -> None:
        """Durably remembers a value; None forgets it.  Not while `persist` runs."""
        try:
            if value is None:
                self._connection.execute("DELETE FROM value WHERE name = ?", (name,))
            else:
                self._connection.execute(
                    "REPLACE INTO value VALUES (?, ?)", (name, json.dumps(value))
                )
        except apsw.Error as error:
            raise _storage_error(error, self.path) from None

    def close(self) -> None:
        """Closes the file and lets another process have it."""
        if self._reader is not self._connection:
            self._reader.close()
        self._connection.close()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogView:
    """A log as another process sees it, at one moment."""

    base: Base
    last_index: int
    term: int
    commit: int
    term_at: int | None
    """Term of the entry that was asked for, None where the log has none."""


def view_log(path: str, index: int) -> LogView:
    """What the log of a node holds, running or not, and the term of one entry.  Raises `StorageError`."""
    try:
        connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    except apsw.Error as error:
        raise _storage_error(error, path) from None
    try:
        connection.set_busy_timeout(_VIEW_BUSY_MS)
        connection.execute("BEGIN")
        return _view(connection, index)
    except (apsw.Error, TypeError) as error:  # TypeError: a row that must be there is not
        raise StorageError(f"{path} is no readable log: {error}", "check the file") from None
    finally:
        connection.close()


def read_entries(path: str, low: int, high: int, bytes_max: int) -> tuple[Entry, ...]:
    """Entries low <= index < high of a node's log, running or not, about `bytes_max` bytes at most.

    Fewer where the log begins later or ends earlier.  Only what the ledger has applied is decided.
    Raises `StorageError`.
    """
    taken: list[Entry] = []
    size = 0
    try:
        connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
        try:
            connection.set_busy_timeout(_VIEW_BUSY_MS)
            for index, term, kind, data in connection.execute(
                "SELECT log_index, term, kind, data FROM entry WHERE log_index >= ?"
                " AND log_index < ? AND log_index > (SELECT log_index FROM base) ORDER BY 1",
                (low, high),
            ):
                size += len(data)
                if taken and size > bytes_max:
                    break
                taken.append(Entry(index=index, term=term, kind=kind, data=data))
        finally:
            connection.close(True)
    except apsw.Error as error:
        raise _storage_error(error, path) from None
    return tuple(taken)


def _view(connection: apsw.Connection, index: int) -> LogView:
    base = Base()
    if connection.pragma("user_version") > 1:
        kept: Any = connection.execute("SELECT log_index, term, configuration FROM base").get
        base = Base(index=kept[0], term=kept[1], configuration=kept[2])
    last: Any = connection.execute("SELECT max(log_index) FROM entry").get
    state: Any = connection.execute("SELECT term, commit_index FROM hard_state").get
    found: Any = connection.execute("SELECT term FROM entry WHERE log_index = ?", (index,)).get
    return LogView(
        base=base,
        last_index=max(base.index, last or 0),
        term=state[0],
        commit=state[1],
        term_at=base.term if index == base.index else found if index > base.index else None,
    )


@contextmanager
def holding(path: str) -> Generator[None, None, None]:
    """Keeps every node away from the data directory of this log.  Raises `InUseError`."""
    lock = _hold(path)
    try:
        yield
    finally:
        if lock is not None:
            lock.close()


def _hold(path: str) -> apsw.Connection | None:
    """Holds the data directory for this process: an exclusive lock that the system drops with it.

    SQLite's own file locks serve on every system; they are held on a file beside the log, because an
    exclusive lock on the log itself would shut out this process's second connection.
    """
    if path == ":memory:":
        return None
    name = str(Path(path).with_name(f".{Path(path).name}.lock"))
    try:
        connection = apsw.Connection(name)
        connection.pragma("locking_mode", "EXCLUSIVE")
        connection.execute("BEGIN EXCLUSIVE")
    except apsw.BusyError:
        raise InUseError(
            f"the data directory {Path(path).parent} is in use by another node",
            "stop that node, or choose another directory with --home",
        ) from None
    except apsw.Error as error:
        raise _storage_error(error, name) from None
    return connection


def _storage_error(error: apsw.Error, path: str) -> StorageError:
    if isinstance(error, apsw.FullError):
        return DiskFullError(f"the disk of {path} is full", "free some space, then start again")
    return StorageError(f"{path}: {error}", "check the disk; see the docs on restoring a node")
