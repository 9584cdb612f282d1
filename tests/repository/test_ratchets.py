"""Counts that may only fall (STYLE: ratchets).  What is left is in ratchets.toml."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.repository.tree import ROOT, files_of_tests, parsed, product_files

LEFT: dict[str, int] = tomllib.loads(Path(__file__).with_name("ratchets.toml").read_text())
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 500
CLOCKS = {
    *("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"),
    *("process_time", "now", "utcnow", "today"),
}
CLOCK_OWNERS = {"time", "datetime", "date", "dt"}


def _functions_over_70_lines() -> Iterator[str]:
    for name, tree in parsed(product_files()):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    yield f"{name}:{node.lineno} {node.name} has {lines} lines"


def _modules_over_500_lines() -> Iterator[str]:
    for path in product_files():
        lines = len(path.read_text("utf-8").splitlines())
        if lines > MODULE_LINES_MAX:
            yield f"{path.relative_to(ROOT)} has {lines} lines"


def _is_broad(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    broad = {"Exception", "BaseException", None}
    return any((kind.id if isinstance(kind, ast.Name) else kind) in broad for kind in kinds)


def _reraises(handler: ast.ExceptHandler) -> bool:
    return any(isinstance(node, ast.Raise) and node.exc is None for node in ast.walk(handler))


def _broad_excepts() -> Iterator[str]:
    """Those that swallow: cleaning up and raising again is no fault.  The supervisor's is in node.daemon."""
    for name, tree in parsed(product_files()):
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler) and _is_broad(node) and not _reraises(node):
                yield f"{name}:{node.lineno} swallows every error"


def _clock_reads_outside_the_clock() -> Iterator[str]:
    for name, tree in parsed([path for path in product_files() if path.name != "clock.py"]):
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in CLOCKS:
                owner = node.value
                last = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
                if last in CLOCK_OWNERS:
                    yield f"{name}:{node.lineno} reads {last}.{node.attr}"
            elif isinstance(node, ast.ImportFrom) and node.module == "time":
                yield f"{name}:{node.lineno} imports from time"


def _sleeps_in_tests() -> Iterator[str]:
    """Also `asyncio.sleep(t)`; `asyncio.sleep(0)` only gives way."""
    for name, tree in parsed(files_of_tests()):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                function = node.func
                called = getattr(function, "attr", getattr(function, "id", ""))
                gives_way = node.args and isinstance(node.args[0], ast.Constant)
                if called == "sleep" and not (gives_way and ast.literal_eval(node.args[0]) == 0):
                    yield f"{name}:{node.lineno} sleeps"


def _mocks_in_tests() -> Iterator[str]:
    for name, tree in parsed(files_of_tests()):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                if any("mock" in module.lower() for module in modules):
                    yield f"{name}:{node.lineno} imports a mock"


def _suppressions_without_a_reason() -> Iterator[str]:
    """`# noqa: X - why`, `# type: ignore[x]  # why`, or a reason above several such lines."""
    mark = re.compile(r"#\s*(noqa|type: ?ignore|pyright: ?ignore|pragma: no)")
    bare = re.compile(
        r"#\s*(noqa(: ?[A-Z0-9, ]+)?|(type|pyright): ?ignore(\[[\w, -]+\])?|pragma: no \w+)\s*$"
    )
    for path in [*product_files(), *files_of_tests()]:
        explained = False
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            if bare.search(line) and not explained:
                yield f"{path.relative_to(ROOT)}:{number} {line.strip()[-60:]}"
            elif not bare.search(line):
                explained = bool(line.lstrip().startswith("#") or mark.search(line))


def _commits_that_hold_the_lock() -> Iterator[str]:
    """`with connection:` of apsw: see ledger.transaction_sqlite."""
    for name, tree in parsed(product_files()):
        for node in ast.walk(tree):
            for item in node.items if isinstance(node, ast.With) else ():
                held = item.context_expr
                called = getattr(held, "attr", getattr(held, "id", ""))
                if called.lstrip("_") == "connection":
                    yield f"{name}:{node.lineno} commits within `with {called}`"


COUNTS = {
    "functions_over_70_lines": _functions_over_70_lines,
    "modules_over_500_lines": _modules_over_500_lines,
    "broad_excepts": _broad_excepts,
    "clock_reads_outside_the_clock": _clock_reads_outside_the_clock,
    "sleeps_in_tests": _sleeps_in_tests,
    "mocks_in_tests": _mocks_in_tests,
    "commits_that_hold_the_lock": _commits_that_hold_the_lock,
    "suppressions_without_a_reason": _suppressions_without_a_reason,
}


def test_every_ratchet_is_counted() -> None:
    assert set(LEFT) == set(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_the_count_only_falls(name: str) -> None:
    found = list(COUNTS[name]())
    assert len(found) <= LEFT[name], "\n".join(found)
    assert len(found) == LEFT[name], f"mended: set {name} = {len(found)} in ratchets.toml"
