"""What every store of the log promises, on disk, in memory, and in the simulator; and the file alone."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from ledger.log_sqlite import LogStore
from mesh.errors import InUseError, StorageError
from mesh.ids import RaftId
from mesh.log import Entry, HardState, LogStorage
from tests.simulator.storage import MemoryLog

VOTE = RaftId("anna.00000001")


@pytest.fixture(params=["file", "memory", "simulator"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LogStorage]:
    if request.param == "simulator":
        yield MemoryLog()
        return
    path = str(tmp_path / "raft.db") if request.param == "file" else ":memory:"
    store = LogStore(path, incarnation="00000001")
    yield store
    store.close()


def some(low: int, high: int, term: int = 1, size: int = 10) -> list[Entry]:
    return [Entry(n, term, "command", bytes([n % 256]) * size) for n in range(low, high)]


def test_an_empty_log(log: LogStorage) -> None:
    assert (log.first_index(), log.last_index()) == (1, 0)
    assert log.hard_state() == HardState()
    assert log.term(0) == 0
    assert log.term(1) is None
    assert log.entries(1, 10, 1_000) == ()


def test_what_is_persisted_is_read(log: LogStorage) -> None:
    entries = [Entry(1, 1, "empty", b""), Entry(2, 1, "configuration", b"\x00\xff"), *some(3, 6, 2)]
    log.persist(HardState(term=2, vote=VOTE, commit=3), entries)
    assert log.entries(1, 6, 1_000) == tuple(entries)
    assert log.entries(2, 4, 1_000) == tuple(entries[1:3])
    assert [log.term(n) for n in range(7)] == [0, 1, 1, 2, 2, 2, None]
    assert (log.first_index(), log.last_index()) == (1, 5)
    assert log.hard_state() == HardState(term=2, vote=VOTE, commit=3)


def test_hard_state_alone_and_entries_alone(log: LogStorage) -> None:
    log.persist(HardState(term=1, vote=VOTE), [])
    log.persist(None, some(1, 3))
    assert log.hard_state() == HardState(term=1, vote=VOTE)
    log.persist(HardState(term=2), [])
    assert log.hard_state() == HardState(term=2, vote=None)
    assert log.last_index() == 2
    log.persist(None, [])
    assert log.last_index() == 2


def test_entries_are_bounded_and_at_least_one(log: LogStorage) -> None:
    log.persist(None, some(1, 6, size=100))
    assert [e.index for e in log.entries(1, 6, 250)] == [1, 2]
    assert [e.index for e in log.entries(1, 6, 200)] == [1, 2]
    assert [e.index for e in log.entries(2, 6, 0)] == [2]
    assert [e.index for e in log.entries(5, 99, 10**6)] == [5]
    assert log.entries(3, 3, 10**6) == ()


def test_the_tail_is_replaced(log: LogStorage) -> None:
    log.persist(None, some(1, 6))
    log.persist(None, some(3, 5, term=2))
    assert log.last_index() == 4
    assert [log.term(n) for n in range(1, 6)] == [1, 1, 2, 2, None]
    log.persist(None, some(1, 2, term=3))
    assert log.entries(1, 9, 1_000) == tuple(some(1, 2, term=3))


def test_a_gap_is_refused_and_changes_nothing(log: LogStorage) -> None:
    def persist(first: int) -> None:
        with pytest.raises((StorageError, AssertionError)):
            log.persist(None, some(first, first + 1))

    persist(2)
    assert log.last_index() == 0
    log.persist(None, some(1, 3))
    persist(4)
    assert log.entries(1, 9, 1_000) == tuple(some(1, 3))


# --- the file ------------------------------------------------------------------------------------


def opened(tmp_path: Path, incarnation: str = "00000001") -> LogStore:
    return LogStore(str(tmp_path / "raft.db"), incarnation=incarnation)


def test_everything_survives_reopening(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.persist(HardState(term=3, vote=VOTE, commit=1), some(1, 4))
    store.persist(None, some(3, 4, term=3))
    store.set_value("mesh", {"id": "m", "n": [1, None]})
    store.close()
    again = opened(tmp_path, "ffffffff")
    assert again.hard_state() == HardState(term=3, vote=VOTE, commit=1)
    assert again.entries(1, 9, 1_000) == (*some(1, 3), *some(3, 4, term=3))
    assert again.incarnation == "00000001"
    assert again.get_value("mesh") == {"id": "m", "n": [1, None]}
    again.close()


def test_values(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert store.get_value("x") is None
    for value in (1, "text", False, [1], {"a": 1}):
        store.set_value("x", value)
        assert store.get_value("x") == value
    store.set_value("x", None)
    assert store.get_value("x") is None
    store.close()


def test_the_same_process_cannot_open_it_twice(tmp_path: Path) -> None:
    store = opened(tmp_path)
    with pytest.raises(InUseError):
        opened(tmp_path)
    store.close()
    opened(tmp_path).close()


CHILD = """
import sys
from ledger.log_sqlite import LogStore
from mesh.log import Entry, HardState
store = LogStore(sys.argv[1], incarnation="0000000c")
index = store.last_index()
print("open", flush=True)
while True:
    index += 1
    store.persist(HardState(term=1, commit=index - 1), [Entry(index, 1, "command", b"x" * 50)])
    print(index, flush=True)
"""


def test_another_process_is_shut_out_until_it_dies(tmp_path: Path) -> None:
    path = str(tmp_path / "raft.db")
    child = subprocess.Popen([sys.executable, "-c", CHILD, path], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        with pytest.raises(InUseError):
            LogStore(path, incarnation="00000002")
        said = 0
        while said < 20:
            said = int(child.stdout.readline())
        os.kill(child.pid, signal.SIGKILL)
        rest = child.stdout.read().split()
        said = int(rest[-1]) if rest else said
    finally:
        child.kill()
        child.wait(10)
        if child.stdout is not None:
            child.stdout.close()
    store = LogStore(path, incarnation="00000002")
    # What was said was synced before; at most the one in flight is there as well.
    assert store.last_index() in (said, said + 1)
    assert store.hard_state().commit == store.last_index() - 1
    assert len(store.entries(1, said + 2, 10**6)) == store.last_index()
    assert store.incarnation == "0000000c"
    store.close()


def damage_header(path: Path) -> None:
    path.write_bytes(b"this is no database" * 100)


def damage_gap(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("DELETE FROM entry WHERE log_index = 2")
    connection.close()


def damage_state(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("DELETE FROM hard_state")
    connection.close()


def damage_version(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.pragma("user_version", 99)
    connection.close()


@pytest.mark.parametrize("damage", [damage_header, damage_gap, damage_state, damage_version])
def test_a_damaged_file_is_an_error_and_no_lock(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    store = opened(tmp_path)
    store.persist(HardState(term=1), some(1, 4))
    store.close()
    damage(tmp_path / "raft.db")
    for _ in range(2):  # the second try meets no lock that the first left behind
        with pytest.raises(StorageError) as error:
            opened(tmp_path)
        assert error.value.todo


def test_reads_of_a_broken_disk_are_storage_errors(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.persist(None, some(1, 3))
    store._connection.execute("DROP TABLE entry")
    store._connection.execute("DROP TABLE value")
    with pytest.raises(StorageError):
        store.entries(1, 3, 100)
    with pytest.raises(StorageError):
        store.term(1)
    with pytest.raises(StorageError):
        store.get_value("x")
    with pytest.raises(StorageError):
        store.set_value("x", 1)
    with pytest.raises(StorageError):
        store.persist(None, some(3, 4))
    store.close()


def test_no_folder_no_log(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        LogStore(str(tmp_path / "none" / "raft.db"), incarnation="00000001")
