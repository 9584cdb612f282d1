"""Rows as plain values: what the state machine asks of a store, and how a row is written in SQL.

`encoded` is also the canonical form that the rolling checksum is taken over.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any, Final, Protocol, TypeVar

from ledger.jobs import ROW_CLASSES, Row

R = TypeVar("R", bound=Row)
SqlValue = str | int | bytes


class Rows(Protocol):
    """Rows of the ledger inside one transaction."""

    def get(self, cls: type[R], key: str | int) -> R | None:
        """The row of this key."""
        ...

    def where(self, cls: type[R], **equal: SqlValue) -> Sequence[R]:
        """All rows whose columns have these values, in the order of their keys."""
        ...

    def put(self, row: Row) -> None:
        """Writes a row, in place of the one with its key if there is one."""
        ...

    def delete(self, cls: type[Row], key: str | int) -> None:
        """Removes the row of this key, if there is one."""
        ...


_TABLES: Final = {cls: cls.__name__.lower() for cls in ROW_CLASSES}
_COLUMNS: Final = {cls: tuple(field.name for field in fields(cls)) for cls in ROW_CLASSES}
_TUPLES: Final = {
    cls: frozenset(f.name for f in fields(cls) if str(f.type).startswith("tuple"))
    for cls in ROW_CLASSES
}


def _getter(names: Sequence[str]) -> Callable[[Row], tuple[Any, ...]]:
    if len(names) > 1:
        return attrgetter(*names)
    return lambda row: tuple(getattr(row, name) for name in names)


_VALUES: Final = {cls: _getter(names) for cls, names in _COLUMNS.items()}
_INTS: Final = {
    cls: _getter([field.name for field in fields(cls) if field.type in (int, "int")])
    for cls in ROW_CLASSES
}


def table_of(cls: type[Row]) -> str:
    """The name of a row class's table."""
    return _TABLES[cls]


def columns_of(cls: type[Row]) -> tuple[str, ...]:
    """The columns in their order; the first is the key."""
    return _COLUMNS[cls]


def int_columns_of(cls: type[Row]) -> Callable[[Row], tuple[int, ...]]:
    """Takes the values of the integer columns out of a row."""
    return _INTS[cls]


def encoded(row: Row) -> tuple[SqlValue, ...]:
    """The values of a row as SQL holds them, in the order of the columns."""
    cls = type(row)
    values = _VALUES[cls](row)
    tuples = _TUPLES[cls]
    if not tuples:
        return values
    return tuple(
        json.dumps(value, separators=(",", ":"), ensure_ascii=True) if name in tuples else value
        for name, value in zip(_COLUMNS[cls], values, strict=True)
    )


def decoded(cls: type[R], values: Sequence[Any]) -> R:
    """The row of these SQL values."""
    named = dict(zip(_COLUMNS[cls], values, strict=True))
    for name in _TUPLES[cls]:
        named[name] = tuple(json.loads(named[name]))
    return cls(**named)
