"""The join port: every CURVE key may speak, nothing else may, and not too much of it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager

import pytest
import zmq

from mesh import callers_zmq
from mesh.errors import InUseError, UnreachableError
from mesh.join_zmq import ZmqJoinCall, ZmqJoinListener
from mesh.transport import JOIN_FRAME_BYTES_MAX, JOIN_PENDING_MAX, JoinHandler
from tests.meshwork import eventually, key_pair
from tests.strangers import GARBAGE, LOOPBACK, client, poke, taken_port

JOIN_KEY = key_pair()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await scenario()

    asyncio.run(bounded())


async def echo(key: bytes, address: str, frame: bytes) -> bytes | None:
    if frame == b"fault":
        raise LookupError(frame)
    return None if frame == b"silence" else key + address.encode() + frame


@asynccontextmanager
async def listening(handler: JoinHandler = echo) -> AsyncIterator[ZmqJoinListener]:
    listener = ZmqJoinListener(JOIN_KEY, handler, host=LOOPBACK)
    await listener.start()
    try:
        yield listener
    finally:
        await listener.stop()


def test_a_stranger_is_answered_and_named_by_its_key() -> None:
    async def scenario() -> None:
        guest = key_pair()
        async with listening() as listener:
            call = ZmqJoinCall(guest, JOIN_KEY.public)
            answer = await call(LOOPBACK, listener.port, b"hello", 10)
            assert answer == guest.public + LOOPBACK.encode() + b"hello"
            assert (await call("localhost", listener.port, b"hello", 10)).endswith(b"hello")

    run(scenario)


def test_silence_and_absence_are_unreachable() -> None:
    async def scenario() -> None:
        call = ZmqJoinCall(key_pair(), JOIN_KEY.public)
        async with listening() as listener:
            port = listener.port
            with pytest.raises(UnreachableError, match="does not answer"):
                await call(LOOPBACK, port, b"silence", 0.3)
            with pytest.raises(UnreachableError):
                await ZmqJoinCall(key_pair(), key_pair().public)(LOOPBACK, port, b"wrong key", 10)
        with pytest.raises(UnreachableError):
            await call(LOOPBACK, port, b"gone", 10)
        for host, number in ("no.invalid", 1), ("not an address", 1), (LOOPBACK, 0), ("", 1):
            with pytest.raises(UnreachableError):
                await call(host, number, b"x", 10)

    run(scenario)


def test_bad_frames_garbage_and_no_curve_are_dropped_and_counted() -> None:
    async def scenario() -> None:
        async with listening() as listener:
            for data in GARBAGE:
                await asyncio.to_thread(poke, listener.port, data)
            with ExitStack() as stack:
                naked = stack.enter_context(client(listener.port, None, b""))
                guest = stack.enter_context(client(listener.port, key_pair(), JOIN_KEY.public))
                naked.send(b"hello")
                guest.send_multipart([b"a", b"b"])
                guest.send(b"")
                guest.send(b"x" * (JOIN_FRAME_BYTES_MAX + 1))
                guest.send(b"fault")
                guest.send(b"x" * JOIN_FRAME_BYTES_MAX)
                assert await asyncio.to_thread(guest.poll, 10_000)
                assert guest.recv().endswith(b"x" * JOIN_FRAME_BYTES_MAX)
                assert not guest.poll(0)
                assert not naked.poll(0)
            refused = listener.counters().refused
            assert refused["malformed"] == 3
            assert refused["oversized"] == 1
            assert refused["handshake"] > 2

    run(scenario)


def test_ten_are_answered_at_once_and_more_are_dropped() -> None:
    async def scenario() -> None:
        go_on = asyncio.Event()
        begun: list[bytes] = []

        async def slow(_key: bytes, _address: str, frame: bytes) -> bytes:
            begun.append(frame)
            await go_on.wait()
            return frame

        async with listening(slow) as listener:
            calls = [
                asyncio.create_task(
                    ZmqJoinCall(key_pair(), JOIN_KEY.public)(LOOPBACK, listener.port, b"%d" % n, 10)
                )
                for n in range(JOIN_PENDING_MAX + 5)
            ]
            await eventually(lambda: listener.counters().refused.get("busy") == 5)
            assert len(begun) == JOIN_PENDING_MAX
            go_on.set()
            answered = [call for call in calls if call]
            await eventually(lambda: sum(c.done() for c in answered) == JOIN_PENDING_MAX)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)

    run(scenario)


def test_stopping_gives_up_what_is_being_answered() -> None:
    async def scenario() -> None:
        begun = asyncio.Event()

        async def never(*_: object) -> bytes:
            begun.set()
            await asyncio.Event().wait()
            return b""

        async with listening(never) as listener:
            call = ZmqJoinCall(key_pair(), JOIN_KEY.public)
            task = asyncio.create_task(call(LOOPBACK, listener.port, b"x", 10))
            await begun.wait()
            await listener.stop()
            with pytest.raises(UnreachableError):
                await task

    run(scenario)


def test_a_port_that_is_taken() -> None:
    async def scenario() -> None:
        with taken_port() as port:
            listener = ZmqJoinListener(JOIN_KEY, echo, host=LOOPBACK, port=port)
            with pytest.raises(InUseError, match=str(port)):
                await listener.start()
            await listener.stop()

    run(scenario)


def test_a_message_without_an_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """libzmq bounds the size of a part, not how many a message has, and holds them all until the last."""
    monkeypatch.setattr(callers_zmq, "STRANGERS_BYTES_MAX", 1 << 20)
    part = bytes(JOIN_FRAME_BYTES_MAX)

    async def scenario() -> None:
        async with listening() as listener:
            with client(listener.port, key_pair(), JOIN_KEY.public) as greedy:
                greedy.setsockopt(zmq.RECONNECT_IVL, -1)
                greedy.send_multipart([part] * ((64 << 20) // len(part)))
                await eventually(lambda: "busy" in listener.counters().refused)
            assert "malformed" not in listener.counters().refused
            call = ZmqJoinCall(key_pair(), JOIN_KEY.public)
            assert await call(LOOPBACK, listener.port, b"hello", 10)

    run(scenario)
