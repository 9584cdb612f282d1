"""The ring of events and the stream's text, without a socket."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from mesh.errors import DarkStreamError
from node.gateway.events import EventRing
from node.gateway.models import Event, Metric, Progress
from node.gateway.problems import faults_of, problem_of
from node.gateway.streams import exposition, server_sent


def event() -> Event:
    return Event(id=0, kind="mesh", at_ms=5)


async def take(events: AsyncIterator[Event], count: int) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    async with asyncio.timeout(5):
        async for one in events:
            found.append((one.id, one.kind))
            if len(found) == count:
                break
    return found


def test_a_listener_hears_what_comes_after_its_call() -> None:
    async def scenario() -> None:
        ring = EventRing(100)
        assert ring.publish(event()).id == 100
        listener = ring.listen()
        ring.publish(event())
        ring.publish(event())
        assert await take(listener, 2) == [(101, "mesh"), (102, "mesh")]

    asyncio.run(scenario())


def test_a_waiting_listener_wakes_and_ends_with_the_ring() -> None:
    async def scenario() -> None:
        ring = EventRing(1)
        waiting = asyncio.ensure_future(take(ring.listen(), 9))
        await asyncio.sleep(0)
        ring.publish(event())
        await asyncio.sleep(0)
        ring.publish(event())
        await asyncio.sleep(0)
        ring.close()
        assert [number for number, _ in await waiting] == [1, 2]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (6, [7, 8, 9]),
        (8, [9]),
        (5, [6, 7, 8, 9]),
    ],
)
def test_resuming_inside_the_ring(after: int, expected: list[int]) -> None:
    async def scenario() -> None:
        ring = EventRing(0, events_max=4)
        for _ in range(10):
            ring.publish(event())
        assert [n for n, _ in await take(ring.listen(after), len(expected))] == expected

    asyncio.run(scenario())


@pytest.mark.parametrize("after", [4, 0, 10, 10_000])
def test_resuming_outside_the_ring_is_one_gap_and_then_goes_on(after: int) -> None:
    async def scenario() -> None:
        ring = EventRing(0, events_max=4)
        for _ in range(10):
            ring.publish(event())
        listener = ring.listen(after)
        assert await take(listener, 1) == [(9, "gap")]
        again = ring.listen(9)
        ring.publish(event())
        assert await take(again, 1) == [(10, "mesh")]

    asyncio.run(scenario())


def test_a_slow_listener_gets_a_gap_not_old_events() -> None:
    async def scenario() -> None:
        ring = EventRing(0, events_max=2)
        listener = ring.listen()
        for _ in range(5):
            ring.publish(event())
        assert await take(listener, 1) == [(4, "gap")]

    asyncio.run(scenario())


def test_an_empty_ring_of_a_new_process_is_a_gap_for_old_listeners() -> None:
    async def scenario() -> None:
        assert await take(EventRing(1_000).listen(5), 1) == [(999, "gap")]

    asyncio.run(scenario())


def test_the_stream_pings_and_stops() -> None:
    async def scenario() -> None:
        ring = EventRing(7)
        stopping = asyncio.Event()
        stream = server_sent(ring.listen(), stopping, ping_s=0.01)
        assert await anext(stream) == "retry: 1000\n: connected\n\n"
        assert await anext(stream) == ": ping\n\n"
        ring.publish(event())
        text = await anext(stream)
        assert text.startswith("id: 7\nevent: mesh\ndata: {")
        assert text.endswith("}\n\n")
        stopping.set()
        assert [part async for part in stream] == []
        ended = server_sent(ring.listen(), asyncio.Event())
        await anext(ended)
        ring.close()
        assert [part async for part in ended] == []

    asyncio.run(scenario())


def test_samples_of_one_name_stand_together() -> None:
    def sample(name: str, value: float, **labels: str) -> Metric:
        return Metric(name=name, kind="gauge", help="a\\b\nc", value=value, labels=labels)

    text = exposition([sample("b", 1.5), sample("a", 2, x="2"), sample("b", 3, y='"\\')])
    assert text == (
        '# HELP darkstream_a a\\\\b\\nc\n# TYPE darkstream_a gauge\ndarkstream_a{x="2"} 2\n'
        "# HELP darkstream_b a\\\\b\\nc\n# TYPE darkstream_b gauge\ndarkstream_b 1.5\n"
        'darkstream_b{y="\\"\\\\"} 3\n'
    )


def test_progress_knows_its_share() -> None:
    half = Progress(job="j", attempt="a", node="n", phase="encoding", done=5, total=10)
    assert half.share() == 0.5
    assert half.model_copy(update={"total": 0}).share() is None
    assert half.model_copy(update={"done": 99}).share() == 1.0


def test_problems_name_fields_and_repeat_nothing() -> None:
    told = faults_of(
        [
            {"loc": ("body", "paths", 3), "msg": "Value error, bad", "input": "secret"},
            {"loc": ("body", 1), "msg": "x", "type": "json_invalid"},
        ]
    )
    assert [fault.what for fault in told] == ["paths.3: bad", "the body is no JSON"]
    many = faults_of([{"loc": ("body", "a" * 500), "msg": "b" * 5_000}] * 500)
    assert len(many) == 20
    assert max(len(fault.what) for fault in many) < 400
    assert len(problem_of(DarkStreamError("x"), many * 9).faults) == 20
