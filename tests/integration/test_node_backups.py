"""What a node backs up by itself: wiped and restored each way, taken over, and what goes wrong told."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil
import pytest

from ledger.archive import ledger_at, place_in
from ledger.queries import open_replica
from ledger.snapshot_sqlite import verify_snapshot
from ledger.soundness_sqlite import content_digest
from mesh.clock import wall_ms
from mesh.errors import NoLitestreamError
from node.backup.destination import Destination
from node.backup.fetch import fetch
from node.backup.litestream import SftpKeys
from node.backup.litestream_files import find_litestream
from tests.cluster import Node, cluster, form, wait_for


def has_litestream() -> bool:
    try:
        find_litestream()
    except NoLitestreamError:
        return False
    return True


needs_litestream = pytest.mark.skipif(
    not has_litestream(), reason="needs litestream (the extra of that name)"
)


def configure(nodes: Sequence[Node], text: str) -> None:
    for node in nodes:
        node.home.mkdir(mode=0o700, exist_ok=True)
        (node.home / "node.toml").write_text(text)


def status(node: Node) -> Any:
    """Straight from the API: a process for each look would be what the test waits for."""
    try:
        request = Request(
            f"http://{(node.home / 'api.address').read_text().strip()}/api/v1/status",
            headers={"authorization": f"Bearer {(node.home / 'api.token').read_text().strip()}"},
        )
        with urlopen(request, timeout=5) as answer:
            return json.load(answer)
    except OSError:
        return {"backups": [], "coordinator": None, "applied_index": 0}


def backups(node: Node) -> dict[str, Any]:
    return {one["kind"]: one for one in status(node)["backups"]}


def submit(node: Node, *names: str) -> None:
    for name in names:
        (node.films / name).write_bytes(b"no film, and a row of the ledger all the same")
    node.cli("submit", *(str(node.films / name) for name in names), "--profile", "web")


def complete(node: Node, kind: str, timeout_s: float = 60) -> Any:
    """Everything that this node has applied is in that backup; what the status says of it."""

    def check() -> Any:
        told = status(node)
        found = next((one for one in told["backups"] if one["kind"] == kind), None)
        whole = found and found["here"] and not found["fault"] and found["done_at_ms"]
        return whole and found["index"] == told["applied_index"] and found

    return wait_for(f"{node.name} has a complete {kind}", check, timeout_s)


def backed_up(nodes: Sequence[Node], file: Path) -> Any:
    """A backup of a moment at which nothing is decided any more; what `verify` says of every node."""

    def check() -> Any:
        file.unlink(missing_ok=True)
        found = [node.cli("ledger", "verify") for node in nodes]
        made = nodes[0].cli("ledger", "backup", str(file))
        told = {(one["applied_index"], one["checksum"], one["content"]) for one in found}
        index = found[0]["applied_index"]
        here = nodes[0].status()["applied_index"]
        return len(told) == 1 and made["applied_index"] == index == here and found[0]

    return wait_for("the mesh is quiet", check, 60)


def is_equal(file: Path, to: Any) -> bool:
    found = verify_snapshot(file, thorough=True)
    with closing(open_replica(str(file))) as connection:
        content = content_digest(connection)
    return (found.applied_index, found.checksum.hex(), content) == (
        to["applied_index"],
        to["checksum"],
        to["content"],
    )


def litestreams(node: Node) -> list[psutil.Process]:
    assert node.process is not None
    children = psutil.Process(node.process.pid).children(recursive=True)
    return [one for one in children if "replicate" in one.cmdline()]


@needs_litestream
def test_three_ways_back_after_every_machine_is_gone(tmp_path: Path) -> None:
    archive, sent, file = tmp_path / "archive", tmp_path / "litestream", tmp_path / "b.db"
    archive.mkdir()
    sent.mkdir()
    with cluster(tmp_path, ["one", "two", "three"]) as nodes:
        configure(
            nodes,
            f'[backup]\narchive = "{archive}"\narchive_every_s = 1\n'
            f'litestream = "{sent}"\nlitestream_every_s = 1\n',
        )
        form(nodes)
        one, two, three = nodes
        submit(one, "a.mkv", "b.mkv")
        first = complete(one, "litestream")
        (child,) = litestreams(one)
        assert first["drilled_at_ms"], "what was sent came back equal"
        assert not backups(two)["litestream"]["here"]

        one.kill()  # while it coordinates; its litestream dies with it
        wait_for("litestream is gone", lambda: not child.is_running(), 5)
        leader = wait_for(
            "another one coordinates",
            lambda: next((n for n in (two, three) if status(n)["coordinator"] == n.name), None),
            20,
        )
        submit(leader, "c.mkv")
        second = wait_for(
            "all of its jobs are over",
            lambda: set(status(leader)["jobs"]) <= {"failed"} and complete(leader, "litestream"),
            60,
        )
        now = backed_up([leader, two if leader is three else three], file)
        second = complete(leader, "litestream")
        assert second["index"] == now["applied_index"]
        assert second["target"] != first["target"], "each writes to a place of its own"
        for node in (two, three):
            complete(node, "archive")
        jobs = three.cli("ledger", "query", "SELECT * FROM jobs ORDER BY id")
        for node in nodes:
            node.kill()
            shutil.rmtree(node.home)

        # The rolling checksum and the digest of all rows, at the same entry.
        assert is_equal(file, now)
        again = tmp_path / "again.db"
        ledger_at(place_in(archive), again, until_ms=wall_ms())
        assert is_equal(again, now)
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        fetched = asyncio.run(
            fetch(
                Destination("folder", str(sent)), SftpKeys(), scratch, until_ms=None, program=None
            )
        )
        assert fetched.source == second["target"], "the place that went furthest"
        assert is_equal(fetched.file, now)

        # As a person does it, each on a machine of its own.
        for node, source in zip(nodes, (file, archive, sent), strict=True):
            restored = node.cli("ledger", "restore", str(source), "--name", node.name)
            assert restored["applied_index"] == now["applied_index"] + 2
            assert node.cli("ledger", "verify")["sound"]
            assert node.cli("ledger", "query", "SELECT * FROM jobs ORDER BY id") == jobs
        three.start().ready(60)
        assert len(three.cli("jobs")["jobs"]) == 3


@contextmanager
def small_disk(folder: Path, kibibytes: int) -> Generator[Path]:
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "darkstream-test", str(folder)],
        capture_output=True,
        check=False,
    )
    if made.returncode != 0:
        pytest.skip(f"cannot mount a small disk: {made.stderr.decode(errors='replace').strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fails(node: Node, kind: str, code: str) -> str:
    """That kind of backup fails with that code; what every face says of it."""
    fault = wait_for(
        f"{node.name} says that its {kind} fails with {code}",
        lambda: (f := backups(node).get(kind, {}).get("fault")) and f["code"] == code and f,
        30,
    )
    shown = node.call("status").stdout
    assert f"error[{code}]" in shown, shown
    return str(fault["what"])


@needs_litestream
def test_what_goes_wrong_is_told_and_mended(tmp_path: Path) -> None:
    archive = tmp_path / "mounted" / "archive"
    with (
        small_disk(tmp_path / "disk", 96) as disk,
        cluster(tmp_path, ["one"]) as (one,),
    ):
        configure(
            [one],
            f'[backup]\narchive = "{archive}"\narchive_every_s = 1\n'
            f'litestream = "{disk}"\nlitestream_every_s = 1\n',
        )
        form([one])
        # The disk is not mounted: nothing is written in its place.
        assert "mounted" in fails(one, "archive", "not_found")
        assert not archive.parent.exists()
        archive.mkdir(parents=True)
        complete(one, "litestream")
        # The disk fills up: the node works on, and says so.
        filler = disk / "filler"
        with suppress(OSError):
            filler.write_bytes(bytes(1 << 20))
        submit(one, *(f"{n}.mkv" for n in range(8)))
        assert "no space left" in fails(one, "litestream", "backup")
        # Mended, both go on by themselves; a stopping node makes a last round.
        filler.unlink()
        submit(one, "late.mkv")
        complete(one, "litestream")
        complete(one, "archive")
        one.token()
        assert one.stop() == 0
        now = one.cli("ledger", "verify")
        again = tmp_path / "again.db"
        ledger_at(place_in(archive), again, until_ms=wall_ms())
        assert is_equal(again, now)
        configure([one], '[backup]\nlitestream = "/"\nlitestream_program = "/nowhere/litestream"\n')
        one.start().ready(60)
        assert "/nowhere/litestream" in fails(one, "litestream", "no_litestream")
