"""The commands of the ledger and their fields as one text, to be compared with what is written down.

python -m tests.repository.kept_commands > tests/repository/commands.txt
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

from ledger.commands import COMMANDS, SINCE
from ledger.schema import FIRST_SCHEMA


def commands_text() -> str:
    """One line a command: its kind, the schema that it came with, and its fields; then what they hold."""
    lines: list[str] = []
    inner: dict[str, type[Any]] = {}
    for kind, cls in COMMANDS.kinds().items():
        lines.append(f"{kind} (schema {SINCE.get(cls, FIRST_SCHEMA)}): {_fields(cls)}")
        inner.update((one.__name__, one) for one in _inside(cls))
    lines += [f"{name}: {_fields(cls)}" for name, cls in sorted(inner.items())]
    return "\n".join(lines) + "\n"


def _fields(cls: type[Any]) -> str:
    hints = get_type_hints(cls)
    shown = [f"{field.name} {_shown(hints[field.name])}" for field in dataclasses.fields(cls)]
    return ", ".join(shown)


def _shown(hint: Any) -> str:
    text = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
    return re.sub(r"\b(?:typing|ledger\.\w+)\.", "", text)


def _inside(cls: type[Any]) -> Iterator[type[Any]]:
    for hint in get_type_hints(cls).values():
        for one in (hint, *get_args(hint)):
            if isinstance(one, type) and dataclasses.is_dataclass(one):
                yield one
                yield from _inside(one)


if __name__ == "__main__":
    print(commands_text(), end="")
