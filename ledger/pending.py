"""Rows of a batch of commands that are not written yet, over those that are.

Most commands of a batch read the same few rows (the mesh, the owner), and one in a thousand is
refused: so rows are written once at the end of a batch, and a refused command is undone in memory.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter, itemgetter
from typing import Any, Final, Protocol, TypeVar

from ledger.change import RefusedError
from ledger.jobs import Row
from ledger.rows import (
    Alteration,
    Alterer,
    SqlValue,
    columns_of,
    decoded,
    encoder_of,
    int_columns_of,
    is_int_column,
    likened,
    table_of,
)

R = TypeVar("R", bound=Row)
Values = tuple[SqlValue, ...]
Key = str | int
RowChange = tuple[str, Values]
"""A table and the values put into it; the key alone: its row is removed."""
_BEYOND_INT64: Final = 1 << 63


class Altered(tuple[SqlValue, ...]):  # noqa: SLOT001 - a tuple has no slots for more
    """A stored row of which only the columns `names` differ from what is stored."""

    names: tuple[str, ...]


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

    def values_of(self, cls: type[Row], keys: Sequence[str]) -> Sequence[Values]:
        """The rows of these keys as SQL holds them, those that are there."""
        ...


class PendingRows:
    """`Rows` that remembers instead of writing; `keep` or `undo` ends each command."""

    def __init__(self, stored: Stored) -> None:
        self.schema = stored.schema
        self._stored = stored
        self._known: dict[type[Row], dict[Key, Row | None]] = defaultdict(dict)
        """What was read or put as a row; None: there is no such row (any more)."""
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
        values = self._written[cls].get(key)
        row = self._stored.get(cls, key) if values is None else decoded(cls, values, self.schema)
        known[key] = row
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
        if column == columns_of(cls, self.schema)[0]:
            written = self._written[cls]
            keys = [k for k in values if not isinstance(k, bytes) and written.get(k) is not None]
            return self._merged(cls, stored, keys)
        index = self._index(cls, (column,))
        return self._merged(cls, stored, [k for one in values for k in index.keys_of((one,))])

    def _merged(self, cls: type[R], stored: Sequence[R], pending: Sequence[Key]) -> Sequence[R]:
        written = self._written[cls]
        key_of = attrgetter(columns_of(cls, self.schema)[0])
        found = {key_of(row): row for row in stored if key_of(row) not in written}
        for key in pending:
            row = self.get(cls, key)
            assert row is not None, "an index holds rows that are there"
            found[key] = row
        return [found[key] for key in sorted(found)]

    def put(self, row: Row) -> None:
        """Takes a row."""
        cls = type(row)
        _check_ints(int_columns_of(cls, self.schema)(row))
        values = encoder_of(cls, self.schema)(row)
        key = values[0]
        assert not isinstance(key, bytes)
        self._set(cls, key, row, values)
        self._changes.append((table_of(cls), values))

    def put_like(
        self, row: Row, names: Sequence[str], values: Iterable[tuple[SqlValue, ...]]
    ) -> None:
        """Takes rows like this one, as values alone: a row is made of them when somebody asks."""
        cls, table = type(row), table_of(type(row))
        given = tuple(values)
        for place, name in enumerate(names):
            if is_int_column(cls, name):
                _check_ints(tuple(map(itemgetter(place), given)))
        _check_ints(int_columns_of(cls, self.schema)(row))
        known, written = self._known[cls], self._written[cls]
        indices = tuple(self._indices[cls].values())
        for all_values in likened(row, names, given, self.schema):
            key = all_values[0]
            assert not isinstance(key, bytes)
            self._before.append((cls, key, known.pop(key, None), written.get(key, _UNWRITTEN)))
            for index in indices:
                index.put(key, all_values)
            written[key] = all_values
            self._changes.append((table, all_values))

    def alter(self, cls: type[Row], keys: Iterable[str], change: Alteration) -> Sequence[str]:
        """Changes some columns of those of these rows that the change is for; their keys."""
        known, written, table = self._known[cls], self._written[cls], table_of(cls)
        indices = tuple(self._indices[cls].values())
        alterer = Alterer(cls, change, self.schema)
        wanted = sorted(set(keys))
        stored = self._stored.values_of(cls, [key for key in wanted if key not in written])
        present: dict[Key, Values | None] = {str(values[0]): values for values in stored}
        done: list[str] = []
        for key in wanted:
            before = written.get(key, _UNWRITTEN)
            values = present.get(key) if isinstance(before, _Unwritten) else before
            new = None if values is None else alterer.altered(values)
            if new is None:
                continue
            self._before.append((cls, key, known.pop(key, None), before))
            for index in indices:
                index.put(key, new)
            written[key] = new
            if isinstance(before, _Unwritten):
                written[key] = part = Altered(new)
                part.names = change.names
            self._changes.append((table, new))
            done.append(key)
        return done

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
            known, written = self._known[cls], self._written[cls]
            known.pop(key, None)
            if isinstance(values, _Unwritten):  # also when it is not known: it is stored as it was
                self._reindex(cls, key, None)
                del written[key]
                continue
            self._reindex(cls, key, values)
            written[key] = values
            if row is not None or values is None:
                known[key] = row
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
            self._reindex(cls, key, values)
        known[key] = row
        written[key] = values

    def _reindex(self, cls: type[Row], key: Key, values: Values | None) -> None:
        for index in self._indices[cls].values():
            index.put(key, values)

    def _index(self, cls: type[Row], columns: tuple[str, ...]) -> "_Index":
        index = self._indices[cls].get(columns)
        if index is None:
            held = columns_of(cls, self.schema)
            index = self._indices[cls][columns] = _Index([held.index(name) for name in columns])
            for key, values in self._written[cls].items():
                index.put(key, values)
        return index


class _Index:
    """Keys of pending rows by the values of some columns, none of which is a list."""

    def __init__(self, places: Sequence[int]) -> None:
        self._value_of: Callable[[Values], Any] = itemgetter(*places) if places else lambda _: ()
        self._is_single = len(places) == 1
        self._values: dict[Key, Any] = {}
        self._keys: dict[Any, tuple[Key, ...]] = {}

    def put(self, key: Key, values: Values | None) -> None:
        """The row of this key has these values now; None: it is not pending, or gone."""
        if key in self._values:
            old = self._values.pop(key)
            self._keys[old] = tuple(one for one in self._keys[old] if one != key)
        if values is not None:
            value = self._values[key] = self._value_of(values)
            others = self._keys.get(value)
            self._keys[value] = (key,) if others is None else (*others, key)

    def keys_of(self, values: tuple[object, ...]) -> Sequence[Key]:
        """The keys of the rows with these values."""
        return self._keys.get(values[0] if self._is_single else values, ())


def _check_ints(ints: Sequence[Any]) -> None:
    if ints and not (max(ints) < _BEYOND_INT64 and min(ints) >= -_BEYOND_INT64):
        # MessagePack knows unsigned 64 bit, SQLite does not; equal on every replica.
        raise RefusedError("usage", "a number of the command exceeds 64 bit")
