"""A command of the ledger is what members of earlier versions read: it never changes, new ones are added."""

from tests.repository.kept_commands import commands_text
from tests.repository.tree import ROOT


def test_the_commands_are_those_that_other_versions_read() -> None:
    kept = (ROOT / "tests" / "repository" / "commands.txt").read_text("utf-8")
    now = commands_text()
    changed = sorted(set(kept.splitlines()) ^ set(now.splitlines()))
    # A new one belongs into commands.SINCE, with the schema that it comes with.
    assert not changed, (
        "commands differ from commands.txt: in a mesh of two versions replicas would part, or the "
        "older nodes stop.  Make a new kind for a new schema (ledger/DESIGN.md, Schema and "
        "migrations); then python -m tests.repository.kept_commands > tests/repository/commands.txt"
    )
