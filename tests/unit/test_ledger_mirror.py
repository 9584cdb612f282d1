"""A mirror of the replica: equal after every round, whatever the log still has."""

from dataclasses import replace
from pathlib import Path

import apsw
import pytest

from ledger.commands import MigrateLedger
from ledger.mirror import Mirrored, epoch_and_index, mirror, verify_file, without_guests
from ledger.schema import FIRST_SCHEMA, SCHEMA_VERSION
from ledger.snapshot_sqlite import verify_snapshot
from ledger.store_sqlite import LedgerStore
from mesh.errors import ConflictError, DamagedError, StorageError
from tests.home_helper import Home
from tests.ledger_helper import dump


class Mirroring:
    def __init__(self, tmp_path: Path, schema: int = SCHEMA_VERSION) -> None:
        self.home = Home(tmp_path / "home", schema=schema)
        self.file = tmp_path / "mirror" / "ledger.db"

    def round(self) -> Mirrored:
        return mirror(self.home.ledger_path, self.home.log_path, self.file)

    def jobs(self, *names: str) -> None:
        for name in names:
            self.home.do(self.home.submission(name))

    def equal(self) -> bool:
        store = LedgerStore(str(self.file))
        try:
            mine = self.home.ledger
            return (store.applied_index, store.checksum, dump(store)) == (
                mine.applied_index,
                mine.checksum,
                dump(mine),
            )
        finally:
            store.close()


@pytest.fixture
def mirroring(tmp_path: Path) -> Mirroring:
    return Mirroring(tmp_path)


def test_a_copy_first_then_what_was_decided_since(mirroring: Mirroring) -> None:
    first = mirroring.round()
    assert (first.copied, first.entries, mirroring.equal()) == (True, 0, True)
    assert mirroring.round() == replace(first, copied=False)
    mirroring.jobs("a", "b", "c")
    more = mirroring.round()
    assert (more.index, more.entries, more.copied) == (first.index + 3, 3, False)
    assert more.checksum == mirroring.home.ledger.checksum
    assert mirroring.equal()


def test_what_the_log_forgot_makes_it_a_copy_again(mirroring: Mirroring) -> None:
    mirroring.round()
    mirroring.jobs("a", "b")
    mirroring.home.compact(mirroring.home.log.last_index())
    mirroring.jobs("c")
    assert mirroring.round().copied
    assert mirroring.equal()
    assert [path.name for path in mirroring.file.parent.glob(".copy-*")] == []


def test_a_mirror_of_something_else_is_replaced(mirroring: Mirroring, tmp_path: Path) -> None:
    other = Home(tmp_path / "other", jobs=20)
    other.ledger.connection.execute("UPDATE mesh SET epoch = 2")
    mirror(other.ledger_path, other.log_path, mirroring.file)
    assert mirroring.round().copied, "of another epoch"
    assert mirroring.equal()
    mirroring.jobs("a")
    mirroring.round()
    assert mirroring.equal()


def test_a_ledger_that_its_log_does_not_lead_to(mirroring: Mirroring) -> None:
    mirroring.round()
    mirroring.jobs("a")
    mirroring.home.ledger.connection.execute("UPDATE state SET checksum = zeroblob(32)")
    with pytest.raises(DamagedError):
        mirroring.round()


def test_guests_go_and_the_rest_is_a_backup(mirroring: Mirroring) -> None:
    mirroring.round()
    connection = apsw.Connection(str(mirroring.file))
    connection.execute("CREATE TABLE _litestream_seq (id INTEGER PRIMARY KEY, seq INTEGER)")
    connection.execute("CREATE TABLE _litestream_lock (id INTEGER)")
    connection.close()
    assert mirroring.round().copied is False
    with pytest.raises(DamagedError):
        verify_snapshot(mirroring.file, thorough=True)
    before = mirroring.file.read_bytes()
    assert verify_file(mirroring.file).checksum == mirroring.home.ledger.checksum
    assert mirroring.file.read_bytes() == before
    without_guests(mirroring.file)
    found = verify_snapshot(mirroring.file, thorough=True)
    assert found.checksum == mirroring.home.ledger.checksum
    assert verify_file(mirroring.file) == found
    assert epoch_and_index(mirroring.file) == (1, found.applied_index)
    assert [path.name for path in mirroring.file.parent.iterdir()] == [mirroring.file.name]


def test_what_is_no_ledger(mirroring: Mirroring, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.db"
    wrong.write_bytes(b"no database at all" * 100)
    with pytest.raises(DamagedError):
        without_guests(wrong)
    mirroring.file.parent.mkdir()
    mirroring.file.write_bytes(b"no database at all" * 100)
    with pytest.raises(StorageError):
        mirroring.round()
    LedgerStore(str(tmp_path / "empty.db")).close()
    with pytest.raises(ConflictError):
        mirror(str(tmp_path / "empty.db"), mirroring.home.log_path, tmp_path / "m.db")


def test_it_follows_a_migration(tmp_path: Path) -> None:
    mirroring = Mirroring(tmp_path, FIRST_SCHEMA)
    mirroring.jobs("a")
    mirroring.round()
    mirroring.jobs("b")
    for schema in range(FIRST_SCHEMA + 1, SCHEMA_VERSION + 1):
        mirroring.home.do(MigrateLedger(schema=schema))
    mirroring.jobs("c")
    assert mirroring.round().copied is False
    assert mirroring.equal()
