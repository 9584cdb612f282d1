"""Bits that flip and sources that change, wherever a film passes: noticed, named, never taken for whole."""

import asyncio
import contextlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mesh.bulk_client_zmq import ZmqBulkClient
from mesh.digests import chunk_digest
from mesh.errors import DarkStreamError, SourceChangedError, TransferError
from mesh.transfer_files import PartialFile, make_manifest
from mesh.transport import CHUNK_BYTES, WINDOW_BYTES_MAX
from tests.film_owner import Owner
from tests.relay import relay
from tests.unit.test_films import RESULT, Stand

SIZE = 24 * CHUNK_BYTES + 12_345
HANDSHAKE_BYTES = 400
"""Greeting, WELCOME and READY of a CURVE server are fewer; what follows are messages."""


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    film = tmp_path / "film.mkv"
    film.write_bytes(os.urandom(SIZE))
    made = Owner(film)
    made.server.start()
    yield made
    made.server.stop()


@pytest.fixture
def fetcher(owner: Owner) -> Iterator[ZmqBulkClient]:
    made = ZmqBulkClient(owner.member)
    yield made
    made.close()


# --- on the wire ----------------------------------------------------------------------------------


class Flipper:
    """Flips one bit at each of these places of what the server says."""

    def __init__(self, places: list[int]) -> None:
        self.left = sorted(places)
        self.flipped = 0

    def __call__(self, passed: int, data: bytearray) -> bytearray:
        while self.left and self.left[0] < passed + len(data):
            data[max(0, self.left.pop(0) - passed)] ^= 1 << self.flipped % 8
            self.flipped += 1
        return data


@pytest.mark.parametrize("seed", range(6))
def test_bits_that_flip_on_the_wire_cost_a_connection_and_nothing_else(
    owner: Owner, fetcher: ZmqBulkClient, tmp_path: Path, seed: int
) -> None:
    """CURVE notices each: none reaches the transfer, which dials again and goes on."""
    draw = random.Random(seed)
    places = [draw.randrange(3 * HANDSHAKE_BYTES), *(draw.randrange(SIZE) for _ in range(3))]
    flipper = Flipper(places)
    with relay(owner.server.port, flipper) as wire:
        owner.fetch(tmp_path / "out", fetcher, port=wire.port)
        assert wire.connections > 1
    assert flipper.flipped == len(places)
    assert (tmp_path / "out").read_bytes() == owner.film.read_bytes()
    assert "bad_digest" not in fetcher.counters().refused
    assert owner.sent.bytes_out <= SIZE + len(places) * (WINDOW_BYTES_MAX + CHUNK_BYTES)


def test_a_wire_that_never_heals_fails_the_transfer_with_its_code(
    owner: Owner, fetcher: ZmqBulkClient, tmp_path: Path
) -> None:
    def always(_: int, data: bytearray) -> bytearray:
        data[-1] ^= 1
        return data

    with relay(owner.server.port, always) as wire, pytest.raises(DarkStreamError) as failed:
        owner.fetch(tmp_path / "out", fetcher, port=wire.port)
    assert failed.value.code == "unreachable"
    assert not (tmp_path / "out").exists()


# --- on the sender's disk, after the manifest -------------------------------------------------------


def append(film: Path) -> None:
    with film.open("ab") as file:
        file.write(b"more")


def truncate(film: Path) -> None:
    os.truncate(film, SIZE // 2)


def empty(film: Path) -> None:
    os.truncate(film, 0)


def overwrite(film: Path) -> None:
    with film.open("r+b") as file:
        file.seek(20 * CHUNK_BYTES)
        file.write(b"changed")


def overwrite_without_a_trace(film: Path) -> None:
    facts = film.stat()
    overwrite(film)
    os.utime(film, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def replace(film: Path) -> None:
    facts = film.stat()
    other = film.with_name("other")
    other.write_bytes(film.read_bytes())
    os.utime(other, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    other.replace(film)


def remove(film: Path) -> None:
    film.unlink()


def link(film: Path) -> None:
    film.rename(film.with_name("aside"))
    film.symlink_to("aside")


def folder(film: Path) -> None:
    film.unlink()
    film.mkdir()


def pipe(film: Path) -> None:
    film.unlink()
    os.mkfifo(film)


CHANGES = [
    *(append, truncate, empty, overwrite, overwrite_without_a_trace),
    *(replace, remove, link, folder, pipe),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("moment", [0, 3 * CHUNK_BYTES], ids=["before", "meanwhile"])
def test_a_source_that_changes_is_named_and_its_bytes_are_not_taken(
    owner: Owner,
    fetcher: ZmqBulkClient,
    tmp_path: Path,
    change: Callable[[Path], None],
    moment: int,
) -> None:
    changed: list[int] = []

    def meddle(done: int, _: int) -> None:
        if done >= moment and not changed:
            changed.append(done)
            change(owner.film)

    with pytest.raises(SourceChangedError, match=r"film\.mkv") as failed:
        owner.fetch(tmp_path / "out", fetcher, on_progress=meddle)
    assert failed.value.code == "source_changed"
    # What was there before stays for a resume, but it is no whole film: the journal says what it is.
    assert (tmp_path / "out.journal").exists()
    # The next one to be asked for it is told the same, and a new job digests it anew.
    with pytest.raises(SourceChangedError):
        owner.fetch(tmp_path / "other", fetcher)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_source_that_changes_while_it_is_digested(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    film = tmp_path / "film.mkv"
    film.write_bytes(os.urandom(SIZE))
    changed: list[int] = []

    def meddle(done: int) -> None:
        if done >= 3 * CHUNK_BYTES and not changed:
            changed.append(done)
            change(film)

    with contextlib.ExitStack() as stack:
        # One that is put back with its old time shows by the digests alone, whenever they are compared.
        if change is not overwrite_without_a_trace:
            stack.enter_context(pytest.raises(SourceChangedError, match=r"film\.mkv"))
        manifest = make_manifest(film, meddle)
        assert manifest.digest == make_manifest(film).digest


# --- on the receiver's disk -------------------------------------------------------------------------


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("where", ["out", "out.journal"])
def test_a_bit_that_flips_on_the_receivers_disk_is_fetched_again(
    owner: Owner, fetcher: ZmqBulkClient, tmp_path: Path, where: str
) -> None:
    class Enough(Exception):  # noqa: N818 - ends a transfer in the middle, as a crash would
        pass

    def stop(done: int, _: int) -> None:
        if done > 12 * CHUNK_BYTES:
            raise Enough

    with pytest.raises(Enough):
        owner.fetch(tmp_path / "out", fetcher, on_progress=stop)
    flip(tmp_path / where, 5 * CHUNK_BYTES if where == "out" else 128 + 5 * 32)
    first: list[int] = []
    owner.fetch(tmp_path / "out", fetcher, on_progress=lambda done, _: first.append(done))
    assert first[0] <= 12 * CHUNK_BYTES
    assert (tmp_path / "out").read_bytes() == owner.film.read_bytes()


def test_a_flipped_digest_in_the_journal_of_a_running_transfer_fails_it_by_name(
    owner: Owner, fetcher: ZmqBulkClient, tmp_path: Path
) -> None:
    done_once: list[int] = []

    def meddle(done: int, _: int) -> None:
        if done > 12 * CHUNK_BYTES and not done_once:
            done_once.append(done)
            flip(tmp_path / "out.journal", 128 + 5 * 32)

    with pytest.raises(TransferError, match="digest") as failed:
        owner.fetch(tmp_path / "out", fetcher, on_progress=meddle)
    assert failed.value.code == "transfer"
    assert not (tmp_path / "out").exists()


def test_a_cached_film_whose_bit_flipped_is_mended_before_it_is_used(
    owner: Owner, fetcher: ZmqBulkClient, tmp_path: Path
) -> None:
    cached = tmp_path / "cached"
    owner.fetch(cached, fetcher, target=PartialFile(cached, stays=True))
    before = owner.sent.bytes_out
    flip(cached, 7 * CHUNK_BYTES + 5)
    owner.fetch(cached, fetcher, target=PartialFile(cached, stays=True))
    assert cached.read_bytes() == owner.film.read_bytes()
    assert owner.sent.bytes_out - before < CHUNK_BYTES + 4_096


@pytest.mark.parametrize("how", ["flipped", "short", "long", "gone"])
def test_a_staged_result_that_was_damaged_is_never_published(tmp_path: Path, how: str) -> None:
    stand = Stand(tmp_path.resolve())
    output = stand.films_folder / "film.web.mp4"
    job, attempt = stand.row(output=str(output))
    staging = stand.home / "incoming" / "j1.part"
    staging.write_bytes(RESULT)
    if how == "flipped":
        flip(staging, 3)
    elif how == "short":
        os.truncate(staging, 3)
    elif how == "long":
        append(staging)
    else:
        staging.unlink()
    try:
        with pytest.raises(TransferError, match="the staged result is") as failed:
            asyncio.run(stand.films.publish(job, attempt))
        assert failed.value.code == "transfer"
        assert list(stand.films_folder.iterdir()) == []
        staging.write_bytes(RESULT)  # as it is fetched again
        asyncio.run(stand.films.publish(job, attempt))
        assert output.read_bytes() == RESULT
    finally:
        stand.client.close()


def test_a_digest_is_of_all_bits() -> None:
    data = bytearray(os.urandom(4_096))
    whole = chunk_digest(data)
    for at in range(0, len(data) * 8, 1_001):
        data[at // 8] ^= 1 << at % 8
        assert chunk_digest(data) != whole
        data[at // 8] ^= 1 << at % 8
