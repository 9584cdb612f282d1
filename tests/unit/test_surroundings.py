"""Where test pictures lie while encoders are proven."""

from pathlib import Path

from node.media.surroundings_files import surroundings


def test_a_node_s_own_folder_is_gone_afterwards(tmp_path: Path) -> None:
    with surroundings(below=tmp_path / "cache") as around:
        folder = Path(around.scratch)
        (folder / "proof-1.mkv").write_bytes(b"picture")
        assert folder.parent == tmp_path / "cache"
    assert not folder.exists()


def test_what_a_killed_node_left_is_removed_by_its_next_start(tmp_path: Path) -> None:
    (tmp_path / "proof").mkdir()
    (tmp_path / "proof" / "proof-1.mkv").write_bytes(b"left")
    with surroundings(below=tmp_path) as around:
        assert list(Path(around.scratch).iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_where_a_home_cannot_be_written_another_folder_serves(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"no folder")
    with surroundings(below=tmp_path / "cache") as around:
        folder = Path(around.scratch)
        assert folder.is_dir()
        assert tmp_path not in folder.parents
    assert not folder.exists()
