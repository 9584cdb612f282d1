"""How a node stands to work, told in its hellos: why it takes none now, its free disk, its links, its labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from ledger.placing import LABELS_MAX, is_label
from ledger.scheduler_view import NodeView
from mesh.ids import NodeId
from node.work.traffic import speeds_in

_CLOSED: Final = "closed"
_FREE: Final = "disk_free"
_LABELS: Final = "labels"
_OWNS: Final = "planning"
CLOSED_CHARS_MAX: Final = 200
"""A sentence; hellos are small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """`closed` is empty while the node takes work; `free_bytes` is None where it was not told.

    `links` are bytes a second that films came with lately, by the node that sent them; `labels` are
    what its owner says of it, `planning` is what keeps it from planning a film that lies on it.
    """

    closed: str = ""
    free_bytes: int | None = None
    links: Mapping[NodeId, int] = field(default_factory=dict[NodeId, int])
    labels: tuple[str, ...] = ()
    planning: str = ""


def told_standing(
    closed: str, free_bytes: int, labels: Sequence[str] = (), planning: str = ""
) -> dict[str, object]:
    """What a node's hello says of it."""
    told: dict[str, object] = {_FREE: free_bytes}
    if closed:
        told[_CLOSED] = closed[:CLOSED_CHARS_MAX]
    if labels:
        told[_LABELS] = tuple(labels)
    if planning:
        told[_OWNS] = planning[:CLOSED_CHARS_MAX]
    return told


def standing_of(status: Mapping[str, object]) -> Standing:
    """What a hello says; what cannot be read counts as not told."""
    closed, free, labels = status.get(_CLOSED), status.get(_FREE), status.get(_LABELS)
    planning = status.get(_OWNS)
    return Standing(
        closed=closed[:CLOSED_CHARS_MAX] if isinstance(closed, str) else "",
        free_bytes=free if isinstance(free, int) and free >= 0 else None,
        links=speeds_in(status),
        labels=tuple(one for one in labels if isinstance(one, str) and is_label(one))[:LABELS_MAX]
        if isinstance(labels, tuple)
        else (),
        planning=planning[:CLOSED_CHARS_MAX] if isinstance(planning, str) else "",
    )


def standing_as(node: NodeView, standing: Standing) -> NodeView:
    """The scheduler's view of a node with what it says of itself."""
    return replace(
        node,
        closed=node.closed or standing.closed,
        free_bytes=standing.free_bytes,
        links={str(sender): speed for sender, speed in standing.links.items()},
        labels=standing.labels,
    )
