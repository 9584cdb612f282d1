"""The replicated log and the hard state in a SQLite file of their own, synced at every write.

The file also holds the few values that a node must never forget: its incarnation, its mesh, a
promise not to form one.  One process at a time: the writer's lock lives and dies with it.
"""

import json
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import apsw

from mesh.errors import DiskFullError, InUseError, StorageError
from mesh.ids import RaftId
from mesh.log import Base, Entry, HardState

_SCHEMA: Final = """
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
_VERSION: Final = 1


class LogStore:
    """`LogStorage` on disk, or in memory with `":memory:"` (tests)."""

    def __init__(self, path: str, *, incarnation: str) -> None:
        """Opens or creates it; `incarnation` (8 hexadecimal digits) is taken only by a new file.

        Raises `InUseError` when another process holds it, `StorageError` when it is damaged.
        """
        self.path = path
        self._lock = _hold(path)
        self._reading = threading.Lock()
        opened: list[apsw.Connection] = []
        try:
            self._connection = apsw.Connection(path)
            opened.append(self._connection)
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
        if version > _VERSION:
            raise StorageError(
                f"{self.path} was written by a newer version", "update DarkStream on this node"
            )
        if version == 0:
            with self._connection:
                self._connection.execute(_SCHEMA)
                self._connection.pragma("user_version", _VERSION)

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
        first, last, count = self._connection.execute(
            "SELECT min(log_index), max(log_index), count(*) FROM entry"
        ).get
        if count and last - first + 1 != count:
            raise StorageError(
                f"{self.path}: the log has gaps", "restore this node from a backup, or join anew"
            )
        kept: Any = self._connection.execute("SELECT json FROM value WHERE name = 'base'").get
        index, base_term, configuration = (0, 0, "") if kept is None else json.loads(kept)
        self._base = Base(index, base_term, bytes.fromhex(configuration))
        if count and first != index + 1:
            raise StorageError(
                f"{self.path}: the log does not begin behind its base {index}",
                "restore this node from a backup, or join anew",
            )
        self._last = last if count else index

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

    def base(self) -> Base:
        """What stands before the first entry that is kept."""
        return self._base

    def first_index(self) -> int:
        """Index of the first entry that is kept."""
        return self._base.index + 1

    def last_index(self) -> int:
        """Index of the last persisted entry."""
        return self._last

    def term(self, index: int) -> int | None:
        """Term of a persisted entry or of the base, None when it is not there."""
        if index == self._base.index:
            return self._base.term
        if not self.first_index() <= index <= self._last:
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
                (low, high),
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
        try:
            with self._connection:
                if entries:
                    self._replace(entries)
                if hard_state is not None:
                    self._connection.execute(
                        "UPDATE hard_state SET term = ?, vote = ?, commit_index = ?",
                        (hard_state.term, hard_state.vote, hard_state.commit),
                    )
        except apsw.Error as error:
            raise _storage_error(error, self.path) from None
        if entries:
            self._last = entries[-1].index
        if hard_state is not None:
            self._hard_state = hard_state

    def _replace(self, entries: Sequence[Entry]) -> None:
        first = entries[0].index
        if not self.first_index() <= first <= self._last + 1:
            raise StorageError(
                f"{self.path}: entry {first} does not follow {self._last}",
                "this is a fault: report it",
            )
        if first <= self._last:
            self._connection.execute("DELETE FROM entry WHERE log_index >= ?", (first,))
        self._connection.executemany(
            "INSERT INTO entry VALUES (?, ?, ?, ?)",
            [(entry.index, entry.term, entry.kind, entry.data) for entry in entries],
        )

    def compact(self, base: Base) -> None:
        """Durably forgets the entries up to `base.index`; a base that is not ahead changes nothing."""
        if base.index <= self._base.index:
            return
        if self.term(base.index) != base.term:
            raise StorageError(
                f"{self.path}: entry {base.index} is not of term {base.term}",
                "this is a fault: report it",
            )
        try:
            with self._connection:
                self._keep_base(base)
                self._connection.execute("DELETE FROM entry WHERE log_index <= ?", (base.index,))
        except apsw.Error as error:
            raise _storage_error(error, self.path) from None
        self._base = base

    def restart_from(self, base: Base, hard_state: HardState) -> None:
        """Durably forgets all entries and keeps the hard state, in one sync."""
        try:
            with self._connection:
                self._keep_base(base)
                self._connection.execute("DELETE FROM entry")
                self._connection.execute(
                    "UPDATE hard_state SET term = ?, vote = ?, commit_index = ?",
                    (hard_state.term, hard_state.vote, hard_state.commit),
                )
        except apsw.Error as error:
            raise _storage_error(error, self.path) from None
        self._base, self._last, self._hard_state = base, base.index, hard_state

    def _keep_base(self, base: Base) -> None:
        self._connection.execute(
            "REPLACE INTO value VALUES ('base', ?)",
            (json.dumps([base.index, base.term, base.configuration.hex()]),),
        )

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
