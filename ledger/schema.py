"""The form of the ledger under one number: its tables, its commands, and what they do.

A mesh moves to the next form by a committed command (`MigrateLedger`), so every replica does it at
the same index; until then newer nodes write and answer exactly as older ones do.  What differs
between two forms asks `Rows.schema`; DESIGN.md says how to add one.
"""

from dataclasses import MISSING, field
from typing import Any, Final

SCHEMA_VERSION: Final = 3
"""The newest form that this version knows; migration N leads from form N - 1 to N."""
FIRST_SCHEMA: Final = 1
"""The form of a ledger that holds nothing: its first entry says which one the mesh begins with."""
_FOR_EVER: Final = 1 << 31


def column(
    *,
    since: int = FIRST_SCHEMA,
    until: int = _FOR_EVER,
    default: Any = MISSING,  # noqa: ANN401 - any column's value
) -> Any:  # noqa: ANN401 - what dataclasses.field returns to checkers
    """A field of a row class that only the forms from `since` to `until` hold, both included."""
    return field(default=default, metadata={"since": since, "until": until})


def is_held(metadata: Any, schema: int) -> bool:  # noqa: ANN401 - a field's mapping
    """Whether a table of this form has the column of the field."""
    since, until = metadata.get("since", FIRST_SCHEMA), metadata.get("until", _FOR_EVER)
    return bool(since <= schema <= until)
