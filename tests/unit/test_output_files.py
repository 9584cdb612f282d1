"""A result's place is looked at before its film is read: what a person is told, and what is no reason to wait."""

from pathlib import Path

import pytest

from mesh.errors import OutputDiskFullError, OutputError
from node.work.output_files import check_output, least_bytes, room_at
from node.work.standing import standing_of, told_standing
from tests.small_disk import fill, make_read_only, mounted


def test_a_place_that_will_do_may_be_there_or_not_yet(tmp_path: Path) -> None:
    check_output(tmp_path / "a.mp4", 1_000)
    check_output(tmp_path / "new" / "and" / "newer" / "a.mp4", 1_000)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_of_its_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "films").write_text("no folder")
    with pytest.raises(OutputError, match="films is no folder"):
        check_output(tmp_path / "films" / "a.mp4", 1)


def test_a_disk_that_may_only_be_read_is_told(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", 1_024) as disk:
        make_read_only(disk)
        with pytest.raises(OutputError, match="may not write to"):
            check_output(disk / "a.mp4", 1)


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", 1_024) as disk:
        fill(disk, leave_bytes=100 << 10)
        check_output(disk / "a.mp4", 50 << 10)
        with pytest.raises(OutputDiskFullError, match="disk has 0 MiB free, a result needs 2 or"):
            check_output(disk / "new" / "a.mp4", 2 << 20)


def test_only_what_surely_finds_no_room_waits() -> None:
    assert least_bytes(1_000, None) == 50
    assert least_bytes(1_000, 0.2) == 100
    assert least_bytes(1_000, 3.0) == 1_500


def test_a_folder_that_is_not_there_yet_is_on_its_parents_disk(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", 1_024) as disk:
        assert room_at(disk / "cache" / "sources") == room_at(disk) <= 1 << 20


def test_what_keeps_an_owner_from_planning_is_told_to_all() -> None:
    told = told_standing("", 5, (), "no room")
    assert standing_of(told).planning == "no room"
    assert standing_of(told_standing("", 5)).planning == ""
    assert standing_of({"planning": 7}).planning == ""
    assert len(standing_of(told_standing("", 5, (), "x" * 999)).planning) == 200
