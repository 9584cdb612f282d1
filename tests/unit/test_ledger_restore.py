"""A home that goes on from a backup: what stands in it, what is kept, what a kill leaves."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ledger import restore as restoring
from ledger.backup import back_up, verify_replica
from ledger.log_sqlite import RESTORING, LogStore
from ledger.queries import Reader
from ledger.restore import Carrier, Place, Restored, restore
from ledger.store_sqlite import LedgerStore
from mesh.errors import ConflictError, DamagedError, InUseError, NotAllowedError, StorageError
from mesh.ids import node_id_of, raft_id
from mesh.membership import Configuration
from mesh.protocol import Raft, Timing
from mesh.recovery import carried_on_alone
from node.cli.faults import run
from node.cli.mesh_cli import cli
from node.settings.home_paths import LEDGER_FILE, RAFT_FILE
from tests.home_helper import Home
from tests.ledger_helper import c, spec

NEW = "0000beef"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def backup(home: Home, tmp_path: Path) -> Path:
    home.do(c.AddMember(member=spec("bert"), invitation=None), home.submission("last"))
    path = back_up(home.ledger_path, str(tmp_path / "b.db")).path
    home.do(home.submission("after"))
    return path


def carrier_of(home: Home, incarnation: str = NEW) -> Carrier:
    return Carrier(
        node=home.identity.node_id,
        public_key=home.identity.public_key,
        name="elsewhere",
        role="full",
        incarnation=incarnation,
        epoch_step=5,
        at_ms=5,
    )


def restored(home: Home, backup: Path, carrier: Carrier | None = None) -> Restored:
    return restore(
        backup,
        Place(ledger=home.path / LEDGER_FILE, log=home.path / RAFT_FILE),
        carrier=carrier or carrier_of(home),
        begin=carried_on_alone,
        stamp="now",
    )


class FirstChoice:
    def randrange(self, start: int, stop: int) -> int:
        return start


def test_the_node_is_the_mesh_in_a_new_epoch(home: Home, backup: Path) -> None:
    home.stop()
    made = restored(home, backup)
    assert made.mesh == "m" * 32
    assert (made.epoch, made.applied_index, made.jobs) == (6, 7, 4)
    found = verify_replica(home.ledger_path, home.log_path)
    assert (found.faults, found.applied_index, found.applied_term) == ((), 7, 2)
    reader = Reader(home.ledger_path)
    assert reader.job("last") is not None
    assert reader.job("after") is None, "came after the backup"
    assert [member.name for member in reader.members()] == ["anna", "bert"]
    mine = reader.member(home.identity.node_id)
    assert mine is not None
    assert mine.raft_id == raft_id(home.identity.node_id, NEW)
    bert = reader.member("bert")
    assert bert is not None
    assert (bert.raft_id, bert.state) == ("", "active"), "has to come with a new data directory"
    reader.close()
    home.open()
    assert home.log.incarnation == NEW
    assert home.log.get_value("mesh") == "m" * 32
    # What the core makes of it: the only voter, and nothing to apply.
    raft = Raft(
        raft_id=raft_id(home.identity.node_id, NEW),
        storage=home.log,
        timing=Timing(heartbeat_ms=100, election_min_ms=500, election_max_ms=1_000),
        random=FirstChoice(),
        applied_index=home.ledger.applied_index,
        now_ms=0,
    )
    assert raft.configuration == Configuration.of([raft_id(home.identity.node_id, NEW)])
    raft.tick(raft.next_deadline_ms())
    assert raft.leader == raft.raft_id
    assert raft.term > 2
    home.stop()


def test_the_files_of_before_are_kept_whole(home: Home, backup: Path) -> None:
    before = verify_replica(home.ledger_path, home.log_path)
    home.stop()
    made = restored(home, backup)
    assert made.aside == home.path / "replaced-now"
    kept = verify_replica(str(made.aside / LEDGER_FILE), str(made.aside / RAFT_FILE))
    assert (kept.content, kept.faults) == (before.content, ())
    again = restored(home, backup)
    assert again.aside == home.path / "replaced-now-2"
    assert not (home.path / RESTORING).exists()


def test_a_home_that_was_wiped_and_has_a_new_key(home: Home, backup: Path, tmp_path: Path) -> None:
    home.stop()
    shutil.rmtree(home.path)
    new = Home(tmp_path / "other")
    new.stop()
    for name in (LEDGER_FILE, RAFT_FILE):
        (new.path / name).unlink()
    made = restored(new, backup)
    assert made.aside is None
    reader = Reader(new.ledger_path)
    mine = reader.member(new.identity.node_id)
    assert mine is not None
    assert mine.name == "elsewhere"
    assert mine.public_key == new.identity.public_key
    assert node_id_of(mine.public_key) == mine.node
    assert len(reader.members()) == 3
    reader.close()


def test_not_while_the_node_runs(home: Home, backup: Path) -> None:
    index = home.ledger.applied_index
    with pytest.raises(InUseError):
        restored(home, backup)
    assert home.ledger.applied_index == index
    assert not (home.path / RESTORING).exists()
    home.stop()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_refused_changes_nothing(home: Home, backup: Path, tmp_path: Path) -> None:
    home.do(c.RevokeMember(node="bert", by="anna"))
    other = Home(tmp_path / "other", jobs=1)
    other.do(
        c.AddMember(
            member=spec(
                home.identity.node_id, public_key=home.identity.public_key, raft_id=home.raft_id
            ),
            invitation=None,
        ),
        c.RevokeMember(node=home.identity.node_id, by="x"),
    )
    revoked = back_up(other.ledger_path, str(tmp_path / "revoked.db")).path
    other.stop()
    empty = LedgerStore(str(tmp_path / "empty.db"))
    empty.close()
    cut = tmp_path / "cut.db"
    cut.write_bytes(backup.read_bytes()[:30_000])
    home.stop()
    content, before = verify_replica(home.ledger_path, home.log_path).content, names_in(home.path)
    for path, error in (
        (revoked, NotAllowedError),
        (tmp_path / "empty.db", ConflictError),
        (cut, DamagedError),
        (tmp_path / "none.db", StorageError),
        (tmp_path, StorageError),
    ):
        with pytest.raises(error):
            restored(home, path)
        assert names_in(home.path) == before
    assert verify_replica(home.ledger_path, home.log_path).content == content


class KilledError(Exception):
    pass


@pytest.mark.parametrize("moves", range(4))
def test_a_kill_between_the_moves_lets_no_node_start(
    home: Home, backup: Path, moves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.stop()
    left = moves
    move = Path.replace

    def killed(self: Path, target: Path) -> Path:
        nonlocal left
        if left == 0:
            raise KilledError
        left -= 1
        return move(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KilledError):
            restored(home, backup)
    with pytest.raises(StorageError, match="interrupted"):
        LogStore(home.log_path, incarnation="00000003")
    restored(home, backup)
    assert verify_replica(home.ledger_path, home.log_path).faults == ()
    home.open()
    assert home.ledger.applied_index == 7
    home.stop()
    kept = [path for folder in home.path.glob("replaced-*") for path in folder.iterdir()]
    assert {path.name for path in kept} >= {LEDGER_FILE, RAFT_FILE}


def test_a_kill_while_it_builds_leaves_the_old_files(
    home: Home, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.stop()

    def killed(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(restoring, "_exchange", killed)
        with pytest.raises(KilledError):
            restored(home, backup)
    home.open()
    assert home.ledger.applied_index == 6
    assert home.log.incarnation == "00000001"
    home.stop()


def test_as_typed(
    home: Home, backup: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("DARKSTREAM_")]:
        monkeypatch.delenv(name)

    def typed(*words: str) -> tuple[int, Any, str]:
        capsys.readouterr()
        code = run(cli, ["ledger", *words, "--home", str(home.path)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    code, out, err = typed("restore", str(backup), "--json")
    assert code == 6
    assert json.loads(out)["error"]["code"] == "in_use"
    home.stop()
    code, out, err = typed("restore", str(backup))
    assert (code, err) == (0, "")
    assert "epoch " in out
    assert "replaced-" in out
    code, out, err = typed("restore", str(backup), "--json")
    shown = json.loads(out)
    assert shown["epoch"] > 1
    assert (shown["applied_index"], shown["jobs"]) == (7, 4)
    assert Path(shown["kept"]).is_dir()
    home.open()
    assert home.log.incarnation not in ("00000001", NEW)
    home.stop()
    code, out, err = typed("restore", str(backup.parent / "none.db"))
    assert code == 1
    assert err.startswith("error[storage]: ")
