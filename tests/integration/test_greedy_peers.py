"""Members and strangers that take what they can get from the bulk port: bounded, and others get their share."""

import contextlib
import itertools
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import zmq

from mesh.bulk_client_zmq import ZmqBulkClient
from mesh.bulk_server_zmq import UNTAKEN_MAX, WAITING_MAX
from mesh.transfer import BULK, ChunkRequest
from mesh.transport import CHUNK_BYTES, STRANGERS_MAX, KeyPair
from tests.film_owner import Owner
from tests.meshwork import key_pair, node_of, wait_until
from tests.strangers import GREETING, LOOPBACK, client

CHUNKS = 64
SIZE = CHUNKS * CHUNK_BYTES
WINDOW = 16


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    film = tmp_path / "film.mkv"
    film.write_bytes(os.urandom(CHUNK_BYTES) * CHUNKS)
    made = Owner(film)
    made.server.start()
    yield made
    made.server.stop()


class Asker:
    """A member with so many connections, each with a window of requests in flight; a thread."""

    def __init__(
        self, owner: Owner, keys: KeyPair, connections: int, window: int, *, reads: bool
    ) -> None:
        self._owner, self._keys = owner, keys
        self._connections, self._window, self._reads = connections, window, reads
        self._numbers = itertools.count()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Asker":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> bytes:
        offset = next(self._numbers) % CHUNKS * CHUNK_BYTES
        return BULK.encode(ChunkRequest(handle="film", offset=offset, length=CHUNK_BYTES))

    def _run(self) -> None:
        port, key = self._owner.server.port, self._owner.keys.public
        with contextlib.ExitStack() as stack:
            poller = zmq.Poller()
            for _ in range(self._connections):
                dealer = stack.enter_context(client(port, self._keys, key, receives_max=WINDOW))
                poller.register(dealer, zmq.POLLIN)
                for _ in range(self._window):
                    dealer.send(self._ask())
            while not self._over.is_set():
                if not self._reads:
                    self._over.wait()
                for dealer, _ in poller.poll(50):
                    dealer.recv_multipart(copy=False)
                    dealer.send(self._ask())


def sent(owner: Owner, keys: KeyPair) -> int:
    traffic = owner.server.counters().peers.get(node_of(keys))
    return traffic.bytes_out if traffic else 0


def shares(owner: Owner, *members: KeyPair) -> list[int]:
    """Chunks that each got while all were served, once all were."""
    wait_until(lambda: all(sent(owner, keys) > 2 * WINDOW * CHUNK_BYTES for keys in members), 20)
    before = [sent(owner, keys) for keys in members]
    wait_until(
        lambda: sum(sent(owner, keys) for keys in members) - sum(before) > 512 * CHUNK_BYTES, 30
    )
    return [
        (sent(owner, keys) - then) // CHUNK_BYTES
        for keys, then in zip(members, before, strict=True)
    ]


def test_eight_connections_get_no_more_than_one(owner: Owner) -> None:
    greedy, polite = key_pair(), key_pair()
    owner.server.set_trust({keys.public: node_of(keys) for keys in (greedy, polite)})
    with (
        Asker(owner, greedy, 8, WINDOW, reads=True),
        Asker(owner, polite, 1, WINDOW, reads=True),
    ):
        got = shares(owner, greedy, polite)
    assert got[1] > 0.35 * sum(got), got


def test_who_asks_for_everything_at_once_gets_no_more_than_the_next(owner: Owner) -> None:
    greedy, polite = key_pair(), key_pair()
    owner.server.set_trust({keys.public: node_of(keys) for keys in (greedy, polite)})
    with (
        Asker(owner, greedy, 4, 10 * WAITING_MAX // 4, reads=True),
        Asker(owner, polite, 1, WINDOW, reads=True),
    ):
        got = shares(owner, greedy, polite)
    assert got[1] > 0.35 * sum(got), got
    # What was too much was dropped and counted.
    assert owner.server.counters().refused["send_queue_full"] > 0


def test_who_reads_nothing_costs_a_bounded_memory_and_holds_up_nobody(
    owner: Owner, tmp_path: Path
) -> None:
    rude = key_pair()
    members = {keys.public: node_of(keys) for keys in (rude, owner.member)}
    owner.server.set_trust(members)
    rss = psutil.Process().memory_info().rss
    with Asker(owner, rude, 20, 100, reads=False):
        wait_until(lambda: sent(owner, rude) > 0)
        fetcher = ZmqBulkClient(owner.member)
        with contextlib.closing(fetcher):
            for number in range(4):
                owner.fetch(tmp_path / f"out{number}", fetcher)
        taken = sent(owner, rude)
        grown = psutil.Process().memory_info().rss - rss
    # Its connections' buffers in the system take some as well, up to some MiB each.
    assert taken < (UNTAKEN_MAX + 20 * 2 * WINDOW) * CHUNK_BYTES
    assert grown < (2 * UNTAKEN_MAX + 128) * CHUNK_BYTES, grown


@pytest.mark.parametrize("said", [b"", GREETING, GREETING + b"CURVE" + bytes(47)], ids=len)
def test_strangers_that_say_nothing_more_are_bounded(
    owner: Owner, tmp_path: Path, said: bytes
) -> None:
    count = STRANGERS_MAX + 300
    process = psutil.Process()
    fetcher = ZmqBulkClient(owner.member)
    with contextlib.closing(fetcher), contextlib.ExitStack() as stack:
        before = process.num_fds()
        for _ in range(count):
            raw = stack.enter_context(socket.create_connection((LOOPBACK, owner.server.port)))
            with contextlib.suppress(OSError):
                raw.sendall(said)
        refused: Callable[[], int] = lambda: owner.server.counters().refused.get("busy", 0)  # noqa: E731 - a condition that is waited for
        wait_until(lambda: refused() >= count - STRANGERS_MAX)
        wait_until(lambda: process.num_fds() - before - count <= STRANGERS_MAX + 8)
        owner.fetch(tmp_path / "out", fetcher)
    assert (tmp_path / "out").stat().st_size == SIZE
