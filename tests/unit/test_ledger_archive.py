"""An archive brought up to date beside a node, and the ledger of any moment made from it again."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ledger import archive as archiving
from ledger.archive import Archived, archive, ledger_at, place_in
from ledger.commands import MigrateLedger
from ledger.schema import FIRST_SCHEMA, SCHEMA_VERSION
from ledger.store_sqlite import LedgerStore
from mesh.errors import ConflictError, DamagedError, NotFoundError
from mesh.log import Entry, HardState
from node.cli.faults import run
from node.cli.mesh_cli import cli
from tests.home_helper import Home
from tests.ledger_helper import dump, entry


class Kept:
    """A home whose every state is remembered by the moment of its last command."""

    def __init__(self, tmp_path: Path, schema: int = SCHEMA_VERSION) -> None:
        self.home = Home(tmp_path / "home", schema=schema)
        self.folder = tmp_path / "archive"
        self.folder.mkdir()
        self.states: dict[int, tuple[int, bytes, Any]] = {}
        self.now_ms = 10_000

    def work(self, count: int) -> None:
        """A submission every second."""
        for _ in range(count):
            self.now_ms += 1_000
            index = self.home.log.last_index() + 1
            made = entry(index, self.home.submission(f"w{index}"), at_ms=self.now_ms)
            self.put(made)

    def put(self, made: Entry) -> None:
        self.home.log.persist(HardState(term=1, commit=made.index), [made])
        self.home.ledger.apply([made])
        ledger = self.home.ledger
        self.states[self.now_ms] = (ledger.applied_index, ledger.checksum, dump(ledger))

    def archived(self) -> Archived:
        return archive(self.home.ledger_path, self.home.log_path, self.folder)

    def at(self, until_ms: int, tmp_path: Path) -> tuple[int, bytes, Any]:
        path = tmp_path / f"at-{until_ms}.db"
        index = ledger_at(place_in(self.folder), path, until_ms=until_ms)
        store = LedgerStore(str(path))
        found = (store.applied_index, store.checksum, dump(store))
        store.close()
        assert index == found[0]
        return found


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def test_every_moment_comes_back(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archiving, "SNAPSHOT_ENTRIES", 10)
    monkeypatch.setattr(archiving, "SEGMENT_ENTRIES_MAX", 4)
    kept.work(2)
    first = kept.archived()
    assert (first.snapshot, first.entries, first.index) == (True, 0, 5)
    assert kept.archived() == Archived(folder=first.folder, index=5, snapshot=False, entries=0)
    for count in (1, 7, 3, 9, 2):
        kept.work(count)
        kept.put(Entry(kept.home.log.last_index() + 1, 1, "empty", b""))
        made = kept.archived()
        assert made.index == kept.home.ledger.applied_index
        assert made.entries == count + 1
    assert len(list(first.folder.glob("snapshot-*"))) == 3
    for moment, state in kept.states.items():
        if moment < 12_000:
            continue
        for until_ms in (moment, moment + 999):
            index, checksum, rows = kept.at(until_ms, tmp_path)
            assert (checksum, rows) == state[1:]
            assert index in (state[0], state[0] + 1), "empty entries have no moment"
    with pytest.raises(NotFoundError):
        kept.at(11_999, tmp_path)


def test_old_snapshots_go_with_their_entries(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archiving, "SNAPSHOT_ENTRIES", 5)
    monkeypatch.setattr(archiving, "SNAPSHOTS_KEPT", 2)
    for _ in range(6):
        kept.work(5)
        place = kept.archived().folder
    kept.work(1)
    kept.archived()
    snapshots, segments = sorted(place.glob("snapshot-*")), sorted(place.glob("segment-*"))
    assert (len(snapshots), len(segments)) == (2, 2)
    assert [path.name for path in place.glob(".*")] == []
    moments = sorted(kept.states)
    assert kept.at(moments[-1], tmp_path)[1:] == kept.states[moments[-1]][1:]
    assert kept.at(moments[-4], tmp_path)[1:] == kept.states[moments[-4]][1:]
    with pytest.raises(NotFoundError):
        kept.at(moments[2], tmp_path)


def test_what_the_log_forgot_is_a_gap_and_said(kept: Kept, tmp_path: Path) -> None:
    kept.work(2)
    kept.archived()
    kept.work(2)
    kept.archived()
    kept.work(6)
    kept.home.compact(kept.home.log.last_index() - 2)
    made = kept.archived()
    assert (made.snapshot, made.index) == (True, kept.home.ledger.applied_index)
    kept.work(2)
    kept.archived()
    moments = sorted(kept.states)
    for moment in (moments[1], moments[2], moments[-3], moments[-2], moments[-1]):
        assert kept.at(moment, tmp_path)[1:] == kept.states[moment][1:]
    for moment in (moments[3], moments[6], moments[-4]):
        with pytest.raises(DamagedError, match="lacks"):
            kept.at(moment, tmp_path)


def test_damaged_files_are_said(kept: Kept, tmp_path: Path) -> None:
    kept.work(2)
    place = kept.archived().folder
    kept.work(3)
    kept.archived()
    (segment,) = place.glob("segment-*")
    whole = segment.read_bytes()
    for data in (whole[:-1], whole[:10], b"", whole[:60] + b"\0" + whole[61:]):
        segment.write_bytes(data)
        with pytest.raises(DamagedError):
            kept.at(kept.now_ms, tmp_path)


def test_before_a_mesh_and_without_an_archive(tmp_path: Path) -> None:
    LedgerStore(str(tmp_path / "l.db")).close()
    with pytest.raises(ConflictError):
        archive(str(tmp_path / "l.db"), str(tmp_path / "r.db"), tmp_path / "a")
    with pytest.raises(NotFoundError):
        place_in(tmp_path)
    home = Home(tmp_path / "home")
    with pytest.raises(NotFoundError, match="mount"):
        archive(home.ledger_path, home.log_path, tmp_path / "not" / "mounted")


def test_as_typed(
    kept: Kept, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("DARKSTREAM_")]:
        monkeypatch.delenv(name)

    def typed(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(cli, ["ledger", *map(str, words), "--home", str(kept.home.path)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    kept.work(2)
    code, out, err = typed("archive", kept.folder)
    assert (code, err) == (0, "")
    assert "a snapshot" in out
    kept.work(2)
    code, out, _ = typed("archive", kept.folder, "--json")
    shown = json.loads(out)
    assert (shown["index"], shown["snapshot"], shown["entries"]) == (7, False, 2)
    kept.home.stop()
    code, out, err = typed("restore", kept.folder, "--until", "2001-01-01", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["applied_index"] == 9
    code, out, err = typed("restore", kept.folder, "--until", "1969-12-31")
    assert (code, err.startswith("error[not_found]: ")) == (2, True), err
    # In its new epoch the mesh has an archive of its own.
    code, out, _ = typed("archive", kept.folder)
    assert code == 0
    assert len(list(kept.folder.iterdir())) == 2
    code, out, err = typed("restore", kept.folder)
    assert (code, err.startswith("error[conflict]: ")) == (2, True), err
    code, out, err = typed("restore", shown["path"])
    assert (code, err) == (0, "")


def test_small_rounds_make_one_file(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.work(2)
    place = kept.archived().folder
    for _ in range(5):
        kept.work(1)
        kept.archived()
    (only,) = place.glob("segment-*")
    monkeypatch.setattr(archiving, "SEGMENT_GROWS_BYTES", only.stat().st_size)
    kept.work(1)
    kept.archived()
    assert len(list(place.glob("segment-*"))) == 2
    for moment in sorted(kept.states)[-6::2]:
        assert kept.at(moment, tmp_path)[1:] == kept.states[moment][1:]


def test_nodes_that_share_a_folder_may_add_the_same(kept: Kept, tmp_path: Path) -> None:
    kept.work(2)
    place = kept.archived().folder
    kept.work(2)
    kept.archived()
    (first,) = place.glob("segment-*")
    kept.work(3)
    whole = first.read_bytes()
    kept.archived()
    first.write_bytes(whole)  # another node wrote it after this one had it replaced
    assert len(list(place.glob("segment-*"))) == 2
    kept.work(1)
    kept.archived()
    for moment in sorted(kept.states)[-6::2]:
        assert kept.at(moment, tmp_path)[1:] == kept.states[moment][1:]


def test_each_snapshot_is_made_again_from_the_one_before(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archiving, "SNAPSHOT_ENTRIES", 5)
    kept.work(2)
    assert kept.archived().drilled is False, "nothing is before the first"
    kept.work(6)
    made = kept.archived()
    assert (made.snapshot, made.drilled) == (True, True)
    # A row changes behind the ledger's back: the file is sound in itself, and not what was decided.
    kept.home.ledger.connection.execute("UPDATE job SET priority = priority + 1 WHERE id = 'w6'")
    kept.work(6)
    count = len(list(made.folder.glob("snapshot-*")))
    with pytest.raises(DamagedError, match="lead to"):
        kept.archived()
    assert len(list(made.folder.glob("snapshot-*"))) == count, "the wrong one is not kept"
    assert list(kept.home.path.glob(".drill-*")) == []


def test_a_damaged_snapshot_costs_only_time(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archiving, "SNAPSHOT_ENTRIES", 5)
    for _ in range(3):
        kept.work(6)
        place = kept.archived().folder
    newest = sorted(place.glob("snapshot-*"), key=lambda path: int(path.name.split("-")[1]))[-1]
    whole = newest.read_bytes()
    newest.write_bytes(whole[:5000] + bytes(200) + whole[5200:])
    assert kept.at(kept.now_ms, tmp_path)[1:] == kept.states[kept.now_ms][1:]


def test_what_killed_writers_left_goes(kept: Kept) -> None:
    kept.work(2)
    place = kept.archived().folder
    old, young = place / ".segment-old", place / ".segment-young"
    for path in (old, young):
        path.write_bytes(b"x")
    now = place.stat().st_mtime
    os.utime(old, (now - 7_200, now - 7_200))
    kept.home.compact(kept.home.log.last_index())
    kept.work(2)
    kept.home.compact(kept.home.log.last_index())
    assert kept.archived().snapshot
    assert (old.exists(), young.exists()) == (False, True)


def test_a_drill_over_a_migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archiving, "SNAPSHOT_ENTRIES", 6)
    kept = Kept(tmp_path, FIRST_SCHEMA)
    kept.work(2)
    kept.archived()
    kept.work(3)
    kept.now_ms += 1_000
    for schema in range(FIRST_SCHEMA + 1, SCHEMA_VERSION + 1):
        index = kept.home.log.last_index() + 1
        kept.put(entry(index, MigrateLedger(schema=schema), at_ms=kept.now_ms))
    kept.work(3)
    made = kept.archived()
    assert (made.snapshot, made.drilled) == (True, True)
    kept.work(1)
    kept.archived()
    for moment in sorted(kept.states)[2::3]:
        assert kept.at(moment, tmp_path)[1:] == kept.states[moment][1:]
