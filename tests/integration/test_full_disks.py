"""Disks that are full at the start, in the middle and at the rename, with real nodes.

Every time: the job waits or fails by its class, nothing half-published, both nodes live, and when
there is room again the film is converted.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import Node, cluster, form, wait_for
from tests.films import make_raw_film
from tests.small_disk import fill, mounted, resize

pytestmark = pytest.mark.acceptance

FILM_SECONDS = 4  # 35 MB
MANY = 5_000


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Node, Node, Path]]:
    """An owner that converts nothing, a worker whose cache has a disk of its own, and that disk."""
    with (
        cluster(tmp_path, ["anna", "bert"]) as nodes,
        mounted(nodes[1].home / "cache", 500 << 10) as disk,
    ):
        anna, bert = nodes
        form(nodes, "--slots", "0")
        anna.cli("nodes", "limit", "bert", "--slots", "1")
        yield anna, bert, disk


def submitted(owner: Node, output: Path) -> str:
    film = make_raw_film(owner.films / "film.mkv", FILM_SECONDS)
    argv = ["submit", str(film), "--profile", "web", "--no-split", "--output", str(output)]
    (job,) = owner.cli(*argv)["jobs"]
    return str(job["id"])


def job_of(owner: Node, job: str) -> Any:
    return owner.cli("job", "show", job)


def failures(owner: Node, job: str) -> list[str]:
    """Codes of the attempts that failed."""
    attempts = [a for task in job_of(owner, job)["tasks"] for a in task["attempts"]]
    return [attempt["fault"]["code"] for attempt in attempts if attempt["fault"]]


def done(owner: Node, job: str) -> bool:
    return bool(job_of(owner, job)["state"] == "done")


def alive(*nodes: Node) -> None:
    for node in nodes:
        assert node.process is not None
        assert node.process.poll() is None, node.log_tail()
        assert node.status()["state"] == "member"
        node.token()  # a write is acknowledged by both


def empty(folder: Path) -> bool:
    """Whether nothing, not even a hidden half, lies there."""
    return not folder.exists() or not any(folder.iterdir())


def why(node: Node, job: str) -> str:
    return str(job_of(node, job)["why_waiting"])


def test_full_at_the_start(pair: tuple[Node, Node, Path]) -> None:
    anna, bert, disk = pair
    resize(disk, 24 << 10)
    # The node tells of the disk of its cache, which its home is not on.
    anna.cli("nodes", "pause", "bert")
    out = anna.films / "out"
    job = submitted(anna, out)
    said = "bert: is paused by a person (`mesh-cli nodes resume NAME`), has too little disk (2"
    for node in (anna, bert):
        wait_for("why it waits", lambda node=node: said in why(node, job), 30)
    anna.cli("nodes", "resume", "bert")
    # A lease that was granted before the pause was heard of is given back, which is no failure.
    assert set(failures(anna, job)) <= {"released"}
    assert empty(out)
    alive(anna, bert)
    resize(disk, 500 << 10)
    wait_for("done when there is room", lambda: done(anna, job), 120)


def test_full_in_the_middle(pair: tuple[Node, Node, Path]) -> None:
    anna, bert, disk = pair
    anna.cli("nodes", "limit", "bert", "--down", "4MB/s")
    out = anna.films / "out"
    job = submitted(anna, out)
    wait_for("it travels", lambda: any((disk / "sources").glob("*.journal")), 60)
    filler = fill(disk)
    anna.cli("nodes", "limit", "bert", "--down", "off")
    wait_for("it is told", lambda: failures(anna, job), 60)
    assert empty(out)
    alive(anna, bert)
    filler.unlink()
    # Where room for the film was reserved, FFmpeg is the first to miss some.
    assert set(failures(anna, job)) <= {"disk_full", "work_disk_full"}
    wait_for("done when there is room", lambda: done(anna, job), 120)


def test_no_room_for_the_result_before_it_begins(pair: tuple[Node, Node, Path]) -> None:
    anna, bert, _ = pair
    with mounted(anna.films / "out", 16 << 10) as out:
        filler = fill(out, leave_bytes=64 << 10)
        job = submitted(anna, out)
        said = "its owner anna cannot plan a film: "
        for node in (anna, bert):
            wait_for("why it waits", lambda node=node: said in why(node, job), 30)
            assert "/out has 0 MiB free, a result needs" in why(node, job)
        assert not job_of(anna, job)["source_digest"], "it was read in vain"
        filler.unlink()
        wait_for("done when there is room", lambda: done(anna, job), 120)


def test_full_at_the_rename(pair: tuple[Node, Node, Path]) -> None:
    anna, bert, disk = pair
    with mounted(anna.films / "out", 16 << 10) as out:
        anna.cli("nodes", "limit", "bert", "--down", "4MB/s")
        job = submitted(anna, out)
        wait_for("it travels", lambda: any((disk / "sources").glob("*.journal")), 60)
        filler = fill(out, leave_bytes=64 << 10)
        anna.cli("nodes", "limit", "bert", "--down", "off")
        wait_for("it is over", lambda: job_of(anna, job)["state"] == "failed", 120)
        assert job_of(anna, job)["fault"]["code"] == "disk_full"
        assert list(out.iterdir()) == [filler]
        alive(anna, bert)
        filler.unlink()
        job = submitted(anna, out)
        wait_for("done when there is room", lambda: done(anna, job), 120)
        (made,) = out.iterdir()
        assert made.stat().st_size == job_of(anna, job)["result"]["bytes"]


def test_the_disk_of_everything_full(tmp_path: Path) -> None:
    """The ledger and the log of the worker lie there as well: it stops and says so, and comes back."""
    with (
        mounted(tmp_path / "bert", 600 << 10) as disk,
        cluster(tmp_path, ["anna", "bert"]) as nodes,
    ):
        anna, bert = nodes
        form(nodes, "--slots", "0")
        anna.cli("nodes", "limit", "bert", "--slots", "1", "--down", "4MB/s")
        out = anna.films / "out"
        job = submitted(anna, out)
        wait_for("it travels", lambda: any((bert.home / "cache/sources").glob("*.journal")), 60)
        filler = fill(disk)
        # What the ledger is to hold meanwhile has no room; a quiet one would not notice for long.
        many = anna.films / "many"
        many.mkdir()
        for number in range(MANY):
            (many / f"{number}.mkv").hardlink_to(anna.films / "film.mkv")
        anna.call("submit", str(many), "--profile", "web", "--needs", "nobody-has-this")
        assert bert.process is not None
        assert bert.process.wait(60) == 1
        assert "error[disk_full]" in bert.log_tail()
        assert empty(out)
        filler.unlink()
        bert.start("--slots", "1").ready()
        wait_for("done when there is room", lambda: done(anna, job), 120)
        alive(anna, bert)
