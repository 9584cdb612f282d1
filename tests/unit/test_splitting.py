"""Who makes a film in pieces, of which tasks it consists, and how its owner takes the parts."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ledger import commands as c
from ledger.jobs import Attempt, Job, Member, Node, Task
from mesh.digests import digest_of
from mesh.errors import NotAllowedError, TransferError
from mesh.ids import NodeId
from mesh.transport import CHUNK_BYTES
from node.media.pieces import Film
from node.media.profiles import BUILT_IN
from node.media.split import SplitPlan, chunk_ms
from node.work.allowed_files import Allowed
from node.work.film_pieces import SLICES, FilmPieces, SliceReady, SliceWanted
from node.work.films import Films
from node.work.splitting import (
    JobPlan,
    chips_of,
    choose_group,
    job_plan_from_json,
    joinable,
    number_of,
    tasks_of,
)
from tests.ledger_helper import Ledger, grant
from tests.unit.test_ledger_pieces import pieces
from tests.unit.test_media_split import long_film, planned
from tests.unit.test_owner import Stand
from tests.work_bench import eventually


def node(name: str, ffmpeg: str = "9", encoders: tuple[str, ...] = ("libx264",), **v: Any) -> Node:
    given = {"slots": 1, "cpus": 4, "platform": "", "version": "", "devices": "[]"} | v
    return Node(node=name, ffmpeg=ffmpeg, encoders=encoders, reported_at_ms=0, **given)  # type: ignore[arg-type]  # values of a test's own words


def member(name: str, **v: Any) -> Member:
    given = {"role": "full", "state": "active"} | v
    return Member(node=name, raft_id=name, public_key=b"", name=name, since_ms=0, **given)  # type: ignore[arg-type]  # values of a test's own words


def test_the_strongest_group_of_one_build_makes_all_chunks() -> None:
    nodes = [node("a"), node("b", slots=2, cpus=8), node("c", "5", cpus=64), node("d", "5", ())]
    members = [member(n.node) for n in nodes]
    group = choose_group(nodes, members, ("libx264",))
    assert group is not None
    assert (group.ffmpeg, group.speeds, group.need) == ("5", (64.0,), "libx264@5")
    group = choose_group(nodes[:2], members, ("libx264",))
    assert group is not None
    assert group.speeds == (4.0, 4.0, 4.0)


def test_chunks_are_as_long_as_nodes_were_fast_lately() -> None:
    nodes = [node("a", slots=2, cpus=8), node("b"), node("c", cpus=2)]
    members = [member(n.node) for n in nodes]
    group = choose_group(nodes, members, ("libx264",), {"a": 500.0, "b": 0.0, "gone": 9.0})
    assert group is not None
    # a: 500 a slot, 125 a processor; what the others do is guessed from that.
    assert group.speeds == (500.0, 500.0, 500.0, 250.0)
    short = chunk_ms(600_000, choose_group(nodes, members, ("libx264",), {"a": 9, "c": 1}).speeds)  # type: ignore[union-attr]  # there is a group
    assert short < chunk_ms(600_000, group.speeds)


def test_a_chip_that_comes_first_and_is_there_makes_its_film_whole() -> None:
    nodes = [node("a"), node("b", encoders=("libx264", "h264_nvenc"))]
    members = [member(n.node) for n in nodes]
    assert chips_of(nodes, members, ("h264_qsv", "h264_nvenc", "libx264")) == "h264_nvenc"
    assert chips_of(nodes, members, ("libx264", "h264_nvenc")) == ""
    assert chips_of(nodes[:1], members, ("h264_nvenc", "libx264")) == ""
    assert joinable(("h264_nvenc", "libx264")) == ("libx264",)


def test_who_does_no_work_is_in_no_group() -> None:
    nodes = [node("a"), node("b"), node("c", slots=0), node("d", "")]
    members = [member("a", state="revoked"), member("b", role="witness"), member("c"), member("d")]
    assert choose_group(nodes, members, ("libx264",)) is None
    assert choose_group([node("a")], [member("a")], ("libx265",)) is None


def test_tasks_and_plan_of_a_film_in_pieces() -> None:
    whole, split = planned(long_film())
    group = choose_group([node("a")], [member("a")], ("libx264",))
    assert group is not None
    tasks = tasks_of("j1", whole, split, group)
    assert [task.id for task in tasks] == ["j1-audio", "j1-0", "j1-1", "j1-2", "j1-3", "j1-film"]
    assert [task.kind for task in tasks][::5] == ["audio", "assemble"]
    assert tasks[1].needs == ("libx264@9",)
    assert sum(task.cost for task in tasks[1:5]) == split.frames * whole.width * whole.height
    assert [number_of(task.id) for task in tasks[1:5]] == [0, 1, 2, 3]
    assert "audio" not in [
        t.kind for t in tasks_of("j", planned(long_film(), "archive")[0], split, group)
    ]
    made = JobPlan(**dict(whole), split=split, ffmpeg="9")
    assert job_plan_from_json(made.to_json()) == made
    with pytest.raises(ValueError, match="size"):
        job_plan_from_json(" " * (1 << 20))


# --- the owner --------------------------------------------------------------------------------------


def run(body: Callable[[Stand], Awaitable[None]], stand: Stand) -> Stand:
    async def main() -> None:
        owner = asyncio.ensure_future(stand.owner.run())
        try:
            await body(stand)
        finally:
            owner.cancel()
            await asyncio.gather(owner, return_exceptions=True)

    asyncio.run(main())
    return stand


def in_pieces() -> Stand:
    stand = Stand()
    stand.ledger.submitted("j1", split=True)
    stand.ledger.must(c.StartPlanning(job="j1"))
    stand.ledger.must(pieces("j1", chunks=2, sound=False))
    return stand


def test_the_owner_keeps_parts_as_they_come_and_publishes_the_film() -> None:
    async def body(stand: Stand) -> None:
        ledger = stand.ledger
        stand.mesh.do(grant(("j1-0", "a0", "bert"), ("j1-1", "a1", "bert")))
        stand.mesh.do(ledger.finish("a1"))
        await eventually(lambda: stand.mesh.attempt("a1").state == "kept")
        assert stand.state() == "running"
        stand.mesh.do(ledger.finish("a0"))
        await eventually(lambda: stand.mesh.attempt("a0").state == "kept")
        stand.mesh.do(grant(("j1-e", "e", "anna")))
        stand.mesh.do(ledger.finish("e"))
        await eventually(lambda: stand.state() == "done")

    stand = run(body, in_pieces())
    assert stand.shelf.taken == ["a1", "a0", "e"]


def test_a_part_that_is_not_right_is_encoded_again_and_the_film_goes_on() -> None:
    async def body(stand: Stand) -> None:
        stand.shelf.take_fault = TransferError("frame_count: one is missing")
        stand.mesh.do(grant(("j1-0", "a0", "bert")))
        stand.mesh.do(stand.ledger.finish("a0"))
        await eventually(lambda: stand.mesh.attempt("a0").state == "refused")

    stand = run(body, in_pieces())
    task = stand.ledger.reader.task("j1-0")
    assert task is not None
    assert (stand.state(), task.state, task.tries) == ("running", "ready", 1)


# --- slices and parts -------------------------------------------------------------------------------


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


class Cutter(FilmPieces):
    """Cuts words instead of films."""

    cuts = 0

    async def _cut(self, job: Job, number: int, target: Path) -> None:
        type(self).cuts += 1
        write(target, b"slice %d" % number)


class Home:
    def __init__(self, folder: Path) -> None:
        self.ledger = Ledger().formed("bert", "carl").submitted("j1", split=True)
        self.ledger.must(c.StartPlanning(job="j1"))
        self.ledger.must(pieces("j1", chunks=2, sound=False))
        self.ledger.must(grant(("j1-1", "a1", "bert"), ("j1-0", "a0", "anna")))
        nobody: Any = None
        films: Any = Films(
            labels_of=lambda _: (),
            own=NodeId("anna"),
            folder=folder,
            trash=folder / "trash",
            allowed=Allowed([folder]),
            reader=self.ledger.reader,
            client=nobody,
            contacts=nobody,
            media=nobody,
        )
        Cutter.cuts = 0
        films.pieces.__class__ = Cutter
        self.films, self.pieces = films, films.pieces
        self.folder = folder / "pieces" / "j1"

    def ask(self, caller: str, attempt: str) -> SliceReady:
        wanted = SLICES.encode(SliceWanted(attempt=attempt))
        ready: SliceReady = SLICES.decode(
            asyncio.run(self.pieces._on_wanted(NodeId(caller), wanted))
        )
        return ready


def test_a_slice_is_cut_once_for_whom_the_lease_names(tmp_path: Path) -> None:
    home = Home(tmp_path.resolve())
    for caller, attempt in (("carl", "a1"), ("bert", "a0"), ("bert", "nothing")):
        with pytest.raises(NotAllowedError):
            home.ask(caller, attempt)
    with pytest.raises(NotAllowedError):
        home.films.source_for(NodeId("bert"), "slice/a1")
    ready = home.ask("bert", "a1")
    assert home.ask("bert", "a1") == ready
    assert (ready.size, ready.digest) == (7, digest_of(b"slice 1", CHUNK_BYTES))
    assert Cutter.cuts == 1
    home.films.source_for(NodeId("bert"), "slice/a1").close()
    with pytest.raises(NotAllowedError):
        home.films.source_for(NodeId("carl"), "slice/a1")
    (home.folder / "slice-a1.nut").unlink()
    assert home.ask("bert", "a1") == ready, "a lost slice is cut anew"
    home.ledger.must(c.ExpireLeases(attempts=("a1",), what="silent"))
    home.pieces.sweep(home.ledger.reader)
    assert not list(home.folder.iterdir())
    with pytest.raises(NotAllowedError):
        home.ask("bert", "a1")
    home.ledger.must(home.ledger.give_up("j1"))
    home.pieces.sweep(home.ledger.reader)
    assert not home.folder.exists()


def test_a_part_of_this_nodes_worker_is_copied_and_proven(tmp_path: Path) -> None:
    home = Home(tmp_path.resolve())
    attempt, job = home.ledger.reader.attempt("a0"), home.ledger.reader.job("j1")
    assert attempt is not None
    assert job is not None
    attempt = replace(attempt, result_bytes=4, result_digest=digest_of(b"part", CHUNK_BYTES))
    kept = tmp_path / "results" / "a0"
    kept.write_bytes(b"torn")

    def take(attempt: Attempt) -> None:
        sound = replace(_task(home), kind="audio")
        asyncio.run(home.pieces.take(job, sound, attempt, lambda _, __: None))

    with pytest.raises(TransferError):
        take(attempt)
    kept.write_bytes(b"part")
    take(attempt)
    kept.unlink()
    take(attempt)  # it is there already
    assert (home.folder / "part-a0.mkv").read_bytes() == b"part"


def _task(home: Home) -> Task:
    found = home.ledger.reader.task("j1-0")
    assert found is not None
    return found


def test_a_film_is_planned_alike_on_every_node() -> None:
    whole, split = planned(long_film())
    film = Film(probe=long_film(), profile=BUILT_IN["web"], split=split, encoder=whole.encoder)
    assert isinstance(film.split, SplitPlan)
    assert film.plan == whole
