"""TOML with the line of every key, and names that a person may have meant.

`tomllib` gives values without places and stops at its first fault.  The places come from a scan of
the lines; after a syntax fault its line is set aside and the rest is read all the same.
"""

import difflib
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mesh.errors import ConfigurationError

SYNTAX_FAULTS_MAX = 20
"""A file with more of them is no configuration; the first twenty are told."""
_TABLE = re.compile(r"^\s*\[\[?\s*([^\[\]]+?)\s*\]\]?\s*(#.*)?$")
_KEY = re.compile(
    r"""^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*="""
)
_LINE_END = re.compile(r"\r\n|\n|\r")
"""Only these end a line of TOML; a text may hold what Unicode counts as such."""
_AT_LINE = re.compile(r"\(at line (\d+), column \d+\)|\(at end of document\)")


@dataclass(frozen=True, slots=True)
class Place:
    """Line (from 1; 0: unknown) and the key as it was written."""

    line: int
    name: str


@dataclass(frozen=True, slots=True)
class SyntaxFault:
    """A line that is no TOML."""

    line: int
    key: str
    what: str
    todo: str


@dataclass(frozen=True, slots=True, order=True)
class ConfigFault:
    """One fault: where it stands (`line` 0: not in a file), which key, what is wrong, what to do."""

    source: str
    line: int
    key: str
    what: str
    todo: str = ""

    def text(self) -> str:
        """`node.toml:3: seed: what; todo`."""
        place = f"{self.source}:{self.line}" if self.line else self.source
        name = f"{self.key}: " if self.key and not self.source.startswith("--") else ""
        return f"{place}: {name}{self.what}" + (f"; {self.todo}" if self.todo else "")


class ConfigFaultsError(ConfigurationError):
    """The configuration has faults; `mesh-node check-config` lists all of them with their lines."""

    def __init__(self, faults: list[ConfigFault]) -> None:
        first = faults[0].text()
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        super().__init__(f"{first}{more}", "mesh-node check-config lists every fault")
        self.faults = tuple(faults)


Places = dict[tuple[str, ...], Place]


def parse_toml(text: str) -> tuple[dict[str, Any], Places, list[SyntaxFault]]:
    """Values, the place of every key by its path (`-` read as `_`), and the lines that are no TOML."""
    lines = _LINE_END.split(text.removeprefix("\ufeff"))
    if not lines[-1]:
        lines.pop()
    faults: list[SyntaxFault] = []
    while len(faults) < SYNTAX_FAULTS_MAX:
        try:
            return tomllib.loads("\n".join(lines) + "\n"), places_of(lines), faults
        except tomllib.TOMLDecodeError as error:
            at = _AT_LINE.search(str(error))
            line = int(at.group(1)) if at and at.group(1) else len(lines)
            what = _AT_LINE.sub("", str(error)).strip().rstrip(".")
            if at and not at.group(1):
                what += " at the end of the file: a quote or a bracket is open"
            faults.append(SyntaxFault(line, "", what, "mend this line; it is no TOML"))
            if not 0 < line <= len(lines) or not lines[line - 1].strip():
                break
            lines[line - 1] = ""
        except (ValueError, RecursionError):
            # A number of thousands of digits, brackets within a thousand brackets: it says no line.
            what = "a number is too long, or tables and lists are nested too deep"
            return (
                {},
                {},
                [SyntaxFault(0, "", what, "write a configuration by docs/configuration.md")],
            )
    # Setting lines aside did not help: what stands open began earlier, so only the first is certain.
    return {}, {}, faults[:1]


def places_of(lines: list[str]) -> Places:
    """The line of each key and table of a well-formed file."""
    places: Places = {}
    table: tuple[str, ...] = ()
    quote = ""
    depth = 0
    for number, line in enumerate(lines, start=1):
        if not quote and depth == 0:
            if header := _TABLE.match(line):
                table = _path(header.group(1))
                places.setdefault(table, Place(number, header.group(1)))
            elif key := _KEY.match(line):
                path = _path(key.group(1))
                places.setdefault(table + path, Place(number, ".".join((*table, key.group(1)))))
        quote, depth = _scan(line, quote, depth)
    return places


def _path(written: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'").replace("-", "_") for part in written.split("."))


def _scan(line: str, quote: str, depth: int) -> tuple[str, int]:
    """Whether a multi-line text or an array is still open after this line."""
    at = 0
    while at < len(line):
        if quote:
            if quote.startswith('"') and line[at] == "\\":
                at += 2
                continue
            if line.startswith(quote, at):
                at += len(quote)
                quote = ""
                continue
        elif line[at] == "#":
            break
        elif line[at] in "\"'":
            quote = line[at] * 3 if line.startswith(line[at] * 3, at) else line[at]
            at += len(quote)
            continue
        elif line[at] in "[{":
            depth += 1
        elif line[at] in "]}":
            depth = max(0, depth - 1)
        at += 1
    # Texts with one quote end with their line.
    return (quote if len(quote) == 3 else ""), depth


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean "x"?` for the name that is closest, or nothing."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else ""
