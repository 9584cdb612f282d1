"""A survivor of two goes on alone by a person's order, and what that means for the other."""

import json
import shutil
from pathlib import Path
from typing import Any

from tests.cluster import Node, cluster, form, wait_for
from tests.films import make_film


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
        # The survivor knows nothing of this job: while it was away, the voter went on alone.
        survivor.kill()
        film = make_film(voter.films / "film.mp4", seconds=60, size="1280x720")
        wait_for("its silence is seen", lambda: voter.status()["nodes_alive"] == 1, 20)
        (job,) = voter.cli("submit", str(film), "--profile", "archive")["jobs"]
        lost = job["id"]
        voter.kill()
        survivor.start()
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
        # The old voter comes back with a past of its own: it gives way and lists what only it knew.
        survivor_mesh = survivor.status()["mesh"]
        voter.start()
        wait_for("it is overtaken", lambda: "overtaken" in voter.log_tail(), 20)
        wait_for("it is back", lambda: voter.status()["learners"] == [voter.name], 20)
        assert voter.status()["voters"] == [survivor.name]
        assert voter.status()["mesh"] == survivor_mesh
        survivor.token()
        told = wait_for("it tells", lambda: list(voter.home.glob("left-behind-*.json")), 20)
        known = json.loads(told[0].read_text())["jobs"]
        assert [(job["id"], job["difference"]) for job in known] == [(lost, "unknown")]
        (former,) = (voter.home / "former").iterdir()
        assert {"raft.db", "ledger.db"} <= {path.name for path in former.iterdir()}
        # It stays what it is now after a restart, and may vote again.
        assert survivor.stop() == 0
        wait_for("the vote moved", lambda: voter.status()["voters"] == [voter.name], 10)
        survivor.start().ready()
        assert voter.stop() == 0
        # And once more: each time the epoch grows.
        assert survivor.stop() == 0
        assert epoch(survivor) > first


def test_a_copied_data_directory_is_noticed_and_both_are_told(tmp_path: Path) -> None:
    with cluster(tmp_path, ["one", "two", "copy"]) as (one, two, copy):
        form([one, two])
        assert two.stop() == 0
        shutil.copytree(two.home, copy.home)
        (copy.home / "api.address").unlink()
        copy.name = two.name
        for node in (two, copy):
            node.start()
        for node in (one, two, copy):
            note = wait_for(
                f"{node.home} says it",
                lambda node=node: next((n for n in node.status()["notes"] if "twin_" in n), None),
                40,
            )
            assert note.startswith("error[twin_identity]: two running processes speak for node two")
            assert "twin_identity" in node.log_tail()


def test_those_that_were_lost_return_however_they_are_started(tmp_path: Path) -> None:
    with cluster(tmp_path, ["one", "two", "three"]) as (one, two, three):
        one.start("--new-mesh").ready()
        token = one.token(2)
        for node in (two, three):
            node.start("--join", token)
        wait_for("three voters", lambda: len(one.status()["voters"]) == 3, 20)
        for node in (one, two, three):
            node.kill()
        assert epoch(three) > 1
        three.start("--join", token).ready()
        mesh = three.status()["mesh"]
        # As a service manager does it: with the words of the first day.
        one.start("--new-mesh")
        two.start("--join", token)
        for node in (one, two, three):
            wait_for(
                f"{node.name} sees three voters",
                lambda node=node: len((s := node.status())["voters"]) == 3 and s["mesh"] == mesh,
                60,
            )
