"""A film that several workers fetch leaves its owner about once: they have it from each other."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from mesh import bulk_helpers_zmq, clock
from mesh.bulk_client_zmq import ZmqBulkClient
from mesh.bulk_server_zmq import ZmqBulkServer
from mesh.digests import DIGEST_BYTES
from mesh.errors import NotFoundError, SourceChangedError
from mesh.ids import NodeId
from mesh.limits import LinkRates, Rates
from mesh.shares import Helper
from mesh.source_cache_files import CachedSource, SourceCache
from mesh.transfer import Source
from mesh.transfer_files import JOURNAL_SUFFIX, TABLE_AT, PartialFile
from mesh.transport import CHUNK_BYTES, KeyPair
from tests.film_owner import Owner
from tests.meshwork import key_pair, node_of
from tests.strangers import LOOPBACK

CHUNKS = 96
SIZE = CHUNKS * CHUNK_BYTES
UP = 48 * CHUNK_BYTES
"""What the owner's link carries in a second: two seconds for the film once, six for it thrice."""


class Worker:
    """A node with a cache that serves what it has, and fetches into it."""

    def __init__(self, owner: Owner, folder: Path) -> None:
        self.keys: KeyPair = key_pair()
        self.owner = owner
        self.cache = SourceCache(folder, bytes_max=1 << 40, age_max_ms=1 << 40)
        self.server = ZmqBulkServer(self.keys, self._source_for, host=LOOPBACK)
        self.client = ZmqBulkClient(self.keys, compress=False)
        self.helpers: Callable[[], Sequence[Helper]] = tuple
        self.start = 0.0
        self.served = 0
        self.server.start()

    def _source_for(self, _: NodeId, handle: str) -> Source:
        assert handle == "cached"
        self.served += 1
        return self.cache.source("film", self.owner.manifest)

    def look(self) -> Sequence[Helper]:
        return self.helpers()

    def as_helper(self) -> Helper:
        return Helper(
            peer=node_of(self.keys),
            public_key=self.keys.public,
            hosts=(LOOPBACK,),
            port=self.server.port,
            handle="cached",
        )

    @property
    def path(self) -> Path:
        return self.cache.path("film")

    def fetch(self) -> None:
        self.owner.fetch(
            self.path,
            self.client,
            target=PartialFile(self.path, stays=True),
            expected=self.owner.manifest,
            helpers=self,
        )

    def given(self) -> int:
        """Bytes that it gave to others."""
        return sum(peer.bytes_out for peer in self.server.counters().peers.values())

    def close(self) -> None:
        self.client.close()
        self.server.stop()


class Stand:
    def __init__(self, folder: Path, count: int) -> None:
        film = folder / "film.mkv"
        film.write_bytes(os.urandom(SIZE))
        self.owner = Owner(film)
        self.owner.server.start()
        self.workers = [Worker(self.owner, folder / f"worker{n}") for n in range(count)]
        trust = {worker.keys.public: node_of(worker.keys) for worker in self.workers}
        for server in (self.owner.server, *(worker.server for worker in self.workers)):
            server.set_trust(trust)
        for number, worker in enumerate(self.workers):
            others = [other for other in self.workers if other is not worker]
            worker.helpers = lambda others=others: [other.as_helper() for other in others]  # type: ignore[misc]  # mypy infers no lambda with a default
            worker.start = number / count

    def sent(self) -> int:
        """Bytes that left the owner."""
        return sum(peer.bytes_out for peer in self.owner.server.counters().peers.values())

    def fetch_at_once(self) -> None:
        threads = [threading.Thread(target=worker.fetch) for worker in self.workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def all_have_it(self) -> bool:
        film = self.owner.film.read_bytes()
        return all(worker.path.read_bytes() == film for worker in self.workers)

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.owner.server.stop()


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Stand]:
    with contextlib.closing(Stand(tmp_path, 3)) as made:
        yield made


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Stand]:
    with contextlib.closing(Stand(tmp_path, 2)) as made:
        yield made


def test_three_workers_take_a_film_from_its_owner_about_once(
    three: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_helpers_zmq, "LOOK_S", 0.1)
    three.owner.server.set_rates(LinkRates(node=Rates(up=UP)))
    begun_ms = clock.monotonic_ms()
    three.fetch_at_once()
    took_ms = clock.monotonic_ms() - begun_ms
    assert three.all_have_it()
    # Thrice without each other; what is asked for twice is what is on its way when one looks.
    assert three.sent() < 1.7 * SIZE, three.sent() / SIZE
    assert took_ms < 0.8 * 3_000 * SIZE / UP, took_ms
    assert all(worker.given() > 0 for worker in three.workers)


def test_what_a_worker_has_it_gives_to_the_next(two: Stand) -> None:
    first, second = two.workers
    first.fetch()
    before = two.sent()
    two.owner.server.set_rates(LinkRates(node=Rates(up=UP)))
    second.fetch()
    assert two.all_have_it()
    assert two.sent() - before < SIZE // 2
    assert first.given() > SIZE // 2


def test_a_helper_that_lies_is_left_out(two: Stand) -> None:
    first, second = two.workers
    first.fetch()
    for index in range(CHUNKS):
        with first.path.open("r+b") as file:
            file.seek(index * CHUNK_BYTES)
            file.write(b"not the film")
    two.owner.server.set_rates(LinkRates(node=Rates(up=2 * UP)))
    second.fetch()
    assert second.path.read_bytes() == two.owner.film.read_bytes()
    assert second.client.counters().refused["bad_digest"] > 0


def test_a_helper_that_goes_costs_no_more_than_its_last_chunks(two: Stand) -> None:
    first, second = two.workers
    first.fetch()
    first.server.set_rates(LinkRates(node=Rates(up=4 * CHUNK_BYTES)))
    two.owner.server.set_rates(LinkRates(node=Rates(up=UP)))
    gone = threading.Event()

    def go(_: int, __: int) -> None:
        if first.given() > 2 * CHUNK_BYTES and not gone.is_set():
            gone.set()
            first.server.stop()

    two.owner.fetch(
        second.path,
        second.client,
        target=PartialFile(second.path, stays=True),
        expected=two.owner.manifest,
        helpers=second,
        on_progress=go,
    )
    assert gone.is_set()
    assert second.path.read_bytes() == two.owner.film.read_bytes()


def test_a_slow_helper_holds_nothing_up(two: Stand) -> None:
    first, second = two.workers
    first.fetch()
    first.server.set_rates(LinkRates(node=Rates(up=CHUNK_BYTES // 4)))
    two.owner.server.set_rates(LinkRates(node=Rates(up=UP)))
    begun_ms = clock.monotonic_ms()
    second.fetch()
    assert second.path.read_bytes() == two.owner.film.read_bytes()
    # Two seconds alone; its sixteen chunks would take a minute.
    assert clock.monotonic_ms() - begun_ms < 8_000


def test_a_helper_that_has_nothing_is_no_helper(two: Stand) -> None:
    first, second = two.workers
    second.fetch()
    assert second.path.read_bytes() == two.owner.film.read_bytes()
    assert first.given() < 10_000  # refusals


def test_an_owner_without_a_table_sends_all_itself(two: Stand) -> None:
    first, second = two.workers
    first.fetch()
    (two.owner.tables / two.owner.manifest.digest).unlink()
    before = two.sent()
    second.fetch()
    assert second.path.read_bytes() == two.owner.film.read_bytes()
    assert two.sent() - before >= SIZE


# --- the cache as a source ---------------------------------------------------------------------------


@pytest.fixture
def cached(two: Stand) -> Iterator[tuple[Stand, CachedSource]]:
    worker = two.workers[0]
    worker.fetch()
    source = worker.cache.source("film", two.owner.manifest)
    yield two, source
    source.close()


def test_a_cache_tells_what_it_has(cached: tuple[Stand, CachedSource]) -> None:
    two, source = cached
    assert all(source.there())
    path = two.workers[0].path
    with path.with_name(path.name + JOURNAL_SUFFIX).open("r+b") as journal:
        for index in (3, CHUNKS - 1):
            journal.seek(TABLE_AT + index * DIGEST_BYTES)
            journal.write(bytes(DIGEST_BYTES))
    there = source.there()
    assert len(there) == CHUNKS
    assert [index for index, one in enumerate(there) if not one] == [3, CHUNKS - 1]
    with pytest.raises(NotFoundError):
        source.read(3 * CHUNK_BYTES, CHUNK_BYTES)


def test_a_cache_reads_whole_chunks_and_looks_when_asked_to(
    cached: tuple[Stand, CachedSource],
) -> None:
    two, source = cached
    data, digest = source.read(CHUNK_BYTES, CHUNK_BYTES)
    assert len(digest) == DIGEST_BYTES
    assert data == two.owner.film.read_bytes()[CHUNK_BYTES : 2 * CHUNK_BYTES]
    with pytest.raises(NotFoundError):
        source.read(CHUNK_BYTES, 5)
    with two.workers[0].path.open("r+b") as file:
        file.seek(CHUNK_BYTES)
        file.write(b"rot")
    assert source.read(CHUNK_BYTES, CHUNK_BYTES)[1] == digest
    with pytest.raises(SourceChangedError):
        source.read(CHUNK_BYTES, CHUNK_BYTES, check=True)
    with pytest.raises(NotFoundError):
        source.digests(0, 1)


def test_a_film_that_is_not_in_the_cache(two: Stand) -> None:
    with pytest.raises(NotFoundError):
        two.workers[0].cache.source("film", two.owner.manifest)
