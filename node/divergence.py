"""Whether this replica is what the others are: rolling checksums at equal indexes compared.  Pure.

Every replica applies the same entries, so at one index all have one checksum.  Where they differ
the larger number is right; where two stand against each other, the coordinator is.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mesh.ids import NodeId

MARKS_TOLD: Final = 8
"""Checksums in one hello: the newest applied index, and the last multiples of `MARK_EVERY`."""
MARK_EVERY: Final = 1_024
"""Entries between two marks: busy replicas are never at the same index at the same moment."""
MARKS_MAX: Final = 64
"""Marks taken of another node's hello; more would be no replica of ours."""

Marks = Mapping[int, bytes]
"""Applied index → rolling checksum there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """At `index` this replica has another checksum than `others`."""

    index: int
    others: tuple[NodeId, ...]


def marks_wanted(applied_index: int) -> tuple[int, ...]:
    """The indexes whose checksums a node at `applied_index` tells, newest first."""
    last = applied_index - applied_index % MARK_EVERY
    marks = [last - MARK_EVERY * step for step in range(MARKS_TOLD - 1)]
    return tuple(dict.fromkeys(index for index in (applied_index, *marks) if index > 0))


def read_marks(told: object) -> Marks:
    """What another node's hello says of its checksums; what makes no sense is left out."""
    found: dict[int, bytes] = {}
    for one in told[:MARKS_MAX] if isinstance(told, tuple) else ():
        match one:
            case (int() as index, bytes() as checksum):
                found[index] = checksum
            case _:
                pass
    return found


def own_divergence(
    own: Marks, told: Mapping[NodeId, Marks], *, coordinator: NodeId | None, this: NodeId
) -> Divergence | None:
    """The newest index at which this replica is the wrong one; None while it agrees or nobody can say."""
    for index in sorted(own, reverse=True):
        said = {node: marks[index] for node, marks in told.items() if index in marks}
        if all(checksum == own[index] for checksum in said.values()):
            continue
        said[this] = own[index]
        if (right := _right(said, coordinator)) is not None and right != own[index]:
            others = sorted(node for node, checksum in said.items() if checksum == right)
            return Divergence(index=index, others=tuple(others))
    return None


def _right(said: Mapping[NodeId, bytes], coordinator: NodeId | None) -> bytes | None:
    (first, most), *rest = Counter(said.values()).most_common()
    if not rest or rest[0][1] < most:
        return first
    return said.get(coordinator) if coordinator is not None else None
