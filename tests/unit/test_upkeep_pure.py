"""What a node decides by numbers alone: how much log to keep, how long to wait, which replica is wrong."""

import pytest

from mesh.ids import NodeId
from node.consensus.compaction import PATIENCE, Keep, LogWeight, compaction_point
from node.consensus.divergence import (
    MARK_EVERY,
    MARKS_MAX,
    MARKS_TOLD,
    Divergence,
    OwnMarks,
    own_divergence,
    read_marks,
)
from node.consensus.loop_lag import (
    HALF_LIFE_MS,
    LONE_HALF_LIFE_MS,
    STRETCH_MAX_PERCENT,
    USUAL,
    LoopLag,
)

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
KEEP = Keep(entries=1_000, bytes=1 << 30)


def weighed(count: int, size: int) -> LogWeight:
    weight = LogWeight()
    for index in range(1, count + 1):
        weight.note(index, size)
    return weight


# --- compaction -----------------------------------------------------------------------------------


def test_nothing_is_cut_off_while_little_is_there() -> None:
    for applied in (0, 1, 1_000, 1_099):
        assert compaction_point(base=0, applied=applied, weight=LogWeight(), keep=KEEP) is None


def test_what_is_kept_stays_and_the_rest_goes_in_steps() -> None:
    assert compaction_point(base=0, applied=1_100, weight=LogWeight(), keep=KEEP) == 100
    assert compaction_point(base=100, applied=1_150, weight=LogWeight(), keep=KEEP) is None
    assert compaction_point(base=100, applied=5_000, weight=LogWeight(), keep=KEEP) == 4_000


def test_a_living_follower_a_little_behind_is_waited_for_and_a_hopeless_one_is_not() -> None:
    def point(*needed: int) -> int | None:
        return compaction_point(
            base=0, applied=20_000, weight=LogWeight(), keep=KEEP, needed=needed
        )

    assert point(19_990, 20_000) == 19_000
    assert point(17_500) == 17_500
    assert point(17_500, 18_000) == 17_500
    assert point(12) == 20_000 - PATIENCE * 1_000


def test_large_entries_are_kept_by_weight() -> None:
    keep = Keep(entries=1_000, bytes=100_000)
    weight = weighed(500, 10_000)
    point = compaction_point(base=0, applied=500, weight=weight, keep=keep)
    assert point is not None
    kept = (500 - point) * 10_000
    assert kept <= keep.bytes + (2 << 20), "about the bytes, in steps of a MiB"
    weight.forget(point)
    assert compaction_point(base=point, applied=500, weight=weight, keep=keep) is None
    for index in range(501, 2_000):
        weight.note(index, 10_000)
    later = compaction_point(base=point, applied=1_999, weight=weight, keep=keep)
    assert later is not None
    assert later > point


@pytest.mark.parametrize("size", [1, 100, 10_000])
def test_never_past_what_is_applied(size: int) -> None:
    keep = Keep(entries=1, bytes=0)
    point = compaction_point(base=0, applied=700, weight=weighed(700, size), keep=keep)
    assert point is not None
    assert point <= 700


# --- the loop's lateness ----------------------------------------------------------------------------


def test_a_loop_on_time_stretches_nothing() -> None:
    lag = LoopLag(500)
    for now in range(0, 10_000, 100):
        lag.late(20, now)
    assert lag.stretch_percent(10_000) == 100


def test_lateness_widens_at_once_within_bounds() -> None:
    lag = LoopLag(500)
    lag.late(400, 1_000)
    assert lag.stretch_percent(1_000) == 250
    lag.late(60_000, 200_000)
    assert lag.stretch_percent(200_000) == STRETCH_MAX_PERCENT


def test_a_lone_stall_is_forgotten_soon_however_many_report_it() -> None:
    lag = LoopLag(500)
    for reported in range(10):
        lag.late(800, 1_000 + reported)
    lag.late(0, 1_100)
    assert lag.stretch_percent(1_100) > 300
    assert lag.stretch_percent(1_000 + 4 * LONE_HALF_LIFE_MS) <= 125


def test_what_comes_again_and_again_is_forgotten_slowly() -> None:
    lag = LoopLag(500)
    for stall in range(USUAL):
        lag.late(400, 1_000 + 2_000 * stall)
    last_ms = 1_000 + 2_000 * (USUAL - 1)
    assert lag.stretch_percent(last_ms + 5_000) in range(150, 250)
    assert lag.stretch_percent(last_ms + 10 * HALF_LIFE_MS) == 100
    lag.late(400, last_ms + 6_000)
    assert lag.stretch_percent(last_ms + 10_000) in range(150, 250), "the newest ones count"


# --- divergence -------------------------------------------------------------------------------------


class Sums:
    """A ledger's memory of its last thousand checksums."""

    def __init__(self) -> None:
        self.index = 0

    def at(self, index: int) -> bytes | None:
        return b"%d" % index if self.index - 1_024 < index <= self.index else None

    def apply_to(self, marks: OwnMarks, index: int) -> None:
        while self.index < index:
            self.index = min(index, self.index + 512)
            marks.applied(self.index)


def test_marks_of_busy_replicas_meet() -> None:
    ahead, behind = Sums(), Sums()
    of_ahead, of_behind = OwnMarks(ahead.at), OwnMarks(behind.at)
    ahead.apply_to(of_ahead, 10 * MARK_EVERY + 900)
    behind.apply_to(of_behind, 6 * MARK_EVERY - 3)
    told = dict(of_behind.told())
    assert len(of_ahead.told()) == MARKS_TOLD
    met = [index for index in told if of_ahead.lookup(index) is not None]
    assert len(met) >= 5
    assert all(of_ahead.lookup(index) == told[index] for index in met)
    assert OwnMarks(Sums().at).told() == ()


def test_marks_are_bounded_and_void_after_a_replacement() -> None:
    sums = Sums()
    marks = OwnMarks(sums.at)
    sums.apply_to(marks, 2 * MARKS_MAX * MARK_EVERY)
    assert len(marks.all()) <= MARKS_MAX + 1
    marks.replaced(7)
    assert [index for index, _ in marks.told()] == []


def test_equal_checksums_and_different_indexes_say_nothing() -> None:
    told = {B: {10: b"x", 11: b"y"}, C: {9: b"other"}}
    assert own_divergence({10: b"x", 12: b"z"}.get, told, coordinator=B, this=A) is None


def test_of_two_the_coordinator_is_right() -> None:
    told = {B: {10: b"x"}}
    assert own_divergence({10: b"!"}.get, told, coordinator=B, this=A) == Divergence(
        index=10, others=(B,)
    )
    assert own_divergence({10: b"!"}.get, told, coordinator=A, this=A) is None
    assert own_divergence({10: b"!"}.get, told, coordinator=None, this=A) is None


def test_a_coordinator_alone_against_two_is_wrong() -> None:
    told = {B: {10: b"x"}, C: {10: b"x"}}
    found = own_divergence({10: b"!"}.get, told, coordinator=A, this=A)
    assert found == Divergence(index=10, others=(B, C))
    told_to_c = {A: {10: b"!"}, B: {10: b"x"}}
    assert own_divergence({10: b"x"}.get, told_to_c, coordinator=A, this=C) is None


def test_marks_of_a_strange_hello_are_left_out() -> None:
    assert read_marks(((1, b"x"), (2, "y"), 3, (4,), (5, b"z", 1))) == {1: b"x"}
    assert read_marks("no") == {}
    assert read_marks(None) == {}
