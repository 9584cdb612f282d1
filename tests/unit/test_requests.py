"""Calls over a link that loses, repeats and reorders: answered once, run once."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from mesh import clock
from mesh.errors import BusyError, DarkStreamError, NotFoundError, UnreachableError
from mesh.ids import NodeId
from mesh.messages import Message, Request, Response
from node.requests import RESEND_S, Requests, error_of

A, B = NodeId("a"), NodeId("b")


class Link:
    """Two callers on one loop; `fate` says how often a frame arrives."""

    def __init__(self, fate: Callable[[Message], int]) -> None:
        self._fate = fate
        self.a = Requests(lambda to, message: self._carry(A, to, message))
        self.b = Requests(lambda to, message: self._carry(B, to, message))

    def _carry(self, sender: NodeId, to: NodeId, message: Message) -> bool:
        target = self.a if to == A else self.b
        assert isinstance(message, Request | Response)
        for _ in range(self._fate(message)):
            asyncio.get_running_loop().call_soon(target.receive, sender, message)
        return True


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            await body()

    asyncio.run(main())


def test_a_call_is_answered_with_the_callers_proven_id() -> None:
    async def body() -> None:
        link = Link(lambda _: 1)

        async def echo(caller: NodeId, data: bytes) -> bytes:
            return caller.encode() + data

        link.b.register("echo", echo)
        assert await link.a.call(B, "echo", b"!", timeout_s=5) == b"a!"

    run(body)


def test_a_frame_that_no_link_took_is_sent_again_sooner_than_one_that_was_lost() -> None:
    async def body() -> None:
        sent: list[int] = []

        def send(_: NodeId, message: Message) -> bool:
            sent.append(clock.monotonic_ms())
            if len(sent) < 4:
                return False
            response = Response(id=message.id, ok=True, body=b"!")  # type: ignore[union-attr]  # a request
            asyncio.get_running_loop().call_soon(caller.receive, B, response)
            return True

        caller = Requests(send)
        assert await caller.call(B, "echo", b"", timeout_s=15) == b"!"
        assert sent[-1] - sent[0] < 3 * RESEND_S * 1000

    run(body)


def test_lost_and_repeated_frames_never_run_a_call_twice() -> None:
    async def body() -> None:
        draw = random.Random(7)
        link = Link(lambda _: draw.choice([0, 1, 2, 3]))
        runs: list[bytes] = []

        async def count(_: NodeId, data: bytes) -> bytes:
            runs.append(data)
            return data

        link.b.register("count", count)
        for number in range(12):
            assert await link.a.call(B, "count", b"%d" % number, timeout_s=15) == b"%d" % number
        assert runs == [b"%d" % number for number in range(12)]

    run(body)


def test_errors_keep_their_code_over_the_wire() -> None:
    async def body() -> None:
        link = Link(lambda _: 1)

        async def missing(_: NodeId, __: bytes) -> bytes:
            raise NotFoundError("no such job", "look again")

        async def broken(_: NodeId, __: bytes) -> bytes:
            raise ZeroDivisionError

        link.b.register("missing", missing)
        link.b.register("broken", broken)
        with pytest.raises(NotFoundError) as caught:
            await link.a.call(B, "missing", b"", timeout_s=5)
        assert caught.value.line() == "error[not_found]: no such job; look again"
        with pytest.raises(DarkStreamError) as internal:
            await link.a.call(B, "broken", b"", timeout_s=5)
        assert internal.value.code == "internal"
        with pytest.raises(DarkStreamError, match="unknown method"):
            await link.a.call(B, "nonsense", b"", timeout_s=5)

    run(body)


def test_silence_ends_with_a_clear_error() -> None:
    async def body() -> None:
        link = Link(lambda _: 0)
        with pytest.raises(UnreachableError, match="did not answer"):
            await link.a.call(B, "echo", b"", timeout_s=0.05)

    run(body)


def test_too_many_calls_at_once_are_answered_busy() -> None:
    async def body() -> None:
        link = Link(lambda _: 1)
        gate = asyncio.Event()

        async def slow(_: NodeId, __: bytes) -> bytes:
            await gate.wait()
            return b""

        link.b.register("slow", slow)
        calls = [
            asyncio.ensure_future(link.a.call(B, "slow", b"", timeout_s=10)) for _ in range(520)
        ]
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        assert all(isinstance(call.exception(), BusyError) for call in done)
        gate.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(result == b"" for result in results) == 512
        await link.b.close()

    run(body)


def test_every_code_maps_to_its_class_and_unknown_ones_to_the_base() -> None:
    assert type(error_of("busy", "", "")) is BusyError
    assert type(error_of("from the future", "w", "t")) is DarkStreamError
