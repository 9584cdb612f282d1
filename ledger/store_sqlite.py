"""The ledger on SQLite (apsw alone): one writer, one transaction a batch of committed entries.

NORMAL durability is enough: the log, which is synced, is never compacted past what is applied here
durably (`make_durable`), so a power loss costs a replay and nothing else.
"""

import hashlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw

from ledger.change import RefusedError
from ledger.commands import ENVELOPES, Command, Envelope, FormMesh, MigrateLedger, Outcome, unseal
from ledger.jobs import Row
from ledger.pending import Altered, PendingRows, RowChange, Values
from ledger.rows import (
    Alteration,
    Alterer,
    SqlValue,
    columns_of,
    decoded,
    encoded,
    likened,
    table_of,
)
from ledger.schema import FIRST_SCHEMA, SCHEMA_VERSION
from ledger.state_machine import apply
from ledger.touched import Touched, touched
from ledger.transaction_sqlite import transaction
from mesh.codec import pack
from mesh.errors import DiskFullError, OutdatedError, StorageError, UnknownKindError
from mesh.log import Entry

R = TypeVar("R", bound=Row)
Applied = tuple[Entry, str | None, Outcome | None]

REMEMBERED_MAX: Final = 100_000
"""Entries for which a repeated command id is answered from memory: hours of a busy mesh; a proposer gives up within seconds."""
BUSY_MS: Final = 5_000
CHECKSUM_BYTES: Final = 32
PENDING_ROWS_MAX: Final = 4_096
"""Rows of a batch held before they are written: some ten megabytes."""
CACHE_KIB: Final = 8 << 10
"""A batch of a few thousand new jobs, so that its pages are written once, when it ends."""
CHECKPOINT_PAGES: Final = 4_000
"""16 MiB of write-ahead log: the last pages of each tree are written back once for many batches."""
VALUES_AT_ONCE: Final = 100
"""Values of one look-up: more of them do not make one cheaper."""
CHECKSUMS_KEPT: Final = 1_024
"""Latest entries whose checksums are known: two batches, so that replicas a round trip apart can be compared."""


class LedgerStore:
    """The replica's database; `apply` is called from one thread at a time."""

    def __init__(self, path: str) -> None:
        """Opens or creates it.  Raises `StorageError` for a file that is damaged or newer than this version."""
        self.path = path
        try:
            self.connection = apsw.Connection(path)
        except apsw.Error as error:
            raise storage_error(error, path) from None
        try:
            state = _prepare(self.connection, path)
        except apsw.Error as error:
            self.connection.close()
            raise storage_error(error, path) from None
        except StorageError:
            self.connection.close()
            raise
        self.touched: frozenset[Touched] = frozenset()
        """Whose rows the last batch changed."""
        self._stand(*state)

    def _stand(self, index: int, term: int, checksum: bytes, schema: int) -> None:
        self.applied_index = index
        self.applied_term = term
        self.checksum = checksum
        self.schema = schema
        """The form of the ledger, which committed commands alone move on."""
        self._checksums = {index: checksum}

    def checksum_at(self, index: int) -> bytes | None:
        """The rolling checksum behind this entry; None for one not applied yet or too long ago.

        May be called from any thread.
        """
        return self._checksums.get(index)

    def apply(self, entries: Sequence[Entry]) -> list[Applied]:
        """Applies committed entries that follow each other; those applied already are skipped.

        Raises `OutdatedError` or `WireError` for an entry that this version cannot read, and
        `StorageError`: then nothing of the batch is applied, and the node must stop.
        """
        fresh = [entry for entry in entries if entry.index > self.applied_index]
        self.touched = frozenset()
        if not fresh:
            return []
        for index, entry in enumerate(fresh, self.applied_index + 1):
            if entry.index != index:
                raise StorageError(
                    f"the log jumps from {index - 1} to {entry.index}",
                    "restore this node from a backup, or let it join anew",
                )
        done: list[Applied] = []
        checksums: list[bytes] = []
        schema = self.schema
        try:
            with transaction(self.connection):
                done, checksums, schema = self._apply_all(fresh)
        except apsw.Error as error:
            raise storage_error(error, self.path) from None
        self.applied_index, self.applied_term = fresh[-1].index, fresh[-1].term
        self.checksum, self.schema = checksums[-1], schema
        self._remember(fresh[0].index, checksums)
        return done

    def _remember(self, first: int, checksums: Sequence[bytes]) -> None:
        self._checksums.update(enumerate(checksums, first))
        for old in list(self._checksums)[:-CHECKSUMS_KEPT]:
            del self._checksums[old]

    def _apply_all(self, entries: Sequence[Entry]) -> tuple[list[Applied], list[bytes], int]:
        checksum = self.checksum
        checksums: list[bytes] = []
        done: list[Applied] = []
        stored = SqliteRows(self.connection)
        rows = PendingRows(stored)
        outcomes: dict[str, Outcome] = {}
        concerned: set[Touched] = set()
        for entry in entries:
            if entry.kind != "command":
                done.append((entry, None, None))
                checksums.append(checksum)
                continue
            envelope, command = _read(entry)
            outcome = self._remembered(envelope.id, entry.index, outcomes)
            if outcome is None:
                outcome = apply(rows, command, index=entry.index, envelope=envelope)
                if outcome.ok:
                    changes = rows.keep()
                    checksum = checksum_of(checksum, changes, rows.schema)
                    concerned |= touched(changes, rows.schema)
                else:
                    rows.undo()
                outcomes[envelope.id] = outcome
                if outcome.ok and (schema := _schema_after(command, rows.schema)) != rows.schema:
                    # Rows that wait have the old form: they are written before it goes.
                    stored.write(rows.take())
                    migrate(self.connection, schema)
                    checksum = checksum_of(checksum, [("schema", (schema,))], schema)
                    stored = SqliteRows(self.connection)
                    rows = PendingRows(stored)
                if rows.count >= PENDING_ROWS_MAX:
                    stored.write(rows.take())
            done.append((entry, envelope.id, outcome))
            checksums.append(checksum)
        stored.write(rows.take())
        self.touched = frozenset(concerned)
        self._write_outcomes(outcomes)
        last = entries[-1]
        self.connection.execute(
            "DELETE FROM command WHERE log_index <= ?", (last.index - REMEMBERED_MAX,)
        )
        self.connection.execute(
            "UPDATE state SET applied_index = ?, applied_term = ?, checksum = ?",
            (last.index, last.term, checksum),
        )
        return done, checksums, rows.schema

    def _write_outcomes(self, outcomes: Mapping[str, Outcome]) -> None:
        self.connection.executemany(
            "INSERT INTO command VALUES (?, ?, ?) ON CONFLICT (id)"
            " DO UPDATE SET log_index = excluded.log_index, outcome = excluded.outcome",
            [(name, one.index, ENVELOPES.encode(one)) for name, one in outcomes.items()],
        )

    def make_durable(self) -> int:
        """Makes everything applied survive a loss of power; its index: the log may be compacted so far.

        One write with a sync of the write-ahead log, which holds all commits before it as well; it
        waits for no reader, as a full checkpoint would.  From the thread that applies.
        """
        try:
            with self._synced(), transaction(self.connection):
                # Written and written back: a page that does not change is never part of a commit.
                self.connection.execute("UPDATE state SET applied_index = applied_index + 1")
                self.connection.execute("UPDATE state SET applied_index = applied_index - 1")
        except apsw.Error as error:
            raise storage_error(error, self.path) from None
        return self.applied_index

    @contextmanager
    def _synced(self) -> Generator[None, None, None]:
        self.connection.pragma("synchronous", 2)
        try:
            yield
        finally:
            self.connection.pragma("synchronous", 1)

    def replace_by(self, snapshot: str) -> None:
        """Becomes the verified snapshot at this path, durably, in one transaction.

        Readers see the old ledger until then and need not reopen; a kill leaves the old or the new
        one.  From the thread that applies.  Raises `StorageError`; then it is the old one.
        """
        try:
            source = open_immutable(snapshot)
            try:
                with self._synced(), self.connection.backup("main", source, "main") as backup:
                    backup.step(-1)
            finally:
                source.close()
            # The write-ahead log is as big as the snapshot now; later writes shall not pay for that.
            self.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            self._stand(*_state(self.connection, self.path))
        except apsw.Error as error:
            raise storage_error(error, self.path) from None

    def _remembered(
        self, command_id: str, index: int, fresh: Mapping[str, Outcome]
    ) -> Outcome | None:
        # What is forgotten must depend on the entry alone, never on how entries came in batches.
        if (known := fresh.get(command_id)) is not None:
            return known if known.index >= index - REMEMBERED_MAX else None
        found = self.connection.execute(
            "SELECT outcome FROM command WHERE id = ? AND log_index >= ?",
            (command_id, index - REMEMBERED_MAX),
        ).get
        return None if found is None else ENVELOPES.decode(found)

    def close(self) -> None:
        """Closes the file.  Raises `StorageError`; what was applied is there nevertheless."""
        try:
            self.connection.close()
        except apsw.Error as error:
            raise storage_error(error, self.path) from None


class SqliteRows:
    """`Rows` straight in SQL, inside the writer's transaction."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self.schema = int(connection.pragma("user_version"))

    def get(self, cls: type[R], key: str | int) -> R | None:
        """The row of this key."""
        names = columns_of(cls, self.schema)
        values = self._connection.execute(
            _select(table_of(cls), names, names[:1]), (key,)
        ).fetchone()
        return None if values is None else decoded(cls, values, self.schema)

    def where(self, cls: type[R], **equal: SqlValue) -> Sequence[R]:
        """All rows whose columns have these values, by key."""
        found = self._connection.execute(
            _select(table_of(cls), columns_of(cls, self.schema), tuple(equal)),
            tuple(equal.values()),
        )
        # Sorted here: SQLite sets up a sorter for 20 us, also where it finds one row or none.
        return [decoded(cls, values, self.schema) for values in sorted(found, key=_key_of)]

    def where_any(self, cls: type[R], column: str, values: Sequence[SqlValue]) -> Sequence[R]:
        """All rows with one of these values in this column, by key."""
        sql = _select_any(table_of(cls), columns_of(cls, self.schema), column)
        found = sorted(self._any(sql, values), key=_key_of)
        return [decoded(cls, one, self.schema) for one in found]

    def _any(self, sql: str, values: Sequence[SqlValue]) -> list[Any]:
        wanted = tuple(dict.fromkeys(values))
        found: list[Any] = []
        for start in range(0, len(wanted), VALUES_AT_ONCE):
            part = wanted[start : start + VALUES_AT_ONCE]
            # One statement whatever their number: the last is asked for more than once.
            found += self._connection.execute(sql, part + part[-1:] * (VALUES_AT_ONCE - len(part)))
        return found

    def put(self, row: Row) -> None:
        """Writes a row."""
        cls = type(row)
        try:
            self._connection.execute(
                _put(table_of(cls), columns_of(cls, self.schema)), encoded(row, self.schema)
            )
        except OverflowError:
            # MessagePack knows unsigned 64 bit, SQLite does not; equal on every replica.
            raise RefusedError("usage", "a number of the command exceeds 64 bit") from None

    def put_like(
        self, row: Row, names: Sequence[str], values: Iterable[tuple[SqlValue, ...]]
    ) -> None:
        """Writes rows like this one."""
        held = columns_of(type(row), self.schema)
        given = likened(row, names, values, self.schema)
        self._connection.executemany(_put(table_of(type(row)), held), given)

    def values_of(self, cls: type[Row], keys: Sequence[str]) -> list[Values]:
        """The rows of these keys as SQL holds them, those that are there."""
        names = columns_of(cls, self.schema)
        return self._any(_select_any(table_of(cls), names, names[0]), keys)

    def alter(self, cls: type[Row], keys: Iterable[str], change: Alteration) -> list[str]:
        """Changes some columns of those of these rows that the change is for; their keys."""
        alterer = Alterer(cls, change, self.schema)
        before = sorted(self.values_of(cls, sorted(set(keys))), key=_key_of)
        new = [values for values in map(alterer.altered, before) if values is not None]
        self._write_altered(cls, change.names, new)
        return [str(values[0]) for values in new]

    def _write_altered(
        self, cls: type[Row], names: tuple[str, ...], rows: Sequence[Values]
    ) -> None:
        held = columns_of(cls, self.schema)
        places = [held.index(name) for name in (*names, held[0])]
        self._connection.executemany(
            _update(table_of(cls), names, held[0]),
            [tuple(values[place] for place in places) for values in rows],
        )

    def delete(self, cls: type[Row], key: str | int) -> None:
        """Removes a row."""
        self._connection.execute(_delete(table_of(cls), columns_of(cls, self.schema)[0]), (key,))

    def write(self, changes: Mapping[type[Row], Mapping[str | int, Values | None]]) -> None:
        """Writes rows in the form that SQL holds, each in one go with its like; None removes."""
        for cls, rows in changes.items():
            names = columns_of(cls, self.schema)
            put: list[Values] = []
            parts: dict[tuple[str, ...], list[Values]] = {}
            for values in rows.values():
                if isinstance(values, Altered):
                    parts.setdefault(values.names, []).append(values)
                elif values is not None:
                    put.append(values)
            for altered, those in parts.items():
                self._write_altered(cls, altered, those)
            self._connection.executemany(_put(table_of(cls), names), put)
            gone = [(key,) for key, values in rows.items() if values is None]
            self._connection.executemany(_delete(table_of(cls), names[0]), gone)


def checksum_of(before: bytes, changes: Sequence[RowChange], schema: int) -> bytes:
    """BLAKE2b-256 over the checksum before and all changes in their order, as MessagePack."""
    if not changes:
        return before
    digest = hashlib.blake2b(before, digest_size=CHECKSUM_BYTES)
    if schema >= 2:
        digest.update(pack(changes))
    else:  # each by itself, which costs a call a row
        for table, values in changes:
            digest.update(pack((table, *values)))
    return digest.digest()


def _read(entry: Entry) -> tuple[Envelope, Command]:
    try:
        return unseal(entry.data)
    except UnknownKindError as error:
        raise OutdatedError(
            f"entry {entry.index} of the log cannot be read by this version of DarkStream: {error.what}",
            "update DarkStream on this node",
        ) from None


def _schema_after(command: Command, before: int) -> int:
    match command:
        case FormMesh(schema=schema) | MigrateLedger(schema=schema):
            return schema
        case _:
            return before


def _key_of(values: Sequence[Any]) -> str | int:
    key: str | int = values[0]
    return key


@cache
def _select(table: str, names: tuple[str, ...], by: tuple[str, ...]) -> str:
    assert set(by) <= set(names), by
    condition = " AND ".join(f"{name} = ?" for name in by)
    where = f" WHERE {condition}" if by else ""
    return f"SELECT {','.join(names)} FROM {table}{where}"  # noqa: S608 - names of our own columns


@cache
def _select_any(table: str, names: tuple[str, ...], by: str) -> str:
    assert by in names, by
    marks = ",".join("?" * VALUES_AT_ONCE)
    return f"SELECT {','.join(names)} FROM {table} WHERE {by} IN ({marks})"  # noqa: S608 - names of our own columns


@cache
def _put(table: str, names: tuple[str, ...]) -> str:
    # Not REPLACE: it may fail half-way, so SQLite copies every page that a row touches to a temporary
    # file first, 33 KB a job.
    key, *others = names
    marks = ",".join("?" * len(names))
    new = ",".join(f"{name} = excluded.{name}" for name in others)
    return f"INSERT INTO {table} ({','.join(names)}) VALUES ({marks}) ON CONFLICT ({key}) DO UPDATE SET {new}"  # noqa: S608 - names of our own columns


@cache
def _update(table: str, names: tuple[str, ...], key: str) -> str:
    new = ",".join(f"{name} = ?" for name in names)
    return f"UPDATE {table} SET {new} WHERE {key} = ?"  # noqa: S608 - names of our own columns


@cache
def _delete(table: str, key: str) -> str:
    return f"DELETE FROM {table} WHERE {key} = ?"  # noqa: S608 - names of our own columns


def migrations() -> list[tuple[int, str]]:
    """Every migration: the version that it results in, and its SQL."""
    folder = files("ledger") / "sql" / "migrations"
    found = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [(int(name[:4]), (folder / name).read_text("utf-8")) for name in found]


def _prepare(connection: apsw.Connection, path: str) -> tuple[int, int, bytes, int]:
    connection.set_busy_timeout(BUSY_MS)
    connection.pragma("journal_mode", "WAL")
    connection.pragma("synchronous", 1)
    # macOS: fsync alone leaves data in the drive's cache; elsewhere these do nothing.
    connection.pragma("fullfsync", 1)
    connection.pragma("checkpoint_fullfsync", 1)
    connection.pragma("cache_size", -CACHE_KIB)
    connection.pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
    _begin(connection, path)
    return _state(connection, path)


def _state(connection: apsw.Connection, path: str) -> tuple[int, int, bytes, int]:
    row: Any = connection.execute(
        "SELECT applied_index, applied_term, checksum FROM state"
    ).fetchone()
    if row is None:
        raise StorageError(f"{path} has lost its state", "let the node join anew")
    return row[0], row[1], row[2], int(connection.pragma("user_version"))


def open_immutable(path: str) -> apsw.Connection:
    """Opens a finished file for reading: nothing is written beside it.  Raises `apsw.Error`."""
    uri = Path(path).absolute().as_uri() + "?immutable=1"
    return apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)


def _begin(connection: apsw.Connection, path: str) -> None:
    """Makes a new ledger in the first form, which holds nothing; refuses one that a newer version wrote.

    Opening a file never changes what it holds: committed commands alone move a ledger on, the first
    of all (`FormMesh`) and migrations, so that every replica does it at the same index.
    """
    version = connection.pragma("user_version")
    if version > SCHEMA_VERSION:
        raise OutdatedError(
            f"{path} has schema {version}; this version of DarkStream knows up to {SCHEMA_VERSION}",
            "update DarkStream on this node",
        )
    if version == 0:
        with transaction(connection):
            migrate(connection, FIRST_SCHEMA)
            connection.execute("INSERT INTO state VALUES (1, 0, 0, ?)", (b"\x00" * CHECKSUM_BYTES,))


def migrate(connection: apsw.Connection, schema: int) -> None:
    """Brings a ledger to a newer form, inside the caller's transaction."""
    before = connection.pragma("user_version")
    for number, sql in migrations():
        if before < number <= schema:
            connection.execute(sql)
            connection.pragma("user_version", number)


def storage_error(error: apsw.Error, path: str) -> StorageError:
    """What an error of SQLite means for a person."""
    if isinstance(error, apsw.FullError):
        return DiskFullError(f"the disk of {path} is full", "free some space, then start again")
    return StorageError(f"{path}: {error}", "check the disk, or let the node join anew")
