"""Whose rows a batch of commands changed, so that those who follow the ledger wake for what concerns them."""

from collections.abc import Iterable
from functools import cache
from typing import Final

from ledger.jobs import Attempt, Job, Member, Node, Row, Task
from ledger.pending import RowChange
from ledger.rows import columns_of, table_of

Touched = tuple[str, str]
"""A table, and the node whose row changed there; empty: nobody's, or not known (a row that was removed)."""

_WHOSE: Final[dict[type[Row], str]] = {
    Job: "owner",
    Task: "owner",
    Attempt: "node",
    Node: "node",
    Member: "node",
}


@cache
def _places(schema: int) -> dict[str, int]:
    return {table_of(cls): columns_of(cls, schema).index(column) for cls, column in _WHOSE.items()}


def touched(changes: Iterable[RowChange], schema: int) -> set[Touched]:
    """What these changes of rows concern."""
    places = _places(schema)
    found: set[Touched] = set()
    for table, values in changes:
        place = places.get(table)
        whose = "" if place is None or place >= len(values) else str(values[place])
        found.add((table, whose))
    return found
