"""The code of an earlier version, taken from this repository's history."""

import functools
import io
import subprocess
import tarfile
from pathlib import Path
from typing import Final

SCHEMA_1: Final = "4d4da79ad27cfad9e95b24da40046e47b82ae014"
"""The last commit on main whose ledger has schema 1 and nothing else."""
_ROOT: Final = Path(__file__).parent.parent
_PACKAGES: Final = ("mesh", "ledger", "node")


@functools.cache
def missing(commit: str) -> str | None:
    """None where the history holds this commit, else the reason to skip a test with."""
    try:
        done = subprocess.run(
            ["git", "-C", str(_ROOT), "cat-file", "-e", f"{commit}^{{commit}}"],
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        return "no git here"
    return f"commit {commit} is not in this clone" if done.returncode else None


def version_of(commit: str, folder: Path) -> Path:
    """The packages as they were then, in this folder; for `Node.code`."""
    packed = subprocess.run(
        ["git", "-C", str(_ROOT), "archive", commit, *_PACKAGES],
        capture_output=True,
        check=True,
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder
