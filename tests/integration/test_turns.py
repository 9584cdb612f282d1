"""SIGTERM of every node in turn while they convert one film together: nothing is done twice."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mesh.clock import monotonic_ms
from tests.cluster import Node, cluster, form, wait_for
from tests.local_api import ask
from tests.media_clips import make

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]

SECONDS = 240
LIMIT_MS = 30_000
"""As long as a node that stops finishes what runs."""
UNBEGUN_MS = 5_000
"""What was granted to a node that stops is given back as soon as it hears of it."""
ATTEMPTS = """
SELECT task, node, state, frames, coalesce(ended_ms, 0) - granted_ms, coalesce(error, '')
FROM attempts ORDER BY granted_ms
"""


def film(path: Path) -> Path:
    return make(
        path, "-f", "lavfi", "-i", f"testsrc2=s=960x540:r=25:d={SECONDS}", "-f", "lavfi",
        "-i", f"sine=frequency=440:sample_rate=48000:d={SECONDS}", "-c:v", "libx264",
        "-preset", "ultrafast", "-g", "25", "-pix_fmt", "yuv420p", "-c:a", "aac", "-b:a", "64k",
    )  # fmt: skip


def test_every_node_stops_in_turn_and_no_chunk_is_done_twice(tmp_path: Path) -> None:
    with cluster(tmp_path, ["one", "two", "three"]) as nodes:
        form(nodes, "--slots", "1")
        wait_for("three voters", lambda: len(nodes[0].status()["voters"]) == 3, 20)
        wait_for(
            "all can work", lambda: all(n["slots"] for n in nodes[0].cli("nodes")["nodes"]), 30
        )
        owner = nodes[0]
        (job,) = owner.cli("submit", str(film(owner.films / "film.mp4")), "--profile", "web")[
            "jobs"
        ]
        for node in nodes:
            wait_for(f"{node.name} works", lambda node=node: works(owner, node), 120)  # type: ignore[misc]  # mypy infers no lambda with a default
            begun_ms = monotonic_ms()
            assert node.stop() == 0
            print(f"{node.name} was gone after {(monotonic_ms() - begun_ms) / 1_000:.1f} s")
            node.start("--slots", "1").ready()
            open_chunks = [t for t in shown(owner, job["id"])["tasks"] if t["state"] != "kept"]
            assert open_chunks, "the film was done too soon"
        done = wait_for("it is over", lambda: over(owner, job["id"]), 300)
        assert done["state"] == "done", done["fault"]
        assert done["result"]["frames_in"] == done["result"]["frames_out"] == 25 * SECONDS
        rows = owner.cli("ledger", "query", ATTEMPTS)["rows"]
        print(f"{len(done['tasks'])} tasks, attempts: {dict(Counter(row[2] for row in rows))}")
        ended = [row for row in rows if row[2] not in ("kept", "accepted")]
        for row in ended:
            print("not kept:", row)
        assert not [row for row in ended if row[3]], "it was encoded and is lost"
        assert not [r for r in ended if r[2] == "released" and UNBEGUN_MS < r[4] < LIMIT_MS]
        assert {row[2] for row in ended} <= {"released"}


def shown(node: Node, job: str) -> Any:
    return ask(node, f"/jobs/{job}")[1]


def over(node: Node, job: str) -> Any:
    return found if (found := shown(node, job))["state"] in ("done", "failed") else None


def works(asked: Node, node: Node) -> bool:
    """Whether it encodes something of the film."""
    nodes = ask(asked, "/nodes")[1]["nodes"]
    return any(one["name"] == node.name and one["jobs"] for one in nodes)
