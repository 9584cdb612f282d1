"""A mesh from one node to five, which loses two and goes back to one, while every node writes."""

from pathlib import Path

import pytest

from tests.cluster import cluster
from tests.growing import Growth, errors_in, line

VOTER_SILENT_MS = 4_000
"""Instead of a minute; the steps are the same."""
POLITE_MS = 10_000
"""Nobody waits for an election when nodes come or go politely; the rest is for a machine that does other things."""
KILLED_MS = 20_000
"""An election, or the time after which the learner of two is not waited for; and the same."""


@pytest.mark.slow
def test_from_one_to_five_and_back_while_all_write(tmp_path: Path) -> None:
    settings = tmp_path / "node.toml"
    settings.write_text(f"slots = 0\n[timings]\nvoter-silent-ms = {VOTER_SILENT_MS}\n")
    with cluster(tmp_path, ["one", "two", "three", "four", "five"]) as nodes:
        mesh = Growth(nodes, ["--config", str(settings)], lambda step: print(line(step)))
        mesh.found()
        mesh.grow(2, voters=1)
        mesh.grow(3, voters=3)
        mesh.grow(5, voters=3)
        # Two learners stand in, one after the other; then nobody is left to.
        mesh.kill(mesh.coordinator(), voters=3)
        mesh.kill(mesh.follower(), voters=3)
        mesh.bury(voters=3)
        mesh.remove(mesh.coordinator(), by=mesh.follower(), voters=1)
        mesh.remove(mesh.other(), by=mesh.coordinator(), voters=1)
        mesh.finish()
        assert mesh.written.jobs
        assert mesh.lost() == []
        for step in mesh.steps:
            killed = step.what.endswith("killed")
            assert step.gap_ms < (KILLED_MS if killed else POLITE_MS), line(step)
        assert [error for node in nodes for error in errors_in(node)] == []
