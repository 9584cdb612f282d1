"""The socket that strangers speak to, and the call they make: CURVE with a key that everybody knows.

The well-known server key hides nothing; it is there so that no socket of a node speaks anything but
CURVE and every stranger has a key to be named by.  What is said here is judged by mesh.joining.
"""

import asyncio
import socket as sockets
from functools import partial
from typing import Final

import structlog
import zmq

from mesh import clock
from mesh.curve_zmq import Dial, Tally, curve_context, dealer
from mesh.errors import UnreachableError
from mesh.listener_zmq import Listener, Sender
from mesh.transport import (
    JOIN_FRAME_BYTES_MAX,
    JOIN_PENDING_MAX,
    Counters,
    JoinHandler,
    KeyPair,
    endpoint,
    is_address,
    is_host,
    is_port,
)

_QUEUE_MAX: Final = 4
"""Frames held from or for one stranger."""
_LOOK_MS: Final = 50
"""How often a call looks whether it has run out of time or was given up."""

_log = structlog.get_logger("join")


class ZmqJoinListener:
    """`JoinListener` over ZeroMQ: any CURVE key may speak, `on_frame` answers in the event loop."""

    def __init__(
        self, join_key: KeyPair, on_frame: JoinHandler, *, host: str = "*", port: int = 0
    ) -> None:
        self._on_frame = on_frame
        self._host = host
        self._asked_port = port
        self._tally = Tally("join")
        self._answering: set[asyncio.Task[None]] = set()
        self._running = False
        self._listener = Listener(
            name="join",
            identity=join_key,
            admit=lambda _: True,
            on_frames=self._on_frames,
            tally=self._tally,
            frame_bytes_max=JOIN_FRAME_BYTES_MAX,
            send_queue_max=_QUEUE_MAX,
            receive_queue_max=_QUEUE_MAX,
            open_to_all=True,
        )

    @property
    def port(self) -> int:
        """The bound port."""
        return self._listener.port

    async def start(self) -> None:
        """Binds and listens.  Raises `InUseError`, `ConfigurationError`."""
        self._loop = asyncio.get_running_loop()
        self._listener.open(self._host, self._asked_port)
        self._running = True

    async def stop(self) -> None:
        """Closes the socket; questions being answered are given up."""
        if not self._running:
            return
        self._running = False
        await asyncio.to_thread(self._listener.close)
        for task in self._answering:
            task.cancel()
        if self._answering:
            await asyncio.wait(self._answering)

    def counters(self) -> Counters:
        """What was refused, by reason."""
        return self._tally.snapshot()

    def _on_frames(self, sender: Sender, frames: list[zmq.Frame]) -> None:
        if len(frames) != 1 or len(frames[0]) == 0:
            self._tally.refused("malformed", sender.address)
        elif len(frames[0]) > JOIN_FRAME_BYTES_MAX:
            self._tally.refused("oversized", sender.address)
        else:
            try:
                self._loop.call_soon_threadsafe(self._begin, sender, frames[0].bytes)
            except RuntimeError:
                self._tally.refused("busy", sender.address)  # the loop is closed: the process ends

    def _begin(self, sender: Sender, frame: bytes) -> None:
        if len(self._answering) >= JOIN_PENDING_MAX or not self._running:
            self._tally.refused("busy", sender.address)
            return
        task = asyncio.create_task(self._answer(sender, frame), name="join")
        self._answering.add(task)
        task.add_done_callback(partial(self._answered, sender))

    async def _answer(self, sender: Sender, frame: bytes) -> None:
        answer = await self._on_frame(sender.key, sender.address, frame)
        if answer is not None and self._running:
            self._listener.post(sender, [answer])

    def _answered(self, sender: Sender, task: asyncio.Task[None]) -> None:
        # A stranger's frame must not end the node, whatever it made the handler do.
        self._answering.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a join frame could not be handled", source=sender.address, exc_info=error)
            self._tally.refused("malformed", sender.address)


class ZmqJoinCall:
    """`JoinCall` over ZeroMQ, with this node's own key as client."""

    def __init__(self, identity: KeyPair, join_public_key: bytes) -> None:
        self._identity = identity
        self._server_key = join_public_key

    async def __call__(self, host: str, port: int, frame: bytes, timeout_s: float) -> bytes:
        """The answer.  Raises `UnreachableError` when none comes in time."""
        where = f"{host[:64]} port {port}"
        if not is_host(host) or not is_port(port):
            raise UnreachableError(f"{where} is no address", "give HOST:PORT")
        try:
            async with asyncio.timeout(timeout_s):
                address = await self._resolved(host, port)
                return await self._ask(endpoint(address, port), frame)
        except TimeoutError:
            raise UnreachableError(
                f"{where} does not answer", "check address and network"
            ) from None

    async def _resolved(self, host: str, port: int) -> str:
        if is_address(host):
            return host
        loop = asyncio.get_running_loop()
        try:
            answers = await loop.getaddrinfo(host, port, type=sockets.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise UnreachableError(f"{host[:64]} is unknown: {error}", "check the name") from None
        return str(answers[0][4][0])

    async def _ask(self, address: str, frame: bytes) -> bytes:
        context = curve_context()
        try:
            socket = dealer(
                context,
                self._identity,
                self._server_key,
                frame_bytes_max=JOIN_FRAME_BYTES_MAX,
                send_queue_max=_QUEUE_MAX,
                receive_queue_max=_QUEUE_MAX,
            )
            dial = Dial(socket, address, clock.monotonic_ms())
            try:
                socket.send(frame, zmq.NOBLOCK)
                return await self._answer(dial)
            finally:
                dial.close()
        finally:
            context.term()

    async def _answer(self, dial: Dial) -> bytes:
        # Looking now and then works on every event loop, and joining is rare.
        while True:
            dial.look()
            if dial.socket.poll(0, zmq.POLLIN):
                frames = dial.socket.recv_multipart(zmq.NOBLOCK)
                if len(frames) == 1 and len(frames[0]) <= JOIN_FRAME_BYTES_MAX:
                    return frames[0]
            elif dial.down:
                raise UnreachableError("nobody answers on the join port", "check address and port")
            await asyncio.sleep(_LOOK_MS / 1000)
