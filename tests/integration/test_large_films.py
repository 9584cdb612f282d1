"""A film of over 100 GiB, sparse: ranges, resuming and the manifest at offsets that 32 bits do not hold."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mesh.bulk_client_zmq import ZmqBulkClient
from mesh.clock import monotonic_ms
from mesh.digests import DIGEST_BYTES, chunk_digest, file_digest
from mesh.errors import DiskFullError, StoppedError
from mesh.transfer import Manifest, Spans, kept_inode
from mesh.transfer_files import PartialFile, free_bytes, make_manifest
from mesh.transport import CHUNK_BYTES
from tests.film_owner import Owner

GIB = 1 << 30
FAR = 100 * GIB + 3 * CHUNK_BYTES
SIZE = 101 * GIB + 12_345
NOISE = {0: 1, 4 * GIB - 7: 2, FAR: 20, SIZE - 12_345: 1}
"""Where bytes stand that are no zeros, and how many MiB (the last: what is left)."""
ZERO = chunk_digest(bytes(CHUNK_BYTES))


class Large(Owner):
    """Owns the film; its digests are known without reading a hundred GiB of zeros."""

    def __post_init__(self) -> None:
        with self.film.open("wb") as file:
            file.truncate(SIZE)
            for offset, mib in NOISE.items():
                file.seek(offset)
                file.write(os.urandom(min(mib * CHUNK_BYTES, SIZE - offset)))
        small = self.film.with_name("small")
        small.write_bytes(b"")
        film, self.film = self.film, small
        super().__post_init__()
        self.film = film
        chunks = -(-SIZE // CHUNK_BYTES)
        table = bytearray(ZERO * chunks)
        with film.open("rb") as file:
            for offset, mib in NOISE.items():
                for index in range(
                    offset // CHUNK_BYTES, min(offset // CHUNK_BYTES + mib + 1, chunks)
                ):
                    file.seek(index * CHUNK_BYTES)
                    digest = chunk_digest(file.read(CHUNK_BYTES))
                    table[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES] = digest
        facts = film.stat()
        self.manifest = Manifest(
            size=SIZE,
            digest=file_digest((bytes(table),)),
            mtime_ns=facts.st_mtime_ns,
            inode=kept_inode(facts.st_ino),
        )
        (self.tables / self.manifest.digest).write_bytes(table)


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Large]:
    made = Large(tmp_path / "film.mkv")
    made.server.start()
    yield made
    made.server.stop()


@pytest.fixture
def fetcher(large: Large) -> Iterator[ZmqBulkClient]:
    made = ZmqBulkClient(large.member)
    yield made
    made.close()


def piece(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def test_ranges_beyond_a_hundred_gib_travel_alone_and_are_resumed(
    large: Large, fetcher: ZmqBulkClient, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    ranges = [(FAR + 5, FAR + 19 * CHUNK_BYTES), (SIZE - 10, SIZE), (4 * GIB - 7, 4 * GIB + 7)]

    def stop(done: int, _: int) -> None:
        if done > 9 * CHUNK_BYTES:
            raise StoppedError("enough")

    with pytest.raises(StoppedError):
        large.fetch(target, fetcher, ranges=ranges, target=PartialFile(target), on_progress=stop)
    before = large.sent.bytes_out
    first: list[int] = []
    large.fetch(
        target,
        fetcher,
        ranges=ranges,
        expected=large.manifest,
        target=PartialFile(target, stays=True),
        on_progress=lambda done, _: first.append(done),
    )
    assert first[0] > 8 * CHUNK_BYTES
    assert large.sent.bytes_out - before < 18 * CHUNK_BYTES
    for start, end in ranges:
        assert piece(target, start, end - start) == piece(large.film, start, end - start)
    # Nothing beside them takes room.
    assert target.stat().st_size == SIZE
    assert target.stat().st_blocks * 512 < 40 * CHUNK_BYTES


def test_a_flipped_bit_beyond_a_hundred_gib_is_found(
    large: Large, fetcher: ZmqBulkClient, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    ranges = [(FAR, FAR + 2 * CHUNK_BYTES)]
    large.fetch(target, fetcher, ranges=ranges, target=PartialFile(target, stays=True))
    with target.open("r+b") as file:
        file.seek(FAR + 17)
        file.write(b"\x00\x01\x02")
    large.fetch(target, fetcher, ranges=ranges, target=PartialFile(target, stays=True))
    assert piece(target, FAR, 2 * CHUNK_BYTES) == piece(large.film, FAR, 2 * CHUNK_BYTES)


def test_what_the_disk_cannot_hold_is_not_begun(
    large: Large, fetcher: ZmqBulkClient, tmp_path: Path
) -> None:
    if free_bytes(tmp_path) > SIZE:
        pytest.skip("this disk has room for it")
    with pytest.raises(DiskFullError):
        large.fetch(tmp_path / "out", fetcher)
    assert not (tmp_path / "out").exists()
    assert large.sent.bytes_out < 4_096


class Holes:
    """`Target` that leaves zeros out of the file: any disk holds it then."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._table = bytearray()
        self._manifest = Manifest(size=0, digest="")

    def begin(self, manifest: Manifest, spans: Spans) -> bytearray:
        self._manifest = manifest
        assert spans == manifest.whole
        with self._path.open("wb") as file:
            file.truncate(manifest.size)
        self._table = bytearray(manifest.chunks * DIGEST_BYTES)
        return bytearray(manifest.chunks)

    def write(self, index: int, data: memoryview, digest: bytes) -> None:
        self._table[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES] = digest
        if digest != ZERO:
            with self._path.open("r+b") as file:
                file.seek(index * CHUNK_BYTES)
                file.write(data)

    def finish(self, *, name_later: bool = False) -> None:
        assert file_digest((bytes(self._table),)) == self._manifest.digest

    @property
    def place(self) -> Path:
        return self._path.parent

    def settle(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.acceptance
@pytest.mark.timeout(1_200)
def test_a_hundred_gib_are_digested_and_travel_whole(
    large: Large, fetcher: ZmqBulkClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun_ms = monotonic_ms()
    manifest = make_manifest(large.film)
    digested_ms = monotonic_ms() - begun_ms
    assert manifest == replace(large.manifest)
    steps: list[int] = []
    large.fetch(
        tmp_path / "out",
        fetcher,
        expected=manifest,
        target=Holes(tmp_path / "out"),
        on_progress=lambda done, _: steps.append(done),
    )
    fetched_ms = monotonic_ms() - begun_ms - digested_ms
    with capsys.disabled():
        print(
            f"\n{SIZE:,} B digested in {digested_ms / 1_000:.0f} s, fetched in "
            f"{fetched_ms / 1_000:.0f} s, {large.sent.bytes_out:,} B on the link"
        )
    assert steps[-1] == SIZE
    for offset, mib in NOISE.items():
        size = min(mib * CHUNK_BYTES, SIZE - offset)
        assert piece(tmp_path / "out", offset, size) == piece(large.film, offset, size)
    with contextlib.suppress(FileNotFoundError):
        (tmp_path / "out").unlink()
