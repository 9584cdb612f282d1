"""How a node stands to work, told in its hellos: why it takes none now, its free disk, its links."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from mesh.ids import NodeId
from node.work.traffic import speeds_in

_CLOSED: Final = "closed"
_FREE: Final = "disk_free"
CLOSED_CHARS_MAX: Final = 200
"""A sentence; hellos are small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """`closed` is empty while the node takes work; `free_bytes` is None where it was not told.

    `links` are bytes a second that films came with lately, by the node that sent them.
    """

    closed: str = ""
    free_bytes: int | None = None
    links: Mapping[NodeId, int] = field(default_factory=dict[NodeId, int])


def told_standing(closed: str, free_bytes: int) -> dict[str, object]:
    """What a node's hello says of it."""
    told: dict[str, object] = {_FREE: free_bytes}
    if closed:
        told[_CLOSED] = closed[:CLOSED_CHARS_MAX]
    return told


def standing_of(status: Mapping[str, object]) -> Standing:
    """What a hello says; what cannot be read counts as not told."""
    closed, free = status.get(_CLOSED), status.get(_FREE)
    return Standing(
        closed=closed[:CLOSED_CHARS_MAX] if isinstance(closed, str) else "",
        free_bytes=free if isinstance(free, int) and free >= 0 else None,
        links=speeds_in(status),
    )
