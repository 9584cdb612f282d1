"""A part whose worker hangs does not hold up its film: an idle node does it as well, and the first result counts."""

import os
import signal
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from mesh.clock import monotonic_ms
from node.media.run_ffmpeg import SILENT_MS
from tests.cluster import Node, cluster, form, wait_for
from tests.fingerprint import frames_of, numbers_of
from tests.integration.test_orders import encoders_of
from tests.local_api import ask
from tests.media_clips import make

SECONDS, FPS = 30, 10
"""Three chunks, each of a second's work or so."""
GONE_S = 2.0 + 1.0
"""As promised, and what it takes to look on a busy machine."""


def film(path: Path) -> Path:
    return make(
        path, "-f", "lavfi", "-i", f"testsrc2=s=320x180:r={FPS}:d={SECONDS}", "-c:v", "libx264",
        "-preset", "ultrafast", "-g", str(FPS), "-pix_fmt", "yuv420p",
    )  # fmt: skip


def show(node: Node, job: str) -> dict[str, Any]:
    return dict(ask(node, f"/jobs/{job}")[1])


def attempts(job: dict[str, Any]) -> list[dict[str, Any]]:
    return [attempt for task in job["tasks"] for attempt in task["attempts"]]


def overtaken(job: dict[str, Any]) -> list[dict[str, Any]]:
    return [a for a in attempts(job) if a["fault"] and a["fault"]["code"] == "overtaken"]


def files_of(node: Node) -> list[Path]:
    folders = [node.home / "cache" / name for name in ("attempts", "results", "pieces")]
    return [path for folder in folders if folder.exists() for path in folder.iterdir()]


def end(pid: int) -> None:
    """One that stands still would outlive a test that fails."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_part_that_hangs_is_done_by_another_node_meanwhile(tmp_path: Path) -> None:
    with ExitStack() as ended_at_last, cluster(tmp_path, ["anna", "bert", "cleo"]) as nodes:
        anna, _, cleo = nodes
        form(nodes, "--slots", "1")
        wait_for("all can work", lambda: all(n["slots"] for n in anna.cli("nodes")["nodes"]), 30)
        source = film(anna.films / "film.mkv")
        (made,) = anna.cli("submit", str(source), "--profile", "archive")["jobs"]
        job = made["id"]
        (hung,) = wait_for("cleo encodes", lambda: encoders_of(cleo), 60)
        ended_at_last.callback(end, hung)
        os.kill(hung, signal.SIGSTOP)
        hung_ms = monotonic_ms()
        twice = wait_for(
            "somebody helps",
            lambda: next((w for w in show(anna, job)["waiting"] if "does it as well" in w), ""),
            2 * SILENT_MS / 1_000,
        )
        assert "is slow on cleo" in twice
        wait_for("it has lost", lambda: overtaken(show(anna, job)), 120)
        lost_ms = monotonic_ms()
        wait_for("it is gone", lambda: not encoders_of(cleo) and not files_of(cleo), 30)
        gone_s = (monotonic_ms() - lost_ms) / 1_000
        print(f"its FFmpeg and its files were gone {gone_s:.2f} s after it had lost")
        assert gone_s < GONE_S
        done = wait_for("done", lambda: (j := show(anna, job))["state"] == "done" and j, 60)
        took_s = (monotonic_ms() - hung_ms) / 1_000
        print(f"done {took_s:.1f} s after a worker hung, which itself is told after a minute")
        (lost,) = overtaken(done)
        assert (lost["node"], lost["state"]) == ("cleo", "abandoned")
        assert "another machine was faster" in lost["fault"]["what"]
        parts = [task for task in done["tasks"] if task["kind"] != "assemble"]
        for task in parts:
            assert [a["state"] for a in task["attempts"]].count("kept") == 1
        assert [a["state"] for a in attempts(done)].count("accepted") == 1
        lines = ask(anna, f"/jobs/{job}/history")[1]["lines"]
        assert any("a second time beside cleo" in line["what"] for line in lines)
        before, after = frames_of(source), frames_of(Path(done["result"]["output"]))
        assert numbers_of(after, before) == list(range(FPS * SECONDS))
        wait_for("no file is left", lambda: not [f for n in nodes for f in files_of(n)], 20)
        assert not [pid for node in nodes for pid in encoders_of(node)]
