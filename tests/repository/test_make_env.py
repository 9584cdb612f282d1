"""deploy/make-env.sh: finds a Python, installs what the lock pins, and then leaves things alone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repository.tree import ROOT

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the script is for POSIX shells")

# Stands for a Python: answers the script's questions, makes a `.venv`, and notes what it was asked.
PYTHON = """#!/bin/sh
case "$*" in
    *version_info*) exit {new_enough};;
    *ensurepip*) exit {has_venv};;
    *--version*) echo "Python 3.x";;
    "-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python; touch .venv/pyvenv.cfg;;
    "-m pip"*) echo "$*" >>"{notes}";;
esac
"""


class Machine:
    """A copy of what the script reads, and a PATH that holds only a few tools and fake Pythons."""

    def __init__(self, folder: Path) -> None:
        self.tree, self.path, self.notes = folder / "tree", folder / "bin", folder / "notes"
        (self.tree / "deploy").mkdir(parents=True)
        self.path.mkdir()
        shutil.copy(ROOT / "deploy" / "make-env.sh", self.tree / "deploy")
        for name in ("requirements-dev.lock", "pyproject.toml"):
            (self.tree / name).write_text(name)
        for tool in ("sh", "dirname", "cksum", "rm", "mkdir", "cp", "touch"):
            (self.path / tool).symlink_to(shutil.which(tool) or sys.exit(f"no {tool}"))

    def python(self, name: str, *, new_enough: bool = True, has_venv: bool = True) -> None:
        text = PYTHON.format(
            new_enough=int(not new_enough), has_venv=int(not has_venv), notes=self.notes
        )
        (self.path / name).write_text(text)
        (self.path / name).chmod(0o755)

    def make_env(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.path / "sh", self.tree / "deploy" / "make-env.sh"],
            env={"PATH": str(self.path), "HOME": str(self.tree)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def installed(self) -> list[str]:
        return self.notes.read_text().splitlines() if self.notes.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_no_python_gets_one_line(machine: Machine) -> None:
    machine.python("python3", new_enough=False)
    done = machine.make_env()
    assert done.returncode == 2
    assert done.stderr.startswith("error[env]: no Python 3.11 or newer found; ")
    assert done.stderr.count("\n") == 1


def test_a_missing_venv_module_names_the_package_to_install(machine: Machine) -> None:
    machine.python("python3.12", has_venv=False)
    done = machine.make_env()
    assert done.returncode == 2
    assert "python3.12 has no venv module; apt install python3-venv" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_python_with_venv_is_taken_before_a_newer_one_without(machine: Machine) -> None:
    machine.python("python3.14", has_venv=False)
    machine.python("python3.11")
    assert machine.make_env().returncode == 0
    assert len(machine.installed()) == 2


def test_the_lock_is_installed_with_hashes_and_the_project_without_the_network(
    machine: Machine,
) -> None:
    machine.python("python3")
    assert machine.make_env().returncode == 0
    lock, project = machine.installed()
    assert "--no-deps --require-hashes -r requirements-dev.lock" in lock
    assert "--no-deps --no-build-isolation --no-index -e ." in project


def test_a_second_run_does_nothing_and_a_changed_file_is_noticed(machine: Machine) -> None:
    machine.python("python3")
    machine.make_env()
    machine.notes.unlink()
    assert machine.make_env().returncode == 0
    assert machine.installed() == []
    (machine.tree / "pyproject.toml").write_text("changed")
    machine.make_env()
    assert len(machine.installed()) == 1, "only the project"
    (machine.tree / "requirements-dev.lock").write_text("changed")
    machine.make_env()
    assert len(machine.installed()) == 3


def test_a_folder_that_is_no_environment_is_not_deleted(machine: Machine) -> None:
    machine.python("python3")
    (machine.tree / ".venv").mkdir()
    (machine.tree / ".venv" / "mine").write_text("precious")
    assert machine.make_env().returncode == 2
    assert (machine.tree / ".venv" / "mine").read_text() == "precious"


def test_the_ci_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "make test"
