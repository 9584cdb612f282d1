"""The files of this repository, for tests that judge all of them."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("mesh", "ledger", "node")


def product_files() -> list[Path]:
    """Every Python file that is in the wheel."""
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def files_of_tests() -> list[Path]:
    """Every Python file of the tests but those that judge the repository: they name what they forbid."""
    return sorted(path for path in (ROOT / "tests").rglob("*.py") if "repository" not in path.parts)


def parsed(paths: list[Path]) -> Iterator[tuple[str, ast.Module]]:
    """Name relative to the root, and syntax tree."""
    for path in paths:
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text("utf-8"), str(path))


def project() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
