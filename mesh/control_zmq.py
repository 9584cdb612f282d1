"""Messages between members over ZeroMQ: a ROUTER that only receives, a DEALER a peer that only sends.

Each direction is a connection of its own, made by its sender.  So a server never has to answer on
a routing id that may be gone (a ROUTER drops such messages in silence), every client proves the
key it expects, and who connects does not depend on who was there first.  The listener's thread
decodes; the event loop's thread owns the DEALERs, which never need to be waited on.
"""

import asyncio
import contextlib
import socket as sockets
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import structlog
import zmq

from mesh import clock
from mesh.codec import Vocabulary
from mesh.curve_zmq import Dial, Dialer, MakeSocket, Tally, curve_context, dealer
from mesh.errors import UnknownKindError, WireError
from mesh.ids import NodeId
from mesh.listener_zmq import LoopListener, Sender
from mesh.messages import WIRE, Message
from mesh.transport import (
    CONTROL_FRAME_BYTES_MAX,
    CONTROL_RECEIVE_QUEUE_MAX,
    CONTROL_SEND_QUEUE_MAX,
    CONTROL_SILENCE_MS,
    INBOX_MAX,
    INBOX_PER_PEER_MAX,
    REDIAL_MAX_MS,
    REDIAL_MIN_MS,
    TEND_CALM_MS,
    TEND_INTERVAL_MS,
    Counters,
    KeyPair,
    Received,
    dial_order,
    is_address,
)

_log = structlog.get_logger("transport")
LOOK_MS: Final = 10
"""A connection that is up is looked at when something is sent, but not more often: a look costs as much as a small message."""
_CLIENT_RECEIVES_MAX: Final = 2
"""Nothing is ever sent to a control client."""


class _Link:
    """The way to one peer: dials its addresses for ever, keeps the first where its key answers."""

    def __init__(
        self, node: NodeId, key: bytes, hosts: Sequence[str], port: int, make: MakeSocket
    ) -> None:
        self.node = node
        self.key = key
        self.resolving: asyncio.Task[None] | None = None
        self._make = make
        self._good: tuple[str, Dial] | None = None
        self._last_good: str | None = None
        self._dialer: Dialer | None = None
        self._redial_ms = REDIAL_MIN_MS
        self._next_round_ms = 0
        self._tended_ms = 0
        self.hosts: tuple[str, ...] = ()
        self.addresses: tuple[str, ...] = ()
        self.port = port
        self.move(hosts, port)

    @property
    def is_up(self) -> bool:
        return self._good is not None

    @property
    def good_host(self) -> str | None:
        return self._good[0] if self._good is not None else None

    def socket(self, now_ms: int) -> zmq.Socket[bytes] | None:
        """The socket to send on, if there is one; a connection that is up is not looked at each time."""
        if self._good is not None and now_ms - self._tended_ms < LOOK_MS:
            return self._good[1].socket
        return self.tend(now_ms)

    def tend(self, now_ms: int) -> zmq.Socket[bytes] | None:
        """Looks at the connections, dials where due; the socket to send on, if there is one."""
        self._tended_ms = now_ms
        if self._good is not None:
            host, dial = self._good
            dial.look()
            if not dial.down:
                return dial.socket
            self.close()
            _log.info("link lost", peer=self.node, host=host)
        if self._dialer is None and now_ms >= self._next_round_ms:
            hosts = dial_order(self.addresses, self._last_good)
            self._dialer = Dialer(hosts, self.port, self._make, now_ms)
        if self._dialer is None:
            return None
        won = self._dialer.tend(now_ms)
        if won is not None:
            self._good, self._last_good = won, won[0]
            self._dialer = None
            self._redial_ms, self._next_round_ms = REDIAL_MIN_MS, 0
            _log.info("link up", peer=self.node, host=won[0])
            return won[1].socket
        if self._dialer.is_over:
            self._dialer = None
            self._next_round_ms = now_ms + self._redial_ms
            self._redial_ms = min(self._redial_ms * 2, REDIAL_MAX_MS)
        return None

    def move(self, hosts: Sequence[str], port: int) -> None:
        """New addresses: a connection stays when it is to one of them.

        With names among them it stays as well: what they resolve to is not known here.
        """
        names = any(not is_address(host) for host in hosts)
        good = self.good_host
        stays = good is not None and port == self.port and (names or good in hosts)
        self.hosts, self.port = tuple(hosts), port
        self.addresses = tuple(host for host in hosts if is_address(host))
        if not stays:
            self.close()
            self._redial_ms, self._next_round_ms = REDIAL_MIN_MS, 0

    def hurry(self) -> None:
        """The peer gave a sign of life: the next round of dialling need not wait."""
        self._redial_ms, self._next_round_ms = REDIAL_MIN_MS, 0

    def close(self) -> None:
        """Closes every connection; dialling begins anew with the next `tend`."""
        if self._dialer is not None:
            self._dialer.close()
            self._dialer = None
        if self._good is not None:
            self._good[1].close()
            self._good = None


class ZmqControl:
    """`ControlTransport` over ZeroMQ with CURVE."""

    def __init__(
        self,
        identity: KeyPair,
        *,
        host: str = "*",
        port: int = 0,
        vocabulary: Vocabulary = WIRE,
    ) -> None:
        self._identity = identity
        self._host = host
        self._asked_port = port
        self._vocabulary = vocabulary
        self._tally = Tally("control")
        self._members: Mapping[bytes, NodeId] = MappingProxyType({})
        self._links: dict[NodeId, _Link] = {}
        self._inbox: asyncio.Queue[Received] = asyncio.Queue(INBOX_MAX)
        self._waiting: Counter[NodeId] = Counter()
        """Messages of each peer in the inbox."""
        self._tending: asyncio.Task[None] | None = None
        self._dialling = asyncio.Event()
        self._listener = LoopListener(
            name="control",
            identity=identity,
            admit=lambda key: key in self._members,
            on_frames=self._on_frames,
            tally=self._tally,
            frame_bytes_max=CONTROL_FRAME_BYTES_MAX,
            send_queue_max=_CLIENT_RECEIVES_MAX,
            receive_queue_max=CONTROL_RECEIVE_QUEUE_MAX,
        )

    @property
    def port(self) -> int:
        """The bound port."""
        return self._listener.port

    async def start(self) -> None:
        """Binds and listens.  Raises `InUseError`, `ConfigurationError`."""
        self._loop = asyncio.get_running_loop()
        self._context = curve_context()
        try:
            self._listener.open(self._host, self._asked_port)
        except BaseException:
            self._context.term()
            raise
        self._tending = asyncio.create_task(self._tend(), name="links")

    async def stop(self) -> None:
        """Closes everything; what was queued is lost."""
        if self._tending is None:
            return
        self._tending.cancel()
        await asyncio.wait([self._tending])
        self._tending = None
        for node in tuple(self._links):
            self.disconnect(node)
        self._listener.close()
        await asyncio.to_thread(self._listener.end)
        await asyncio.to_thread(self._context.term)

    def set_trust(self, members: Mapping[bytes, NodeId]) -> None:
        """Who may speak; cuts the connections of those who no longer may."""
        revoked = self._members.keys() - members.keys()
        self._members = MappingProxyType(dict(members))
        for node in [n for n, link in self._links.items() if link.key in revoked]:
            self.disconnect(node)
        if revoked and self._tending is not None:
            self._listener.rebind()

    def connect(self, node: NodeId, public_key: bytes, hosts: Sequence[str], port: int) -> None:
        """Keeps a connection to this peer, at the first address where its key answers."""
        link = self._links.get(node)
        if link is not None and link.key != public_key:
            self.disconnect(node)
            link = None
        if link is None:
            make = partial(self._dealer, public_key)
            self._links[node] = link = _Link(node, public_key, hosts, port, make)
        elif (link.hosts, link.port) != (tuple(hosts), port):
            link.move(hosts, port)
        elif not link.is_up:
            link.hurry()
        if self._tending is not None:
            self._tend_link(link)
        self._dialling.set()

    def disconnect(self, node: NodeId) -> None:
        """Closes the connection to this peer."""
        link = self._links.pop(node, None)
        if link is not None:
            link.close()
            if link.resolving is not None:
                link.resolving.cancel()

    def is_connected(self, node: NodeId) -> bool:
        """Whether messages to this peer leave now."""
        link = self._links.get(node)
        if link is None or self._tending is None:
            return False
        # Looked at now: whoever asks wants to know of a loss before something is sent.
        return link.tend(clock.monotonic_ms()) is not None

    def host_of(self, node: NodeId) -> str | None:
        """The address at which this peer is connected, if it is."""
        link = self._links.get(node)
        return link.good_host if link is not None else None

    def send(self, node: NodeId, message: Message) -> bool:
        """Queues a message without waiting; False when it was dropped."""
        link = self._links.get(node)
        if link is None or self._tending is None:
            return False
        socket = link.socket(clock.monotonic_ms())
        if socket is None:
            return False
        data = self._vocabulary.encode(message)
        if len(data) > CONTROL_FRAME_BYTES_MAX:
            self._tally.refused("send_oversized", node)
            return False
        try:
            socket.send(data, zmq.NOBLOCK)
        except zmq.Again:
            # Of a connection that is gone as well: nothing can be queued for it.
            if link.tend(clock.monotonic_ms()) is socket:
                self._tally.refused("send_queue_full", node)
            return False
        self._tally.sent(node, len(data))
        return True

    async def receive(self) -> Received:
        """The next message of a member."""
        received = await self._inbox.get()
        self._waiting[received.node] -= 1
        return received

    def counters(self) -> Counters:
        """What went in and out, and what was refused."""
        return self._tally.snapshot()

    # --- links ------------------------------------------------------------------------------------

    def _dealer(self, server_key: bytes) -> zmq.Socket[bytes]:
        return dealer(
            self._context,
            self._identity,
            server_key,
            frame_bytes_max=CONTROL_FRAME_BYTES_MAX,
            send_queue_max=CONTROL_SEND_QUEUE_MAX,
            receive_queue_max=_CLIENT_RECEIVES_MAX,
            silence_ms=CONTROL_SILENCE_MS,
        )

    async def _tend(self) -> None:
        while True:
            for link in tuple(self._links.values()):
                self._tend_link(link)
            calm = all(link.is_up for link in self._links.values())
            pause_ms = TEND_CALM_MS if calm else TEND_INTERVAL_MS
            self._dialling.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_ms / 1000):
                    await self._dialling.wait()

    def _tend_link(self, link: _Link) -> None:
        names = [host for host in link.hosts if not is_address(host)]
        if names and not link.is_up and link.resolving is None:
            link.resolving = asyncio.create_task(self._resolve(link, names), name="resolve")
        link.tend(clock.monotonic_ms())

    async def _resolve(self, link: _Link, names: Sequence[str]) -> None:
        # In the loop's thread pool: libzmq would resolve on the thread that moves all its bytes.
        found: list[str] = [host for host in link.hosts if is_address(host)]
        for name in names:
            try:
                answers = await self._loop.getaddrinfo(name, link.port, type=sockets.SOCK_STREAM)
            except (OSError, UnicodeError):
                continue
            found += [str(answer[4][0]) for answer in answers]
        link.addresses = dial_order(found, None)
        await asyncio.sleep(REDIAL_MAX_MS / 1000)
        link.resolving = None

    # --- what comes in ----------------------------------------------------------------------------

    def _on_frames(self, sender: Sender, frames: list[zmq.Frame]) -> None:
        node = self._members.get(sender.key)
        if node is None:
            self._tally.refused("not_member", sender.address)
            return
        if len(frames) != 1:
            self._tally.refused("malformed", node)
            return
        size = len(frames[0])
        if size > CONTROL_FRAME_BYTES_MAX:
            self._tally.refused("oversized", node)
            return
        self._tally.received(node, size)
        if self._waiting[node] >= INBOX_PER_PEER_MAX or self._inbox.full():
            self._tally.refused("inbox_full", node)
            return
        message = self._decoded(node, frames[0])
        if message is not None:
            self._waiting[node] += 1
            self._inbox.put_nowait(Received(node, message))

    def _decoded(self, node: NodeId, frame: zmq.Frame) -> Any:  # noqa: ANN401 - the kind decides the class
        try:
            return self._vocabulary.decode(frame.buffer)
        except UnknownKindError:
            self._tally.refused("unknown_kind", node)
        except WireError:
            self._tally.refused("malformed", node)
        return None
