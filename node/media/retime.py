"""When the packets of a film are decoded and shown: pure arithmetic on the contract.

The n-th presented frame gets the n-th time of the source, whatever the encoder wrote; decode times
follow from it by one rule.  So a seam between chunks is no place of its own.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from heapq import heappop, heappush, heappushpop
from itertools import zip_longest
from typing import Final


def reorder_depth(pts: Sequence[int]) -> int:
    """How many packets at most stand before one that is shown earlier; 0 without reordering.

    `pts` in decode order, each once.
    """
    ranks = ranks_of(pts)
    return max((at - rank for at, rank in enumerate(ranks)), default=0)


def ranks_of(pts: Sequence[int]) -> list[int]:
    """The place of each packet in order of presentation, in decode order."""
    order = sorted(range(len(pts)), key=pts.__getitem__)
    ranks = [0] * len(order)
    for rank, at in enumerate(order):
        ranks[at] = rank
    return ranks


def dts_of(times: Sequence[int], depth: int) -> list[int]:
    """Decode times for frames presented at `times` (sorted, each once) with reorder depth `depth`.

    dts[n] = times[n - depth]: strictly growing and never later than the frame's own time, because a
    packet at decode position n is shown at position n - depth or later.  Before the first frame the
    first distance is repeated.
    """
    if not times:
        return []
    step = times[1] - times[0] if len(times) > 1 else 1
    before = [times[0] - step * back for back in range(depth, 0, -1)]
    return (before + list(times))[: len(times)]


REORDERED_MAX: Final = 256
"""Frames that may be on their way at once: no codec shows one later than 32 fields after it is stored."""


def in_order(times: Iterable[int], window: int = REORDERED_MAX) -> Iterator[int]:
    """Times in order of presentation, from times in decode order, holding `window` of them at most.

    One that comes later than that stays where it comes: it goes back in time, as a damaged table does.
    """
    waiting: list[int] = []
    for at in times:
        if len(waiting) < window:
            heappush(waiting, at)
        else:
            yield heappushpop(waiting, at)
    while waiting:
        yield heappop(waiting)


@dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """How far the frames of a result are from the times that they have in its source."""

    frames: int
    wanted: int
    off: Fraction
    """Of the farthest one, in seconds."""
    at: int
    """Its number, counted from 0."""


def compare_times(
    made: Iterable[int], made_base: Fraction, wanted: Iterable[int], wanted_base: Fraction
) -> Apart:
    """Compares frame by frame, both counted from their first; `made` and `wanted` in order of presentation."""
    frames = expected = at = farthest = 0
    zero: tuple[int, int] | None = None
    # Whole numbers of the finest common unit: fractions for each frame take ten times as long.
    unit = made_base.denominator * wanted_base.denominator
    scale = (int(made_base * unit), int(wanted_base * unit))
    for one, other in zip_longest(made, wanted):
        frames += one is not None
        expected += other is not None
        if one is None or other is None:
            continue
        zero = zero or (one, other)
        distance = abs((one - zero[0]) * scale[0] - (other - zero[1]) * scale[1])
        if distance > farthest:
            farthest, at = distance, expected - 1
    return Apart(frames=frames, wanted=expected, off=Fraction(farthest, unit), at=at)
