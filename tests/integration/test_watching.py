"""A watched folder of a real node: films that come slowly, are renamed, touched, deleted and replaced."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from tests.cluster import Node, cluster, form, wait_for
from tests.integration.test_orders import film, states

FEW, MANY = 9, 300
SETTLE = "1s"
COPIES = 16
PAUSE_S = 0.4
"""Between the thirds of a file that is copied: longer than a look, shorter than its settling."""


def copy_slowly(source: Path, target: Path) -> None:
    data = source.read_bytes()
    third = len(data) // 3 + 1
    with target.open("wb") as slow:
        for start in range(0, len(data), third):
            slow.write(data[start : start + third])
            slow.flush()
            Event().wait(PAUSE_S)


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


@pytest.mark.timeout(1_500)
@pytest.mark.parametrize(
    "films",
    [
        pytest.param(FEW, marks=pytest.mark.slow),
        pytest.param(MANY, marks=pytest.mark.acceptance),
    ],
)
def test_each_content_is_converted_once(tmp_path: Path, films: int) -> None:
    with cluster(tmp_path, ["anna"]) as (anna,):
        form([anna], "--slots", "2")
        made = [film(anna, f"made{n}.mkv", 1, f"{64 + 2 * n}x64") for n in range(films + 2)]
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
        places = {
            incoming / ("deep/er" if number % 2 else ".") / f"{number}.mkv": made[number]
            for number in range(1, films)
        }
        with ThreadPoolExecutor(COPIES) as copies:
            list(copies.map(copy_slowly, places.values(), places))
        for name in ("a.txt", ".hidden.mkv", "b.sample.mkv"):
            shutil.copy(made[0], incoming / name)
        (incoming / "empty.mkv").touch()
        (incoming / "link.mkv").symlink_to(made[1])
        wait_for("all are done", lambda: done(anna) == films, 60 + 4 * films)
        assert (output / "deep" / "er" / "1.web.mp4").is_file()
        # Renamed, touched, copied and moved between folders: nothing new.
        (incoming / "2.mkv").rename(incoming / "two.mkv")
        os.utime(incoming / "4.mkv")
        shutil.copy(incoming / "6.mkv", incoming / "six again.mkv")
        (incoming / "deep" / "er").rename(incoming / "moved")
        shutil.copy(output / "first.web.mp4", incoming / "our own.mp4")
        # Deleted before anyone took it, and replaced by another film.
        shutil.copy(made[films], incoming / "brief.mkv")
        (incoming / "brief.mkv").unlink()
        before = (output / "8.web.mp4").read_bytes()
        shutil.copy(made[films + 1], incoming / "8.mkv")
        wait_for("the replaced one is done", lambda: done(anna) == films + 1, 120)
        assert (output / "8.web.mp4").read_bytes() != before
        wait_for("it is quiet", lambda: quiet(anna), 60)
        assert sources(anna) == sorted(
            ["first.mkv", "8.mkv", *(f"{n}.mkv" for n in range(1, films))]
        )
        (listed,) = anna.cli("watch", "list")["watches"]
        print(f"{films + 1} converted once, others: {listed['counts']}")
        assert listed["counts"]["known"] >= 4
        assert listed["fault"] == ""
        # Over a restart everything is remembered by its content.
        anna.stop()
        anna.start("--slots", "2").ready()
        wait_for("it looked again", lambda: anna.cli("watch", "list")["watches"][0]["counts"], 30)
        wait_for("it is quiet again", lambda: quiet(anna), 60)
        assert done(anna) == films + 1
        anna.cli("watch", "remove", watch["id"])
        assert anna.cli("watch", "list")["watches"] == []
        outside = anna.call("watch", "add", "/etc", "--profile", "web")
        assert outside.returncode != 0
        assert "no folder that this node may read" in outside.stderr
