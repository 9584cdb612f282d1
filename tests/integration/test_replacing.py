"""A person's way through replacing, restoring, chips and own profiles, on two real nodes."""

from pathlib import Path
from typing import Any

from tests.cluster import Node, cluster, form, wait_for
from tests.media_clips import make

CLIP = ("-f", "lavfi", "-i", "testsrc2=s=160x120:r=25:d=2", "-c:v", "libx264", "-crf", "1",
        "-metadata", "title=Mine", "-metadata", "location=+52.5+013.4/")  # fmt: skip
TINY = """
container = "matroska"
[video]
codec = "ffv1"
crf = 0
[audio]
codec = "copy"
"""


def converted(node: Node, *words: str) -> dict[str, Any]:
    (job,) = node.cli("convert", *words, timeout_s=120)["jobs"]
    return dict(job)


def test_a_folder_submitted_again_gives_no_result_to_convert(tmp_path: Path) -> None:
    with cluster(tmp_path, ["one"]) as (one,):
        form([one], "--slots", "2")
        library = one.films / "library"
        library.mkdir()
        for number in range(3):
            make(library / f"{number}.mkv", *CLIP[:6], "-t", "1", "-crf", str(1 + number))
        again = ("submit", str(library), "--profile", "archive", "--replace")
        assert len(one.cli(*again)["jobs"]) == 3
        wait_for("all are done", lambda: one.status()["jobs"].get("done") == 3, 150)
        results = sorted(library.glob("*.mkv"))
        assert len(results) == 3
        told = one.cli(*again)
        assert (told["jobs"], told["faults"], told["results"]) == ([], [], 3)
        # Nor by another profile in its place, nor under another name, nor when it is named itself.
        assert one.cli(*again[:3], "small", "--replace")["results"] == 3
        moved = results[0].rename(library / "moved.mkv")
        assert one.cli(*again[:4])["results"] == 3
        named = one.call("submit", str(moved), "--profile", "archive")
        assert "a result of this mesh itself, made with archive" in named.stderr
        # A copy with another profile is made of the film as it is now; a new film is converted.
        make(library / "new.mkv", *CLIP[:6], "-t", "1", "-crf", "9")
        assert len(one.cli(*again)["jobs"]) == 1
        assert len(one.cli(*again[:3], "mobile", "--dry-run")["jobs"]) == 4


def test_a_film_is_replaced_restored_and_a_job_waits_for_its_chip(tmp_path: Path) -> None:
    with cluster(tmp_path, ["one", "two"]) as nodes:
        form(nodes)
        one, two = nodes
        wait_for("all can work", lambda: all(n["slots"] for n in one.cli("nodes")["nodes"]), 30)
        film = make(one.films / "film.mp4", *CLIP)
        original, facts = film.read_bytes(), film.stat()
        asked = ("--replace", "--metadata", "no-location", "--vmaf-min", "80")
        job = converted(one, str(film), "--profile", "web", *asked)
        assert job["state"] == "done", job
        assert job["output"] == str(film)
        assert film.read_bytes() != original
        assert film.stat().st_mtime_ns == facts.st_mtime_ns
        assert b"+52.5+013.4" not in film.read_bytes()
        back = two.cli("job", "restore", job["id"][:12])
        assert back["source"] == str(film)
        assert film.read_bytes() == original
        assert Path(back["result"]).name == "film.web.mp4"

        small = make(one.films / "small.mp4", *CLIP[:6], "-crf", "50")
        refused = one.call("convert", str(small), "--profile", "web", "--larger", "discard")
        assert "error[not_smaller]" in refused.stderr
        assert list(one.films.glob("small*")) == [small]

        tiny = tmp_path / "tiny.toml"
        tiny.write_text(TINY)
        own = converted(one, str(film), "--profile", str(tiny), "--hardware", "nvenc,cpu")
        assert own["output"].endswith("film.tiny.mkv")
        (waiting,) = one.cli("submit", str(small), "--profile", "mobile", "--hardware", "amf")[
            "jobs"
        ]
        shown = wait_for(
            "it says what it waits for",
            lambda: (
                (j := one.cli("job", "show", waiting["id"]))["waiting"]
                and j["state"] == "queued"
                and j
            ),
            30,
        )
        assert any("h264_amf" in reason for reason in shown["waiting"]), shown["waiting"]
