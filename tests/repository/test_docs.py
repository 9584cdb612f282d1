"""Docs are tests: what a person can meet stands in docs/, and the generated pages say what the code says."""

import ast
import re
import subprocess
import sys

import pytest

from tests.repository.tree import ROOT, parsed, product_files

GENERATED = ("errors.md", "configuration.md", "cli.md", "views.md", "profiles.md")


def _page(name: str) -> str:
    return (ROOT / "docs" / name).read_text("utf-8")


def test_the_generated_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}: make docs"


def _codes() -> set[str]:
    """Every stable code in the sources: of an error's class, or given to an outcome."""
    found: set[str] = set()
    for _, tree in parsed(product_files()):
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
                for line in node.body:
                    names = getattr(line, "targets", [getattr(line, "target", None)])
                    if any(getattr(name, "id", "") == "code" for name in names):
                        value = getattr(line, "value", None)
                        if isinstance(value, ast.Constant):
                            found.add(str(value.value))
            elif isinstance(node, ast.Call):
                found |= {
                    str(word.value.value)
                    for word in node.keywords
                    if word.arg == "code"
                    and isinstance(word.value, ast.Constant)
                    and isinstance(word.value.value, str)
                    and word.value.value
                }
    return found


def test_every_error_code_is_in_the_docs() -> None:
    text = _page("errors.md")
    codes = _codes()
    assert len(codes) > 15
    missing = sorted(code for code in codes if f"`{code}`" not in text)
    assert not missing, missing


def test_every_link_between_the_pages_leads_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")]:
        if ".venv" in page.parts or "demo-output" in page.parts:
            continue
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in ("README.md", "CONTRIBUTING.md"):
        asked = set(re.findall(r"`make ([a-z]+)", (ROOT / page).read_text("utf-8")))
        assert asked <= targets, f"{page}: {asked - targets}"


@pytest.mark.parametrize("page", GENERATED)
def test_a_page_says_that_it_is_generated(page: str) -> None:
    assert "Written by docs/generate.py" in _page(page)
