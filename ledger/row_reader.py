"""Rows out of a replica: a connection for each thread, and the form that the ledger has now."""

import threading
from collections.abc import Sequence
from typing import Any, Final, TypeVar

import apsw

from ledger.jobs import Row
from ledger.rows import columns_of, decoded, table_of
from ledger.schema import SCHEMA_VERSION
from mesh.errors import StorageError

R = TypeVar("R", bound=Row)

BUSY_MS: Final = 2_000


class RowReader:
    """Reads rows; what is asked of them is `ledger.queries`'."""

    def __init__(self, source: str | apsw.Connection) -> None:
        """A file that exists, or the writer's own connection (in memory: tests, simulator)."""
        self._source = source
        self._local = threading.local()
        self._opened: list[apsw.Connection] = []

    def _connection(self) -> apsw.Connection:
        if isinstance(self._source, apsw.Connection):
            return self._source
        connection: apsw.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            try:
                connection = apsw.Connection(self._source, flags=apsw.SQLITE_OPEN_READONLY)
            except apsw.Error as error:
                raise StorageError(f"{self._source}: {error}", "check the disk") from None
            connection.set_busy_timeout(BUSY_MS)
            self._local.connection = connection
            self._opened.append(connection)
        return connection

    def close(self) -> None:
        """Closes the connections that this reader opened; no call may be running."""
        for connection in self._opened:
            connection.close()
        self._opened.clear()

    def _rows(self, cls: type[R], rest: str = "", values: Sequence[Any] = ()) -> tuple[R, ...]:
        schema = self.schema()
        try:
            found = self._fetch(_select(cls, schema, rest), values)
        except StorageError:
            # The writer may have moved on in between; what the older form had is asked for no more.
            if schema == self.schema(anew=True):
                raise
            schema = self.schema()
            found = self._fetch(_select(cls, schema, rest), values)
        return tuple(decoded(cls, row, schema) for row in found)

    def schema(self, *, anew: bool = False) -> int:
        """The form that the ledger has now."""
        known: int = getattr(self._local, "schema", 0)
        if anew or known < SCHEMA_VERSION:  # the newest stays
            known = self._local.schema = int(self._value("PRAGMA user_version"))
        return known

    def _fetch(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        try:
            return self._connection().execute(sql, tuple(values)).fetchall()
        except apsw.Error as error:
            raise StorageError(f"the ledger cannot be read: {error}", "check the disk") from None

    def _one(self, cls: type[R], rest: str, values: Sequence[Any]) -> R | None:
        found = self._rows(cls, rest + " LIMIT 1", values)
        return found[0] if found else None

    def _value(self, sql: str, values: Sequence[Any] = ()) -> Any:  # noqa: ANN401 - one value of SQL
        found = self._fetch(sql, values)
        if not found:
            return None
        return found[0][0] if len(found[0]) == 1 else found[0]


def _select(cls: type[Row], schema: int, rest: str) -> str:
    return f"SELECT {','.join(columns_of(cls, schema))} FROM {table_of(cls)} {rest}"  # noqa: S608 - our own names
