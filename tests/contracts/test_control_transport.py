"""What any `ControlTransport` must do, run against ZeroMQ and against the one in memory."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from mesh.control_zmq import ZmqControl
from mesh.transport import ControlTransport, KeyPair
from tests.meshwork import (
    MemoryControl,
    Switch,
    eventually,
    key_pair,
    node_of,
    notice,
    within,
)

Make = Callable[[KeyPair], ControlTransport]


def _zmq() -> Make:
    return lambda pair: ZmqControl(pair, host="127.0.0.1")


def _memory() -> Make:
    switch = Switch()
    return lambda pair: MemoryControl(pair, switch)


@pytest.fixture(params=[_zmq, _memory], ids=["zmq", "memory"])
def make(request: pytest.FixtureRequest) -> Make:
    made: Make = request.param()
    return made


class Mesh:
    def __init__(self, make: Make, count: int) -> None:
        self.keys = [key_pair() for _ in range(count)]
        self.nodes = [node_of(pair) for pair in self.keys]
        self.members = {pair.public: node_of(pair) for pair in self.keys}
        self.transports = [make(pair) for pair in self.keys]

    def connect(self, a: int, b: int) -> None:
        port = self.transports[b].port
        self.transports[a].connect(self.nodes[b], self.keys[b].public, ["127.0.0.1"], port)

    async def up(self, a: int, b: int) -> None:
        await eventually(lambda: self.transports[a].is_connected(self.nodes[b]))


@asynccontextmanager
async def mesh(make: Make, count: int) -> AsyncIterator[Mesh]:
    made = Mesh(make, count)
    for transport in made.transports:
        await transport.start()
        transport.set_trust(made.members)
    try:
        yield made
    finally:
        for transport in made.transports:
            await transport.stop()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await scenario()

    asyncio.run(bounded())


def test_messages_arrive_in_order_with_the_proven_sender(make: Make) -> None:
    async def scenario() -> None:
        async with mesh(make, 2) as m:
            m.connect(0, 1)
            await m.up(0, 1)
            for number in range(50):
                assert m.transports[0].send(m.nodes[1], notice(str(number)))
            for number in range(50):
                received = await within(m.transports[1].receive())
                assert received.node == m.nodes[0]
                assert received.message == notice(str(number))

    run(scenario)


def test_each_direction_is_its_own(make: Make) -> None:
    async def scenario() -> None:
        async with mesh(make, 2) as m:
            m.connect(0, 1)
            await m.up(0, 1)
            assert not m.transports[1].send(m.nodes[0], notice("nobody connected this way"))
            m.connect(1, 0)
            await m.up(1, 0)
            assert m.transports[1].send(m.nodes[0], notice("now"))
            assert (await within(m.transports[0].receive())).node == m.nodes[1]

    run(scenario)


def test_an_unknown_peer_gets_false(make: Make) -> None:
    async def scenario() -> None:
        async with mesh(make, 1) as m:
            assert not m.transports[0].send(node_of(key_pair()), notice("?"))
            assert not m.transports[0].is_connected(node_of(key_pair()))

    run(scenario)


def test_a_wrong_server_key_never_connects(make: Make) -> None:
    async def scenario() -> None:
        async with mesh(make, 3) as m:
            t = m.transports
            t[0].connect(m.nodes[1], m.keys[1].public, ["127.0.0.1"], t[2].port)
            m.connect(0, 2)
            await m.up(0, 2)
            assert not t[0].is_connected(m.nodes[1])
            assert not t[0].send(m.nodes[1], notice("?"))

    run(scenario)


def test_a_stranger_is_refused_and_counted_until_it_is_a_member(make: Make) -> None:
    async def scenario() -> None:
        async with mesh(make, 2) as m:
            m.transports[1].set_trust({m.keys[1].public: m.nodes[1]})
            m.connect(0, 1)

            def refused() -> bool:
                assert not m.transports[0].send(m.nodes[1], notice("?"))
                return m.transports[1].counters().refused.get("not_member", 0) > 0

            await eventually(refused)
            m.transports[1].set_trust(m.members)
            await m.up(0, 1)

    run(scenario)


def test_a_revoked_key_is_out_and_the_innocent_stay(make: Make) -> None:
    async def scenario() -> None:
        async with mesh(make, 3) as m:
            m.connect(1, 0)
            m.connect(2, 0)
            m.connect(0, 1)
            for a, b in ((1, 0), (2, 0), (0, 1)):
                await m.up(a, b)
            without = {k: n for k, n in m.members.items() if n != m.nodes[1]}
            m.transports[0].set_trust(without)
            assert not m.transports[0].send(m.nodes[1], notice("own socket is closed"))
            await eventually(lambda: not m.transports[1].send(m.nodes[0], notice("revoked")))
            await eventually(lambda: m.transports[2].send(m.nodes[0], notice("innocent")))
            received = await within(m.transports[0].receive())
            while received.node == m.nodes[1]:
                raise AssertionError("a revoked member was heard")
            assert received.message == notice("innocent")

    run(scenario)


def test_disconnect_ends_it_and_connect_renews_it(make: Make) -> None:
    async def scenario() -> None:
        async with mesh(make, 2) as m:
            m.connect(0, 1)
            await m.up(0, 1)
            m.transports[0].disconnect(m.nodes[1])
            assert not m.transports[0].send(m.nodes[1], notice("?"))
            m.connect(0, 1)
            await m.up(0, 1)

    run(scenario)


def test_traffic_is_counted_by_peer(make: Make) -> None:
    async def scenario() -> None:
        async with mesh(make, 2) as m:
            m.connect(0, 1)
            await m.up(0, 1)
            for _ in range(3):
                assert m.transports[0].send(m.nodes[1], notice("count", 1_000))
                await within(m.transports[1].receive())
            out = m.transports[0].counters().peers[m.nodes[1]]
            back = m.transports[1].counters().peers[m.nodes[0]]
            assert out.frames_out == back.frames_in == 3
            assert out.bytes_out == back.bytes_in > 3_000
            assert out.frames_in == back.frames_out == 0

    run(scenario)


def test_a_full_inbox_drops_and_the_sender_never_waits(make: Make) -> None:
    async def scenario() -> None:
        async with mesh(make, 2) as m:
            m.connect(0, 1)
            await m.up(0, 1)
            for _ in range(10_000):
                m.transports[0].send(m.nodes[1], notice("flood"))
            assert (await within(m.transports[1].receive())).message == notice("flood")

    run(scenario)


def test_stopped_twice_and_restarted_elsewhere(make: Make) -> None:
    async def scenario() -> None:
        async with mesh(make, 2) as m:
            m.connect(0, 1)
            await m.up(0, 1)
            await m.transports[1].stop()
            await eventually(lambda: not m.transports[0].send(m.nodes[1], notice("?")))
            again = make(m.keys[1])
            await again.start()
            again.set_trust(m.members)
            try:
                m.transports[0].connect(m.nodes[1], m.keys[1].public, ["127.0.0.1"], again.port)
                await m.up(0, 1)
            finally:
                await again.stop()

    run(scenario)
