"""What of the replica survives a loss of power, at worst: only what was synced."""

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from ledger.invariants import violations
from ledger.store_sqlite import LedgerStore, SqliteRows
from tests.ledger_helper import Ledger
from tests.power_loss import SyncedFiles, only_synced_survives


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SyncedFiles]:
    with only_synced_survives(tmp_path / "survives") as files:
        yield files


def survivor(disk: SyncedFiles) -> LedgerStore:
    return LedgerStore(str(disk.after() / "ledger.db"))


def working(tmp_path: Path) -> Ledger:
    ledger = Ledger(str(tmp_path / "ledger.db")).formed("bert")
    ledger.planned(*(f"j{n}" for n in range(20)))
    return ledger


def test_what_is_made_durable_survives(tmp_path: Path, disk: SyncedFiles) -> None:
    ledger = working(tmp_path)
    for round_ in range(3):
        index = ledger.store.make_durable()
        assert index == ledger.store.applied_index
        checksum = ledger.store.checksum
        ledger.planned(f"later-{round_}")
        after = survivor(disk)
        assert (after.applied_index, after.checksum) == (index, checksum)
        assert violations(SqliteRows(after.connection)) == []
        after.close()
    ledger.store.close()


def test_without_it_the_last_commands_may_be_lost(tmp_path: Path, disk: SyncedFiles) -> None:
    # Else the test above would prove nothing.
    ledger = working(tmp_path)
    index = ledger.store.make_durable()
    ledger.planned("lost")
    after = survivor(disk)
    assert after.applied_index == index < ledger.store.applied_index
    after.close()
    ledger.store.close()


def test_it_waits_for_no_reader_and_survives_checkpoints(tmp_path: Path, disk: SyncedFiles) -> None:
    ledger = working(tmp_path)
    reader = apsw.Connection(ledger.store.path, flags=apsw.SQLITE_OPEN_READONLY)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM job").fetchall()
    for kind in (apsw.SQLITE_CHECKPOINT_PASSIVE, None, apsw.SQLITE_CHECKPOINT_PASSIVE):
        ledger.planned(f"beside-{ledger.store.applied_index}")
        if kind is not None:
            ledger.store.connection.wal_checkpoint(mode=kind)
        index = ledger.store.make_durable()
        after = survivor(disk)
        assert after.applied_index == index
        after.close()
    reader.close()
    ledger.store.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    ledger.planned("last")
    index = ledger.store.make_durable()
    after = survivor(disk)
    assert after.applied_index == index
    after.close()
    ledger.store.close()


def test_in_memory_it_is_nothing() -> None:
    ledger = Ledger().formed()
    before = ledger.dump(), ledger.store.checksum
    assert ledger.store.make_durable() == ledger.store.applied_index
    assert (ledger.dump(), ledger.store.checksum) == before
