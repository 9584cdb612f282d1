"""The import contracts hold, and each of them fails when it is broken on purpose."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repository.tree import PACKAGES, ROOT, project

LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"


def _lint(tree: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LINT, "--no-cache"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "NO_COLOR": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("tree")
    nothing = shutil.ignore_patterns("__pycache__")
    for package in (*PACKAGES, "tests/repository"):
        shutil.copytree(ROOT / package, tree / package, ignore=nothing)
    for file in ("pyproject.toml", "tests/__init__.py"):
        shutil.copy(ROOT / file, tree / file)
    return tree


def test_the_contracts_hold() -> None:
    done = _lint(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("mesh/planted.py", "import ledger.commands", "node over ledger over mesh"),
        ("ledger/planted.py", "import node.settings.config", "node over ledger over mesh"),
        ("ledger/planted.py", "from mesh import effects", "ledger knows of mesh only"),
        ("mesh/planted.py", "import time", "are pure"),
        ("mesh/planted.py", "from mesh.clock import wall_ms", "are pure"),
        ("ledger/planted.py", "def late() -> None:\n    import asyncio", "are pure"),
        ("node/media/planted.py", "from pathlib import Path", "are pure"),
        ("node/planted.py", "import node.consensus.driver", "are pure"),
        ("mesh/planted_files.py", "import mesh.other_zmq", "Only composition roots"),
        ("node/requests.py", "import mesh.other_zmq", "Only composition roots"),
        ("node/cli/planted.py", "import node.consensus.driver", "The command line talks HTTP"),
        ("node/cli/planted.py", "import ledger.commands", "The command line opens the replica"),
    ],
)
def test_a_contract_that_is_broken_on_purpose_fails(
    copy: Path, file: str, line: str, contract: str
) -> None:
    planted, other = copy / file, copy / "mesh/other_zmq.py"
    before = planted.read_text() if planted.exists() else None
    planted.write_text((before or "") + f"\n{line}\n")
    other.write_text("")
    try:
        done = _lint(copy)
    finally:
        other.unlink()
        if before is None:
            planted.unlink()
        else:
            planted.write_text(before)
    assert done.returncode == 1, done.stdout + done.stderr
    broken = [text for text in done.stdout.splitlines() if text.endswith("BROKEN")]
    assert any(contract in text for text in broken), done.stdout


def test_every_contract_of_the_file_is_broken_once_above() -> None:
    cases = test_a_contract_that_is_broken_on_purpose_fails.pytestmark[0].args[1]  # type: ignore[attr-defined]  # pytest's mark
    tested = {case[2] for case in cases}
    for contract in project()["tool"]["importlinter"]["contracts"]:
        assert any(part in contract["name"] for part in tested), contract["name"]
