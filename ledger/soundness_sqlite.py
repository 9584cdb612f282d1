"""What can be wrong with a ledger's file, found without the log: `ledger verify`, backups, snapshots.

The rolling checksum is a chain over changes and cannot be computed from rows; what the rows promise
about each other can be checked, and two replicas at one index can be compared by `content_digest`.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

import apsw
from blake3 import blake3

from ledger.change import EVENTS_PER_COMMAND_BITS
from ledger.commands import fencing_token
from ledger.invariants import violations
from ledger.jobs import JOB_STATES, Row, row_classes
from ledger.rows import Alteration, SqlValue, columns_of, decoded, table_of
from ledger.schema import SCHEMA_VERSION
from ledger.store_sqlite import CHECKSUM_BYTES, migrations
from mesh.codec import pack
from mesh.errors import OutdatedError

R = TypeVar("R", bound=Row)

FAULTS_MAX: Final = 20
"""Faults that are told of one file: more of them say nothing new."""
JOBS_AT_ONCE: Final = 2_000
"""Jobs whose promises are checked in memory at once, with their tasks and attempts: about 20 MB."""
_OTHER_TABLES: Final = ("state", "command")


def faults_of(connection: apsw.Connection, *, thorough: bool = True) -> list[str]:
    """Every fault as a sentence, at most `FAULTS_MAX`; empty when the ledger is sound.

    Not thorough: pages and schema alone, in a fraction of the time; enough where a digest has
    proven that the file is the one that a sound replica wrote.  Raises `apsw.Error` when the file
    cannot be read at all, `OutdatedError` when a newer version wrote it.
    """
    # Pages first: whatever follows trusts them.
    check = "integrity_check" if thorough else "quick_check"
    found = [
        f"{check}: {line}"
        for (said,) in connection.execute(f"PRAGMA {check}({FAULTS_MAX})")
        for line in str(said).splitlines()
        if said != "ok" and not line.startswith("***")
    ]
    found = found or _of_schema(connection)
    if found:
        return found[:FAULTS_MAX]
    found = _of_state(connection)
    if thorough and not found:
        found = [*_of_values(connection), *_of_promises(connection)]
    return found[:FAULTS_MAX]


def _of_schema(connection: apsw.Connection) -> list[str]:
    """Exactly our tables, indexes and views: a file from elsewhere may hold triggers."""
    version = int(connection.pragma("user_version"))
    if version > SCHEMA_VERSION:
        raise OutdatedError(
            f"the ledger has schema {version}; this version of DarkStream knows up to {SCHEMA_VERSION}",
            "update DarkStream on this node",
        )
    if version < 1:
        return [f"the ledger says that it has schema {version}, which there never was"]
    expected = apsw.Connection(":memory:")
    for number, sql in migrations():
        if number <= version:
            expected.execute(sql)
    wanted, there = _objects(expected), _objects(connection)
    expected.close()
    return [
        *(f"{name} is missing in the schema" for name in sorted(wanted.keys() - there.keys())),
        *(f"{name} does not belong to the schema" for name in sorted(there.keys() - wanted.keys())),
        *(
            f"{name} is not as schema {version} has it"
            for name in sorted(wanted.keys() & there.keys())
            if wanted[name] != there[name]
        ),
    ]


def _objects(connection: apsw.Connection) -> dict[str, str]:
    found = connection.execute(
        "SELECT type || ' ' || name, coalesce(sql, '') FROM sqlite_schema"
        " WHERE name NOT LIKE 'sqlite\\_stat%' ESCAPE '\\'"
    )
    return {str(name): str(sql) for name, sql in found}


def _of_state(connection: apsw.Connection) -> list[str]:
    rows: list[Any] = connection.execute(
        "SELECT applied_index, applied_term, checksum FROM state"
    ).fetchall()
    if not rows:
        return ["the ledger has lost its state"]
    index, term, checksum = rows[0]
    found: list[str] = []
    if index < 0 or term < 0 or len(checksum) != CHECKSUM_BYTES:
        found.append(f"the state is no state: entry {index} of term {term}")
    meshes = connection.execute("SELECT count(*) FROM mesh").get
    if meshes > 1:
        found.append(f"the ledger belongs to {meshes} meshes")
    return found


def _of_values(connection: apsw.Connection) -> Iterator[str]:
    """What came later than the last entry that was applied, or from none."""
    index = int(connection.execute("SELECT applied_index FROM state").get)
    epoch = connection.execute("SELECT epoch FROM mesh").get or 0
    later = "the ledger is applied up to entry"
    for table in ("event", "command"):
        last = connection.execute(f"SELECT max(log_index) FROM {table}").get  # noqa: S608 - our own names
        if last is not None and last > index:
            yield f"{later} {index}, and {table} knows of entry {last}"
    odd = connection.execute(
        "SELECT count(*) FROM event WHERE id >> ? != log_index", (EVENTS_PER_COMMAND_BITS,)
    ).get
    if odd:
        yield f"{odd} events have an id that is not of their entry"
    token = connection.execute("SELECT max(token) FROM attempt").get
    if token is not None and (index == 0 or token > fencing_token(epoch, index)):
        yield f"{later} {index}, and a lease has the token {token} of a later one"
    for (state,) in connection.execute("SELECT DISTINCT state FROM job"):
        if state not in JOB_STATES:
            yield f"a job has the state {str(state)[:40]!r}, which does not exist"


class _Part:
    """`Rows` of the jobs behind one id up to another: promises bind nothing beyond a job."""

    def __init__(self, connection: apsw.Connection, after: str | None, last: str | None) -> None:
        self._connection = connection
        self._after, self._last = after, last
        self.schema = int(connection.pragma("user_version"))

    def get(self, cls: type[R], key: str | int) -> R | None:
        raise NotImplementedError

    def where(self, cls: type[R], **equal: SqlValue) -> Sequence[R]:
        assert not equal, equal
        assert table_of(cls) in ("job", "task", "attempt"), cls
        column = "id" if table_of(cls) == "job" else "job"
        # Two conditions that an index serves; with NULLs in them none would.
        after = "TRUE" if self._after is None else f"{column} > :after"
        last = "TRUE" if self._last is None else f"{column} <= :last"
        names = ",".join(columns_of(cls, self.schema))
        sql = f"SELECT {names} FROM {table_of(cls)} WHERE {after} AND {last}"  # noqa: S608 - our own names
        found = self._connection.execute(sql, {"after": self._after, "last": self._last})
        return [decoded(cls, row, self.schema) for row in found]

    def where_any(self, cls: type[R], column: str, values: Sequence[SqlValue]) -> Sequence[R]:
        raise NotImplementedError

    def put(self, row: Row) -> None:
        raise NotImplementedError

    def put_like(
        self, row: Row, names: Sequence[str], values: Iterable[tuple[SqlValue, ...]]
    ) -> None:
        raise NotImplementedError

    def alter(self, cls: type[Row], keys: Iterable[str], change: Alteration) -> Sequence[str]:
        raise NotImplementedError

    def delete(self, cls: type[Row], key: str | int) -> None:
        raise NotImplementedError


def _of_promises(connection: apsw.Connection) -> Iterator[str]:
    after: str | None = None
    while True:
        last = connection.execute(
            "SELECT id FROM job WHERE id > ? ORDER BY id LIMIT 1 OFFSET ?",
            (after or "", JOBS_AT_ONCE - 1),
        ).get
        try:
            yield from violations(_Part(connection, after, last))
        except (ValueError, TypeError) as error:  # a JSON column that holds none
            yield f"a row of the jobs behind {after!r} cannot be read: {str(error)[:100]}"
        if last is None:
            return
        after = str(last)


def content_digest(connection: apsw.Connection) -> str:
    """BLAKE3 over all rows in the order of their keys: equal on replicas that applied the same.

    As MessagePack of (table, values...), each with its length before it.  Within one reading
    transaction of the caller.
    """
    digest = blake3()

    def add(value: Sequence[Any]) -> None:
        packed = pack(tuple(value))
        digest.update(len(packed).to_bytes(4, "big") + packed)

    classes = row_classes(int(connection.pragma("user_version")))
    for table in (*_OTHER_TABLES, *(table_of(cls) for cls in classes)):
        for row in connection.execute(f"SELECT * FROM {table} ORDER BY 1"):  # noqa: S608 - our own names
            add((table, *row))
    return digest.hexdigest()


def row_counts(connection: apsw.Connection) -> dict[str, int]:
    """How many rows each table has."""
    return {
        table: int(connection.execute(f"SELECT count(*) FROM {table}").get)  # noqa: S608 - our own names
        for table in (table_of(cls) for cls in row_classes(int(connection.pragma("user_version"))))
    }
