"""Keeps this node in touch with every member: who may speak, where they are, who lives.

Sends a hello to each member every two seconds and at once to one that appears; silence alone makes
a member suspect.  Adverts, seeds and what other members know are only hints where to dial.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from ledger.jobs import Member
from ledger.schema import FIRST_SCHEMA, SCHEMA_VERSION
from mesh import clock
from mesh.codec import pack, unpack
from mesh.errors import TwinIdentityError, WireError
from mesh.ids import MeshId, NodeId, RaftId
from mesh.messages import (
    HELLO_INTERVAL_MS,
    HELLO_STATUS_BYTES_MAX,
    PROTOCOL_VERSION,
    Hello,
    PeerAddress,
)
from mesh.peers import PeerTable
from mesh.transport import TEND_INTERVAL_MS, ControlTransport
from mesh.twins import MEMORY_MS, TwinWatch
from node.signals import Signal

_log = structlog.get_logger("mesh")

HINTS_MAX: Final = 1_024
"""Nodes whose addresses are remembered, members first: more than any mesh has."""
TWINS: Final = "twins"
"""Key in a hello's status: nodes that two processes speak for."""
SCHEMA: Final = "schema"
"""Key in a hello's status: the newest form of the ledger that its sender knows."""
HINTS_SAVED_S: Final = 30.0
"""How often known addresses are written down for the next start."""


class AddressBook(Protocol):
    """Keeps the last known addresses over restarts."""

    def load(self) -> tuple[PeerAddress, ...]:
        """The addresses written last; empty when there are none or the file is damaged."""
        ...

    def save(self, addresses: Sequence[PeerAddress]) -> None:
        """Replaces what is kept; a failure is reported, never fatal."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnFacts:
    """What this node tells others about itself."""

    node: NodeId
    raft_id: RaftId
    mesh: MeshId
    incarnation: str
    name: str
    hosts: Callable[[], tuple[str, ...]]
    control_port: int
    bulk_port: int
    join_port: int


class Neighbours:
    """The members of the mesh as this node meets them."""

    def __init__(
        self,
        facts: OwnFacts,
        transport: ControlTransport,
        book: AddressBook,
        status: Callable[[], dict[str, object]],
        *,
        lost: Callable[[NodeId], None] = lambda _: None,
    ) -> None:
        self.facts = facts
        self.peers = PeerTable(facts.node)
        self.changed = Signal()
        self._transport = transport
        self._book = book
        self._status = status
        self._lost = lost
        """Told of each member whose connection broke."""
        self._members: dict[NodeId, Member] = {}
        self._twins = TwinWatch()
        self._epoch = 0
        self.mesh_epoch = 0
        """Of the mesh, as this node knows it: grows with each recovery by force."""
        self._own_twin_ms: int | None = None
        self._hints: dict[NodeId, PeerAddress] = {
            NodeId(address.node): address for address in book.load()
        }

    def members_are(self, members: Sequence[Member], epoch: int) -> None:
        """Takes the members of the ledger: exactly these keys may speak, exactly these are dialled."""
        active = {NodeId(m.node): m for m in members if m.state == "active"}
        if active == self._members and epoch == self._epoch:
            return
        gone = self._members.keys() - active.keys()
        self._members, self._epoch = active, epoch
        self.peers.members_are(active)
        self._twins.members_are(frozenset(active))
        self._transport.set_trust({m.public_key: NodeId(m.node) for m in active.values()})
        for node in gone:
            self._transport.disconnect(node)
        now_ms = clock.monotonic_ms()
        for node in active.keys() - {self.facts.node}:
            if (hint := self._hints.get(node)) is not None:
                self.peers.hint(hint, now_ms)
            self._dial(node)
        self.changed.set()
        self.greet()

    def hint(self, address: PeerAddress) -> None:
        """Somebody says that a node is reachable there."""
        node = NodeId(address.node)
        if node == self.facts.node:
            return
        self._hints.pop(node, None)
        self._hints[node] = address
        while len(self._hints) > HINTS_MAX:
            self._forget_a_hint()
        if self.peers.hint(address, clock.monotonic_ms()):
            self._dial(node)
            self._greet_one(node)

    def _forget_a_hint(self) -> None:
        # The oldest of a stranger: adverts and members may name any number of nodes.
        strangers = (node for node in self._hints if node not in self._members)
        del self._hints[next(strangers, next(iter(self._hints)))]

    def _dial(self, node: NodeId) -> None:
        member, peer = self._members.get(node), self.peers.get(node)
        if member is None or peer is None or peer.address is None:
            return
        self._transport.connect(
            node, member.public_key, peer.address.hosts, peer.address.control_port
        )

    def receive(self, sender: NodeId, hello: Hello) -> None:
        """Takes a member's hello.  Raises `WireError` for one of another mesh."""
        if hello.mesh != self.facts.mesh:
            raise WireError(f"node {sender} says hello for another mesh")
        if self._twins.heard(sender, hello.incarnation, clock.monotonic_ms()):
            _log.error("two processes speak for one node", node=sender, code=TwinIdentityError.code)
        peer = self.peers.get(sender)
        before = peer.address if peer else None
        appeared = self.peers.heard(sender, clock.monotonic_ms(), hello)
        peer = self.peers.get(sender)
        if peer is None:
            return
        if appeared or peer.address != before or not self._transport.is_connected(sender):
            # Whoever speaks is there: a dial that waits for its turn need not.
            self._dial(sender)
        told = self.status_of(sender).get(TWINS)
        if isinstance(told, tuple) and self.facts.node in told:
            self._hear_of_own_twin()
        if appeared:
            _log.info("node appeared", node=sender, name=hello.name)
            self._greet_one(sender)
        for address in hello.known:
            self.hint(address)
        self.changed.set()

    def _hear_of_own_twin(self) -> None:
        now_ms = clock.monotonic_ms()
        if self._own_twin_ms is None or now_ms - self._own_twin_ms > MEMORY_MS:
            _log.error("another process speaks for this node", code=TwinIdentityError.code)
        self._own_twin_ms = now_ms

    def twins(self) -> tuple[NodeId, ...]:
        """Nodes with a copied data directory, this one too, as it heard or was told."""
        now_ms = clock.monotonic_ms()
        found = set(self._twins.twins(now_ms))
        if self._own_twin_ms is not None and now_ms - self._own_twin_ms <= MEMORY_MS:
            found.add(self.facts.node)
        return tuple(sorted(found))

    def greet(self) -> None:
        """Says hello to every member now."""
        for node in self._members:
            self._greet_one(node)

    def _greet_one(self, node: NodeId) -> None:
        if node != self.facts.node:
            self._transport.send(node, self._hello())

    def _hello(self) -> Hello:
        twins = self._twins.twins(clock.monotonic_ms())
        known = {SCHEMA: SCHEMA_VERSION}
        status = pack({**self._status(), **known, **({TWINS: twins} if twins else {})})
        if len(status) > HELLO_STATUS_BYTES_MAX:
            status = pack(known)
        facts = self.facts
        return Hello(
            raft_id=facts.raft_id,
            mesh=facts.mesh,
            protocol=PROTOCOL_VERSION,
            incarnation=facts.incarnation,
            name=facts.name,
            hosts=facts.hosts(),
            control_port=facts.control_port,
            bulk_port=facts.bulk_port,
            join_port=facts.join_port,
            members_epoch=self._epoch,
            known=self.peers.known_addresses(clock.monotonic_ms()),
            status=status,
            epoch=self.mesh_epoch,
        )

    def status_of(self, node: NodeId) -> dict[str, object]:
        """The last public state that a node told; empty when none is known."""
        peer = self.peers.get(node)
        if peer is None or peer.hello is None:
            return {}
        try:
            status = unpack(peer.hello.status)
        except WireError:
            return {}
        return status if isinstance(status, dict) else {}

    def schema_of(self, node: NodeId) -> int | None:
        """The newest form of the ledger that a node says it knows; None: it was not heard yet."""
        if node == self.facts.node:
            return SCHEMA_VERSION
        peer = self.peers.get(node)
        if peer is None or peer.hello is None:
            return None
        told = self.status_of(node).get(SCHEMA)
        # Nodes that say none are older than this word.
        return told if isinstance(told, int) else FIRST_SCHEMA

    async def run(self) -> None:
        """Greets all members every two seconds, and each at once when its connection comes up.

        Connections are looked at as often as a leader speaks: one that broke says at once what
        its silence would say only after an election time-out.
        """
        saved_ms = greeted_ms = clock.monotonic_ms()
        known: tuple[PeerAddress, ...] = ()
        connected: set[NodeId] = set()
        self.greet()
        while True:
            await self.changed.wait(self.changed.count, TEND_INTERVAL_MS / 1000)
            now_ms = clock.monotonic_ms()
            before, connected = (
                connected,
                {n for n in self._members if self._transport.is_connected(n)},
            )
            for node in before - connected:
                self._lost(node)
            if now_ms - greeted_ms >= HELLO_INTERVAL_MS:
                greeted_ms = now_ms
                self.greet()
            else:
                # Links to twins come and go with each of their hellos: both have to hear of it.
                twins = self._twins.twins(now_ms)
                for node in {*(connected - before), *twins}:
                    self._greet_one(node)
            addresses = self.peers.known_addresses(now_ms)
            if addresses != known and (now_ms - saved_ms > HINTS_SAVED_S * 1000 or not known):
                known, saved_ms = addresses, now_ms
                await asyncio.to_thread(self._book.save, addresses)
