"""A node whose encoder fails every time, beside a good one: quarantined, mended, released; and films known by content."""

import stat
from pathlib import Path

import pytest

from tests.cluster import Node, cluster, wait_for
from tests.integration.test_orders import film, states
from tests.media_clips import ffmpeg

FILMS = 50
STRIKES = 3


def wrapped(folder: Path) -> tuple[Path, Path]:
    """An FFmpeg that fails at every film while a file is there, and that file."""
    broken, program = folder / "broken", folder / "ffmpeg"
    program.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *progress*) [ -e {broken} ] && {{ echo "Error while opening encoder" >&2; exit 1; }} ;; esac\n'
        f'case "$*" in *testsrc2*) [ -e {broken}.proof ] && exit 1 ;; esac\n'
        f'exec {ffmpeg()} "$@"\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program, broken


def of(node: Node, name: str) -> dict[str, object]:
    found: dict[str, object] = next(n for n in node.cli("nodes")["nodes"] if n["name"] == name)
    return found


@pytest.mark.acceptance
@pytest.mark.timeout(900)
def test_a_bad_node_eats_no_queue_and_comes_back_when_it_is_mended(tmp_path: Path) -> None:
    with cluster(tmp_path, ["anna", "bert"]) as (anna, bert):
        program, broken = wrapped(tmp_path)
        anna.start("--new-mesh", "--slots", "1").ready()
        bert.start("--join", anna.token(), "--slots", "1", "--ffmpeg", str(program)).ready()
        wait_for("bert's encoders are known", lambda: of(anna, "bert")["encoders"], 60)
        broken.touch()
        broken.with_suffix(".proof").touch()
        one = film(anna, "0.mkv")
        for number in range(1, FILMS):
            (anna.films / f"{number}.mkv").write_bytes(one.read_bytes())
        anna.cli("submit", str(anna.films), "--profile", "web")
        wait_for("all are done", lambda: states(anna).get("done") == FILMS, 400)
        wait_for("quarantined", lambda: "quarantined" in str(of(anna, "bert")["closed"]), 30)
        sql = "SELECT count(*) FROM attempts WHERE node = 'bert' AND state = 'failed'"
        assert anna.cli("ledger", "query", sql)["rows"] == [[STRIKES]]
        assert "is quarantined: it failed 3 jobs in a row" in anna.call("nodes").stdout
        print(f"{FILMS} done; failed attempts of bert: {STRIKES}, then quarantined")
        # Mended: its own proof releases it, and it works again.
        broken.unlink()
        broken.with_suffix(".proof").unlink()
        wait_for("released", lambda: not of(anna, "bert")["closed"], 60)
        anna.cli("nodes", "limit", "anna", "--slots", "0")
        (job,) = anna.cli("submit", str(one), "--profile", "mobile")["jobs"]
        wait_for("bert does it", lambda: anna.cli("job", "show", job["id"])["state"] == "done", 90)
        # What is converted is known by its content, and results are no sources.
        again = anna.films / "other name.mkv"
        again.write_bytes(one.read_bytes())
        done = anna.call("submit", str(again), "--profile", "web", "--once", "--dry-run")
        assert "duplicate" in done.stderr
        result = Path(anna.cli("job", "show", job["id"])["output"])
        moved = result.with_name("moved.mp4")
        moved.write_bytes(result.read_bytes())
        done = anna.call("submit", str(moved), "--profile", "web", "--once", "--dry-run")
        assert "result of a conversion" in done.stderr
        told = anna.cli("submit", str(again), "--profile", "web", "--dry-run")
        assert told["jobs"][0]["id"] is None
        assert told["jobs"][0]["expected_bytes"] > 0
        assert states(anna).get("done") == FILMS + 1
