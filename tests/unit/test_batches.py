"""Proposals that travel together: a lone one at once, many in few calls, each with its own answer."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from ledger.commands import Outcome
from mesh import clock
from mesh.codec import pack
from mesh.errors import BusyError, NotAllowedError, UnreachableError, WireError
from mesh.ids import NodeId
from mesh.messages import Message, Request, Response
from node.consensus import batches
from node.consensus.batches import (
    CALLS_MAX,
    METHOD,
    Answer,
    Batches,
    decoded_answers,
    decoded_commands,
    encoded_answers,
)
from node.requests import Requests
from node.signals import FLOOD_REST, Alarm, IndexWaits, PacedSignal, Quiet, Signal

LEADER, OTHER = NodeId("leader"), NodeId("other")


class Coordinator:
    """Answers calls when told to; the index of an outcome is the command's number."""

    def __init__(self) -> None:
        self.calls: list[tuple[bytes, ...]] = []
        self.open = asyncio.Event()
        self.requests = Requests(self._send)
        self.served = Requests(self._answer)
        self.served.register(METHOD, self._serve)
        self.batches = Batches(self.requests, 5)

    def _send(self, node: NodeId, message: Message) -> bool:
        assert isinstance(message, Request)
        if node == LEADER:
            asyncio.get_running_loop().call_soon(self.served.receive, OTHER, message)
        return True

    def _answer(self, node: NodeId, message: Message) -> bool:
        assert isinstance(message, Response)
        asyncio.get_running_loop().call_soon(self.requests.receive, LEADER, message)
        return True

    async def _serve(self, _: NodeId, body: bytes) -> bytes:
        datas = decoded_commands(body)
        self.calls.append(datas)
        await self.open.wait()
        return encoded_answers([self._judge(data) for data in datas])

    def _judge(self, data: bytes) -> Answer:
        if data == b"refused":
            return NotAllowedError("no", "ask")
        return Outcome(ok=True, index=int(data))


def run(body: Callable[[Coordinator], Awaitable[None]]) -> Coordinator:
    async def main() -> Coordinator:
        coordinator = Coordinator()
        async with asyncio.timeout(20):
            await body(coordinator)
        return coordinator

    return asyncio.run(main())


async def propose(coordinator: Coordinator, number: int) -> int:
    outcome = await coordinator.batches.propose(LEADER, str(number).encode())
    return outcome.index


def test_what_comes_while_calls_are_out_leaves_together() -> None:
    async def body(coordinator: Coordinator) -> None:
        first = []
        for number in range(CALLS_MAX):
            first.append(asyncio.ensure_future(propose(coordinator, number)))
            for _ in range(20):
                await asyncio.sleep(0)
            assert len(coordinator.calls) == number + 1
        rest = [asyncio.ensure_future(propose(coordinator, n)) for n in range(100, 200)]
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(coordinator.calls) == CALLS_MAX
        coordinator.open.set()
        assert await asyncio.gather(*first, *rest) == [*range(CALLS_MAX), *range(100, 200)]

    coordinator = run(body)
    assert [len(call) for call in coordinator.calls] == [1] * CALLS_MAX + [100]


def test_those_of_one_turn_share_a_call_up_to_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "CALL_BYTES_MAX", 10)
    monkeypatch.setattr(batches, "COMMANDS_PER_CALL_MAX", 4)

    async def body(coordinator: Coordinator) -> None:
        coordinator.open.set()
        numbers = [1, 2, 3, 4, 5, 123456789, 123456780, 12345678901234]
        found = await asyncio.gather(*(propose(coordinator, n) for n in numbers))
        assert found == numbers

    coordinator = run(body)
    assert [len(call) for call in coordinator.calls] == [4, 2, 1, 1]


def test_what_fills_more_than_a_call_leaves_in_several_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batches, "COMMANDS_PER_CALL_MAX", 10)

    async def body(coordinator: Coordinator) -> None:
        asked = [asyncio.ensure_future(propose(coordinator, n)) for n in range(100)]
        for _ in range(50):
            await asyncio.sleep(0)
        assert [len(call) for call in coordinator.calls] == [10] * CALLS_MAX
        coordinator.open.set()
        assert await asyncio.gather(*asked) == [*range(100)]

    run(body)


def test_each_has_its_own_answer() -> None:
    async def body(coordinator: Coordinator) -> None:
        coordinator.open.set()
        good, bad = await asyncio.gather(
            coordinator.batches.propose(LEADER, b"7"),
            coordinator.batches.propose(LEADER, b"refused"),
            return_exceptions=True,
        )
        assert good == Outcome(ok=True, index=7)
        assert isinstance(bad, NotAllowedError)
        assert (bad.what, bad.todo) == ("no", "ask")

    assert len(run(body).calls) == 1


def test_a_silent_coordinator_is_told_to_all_and_the_next_goes_on() -> None:
    async def body(coordinator: Coordinator) -> None:
        slow = Batches(coordinator.requests, 0.05)
        tried = await asyncio.gather(
            *(slow.propose(OTHER, b"1") for _ in range(3)), return_exceptions=True
        )
        assert [type(one) for one in tried] == [UnreachableError] * 3
        coordinator.open.set()
        assert (await slow.propose(LEADER, b"5")).index == 5

    run(body)


def test_too_many_that_wait_are_busy_and_who_gives_up_disturbs_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batches, "WAITING_MAX", 2)

    async def body(coordinator: Coordinator) -> None:
        waiting = [asyncio.ensure_future(propose(coordinator, n)) for n in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError):
            await propose(coordinator, 3)
        waiting[0].cancel()
        coordinator.open.set()
        assert await waiting[1] == 1

    run(body)


@pytest.mark.parametrize("body", [b"", pack(()), pack((1,)), pack(b"x"), pack([b"x"] * 257)])
def test_what_is_no_call_is_refused(body: bytes) -> None:
    with pytest.raises(WireError):
        decoded_commands(body)


@pytest.mark.parametrize("answers", [[], [b"\x80"], [1], [("a", "b")], [b"", b""]])
def test_what_is_no_answer_is_refused(answers: list[object]) -> None:
    with pytest.raises(WireError):
        decoded_answers(pack(answers), 1)


def test_a_paced_signal_tells_a_short_chain_as_one_soon_after_its_beginning() -> None:
    async def main() -> None:
        signal = PacedSignal(0.05, first_s=0.01)
        for _ in range(5):
            signal.set()
        assert signal.count == 0
        begin = clock.monotonic_ms()
        assert await signal.wait(0, 5) == 1
        signal.set()
        assert await signal.wait(1, 5) == 2
        assert clock.monotonic_ms() - begin >= 50, "busy: at its pace, and no flood yet"
        assert await signal.wait(2, 0.3) == 2
        begin = clock.monotonic_ms()
        signal.set()
        assert await signal.wait(2, 5) == 3
        assert clock.monotonic_ms() - begin >= 8, "quiet: as at first"

    asyncio.run(main())


def test_a_paced_signal_wakes_at_once_and_then_at_its_pace() -> None:
    async def main() -> None:
        signal = PacedSignal(0.02)
        signal.set()
        assert signal.count == 1
        for _ in range(50):
            signal.set()
        assert signal.count == 1
        assert await signal.wait(1, 5) == 2  # the last one of a burst is told as well
        quiet = await signal.wait(2, 0.1)
        assert quiet == 2
        signal.set()
        assert signal.count == 3

    asyncio.run(main())


def test_a_paced_signal_rests_longer_in_a_flood_and_forgets_it() -> None:
    async def main() -> None:
        signal = PacedSignal(0.02)

        async def seconds_to_the_next(changes: int) -> float:
            begin = clock.monotonic_ms()
            seen = signal.count
            for _ in range(changes):
                signal.set()
            assert await signal.wait(seen, 5) == seen + 1
            return (clock.monotonic_ms() - begin) / 1000

        signal.set()
        await seconds_to_the_next(50)  # announced, and what follows rests longer
        assert await seconds_to_the_next(1) >= 0.02 * FLOOD_REST - 0.005
        assert await seconds_to_the_next(1) < 0.02 * FLOOD_REST - 0.005

    asyncio.run(main())


def test_after_quiet_some_go_at_once_and_then_one_an_interval() -> None:
    quiet = Quiet(interval_ms=50, burst=3)
    assert [quiet.allows(1_000) for _ in range(5)] == [True, True, True, False, False]
    # Asking earns and costs nothing.
    assert [quiet.allows(at) for at in (1_040, 1_050, 1_060, 1_100)] == [False, True, False, True]
    assert [quiet.allows(9_000) for _ in range(4)] == [True, True, True, False]


def test_waits_for_an_index_end_when_it_is_reached_and_no_sooner() -> None:
    async def main() -> None:
        waits = IndexWaits()
        first, second = (asyncio.ensure_future(waits.wait(index, 5)) for index in (7, 3))
        late = asyncio.ensure_future(waits.wait(9, 0.02))
        await asyncio.sleep(0)
        waits.reached(3)
        assert await second
        assert not first.done()
        waits.reached(8)
        assert await first
        assert not await late
        waits.reached(20)  # who gave up is forgotten

    asyncio.run(main())


def test_an_alarm_rings_once_at_the_last_time_it_was_set_to() -> None:
    async def main() -> None:
        rung: list[int] = []
        alarm = Alarm(lambda: rung.append(clock.monotonic_ms()))
        begin = clock.monotonic_ms()
        alarm.set(begin + 20)
        alarm.set(begin + 60)  # put off
        await Signal().wait(0, 0.12)
        assert len(rung) == 1
        assert rung[0] >= begin + 60
        alarm.set(begin + 5_000)
        alarm.set(clock.monotonic_ms() + 10)  # and brought forward
        await Signal().wait(0, 0.05)
        assert len(rung) == 2
        alarm.set(clock.monotonic_ms() + 10)
        alarm.close()
        await Signal().wait(0, 0.05)
        assert len(rung) == 2

    asyncio.run(main())
