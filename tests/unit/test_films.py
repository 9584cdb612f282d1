"""A node's hands on films: ids never become paths, and a film is never replaced by its own result."""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ledger import commands as c
from ledger.jobs import Attempt, Job
from mesh.bulk_client_zmq import ZmqBulkClient
from mesh.bulk_server_zmq import ZmqBulkServer
from mesh.digests import digest_of
from mesh.errors import ConflictError, PathError
from mesh.ids import NodeId
from mesh.transfer import ByteRange
from mesh.transfer_files import FileSource, make_manifest
from mesh.transport import CHUNK_BYTES, KeyPair
from node.media.child import HELD
from node.media.profiles import BUILT_IN
from node.work.allowed_files import Allowed
from node.work.films import Films
from node.work.order import Order
from node.work.sharing import Contact
from tests.ledger_helper import Ledger, grant, spec
from tests.meshwork import key_pair, node_of
from tests.unit.test_ledger_pieces import pieces
from tests.work_bench import InlineReplica

RESULT = b"result"


class Stand:
    def __init__(
        self,
        folder: Path,
        keys: KeyPair | None = None,
        contact: tuple[bytes, ZmqBulkServer] | None = None,
    ) -> None:
        self.home, self.films_folder = folder / "home", folder / "films"
        self.films_folder.mkdir(parents=True)
        self.ledger = Ledger().formed("bert").planned("j1")
        self.ledger.leased("j1", "a1", "anna")
        nobody: Any = None
        self.client = ZmqBulkClient(keys or key_pair())
        self.films: Any = Films(
            labels_of=lambda _: (),
            own=NodeId("anna"),
            folder=self.home,
            trash=self.home / "trash",
            allowed=Allowed([self.films_folder]),
            reader=self.ledger.reader,
            client=self.client,
            contacts=nobody
            if contact is None
            else lambda _: Contact(
                public_key=contact[0], hosts=("127.0.0.1",), port=contact[1].port
            ),
            media=nobody,
        )

    def row(self, **values: Any) -> tuple[Job, Attempt]:
        job, attempt = self.ledger.reader.job("j1"), self.ledger.reader.attempt("a1")
        assert job is not None
        assert attempt is not None
        digest = digest_of(RESULT, CHUNK_BYTES)
        return (
            replace(job, **{"profile_json": BUILT_IN["web"].to_json(), **values}),
            replace(attempt, result_bytes=len(RESULT), result_digest=digest),
        )


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    made = Stand(tmp_path.resolve())
    yield made
    made.client.close()


def test_the_film_itself_is_never_replaced_by_its_result(stand: Stand) -> None:
    film = stand.films_folder / "film.mkv"
    film.write_bytes(b"precious")
    job, attempt = stand.row(source=str(film), output=str(film), overwrite=1)
    (stand.home / "incoming" / "j1.part").write_bytes(RESULT)
    with pytest.raises(ConflictError):
        asyncio.run(stand.films.publish(job, attempt))
    assert film.read_bytes() == b"precious"


def test_an_output_is_replaced_when_its_film_is_gone(stand: Stand) -> None:
    output = stand.films_folder / "film.mp4"
    output.write_bytes(b"older")
    gone = str(stand.films_folder / "film.mkv")
    job, attempt = stand.row(source=gone, output=str(output), overwrite=1)
    (stand.home / "incoming" / "j1.part").write_bytes(RESULT)
    asyncio.run(stand.films.publish(job, attempt))
    assert output.read_bytes() == RESULT


def test_an_id_that_is_a_path_removes_and_reads_nothing(stand: Stand) -> None:
    outside = stand.films_folder / "film.part"
    outside.write_bytes(b"precious")
    job, attempt = stand.row(id="../../films/film")
    with pytest.raises(PathError):
        asyncio.run(stand.films.discard(job))
    with pytest.raises(PathError):
        stand.films._result_source(replace(attempt, id="../../films/film.part"))
    assert outside.read_bytes() == b"precious"


@pytest.mark.skipif(not Path(HELD).is_dir(), reason="files are held by number on Linux alone")
@pytest.mark.parametrize("kind", ["whole", "audio", "assemble"])
def test_children_open_the_film_that_was_checked(stand: Stand, kind: str) -> None:
    film = stand.films_folder / "film.mkv"
    film.write_bytes(b"the film")
    outside = stand.home / "secret"
    outside.write_bytes(b"a secret")
    facts = film.stat()
    job, attempt = stand.row(
        source=str(film),
        source_bytes=facts.st_size,
        source_mtime_ns=facts.st_mtime_ns,
        source_inode=facts.st_ino,
    )
    task: Any = SimpleNamespace(kind=kind)

    async def swapped() -> bytes:
        async with stand.films.opened(Order(job=job, task=task, attempt=attempt), film) as held:
            film.unlink()
            film.symlink_to(outside)
            return await asyncio.to_thread(Path(held).read_bytes)

    assert asyncio.run(swapped()) == b"the film"
    with pytest.raises(PathError):
        asyncio.run(swapped())


def test_a_cache_that_somebody_removed_is_no_end(stand: Stand) -> None:
    (stand.home / "results").rmdir()
    asyncio.run(stand.films.sweep(InlineReplica(stand.ledger.reader)))


def test_of_parts_only_what_is_or_may_be_kept_stays(stand: Stand) -> None:
    stand.ledger.submitted("j2", split=True)
    stand.ledger.must(c.StartPlanning(job="j2"))
    stand.ledger.must(pieces("j2", chunks=2, sound=False))
    stand.ledger.must(c.AddMember(member=spec("carl"), invitation=None))
    stand.ledger.must(grant(("j2-0", "slow", "bert"), ("j2-1", "other", "bert")))
    beside = c.SpeculativeLease(task="j2-0", attempt="quick", node="carl", device="", beside="slow")
    stand.ledger.must(c.SpeculateLeases(leases=(beside,), granted_at_ms=8))
    for attempt in ("slow", "quick", "other"):
        stand.ledger.must(stand.ledger.finish(attempt))
    folder = stand.home / "pieces" / "j2"
    folder.mkdir(parents=True)
    names = {"part-slow.mkv", "part-slow.mkv.journal", "part-quick.mkv", "part-other.mkv", "index"}
    for name in names:
        (folder / name).write_bytes(b"x")

    def left() -> set[str]:
        stand.films._swept_ms = -(10**9)
        asyncio.run(stand.films.sweep(InlineReplica(stand.ledger.reader)))
        return {path.name for path in folder.iterdir()}

    assert left() == names
    stand.ledger.must(stand.ledger.accept("j2", "quick"))
    assert left() == {"part-quick.mkv", "part-other.mkv", "index"}


def test_cancelling_waits_until_the_thread_has_let_go(stand: Stand) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        begun, over = asyncio.Event(), False

        def work(should_stop: Any) -> None:
            nonlocal over
            loop.call_soon_threadsafe(begun.set)
            while not should_stop():
                pass
            over = True

        task = asyncio.ensure_future(stand.films._run(work))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert over

    asyncio.run(main())


def test_a_film_is_fetched_once_and_parts_of_it_alone(tmp_path: Path) -> None:
    anna, bert = key_pair(), key_pair()
    film = tmp_path / "film.mkv"
    film.write_bytes(os.urandom(6 * CHUNK_BYTES))
    manifest = make_manifest(film, tables=tmp_path / "tables")
    server = ZmqBulkServer(
        anna,
        lambda _, __: FileSource(film, manifest, tmp_path / "tables" / manifest.digest),
        host="127.0.0.1",
    )
    server.set_trust({bert.public: node_of(bert)})
    server.start()
    stand = Stand(tmp_path / "bert", keys=bert, contact=(anna.public, server))
    job, attempt = stand.row(
        owner=node_of(anna), source_digest=manifest.digest, source_bytes=manifest.size
    )
    order: Any = SimpleNamespace(job=job, attempt=attempt, task=SimpleNamespace(kind="whole"))
    brought: list[int] = []

    async def fetch(name: str, ranges: list[ByteRange] | None = None) -> bytes:
        folder = tmp_path / name
        folder.mkdir()
        path, count = await stand.films.fetch(order, folder, lambda *_: None, ranges)
        assert path.parent == folder
        brought.append(count)
        return bytes(path.read_bytes())

    async def main() -> None:
        part = await fetch("a", [(CHUNK_BYTES, 2 * CHUNK_BYTES)])
        assert (
            part[CHUNK_BYTES : 2 * CHUNK_BYTES] == film.read_bytes()[CHUNK_BYTES : 2 * CHUNK_BYTES]
        )
        whole = await asyncio.gather(fetch("b"), fetch("c"))
        assert set(whole) == {film.read_bytes()}
        (stand.home / "sources" / manifest.digest).write_bytes(b"rot")
        assert await fetch("d") == film.read_bytes()

    try:
        asyncio.run(main())
    finally:
        stand.films.close()
        stand.client.close()
        server.stop()
    assert brought == [CHUNK_BYTES, 5 * CHUNK_BYTES, 0, 6 * CHUNK_BYTES]
