"""Checking and backing up a home's ledger, as functions and as a person types it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from ledger.backup import back_up, verify_replica
from ledger.log_soundness_sqlite import faults_of_log
from ledger.store_sqlite import LedgerStore
from mesh.errors import ConflictError, DamagedError, NotFoundError
from mesh.log import Entry
from node.cli.faults import run
from node.cli.mesh_cli import cli
from node.consensus.ledger_port import apply_own
from tests.home_helper import Home
from tests.ledger_helper import dump


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.delenv("DARKSTREAM_API", raising=False)
    monkeypatch.setenv("DARKSTREAM_HOME", str(tmp_path / "home"))
    return Home(tmp_path / "home")


class Typed:
    """One command in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *words: object) -> None:
        capsys.readouterr()
        self.code = run(cli, [str(word) for word in words])
        captured = capsys.readouterr()
        self.out, self.err = captured.out, captured.err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def sql(path: str, *statements: str) -> None:
    connection = apsw.Connection(path)
    for statement in statements:
        connection.execute(statement)
    connection.close()


# --- verify ---------------------------------------------------------------------------------------


def test_a_sound_replica_running_or_not(home: Home) -> None:
    running = verify_replica(home.ledger_path, home.log_path)
    assert running.faults == ()
    assert running.log is not None
    assert (running.applied_index, running.log.last_index, running.log.base.index) == (3, 3, 0)
    assert running.checksum == home.ledger.checksum.hex()
    assert running.rows["job"] == 3
    home.compact(2)
    home.stop()
    for index in (3, 3):
        stopped = verify_replica(home.ledger_path, home.log_path)
        assert stopped.faults == ()
        assert (stopped.content, stopped.applied_index) == (running.content, index)
        assert stopped.log is not None
        assert stopped.log.base.index == 2


def only_applied(home: Home) -> None:
    sql(home.log_path, "DELETE FROM entry WHERE log_index = 3")


def other_term(home: Home) -> None:
    sql(home.log_path, "UPDATE entry SET term = 2 WHERE log_index = 3")


def behind_the_log(home: Home) -> None:
    sql(home.log_path, "UPDATE base SET log_index = 9, term = 1")


def other_base_term(home: Home) -> None:
    sql(home.log_path, "UPDATE base SET log_index = 3, term = 2", "DELETE FROM entry")


def a_lost_row(home: Home) -> None:
    sql(home.ledger_path, "UPDATE job SET state = 'done' WHERE id = 'j1'")


def a_lost_index(home: Home) -> None:
    sql(home.ledger_path, "DROP INDEX job_by_tenant")


@pytest.mark.parametrize(
    "damage",
    [only_applied, other_term, behind_the_log, other_base_term, a_lost_row, a_lost_index],
)
def test_what_does_not_fit_is_told(
    home: Home, damage: Callable[[Home], None], capsys: pytest.CaptureFixture[str]
) -> None:
    home.stop()
    damage(home)
    assert verify_replica(home.ledger_path, home.log_path).faults
    typed = Typed(capsys, "ledger", "verify")
    assert typed.code == 1
    assert "faults" in typed.out
    assert typed.err.startswith("error[damaged]: ")
    shown = Typed(capsys, "ledger", "verify", "--json")
    assert (shown.code, shown.json["sound"]) == (1, False)
    assert shown.json["faults"]


def test_verify_as_typed(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    typed = Typed(capsys, "ledger", "verify")
    assert (typed.code, typed.err) == (0, "")
    assert "sound" in typed.out
    assert home.ledger.checksum.hex() in typed.out
    shown = Typed(capsys, "ledger", "verify", "--json").json
    assert shown["sound"] is True
    assert (shown["applied_index"], shown["applied_term"]) == (3, 1)
    assert shown["log"] == {"base_index": 0, "base_term": 0, "last_index": 3, "term": 1}
    home.stop()
    Path(home.log_path).unlink()
    shown = Typed(capsys, "ledger", "verify", "--json").json
    assert (shown["sound"], shown["log"]) == (False, None)
    assert "no log" in shown["log_unread"]


def test_pages_that_are_destroyed_are_told(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    home.stop()
    data = bytearray(Path(home.ledger_path).read_bytes())
    data[8_192:40_960] = b"\x5a" * 32_768
    Path(home.ledger_path).write_bytes(data)
    typed = Typed(capsys, "ledger", "verify")
    assert typed.code == 1
    assert "error[damaged]" in typed.err


# --- backup ---------------------------------------------------------------------------------------


def test_a_backup_beside_a_running_node_and_without_one(home: Home, tmp_path: Path) -> None:
    first = back_up(home.ledger_path, str(tmp_path / "one.db"))
    assert (first.applied_index, first.checksum) == (3, home.ledger.checksum)
    home.do(home.submission("later"))
    expected = dump(home.ledger)
    home.stop()
    second = back_up(home.ledger_path, str(tmp_path / "two.db"))
    assert second.applied_index == 4
    copy = LedgerStore(str(second.path))
    assert dump(copy) == expected
    copy.close()
    assert first.path.stat().st_mode & 0o077 == 0
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["home", "one.db", "two.db"], "nothing beside them"


def test_nothing_is_overwritten(home: Home, tmp_path: Path) -> None:
    kept = tmp_path / "kept.db"
    kept.write_text("mine")
    link = tmp_path / "link.db"
    link.symlink_to(tmp_path / "nowhere")
    for path in (kept, link, tmp_path):
        with pytest.raises(ConflictError):
            back_up(home.ledger_path, str(path))
    assert kept.read_text() == "mine"
    with pytest.raises(NotFoundError):
        back_up(home.ledger_path, str(tmp_path / "none" / "file.db"))


def test_one_that_came_meanwhile_is_not_overwritten(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "b.db"
    linked = os.link

    def late(*args: Any, **kwargs: Any) -> None:
        target.write_text("another's")
        linked(*args, **kwargs)

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(ConflictError):
        back_up(home.ledger_path, str(target))
    assert target.read_text() == "another's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.db", "home"]


def test_a_damaged_ledger_gives_no_backup(home: Home, tmp_path: Path) -> None:
    home.stop()
    a_lost_row(home)
    with pytest.raises(DamagedError):
        back_up(home.ledger_path, str(tmp_path / "b.db"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]


def test_backup_as_typed(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = Typed(capsys, "ledger", "backup", "b.db")
    assert (typed.code, typed.err) == (0, "")
    assert typed.out.startswith("b.db: ")
    again = Typed(capsys, "ledger", "backup", "b.db", "--json")
    assert again.code == 2
    assert again.json["error"]["code"] == "conflict"
    shown = Typed(capsys, "ledger", "backup", "c.db", "--json").json
    assert shown["path"] == str(tmp_path / "c.db")
    assert shown["checksum"] == home.ledger.checksum.hex()
    assert shown["bytes"] == Path("c.db").stat().st_size
    nowhere = Typed(capsys, "ledger", "backup", "d.db", "--home", str(tmp_path / "none"))
    assert nowhere.err.startswith("error[not_found]: ")


# --- the log's own file ---------------------------------------------------------------------------


def a_hole(path: str) -> None:
    sql(path, "DELETE FROM entry WHERE log_index = 2")


def an_unreadable_entry(path: str) -> None:
    sql(path, "UPDATE entry SET data = x'00ff' WHERE log_index = 2")


def an_entry_of_a_later_term(path: str) -> None:
    sql(path, "UPDATE entry SET term = 9 WHERE log_index = 2")


def a_lost_hard_state(path: str) -> None:
    sql(path, "DELETE FROM hard_state")


def a_tail_that_was_decided(path: str) -> None:
    sql(path, "UPDATE hard_state SET commit_index = 99")


def a_newer_version(path: str) -> None:
    sql(path, "PRAGMA user_version = 99")


def half_of_it(path: str) -> None:
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: len(data) // 2])


def nothing_left(path: str) -> None:
    Path(path).write_bytes(b"")


def pages_of_something_else(path: str) -> None:
    data = bytearray(Path(path).read_bytes())
    data[8_192:16_384] = b"\x5a" * 8_192
    Path(path).write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        *(a_hole, an_unreadable_entry, an_entry_of_a_later_term, a_lost_hard_state),
        *(a_tail_that_was_decided, a_newer_version, half_of_it, nothing_left),
        pages_of_something_else,
    ],
)
def test_a_damaged_log_is_told(home: Home, damage: Callable[[str], None]) -> None:
    assert faults_of_log(home.log_path) == []
    home.stop()
    damage(home.log_path)
    found = verify_replica(home.ledger_path, home.log_path)
    assert found.faults
    assert found.log is None
    assert all("\n" not in fault for fault in found.faults)


def test_a_sound_log_that_was_compacted(home: Home) -> None:
    home.compact(2)
    assert faults_of_log(home.log_path) == []
    assert verify_replica(home.ledger_path, home.log_path).faults == ()


@pytest.mark.parametrize("kept", [0, 100, 5_000])
def test_what_is_left_of_a_ledger_is_called_damaged(home: Home, kept: int) -> None:
    home.stop()
    data = Path(home.ledger_path).read_bytes()
    Path(home.ledger_path).write_bytes(data[:kept])
    with pytest.raises(DamagedError):
        verify_replica(home.ledger_path, home.log_path)


def test_an_entry_of_the_own_log_that_cannot_be_read_is_damage(home: Home) -> None:
    index = home.ledger.applied_index + 1
    with pytest.raises(DamagedError, match=f"from {index} to {index} cannot be read"):
        apply_own(home.ledger, [Entry(index, 1, "command", b"\x00\xff")])
    assert home.ledger.applied_index == index - 1
