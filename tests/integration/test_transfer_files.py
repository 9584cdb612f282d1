"""Partial files, sources, destinations and publishing on a real disk."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh import destination_files, transfer_files, walk_files
from mesh.destination_files import Destination, publish_new, safe_destination
from mesh.digests import chunk_digest, digest_of
from mesh.errors import (
    ConflictError,
    DiskFullError,
    PathError,
    SourceChangedError,
    StoppedError,
    StorageError,
    TransferError,
)
from mesh.transfer import Manifest
from mesh.transfer_files import (
    FileSource,
    PartialFile,
    digest_file,
    is_unchanged,
    make_manifest,
    remove_old_partials,
    require_space,
)
from mesh.transport import CHUNK_BYTES
from tests.small_disk import mounted

DATA = b"".join(bytes([n]) * CHUNK_BYTES for n in range(3)) + b"tail"


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "film.mkv"
    path.write_bytes(DATA)
    return path


def chunk(index: int) -> tuple[int, memoryview, bytes]:
    data = DATA[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
    return index, memoryview(data), chunk_digest(data)


@contextlib.contextmanager
def begun(path: Path, manifest: Manifest) -> Iterator[tuple[PartialFile, bytearray]]:
    partial = PartialFile(path)
    try:
        yield partial, partial.begin(manifest, manifest.whole)
    finally:
        partial.close()


# --- sources


def test_a_manifest_says_size_digest_and_facts(film: Path) -> None:
    steps: list[int] = []
    manifest = make_manifest(film, steps.append)
    assert (manifest.size, manifest.digest) == (len(DATA), digest_of(DATA, CHUNK_BYTES))
    assert manifest.inode == film.stat().st_ino
    assert steps == sorted(steps)
    assert steps[-1] == len(DATA)
    assert is_unchanged(film, manifest)


def test_digesting_can_be_stopped(film: Path) -> None:
    with pytest.raises(StoppedError):
        digest_file(film, should_stop=lambda: True)


def test_a_source_that_changes_while_it_is_digested(film: Path) -> None:
    def meddle(done: int) -> None:
        if done == CHUNK_BYTES:
            with film.open("ab") as file:
                file.write(b"more")

    with pytest.raises(SourceChangedError):
        make_manifest(film, meddle)


@pytest.mark.parametrize("change", ["append", "truncate", "touch", "replace", "remove", "folder"])
def test_a_source_that_changes_while_it_is_read(film: Path, change: str) -> None:
    manifest = make_manifest(film)
    source = FileSource(film, manifest)
    try:
        assert source.read(CHUNK_BYTES, 4)[0] == DATA[CHUNK_BYTES : CHUNK_BYTES + 4]
        if change == "append":
            with film.open("ab") as file:
                file.write(b"x")
        elif change == "truncate":
            os.truncate(film, 5)
        elif change == "touch":
            os.utime(film, ns=(1, 1))
        elif change == "replace":
            other = film.with_name("other")
            other.write_bytes(DATA)
            os.utime(other, ns=(film.stat().st_atime_ns, film.stat().st_mtime_ns))
            other.replace(film)
        else:
            film.unlink()
            if change == "folder":
                film.mkdir()
        with pytest.raises(SourceChangedError) as error:
            source.read(0, 4)
        assert "film.mkv" in error.value.line()
        assert not is_unchanged(film, manifest)
        with pytest.raises(SourceChangedError):
            FileSource(film, manifest)
    finally:
        source.close()


def test_a_read_beyond_the_end_is_a_change(film: Path) -> None:
    source = FileSource(film, make_manifest(film))
    with contextlib.closing(source), pytest.raises(SourceChangedError, match="shorter"):
        source.read(len(DATA) - 1, 2)


# --- partial files


def test_chunks_in_any_order_make_the_file(film: Path, tmp_path: Path) -> None:
    manifest = make_manifest(film)
    with begun(tmp_path / "new" / "x.part", manifest) as (partial, have):
        assert have == bytes(4)
        for index in (3, 1, 0, 2):
            partial.write(*chunk(index))
        partial.finish()
    assert partial.path.read_bytes() == DATA
    assert [path.name for path in partial.path.parent.iterdir()] == ["x.part"]
    assert partial.path.stat().st_mode & 0o077 == 0


def test_an_empty_file(tmp_path: Path) -> None:
    manifest = Manifest(size=0, digest=digest_of(b"", CHUNK_BYTES))
    with begun(tmp_path / "x.part", manifest) as (partial, have):
        assert have == b""
        partial.finish()
    assert partial.path.read_bytes() == b""


def test_resume_keeps_what_is_really_there(film: Path, tmp_path: Path) -> None:
    manifest = make_manifest(film)
    path = tmp_path / "x.part"
    with begun(path, manifest) as (partial, _):
        for index in (0, 1, 3):
            partial.write(*chunk(index))
    with path.open("r+b") as file:  # a bit flips on the disk meanwhile
        file.seek(CHUNK_BYTES + 17)
        file.write(b"\xff")
    with (tmp_path / "x.part.journal").open("r+b") as file:
        file.seek(128 + 2 * 32)
        file.write(b"torn record")
    with begun(path, manifest) as (partial, have):
        assert have == bytes([1, 0, 0, 1])
        partial.write(*chunk(1))
        partial.write(*chunk(2))
        partial.finish()
    assert path.read_bytes() == DATA


def _truncated(journal: Path) -> None:
    journal.write_bytes(journal.read_bytes()[:5])


def _garbage(journal: Path) -> None:
    journal.write_bytes(b"\xc1" * 500)


def _huge_head(journal: Path) -> None:
    journal.write_bytes(b"DSJ2" + b"\xff" * 500)


def _no_messagepack(journal: Path) -> None:
    journal.write_bytes(b"DSJ2\x04\x00\x00\x00" + b"\xc1" * 500)


def _missing(journal: Path) -> None:
    journal.unlink()


def _short_file(journal: Path) -> None:
    os.truncate(journal.with_name("x.part"), 7)


@pytest.mark.parametrize(
    "damage", [_truncated, _garbage, _huge_head, _no_messagepack, _missing, _short_file]
)
def test_a_damaged_leftover_is_started_over(film: Path, tmp_path: Path, damage: object) -> None:
    manifest = make_manifest(film)
    with begun(tmp_path / "x.part", manifest) as (partial, _):
        partial.write(*chunk(0))
    assert callable(damage)
    damage(tmp_path / "x.part.journal")
    with begun(tmp_path / "x.part", manifest) as (_, have):
        assert have == bytes(4)


def test_a_leftover_of_another_file_is_started_over(film: Path, tmp_path: Path) -> None:
    manifest = make_manifest(film)
    with begun(tmp_path / "x.part", manifest) as (partial, _):
        partial.write(*chunk(0))
    other = Manifest(size=manifest.size, digest="0" * 64)
    with begun(tmp_path / "x.part", other) as (_, have):
        assert have == bytes(4)


def test_a_journal_that_is_longer_than_the_file(film: Path, tmp_path: Path) -> None:
    manifest = make_manifest(film)
    with begun(tmp_path / "x.part", manifest) as (partial, _):
        partial.write(*chunk(0))
    with (tmp_path / "x.part.journal").open("ab") as file:
        file.write(b"\xff" * 64)
    with begun(tmp_path / "x.part", manifest) as (_, have):
        assert have == bytes([1, 0, 0, 0])


def test_a_whole_with_the_wrong_digest_is_thrown_away(film: Path, tmp_path: Path) -> None:
    manifest = Manifest(size=len(DATA), digest="0" * 64)
    with begun(tmp_path / "x.part", manifest) as (partial, _):
        for index in range(4):
            partial.write(*chunk(index))
        with pytest.raises(TransferError, match="digest"):
            partial.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.mkv"]


def test_a_link_in_place_of_the_partial_file_is_not_followed(film: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "x.part").symlink_to(victim)
    (tmp_path / "x.part.journal").write_bytes(b"")
    with pytest.raises(StorageError), begun(tmp_path / "x.part", make_manifest(film)):
        pass
    assert victim.read_bytes() == b"precious"


def test_old_partials_are_removed_and_others_stay(tmp_path: Path) -> None:
    for name in ("old.part", "old.part.journal", "new.part", "old.mkv"):
        (tmp_path / name).write_bytes(b"x")
        if name.startswith("old"):
            os.utime(tmp_path / name, ns=(10**15, 10**15))
    assert remove_old_partials(tmp_path, before_wall_ms=2 * 10**9) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.part", "old.mkv"]


def test_space_is_checked(tmp_path: Path) -> None:
    require_space(tmp_path, 1)
    with pytest.raises(DiskFullError, match="are free"):
        require_space(tmp_path, 1 << 60)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Two and a half mebibytes."""
    with mounted(tmp_path / "disk", 2_560) as folder:
        yield folder


def test_a_full_disk_is_noticed_before_a_byte_travels(film: Path, small_disk: Path) -> None:
    with pytest.raises(DiskFullError), begun(small_disk / "x.part", make_manifest(film)):
        pass
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_while_preallocating(
    film: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer_files, "require_space", lambda *_: None)
    with pytest.raises(DiskFullError), begun(small_disk / "x.part", make_manifest(film)):
        pass
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_while_copying_to_it(film: Path, small_disk: Path) -> None:
    with safe_destination(small_disk, "film.mkv") as destination, pytest.raises(DiskFullError):
        publish_new(film, destination)
    assert list(small_disk.iterdir()) == []
    assert film.read_bytes() == DATA


# --- destinations and publishing


def test_only_the_walk_makes_destinations(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        Destination(tmp_path / "x", "x", -1, object())


def test_publishing_moves_the_file(film: Path, tmp_path: Path) -> None:
    with safe_destination(tmp_path, "out/a/film.web.mp4", make_folders=True) as destination:
        assert not destination.exists()
        publish_new(film, destination)
        assert destination.exists()
    assert (tmp_path / "out/a/film.web.mp4").read_bytes() == DATA
    assert not film.exists()


def test_publishing_never_replaces_unless_told_to(film: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"precious")
    with safe_destination(tmp_path, "taken") as destination:
        with pytest.raises(ConflictError):
            publish_new(film, destination)
        assert (tmp_path / "taken").read_bytes() == b"precious"
        assert film.read_bytes() == DATA
        publish_new(film, destination, overwrite=True)
    assert (tmp_path / "taken").read_bytes() == DATA


def _no_links(*_: object, **__: object) -> None:
    raise OSError(1, "Operation not permitted")


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_file_systems_without_links(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(destination_files.os, "link", _no_links)
    (tmp_path / "taken").write_bytes(b"precious")
    with safe_destination(tmp_path, "taken") as destination, pytest.raises(ConflictError):
        publish_new(film, destination)
    with safe_destination(tmp_path, "free") as destination:
        publish_new(film, destination)
    assert (tmp_path / "taken").read_bytes() == b"precious"
    assert (tmp_path / "free").read_bytes() == DATA


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a second file system")
def test_publishing_from_another_disk(film: Path, tmp_path: Path) -> None:
    if Path("/dev/shm").stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("the temporary folder is on the same file system as /dev/shm")
    here = Path(f"/dev/shm/darkstream-test-{os.getpid()}")
    here.mkdir()
    try:
        (here / ".film.mkv.part").write_bytes(b"left by a crash")
        (here / "taken").write_bytes(b"precious")
        with safe_destination(here, "taken") as destination, pytest.raises(ConflictError):
            publish_new(film, destination)
        with safe_destination(here, "film.mkv") as destination:
            publish_new(film, destination)
        assert (here / "film.mkv").read_bytes() == DATA
        assert sorted(path.name for path in here.iterdir()) == ["film.mkv", "taken"]
        assert not film.exists()
    finally:
        for path in here.iterdir():
            path.unlink()
        here.rmdir()


@pytest.mark.parametrize("name", ["link/film", "link", "a/link/film", "file/film", "missing/film"])
def test_the_walk_follows_no_link(tmp_path: Path, name: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "a").mkdir(parents=True)
    outside.mkdir()
    (root / "file").write_bytes(b"")
    (root / "link").symlink_to(outside)
    (root / "a/link").symlink_to("..")
    with pytest.raises(PathError):
        safe_destination(root, name)
    assert list(outside.iterdir()) == []


def test_a_name_that_a_pipe_or_folder_has(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(PathError):
            safe_destination(tmp_path, name)


def test_a_root_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(PathError, match="cannot be opened"):
        safe_destination(tmp_path / "gone", "film.mkv")


def test_a_name_longer_than_the_file_system_takes(tmp_path: Path) -> None:
    with pytest.raises(PathError):
        safe_destination(tmp_path, "x" * 256)


def test_swapping_a_folder_for_a_link_never_leads_outside(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "folder").mkdir(parents=True)
    outside.mkdir()
    stop = threading.Event()

    def swap() -> None:
        folder, aside = root / "folder", root / "aside"
        while not stop.is_set():
            folder.rename(aside)
            folder.symlink_to(outside)
            folder.unlink()
            aside.rename(folder)

    swapper = threading.Thread(target=swap)
    swapper.start()
    placed = 0
    try:
        for number in range(2_000):
            partial = tmp_path / "x.part"
            partial.write_bytes(b"x")
            with (
                contextlib.suppress(PathError),
                safe_destination(root, f"folder/{number}") as destination,
            ):
                publish_new(partial, destination)
                placed += 1
    finally:
        stop.set()
        swapper.join()
    assert list(outside.iterdir()) == []
    assert placed == sum(1 for _ in (root / "folder").iterdir())
    assert placed > 0


def test_without_directory_descriptors_the_walk_checks_paths(
    tmp_path: Path, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk_files, "HAS_DIR_FD", False)
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("link/film", "link", "missing/film"):
        with pytest.raises(PathError):
            safe_destination(tmp_path, name)
    with safe_destination(tmp_path, "a/b/film.mp4", make_folders=True) as destination:
        assert not destination.exists()
        publish_new(film, destination)
        assert destination.exists()
    assert (tmp_path / "a/b/film.mp4").read_bytes() == DATA
