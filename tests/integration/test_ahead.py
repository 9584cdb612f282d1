"""A node has its next film before the present one is done, and gives it back when it may not work."""

from pathlib import Path
from typing import Any

import pytest

from tests.cluster import Node, cluster, form, wait_for
from tests.integration.test_orders import film


def attempts(node: Node, job: str) -> list[dict[str, Any]]:
    (task,) = node.cli("job", "show", job)["tasks"]
    found: list[dict[str, Any]] = task["attempts"]
    return found


def is_done(node: Node, job: dict[str, str]) -> bool:
    return bool(node.cli("job", "show", job["id"])["state"] == "done")


def fetched(node: Node) -> set[str]:
    """Attempts whose films lie on the node as a whole, and have no result yet."""
    folders = (node.home / "cache" / "attempts").glob("*/source*")
    return {path.parent.name for path in folders if not [*path.parent.glob("result*")]}


@pytest.mark.slow
def test_the_next_film_is_fetched_meanwhile_and_given_back_when_the_node_pauses(
    tmp_path: Path,
) -> None:
    with cluster(tmp_path, ["anna", "bert"]) as (anna, bert):
        form([anna, bert], "--slots", "1")
        anna.cli("nodes", "limit", "anna", "--slots", "0")
        words = ("submit", "--no-split", "--profile", "web")
        (known,) = anna.cli(*words, str(film(anna, "known.mkv", 2, "640x360")))["jobs"]
        wait_for("a speed is known", lambda: is_done(anna, known), 90)
        jobs = [
            anna.cli(*words, str(film(anna, name, 4, "1280x720")))["jobs"][0]
            for name in ("one.mkv", "two.mkv")
        ]
        # By the speed of the first, each is a matter of seconds: the second is leased meanwhile.
        wait_for("both are leased", lambda: all(attempts(anna, j["id"]) for j in jobs), 60)
        bert.cli("nodes", "pause", "bert")
        one, two = (attempts(anna, j["id"])[0] for j in jobs)
        assert one["node"] == two["node"] == "bert"
