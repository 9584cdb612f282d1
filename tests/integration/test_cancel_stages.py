"""A job is cancelled while it waits, travels, is encoded and comes back; nothing of it stays, and all end well later."""

from pathlib import Path

import pytest

from mesh.clock import monotonic_ms
from tests.cluster import Node, cluster, form, wait_for
from tests.integration.test_orders import encoders_of
from tests.media_clips import make

SECONDS_MAX = 2.0 + 1.5
"""What is promised, and the two commands that ask for it and look."""


def phase(node: Node, job: str) -> str:
    shown = node.cli("job", "show", job)
    progress = shown["progress"] or {}
    return f"{shown['state']} {progress.get('phase', '')}"


def left_of(node: Node) -> list[Path]:
    """What a run or a transfer would leave behind."""
    folders = [node.home / "cache" / "attempts", node.films]
    return [path for folder in folders for path in folder.rglob("*") if "part" in path.name] + list(
        (node.home / "cache" / "attempts").glob("*")
    )


@pytest.mark.acceptance
def test_a_job_is_cancelled_at_every_stage(tmp_path: Path) -> None:
    with cluster(tmp_path, ["anna", "bert"]) as (anna, bert):
        form([anna, bert], "--slots", "1")
        anna.cli("nodes", "limit", "anna", "--slots", "0")
        # Noise, so that film and result are several chunks of the transfer.
        picture = "testsrc2=size=640x360:rate=25:duration=5,noise=alls=60:allf=t"
        options = ("-f", "lavfi", "-i", picture, "-c:v", "mpeg4", "-b:v", "8M")
        long = make(anna.films / "long.mkv", *options)
        took: dict[str, float] = {}

        def cancelled(stage: str, job: str) -> None:
            begun_ms = monotonic_ms()
            assert anna.cli("cancel", job)["changed"] == [job]
            wait_for("nothing works on it", lambda: not left_of(bert) and not encoders_of(bert), 15)
            took[stage] = (monotonic_ms() - begun_ms) / 1_000
            shown = anna.cli("job", "show", job)
            assert shown["state"] == "cancelled"
            assert not Path(shown["output"]).exists()

        def submitted(*words: str) -> str:
            (job,) = anna.cli("submit", str(long), "--no-split", *words)["jobs"]
            return str(job["id"])

        # It waits: bert is paused.
        anna.cli("nodes", "pause", "bert")
        job = submitted("--profile", "mobile")
        wait_for("it waits", lambda: phase(anna, job) == "queued ", 30)
        cancelled("waiting", job)
        anna.cli("nodes", "resume", "bert")
        # It travels, slowly.
        anna.cli("nodes", "limit", "bert", "--down", "300k")
        anna.cli("retry", job)
        wait_for("it travels", lambda: phase(anna, job) == "running fetching", 60)
        cancelled("transferring", job)
        anna.cli("nodes", "limit", "bert", "--down", "off")
        # It is encoded.
        anna.cli("retry", job)
        wait_for("it is encoded", lambda: encoders_of(bert), 60)
        cancelled("encoding", job)
        # It comes back, slowly.
        anna.cli("nodes", "limit", "anna", "--down", "40k")
        anna.cli("retry", job)
        wait_for("it comes back", lambda: phase(anna, job).startswith("verifying"), 200)
        cancelled("verifying", job)
        anna.cli("nodes", "limit", "anna", "--down", "off")
        print("seconds until nothing is left:", {k: round(v, 2) for k, v in took.items()})
        assert max(took.values()) < SECONDS_MAX
        anna.cli("retry", job)
        wait_for("it is done", lambda: phase(anna, job) == "done ", 200)
        # What is over cannot be cancelled, and says so.
        done = anna.call("cancel", job)
        assert done.returncode == 1
        assert "it is done" in done.stdout
