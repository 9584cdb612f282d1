"""Transfers over real sockets on loopback: verified, resumed, refused."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from mesh import bulk_client_zmq, bulk_lane_zmq, clock, download
from mesh.bulk_client_zmq import ZmqBulkClient
from mesh.bulk_lane_zmq import REST_MS
from mesh.bulk_server_zmq import ZmqBulkServer
from mesh.curve_zmq import Tally
from mesh.digests import chunk_digest, digest_of
from mesh.download import CHUNK_TRIES_MAX
from mesh.errors import (
    InUseError,
    NotAllowedError,
    NotFoundError,
    SourceChangedError,
    StoppedError,
    TransferError,
    UnreachableError,
    UsageError,
)
from mesh.limits import LinkRates, Rates
from mesh.listener_zmq import Listener, Sender
from mesh.transfer import BULK, ChunkAnswer, ChunkRequest, Manifest, ManifestAnswer
from mesh.transfer_files import FileSource, PartialFile
from mesh.transport import (
    BULK_HEADER_BYTES_MAX,
    CHUNK_BYTES,
    WINDOW_BYTES_MAX,
    KeyPair,
)
from tests.film_owner import Owner
from tests.meshwork import key_pair, node_of, wait_until
from tests.strangers import GARBAGE, LOOPBACK, client, poke, taken_port

SIZE = 24 * CHUNK_BYTES + 12_345


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "film.mkv"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def owner(film: Path) -> Iterator[Owner]:
    made = Owner(film)
    made.server.start()
    yield made
    made.server.stop()


@pytest.fixture
def fetcher(owner: Owner) -> Iterator[ZmqBulkClient]:
    made = ZmqBulkClient(owner.member)
    yield made
    made.close()


def test_a_film_arrives_whole_and_is_counted(
    owner: Owner, fetcher: ZmqBulkClient, tmp_path: Path
) -> None:
    steps: list[tuple[int, int]] = []
    manifest = owner.fetch(
        tmp_path / "out",
        fetcher,
        expected=owner.manifest,
        on_progress=lambda done, size: steps.append((done, size)),
    )
    assert manifest.same_content(owner.manifest)
    assert (tmp_path / "out").read_bytes() == owner.film.read_bytes()
    assert steps[0] == (0, SIZE)
    assert steps[-1] == (SIZE, SIZE)
    assert fetcher.counters().peers[node_of(owner.keys)].bytes_in == SIZE
    assert SIZE < owner.sent.bytes_out < SIZE + 10_000
    assert owner.asked == [(node_of(owner.member), "film")]


def test_several_at_once_do_not_block_one_another(
    owner: Owner, fetcher: ZmqBulkClient, tmp_path: Path
) -> None:
    threads = [
        threading.Thread(target=owner.fetch, args=(tmp_path / f"out{n}", fetcher)) for n in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for number in range(3):
        assert (tmp_path / f"out{number}").read_bytes() == owner.film.read_bytes()


def test_a_greedy_peer_does_not_block_another(
    owner: Owner, fetcher: ZmqBulkClient, tmp_path: Path
) -> None:
    ask = BULK.encode(ChunkRequest(handle="film", offset=0, length=CHUNK_BYTES))
    with client(owner.server.port, owner.member, owner.keys.public, receives_max=1) as greedy:
        for _ in range(200):
            greedy.send(ask)
        owner.fetch(tmp_path / "out", fetcher)
    assert (tmp_path / "out").stat().st_size == SIZE


def test_a_part_brings_its_chunks_and_no_more(
    owner: Owner, fetcher: ZmqBulkClient, tmp_path: Path
) -> None:
    target, film = tmp_path / "out", owner.film.read_bytes()
    ranges = [(3 * CHUNK_BYTES + 5, 5 * CHUNK_BYTES), (SIZE - 10, SIZE)]
    steps: list[tuple[int, int]] = []
    owner.fetch(
        target,
        fetcher,
        expected=owner.manifest,
        ranges=ranges,
        target=PartialFile(target, stays=True),
        on_progress=lambda done, size: steps.append((done, size)),
    )
    got = target.read_bytes()
    assert len(got) == SIZE
    for start, end in ranges:
        assert got[start:end] == film[start:end]
    assert not any(got[: 3 * CHUNK_BYTES])
    wanted = 2 * CHUNK_BYTES + SIZE % CHUNK_BYTES
    assert steps[-1] == (wanted, wanted)
    assert wanted < owner.sent.bytes_out < wanted + 10_000
    # The rest later: what is there is not fetched again.
    owner.fetch(target, fetcher, target=PartialFile(target, stays=True))
    assert target.read_bytes() == film
    assert owner.sent.bytes_out < SIZE + 20_000
    # And a part of what is whole needs nothing.
    owner.fetch(target, fetcher, target=PartialFile(target, stays=True), ranges=ranges)
    assert owner.sent.bytes_out < SIZE + 30_000


def test_a_part_outside_the_file(owner: Owner, fetcher: ZmqBulkClient, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        owner.fetch(tmp_path / "out", fetcher, ranges=[(0, SIZE + 1)])


def test_digests_that_are_not_the_files_are_not_believed(
    owner: Owner, fetcher: ZmqBulkClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileSource, "digests", lambda *_: bytes(32 * 25))
    with pytest.raises(TransferError, match="digests"):
        owner.fetch(tmp_path / "out", fetcher, ranges=[(0, 1)])


def test_a_part_of_a_film_without_a_table(
    owner: Owner, fetcher: ZmqBulkClient, tmp_path: Path
) -> None:
    (owner.tables / owner.manifest.digest).unlink()
    with pytest.raises(NotFoundError, match="table"):
        owner.fetch(tmp_path / "out", fetcher, ranges=[(0, 1)])


def test_the_next_file_needs_no_handshake(
    owner: Owner, fetcher: ZmqBulkClient, tmp_path: Path
) -> None:
    lines = fetcher._lines
    for number in range(3):
        owner.fetch(tmp_path / f"out{number}", fetcher)
        assert len(lines._resting) == 1
    (first,) = lines._resting
    with pytest.raises(NotAllowedError):
        owner.fetch(tmp_path / "no", fetcher, handle="other")
    owner.fetch(tmp_path / "out3", fetcher)
    assert lines._resting[0].line is first.line
    lines.tidy(clock.monotonic_ms() + REST_MS)
    assert lines._resting == []


def test_a_connection_with_something_on_its_way_serves_no_other_file(
    owner: Owner, fetcher: ZmqBulkClient, tmp_path: Path
) -> None:
    def stop(done: int, _: int) -> None:
        if done > CHUNK_BYTES:
            raise StoppedError("enough")

    with pytest.raises(StoppedError):
        owner.fetch(tmp_path / "out", fetcher, on_progress=stop)
    assert fetcher._lines._resting == []


def test_a_peer_that_went_and_came_while_the_connection_rested(
    owner: Owner, fetcher: ZmqBulkClient, tmp_path: Path
) -> None:
    owner.fetch(tmp_path / "a", fetcher)
    port = owner.server.port
    owner.server.stop()
    owner.server = ZmqBulkServer(owner.keys, owner.source_for, host=LOOPBACK, port=port)
    owner.server.set_trust({owner.member.public: node_of(owner.member)})
    owner.server.start()
    owner.fetch(tmp_path / "b", fetcher)
    assert (tmp_path / "b").read_bytes() == owner.film.read_bytes()


def test_several_connections_bring_one_film(
    owner: Owner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_client_zmq, "LANE_BYTES_MIN", CHUNK_BYTES)
    monkeypatch.setattr(bulk_client_zmq, "io_threads", lambda: 3)
    fetcher = ZmqBulkClient(owner.member)
    steps: list[int] = []
    with contextlib.closing(fetcher):
        owner.fetch(tmp_path / "out", fetcher, on_progress=lambda done, _: steps.append(done))
        assert len(fetcher._lines._resting) == 3
    assert (tmp_path / "out").read_bytes() == owner.film.read_bytes()
    assert steps[-1] == SIZE
    assert steps == sorted(steps)


def test_one_of_several_connections_that_fails_ends_the_transfer(
    owner: Owner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_client_zmq, "LANE_BYTES_MIN", CHUNK_BYTES)
    monkeypatch.setattr(bulk_client_zmq, "io_threads", lambda: 3)
    with owner.film.open("r+b") as file:
        facts = owner.film.stat()
        file.seek(20 * CHUNK_BYTES)
        file.write(b"bit rot")
    os.utime(owner.film, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    fetcher = ZmqBulkClient(owner.member)
    with contextlib.closing(fetcher), pytest.raises(SourceChangedError, match=r"film\.mkv reads"):
        owner.fetch(tmp_path / "out", fetcher)


@pytest.mark.parametrize("side", ["up", "down"])
def test_a_limit_holds_and_is_changed_while_it_runs(
    owner: Owner, fetcher: ZmqBulkClient, tmp_path: Path, side: str
) -> None:
    slow = LinkRates(node=Rates(**{side: 8 * CHUNK_BYTES}))
    changer = owner.server if side == "up" else fetcher
    changer.set_rates(slow)
    halfway: list[int] = []

    def faster(done: int, _: int) -> None:
        if done >= SIZE // 2 and not halfway:
            halfway.append(clock.monotonic_ms())
            changer.set_rates(LinkRates())

    begun = clock.monotonic_ms()
    owner.fetch(tmp_path / "out", fetcher, on_progress=faster)
    # Half of it at eight chunks a second, less the burst.
    assert halfway[0] - begun > 1_000
    assert clock.monotonic_ms() - halfway[0] < 1_000
    assert (tmp_path / "out").read_bytes() == owner.film.read_bytes()
    assert SIZE < owner.sent.bytes_out < SIZE + 10_000


def test_who_waits_for_a_limit_is_told_and_not_given_up(
    owner: Owner, fetcher: ZmqBulkClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "GIVE_UP_MS", 2_000)
    monkeypatch.setattr(download, "ASK_AGAIN_MIN_MS", 1_500)
    owner.server.set_rates(LinkRates(links={node_of(owner.member): Rates(up=CHUNK_BYTES // 4)}))
    released = threading.Timer(6, lambda: owner.server.set_rates(LinkRates()))
    released.start()
    owner.fetch(tmp_path / "out", fetcher)
    released.join()
    assert (tmp_path / "out").read_bytes() == owner.film.read_bytes()
    assert owner.sent.bytes_out < SIZE + 10_000


def test_speeds_are_remembered(owner: Owner, fetcher: ZmqBulkClient, tmp_path: Path) -> None:
    assert fetcher.speeds() == {}
    owner.fetch(tmp_path / "out", fetcher)
    assert fetcher.speeds()[node_of(owner.keys)] > CHUNK_BYTES


def test_a_handle_that_is_not_the_peers(
    owner: Owner, fetcher: ZmqBulkClient, tmp_path: Path
) -> None:
    with pytest.raises(NotAllowedError, match="not yours"):
        owner.fetch(tmp_path / "out", fetcher, handle="../etc/passwd")
    assert owner.server.counters().refused == {"not_allowed": 1}
    assert not (tmp_path / "out").exists()


def test_another_file_than_the_one_expected(
    owner: Owner, fetcher: ZmqBulkClient, tmp_path: Path
) -> None:
    with pytest.raises(SourceChangedError):
        owner.fetch(tmp_path / "out", fetcher, expected=Manifest(size=SIZE, digest="0" * 64))


def test_a_source_that_changes_during_the_transfer(
    owner: Owner, fetcher: ZmqBulkClient, tmp_path: Path
) -> None:
    def meddle(done: int, size: int) -> None:
        if done > 4 * CHUNK_BYTES:
            with owner.film.open("r+b") as file:
                file.write(b"changed")

    with pytest.raises(SourceChangedError, match=r"film\.mkv"):
        owner.fetch(tmp_path / "out", fetcher, on_progress=meddle)


@pytest.mark.parametrize("with_table", [True, False])
def test_a_source_that_changed_without_a_trace_is_noticed(
    owner: Owner, fetcher: ZmqBulkClient, tmp_path: Path, with_table: bool
) -> None:
    if not with_table:
        (owner.tables / owner.manifest.digest).unlink()
    facts = owner.film.stat()
    with owner.film.open("r+b") as file:
        file.seek(5 * CHUNK_BYTES)
        file.write(b"bit rot")
    os.utime(owner.film, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    # With the table where it happens and by name, without it at the end.
    why = r"film\.mkv reads differently at byte 5242880" if with_table else "digest"
    with pytest.raises(TransferError, match=why):
        owner.fetch(tmp_path / "out", fetcher)
    assert with_table or not (tmp_path / "out").exists()


def test_stopping_a_transfer_and_going_on(
    owner: Owner, fetcher: ZmqBulkClient, tmp_path: Path
) -> None:
    seen: list[int] = []
    with pytest.raises(StoppedError):
        owner.fetch(
            tmp_path / "out",
            fetcher,
            on_progress=lambda done, _: seen.append(done),
            should_stop=lambda: bool(seen) and seen[-1] > SIZE // 2,
        )
    before = fetcher.counters().peers[node_of(owner.keys)].bytes_in
    owner.fetch(tmp_path / "out", fetcher)
    after = fetcher.counters().peers[node_of(owner.keys)].bytes_in
    assert (tmp_path / "out").read_bytes() == owner.film.read_bytes()
    assert after - before == SIZE - seen[-1]


def test_a_node_that_stops_stops_its_transfers(owner: Owner, tmp_path: Path) -> None:
    fetcher = ZmqBulkClient(owner.member)
    with pytest.raises(StoppedError):
        owner.fetch(tmp_path / "out", fetcher, on_progress=lambda *_: fetcher.close())
    with pytest.raises(StoppedError):
        owner.fetch(tmp_path / "out", fetcher)


def test_the_transfer_survives_a_server_that_restarts(
    owner: Owner, fetcher: ZmqBulkClient, tmp_path: Path
) -> None:
    restarted: list[ZmqBulkServer] = []

    def restart(done: int, _: int) -> None:
        if done > SIZE // 2 and not restarted:
            port = owner.server.port
            owner.server.stop()
            owner.server = ZmqBulkServer(owner.keys, owner.source_for, host=LOOPBACK, port=port)
            owner.server.set_trust({owner.member.public: node_of(owner.member)})
            owner.server.start()
            restarted.append(owner.server)

    owner.fetch(tmp_path / "out", fetcher, on_progress=restart)
    assert restarted
    assert (tmp_path / "out").read_bytes() == owner.film.read_bytes()


def test_nobody_there(owner: Owner, fetcher: ZmqBulkClient, tmp_path: Path) -> None:
    owner.server.stop()
    with pytest.raises(UnreachableError):
        owner.fetch(tmp_path / "out", fetcher)
    with pytest.raises(UnreachableError):
        owner.fetch(tmp_path / "out", fetcher, port=0)
    owner.server = ZmqBulkServer(owner.keys, owner.source_for, host=LOOPBACK)


def test_names_are_resolved_and_addresses_that_nobody_answers_are_passed(
    owner: Owner, fetcher: ZmqBulkClient, tmp_path: Path
) -> None:
    owner.fetch(tmp_path / "out", fetcher, hosts=["127.0.0.9", "no.invalid", "localhost"])
    assert (tmp_path / "out").stat().st_size == SIZE


def test_a_revoked_peer_gets_nothing_more(
    owner: Owner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_lane_zmq, "GIVE_UP_MS", 2_000)  # of dialling, instead of half a minute
    innocent = key_pair()
    both = {owner.member.public: node_of(owner.member), innocent.public: node_of(innocent)}
    owner.server.set_trust(both)
    revoked, other = ZmqBulkClient(owner.member), ZmqBulkClient(innocent)

    def revoke(done: int, _: int) -> None:
        if done > 4 * CHUNK_BYTES:
            owner.server.set_trust({innocent.public: node_of(innocent)})

    with contextlib.closing(revoked), contextlib.closing(other):
        halfway = threading.Event()
        result: list[Manifest] = []
        thread = threading.Thread(
            target=lambda: result.append(
                owner.fetch(tmp_path / "b", other, on_progress=lambda *_: halfway.wait(20))
            )
        )
        thread.start()
        with pytest.raises(UnreachableError):
            owner.fetch(tmp_path / "a", revoked, on_progress=revoke)
        halfway.set()
        thread.join(60)
    assert result
    assert (tmp_path / "b").read_bytes() == owner.film.read_bytes()
    assert owner.server.counters().refused["not_member"] > 0
    assert owner.sent.bytes_out < SIZE


def test_every_message_is_judged_by_its_key_not_only_the_handshake(owner: Owner) -> None:
    frame = zmq.Frame(BULK.encode(ChunkRequest(handle="film", offset=0, length=1)))
    owner.server._on_frames(Sender(b"routing", key_pair().public, "10.0.0.9"), [frame])
    assert owner.asked == []
    assert owner.server.counters().refused == {"not_member": 1}


class Rogue:
    """A member that answers every chunk request with a chunk whose bytes are not its digest's."""

    def __init__(self, keys: KeyPair, wrong_times: int) -> None:
        self.data = bytes(CHUNK_BYTES)
        self.left = wrong_times
        self.listener = Listener(
            name="bulk",
            identity=keys,
            admit=lambda _: True,
            on_frames=self.answer,
            tally=Tally("rogue"),
            frame_bytes_max=BULK_HEADER_BYTES_MAX,
            send_queue_max=64,
            receive_queue_max=64,
        )

    def answer(self, sender: Sender, frames: list[object]) -> None:
        request = BULK.decode(bytes(frames[0].buffer))  # type: ignore[attr-defined]  # a Frame
        reply = self.listener.reply
        if not isinstance(request, ChunkRequest):
            manifest = Manifest(size=CHUNK_BYTES, digest=digest_of(self.data, CHUNK_BYTES))
            reply(sender, [b"\xc1 garbage before the answer"])
            reply(sender, [BULK.encode(ChunkAnswer(offset=0, digest=b"")), b"too early"])
            reply(sender, [BULK.encode(ManifestAnswer(manifest=Manifest(size=-1, digest="")))])
            reply(sender, [BULK.encode(ManifestAnswer(manifest=manifest))])
            return
        head = BULK.encode(ChunkAnswer(offset=0, digest=chunk_digest(self.data)))
        wrong = bytearray(self.data)
        if self.left > 0:
            self.left -= 1
            wrong[777] ^= 1
        reply(sender, [head, bytes(wrong)])


@pytest.mark.parametrize("wrong_times", [1, CHUNK_TRIES_MAX])
def test_a_flipped_bit_in_a_chunk_is_noticed(tmp_path: Path, wrong_times: int) -> None:
    keys, member = key_pair(), key_pair()
    rogue = Rogue(keys, wrong_times)
    rogue.listener.open(LOOPBACK, 0)
    fetcher = ZmqBulkClient(member)
    try:
        with contextlib.ExitStack() as stack:
            if wrong_times == CHUNK_TRIES_MAX:
                stack.enter_context(pytest.raises(TransferError, match="damaged"))
            fetcher.fetch(
                peer=node_of(keys),
                public_key=keys.public,
                hosts=[LOOPBACK],
                port=rogue.listener.port,
                handle="film",
                target=PartialFile(tmp_path / "out"),
            )
            assert (tmp_path / "out").read_bytes() == rogue.data
        assert fetcher.counters().refused == {"bad_digest": wrong_times, "malformed": 2}
    finally:
        fetcher.close()
        rogue.listener.close()


RECEIVER = """
import sys
from pathlib import Path
from mesh.bulk_client_zmq import ZmqBulkClient
from mesh.transfer_files import PartialFile
from mesh.transport import KeyPair
server, public, secret, port, peer, out = sys.argv[1:]
fetcher = ZmqBulkClient(KeyPair(bytes.fromhex(public), bytes.fromhex(secret)))
fetcher.fetch(
    peer=peer, public_key=bytes.fromhex(server), hosts=["127.0.0.1"], port=int(port), handle="film",
    target=PartialFile(Path(out)), on_progress=lambda done, _: print(done, flush=True),
)
"""


def test_a_killed_receiver_goes_on_where_it_was(
    owner: Owner, fetcher: ZmqBulkClient, tmp_path: Path
) -> None:
    arguments = [
        owner.keys.public.hex(),
        owner.member.public.hex(),
        owner.member.secret.hex(),
        str(owner.server.port),
        node_of(owner.keys),
        str(tmp_path / "out"),
    ]
    child = subprocess.Popen(
        [sys.executable, "-c", RECEIVER, *arguments], stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) > SIZE // 2:
                child.send_signal(signal.SIGKILL)
                break
        child.stdout.read()
    assert child.returncode == -signal.SIGKILL
    first: list[int] = []
    owner.fetch(tmp_path / "out", fetcher, on_progress=lambda done, _: first.append(done))
    assert first[0] > SIZE // 2 - CHUNK_BYTES
    assert (tmp_path / "out").read_bytes() == owner.film.read_bytes()
    assert owner.sent.bytes_out < SIZE + WINDOW_BYTES_MAX + 10_000


def test_a_port_that_is_taken(owner: Owner) -> None:
    with taken_port() as port:
        server = ZmqBulkServer(owner.keys, owner.source_for, host=LOOPBACK, port=port)
        with pytest.raises(InUseError, match=str(port)):
            server.start()
        server.stop()


def test_garbage_strangers_and_bad_frames_leave_it_working(
    owner: Owner, fetcher: ZmqBulkClient, tmp_path: Path
) -> None:
    film_head = owner.film.read_bytes()[:64]
    for data in GARBAGE:
        assert film_head not in poke(owner.server.port, data)
    frames = [
        [b""],
        [b"\xc1" * 100],
        [b"x" * (BULK_HEADER_BYTES_MAX + 1)],
        [b"one", b"two"],
        [BULK.encode(ChunkAnswer(offset=0, digest=b""))],
        [BULK.encode(ChunkRequest(handle="film", offset=0, length=CHUNK_BYTES + 1))],
        [BULK.encode(ChunkRequest(handle="film", offset=0, length=0))],
        [BULK.encode(ChunkRequest(handle="film", offset=-1, length=1))],
        [BULK.encode(ChunkRequest(handle="film", offset=SIZE, length=1))],
        [BULK.encode(ChunkRequest(handle="f" * 513, offset=0, length=1))],
        [BULK.encode(ChunkRequest(handle="film", offset=0, length=1))[:-1]],
    ]
    with (
        client(owner.server.port, key_pair(), owner.keys.public) as stranger,
        client(owner.server.port, None, b"") as naked,
        client(owner.server.port, owner.member, owner.keys.public) as member,
    ):
        ask = BULK.encode(ChunkRequest(handle="film", offset=0, length=10))
        stranger.send(ask)
        naked.send(ask)
        for frame in frames:
            member.send_multipart(frame)
        owner.fetch(tmp_path / "out", fetcher)
        wait_until(lambda: sum(owner.server.counters().refused.values()) >= len(frames) + 2)
        assert not stranger.poll(0)
        assert not naked.poll(0)
        assert member.poll(0)
        (answer,) = member.recv_multipart()
        assert BULK.decode(answer).code == "source_changed"
        assert not member.poll(0)
    refused = owner.server.counters().refused
    assert refused["malformed"] == len(frames) - 2
    assert refused["oversized"] == 1
    assert refused["not_member"] >= 1
    assert refused["handshake"] >= 1


def test_many_files_are_not_all_held_open(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    closed: list[str] = []

    class Noted(FileSource):
        def __init__(self, name: str) -> None:
            super().__init__(owner.film, owner.manifest)
            self.name = name
            opened.append(name)

        def close(self) -> None:
            super().close()
            closed.append(self.name)

    server = ZmqBulkServer(owner.keys, lambda _, handle: Noted(handle), host=LOOPBACK)
    server.set_trust({owner.member.public: node_of(owner.member)})
    server.start()
    try:
        with client(server.port, owner.member, owner.keys.public) as member:
            for number in range(100):
                ask = ChunkRequest(handle=str(number), offset=0, length=1)
                member.send(BULK.encode(ask))
                assert member.poll(10_000)
                member.recv_multipart()
        assert len(opened) == 100
        assert closed == opened[: 100 - 64]
    finally:
        server.stop()
    assert sorted(closed) == sorted(opened)
