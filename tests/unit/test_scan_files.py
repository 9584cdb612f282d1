"""Which films a path means: folders searched within bounds, links not followed, faults told by path."""

import os
from pathlib import Path

import pytest

from node.work import scan_files
from node.work.scan_files import scan


@pytest.fixture
def films(tmp_path: Path) -> Path:
    root = tmp_path / "films"
    for name in (
        "b.MKV",
        "a.mp4",
        "deep/er/c.mov",
        ".hidden/d.mp4",
        ".e.mp4",
        "notes.txt",
        "a.web.mp4",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"film")
    (root / "empty.mp4").touch()
    return root


def found(films: Path, *paths: str | Path, allowed: Path | None = None) -> list[str]:
    result = scan([str(path) for path in paths], [allowed or films], ["web"])
    assert result.faults == (), result.faults
    return [str(film.path.relative_to(films)) for film in result.films]


def codes(*paths: str | Path, allowed: Path) -> list[str]:
    return [fault.code for fault in scan([str(path) for path in paths], [allowed]).faults]


def test_a_folder_gives_its_videos_and_no_results_of_ours(films: Path) -> None:
    assert found(films, films) == ["a.mp4", "b.MKV", "deep/er/c.mov"]
    assert {film.folder for film in scan([str(films)], [films]).films} == {films}


def test_a_named_file_may_have_any_name_and_comes_once(films: Path) -> None:
    assert found(films, films / "notes.txt", films / "a.web.mp4") == ["notes.txt", "a.web.mp4"]
    assert found(films, films / "b.MKV", films, films / "a.mp4")[0] == "b.MKV"
    assert len(found(films, films / "a.mp4", films)) == 3


def test_what_gives_no_film_says_why(films: Path) -> None:
    barren = films / "barren"
    barren.mkdir()
    os.mkfifo(films / "pipe.mp4")
    wrong: list[str | Path] = [
        "relative.mp4",
        films / "absent",
        films / "empty.mp4",
        barren,
        films / "pipe.mp4",
        "/a\0b",
    ]
    assert codes(*wrong, allowed=films) == [
        "usage",
        "not_found",
        "empty_source",
        "no_videos",
        "usage",
        "unreadable_source",
    ]
    assert codes("/etc/passwd", films / ".." / "x", allowed=films) == ["path", "not_found"]


def test_links_lead_nowhere(films: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.mp4").write_bytes(b"x")
    (films / "out").symlink_to(outside)
    (films / "secret.mp4").symlink_to(outside / "secret.mp4")
    (films / "loop").symlink_to(films)
    assert found(films, films) == ["a.mp4", "b.MKV", "deep/er/c.mov"]
    assert codes(films / "secret.mp4", films / "out", allowed=films) == ["path", "path"]
    (tmp_path / "alias").symlink_to(films)
    assert len(found(films, tmp_path / "alias")) == 3


def test_names_that_are_no_text_are_faults(films: Path) -> None:
    odd = os.fsencode(films) + b"/\xff.mp4"
    Path(os.fsdecode(odd)).write_bytes(b"x")
    result = scan([str(films)], [films])
    assert [fault.code for fault in result.faults] == ["path"]
    assert len(result.films) == 4
    odd_folder = Path(os.fsdecode(os.fsencode(films) + b"/\xfe"))
    for fault in (*result.faults, *scan([str(odd_folder)], [films]).faults):
        (fault.path + fault.what).encode()


@pytest.mark.parametrize("limit", ["FILES_MAX", "ENTRIES_MAX"])
def test_a_search_is_bounded(films: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(scan_files, limit, 2)
    result = scan([str(films), str(films / "a.mp4")], [films])
    assert [fault.code for fault in result.faults] == ["usage"]
    assert len(result.films) <= 2


def test_depth_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_files, "DEPTH_MAX", 2)
    deep = tmp_path / "1" / "2" / "3"
    deep.mkdir(parents=True)
    (deep / "x.mp4").write_bytes(b"x")
    (deep.parent / "y.mp4").write_bytes(b"y")
    assert [film.path.name for film in scan([str(tmp_path)], [tmp_path]).films] == ["y.mp4"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(films: Path) -> None:
    (films / "a.mp4").chmod(0)
    (films / "deep").chmod(0)
    try:
        assert codes(films / "a.mp4", films, allowed=films) == ["unreadable_source"] * 2
    finally:
        (films / "deep").chmod(0o700)
