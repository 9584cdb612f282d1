"""What is installed: our three packages and nothing beside them, under names that are ours alone."""

import ast
import importlib.metadata
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.repository.tree import PACKAGES, ROOT, parsed, product_files, project


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=60,
    )
    (made,) = folder.glob("*.whl")
    return made


def test_the_wheel_holds_our_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    info = f"darkstream-{project()['project']['version']}.dist-info"
    assert {name.partition("/")[0] for name in names} == {*PACKAGES, info}
    assert not [name for name in names if "__pycache__" in name]
    assert f"{info}/licenses/LICENSE" in names


def test_the_wheel_holds_every_file_that_the_program_reads(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    wanted = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for suffix in ("py", "sql", "typed", "html", "css", "js", "svg")
        for path in (ROOT / package).rglob(f"*.{suffix}")
        if "__pycache__" not in path.parts
    }
    assert {f"{package}/py.typed" for package in PACKAGES} <= wanted
    assert wanted <= names


def test_each_package_name_belongs_to_our_distribution_alone() -> None:
    owners = importlib.metadata.packages_distributions()
    for package in PACKAGES:
        assert set(owners.get(package, ["darkstream"])) == {"darkstream"}, package
    for distribution in importlib.metadata.distributions():
        if distribution.name != "darkstream":
            tops = {str(file).partition("/")[0] for file in distribution.files or ()}
            assert not tops & set(PACKAGES), distribution.name


def test_console_scripts_are_ours_to_name() -> None:
    assert set(project()["project"]["scripts"]) == {"mesh-node", "mesh-cli"}


def test_every_import_is_absolute() -> None:
    for name, tree in parsed(product_files()):
        for node in ast.walk(tree):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{name}:{node.lineno}"
