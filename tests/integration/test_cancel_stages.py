"""Everything that a person can say, at every stage of a job on real nodes: what becomes of it, and how soon.

Nothing of a cancelled job stays, what is not cancelled ends well, and what makes no sense says so.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from mesh.clock import monotonic_ms
from tests.cluster import Node, cluster, form, wait_for
from tests.integration.test_masters import states_of
from tests.integration.test_orders import encoders_of
from tests.local_api import ask
from tests.media_clips import make
from tests.small_disk import mounted

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]

SECONDS_MAX: Final = 2.0
"""What is promised for a cancelled job until nothing works on it."""
SAID_S_MAX: Final = 1.0
"""For the answer to any word."""
NEVER = ["mon 00:00-00:01", "mon 00:02-00:03"]
NOISE = "testsrc2=size=640x360:rate=25:duration=5,noise=alls=60:allf=t"
LARGE = """
container = "matroska"
[video]
codec = "ffv1"
crf = 0
[audio]
codec = "copy"
"""
"""Results of hundreds of MiB, which take a while to be put onto another disk than the cache's."""


class Stages:
    """An owner that converts nothing, a worker, and what was said and became of it."""

    def __init__(self, anna: Node, bert: Node, film: Path) -> None:
        self.anna, self.bert, self.film = anna, bert, film
        self.table: list[tuple[str, str, str, float]] = []

    def job(self, job: str) -> Any:
        return ask(self.anna, f"/jobs/{job}")[1]

    def phase(self, job: str) -> str:
        shown = self.job(job)
        return f"{shown['state']} {(shown['progress'] or {}).get('phase', '')}"

    def submit(self, *words: str) -> str:
        (job,) = self.anna.cli("submit", str(self.film), "--no-split", *words)["jobs"]
        return str(job["id"])

    def orders(self, action: str, job: str) -> tuple[bool, str]:
        """Whether the job was changed, and else why not."""
        body = {"action": action, "jobs": [job], "priority": 7}
        status, said = ask(self.anna, "/jobs/change", body)
        assert status == 200, said
        return bool(said["changed"]), "".join(one["what"] for one in said["unchanged"])

    def tells(self, **wanted: object) -> Any:
        """A word to bert."""
        status, said = ask(self.anna, "/nodes/bert/work", wanted)
        assert status == 200, said
        return said

    @contextmanager
    def noted(self, stage: str, word: str) -> Iterator[list[str]]:
        """Takes the time; what is put into the list is the outcome."""
        outcome: list[str] = []
        begun_ms = monotonic_ms()
        yield outcome
        took_s = (monotonic_ms() - begun_ms) / 1_000
        self.table.append((stage, word, "; ".join(outcome), took_s))

    def left(self) -> list[Path]:
        """What a run or a transfer would leave behind."""
        attempts = self.bert.home / "cache" / "attempts"
        folders = [attempts, self.anna.films, self.anna.home / "cache" / "incoming"]
        halves = [p for folder in folders for p in folder.rglob("*") if "part" in p.name]
        return halves + list(attempts.glob("*"))

    def harmless(self, stage: str, job: str, still: Callable[[], object]) -> None:
        """What leaves a job where it is; `still` says that it is at this stage yet."""
        state = stage.split(maxsplit=1)[0]
        with self.noted(stage, "retry") as outcome:
            done, why = self.orders("retry", job)
            assert not done
            outcome.append(f"refused: {why}")
        with self.noted(stage, "priority") as outcome:
            assert self.orders("priority", job)[0]
            outcome.append("priority 7")
        for word, wanted, told in (
            ("pause", {"paused": True}, "is paused"),
            ("hours", {"hours": NEVER}, "is outside its hours"),
            ("drain", {"draining": True}, "drains"),
        ):
            with self.noted(stage, word) as outcome:
                assert told in self.tells(**wanted)["closed"]
                if word == "pause" and stage == "encoding":
                    wait_for("FFmpeg stands", lambda: states_of(encoders_of(self.bert)) == {"T"}, 5)
                    outcome.append("FFmpeg stands still")
                outcome.append(f"bert {told}")
                assert still(), f"{state} was over too soon"
            with self.noted(stage, "resume") as outcome:
                said = self.tells(paused=False, draining=False, hours=["always"])
                assert not said["closed"]
                if word == "pause" and stage == "encoding":
                    goes = lambda: states_of(encoders_of(self.bert)) & {"R", "S", "D"}  # noqa: E731 - named once
                    wait_for("FFmpeg goes on", goes, 5)
                outcome.append(f"goes on after {word}")
                assert still(), f"{state} was over too soon"

    def cancelled(self, stage: str, job: str) -> None:
        with self.noted(stage, "cancel") as outcome:
            assert self.orders("cancel", job)[0]
            gone = lambda: not self.left() and not encoders_of(self.bert)  # noqa: E731 - named once
            wait_for("nothing works on it", gone, 15)
            outcome.append("cancelled, nothing left")
        shown = self.job(job)
        assert shown["state"] == "cancelled"
        assert not Path(shown["output"]).exists()

    def waits(self) -> str:
        """Queued: bert has no slot."""
        self.anna.cli("nodes", "limit", "bert", "--slots", "0")
        job = self.submit("--profile", "mobile")
        wait_for("it waits", lambda: self.job(job)["tasks"], 30)
        still = lambda: self.phase(job) == "queued "  # noqa: E731 - named once
        self.harmless("queued", job, still)
        self.cancelled("queued", job)
        self.anna.cli("nodes", "limit", "bert", "--slots", "1")
        return job

    def travels(self, job: str) -> None:
        self.anna.cli("nodes", "limit", "bert", "--down", "300k")
        assert self.orders("retry", job)[0]
        still = lambda: self.phase(job) == "running fetching"  # noqa: E731 - named once
        wait_for("it travels", still, 60)
        self.harmless("transferring", job, still)
        self.cancelled("transferring", job)
        self.anna.cli("nodes", "limit", "bert", "--down", "off")

    def encodes(self) -> None:
        job = self.submit("--profile", "archive")
        wait_for("it is encoded", lambda: encoders_of(self.bert), 60)
        self.harmless("encoding", job, lambda: encoders_of(self.bert))
        self.cancelled("encoding", job)

    def comes_back(self, job: str) -> None:
        self.anna.cli("nodes", "limit", "anna", "--down", "40k")
        assert self.orders("retry", job)[0]
        still = lambda: self.phase(job).startswith("verifying")  # noqa: E731 - named once
        wait_for("it comes back", still, 200)
        self.harmless("verifying", job, still)
        self.cancelled("verifying", job)
        self.anna.cli("nodes", "limit", "anna", "--down", "off")

    def publishes(self, folder: Path, profile: Path) -> None:
        """Nothing stops it any more."""
        noise = "testsrc2=size=1280x720:rate=25:duration=10,noise=alls=60:allf=t"
        words = ("-f", "lavfi", "-i", noise, "-c:v", "mpeg4", "-b:v", "60M")
        self.film = make(self.anna.films / "large.mkv", *words)
        job = self.submit("--profile", str(profile), "--output", str(folder))
        still = lambda: self.job(job)["state"] == "publishing"  # noqa: E731 - named once
        wait_for("it is put in place", still, 200)
        with self.noted("publishing", "cancel") as outcome:
            done, why = self.orders("cancel", job)
            assert not done
            outcome.append(f"refused: {why}")
        self.harmless("publishing", job, still)
        wait_for("it is done", lambda: self.job(job)["state"] == "done", 60)
        assert Path(self.job(job)["output"]).is_file()


def test_every_word_at_every_stage(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with (
        mounted(tmp_path / "anna", 3 << 20),
        cluster(tmp_path, ["anna", "bert"]) as (anna, bert),
    ):
        form([anna, bert], "--slots", "1", "--allow", str(out))
        anna.cli("nodes", "limit", "anna", "--slots", "0")
        # Noise, so that film and result are several chunks of the transfer.
        options = ("-f", "lavfi", "-i", NOISE, "-c:v", "mpeg4", "-b:v", "8M")
        stages = Stages(anna, bert, make(anna.films / "long.mkv", *options))
        large = tmp_path / "large.toml"
        large.write_text(LARGE)
        job = stages.waits()
        stages.travels(job)
        stages.encodes()
        stages.comes_back(job)
        stages.publishes(out, large)
        assert stages.orders("retry", job)[0]
        wait_for("it is done", lambda: stages.phase(job) == "done ", 200)
        # What is over cannot be cancelled, and says so.
        done = anna.call("cancel", job)
        assert done.returncode == 1
        assert "it is done" in done.stdout
        for stage, word, outcome, took_s in stages.table:
            print(f"| {stage:12} | {word:8} | {took_s:5.2f} s | {outcome} |")
        late = [
            row
            for row in stages.table
            if row[3] > (SECONDS_MAX if row[1] == "cancel" else SAID_S_MAX)
        ]
        assert not late
