"""A film in pieces over real nodes: every frame once, whoever dies meanwhile."""

from pathlib import Path
from typing import Any

import pytest

from tests.cluster import Node, cluster, form, wait_for
from tests.fingerprint import farthest, frames_of, numbers_of
from tests.media_clips import make

SECONDS = 30


def film(path: Path) -> Path:
    """Half a minute with sound, a keyframe each second: three chunks."""
    return make(
        path, "-f", "lavfi", "-i", f"testsrc2=s=160x120:r=25:d={SECONDS}", "-f", "lavfi",
        "-i", f"sine=frequency=440:sample_rate=48000:d={SECONDS}", "-c:v", "libx264", "-preset", "fast",
        "-g", "25", "-pix_fmt", "yuv420p", "-c:a", "aac", "-b:a", "64k",
    )  # fmt: skip


def show(node: Node, job: str) -> dict[str, Any]:
    return dict(node.cli("job", "show", job))


def whole(result: Path, source: Path) -> None:
    before, after = frames_of(source), frames_of(result)
    assert numbers_of(after, before) == list(range(25 * SECONDS)) == list(range(len(before)))
    assert farthest(after, before) < 0.001


def states(job: dict[str, Any]) -> dict[str, str]:
    return {task["id"].rpartition("-")[2]: task["state"] for task in job["tasks"]}


@pytest.mark.slow
def test_three_nodes_convert_one_film_and_one_of_them_dies(tmp_path: Path) -> None:
    with cluster(tmp_path, ["one", "two", "three"]) as nodes:
        form(nodes)
        wait_for("three voters", lambda: len(nodes[0].status()["voters"]) == 3, 20)
        wait_for(
            "all can work", lambda: all(n["slots"] for n in nodes[0].cli("nodes")["nodes"]), 30
        )
        owner = nodes[1]
        source = film(owner.films / "film.mp4")
        (job,) = owner.cli("submit", str(source), "--profile", "web")["jobs"]
        first = wait_for(
            "chunks are leased",
            lambda: (j := show(owner, job["id"]))["state"] == "running" and j,
            60,
        )
        assert list(states(first)) == ["audio", "0", "1", "2", "film"]
        assert first["plan"]["split"]["frames"] == 25 * SECONDS
        nodes[2].kill()
        done = wait_for("it is done", lambda: _ended(show(owner, job["id"])), 150)
        assert done["state"] == "done", done["fault"]
        assert set(states(done).values()) == {"kept", "accepted"}
        workers = {a["node"] for t in done["tasks"] for a in t["attempts"] if a["state"] == "kept"}
        assert len(workers) > 1
        whole(Path(done["result"]["output"]), source)
        assert done["result"]["frames_in"] == done["result"]["frames_out"] == 25 * SECONDS
        wait_for(
            "nothing of it is left but the film",
            lambda: not list((owner.home / "cache" / "pieces").iterdir()),
            30,
        )


@pytest.mark.slow
def test_the_owner_dies_and_goes_on_with_what_it_kept(tmp_path: Path) -> None:
    with cluster(tmp_path, ["one", "two", "three"]) as nodes:
        form(nodes)
        wait_for("three voters", lambda: len(nodes[0].status()["voters"]) == 3, 20)
        wait_for(
            "all can work", lambda: all(n["slots"] for n in nodes[0].cli("nodes")["nodes"]), 30
        )
        owner, other = nodes[2], nodes[0]
        source = film(owner.films / "film.mp4")
        (job,) = owner.cli("submit", str(source), "--profile", "web")["jobs"]
        wait_for("a chunk is kept", lambda: "kept" in states(show(other, job["id"])).values(), 90)
        owner.kill()
        before = _kept(show(other, job["id"]))
        owner.start().ready(60)
        done = wait_for("it is done", lambda: _ended(show(other, job["id"])), 150)
        assert done["state"] == "done", done["fault"]
        assert before <= _kept(done), "what was kept is not encoded again"
        whole(Path(done["result"]["output"]), source)
        again = owner.cli(
            "convert", str(source), "--profile", "mobile", "--no-split", timeout_s=120
        )
        (job,) = again["jobs"]
        in_one = show(owner, job["id"])
        assert [task["kind"] for task in in_one["tasks"]] == ["whole"]
        assert in_one["plan"]["why_whole"] == "it was asked for"


def _ended(job: dict[str, Any]) -> dict[str, Any] | None:
    return job if job["state"] in ("done", "failed") else None


def _kept(job: dict[str, Any]) -> set[str]:
    return {a["id"] for t in job["tasks"] for a in t["attempts"] if a["state"] == "kept"}
