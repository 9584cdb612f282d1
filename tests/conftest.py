"""Settings for all tests."""

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

# The same examples on every run: a red run shows the change that broke something.  Other examples,
# in search of new faults: DARKSTREAM_FUZZ=1.  No example has a deadline: machines are shared, and pauses
# of a second are theirs.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("searching", print_blob=True, deadline=None)
settings.load_profile("searching" if os.environ.get("DARKSTREAM_FUZZ") else "repeatable")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the tables whose lines tests recorded: `record_property("table", {title: {column: cell}})`, as JSON."""
    tables: dict[str, list[dict[str, str]]] = {}
    for said in _recorded(terminalreporter.stats):
        for title, line in json.loads(said).items():
            tables.setdefault(title, []).append(line)
    for title, lines in tables.items():
        terminalreporter.section(title)
        columns = list(dict.fromkeys(column for line in lines for column in line))
        table = [columns, *([line.get(column, "") for column in columns] for line in lines)]
        widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
        for cells in table:
            terminalreporter.write_line(
                "  ".join(
                    cell.ljust(width) for cell, width in zip(cells, widths, strict=True)
                ).rstrip()
            )


def _recorded(stats: dict[str, list[Any]]) -> Iterator[str]:
    for outcome in ("passed", "failed"):
        for report in stats.get(outcome, ()):
            if report.when == "call":
                yield from (value for key, value in report.user_properties if key == "table")
