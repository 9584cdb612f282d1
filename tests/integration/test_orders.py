"""Orders about jobs at a real node: cancel, retry and priority, of what waits and of what runs."""

from pathlib import Path
from typing import Any

import pytest

from mesh.clock import monotonic_ms
from tests.cluster import Node, cluster, form, wait_for
from tests.media_clips import make

MANY = 1_200
CANCEL_MS_MAX = 2_000
"""What is promised: a cancelled FFmpeg is gone within two seconds."""
SLACK_MS = 1_500
"""Two commands of the command line, on a machine that does other things."""


def film(node: Node, name: str, seconds: int = 1, size: str = "64x64") -> Path:
    picture = f"testsrc2=size={size}:rate=25:duration={seconds}"
    return make(node.films / name, "-f", "lavfi", "-i", picture, "-c:v", "mpeg4")


def states(node: Node) -> dict[str, int]:
    found: dict[str, int] = {s: n for s, n in node.cli("status")["jobs"].items() if n}
    return found


def encoders_of(node: Node) -> list[int]:
    """Processes of FFmpeg that work in the node's home."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(node.home / "cache" / "attempts").encode() in words:
                found.append(int(entry.name))
    return found


@pytest.mark.slow
def test_what_runs_is_cancelled_and_comes_back(tmp_path: Path) -> None:
    with cluster(tmp_path, ["anna"]) as (anna,):
        form([anna], "--slots", "1")
        long = film(anna, "long.mkv", 60, "1280x720")
        (job,) = anna.cli("submit", str(long), "--profile", "archive")["jobs"]
        wait_for("FFmpeg runs", lambda: encoders_of(anna), 60)
        begun_ms = monotonic_ms()
        assert anna.cli("cancel", job["id"])["changed"] == [job["id"]]
        wait_for("FFmpeg is gone", lambda: not encoders_of(anna), 10)
        assert monotonic_ms() - begun_ms < CANCEL_MS_MAX + SLACK_MS
        shown = anna.cli("job", "show", job["id"])
        assert shown["state"] == "cancelled"
        assert shown["fault"]["code"] == "cancelled"
        assert not Path(shown["output"]).exists()
        again = anna.call("cancel", job["id"])
        assert again.returncode == 1
        assert "cancelled already" in again.stdout
        short = film(anna, "short.mkv")
        (other,) = anna.cli("submit", str(short), "--profile", "web")["jobs"]
        wait_for("the other is done", lambda: states(anna).get("done"), 60)
        assert anna.call("retry", other["id"]).returncode == 1
        assert anna.cli("retry", "--all", "--status", "cancelled")["order"]["changed"] == 1
        wait_for("it runs again", lambda: encoders_of(anna), 60)
        assert anna.cli("priority", job["id"], "-7")["changed"] == [job["id"]]
        assert anna.cli("job", "show", job["id"])["priority"] == -7
        assert anna.cli("cancel", "--all")["order"]["changed"] == 1
        assert anna.call("cancel").returncode == 2


def test_many_wait_and_are_cancelled_by_one_order(tmp_path: Path) -> None:
    with cluster(tmp_path, ["anna"]) as (anna,):
        form([anna], "--slots", "0")
        one = film(anna, "a.mkv")
        folder = anna.films / "many"
        folder.mkdir()
        for number in range(MANY):
            (folder / f"{number}.mkv").hardlink_to(one)
        anna.cli("submit", str(folder), "--profile", "web")
        (job,) = anna.cli("submit", str(one), "--profile", "mobile")["jobs"]
        shown: Any = anna.cli("cancel", "--folder", str(folder), "--profile", "web")
        assert shown["order"]["done"]
        assert shown["order"]["changed"] == MANY
        assert states(anna)["cancelled"] == shown["order"]["changed"]
        wait_for(
            "why the other one waits",
            lambda: any("has no slots" in x for x in anna.cli("job", "show", job["id"])["waiting"]),
            20,
        )
