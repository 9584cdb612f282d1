"""Rows of a batch of commands that are not written yet, over those that are.

Most commands of a batch read the same few rows (the mesh, the owner), and one in a thousand is
refused: so rows are written once at the end of a batch, and a refused command is undone in memory.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, Final, Protocol, TypeVar

from ledger.change import RefusedError
from ledger.jobs import Row
from ledger.rows import SqlValue, columns_of, encoder_of, int_columns_of, table_of

R = TypeVar("R", bound=Row)
Values = tuple[SqlValue, ...]
Key = str | int
RowChange = tuple[str, Values]
"""A table and the values put into it; the key alone: its row is removed."""
_BEYOND_INT64: Final = 1 << 63


class _Unwritten:
    """A row that the batch has not changed yet."""


_UNWRITTEN: Final = _Unwritten()


class Stored(Protocol):
    """The rows as they were before the batch; they do not change until it is written."""

    @property
    def schema(self) -> int:
        """The form that the ledger has now."""
        ...

    def get(self, cls: type[R], key: Key) -> R | None:
        """The row of this key."""
        ...

    def where(self, cls: type[R], **equal: SqlValue) -> Sequence[R]:
        """All rows whose columns have these values, by key."""
        ...

    def where_any(self, cls: type[R], column: str, values: Sequence[SqlValue]) -> Sequence[R]:
        """All rows with one of these values in this column, by key."""
        ...


class PendingRows:
    """`Rows` that remembers instead of writing; `keep` or `undo` ends each command."""

    def __init__(self, stored: Stored) -> None:
        self.schema = stored.schema
        self._stored = stored
        self._known: dict[type[Row], dict[Key, Row | None]] = defaultdict(dict)
        """What was read or put; None: there is no such row (any more)."""
        self._written: dict[type[Row], dict[Key, Values | None]] = defaultdict(dict)
        """What differs from the stored rows, as SQL holds it; None: removed."""
        self._indices: dict[type[Row], dict[tuple[str, ...], _Index]] = defaultdict(dict)
        self._whole: dict[type[Row], Sequence[Any]] = {}
        """Stored tables that were read whole."""
        self._before: list[tuple[type[Row], Key, Row | None, Values | _Unwritten | None]] = []
        """To undo the present command: class, key, the row, and as what it was written already."""
        self._changes: list[RowChange] = []

    # --- Rows ---------------------------------------------------------------------------------

    def get(self, cls: type[R], key: Key) -> R | None:
        """The row of this key."""
        known = self._known[cls]
        if key in known:
            return known[key]  # type: ignore[return-value]  # a row is kept under its own class
        row = known[key] = self._stored.get(cls, key)
        return row

    def where(self, cls: type[R], **equal: SqlValue) -> Sequence[R]:
        """All rows whose columns have these values, by key."""
        stored = self._stored_where(cls, equal)
        if not self._written.get(cls):
            return stored
        keys = self._index(cls, tuple(equal)).keys_of(tuple(equal.values()))
        return self._merged(cls, stored, keys)

    def where_any(self, cls: type[R], column: str, values: Sequence[SqlValue]) -> Sequence[R]:
        """All rows with one of these values in this column, by key."""
        stored = self._stored.where_any(cls, column, values)
        if not self._written.get(cls):
            return stored
        index = self._index(cls, (column,))
        return self._merged(cls, stored, [k for one in values for k in index.keys_of((one,))])

    def _merged(self, cls: type[R], stored: Sequence[R], pending: Sequence[Key]) -> Sequence[R]:
        written, known = self._written[cls], self._known[cls]
        key_of = attrgetter(columns_of(cls, self.schema)[0])
        found = {key_of(row): row for row in stored if key_of(row) not in written}
        for key in pending:
            row = known[key]
            assert row is not None, "an index holds rows that are there"
            found[key] = row  # type: ignore[assignment]  # a row is kept under its own class
        return [found[key] for key in sorted(found)]

    def put(self, row: Row) -> None:
        """Takes a row."""
        cls = type(row)
        ints = int_columns_of(cls, self.schema)(row)
        if ints and not (max(ints) < _BEYOND_INT64 and min(ints) >= -_BEYOND_INT64):
            # MessagePack knows unsigned 64 bit, SQLite does not; equal on every replica.
            raise RefusedError("usage", "a number of the command exceeds 64 bit")
        values = encoder_of(cls, self.schema)(row)
        key = values[0]
        assert not isinstance(key, bytes)
        self._set(cls, key, row, values)
        self._changes.append((table_of(cls), values))

    def delete(self, cls: type[Row], key: Key) -> None:
        """Removes a row."""
        self._set(cls, key, None, None)
        self._changes.append((table_of(cls), (key,)))

    # --- the end of a command, the end of a batch ---------------------------------------------

    def keep(self) -> Sequence[RowChange]:
        """The command is applied: its changes in their order, for the checksum."""
        changes, self._changes = self._changes, []
        self._before.clear()
        return changes

    def undo(self) -> None:
        """The command is refused: everything is as before it."""
        for cls, key, row, values in reversed(self._before):
            if isinstance(values, _Unwritten):  # also when it is not known: it is stored as it was
                self._reindex(cls, key, None)
                del self._written[cls][key], self._known[cls][key]
            else:
                self._reindex(cls, key, row)
                self._known[cls][key], self._written[cls][key] = row, values
        self._before.clear()
        self._changes.clear()

    @property
    def count(self) -> int:
        """Rows that wait to be written."""
        return sum(map(len, self._written.values()))

    def take(self) -> Mapping[type[Row], Mapping[Key, Values | None]]:
        """What is to be written now, between two commands; then nothing is known any more."""
        assert not self._before, "a command is neither kept nor undone"
        written = self._written
        self._written = defaultdict(dict)
        self._known.clear()
        self._indices.clear()
        self._whole.clear()
        return written

    # --- inside -------------------------------------------------------------------------------

    def _stored_where(self, cls: type[R], equal: Mapping[str, SqlValue]) -> Sequence[R]:
        if equal:
            return self._stored.where(cls, **equal)
        if cls not in self._whole:
            self._whole[cls] = self._stored.where(cls)
        return self._whole[cls]

    def _set(self, cls: type[Row], key: Key, row: Row | None, values: Values | None) -> None:
        known, written = self._known[cls], self._written[cls]
        self._before.append((cls, key, known.get(key), written.get(key, _UNWRITTEN)))
        if self._indices[cls]:
            self._reindex(cls, key, row)
        known[key] = row
        written[key] = values

    def _reindex(self, cls: type[Row], key: Key, row: Row | None) -> None:
        for index in self._indices[cls].values():
            index.put(key, row)

    def _index(self, cls: type[Row], columns: tuple[str, ...]) -> "_Index":
        index = self._indices[cls].get(columns)
        if index is None:
            index = self._indices[cls][columns] = _Index(columns)
            for key in self._written[cls]:
                index.put(key, self._known[cls][key])
        return index


class _Index:
    """Keys of pending rows by the values of some columns."""

    def __init__(self, columns: tuple[str, ...]) -> None:
        self._columns = columns
        self._values: dict[Key, tuple[object, ...]] = {}
        self._keys: dict[tuple[object, ...], dict[Key, None]] = {}

    def put(self, key: Key, row: Row | None) -> None:
        """The row of this key is now this one; None: it is not pending, or gone."""
        if key in self._values:
            del self._keys[self._values.pop(key)][key]
        if row is not None:
            values = tuple(getattr(row, column) for column in self._columns)
            self._values[key] = values
            self._keys.setdefault(values, {})[key] = None

    def keys_of(self, values: tuple[object, ...]) -> Sequence[Key]:
        """The keys of the rows with these values."""
        return tuple(self._keys.get(values, ()))
