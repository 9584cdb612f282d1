"""What the tests' own switch does to frames."""

import itertools
import random
from typing import Any

import pytest

from tests.switch import EVERYBODY, HEAD_BYTES, HELD_BYTES_MAX, Lane, Switch, Way, mac

GROUP = bytes.fromhex("01005e0000fb")


def lane(**way: Any) -> Lane:
    made = Lane(random.Random(1))
    made.become(Way(**way))
    return made


def switch(hosts: int = 3) -> Switch:
    return Switch(hosts, random.Random(1))


def frame(to: bytes) -> bytes:
    return bytes(HEAD_BYTES) + to + mac(1) + b"what it carries"


def test_a_good_way_hands_over_at_once() -> None:
    assert Lane(random.Random(1)).arrivals(1_500, 7.0) == (7.0,)


def test_shares_of_loss_doubling_and_reordering_are_kept() -> None:
    bad = lane(loss=0.3, duplicate=0.1)
    came = [len(bad.arrivals(100, 0.0)) for _ in range(10_000)]
    assert 2_800 < came.count(0) < 3_200
    assert 600 < came.count(2) < 800
    assert (bad.carried, bad.dropped) == (10_000 - came.count(0), came.count(0))
    late = lane(reorder=0.25, reorder_ms=10)
    due = [late.arrivals(100, n / 1_000)[0] for n in range(4_000)]
    overtaken = sum(a > b for a, b in itertools.pairwise(due))
    assert 600 < overtaken < 900, (
        "three quarters of a quarter: a held frame behind a held one is not"
    )


def test_jitter_spreads_delays_and_overtakes_nobody() -> None:
    way = lane(delay_ms=200, jitter_ms=50)
    due = [way.arrivals(100, n / 100)[0] - n / 100 for n in range(1_000)]
    assert 0.2 <= min(due) < 0.205
    assert 0.245 < max(due) <= 0.25
    fast = [way.arrivals(100, 100 + n / 10_000)[0] for n in range(1_000)]
    assert fast == sorted(fast)


def test_a_rate_sends_one_frame_after_the_other_and_drops_what_would_wait_too_long() -> None:
    way = lane(rate_mbit=12, queue_ms=10.5)
    due = [way.arrivals(1_500, 0.0) for _ in range(50)]
    came = [arrival for (arrival,) in filter(None, due)]
    assert [round(arrival * 1_000, 6) for arrival in came] == list(range(1, 12))
    assert way.arrivals(1_500, 1.0) == (1.001,), "the queue is empty again"


def test_a_cut_way_is_cut_for_all_and_a_deaf_one_for_groups_only() -> None:
    assert lane(cut=True).arrivals(100, 0.0) == ()
    deaf = lane(multicast=False)
    assert deaf.arrivals(100, 0.0, group=True) == ()
    assert deaf.arrivals(100, 0.0) == (0.0,)


@pytest.mark.parametrize(
    "wrong", [{"loss": 1.5}, {"duplicate": -0.1}, {"delay_ms": -1}, {"rate_mbit": -1}]
)
def test_a_way_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Way(**wrong)  # type: ignore[arg-type]  # each is a number


def test_a_frame_goes_to_its_host_to_all_or_to_nobody() -> None:
    made = switch()
    assert list(made.take(1, frame(mac(3)), 0.0)) == [3]
    assert list(made.take(1, frame(EVERYBODY), 0.0)) == [2, 3]
    assert list(made.take(1, frame(GROUP), 0.0)) == [2, 3]
    assert list(made.take(1, frame(mac(9)), 0.0)) == []
    assert list(made.take(1, frame(mac(1)), 0.0)) == [], "never back to its sender"


def test_each_way_is_bad_by_itself() -> None:
    made = switch()
    made.lanes[1, 2].become(Way(cut=True))
    made.lanes[1, 3].become(Way(multicast=False))
    assert list(made.take(1, frame(mac(2)), 0.0)) == []
    assert list(made.take(2, frame(mac(1)), 0.0)) == [1]
    assert list(made.take(1, frame(GROUP), 0.0)) == []
    assert list(made.take(1, frame(EVERYBODY), 0.0)) == [3]


def test_late_frames_are_held_in_the_order_of_their_times_and_within_a_bound() -> None:
    made = switch()
    made.lanes[1, 2].become(Way(delay_ms=200))
    made.lanes[1, 3].become(Way(delay_ms=100))
    assert list(made.take(1, frame(EVERYBODY), 5.0)) == []
    assert made.wait_s(5.0) == pytest.approx(0.1)
    assert [host for host, _ in made.due(5.15)] == [3]
    assert [host for host, _ in made.due(5.25)] == [2]
    assert made.wait_s(5.25) is None
    large = frame(mac(2)) + bytes(1 << 20)
    for _ in range(HELD_BYTES_MAX // len(large) + 7):
        assert list(made.take(1, large, 6.0)) == []
    assert made.lanes[1, 2].dropped == 7


def test_an_unplugged_host_sends_and_gets_nothing_also_of_what_was_on_its_way() -> None:
    made = switch()
    made.lanes[1, 2].become(Way(delay_ms=100))
    assert list(made.take(1, frame(mac(2)), 0.0)) == []
    made.unplugged.add(2)
    assert list(made.due(1.0)) == []
    assert list(made.take(3, frame(EVERYBODY), 2.0)) == [1]
    assert list(made.take(2, frame(EVERYBODY), 2.0)) == []


def test_segments_are_sent_only_where_nothing_happens_to_single_frames() -> None:
    made = switch()
    made.lanes[1, 2].become(Way(delay_ms=100, cut=True))
    assert made.sends_segments(1)
    made.lanes[1, 3].become(Way(loss=0.01))
    assert not made.sends_segments(1)
    assert made.sends_segments(3)
