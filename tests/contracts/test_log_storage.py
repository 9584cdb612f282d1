"""What every store of the log promises, on disk, in memory, and in the simulator; and the file alone."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from ledger import log_sqlite
from ledger.log_sqlite import FORGOTTEN_A_WRITE, PAGES_FREED_A_WRITE, PAGES_KEPT, LogStore
from mesh.errors import InUseError, StorageError
from mesh.ids import RaftId
from mesh.log import Base, Entry, HardState, LogStorage
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


def bound(log: LogStorage) -> tuple[int, int, int]:
    return log.base().index, log.first_index(), log.last_index()


def test_what_is_compacted_is_forgotten_and_its_end_remembered(log: LogStorage) -> None:
    assert log.base() == Base()
    log.persist(HardState(term=2, commit=5), [*some(1, 4), *some(4, 8, term=2)])
    log.compact(Base(5, 2, b"who votes"))
    assert log.base() == Base(5, 2, b"who votes")
    assert bound(log) == (5, 6, 7)
    assert [log.term(n) for n in (0, 4, 5, 6, 7, 8)] == [None, None, 2, 2, 2, None]
    assert log.entries(1, 9, 10**6) == tuple(some(6, 8, term=2))
    assert log.hard_state() == HardState(term=2, commit=5)
    log.persist(None, some(6, 9, term=3))
    assert log.entries(6, 9, 10**6) == tuple(some(6, 9, term=3))
    log.compact(Base(8, 3))
    assert bound(log) == (8, 9, 8)
    assert log.entries(1, 20, 10**6) == ()
    log.persist(None, some(9, 10, term=3))
    assert bound(log) == (8, 9, 9)


def test_to_compact_again_to_the_same_or_an_older_index_changes_nothing(log: LogStorage) -> None:
    log.persist(None, some(1, 9))
    for index in (6, 6, 3, 0):
        log.compact(Base(index, min(index, 1), b"c"))
        assert log.base() == Base(6, 1, b"c")
        assert bound(log) == (6, 7, 8)


def test_nothing_is_written_at_or_below_the_base(log: LogStorage) -> None:
    log.persist(None, some(1, 9))
    log.compact(Base(5, 1))
    for first in (5, 3, 10):
        with pytest.raises((StorageError, AssertionError)):
            log.persist(None, some(first, first + 1))
    assert log.entries(1, 20, 10**6) == tuple(some(6, 9))


def test_only_what_is_there_can_be_compacted(log: LogStorage) -> None:
    log.persist(None, some(1, 9))
    for base in (Base(9, 1), Base(5, 2)):
        with pytest.raises((StorageError, AssertionError)):
            log.compact(base)
    assert bound(log) == (0, 1, 8)


def test_a_log_restarts_behind_a_snapshot(log: LogStorage) -> None:
    log.persist(HardState(term=1, vote=VOTE, commit=2), some(1, 5))
    log.restart_from(Base(100, 7, b"c"), HardState(term=8, vote=VOTE, commit=100))
    assert log.base() == Base(100, 7, b"c")
    assert bound(log) == (100, 101, 100)
    assert log.hard_state() == HardState(term=8, vote=VOTE, commit=100)
    assert [log.term(n) for n in (0, 4, 99, 100, 101)] == [None, None, None, 7, None]
    assert log.entries(1, 200, 10**6) == ()
    log.persist(None, some(101, 103, term=8))
    assert log.entries(1, 200, 10**6) == tuple(some(101, 103, term=8))
    # Back to an older one: a restored backup.
    log.restart_from(Base(50, 3), HardState(term=9, commit=50))
    assert bound(log) == (50, 51, 50)
    assert log.entries(1, 200, 10**6) == ()


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


def test_base_and_what_is_left_survive_reopening(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.persist(HardState(term=2, commit=9), some(1, 12, term=2))
    store.compact(Base(9, 2, b"c"))
    store.close()
    again = opened(tmp_path)
    assert bound(again) == (9, 10, 11)
    assert again.base() == Base(9, 2, b"c")
    again.compact(Base(11, 2, b"d"))
    again.close()
    again = opened(tmp_path)
    assert bound(again) == (11, 12, 11)
    again.restart_from(Base(90, 5, b"e"), HardState(term=5, commit=90))
    again.close()
    again = opened(tmp_path)
    assert bound(again) == (90, 91, 90)
    assert again.hard_state() == HardState(term=5, commit=90)
    again.close()


def test_compacting_is_one_row_and_the_space_comes_back_with_later_writes(tmp_path: Path) -> None:
    path = tmp_path / "raft.db"

    def rows() -> int:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        count = connection.execute("SELECT count(*) FROM entry").get
        connection.close()
        return int(count)

    store = opened(tmp_path)
    for low in range(1, 40_001, 500):
        store.persist(None, some(low, low + 500, size=1_000))
    grown = path.stat().st_size
    assert grown > 40_000_000
    store.compact(Base(40_000, 1))
    assert rows() >= 40_000 - FORGOTTEN_A_WRITE, "one call must not remove them all"
    assert store.entries(1, 50_000, 10**9) == ()
    assert store.term(39_999) is None
    store.close()
    store = opened(tmp_path)  # goes on where it was
    for index in range(40_001, 40_031):
        store.persist(None, some(index, index + 1))
    left = rows()
    for index in range(40_031, 40_060):
        store.persist(None, some(index, index + 1))
    assert rows() == 59 < left
    for index in range(40_060, 40_200):
        store.persist(None, some(index, index + 1))
    store.close()
    assert path.stat().st_size < grown // 2
    assert path.stat().st_size > (PAGES_KEPT - PAGES_FREED_A_WRITE) * 4_096


def test_a_hard_state_beyond_the_base_is_refused(tmp_path: Path) -> None:
    store = opened(tmp_path)
    with pytest.raises(StorageError):
        store.restart_from(Base(10, 1), HardState(term=1, commit=11))
    assert bound(store) == (0, 1, 0)
    store.close()


def make_version_1(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.pragma("journal_mode", "WAL")
    connection.execute(log_sqlite._VERSION_1)
    connection.execute("UPDATE hard_state SET term = 4, commit_index = 2")
    connection.executemany(
        "INSERT INTO entry VALUES (?, ?, ?, ?)",
        [(entry.index, entry.term, entry.kind, entry.data) for entry in some(1, 4, term=4)],
    )
    connection.execute("INSERT INTO value VALUES ('incarnation', '\"0000000a\"')")
    connection.pragma("user_version", 1)
    connection.close()


def test_a_file_of_version_1_is_brought_up_to_date(tmp_path: Path) -> None:
    make_version_1(tmp_path / "raft.db")
    for _ in range(2):
        store = opened(tmp_path)
        assert store.base() == Base()
        assert store.entries(1, 9, 1_000) == tuple(some(1, 4, term=4))
        assert store.hard_state() == HardState(term=4, commit=2)
        assert store.incarnation == "0000000a"
        assert store._connection.pragma("auto_vacuum") == 2
        store.close()
    store = opened(tmp_path)
    store.compact(Base(2, 4, b"c"))
    assert bound(store) == (2, 3, 3)
    store.close()


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


def damage_base(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("DELETE FROM base")
    connection.close()


def damage_version(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.pragma("user_version", 99)
    connection.close()


@pytest.mark.parametrize(
    "damage", [damage_header, damage_gap, damage_state, damage_base, damage_version]
)
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
