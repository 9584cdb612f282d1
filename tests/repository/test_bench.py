"""Every bench can be run and compared by a program."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repository.tree import ROOT

BENCHES = sorted((ROOT / "bench").glob("bench_*.py"))


@pytest.mark.parametrize("bench", BENCHES, ids=lambda path: path.stem)
def test_a_bench_is_described_and_takes_quick(bench: Path) -> None:
    assert f"`{bench.name}`" in (ROOT / "bench" / "README.md").read_text("utf-8")
    done = subprocess.run(
        [sys.executable, bench, "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout


def test_two_runs_are_compared_by_their_medians(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    lines = [json.dumps({"bench": "x", "ratio": ratio, "quick": True}) for ratio in (1, 9, 2)]
    old.write_text("a table\n" + "\n".join(lines))
    new.write_text(json.dumps({"bench": "x", "ratio": 3}))
    argv = [sys.executable, ROOT / "bench" / "compare.py", old, new]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split() == ["x", "ratio", "2.000", "3.000", "+50.0", "%"]


def test_runs_of_different_benches_are_not_compared(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).write_text(json.dumps({"bench": name, "ratio": 1}))
    argv = [sys.executable, ROOT / "bench" / "compare.py", tmp_path / "old", tmp_path / "new"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
