"""SIGTERM of every node in turn while they convert one film together: nothing is done twice."""

import contextlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from mesh.clock import monotonic_ms
from tests.cluster import Node, cluster, form, wait_for
from tests.integration.test_orders import encoders_of
from tests.local_api import ask
from tests.media_clips import make

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]

SECONDS = 240
LIMIT_MS = 30_000
"""As long as a node that stops finishes what runs."""
ATTEMPTS = """
SELECT id, task, node, state, frames, coalesce(error, '') FROM attempts ORDER BY granted_ms
"""


def film(path: Path) -> Path:
    return make(
        path, "-f", "lavfi", "-i", f"testsrc2=s=640x360:r=25:d={SECONDS}", "-f", "lavfi",
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
        ran: dict[str, int] = {}
        for node in nodes:
            begun = wait_for(f"{node.name} encodes", lambda node=node: encoding(node), 120)  # type: ignore[misc]  # mypy infers no lambda with a default
            begun_ms = monotonic_ms()
            assert node.stop() == 0
            took_ms = monotonic_ms() - begun_ms
            print(f"{node.name} encoded {begun} and was gone after {took_ms / 1_000:.1f} s")
            ran |= dict.fromkeys(begun, took_ms)
            node.start("--slots", "1").ready()
            open_chunks = [t for t in shown(owner, job["id"])["tasks"] if t["state"] != "kept"]
            assert open_chunks, "the film was done too soon"
        done = wait_for("it is over", lambda: over(owner, job["id"]), 300)
        assert done["state"] == "done", done["fault"]
        assert done["result"]["frames_in"] == done["result"]["frames_out"] == 25 * SECONDS
        rows = owner.cli("ledger", "query", ATTEMPTS)["rows"]
        print(f"{len(done['tasks'])} tasks, attempts: {dict(Counter(row[3] for row in rows))}")
        for row in rows:
            if row[3] not in ("kept", "accepted"):
                print("not kept:", row)
        kept = {row[0] for row in rows if row[3] in ("kept", "accepted")}
        assert {one for one, took_ms in ran.items() if took_ms < LIMIT_MS} <= kept
        assert {row[3] for row in rows} <= {"kept", "accepted", "released"}


def shown(node: Node, job: str) -> Any:
    return ask(node, f"/jobs/{job}")[1]


def over(node: Node, job: str) -> Any:
    return found if (found := shown(node, job))["state"] in ("done", "failed") else None


def encoding(node: Node) -> set[str]:
    """Attempts at which an FFmpeg of this node works now."""
    lines: list[str] = []
    for pid in encoders_of(node):
        with contextlib.suppress(psutil.Error):
            lines.append(" ".join(psutil.Process(pid).cmdline()))
    return {found for line in lines for found in re.findall(r"attempts/([a-z0-9-]+)/", line)}
