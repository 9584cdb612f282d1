"""Transactions: all or nothing, and nobody stands still for the disk."""

import threading
from pathlib import Path

import apsw
import pytest

from ledger.transaction_sqlite import transaction

WAIT_MS = 10_000


def made(path: Path) -> apsw.Connection:
    connection = apsw.Connection(str(path))
    connection.set_busy_timeout(WAIT_MS)
    return connection


def _write_and_raise(connection: apsw.Connection, fault: BaseException) -> None:
    with transaction(connection):
        connection.execute("INSERT INTO t VALUES (2)")
        raise fault


def test_all_is_written_or_nothing(tmp_path: Path) -> None:
    connection = made(tmp_path / "db")
    connection.execute("CREATE TABLE t (x INTEGER PRIMARY KEY)")
    with transaction(connection):
        connection.execute("INSERT INTO t VALUES (1)")
    for fault in (apsw.ConstraintError("twice"), KeyboardInterrupt()):
        with pytest.raises(type(fault)):
            _write_and_raise(connection, fault)
    assert not connection.in_transaction
    assert connection.execute("SELECT x FROM t").fetchall() == [(1,)]
    connection.close()


def test_a_commit_that_fails_is_undone(tmp_path: Path) -> None:
    writer, reader = made(tmp_path / "db"), made(tmp_path / "db")
    writer.execute("CREATE TABLE t (x)")
    writer.set_busy_timeout(1)
    reader.execute("BEGIN")
    reader.execute("SELECT x FROM t").fetchall()
    with pytest.raises(apsw.BusyError), transaction(writer):
        writer.execute("INSERT INTO t VALUES (1)")
    assert not writer.in_transaction
    reader.execute("COMMIT")
    assert writer.execute("SELECT x FROM t").fetchall() == []
    writer.close()
    reader.close()


def test_other_threads_go_on_during_a_commit(tmp_path: Path) -> None:
    """The commit waits for a reader, whom another thread ends: it must get its turn meanwhile."""
    writer, reader = made(tmp_path / "db"), made(tmp_path / "db")
    writer.execute("CREATE TABLE t (x)")
    reader.execute("BEGIN")
    reader.execute("SELECT x FROM t").fetchall()
    begun = threading.Event()

    def end() -> None:
        begun.wait()
        reader.execute("COMMIT")

    other = threading.Thread(target=end)
    other.start()
    with transaction(writer):
        writer.execute("INSERT INTO t VALUES (1)")
        begun.set()
    other.join()
    assert writer.execute("SELECT x FROM t").fetchall() == [(1,)]
    writer.close()
    reader.close()
