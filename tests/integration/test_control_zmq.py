"""Control over real sockets on loopback: hostile clients, revocation, addresses, ports."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import ExitStack, asynccontextmanager
from subprocess import PIPE

import pytest

from mesh import clock
from mesh.control_zmq import ZmqControl
from mesh.curve_zmq import Tally, curve_context, dealer
from mesh.errors import ConfigurationError, InUseError
from mesh.listener_zmq import Listener, ZapHandler
from mesh.messages import WIRE, Notice, Request
from mesh.transport import (
    CONTROL_FRAME_BYTES_MAX,
    CONTROL_SILENCE_MS,
    HEARTBEAT_INTERVAL_MS,
    KeyPair,
)
from tests.meshwork import eventually, key_pair, node_of, notice, within
from tests.strangers import GARBAGE, LOOPBACK, client, poke, taken_port


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await scenario()

    asyncio.run(bounded())


@asynccontextmanager
async def nodes(
    *pairs: KeyPair, host: str = LOOPBACK, known: Iterable[KeyPair] = ()
) -> AsyncIterator[list[ZmqControl]]:
    members = {pair.public: node_of(pair) for pair in (*pairs, *known)}
    made = [ZmqControl(pair, host=host) for pair in pairs]
    try:
        for transport in made:
            await transport.start()
            transport.set_trust(members)
        yield made
    finally:
        for transport in made:
            await transport.stop()


def test_a_port_that_is_taken_is_named() -> None:
    async def scenario() -> None:
        with taken_port() as port:
            transport = ZmqControl(key_pair(), host=LOOPBACK, port=port)
            with pytest.raises(InUseError) as error:
                await transport.start()
            assert f"port {port}" in error.value.line()
            assert error.value.exit_code == 6
            await transport.stop()

    run(scenario)


@pytest.mark.parametrize("host", ["203.0.113.77", "not an address", "nope.invalid"])
def test_an_address_that_is_not_here(host: str) -> None:
    async def scenario() -> None:
        with pytest.raises(ConfigurationError):
            await ZmqControl(key_pair(), host=host).start()

    run(scenario)


@pytest.mark.parametrize(
    ("listen", "dial"), [("*", "127.0.0.1"), ("*", "::1"), ("::1", "::1"), ("0.0.0.0", "127.0.0.1")]
)
def test_both_versions_of_ip(listen: str, dial: str) -> None:
    if ":" in dial:
        try:
            with socket.create_server((dial, 0), family=socket.AF_INET6):
                pass
        except OSError:
            pytest.skip("this machine has no IPv6")

    async def scenario() -> None:
        a, b = key_pair(), key_pair()
        async with nodes(a, b, host=listen) as (first, second):
            first.connect(node_of(b), b.public, [dial], second.port)
            await eventually(lambda: first.send(node_of(b), notice("hi")))
            assert (await within(second.receive())).node == node_of(a)
            assert first.host_of(node_of(b)) == dial

    run(scenario)


def test_addresses_are_tried_until_the_right_key_answers() -> None:
    async def scenario() -> None:
        a, b, c = key_pair(), key_pair(), key_pair()
        async with nodes(a, b, c) as (first, second, third):
            wrong = ZmqControl(c, host="127.0.0.3", port=second.port)
            await wrong.start()
            try:
                hosts = ["no.invalid", "127.0.0.2", "127.0.0.3", "localhost; rm", LOOPBACK]
                first.connect(node_of(b), b.public, hosts, second.port)
                await eventually(lambda: first.is_connected(node_of(b)))
                assert first.host_of(node_of(b)) == LOOPBACK
                third.connect(node_of(b), b.public, ["localhost"], second.port)
                await eventually(lambda: third.is_connected(node_of(b)))
            finally:
                await wrong.stop()

    run(scenario)


def test_nonsense_addresses_of_others_do_no_harm() -> None:
    async def scenario() -> None:
        a, b = key_pair(), key_pair()
        async with nodes(a, b) as (first, second):
            for hosts, port in ([], 1), (["127.0.0.1"], 0), (["127.0.0.1"], 1 << 40), (["*"], 5):
                first.connect(node_of(b), b.public, hosts, port)
                assert not first.send(node_of(b), notice("?"))
            first.connect(node_of(b), b.public, [LOOPBACK], second.port)
            await eventually(lambda: first.is_connected(node_of(b)))

    run(scenario)


def test_a_peer_that_moves_is_followed_and_one_that_stays_is_kept() -> None:
    async def scenario() -> None:
        a, b = key_pair(), key_pair()
        async with nodes(a, b) as (first, second):
            peer = node_of(b)
            first.connect(peer, b.public, [LOOPBACK], second.port)
            await eventually(lambda: first.is_connected(peer))
            first.connect(peer, b.public, ["127.0.0.77", LOOPBACK], second.port)
            assert first.is_connected(peer)
            first.connect(peer, b.public, ["localhost"], second.port)
            assert first.is_connected(peer)
            elsewhere = ZmqControl(b, host="127.0.0.4")
            await elsewhere.start()
            elsewhere.set_trust({a.public: node_of(a)})
            try:
                first.connect(peer, b.public, ["127.0.0.4"], elsewhere.port)
                assert not first.is_connected(peer)
                await eventually(lambda: first.send(peer, notice("moved")))
                assert (await within(elsewhere.receive())).message == notice("moved")
                other = key_pair()
                first.connect(peer, other.public, ["127.0.0.4"], elsewhere.port)
                assert not first.is_connected(peer)
            finally:
                await elsewhere.stop()

    run(scenario)


def test_a_revoked_member_with_an_open_connection() -> None:
    async def scenario() -> None:
        honest, revoked, server = key_pair(), key_pair(), key_pair()
        async with nodes(server, honest, known=[revoked]) as (target, innocent):
            innocent.connect(node_of(server), server.public, [LOOPBACK], target.port)
            await eventually(lambda: innocent.is_connected(node_of(server)))
            with client(target.port, revoked, server.public) as bad:
                bad.send(WIRE.encode(notice("while a member")))
                assert (await within(target.receive())).node == node_of(revoked)
                target.set_trust({pair.public: node_of(pair) for pair in (server, honest)})
                bad.send(WIRE.encode(notice("revoked")))
                began_ms = clock.monotonic_ms()
                await eventually(lambda: not innocent.send(node_of(server), notice("cut?")))
                await eventually(lambda: innocent.send(node_of(server), notice("back")))
                assert clock.monotonic_ms() - began_ms < 1_000
                await eventually(lambda: target.counters().refused.get("not_member", 0) > 0)
                while (received := await within(target.receive())).message != notice("back"):
                    assert received.node == node_of(honest)

    run(scenario)


def test_revoking_closes_own_sockets_to_that_peer() -> None:
    async def scenario() -> None:
        a, b = key_pair(), key_pair()
        async with nodes(a, b) as (first, second):
            first.connect(node_of(b), b.public, [LOOPBACK], second.port)
            await eventually(lambda: first.is_connected(node_of(b)))
            first.set_trust({})
            assert not first.is_connected(node_of(b))
            assert not first.send(node_of(b), notice("?"))

    run(scenario)


def test_garbage_strangers_and_bad_frames_are_counted_and_the_rest_goes_on() -> None:
    async def scenario() -> None:
        server, member, good = key_pair(), key_pair(), key_pair()
        async with nodes(server, good, known=[member]) as (target, friend):
            friend.connect(node_of(server), server.public, [LOOPBACK], target.port)
            for data in GARBAGE:
                await asyncio.to_thread(poke, target.port, data)
            with ExitStack() as stack:
                enter = stack.enter_context
                stranger = enter(client(target.port, key_pair(), server.public))
                naked = enter(client(target.port, None, b""))
                bad = enter(client(target.port, member, server.public))
                whole = WIRE.encode(notice("whole"))
                stranger.send(whole)
                naked.send(whole)
                for frames in (
                    [b""],
                    [b"\xc1" * 999],
                    [whole[:-1]],
                    [whole + b"x"],
                    [whole, whole],
                    [WIRE.encode(notice("x")).replace(b"notice", b"nqtice")],
                    [b"x" * (CONTROL_FRAME_BYTES_MAX + 1)],
                ):
                    bad.send_multipart(frames)
                bad.send(whole)
                assert (await within(target.receive())).node == node_of(member)
                await eventually(lambda: target.counters().refused.get("not_member", 0) > 0)
                await eventually(lambda: target.counters().refused.get("handshake", 0) > 2)
                refused = target.counters().refused
                assert refused["malformed"] == 5
                assert refused["unknown_kind"] == 1
                assert refused["oversized"] == 1
                assert not stranger.poll(0)
                assert not naked.poll(0)
            await eventually(lambda: friend.send(node_of(server), notice("still here")))
            assert (await within(target.receive())).message == notice("still here")

    run(scenario)


def test_a_frame_far_too_large_costs_its_sender_the_connection() -> None:
    async def scenario() -> None:
        server, member = key_pair(), key_pair()
        async with nodes(server, known=[member]) as (target,):
            with client(target.port, member, server.public) as bad:
                bad.send(b"x" * (2 * CONTROL_FRAME_BYTES_MAX))
                bad.send(WIRE.encode(notice("after it, on the next connection")))
                assert (await within(target.receive())).node == node_of(member)
            assert target.counters().peers[node_of(member)].frames_in == 1

    run(scenario)


def test_the_largest_frame_arrives_and_a_larger_one_is_not_sent() -> None:
    async def scenario() -> None:
        a, b = key_pair(), key_pair()
        async with nodes(a, b) as (first, second):
            first.connect(node_of(b), b.public, [LOOPBACK], second.port)
            await eventually(lambda: first.is_connected(node_of(b)))
            room = CONTROL_FRAME_BYTES_MAX - len(WIRE.encode(Notice(topic="", body=b"")))
            largest = Notice(topic="", body=bytes(room - 3))
            assert len(WIRE.encode(largest)) == CONTROL_FRAME_BYTES_MAX
            assert first.send(node_of(b), largest)
            assert (await within(second.receive())).message == largest
            assert not first.send(node_of(b), Notice(topic="", body=bytes(room)))
            assert first.counters().refused == {"send_oversized": 1}

    run(scenario)


def test_silent_connections_and_a_flood_of_handshakes_leave_others_working() -> None:
    async def scenario() -> None:
        a, b = key_pair(), key_pair()
        async with nodes(a, b) as (first, second):
            with ExitStack() as stack:
                for _ in range(200):
                    stack.enter_context(socket.create_connection((LOOPBACK, second.port)))
                for _ in range(30):
                    stack.enter_context(client(second.port, key_pair(), b.public))
                first.connect(node_of(b), b.public, [LOOPBACK], second.port)
                await eventually(lambda: first.send(node_of(b), notice("through the crowd")))
                assert (await within(second.receive())).node == node_of(a)
                await eventually(lambda: second.counters().refused.get("not_member", 0) >= 30)

    run(scenario)


def test_a_peer_that_was_never_there_is_found_when_it_comes() -> None:
    async def scenario() -> None:
        a, b = key_pair(), key_pair()
        with socket.create_server((LOOPBACK, 0)) as holder:
            port = holder.getsockname()[1]
        async with nodes(a) as (first,):
            first.connect(node_of(b), b.public, [LOOPBACK], port)
            assert not first.send(node_of(b), notice("nobody"))
            late = ZmqControl(b, host=LOOPBACK, port=port)
            await late.start()
            late.set_trust({a.public: node_of(a)})
            try:
                await eventually(lambda: first.is_connected(node_of(b)))
            finally:
                await late.stop()

    run(scenario)


def test_a_peer_that_takes_nothing_fills_the_queue_and_nobody_waits() -> None:
    async def scenario() -> None:
        a, b = key_pair(), key_pair()
        taken = Tally("test")
        blocked = asyncio.Event()
        loop = asyncio.get_running_loop()
        go_on = asyncio.Event()

        def hold(*_: object) -> None:
            loop.call_soon_threadsafe(blocked.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()

        deaf = Listener(
            name="control",
            identity=b,
            admit=lambda _: True,
            on_frames=hold,
            tally=taken,
            frame_bytes_max=CONTROL_FRAME_BYTES_MAX,
            send_queue_max=1,
            receive_queue_max=2,
        )
        deaf.open(LOOPBACK, 0)
        try:
            async with nodes(a) as (first,):
                first.connect(node_of(b), b.public, [LOOPBACK], deaf.port)
                await eventually(lambda: first.is_connected(node_of(b)))
                big = notice("big", 100_000)
                sent = sum(first.send(node_of(b), big) for _ in range(1_000))
                await blocked.wait()
                assert 0 < sent < 1_000
                assert first.counters().refused["send_queue_full"] == 1_000 - sent
        finally:
            go_on.set()
            await asyncio.to_thread(deaf.close)

    run(scenario)


def test_ping_takes_milliseconds() -> None:
    async def scenario() -> None:
        a, b = key_pair(), key_pair()
        async with nodes(a, b) as (first, second):
            first.connect(node_of(b), b.public, [LOOPBACK], second.port)
            second.connect(node_of(a), a.public, [LOOPBACK], first.port)
            await eventually(lambda: first.is_connected(node_of(b)))
            await eventually(lambda: second.is_connected(node_of(a)))
            took: list[int] = []
            for number in range(100):
                began_ms = clock.monotonic_ms()
                ping = Request(id=str(number), method="ping", cause="", deadline_ms=1, body=b"")
                assert first.send(node_of(b), ping)
                received = await within(second.receive())
                assert second.send(node_of(a), received.message)
                assert (await within(first.receive())).message == ping
                took.append(clock.monotonic_ms() - began_ms)
            assert sorted(took)[50] < 20  # 1 or 2 on a machine that does nothing else

    run(scenario)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_in_admission_or_in_a_handler_ends_neither() -> None:
    async def scenario() -> None:
        server, member = key_pair(), key_pair()
        failures = [RuntimeError("admission"), RuntimeError("handler")]
        heard: list[bytes] = []

        def admit(_: bytes) -> bool:
            if len(failures) == 2:
                raise failures.pop(0)
            return True

        def on_frames(_: object, frames: list[object]) -> None:
            if failures:
                raise failures.pop()
            heard.append(frames[0].bytes)  # type: ignore[attr-defined]  # a Frame

        listener = Listener(
            name="control",
            identity=server,
            admit=admit,
            on_frames=on_frames,
            tally=Tally("test"),
            frame_bytes_max=1_000,
            send_queue_max=1,
            receive_queue_max=10,
        )
        listener.open(LOOPBACK, 0)
        try:
            with client(listener.port, member, server.public):
                await eventually(lambda: len(failures) == 1)
            with client(listener.port, member, server.public) as second:
                second.send(b"lost with the error")
                second.send(b"heard")
                await eventually(lambda: heard == [b"heard"])
        finally:
            await asyncio.to_thread(listener.close)

    run(scenario)


def test_admission_answers_no_to_anything_but_curve_in_its_domain() -> None:
    answer = ZapHandler._answer
    tally = Tally("test")

    class Bare:
        _domain, _tally, _admit = b"control", tally, staticmethod(lambda key: key == b"k" * 32)

    def status(domain: bytes, mechanism: bytes, *credentials: bytes) -> bytes:
        request = [b"1.0", b"1", domain, b"::ffff:10.0.0.9", b"", mechanism, *credentials]
        return answer(Bare(), request)[2]  # type: ignore[arg-type]  # what _answer needs of a handler

    assert status(b"control", b"CURVE", b"k" * 32) == b"200"
    assert status(b"other", b"CURVE", b"k" * 32) == b"400"
    assert status(b"control", b"CURVE", b"x" * 32) == b"400"
    assert status(b"control", b"CURVE", b"k" * 31) == b"400"
    assert status(b"control", b"NULL") == b"400"
    assert status(b"control", b"NULL", b"k" * 32) == b"400"
    assert status(b"control", b"PLAIN", b"user", b"password") == b"400"
    assert tally.snapshot().refused == {"not_member": 6}


class NoDescriptors(asyncio.SelectorEventLoop):
    """A loop that cannot wait for descriptors, as Windows' default cannot."""

    def add_reader(self, fd: object, callback: object, *args: object) -> None:
        raise NotImplementedError


def test_a_loop_that_cannot_wait_for_descriptors() -> None:
    async def scenario() -> None:
        a, b, c = key_pair(), key_pair(), key_pair()
        async with nodes(a, b, known=[c]) as (first, second):
            first.connect(node_of(b), b.public, [LOOPBACK], second.port)
            await eventually(lambda: first.is_connected(node_of(b)))
            for number in range(200):
                assert first.send(node_of(b), notice(str(number)))
            for number in range(200):
                assert (await within(second.receive())).message == notice(str(number))
            with client(second.port, key_pair(), b.public):
                await eventually(lambda: second.counters().refused.get("not_member", 0) > 0)
            second.set_trust({a.public: node_of(a)})  # binds anew, which cuts the first as well
            await eventually(lambda: not first.is_connected(node_of(b)))
            await eventually(lambda: first.send(node_of(b), notice("back")))
            assert (await within(second.receive())).message == notice("back")

    with asyncio.Runner(loop_factory=NoDescriptors) as runner:
        runner.run(asyncio.wait_for(scenario(), 60))


BUSY_SERVER = """
import threading
from mesh.curve_zmq import Tally, curve_context, dealer
from mesh.listener_zmq import Listener
from tests.meshwork import key_pair

keys, go_on = key_pair(), threading.Event()

def handle(sender, frames):
    go_on.wait()

listener = Listener(
    name="control", identity=keys, admit=lambda key: True, on_frames=handle, tally=Tally("control"),
    frame_bytes_max=1 << 20, send_queue_max=2, receive_queue_max=2,
)
listener.open("127.0.0.1", 0)
print(listener.port, keys.public.hex(), flush=True)
input()
go_on.set()
print("alive", flush=True)
listener.close()
"""


def test_a_server_that_stood_still_outlives_a_client_that_went_meanwhile() -> None:
    """libzmq 4364: with heartbeats of its own the whole process would be aborted."""
    with subprocess.Popen(
        [sys.executable, "-c", BUSY_SERVER], stdin=PIPE, stdout=PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        port, key = server.stdout.readline().split()
        context = curve_context()
        sender = dealer(
            context,
            key_pair(),
            bytes.fromhex(key),
            frame_bytes_max=1 << 20,
            send_queue_max=2_000,
            receive_queue_max=2,
            silence_ms=CONTROL_SILENCE_MS,
        )
        sender.connect(f"tcp://{LOOPBACK}:{port}")
        for _ in range(500):
            sender.send(bytes(10_000))
        # Long enough that its queue is full, and that a heartbeat would stand behind it.
        assert not sender.poll(1_500)
        context.destroy(linger=0)
        # A first heartbeat of its own would find out that the client is gone, a second one abort.
        with pytest.raises(subprocess.TimeoutExpired):
            server.wait(2.5 * HEARTBEAT_INTERVAL_MS / 1_000)
        said, _ = server.communicate("go on\n", timeout=20)
        assert said == "alive\n"
    assert server.returncode == 0
