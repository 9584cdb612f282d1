from random import Random

import pytest

from mesh import raftlog
from mesh.errors import DivergenceError
from mesh.ids import RaftId
from mesh.log import Entry, HardState
from mesh.membership import Configuration
from mesh.raftlog import RaftLog
from tests.simulator.storage import MemoryLog


class CountingLog(MemoryLog):
    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def term(self, index: int) -> int | None:
        self.reads += 1
        return super().term(index)

    def entries(self, low: int, high: int, bytes_max: int) -> tuple[Entry, ...]:
        self.reads += 1
        return super().entries(low, high, bytes_max)


def entries_of(first: int, *terms: int, data: bytes = b"x") -> list[Entry]:
    return [Entry(index, term, "command", data) for index, term in enumerate(terms, first)]


def configuration(index: int, term: int, *voters: str) -> Entry:
    data = Configuration.of(map(RaftId, voters)).encode()
    return Entry(index, term, "configuration", data)


def log_of(*terms: int, commit: int = 0, applied: int = 0) -> RaftLog:
    disk = CountingLog()
    disk.persist(None, entries_of(1, *terms))
    return RaftLog(disk, commit_index=commit, applied_index=applied)


def read(log: RaftLog, low: int, high: int, bytes_max: int = 1 << 20) -> list[tuple[int, int]]:
    found = log.entries(low, high, bytes_max=bytes_max, entries_max=1_000)
    return [(entry.index, entry.term) for entry in found]


def test_a_new_log_is_empty() -> None:
    log = RaftLog(MemoryLog(), commit_index=0, applied_index=0)
    assert (log.last_index, log.last_term, log.stable_index, log.commit_index) == (0, 0, 0, 0)
    assert log.term(0) == 0
    assert log.term(1) is None
    assert log.configuration is None
    assert log.configuration_index == 0


def test_unpersisted_entries_hide_what_the_disk_still_holds() -> None:
    log = log_of(1, 1, 2, 2)
    log.append(entries_of(3, 3))
    assert (log.last_index, log.last_term, log.stable_index) == (3, 3, 2)
    assert log.term(4) is None
    assert read(log, 1, 9) == [(1, 1), (2, 1)], "the disk's part first"
    assert read(log, 3, 9) == [(3, 3)]
    assert [e.index for e in log.take_unpersisted()] == [3]
    assert not log.has_unpersisted


def test_a_sync_of_replaced_entries_counts_for_nothing() -> None:
    log = log_of(1)
    log.append(entries_of(2, 2, 2))
    log.take_unpersisted()
    log.append(entries_of(2, 3))
    log.persisted(3, 2)
    assert log.stable_index == 1
    log.persisted(2, 2)
    assert log.stable_index == 1
    log.persisted(2, 3)
    assert log.stable_index == 2
    assert [(e.index, e.term) for e in log.take_unpersisted()] == [(2, 3)]


@pytest.mark.parametrize(
    ("prev_index", "prev_term", "terms", "matched", "after"),
    [
        (3, 2, (2,), 4, (1, 1, 2, 2)),  # new at the end
        (4, 2, (), None, (1, 1, 2)),  # a gap
        (3, 1, (2,), None, (1, 1, 2)),  # another predecessor
        (0, 0, (1, 1), 2, (1, 1, 2)),  # all known: nothing behind is cut off
        (1, 1, (1,), 2, (1, 1, 2)),
        (1, 1, (1, 3), 3, (1, 1, 3)),  # conflict replaces from there
        (0, 0, (1, 2, 2, 2), 4, (1, 2, 2, 2)),
        (3, 2, (), 3, (1, 1, 2)),
    ],
)
def test_match_and_append(
    prev_index: int,
    prev_term: int,
    terms: tuple[int, ...],
    matched: int | None,
    after: tuple[int, ...],
) -> None:
    log = log_of(1, 1, 2)
    assert (
        log.match_and_append(prev_index, prev_term, entries_of(prev_index + 1, *terms)) == matched
    )
    assert tuple(log.term(index) for index in range(1, log.last_index + 1)) == after


def test_what_is_committed_is_never_replaced() -> None:
    log = log_of(1, 1, 2, commit=2)
    with pytest.raises(DivergenceError):
        log.match_and_append(1, 1, entries_of(2, 3))
    with pytest.raises(DivergenceError):
        log.append([*entries_of(2, 3)])


def test_a_ledger_that_is_ahead_of_its_log_is_refused() -> None:
    with pytest.raises(DivergenceError):
        log_of(1, 1, applied=3)


def test_agreeing_halves_to_what_a_linear_search_finds() -> None:
    random = Random(2)
    for _ in range(500):
        terms = sorted(random.randrange(1, 6) for _ in range(random.randrange(0, 12)))
        log = log_of(*terms)
        index, term = random.randrange(0, 14), random.randrange(0, 7)
        expected = min(index, len(terms))
        while expected and terms[expected - 1] > term:
            expected -= 1
        assert log.agreeing(index, term) == (expected, terms[expected - 1] if expected else 0)


def test_up_to_date_compares_terms_before_lengths() -> None:
    log = log_of(1, 2, 2)
    assert log.is_up_to_date(3, 2)
    assert log.is_up_to_date(1, 3)
    assert not log.is_up_to_date(2, 2)
    assert not log.is_up_to_date(9, 1)


def test_committed_entries_are_handed_out_once_and_within_limits() -> None:
    log = log_of(1, 1, 1, 1, 1, applied=1)
    assert not log.commit_to(1)
    assert log.commit_to(9), "as far as there are entries"
    assert log.commit_index == 5
    assert [e.index for e in log.take_committed(ahead_max=2, bytes_max=99)] == [2, 3]
    assert [e.index for e in log.take_committed(ahead_max=9, bytes_max=1)] == [4]
    assert log.take_committed(ahead_max=0, bytes_max=99) == ()
    assert [e.index for e in log.take_committed(ahead_max=9, bytes_max=99)] == [5]
    assert log.take_committed(ahead_max=9, bytes_max=99) == ()
    assert not log.commit_to(3)


def test_reads_keep_to_both_limits_and_give_at_least_one() -> None:
    log = log_of(1)
    log.append(entries_of(2, 1, 1, 1, data=b"12345678"))
    assert read(log, 2, 9, bytes_max=16) == [(2, 1), (3, 1)]
    assert read(log, 2, 9, bytes_max=1) == [(2, 1)]
    assert [e.index for e in log.entries(2, 9, bytes_max=99, entries_max=1)] == [2]
    assert log.entries(2, 9, bytes_max=99, entries_max=0) == ()
    assert log.entries(9, 12, bytes_max=99, entries_max=9) == ()


def test_the_newest_configuration_is_in_force_until_it_is_replaced() -> None:
    disk = MemoryLog()
    disk.persist(
        HardState(term=2, commit=2),
        [configuration(1, 1, "a"), *entries_of(2, 1), configuration(3, 2, "a", "b")],
    )
    log = RaftLog(disk, commit_index=2, applied_index=0)
    assert log.configuration == Configuration.of(map(RaftId, "ab"))
    assert log.configuration_index == 3
    log.append(entries_of(3, 3))
    assert log.configuration == Configuration.of([RaftId("a")])
    assert log.configuration_index == 1
    log.append([configuration(4, 3, "a", "c")])
    log.commit_to(4)
    assert log.configuration_index == 4


def test_the_scan_for_configurations_goes_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raftlog, "SCAN_BYTES", 64)
    disk = MemoryLog()
    disk.persist(None, [configuration(1, 1, "a"), *entries_of(2, *[1] * 3_000)])
    log = RaftLog(disk, commit_index=3_000, applied_index=0)
    assert log.configuration_index == 1


def test_hot_reads_stay_in_memory_and_the_memory_is_bounded() -> None:
    disk = CountingLog()
    log = RaftLog(disk, commit_index=0, applied_index=0)
    disk.reads = 0
    total = 5 * raftlog.CACHE_ENTRIES_MAX
    for index in range(1, total + 1):
        log.append(entries_of(index, 1))
        log.take_unpersisted()
        disk.persist(None, entries_of(index, 1))
        log.persisted(index, 1)
        log.commit_to(index)
        assert log.term(max(1, index - 1)) == 1
        assert read(log, index, index + 1) == [(index, 1)]
    assert disk.reads == 0
    assert len(log._tail) <= 2 * raftlog.CACHE_ENTRIES_MAX
    assert read(log, 1, 3) == [(1, 1), (2, 1)]
    assert disk.reads == 1
    assert log.uncommitted_bytes == 0


def test_bytes_bound_the_memory_too() -> None:
    disk = MemoryLog()
    log = RaftLog(disk, commit_index=0, applied_index=0)
    size = 1 << 18
    for index in range(1, 200):
        log.append(entries_of(index, 1, data=bytes(size)))
        disk.persist(None, log.take_unpersisted())
        log.persisted(index, 1)
        log.commit_to(index)
    assert len(log._tail) * size <= 2 * raftlog.CACHE_BYTES_MAX + size


def test_uncommitted_bytes_follow_appends_commits_and_truncation() -> None:
    log = log_of(1)
    log.append(entries_of(2, 1, 1, 1, data=b"1234"))
    assert log.uncommitted_bytes == 12
    log.commit_to(2)
    assert log.uncommitted_bytes == 8
    log.append(entries_of(4, 2, data=b"12"))
    assert log.uncommitted_bytes == 6
    log.commit_to(4)
    assert log.uncommitted_bytes == 0
