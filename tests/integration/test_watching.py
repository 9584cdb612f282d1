"""A watched folder of a real node: films that come slowly, are renamed, touched, deleted and replaced."""

import os
import shutil
from pathlib import Path

import pytest

from tests.cluster import Node, cluster, form, wait_for
from tests.integration.test_orders import film, states

FILMS = 9
SETTLE = "1s"


def done(node: Node) -> int:
    return states(node).get("done", 0)


def quiet(node: Node) -> bool:
    """Nothing settles, nothing is open."""
    (watch,) = node.cli("watch", "list")["watches"]
    open_jobs = {s for s in states(node) if s not in ("done", "failed", "cancelled")}
    return not watch["counts"].get("seen") and not open_jobs


def sources(node: Node) -> list[str]:
    sql = "SELECT source FROM jobs WHERE state = 'done' ORDER BY source"
    return sorted(Path(row[0]).name for row in node.cli("ledger", "query", sql)["rows"])


@pytest.mark.slow
def test_each_content_is_converted_once(tmp_path: Path) -> None:
    with cluster(tmp_path, ["anna"]) as (anna,):
        form([anna], "--slots", "2")
        made = [film(anna, f"made{n}.mkv", 1, f"{64 + 2 * n}x64") for n in range(FILMS + 2)]
        incoming, output = anna.films / "in", anna.films / "out"
        (incoming / "deep" / "er").mkdir(parents=True)
        shutil.copy(made[0], incoming / "first.mkv")
        watch = anna.cli(
            *("watch", "add", str(incoming), "--profile", "web", "--output", str(output)),
            *("--settle", SETTLE, "--scan", "2s", "--exclude", "*sample*"),
        )
        wait_for("what lay there is done", lambda: done(anna) == 1, 60)
        assert (output / "first.web.mp4").is_file()
        # They come slowly: what still grows is left alone, though it pauses now and then.
        for number in range(1, FILMS):
            target = incoming / ("deep/er" if number % 2 else ".") / f"{number}.mkv"
            data = made[number].read_bytes()
            with target.open("wb") as slow:
                for start in range(0, len(data), len(data) // 3 + 1):
                    slow.write(data[start : start + len(data) // 3 + 1])
                    slow.flush()
        for name in ("a.txt", ".hidden.mkv", "b.sample.mkv"):
            shutil.copy(made[0], incoming / name)
        (incoming / "empty.mkv").touch()
        (incoming / "link.mkv").symlink_to(made[1])
        wait_for("all are done", lambda: done(anna) == FILMS, 180)
        assert (output / "deep" / "er" / "1.web.mp4").is_file()
        # Renamed, touched, copied and moved between folders: nothing new.
        (incoming / "2.mkv").rename(incoming / "two.mkv")
        os.utime(incoming / "4.mkv")
        shutil.copy(incoming / "6.mkv", incoming / "six again.mkv")
        (incoming / "deep" / "er").rename(incoming / "moved")
        shutil.copy(output / "first.web.mp4", incoming / "our own.mp4")
        # Deleted before anyone took it, and replaced by another film.
        shutil.copy(made[FILMS], incoming / "brief.mkv")
        (incoming / "brief.mkv").unlink()
        before = (output / "8.web.mp4").read_bytes()
        shutil.copy(made[FILMS + 1], incoming / "8.mkv")
        wait_for("the replaced one is done", lambda: done(anna) == FILMS + 1, 120)
        assert (output / "8.web.mp4").read_bytes() != before
        wait_for("it is quiet", lambda: quiet(anna), 60)
        assert sources(anna) == sorted(
            ["first.mkv", "8.mkv", *(f"{n}.mkv" for n in range(1, FILMS))]
        )
        (listed,) = anna.cli("watch", "list")["watches"]
        assert listed["counts"]["known"] >= 4
        assert listed["fault"] == ""
        # Over a restart everything is remembered by its content.
        anna.stop()
        anna.start("--slots", "2").ready()
        wait_for("it looked again", lambda: anna.cli("watch", "list")["watches"][0]["counts"], 30)
        wait_for("it is quiet again", lambda: quiet(anna), 60)
        assert done(anna) == FILMS + 1
        anna.cli("watch", "remove", watch["id"])
        assert anna.cli("watch", "list")["watches"] == []
        outside = anna.call("watch", "add", "/etc", "--profile", "web")
        assert outside.returncode != 0
        assert "no folder that this node may read" in outside.stderr
