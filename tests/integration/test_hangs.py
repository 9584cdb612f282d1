"""What hangs is noticed and replaced: an FFmpeg and a whole worker that are stopped, a hundred times each."""

import asyncio
import os
import signal
from pathlib import Path

import psutil
import pytest

from mesh.clock import monotonic_ms
from node.media.child import Limits
from node.media.progress import FFmpegProgress
from node.media.run_ffmpeg import SILENT_MS, WATCH_MS, FFmpegRunner
from tests.cluster import Node, cluster, form, wait_for
from tests.integration.test_orders import encoders_of, film
from tests.local_api import ask
from tests.media_clips import ffmpeg

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(1_500)]

ROUNDS = 100
SHORT_SILENCE_MS = 600
LEASES = """
[timings]
worker_heartbeat_ms = 300
worker_suspect_ms = 700
hand_back_ms = 1500
worker_silent_ms = 2000
"""


def test_a_hundred_stopped_ffmpegs_leave_nothing_behind(tmp_path: Path) -> None:
    """At the runner, whose silence is shortened: a minute each would take two hours."""
    runner = FFmpegRunner(silent_ms=SHORT_SILENCE_MS)
    took: list[int] = []

    async def one_round(number: int) -> None:
        stopped_ms: list[int] = []

        def stop(block: FFmpegProgress) -> None:
            if not stopped_ms and block.frame > 0:
                (group,) = runner.encoding
                stopped_ms.append(monotonic_ms())
                os.killpg(group, signal.SIGSTOP)

        out = tmp_path / f"{number}.mkv"
        words = [ffmpeg(), "-nostdin", "-progress", "pipe:1", "-stats_period", "0.1", "-f", "lavfi",
                 "-i", "testsrc2=s=320x240:r=25:d=3600", "-c:v", "libx264", "-y", str(out)]  # fmt: skip
        limits = Limits(time_ms=60_000, stall_ms=60_000)
        ended = await runner.run(words, limits=limits, on_progress=stop)
        assert ended.reason == "stalled"
        took.append(monotonic_ms() - stopped_ms[0])
        out.unlink()

    for number in range(ROUNDS):
        asyncio.run(one_round(number))
    assert not [
        c for c in psutil.Process().children(recursive=True) if str(tmp_path) in words_of(c)
    ]
    print(f"{ROUNDS} stopped FFmpegs gone after {min(took)} to {max(took)} ms of silence")
    assert max(took) < SHORT_SILENCE_MS + 4 * WATCH_MS + 1_000


def words_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_a_stopped_ffmpeg_of_a_node_is_replaced_within_what_is_promised(tmp_path: Path) -> None:
    with cluster(tmp_path, ["anna"]) as (anna,):
        form([anna], "--slots", "1")
        (job,) = anna.cli("submit", str(film(anna, "a.mkv", 60, "640x360")), "--profile", "web")[
            "jobs"
        ]
        (first,) = wait_for("FFmpeg runs", lambda: encoders_of(anna), 60)
        moved(anna, job["id"])
        stopped_ms = monotonic_ms()
        os.kill(first, signal.SIGSTOP)
        wait_for("it is gone", lambda: first not in encoders_of(anna), SILENT_MS / 1_000 + 30)
        gone_s = (monotonic_ms() - stopped_ms) / 1_000
        wait_for("done all the same", lambda: state(anna, job["id"]) == "done", 900)
        attempts = ask(anna, f"/jobs/{job['id']}")[1]["tasks"][0]["attempts"]
        assert [a["state"] for a in attempts] == ["failed", "accepted"]
        assert attempts[0]["fault"]["code"] == "stalled"
        print(f"a stopped FFmpeg was gone after {gone_s:.1f} s, its film done by the next")
        assert gone_s < SILENT_MS / 1_000 + 5


def state(node: Node, job: str) -> str:
    return str(ask(node, f"/jobs/{job}")[1]["state"])


def moved(node: Node, job: str) -> None:
    """Waits for frames: who told nothing yet is given longer."""
    wait_for("frames", lambda: (ask(node, f"/jobs/{job}")[1]["progress"] or {}).get("done", 0), 60)


def test_a_hundred_stopped_workers_are_replaced_and_leave_nothing_behind(tmp_path: Path) -> None:
    with cluster(tmp_path, ["anna", "bert", "cleo"]) as nodes:
        anna, *workers = nodes
        config = tmp_path / "short.toml"
        config.write_text(LEASES)
        form(nodes, "--slots", "1", "--config", str(config))
        anna.cli("nodes", "limit", "anna", "--slots", "0")
        long = film(anna, "long.mkv", 60, "640x360")
        words = ("submit", str(long), "--no-split", "--profile", "archive")
        (job,) = anna.cli(*words)["jobs"]
        took = [replaced(anna, workers, job["id"]) for _ in range(ROUNDS)]
        changed(anna, "cancel", job["id"])
        wait_for("nothing is left", lambda: not [e for n in workers for e in encoders_of(n)], 20)
        print(f"{ROUNDS} stopped workers replaced after {min(took):.1f} to {max(took):.1f} s")
        assert max(took) < 2.0 + 6.0


def replaced(anna: Node, workers: list[Node], job: str) -> float:
    """One round: who works is stopped, the other one takes over, and nothing of the first is left."""
    busy = wait_for(
        "somebody works", lambda: next((n for n in workers if encoders_of(n)), None), 60
    )
    (other,) = (node for node in workers if node is not busy)
    assert busy.process is not None
    begun_ms = monotonic_ms()
    busy.process.send_signal(signal.SIGSTOP)
    wait_for("the other works", lambda: encoders_of(other), 60)
    took_s = (monotonic_ms() - begun_ms) / 1_000
    busy.process.send_signal(signal.SIGCONT)
    wait_for("the first has given up", lambda: not encoders_of(busy), 20)
    # Four losses in a row set a job aside; here they are meant.
    changed(anna, "cancel", job)
    wait_for("nobody works", lambda: not [e for n in workers for e in encoders_of(n)], 20)
    changed(anna, "retry", job)
    return took_s


def changed(node: Node, action: str, job: str) -> None:
    status, said = ask(node, "/jobs/change", {"action": action, "jobs": [job]})
    assert (status, said["changed"]) == (200, [job])
