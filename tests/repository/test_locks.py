"""The lock files pin exactly what pyproject.toml asks for, with hashes and without a host's name."""

import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.repository.tree import ROOT, project

LOCKS = {"requirements.lock": ("build",), "requirements-dev.lock": ("build", "dev")}


def _asked(extras: tuple[str, ...]) -> list[Requirement]:
    table = project()["project"]
    words = table["dependencies"] + [w for e in extras for w in table["optional-dependencies"][e]]
    return [Requirement(word) for word in words]


def _pins(text: str) -> dict[str, list[str]]:
    """Versions by name: several where they differ by Python version."""
    pins: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)==([^\s;]+)", text, re.MULTILINE):
        pins.setdefault(name, []).append(version)
    return pins


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_what_the_project_asks_for(lock: str) -> None:
    pins = _pins((ROOT / lock).read_text())
    for requirement in _asked(LOCKS[lock]):
        versions = pins.get(canonicalize_name(requirement.name))
        assert versions, f"{requirement} is not in {lock}: make lock"
        for version in versions:
            assert requirement.specifier.contains(version), f"{requirement} but {version}"


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_nothing_that_nobody_asks_for_any_more(lock: str) -> None:
    asked = {canonicalize_name(requirement.name) for requirement in _asked(LOCKS[lock])}
    blocks = re.split(r"^(?=[a-z0-9])", (ROOT / lock).read_text(), flags=re.MULTILINE)
    direct = {
        block.partition("==")[0] for block in blocks if "darkstream (pyproject.toml)" in block
    }
    assert direct == asked, "make lock"


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_hashes_and_no_host_is_named(lock: str) -> None:
    text = (ROOT / lock).read_text()
    for block in re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE):
        if block.strip() and not block.startswith("#"):
            assert "--hash=sha256:" in block, block.splitlines()[0]
    assert "://" not in text
    assert "--index-url" not in text


def test_both_locks_pin_the_same_versions() -> None:
    runtime, everything = (_pins((ROOT / lock).read_text()) for lock in LOCKS)
    assert {name: everything[name] for name in runtime} == runtime
