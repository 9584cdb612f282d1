"""`mesh-cli job history`, `job logs --follow` and `stats` of a real film."""

from pathlib import Path

from tests.cluster import cluster, form, wait_for
from tests.integration.test_orders import film, states


def test_a_film_tells_its_story(tmp_path: Path) -> None:
    with cluster(tmp_path, ["anna"]) as (anna,):
        form([anna], "--slots", "1")
        (job,) = anna.cli("submit", str(film(anna, "a.mkv")), "--profile", "web")["jobs"]
        followed = anna.call("job", "logs", job["id"], "--follow")
        assert followed.returncode == 0, followed.stderr
        assert "queued on anna" in followed.stdout
        assert "attempt 1 on anna: " in followed.stdout
        assert "libx264" in followed.stdout
        story = anna.cli("job", "history", job["id"])
        kinds = [line["kind"] for line in story["lines"]]
        assert kinds[0] == "job.queued"
        assert kinds[-1] == "job.done"
        (attempt,) = anna.cli("job", "logs", job["id"])["attempts"]
        assert "ffmpeg" in attempt["command_line"][0]
        wait_for("it is counted", lambda: states(anna).get("done"), 10)
        (line,) = anna.cli("stats")["nodes"]
        assert (line["name"], line["good"], line["bad"]) == ("anna", 1, 0)
        assert line["frames"] == 25
        assert line["fps"] > 0
        shown = anna.call("stats", "--since", "1d").stdout
        assert "PROFILE" in shown
        assert "web" in shown
        listed = anna.cli("jobs", "--folder", str(anna.films), "--profile", "web", "--until", "0s")
        assert [one["id"] for one in listed["jobs"]] == [job["id"]]
        assert anna.cli("jobs", "--folder", str(tmp_path / "other"))["jobs"] == []
        done = anna.call("job", "history", "nothing")
        assert done.returncode == 2
        assert "not_found" in done.stderr
