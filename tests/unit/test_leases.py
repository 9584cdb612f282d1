"""The two clocks of a lease: the worker always stops before the coordinator takes away."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.ids import NodeId
from node.work.leases import DEFAULT_TIMING, Fence, LeaseClock, LeaseTiming, WorkerHeartbeat

NODE = NodeId("n")


def beat(*attempts: str, accepting: bool = True) -> WorkerHeartbeat:
    return WorkerHeartbeat(attempts=attempts, accepting=accepting)


def test_a_new_coordinator_waits_one_lease_time_before_it_expires_anything() -> None:
    clock = LeaseClock(DEFAULT_TIMING, elected_ms=1_000)
    assert clock.expired([("a", 0)], 21_000) == ()
    assert clock.expired([("a", 0)], 21_001) == ("a",)


def test_a_renewed_lease_lives_and_an_unmentioned_one_expires() -> None:
    clock = LeaseClock(DEFAULT_TIMING, elected_ms=0)
    active = [("a", 0), ("b", 0)]
    clock.heard(NODE, beat("a"), 15_000)
    assert clock.expired(active, 30_000) == ("b",)
    assert clock.expired(active, 35_001) == ("a", "b")


def test_a_lease_granted_lately_is_not_expired_by_the_election_time() -> None:
    clock = LeaseClock(DEFAULT_TIMING, elected_ms=0)
    assert clock.expired([("late", 90_000)], 100_000) == ()


def test_work_goes_to_workers_heard_lately_that_accept() -> None:
    clock = LeaseClock(DEFAULT_TIMING, elected_ms=0)
    assert not clock.takes_work(NODE, 0)
    clock.heard(NODE, beat(), 1_000)
    assert clock.takes_work(NODE, 7_000)
    assert not clock.takes_work(NODE, 7_001)
    clock.heard(NODE, beat(accepting=False), 8_000)
    assert not clock.takes_work(NODE, 8_000)


@given(
    sent=st.integers(0, 100_000),
    travel=st.integers(0, 60_000),
    wait=st.integers(0, 100_000),
)
def test_the_fence_closes_before_the_lease_can_expire(sent: int, travel: int, wait: int) -> None:
    """Whatever the delay of a heartbeat: while the fence is open the lease is not expired."""
    fence, clock = Fence(DEFAULT_TIMING, 0), LeaseClock(DEFAULT_TIMING, elected_ms=0)
    clock.heard(NODE, beat("a"), sent + travel)
    fence.acknowledged(sent)
    now = sent + travel + wait
    if fence.may_hand_back(now):
        assert clock.expired([("a", 0)], now) == ()


def test_acknowledgements_out_of_order_never_shorten_the_fence() -> None:
    fence = Fence(DEFAULT_TIMING, 0)
    fence.acknowledged(10_000)
    fence.acknowledged(4_000)
    assert fence.may_hand_back(25_000)
    assert not fence.may_hand_back(25_001)


def test_timings_that_would_let_two_hand_back_are_refused() -> None:
    with pytest.raises(AssertionError):
        LeaseTiming(fence_ms=20_000, expiry_ms=20_000)
