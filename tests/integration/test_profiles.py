"""Profiles of the mesh's own people, as they are typed: added on one node, used on another."""

import json
from pathlib import Path

import pytest

from tests.cluster import cluster, form, wait_for
from tests.films import make_film

TINY = """
title = "for a watch"
container = "mp4"
[video]
codec = "h264"
crf = 34
speed = "ultrafast"
short_side_max = 64
[audio]
codec = "aac"
bitrate_kbps = 48
"""


@pytest.mark.slow
def test_a_profile_added_anywhere_is_known_everywhere(tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(TINY)
    with cluster(tmp_path, ["anna", "bert"]) as (anna, bert):
        form((anna, bert))
        film = make_film(bert.films / "film.mp4", seconds=1)
        before = bert.call("convert", str(film), "--profile", "tiny")
        assert (before.returncode, "unknown profile 'tiny'" in before.stderr) == (2, True)

        assert anna.call("profiles", "add", str(file)).stdout == "tiny is a profile now\n"
        known = wait_for("it is known there", lambda: names(bert.cli("profiles", "list")), 10)
        assert known == ["web", "mobile", "archive", "small", "tiny"]
        done = bert.cli("convert", str(film), "--profile", "tiny", timeout_s=120)["jobs"][0]
        assert done["output"] == str(bert.films / "film.tiny.mp4")
        assert done["state"] == "done"

        # Its result is a result for every profile, and no film to be converted.
        folder = bert.cli("submit", str(bert.films), "--profile", "web", "--dry-run")["jobs"]
        assert [job["source"] for job in folder] == [str(film)]

        # What is shown can be added again, under another name too.
        shown = bert.call("profiles", "show", "tiny").stdout
        again = tmp_path / "again.toml"
        again.write_text(shown.replace("tiny", "again").replace("crf = 34", "crf = 33"))
        answer = bert.cli("profiles", "add", str(again))
        assert (answer["name"], answer["definition"]["video"]["crf"]) == ("again", 33)
        row = anna.cli("ledger", "query", "SELECT name FROM profiles ORDER BY name")["rows"]
        assert [one[0] for one in row] == ["again", "tiny"]

        assert anna.call("profiles", "remove", "tiny").returncode == 0
        gone = anna.call("profiles", "show", "tiny")
        assert (gone.returncode, gone.stderr[:16]) == (2, "error[not_found]")
        asked = anna.call("job", "show", done["id"])
        assert asked.returncode == 0, asked.stderr

        taken = tmp_path / "web.toml"
        taken.write_text(TINY)
        built_in = anna.call("profiles", "add", str(taken))
        assert (built_in.returncode, "web is built in" in built_in.stderr) == (2, True)
        for text, said in (
            ("container = ", "is no TOML"),
            ('container = "avi"', "bad profile: container"),
            (TINY.replace("crf = 34", "crf = 340"), "bad profile: video.crf"),
            (TINY + 'arguments = "-x"', "bad profile: audio.arguments"),
        ):
            file.write_text(text)
            refused = anna.call("profiles", "add", str(file))
            assert (refused.returncode, said in refused.stderr) == (2, True), refused.stderr


def names(answer: object) -> list[str] | None:
    found = json.loads(json.dumps(answer))["profiles"]
    return [one["name"] for one in found] if len(found) > 4 else None
