"""Token buckets stepped by hand: the rate over time is exact, whatever the size of a chunk."""

import pytest

from mesh.ids import NodeId
from mesh.limits import BURST_MS, Bucket, Limits, LinkRates, Rates

ANNA, BERT = NodeId("anna"), NodeId("bert")
MB = 1_000_000
CHUNK = 1 << 20


def flow(limits: Limits, peer: NodeId, begin_ms: int, end_ms: int, chunk: int = CHUNK) -> int:
    """Bytes that go to a peer who always has more to ask for."""
    now, gone = begin_ms, 0
    while now < end_ms:
        delay = limits.delay_ms(peer, "up", now)
        if delay:
            now += delay
            continue
        limits.spend(peer, "up", chunk)
        gone += chunk
    return gone


@pytest.mark.parametrize("chunk", [1_000, CHUNK])
@pytest.mark.parametrize("rate", [MB, 20 * MB, 117_000_003])
def test_the_rate_over_ten_seconds_is_what_was_asked_for(rate: int, chunk: int) -> None:
    limits = Limits()
    limits.change(LinkRates(node=Rates(up=rate)), 0)
    gone = flow(limits, ANNA, 0, 10_000, chunk)
    assert abs(gone - 10 * rate) <= rate * BURST_MS // 1_000 + chunk


def test_another_rate_holds_at_once_and_a_debt_is_not_paid_at_the_slow_one() -> None:
    limits = Limits()
    limits.change(LinkRates(node=Rates(up=1_000)), 0)
    assert flow(limits, ANNA, 0, 1) == CHUNK
    assert limits.delay_ms(ANNA, "up", 1) > 1_000_000
    limits.change(LinkRates(node=Rates(up=20 * MB)), 1_000)
    assert limits.delay_ms(ANNA, "up", 1_000) < 100
    gone = flow(limits, ANNA, 1_000, 11_000)
    assert abs(gone - 200 * MB) < 0.02 * 200 * MB
    limits.change(LinkRates(), 11_000)
    assert limits.delay_ms(ANNA, "up", 11_000) == 0


def test_a_link_has_its_own_limit_below_the_nodes() -> None:
    limits = Limits()
    limits.change(LinkRates(node=Rates(up=50 * MB), links={ANNA: Rates(up=10 * MB)}), 0)
    assert abs(flow(limits, ANNA, 0, 10_000) - 100 * MB) < 3 * MB
    assert abs(flow(limits, BERT, 10_000, 20_000) - 500 * MB) < 10 * MB
    assert limits.delay_ms(ANNA, "down", 20_000) == 0


def test_links_share_the_nodes_limit() -> None:
    limits = Limits()
    limits.change(LinkRates(node=Rates(up=10 * MB)), 0)
    limits.spend(ANNA, "up", 10 * MB)
    assert limits.delay_ms(BERT, "up", 0) > 800


def test_rest_earns_no_more_than_the_burst() -> None:
    bucket = Bucket(MB, 0)
    assert bucket.delay_ms(3_600_000) == 0
    bucket.spend(MB)
    assert bucket.delay_ms(3_600_000) == pytest.approx(1_000 - BURST_MS, abs=2)


def test_a_clock_that_stands_or_goes_back_gives_nothing() -> None:
    bucket = Bucket(MB, 1_000)
    bucket.spend(MB)
    assert bucket.delay_ms(500) == bucket.delay_ms(1_000) > 0
