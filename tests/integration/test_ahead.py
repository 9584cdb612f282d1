"""A node has its next film before the present one is done, and gives it back when it may not work."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from node.work.attempts import BEGUN
from tests.cluster import Node, cluster, form, wait_for
from tests.integration.test_orders import encoders_of, film


def attempts(node: Node, job: str) -> list[dict[str, Any]]:
    (task,) = node.cli("job", "show", job)["tasks"]
    found: list[dict[str, Any]] = task["attempts"]
    return found


def is_done(node: Node, job: str) -> bool:
    return bool(node.cli("job", "show", job)["state"] == "done")


def waiting(node: Node) -> set[str]:
    """Attempts whose films lie on the node as a whole while they wait for a slot."""
    films = (node.home / "cache" / "attempts").glob("*/source.mkv")
    return {film.parent.name for film in films if not (film.parent / BEGUN).exists()}


@pytest.mark.slow
def test_the_next_film_is_fetched_meanwhile_and_given_back_when_the_node_pauses(
    tmp_path: Path,
) -> None:
    with cluster(tmp_path, ["anna", "bert"]) as (anna, bert):
        form([anna, bert], "--slots", "1")
        anna.cli("nodes", "limit", "anna", "--slots", "0")
        words = ("submit", "--no-split", "--profile", "web")
        (known,) = anna.cli(*words, str(film(anna, "known.mkv", 3, "640x360")))["jobs"]
        wait_for("a speed is known", lambda: is_done(anna, known["id"]), 90)
        one, two = (
            anna.cli(*words, str(film(anna, name, 12, "640x360")))["jobs"][0]["id"]
            for name in ("one.mkv", "two.mkv")
        )
        # Long enough to be met at work: were it judged already, its slot would be the second's.
        wait_for("the first is encoded", lambda: encoders_of(bert), 60)
        # It stands still, and by the speed of such a film it should be done in some seconds.
        for pid in encoders_of(bert):
            os.kill(pid, signal.SIGSTOP)
        wait_for("the second is there", lambda: waiting(bert), 60)
        (ahead,) = attempts(anna, two)
        assert (ahead["state"], ahead["node"]) == ("leased", "bert")
        assert waiting(bert) == {ahead["id"]}
        assert "bert has it next" in str(anna.cli("job", "show", two)["why_waiting"])
        bert.cli("nodes", "pause", "bert")
        wait_for("it is given back", lambda: attempts(anna, two)[0]["state"] == "released", 20)
        assert attempts(anna, one)[0]["state"] == "leased"
        wait_for("nothing of it is left", lambda: not waiting(bert), 10)
        # Going on wakes what was stopped from outside, too.
        bert.cli("nodes", "resume", "bert")
        wait_for("both are done", lambda: is_done(anna, one) and is_done(anna, two), 90)
        assert [attempt["state"] for attempt in attempts(anna, one)] == ["accepted"]
        assert [attempt["state"] for attempt in attempts(anna, two)] == ["released", "accepted"]
