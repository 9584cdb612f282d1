"""Whether this replica is what the others are: rolling checksums at equal indexes compared.  Pure.

Every replica applies the same entries, so at one index all have one checksum.  Where they differ
the larger number is right; where two stand against each other, the coordinator is.
"""

from collections import Counter
from collections.abc import Callable, Mapping
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


class OwnMarks:
    """The checksums of this replica that it can still compare: the newest, and multiples of `MARK_EVERY`."""

    def __init__(self, checksum_at: Callable[[int], bytes | None]) -> None:
        self._checksum_at = checksum_at
        self._marks: dict[int, bytes] = {}
        self._applied = 0

    def applied(self, index: int) -> None:
        """The ledger is at `index`; called after each batch, which is shorter than what it remembers."""
        for mark in range(self._applied - self._applied % MARK_EVERY, index + 1, MARK_EVERY):
            if mark > self._applied and (checksum := self._checksum_at(mark)) is not None:
                self._marks[mark] = checksum
        for old in list(self._marks)[:-MARKS_MAX]:
            del self._marks[old]
        self._applied = index

    def replaced(self, index: int) -> None:
        """The ledger is another one now, and at `index`: what was known of the old one is void."""
        self._marks.clear()
        self._applied = index

    def all(self) -> Marks:
        """Everything that can be compared here."""
        newest = self._checksum_at(self._applied) if self._applied else None
        return self._marks if newest is None else {**self._marks, self._applied: newest}

    def told(self) -> tuple[tuple[int, bytes], ...]:
        """What a hello tells."""
        return tuple(sorted(self.all().items())[-MARKS_TOLD:])

    def lookup(self, index: int) -> bytes | None:
        """The checksum here at an index that another node told."""
        return self._marks.get(index) or self._checksum_at(index)


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
    lookup: Callable[[int], bytes | None],
    told: Mapping[NodeId, Marks],
    *,
    coordinator: NodeId | None,
    this: NodeId,
) -> Divergence | None:
    """The newest index at which this replica is the wrong one; None while it agrees or nobody can say."""
    for index in sorted({index for marks in told.values() for index in marks}, reverse=True):
        own = lookup(index)
        said = {node: marks[index] for node, marks in told.items() if index in marks}
        if own is None or all(checksum == own for checksum in said.values()):
            continue
        said[this] = own
        if (right := _right(said, coordinator)) is not None and right != own:
            others = sorted(node for node, checksum in said.items() if checksum == right)
            return Divergence(index=index, others=tuple(others))
    return None


def _right(said: Mapping[NodeId, bytes], coordinator: NodeId | None) -> bytes | None:
    (first, most), *rest = Counter(said.values()).most_common()
    if not rest or rest[0][1] < most:
        return first
    return said.get(coordinator) if coordinator is not None else None
