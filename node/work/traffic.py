"""What films this node sends and receives, how fast its links were, and what others tell of theirs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from mesh.ids import NodeId
from mesh.limits import LinkRates
from mesh.transport import Counters
from node.gateway.models import Metric

_BYTES: Final = ("sent_bytes", "received_bytes")
_LIMITS: Final = ("limit_up", "limit_down")
_SPEEDS: Final = "speeds"
SPEEDS_TOLD_MAX: Final = 32
"""Links whose speed a hello tells: the fastest ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Asks the transfers of this node and the hellos of the others."""

    own: NodeId
    sent: Callable[[], Counters]
    received: Callable[[], Counters]
    speeds: Callable[[], Mapping[NodeId, int]]
    """Bytes a second that films came with lately, by the node that sent them."""
    rates: Callable[[], LinkRates]
    status_of: Callable[[NodeId], Mapping[str, object]]

    def bytes_of(self, node: NodeId) -> tuple[int, int]:
        """Film bytes that a node sent and received in all since its start."""
        if node == self.own:
            return (
                sum(peer.bytes_out for peer in self.sent().peers.values()),
                sum(peer.bytes_in for peer in self.received().peers.values()),
            )
        return self._pair(node, _BYTES)

    def limits_of(self, node: NodeId) -> tuple[int, int]:
        """Bytes a second that a node sends and receives at most; 0: no limit."""
        if node == self.own:
            return self.rates().node.up, self.rates().node.down
        return self._pair(node, _LIMITS)

    def speeds_of(self, node: NodeId) -> dict[NodeId, int]:
        """Bytes a second that films came to a node with lately, by the node that sent them."""
        if node == self.own:
            return dict(self.speeds())
        return speeds_in(self.status_of(node))

    def told(self) -> dict[str, object]:
        """What this node's hellos say."""
        fastest = sorted(self.speeds().items(), key=lambda pair: -pair[1])[:SPEEDS_TOLD_MAX]
        told: dict[str, object] = {_SPEEDS: tuple(fastest)} if fastest else {}
        told.update(zip(_BYTES, self.bytes_of(self.own), strict=True))
        told.update(zip(_LIMITS, self.limits_of(self.own), strict=True))
        return told

    def metrics(self, name_of: Mapping[str, str]) -> list[Metric]:
        """Bytes by peer and direction, and the speed of links."""
        found: list[Metric] = []
        for node, peer in self.sent().peers.items():
            found.append(_bytes(name_of.get(node, node), "sent", peer.bytes_out))
        for node, peer in self.received().peers.items():
            found.append(_bytes(name_of.get(node, node), "received", peer.bytes_in))
        for node, speed in self.speeds().items():
            found.append(
                Metric(
                    name="link_bytes_per_second",
                    kind="gauge",
                    help="How fast films came from a node lately.",
                    value=float(speed),
                    labels={"peer": name_of.get(node, node)},
                )
            )
        return found

    def _pair(self, node: NodeId, keys: tuple[str, str]) -> tuple[int, int]:
        told = self.status_of(node)
        first, second = (told.get(key) for key in keys)
        return (
            first if isinstance(first, int) and first >= 0 else 0,
            second if isinstance(second, int) and second >= 0 else 0,
        )


def speeds_in(status: Mapping[str, object]) -> dict[NodeId, int]:
    """What a hello says of speeds; what cannot be read is left out."""
    told = status.get(_SPEEDS)
    pairs = told if isinstance(told, tuple) else ()
    found: dict[NodeId, int] = {}
    for pair in pairs[:SPEEDS_TOLD_MAX]:
        match pair:
            case (str() as sender, int() as speed) if speed > 0:
                found[NodeId(sender)] = speed
            case _:
                pass
    return found


def _bytes(peer: str, direction: str, count: int) -> Metric:
    return Metric(
        name="transfer_bytes_total",
        kind="counter",
        help="Bytes of films and ledgers that went to and came from a node.",
        value=float(count),
        labels={"peer": peer, "direction": direction},
    )
