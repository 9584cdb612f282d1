"""Small files over real sockets: many in one answer, each verified and durable, each fault its own."""

import itertools
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mesh import bulk_bundle_zmq, clock, transfer_files
from mesh.bulk_client_zmq import ZmqBulkClient
from mesh.bulk_server_zmq import ZmqBulkServer
from mesh.digests import digest_of
from mesh.errors import NotAllowedError, SourceChangedError, StoppedError, UnreachableError
from mesh.ids import NodeId
from mesh.limits import LinkRates, Rates
from mesh.transfer import BULK, Brought, BundleRequest, Manifest, Source, Wanted
from mesh.transfer_files import FileSource, PartialFile, make_manifest
from mesh.transport import CHUNK_BYTES, KeyPair
from tests.meshwork import key_pair, node_of
from tests.strangers import LOOPBACK

SIZES = (0, 1, 5_000, 200_000, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES)


@dataclass
class Shelf:
    """A node that serves small files by name."""

    folder: Path
    keys: KeyPair = field(default_factory=key_pair)
    member: KeyPair = field(default_factory=key_pair)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.manifests: dict[str, Manifest] = {}
        self.start(0)

    def start(self, port: int) -> None:
        self.server = ZmqBulkServer(self.keys, self.source_for, host=LOOPBACK, port=port)
        self.server.set_trust({self.member.public: node_of(self.member)})
        self.server.start()

    def add(self, name: str, size: int) -> None:
        path = self.folder / name
        path.write_bytes(os.urandom(size))
        self.manifests[name] = make_manifest(path, tables=self.folder / "tables")

    def source_for(self, _: NodeId, handle: str) -> Source:
        self.asked.append(handle)
        if handle not in self.manifests:
            raise NotAllowedError("this handle is not yours")
        manifest = self.manifests[handle]
        return FileSource(self.folder / handle, manifest, self.folder / "tables" / manifest.digest)

    def wanted(self, to: Path, *names: str) -> deque[Wanted]:
        unknown = Manifest(size=9, digest="0" * 64)
        return deque(
            Wanted(
                handle=name,
                expected=self.manifests.get(name, unknown),
                target=PartialFile(to / name),
            )
            for name in names
        )

    def bring(self, client: ZmqBulkClient, files: deque[Wanted]) -> dict[str, Brought]:
        brought = client.fetch_many(
            peer=node_of(self.keys),
            public_key=self.keys.public,
            hosts=[LOOPBACK],
            port=self.server.port,
            next_file=lambda: files.popleft() if files else None,
        )
        return {done.wanted.handle: done for done in brought}


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    (tmp_path / "shelf").mkdir()
    made = Shelf(tmp_path / "shelf")
    yield made
    made.server.stop()


@pytest.fixture
def client(shelf: Shelf) -> Iterator[ZmqBulkClient]:
    made = ZmqBulkClient(shelf.member)
    yield made
    made.close()


@pytest.fixture
def to(tmp_path: Path) -> Path:
    made = tmp_path / "to"
    made.mkdir()
    return made


def assert_same(shelf: Shelf, to: Path, names: Iterator[str] | list[str]) -> None:
    for name in names:
        assert (to / name).read_bytes() == (shelf.folder / name).read_bytes(), name


def test_files_of_every_size_arrive(shelf: Shelf, client: ZmqBulkClient, to: Path) -> None:
    names = [f"{number}-{size}" for number, size in enumerate(SIZES * 3)]
    for name in names:
        shelf.add(name, int(name.partition("-")[2]))
    brought = shelf.bring(client, shelf.wanted(to, *names))
    assert {name: done.error for name, done in brought.items()} == dict.fromkeys(names)
    assert_same(shelf, to, names)
    assert sorted(path.name for path in to.iterdir()) == sorted(names)
    total = sum(manifest.size for manifest in shelf.manifests.values())
    traffic = client.counters().peers[node_of(shelf.keys)]
    assert traffic.bytes_in == total
    # A file of a chunk goes with others or alone, never in an exchange of its own with more.
    assert traffic.frames_in <= total // CHUNK_BYTES + len(names)


def test_a_thousand_files_take_no_thousand_answers(
    shelf: Shelf, client: ZmqBulkClient, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{number:04}" for number in range(1_000)]
    for name in names:
        shelf.add(name, 300)
    settled = itertools.count()
    real = transfer_files.sync_folder

    def counted(folder: Path) -> None:
        next(settled)
        real(folder)

    monkeypatch.setattr(transfer_files, "sync_folder", counted)
    brought = shelf.bring(client, shelf.wanted(to, *names))
    assert len(brought) == len(names)
    assert_same(shelf, to, names)
    bundles = -(-len(names) // bulk_bundle_zmq.BUNDLE_FILES_MAX)
    assert next(settled) == bundles
    assert shelf.asked == names  # each once, and none by itself as well


def test_one_that_is_refused_or_changed_keeps_no_other_back(
    shelf: Shelf, client: ZmqBulkClient, to: Path
) -> None:
    for name in "abc":
        shelf.add(name, 1_000)
    (shelf.folder / "b").write_bytes(b"another film")
    brought = shelf.bring(client, shelf.wanted(to, "a", "not-yours", "b", "c"))
    assert brought["a"].error is None
    assert brought["c"].error is None
    assert isinstance(brought["not-yours"].error, NotAllowedError)
    assert isinstance(brought["b"].error, SourceChangedError)
    assert not any(path.stat().st_size for path in to.iterdir() if path.name not in "ac")


def test_bit_rot_is_noticed_and_named(shelf: Shelf, client: ZmqBulkClient, to: Path) -> None:
    for name in "ab":
        shelf.add(name, 1_000)
    path = shelf.folder / "b"
    facts = path.stat()
    with path.open("r+b") as file:
        file.write(b"rot")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    brought = shelf.bring(client, shelf.wanted(to, "a", "b"))
    assert brought["a"].error is None
    assert isinstance(brought["b"].error, SourceChangedError)
    assert not (to / "b").stat().st_size
    assert client.counters().refused["bad_digest"] >= 1


def test_a_file_of_another_content_than_expected(
    shelf: Shelf, client: ZmqBulkClient, to: Path
) -> None:
    shelf.add("a", 1_000)
    other = Manifest(size=1_000, digest=digest_of(b"x" * 1_000, CHUNK_BYTES))
    wanted = Wanted(handle="a", expected=other, target=PartialFile(to / "a"))
    brought = shelf.bring(client, deque([wanted]))
    assert isinstance(brought["a"].error, SourceChangedError)
    assert not (to / "a").exists()


def test_a_peer_that_restarts_in_between_is_asked_again(
    shelf: Shelf, client: ZmqBulkClient, to: Path
) -> None:
    names = [f"{number:03}" for number in range(200)]
    for name in names:
        shelf.add(name, 200_000)
    files = shelf.wanted(to, *names)
    restarted = False

    def next_file() -> Wanted | None:
        nonlocal restarted
        if len(files) == 100 and not restarted:
            restarted = True
            port = shelf.server.port
            shelf.server.stop()
            shelf.start(port)
        return files.popleft() if files else None

    brought = list(
        client.fetch_many(
            peer=node_of(shelf.keys),
            public_key=shelf.keys.public,
            hosts=[LOOPBACK],
            port=shelf.server.port,
            next_file=next_file,
        )
    )
    assert [done.error for done in brought] == [None] * len(names)
    assert_same(shelf, to, names)


def test_an_older_peer_that_knows_no_bundles_is_asked_one_by_one(
    shelf: Shelf, client: ZmqBulkClient, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.add("a", 1_000)
    monkeypatch.setattr(bulk_bundle_zmq, "ASK_AGAIN_MIN_MS", 200)
    decode = BULK.decode

    def older(data: memoryview) -> object:
        message = decode(data)
        return None if isinstance(message, BundleRequest) else message

    monkeypatch.setattr(BULK, "decode", older)
    assert shelf.bring(client, shelf.wanted(to, "a"))["a"].error is None
    assert_same(shelf, to, ["a"])


def test_nobody_there(shelf: Shelf, client: ZmqBulkClient, to: Path) -> None:
    shelf.add("a", 1)
    shelf.server.stop()
    with pytest.raises(UnreachableError):
        shelf.bring(client, shelf.wanted(to, "a"))
    shelf.start(0)


def test_what_nobody_wants_any_more_is_not_written(
    shelf: Shelf, client: ZmqBulkClient, to: Path
) -> None:
    for name in "ab":
        shelf.add(name, 1_000)
    (a,) = shelf.wanted(to, "a")
    b = Wanted(
        handle="b",
        expected=shelf.manifests["b"],
        target=PartialFile(to / "b"),
        claim=lambda: False,
    )
    shelf.bring(client, deque([a, b]))
    assert [path.name for path in to.iterdir()] == ["a"]


def test_limits_hold_for_bundles(shelf: Shelf, client: ZmqBulkClient, to: Path) -> None:
    names = [f"{number:02}" for number in range(40)]
    for name in names:
        shelf.add(name, 200_000)
    shelf.server.set_rates(LinkRates(node=Rates(up=8_000_000)))
    begun_ms = clock.monotonic_ms()
    shelf.bring(client, shelf.wanted(to, *names))
    # 8 MB at 8 MB/s, but for what may go at once.
    assert clock.monotonic_ms() - begun_ms > 700


def test_a_stopped_client_stops(shelf: Shelf, client: ZmqBulkClient, to: Path) -> None:
    shelf.add("a", 1_000)
    shelf.server.set_rates(LinkRates(node=Rates(up=1)))
    files = shelf.wanted(to, *["a"] * 3)

    def next_file() -> Wanted | None:
        client.close()
        return files.popleft() if files else None

    with pytest.raises(StoppedError):
        list(
            client.fetch_many(
                peer=node_of(shelf.keys),
                public_key=shelf.keys.public,
                hosts=[LOOPBACK],
                port=shelf.server.port,
                next_file=next_file,
            )
        )
