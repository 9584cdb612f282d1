"""Rows as plain values: what the state machine asks of a store, and how a row is written in SQL.

`encoded` is also the canonical form that the rolling checksum is taken over.
"""

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final, Protocol, TypeVar

from ledger.jobs import ROW_CLASSES, Row
from ledger.schema import FIRST_SCHEMA, SCHEMA_VERSION, is_held

R = TypeVar("R", bound=Row)
SqlValue = str | int | bytes
Encoder = Callable[[Row], tuple[SqlValue, ...]]


class Rows(Protocol):
    """Rows of the ledger inside one transaction."""

    @property
    def schema(self) -> int:
        """The form that the ledger has now."""
        ...

    def get(self, cls: type[R], key: str | int) -> R | None:
        """The row of this key."""
        ...

    def where(self, cls: type[R], **equal: SqlValue) -> Sequence[R]:
        """All rows whose columns have these values, in the order of their keys."""
        ...

    def where_any(self, cls: type[R], column: str, values: Sequence[SqlValue]) -> Sequence[R]:
        """All rows with one of these values in this column, in the order of their keys."""
        ...

    def put(self, row: Row) -> None:
        """Writes a row, in place of the one with its key if there is one."""
        ...

    def put_like(
        self, row: Row, names: Sequence[str], values: Iterable[tuple[SqlValue, ...]]
    ) -> None:
        """Writes a row for each of `values`: as `row`, with these values in the columns `names`.

        The key is the first of them.  For a thousand rows at once, at a fifth of the time.
        """
        ...

    def alter(self, cls: type[Row], keys: Iterable[str], change: "Alteration") -> Sequence[str]:
        """Changes some columns of those of these rows that the change is for; their keys.

        For hundreds of rows at once: none becomes an object, and only what changes is written.
        """
        ...

    def delete(self, cls: type[Row], key: str | int) -> None:
        """Removes the row of this key, if there is one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Alteration:
    """New values in the columns `names` of rows which have one of the values of `only` in each of its columns."""

    only: Mapping[str, Collection[SqlValue]]
    names: tuple[str, ...]
    values_of: Callable[[str], tuple[SqlValue, ...]]
    """For the row of this key, in the order of `names`."""


class Alterer:
    """An alteration of rows of one class and form, as SQL holds them."""

    def __init__(self, cls: type[Row], change: Alteration, schema: int) -> None:
        columns = columns_of(cls, schema)
        self._only = [(columns.index(name), allowed) for name, allowed in change.only.items()]
        self._places = [columns.index(name) for name in change.names]
        self._values_of = change.values_of

    def altered(self, values: tuple[SqlValue, ...]) -> tuple[SqlValue, ...] | None:
        """The whole row afterwards; None: the change is not for this one."""
        for place, allowed in self._only:
            if values[place] not in allowed:
                return None
        found = list(values)
        for place, value in zip(self._places, self._values_of(str(values[0])), strict=True):
            found[place] = value
        return tuple(found)


_FORMS: Final = range(FIRST_SCHEMA, SCHEMA_VERSION + 1)
_TABLES: Final = {cls: cls.__name__.lower() for cls in ROW_CLASSES}
_HELD: Final = {
    (cls, schema): tuple(field for field in fields(cls) if is_held(field.metadata, schema))
    for cls in ROW_CLASSES
    for schema in _FORMS
}
_COLUMNS: Final = {key: tuple(field.name for field in held) for key, held in _HELD.items()}
_TUPLES: Final = {
    cls: frozenset(f.name for f in fields(cls) if str(f.type).startswith("tuple"))
    for cls in ROW_CLASSES
}


def _getter(names: Sequence[str]) -> Callable[[Row], tuple[Any, ...]]:
    if len(names) > 1:
        return attrgetter(*names)
    return lambda row: tuple(getattr(row, name) for name in names)


@lru_cache(maxsize=1_024)
def _json_of(value: tuple[Any, ...]) -> str:
    # The same few lists come again and again: an encoder's names, a node's roles.
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True)


def _encoder(names: Sequence[str], tuples: Collection[str]) -> Encoder:
    values_of = _getter(names)
    places = [place for place, name in enumerate(names) if name in tuples]
    if not places:
        return values_of

    def encoded_values(row: Row) -> tuple[SqlValue, ...]:
        values = list(values_of(row))
        for place in places:
            values[place] = _json_of(values[place])
        return tuple(values)

    return encoded_values


_INT_NAMES: Final = {
    cls: frozenset(field.name for field in fields(cls) if field.type in (int, "int"))
    for cls in ROW_CLASSES
}
_INTS: Final = {
    key: _getter([name for name in names if name in _INT_NAMES[key[0]]])
    for key, names in _COLUMNS.items()
}
_ENCODERS: Final = {key: _encoder(names, _TUPLES[key[0]]) for key, names in _COLUMNS.items()}


def table_of(cls: type[Row]) -> str:
    """The name of a row class's table."""
    return _TABLES[cls]


def columns_of(cls: type[Row], schema: int) -> tuple[str, ...]:
    """The columns of a table of this form in their order; the first is the key."""
    return _COLUMNS[cls, schema]


def int_columns_of(cls: type[Row], schema: int) -> Callable[[Row], tuple[int, ...]]:
    """Takes the values of the integer columns out of a row."""
    return _INTS[cls, schema]


def is_int_column(cls: type[Row], name: str) -> bool:
    """Whether a column holds integers."""
    return name in _INT_NAMES[cls]


def encoder_of(cls: type[Row], schema: int) -> Encoder:
    """Takes the values of a row as SQL holds them, in the order of the columns."""
    return _ENCODERS[cls, schema]


def encoded(row: Row, schema: int) -> tuple[SqlValue, ...]:
    """The values of a row as SQL holds them, in the order of the columns."""
    return _ENCODERS[type(row), schema](row)


def likened(
    row: Row, names: Sequence[str], values: Iterable[tuple[SqlValue, ...]], schema: int
) -> list[tuple[SqlValue, ...]]:
    """The values as SQL holds them of rows like this one, but for the columns `names`."""
    columns = columns_of(type(row), schema)
    assert names[0] == columns[0], "the key comes first"
    base = list(encoded(row, schema))
    places = [columns.index(name) for name in names]
    found: list[tuple[SqlValue, ...]] = []
    for given in values:
        for place, value in zip(places, given, strict=True):
            base[place] = value
        found.append(tuple(base))
    return found


def decoded(cls: type[R], values: Sequence[Any], schema: int) -> R:
    """The row of these SQL values."""
    named = dict(zip(_COLUMNS[cls, schema], values, strict=True))
    for name in _TUPLES[cls]:
        if name in named:  # not every form has it
            named[name] = tuple(json.loads(named[name]))
    return cls(**named)
