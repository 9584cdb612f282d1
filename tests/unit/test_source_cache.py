"""Fetched films on this disk: kept while there is room, lent by links, judged by what really lies there."""

import os
from pathlib import Path

import pytest

from mesh.errors import DiskFullError
from mesh.source_cache_files import BUSY_MS, SourceCache

MIB = 1 << 20
DAY_MS = 24 * 3_600_000
NOW_MS = 20_000 * DAY_MS


def cache(folder: Path, mib: int = 10) -> SourceCache:
    return SourceCache(folder / "sources", bytes_max=mib * MIB, age_max_ms=7 * DAY_MS)


def put(made: SourceCache, name: str, mib: int, age_ms: int = 0) -> Path:
    path = made.path(name)
    path.write_bytes(os.urandom(mib * MIB))
    path.with_name(name + ".journal").write_bytes(b"digests")
    used_ns = (NOW_MS - age_ms) * 1_000_000
    os.utime(path, ns=(used_ns, used_ns))
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "sources").iterdir())


def test_what_was_unused_longest_goes_first(tmp_path: Path) -> None:
    made = cache(tmp_path)
    put(made, "new", 3, age_ms=1)
    put(made, "old", 3, age_ms=9)
    put(made, "older", 3, age_ms=99)
    made.make_room(4 * MIB, made.path("wanted"))
    assert names(tmp_path) == ["new", "new.journal", "old", "old.journal"]


def test_the_film_itself_is_never_taken_away_and_counts_once(tmp_path: Path) -> None:
    made = cache(tmp_path)
    put(made, "wanted", 6, age_ms=99)
    put(made, "other", 3, age_ms=1)
    made.make_room(7 * MIB, made.path("wanted"))
    assert "other" in names(tmp_path)
    made.make_room(8 * MIB, made.path("wanted"))
    assert names(tmp_path) == ["wanted", "wanted.journal"]
    made.make_room(50 * MIB, made.path("wanted"))
    assert names(tmp_path) == ["wanted", "wanted.journal"]


def test_a_hole_takes_no_room(tmp_path: Path) -> None:
    made = cache(tmp_path)
    with made.path("sparse").open("wb") as file:
        file.truncate(1 << 40)
    made.make_room(9 * MIB, made.path("wanted"))
    assert names(tmp_path) == ["sparse"]


def test_a_disk_without_room_is_said_before_a_byte_travels(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError):
        cache(tmp_path).make_room(1 << 60, tmp_path / "sources" / "wanted")


def test_an_attempt_keeps_its_film_when_the_cache_lets_go(tmp_path: Path) -> None:
    made = cache(tmp_path)
    path = put(made, "film", 1, age_ms=8 * DAY_MS)
    film = path.read_bytes()
    made.lend(path, tmp_path / "source.mkv")
    made.lend(path, tmp_path / "source.mkv")  # again, after a restart
    assert path.exists()
    os.utime(path, ns=(0, 0))
    made.sweep(NOW_MS)
    assert names(tmp_path) == []
    assert (tmp_path / "source.mkv").read_bytes() == film


def test_without_a_cache_the_attempt_has_it_alone(tmp_path: Path) -> None:
    made = cache(tmp_path, mib=0)
    made.lend(put(made, "film", 1), tmp_path / "source.mkv")
    assert names(tmp_path) == []
    assert (tmp_path / "source.mkv").stat().st_nlink == 1


def test_where_there_are_no_links_it_is_given_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    made = cache(tmp_path)
    made.lend(put(made, "film", 1), tmp_path / "source.mkv")
    assert names(tmp_path) == []
    assert (tmp_path / "source.mkv").stat().st_size == MIB


def test_sweeping_keeps_to_age_and_bound_and_leaves_what_is_busy(tmp_path: Path) -> None:
    made = cache(tmp_path)
    put(made, "new", 6, age_ms=1)
    put(made, "resting", 6, age_ms=2 * BUSY_MS)
    put(made, "busy", 6, age_ms=BUSY_MS // 2)
    put(made, "old", 1, age_ms=8 * DAY_MS)
    (tmp_path / "sources" / "left.journal").write_bytes(b"x")
    made.sweep(NOW_MS)
    assert names(tmp_path) == ["busy", "busy.journal", "new", "new.journal"]
