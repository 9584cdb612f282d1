"""A survivor of two goes on alone by a person's order, and what that means for the other."""

import json
from pathlib import Path
from typing import Any

from tests.cluster import Node, cluster, form, wait_for


def learner_and_voter(one: Node, two: Node) -> tuple[Node, Node]:
    form([one, two])
    wait_for("a learner", lambda: one.status()["learners"], 10)
    voter = one if one.status()["voters"] == [one.name] else two
    return (two if voter is one else one), voter


def epoch(node: Node) -> Any:
    return json.loads(node.call("ledger", "recover", "--force", "--json").stdout)["epoch"]


def test_a_survivor_says_what_is_lost_and_goes_on_by_force(tmp_path: Path) -> None:
    with cluster(tmp_path, ["one", "two"]) as (one, two):
        survivor, voter = learner_and_voter(one, two)
        voter.kill()
        note = wait_for(
            "the survivor says what is lost",
            lambda: next((n for n in survivor.status()["notes"] if voter.name in n), None),
            20,
        )
        assert f"the only voter, {voter.name}, cannot be reached" in note
        assert "`mesh-cli ledger recover --force`" in note
        assert survivor.status()["quorum"] is False
        wait_for("so does its log", lambda: "nothing is decided" in survivor.log_tail(), 20)
        # Not while it runs, not without a clear word.
        running = survivor.call("ledger", "recover", "--force")
        assert (running.returncode, "error[in_use]" in running.stderr) == (6, True), running
        assert survivor.stop() == 0
        asked = survivor.call("ledger", "recover")
        assert (asked.returncode, "--force" in asked.stderr) == (2, True), asked
        first = epoch(survivor)
        assert first > 1
        survivor.start().ready()
        assert survivor.status()["voters"] == [survivor.name]
        survivor.token()
        members = {node["name"]: node["vote"] for node in survivor.cli("nodes")["nodes"]}
        assert members == {survivor.name: "voter", voter.name: "none"}
        # And once more: each time the epoch grows.
        assert survivor.stop() == 0
        assert epoch(survivor) > first
