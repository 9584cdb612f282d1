"""Who is woken by a change of the ledger: those whom it concerns, and nobody else."""

import asyncio

from ledger import commands as c
from ledger.orders import PutTenant, RemoveTenant
from mesh.ids import NodeId
from node.consensus.news import (
    BUSY_REST_TIMES,
    LOOKS_AT_ONCE,
    LOOKS_S,
    REST_MAX_S,
    REST_TIMES,
    Look,
    News,
    Pace,
    Touches,
    follow,
)
from node.signals import Signal
from tests.ledger_helper import Ledger, grant, job_spec, node_report, plan_of

CONCERNS = ("all", "leases", "row", "films", "work", "members")


def woken(ledger: Ledger, node: str) -> set[str]:
    """Which signals of a node the ledger's last batch sets."""
    return told(ledger.store.touched, node)


def told(touched: Touches, node: str) -> set[str]:
    async def main() -> set[str]:
        news = News(NodeId(node))
        news.tell(touched)
        at_once = {name for name in CONCERNS if getattr(news, name).count}
        assert "all" not in at_once, "those on a job's way go first"
        await news.all.wait(0, 5)
        assert at_once == {name for name in CONCERNS if getattr(news, name).count} - {"all"}
        return {name for name in CONCERNS if getattr(news, name).count}

    return asyncio.run(main())


def test_each_change_wakes_those_whom_it_concerns() -> None:
    ledger = Ledger().formed("bert", "cora").submitted("j")
    assert woken(ledger, "anna") == {"all", "films"}
    assert woken(ledger, "bert") == {"all"}
    ledger.must(plan_of("j"))
    assert woken(ledger, "anna") == {"all", "films", "work"}
    ledger.must(grant(("j-t", "a", "bert")))
    assert woken(ledger, "anna") == {"all", "films", "work"}
    assert woken(ledger, "bert") == {"all", "leases", "work"}
    assert woken(ledger, "cora") == {"all", "work"}
    ledger.must(ledger.finish("a"))
    assert woken(ledger, "bert") == {"all", "leases", "work"}
    assert woken(ledger, "anna") == {"all", "films", "work"}
    ledger.must(node_report("bert", slots=7))
    assert woken(ledger, "bert") == {"all", "leases", "row", "work"}
    # A plan's leases may follow it by what the last round saw: a quota that is set must end that.
    ledger.must(PutTenant(name="guests", share=1, slots=0, by="anna"))
    assert woken(ledger, "bert") == {"all", "work"}
    ledger.must(RemoveTenant(name="guests", by="anna"))
    assert woken(ledger, "bert") == {"all", "work"}
    ledger.must(c.RemoveMember(node="cora", by="anna"))
    assert woken(ledger, "bert") == {"all", "work", "members"}


def test_what_is_refused_or_was_applied_concerns_nobody_but_those_who_follow_all() -> None:
    ledger = Ledger().formed("bert").submitted("j")
    assert ledger.do(c.SubmitJobs(jobs=(job_spec("j"),))).code
    assert woken(ledger, "anna") == {"all"}
    assert told(None, "anna") == set(CONCERNS)


def test_looks_after_quiet_are_free_and_looks_without_end_take_a_tenth() -> None:
    pace, took_ms = Pace(0), 2
    # What one person does is followed at once; who was overtaken waits for the rest of the gust.
    assert pace.rest_s(0, took_ms, overtaken=True) == REST_TIMES * took_ms / 1_000
    rests = [pace.rest_s(at, at + took_ms, overtaken=False) for at in (2, 4, 6, 8, 10, 12, 14, 16)]
    assert rests[: LOOKS_AT_ONCE - 1] == [0.0] * (LOOKS_AT_ONCE - 1)
    assert rests[-1] == BUSY_REST_TIMES * took_ms / 1_000
    assert pace.rest_s(18, 18 + 1_000, overtaken=False) == REST_MAX_S
    # Quiet earns looks, and no more than at first.
    quiet_ms = 20 + int(LOOKS_S * 1_000 * 100)
    looks = [pace.rest_s(quiet_ms, quiet_ms + took_ms, overtaken=False) for _ in range(9)]
    assert looks == [0.0] * LOOKS_AT_ONCE + [BUSY_REST_TIMES * took_ms / 1_000]
    # A look that found something to do is worth its time, also without end.
    found = pace.rest_s(quiet_ms, quiet_ms + took_ms, overtaken=False, found=True)
    assert found == REST_TIMES * took_ms / 1_000


def test_what_a_look_decided_is_waited_for_and_is_no_looking() -> None:
    async def main() -> None:
        news, order = Signal(), list[str]()
        decided, looked = asyncio.Event(), Signal()

        async def then() -> None:
            await decided.wait()
            order.append("decided")

        async def look() -> Look:
            order.append("look")
            looked.set()
            return Look(60.0, found=True, then=then())

        following = asyncio.ensure_future(follow(news, look))
        async with asyncio.timeout(10):
            await looked.wait(0)
            news.set()
            for _ in range(20):
                await asyncio.sleep(0)
            assert order == ["look"]
            decided.set()
            await looked.wait(1)
        assert order[:3] == ["look", "decided", "look"]
        following.cancel()

    asyncio.run(main())


def test_who_follows_looks_again_at_news_and_when_its_time_is_over() -> None:
    async def main() -> None:
        news, looks, again_s = Signal(), 0, [60.0]
        looked = Signal()

        async def look() -> Look:
            nonlocal looks
            looks += 1
            looked.set()
            if looks == 2:
                news.set()  # what comes during a look is looked at
            return Look(again_s[0])

        following = asyncio.ensure_future(follow(news, look))
        async with asyncio.timeout(10):
            await looked.wait(0)
            news.set()
            while looks < 3:
                await looked.wait(looked.count)
            again_s[0] = 0.0
            news.set()
            while looks < 9:
                await looked.wait(looked.count)
        following.cancel()

    asyncio.run(main())
