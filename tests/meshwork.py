"""Members with real keys for transport tests, an in-memory transport, and waiting with a deadline."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import zmq
from zmq.utils import z85

from mesh.ids import NodeId, node_id_of
from mesh.messages import WIRE, Message, Notice
from mesh.transport import Counters, KeyPair, Received, Traffic

DEADLINE_S: Final = 10.0
LOOK_AGAIN_S: Final = 0.005


def key_pair() -> KeyPair:
    public, secret = zmq.curve_keypair()
    return KeyPair(z85.decode(public), z85.decode(secret))


def node_of(pair: KeyPair) -> NodeId:
    return node_id_of(pair.public)


def notice(text: str, size: int = 0) -> Notice:
    return Notice(topic=text, body=b"x" * size)


async def eventually(condition: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    """Returns when the condition holds; fails the test when it does not in time."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(deadline_s):
        while not condition():
            look_again = asyncio.Event()
            loop.call_later(LOOK_AGAIN_S, look_again.set)
            await look_again.wait()


def wait_until(condition: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    """The same for tests without an event loop."""
    asyncio.run(eventually(condition, deadline_s))


async def within(awaitable: Awaitable[Received], deadline_s: float = DEADLINE_S) -> Received:
    return await asyncio.wait_for(awaitable, deadline_s)


class Switch:
    """Joins in-memory transports by their ports."""

    def __init__(self) -> None:
        self.ports: dict[int, MemoryControl] = {}


class MemoryControl:
    """`ControlTransport` without sockets: what the simulator and other tests may use."""

    def __init__(self, identity: KeyPair, switch: Switch) -> None:
        self._identity = identity
        self._switch = switch
        self._port = 0
        self._members: Mapping[bytes, NodeId] = {}
        self._links: dict[NodeId, tuple[bytes, int]] = {}
        self._inbox: asyncio.Queue[Received] = asyncio.Queue(64)
        self._traffic: dict[NodeId, list[int]] = {}
        self._refused: dict[str, int] = {}

    @property
    def port(self) -> int:
        return self._port

    async def start(self) -> None:
        self._port = 1 + len(self._switch.ports)
        self._switch.ports[self._port] = self

    async def stop(self) -> None:
        self._switch.ports.pop(self._port, None)
        self._links.clear()

    def set_trust(self, members: Mapping[bytes, NodeId]) -> None:
        self._members = dict(members)
        for node, (key, _) in tuple(self._links.items()):
            if key not in members:
                self.disconnect(node)

    def connect(self, node: NodeId, public_key: bytes, hosts: Sequence[str], port: int) -> None:
        self._links[node] = (public_key, port)

    def disconnect(self, node: NodeId) -> None:
        self._links.pop(node, None)

    def _peer(self, node: NodeId) -> "MemoryControl | None":
        key, port = self._links.get(node, (b"", 0))
        peer = self._switch.ports.get(port)
        if peer is None or peer._identity.public != key or not peer._admits(self._identity.public):
            return None
        return peer

    def _admits(self, key: bytes) -> bool:
        if key not in self._members:
            self._refused["not_member"] = self._refused.get("not_member", 0) + 1
        return key in self._members

    def is_connected(self, node: NodeId) -> bool:
        return self._peer(node) is not None

    def send(self, node: NodeId, message: Message) -> bool:
        peer = self._peer(node)
        if peer is None:
            return False
        data = WIRE.encode(message)
        sender = peer._members[self._identity.public]
        try:
            peer._inbox.put_nowait(Received(sender, WIRE.decode(data)))
        except asyncio.QueueFull:
            return False
        self._count(node, 2, len(data))
        peer._count(sender, 0, len(data))
        return True

    def _count(self, node: NodeId, at: int, size: int) -> None:
        row = self._traffic.setdefault(node, [0, 0, 0, 0])
        row[at] += 1
        row[at + 1] += size

    async def receive(self) -> Received:
        return await self._inbox.get()

    def counters(self) -> Counters:
        return Counters(
            peers={node: Traffic(*row) for node, row in self._traffic.items()},
            refused=dict(self._refused),
        )
