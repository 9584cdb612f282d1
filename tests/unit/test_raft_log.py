from random import Random

import pytest

from mesh import raftlog
from mesh.errors import DivergenceError
from mesh.ids import RaftId
from mesh.log import Base, Entry, HardState
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


# --- compaction and snapshots ----------------------------------------------------------------------


def test_a_compacted_log_begins_behind_its_base() -> None:
    log = log_of(1, 1, 2, 2, 3, commit=5, applied=4)
    base = Base(3, 2, b"")
    assert log.base_at(3) == base
    log.compacted(base)
    assert log.base == base
    assert [log.term(index) for index in range(7)] == [None, None, None, 2, 2, 3, None]
    assert read(log, 4, 9) == [(4, 2), (5, 3)]
    log.compacted(Base(2, 1))
    assert log.base == base, "never back"
    with pytest.raises(AssertionError, match="applied"):
        log.compacted(Base(5, 3))


def test_compaction_drops_what_memory_holds() -> None:
    disk = CountingLog()
    log = RaftLog(disk, commit_index=0, applied_index=0)
    log.append(entries_of(1, *[1] * 10))
    disk.persist(None, log.take_unpersisted())
    log.persisted(10, 1)
    log.commit_to(8)
    log.take_committed(ahead_max=99, bytes_max=99)
    log.compacted(Base(8, 1))
    disk.reads = 0
    assert read(log, 9, 11) == [(9, 1), (10, 1)]
    assert [log.term(index) for index in (7, 8, 9)] == [None, 1, 1]
    assert disk.reads == 0
    log.append(entries_of(9, 2))
    assert (log.last_index, log.last_term) == (9, 2)
    log.compacted(Base(8, 1))


def test_everything_can_be_compacted() -> None:
    log = log_of(1, 1, 2, commit=3, applied=3)
    log.compacted(Base(3, 2))
    assert (log.last_index, log.last_term, log.term(3)) == (3, 2, 2)
    assert log.match_and_append(3, 2, entries_of(4, 2)) == 4
    assert log.match_and_append(2, 1, entries_of(3, 2)) is None


def test_what_storage_compacted_is_gone_although_nobody_said_so() -> None:
    disk = CountingLog()
    disk.persist(None, entries_of(1, 1, 1, 2, 2, 3))
    log = RaftLog(disk, commit_index=5, applied_index=5)
    disk.compact(Base(3, 2))
    assert log.base == Base(3, 2)
    assert [log.term(index) for index in range(6)] == [None, None, None, 2, 2, 3]
    assert read(log, 3, 9) == [], "not from 4 on: that would be a gap"
    assert read(log, 4, 9) == [(4, 2), (5, 3)]


def test_agreement_below_the_base_is_an_upper_bound() -> None:
    log = log_of(1, 1, 3, 3, 5, commit=5, applied=5)
    log.compacted(Base(3, 3))
    assert log.agreeing(5, 4) == (4, 3)
    assert log.agreeing(9, 3) == (4, 3)
    assert log.agreeing(3, 3) == (3, 3)
    assert log.agreeing(4, 2) == (2, 0), "entry 3 is of a later term"
    assert log.agreeing(2, 1) == (2, 0)
    assert log.agreeing(0, 0) == (0, 0)


def test_a_base_is_committed_durable_and_has_the_configuration_of_its_time() -> None:
    disk = MemoryLog()
    one, two, three = (configuration(n, 1, *"abc"[:n]) for n in (1, 2, 3))
    disk.persist(HardState(term=1, commit=3), [one, two, three, *entries_of(4, 1, 1)])
    log = RaftLog(disk, commit_index=4, applied_index=3)
    assert log.base_at(1) == Base(1, 1, one.data)
    assert log.base_at(2) == Base(2, 1, two.data)
    assert log.base_at(4) == Base(4, 1, three.data)
    assert log.base_at(5) is None, "not committed"
    assert log.base_at(6) is None
    log.append(entries_of(6, 1))
    log.commit_to(6)
    assert log.base_at(5) is not None
    assert log.base_at(6) is None, "not durable"


def test_configurations_come_from_the_base_when_no_entry_has_one() -> None:
    disk = MemoryLog()
    disk.persist(HardState(commit=3), [configuration(1, 1, "a"), *entries_of(2, 1, 1, 1)])
    disk.compact(Base(2, 1, configuration(1, 1, "a").data))
    log = RaftLog(disk, commit_index=3, applied_index=2)
    assert log.configuration == Configuration.of([RaftId("a")])
    assert log.configuration_index == 2
    assert not log.is_configuration_pending
    log.append([configuration(5, 1, "a", "b")])
    assert log.is_configuration_pending
    log.append(entries_of(5, 2))
    assert log.configuration == Configuration.of([RaftId("a")])
    assert log.base_at(3) == Base(3, 1, configuration(1, 1, "a").data)


def test_restart_from_a_snapshot_forgets_everything() -> None:
    disk = MemoryLog()
    disk.persist(None, entries_of(1, 1, 1, 1))
    log = RaftLog(disk, commit_index=1, applied_index=1)
    log.append(entries_of(4, 1, 1))
    base = Base(9, 3, configuration(9, 3, "a", "b").data)
    with pytest.raises(AssertionError, match="base"):
        log.restart(base)
    disk.restart_from(base, HardState(term=3, commit=9))
    log.restart(base)
    assert (log.last_index, log.last_term, log.stable_index, log.commit_index) == (9, 3, 9, 9)
    assert (log.handed_index, log.uncommitted_bytes, log.has_unpersisted) == (9, 0, False)
    assert log.configuration == Configuration.of(map(RaftId, "ab"))
    log.persisted(5, 1)
    assert log.stable_index == 9, "a write from before"
    log.append(entries_of(10, 3))
    assert [entry.index for entry in log.take_unpersisted()] == [10]


def test_a_ledger_and_a_log_that_do_not_fit_are_refused() -> None:
    disk = MemoryLog()
    disk.restart_from(Base(9, 3), HardState(term=3, commit=0))
    assert RaftLog(disk, commit_index=0, applied_index=9).commit_index == 9
    for applied in (8, 10):
        with pytest.raises(DivergenceError):
            RaftLog(disk, commit_index=0, applied_index=applied)
