"""Notices that two processes speak with one key: the data directory of a node was copied.

A process draws an incarnation at its start and says it in every hello.  After a restart the new one
replaces the old one for good; of two that run at once each speaks again after the other.
"""

from dataclasses import dataclass
from typing import Final

from mesh.ids import NodeId

RETURNS_MIN: Final = 2
"""A hello of the old process may arrive late, once: it is sent to nobody who waits for it."""
MEMORY_MS: Final = 30_000
"""Fifteen hellos: who was not heard twice for so long has stopped."""


@dataclass(slots=True)
class _Voice:
    present: str
    former: str = ""
    returns: int = 0
    returned_ms: int = 0


class TwinWatch:
    """The incarnations that were heard of each node; at most one entry a member."""

    def __init__(self) -> None:
        self._voices: dict[NodeId, _Voice] = {}

    def heard(self, node: NodeId, incarnation: str, now_ms: int) -> bool:
        """Notes a hello; True when it shows for the first time that the node has a twin."""
        voice = self._voices.setdefault(node, _Voice(incarnation))
        if incarnation == voice.present:
            return False
        if now_ms - voice.returned_ms > MEMORY_MS:
            voice.returns = 0
        if incarnation == voice.former:
            voice.returns, voice.returned_ms = voice.returns + 1, now_ms
        else:
            voice.returns = 0
        voice.former, voice.present = voice.present, incarnation
        return voice.returns == RETURNS_MIN

    def twins(self, now_ms: int) -> tuple[NodeId, ...]:
        """The nodes that two processes speak for, as heard lately."""
        return tuple(
            sorted(
                node
                for node, voice in self._voices.items()
                if voice.returns >= RETURNS_MIN and now_ms - voice.returned_ms <= MEMORY_MS
            )
        )

    def members_are(self, nodes: frozenset[NodeId]) -> None:
        """Forgets all but these."""
        self._voices = {node: voice for node, voice in self._voices.items() if node in nodes}
