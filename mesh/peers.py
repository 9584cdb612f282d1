"""Who was heard when, and where each node can be reached: a table, no sockets.

Life and death are decided here, by silence alone, never by discovery.  Addresses come from three
sources, the newest first: the node itself (an authenticated hello), other members (what they know)
and adverts or seeds (hints).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from mesh.ids import NodeId
from mesh.messages import KNOWN_PEERS_MAX, Hello, PeerAddress

SUSPECT_AFTER_MS = 6_000
"""Three missed hellos: gets no new work."""
HOSTS_MAX = 8
"""Addresses tried for one node; machines with more have container bridges nobody can reach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """What is known of another node; `heard_ms` is this process's monotonic clock, None: never."""

    node: NodeId
    address: PeerAddress | None = None
    hello: Hello | None = None
    heard_ms: int | None = None


class PeerTable:
    """All other nodes this node knows of, bounded by the members of the mesh."""

    def __init__(self, own: NodeId) -> None:
        self._own = own
        self._peers: dict[NodeId, Peer] = {}

    def members_are(self, nodes: Iterable[NodeId]) -> None:
        """Keeps exactly these nodes (without this one); forgets the others."""
        wanted = sorted(set(nodes) - {self._own})
        self._peers = {node: self._peers.get(node, Peer(node=node)) for node in wanted}

    def heard(self, node: NodeId, now_ms: int, hello: Hello | None = None) -> bool:
        """Notes a sign of life; True when the node was silent (or unknown) before."""
        peer = self._peers.get(node)
        if peer is None:
            return False
        was_silent = not self.is_alive(node, now_ms)
        if hello is not None:
            address = PeerAddress(
                node=node,
                hosts=hello.hosts[:HOSTS_MAX],
                control_port=hello.control_port,
                bulk_port=hello.bulk_port,
                join_port=hello.join_port,
            )
            peer = replace(peer, hello=hello, address=address)
        self._peers[node] = replace(peer, heard_ms=now_ms)
        return was_silent

    def hint(self, address: PeerAddress, now_ms: int) -> bool:
        """An address from somebody else; used while the node itself is silent.  True when it is news."""
        peer = self._peers.get(NodeId(address.node))
        if peer is None or self.is_alive(peer.node, now_ms):
            return False
        hosts = address.hosts[:HOSTS_MAX]
        bounded = replace(address, hosts=hosts)
        if not hosts or peer.address == bounded:
            return False
        self._peers[peer.node] = replace(peer, address=bounded)
        return True

    def get(self, node: NodeId) -> Peer | None:
        """The peer of this id, if it is a member and not this node itself."""
        return self._peers.get(node)

    def all(self) -> tuple[Peer, ...]:
        """Every peer, by node id."""
        return tuple(self._peers.values())

    def is_alive(self, node: NodeId, now_ms: int) -> bool:
        """Whether the node was heard within `SUSPECT_AFTER_MS`; this node always is."""
        if node == self._own:
            return True
        peer = self._peers.get(node)
        return (
            peer is not None
            and peer.heard_ms is not None
            and now_ms - peer.heard_ms <= SUSPECT_AFTER_MS
        )

    def known_addresses(self, now_ms: int) -> tuple[PeerAddress, ...]:
        """Addresses worth telling others: those of nodes heard lately."""
        return tuple(
            peer.address
            for peer in self._peers.values()
            if peer.address is not None and self.is_alive(peer.node, now_ms)
        )[:KNOWN_PEERS_MAX]
