"""When the packets of a film are decoded and shown: pure arithmetic on the contract.

The n-th presented frame gets the n-th time of the source, whatever the encoder wrote; decode times
follow from it by one rule.  So a seam between chunks is no place of its own.
"""

from collections import Counter
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


GAPS_MAX: Final = 64
"""Different distances between frames: a film with more has no constant rate, and is not judged by it."""
EVEN_PERMILLE: Final = 980
STEP_MIN: Final = 2
"""Ticks between frames below which a rounded clock puts two on one time by itself."""


def misplaced(times: Iterable[int]) -> int:
    """How many frames lie on their neighbour's time and left their own place empty; times in order of presentation."""
    places = Places()
    for at in times:
        places.add(at)
    return places.emptied()


class Places:
    """Looks for frames that lie exactly on a neighbour's time while the place of their own is empty.

    One bit turned over in a table of times does it.  Only films of a constant rate can tell: of others a
    doubled time and a hole beside it are a habit of recorders.  Times come in order of presentation.
    """

    def __init__(self) -> None:
        self._last: int | None = None
        self._gaps: Counter[int] = Counter()
        self._doubled: Counter[tuple[int, int]] = Counter()
        """Frames at one time, by the gaps before and behind them."""
        self._before = self._gap = 0
        self._uneven = False

    def add(self, at: int) -> None:
        """The next frame's time."""
        last, self._last = self._last, at
        if last is None or self._uneven:
            return
        gap = at - last
        if self._gap == 0 and self._before and gap > 0:
            self._doubled[self._before, gap] += 1
        self._before, self._gap = self._gap, gap
        self._gaps[gap] += 1
        self._uneven = len(self._gaps) > GAPS_MAX

    def emptied(self) -> int:
        """How many frames lie on their neighbour's time and left their own place empty."""
        if self._uneven or not self._gaps:
            return 0
        step = max(self._gaps, key=lambda gap: self._gaps[gap])
        even = sum(count for gap, count in self._gaps.items() if abs(gap - step) <= 1)
        found = sum(
            count
            for gaps, count in self._doubled.items()
            if abs(min(gaps) - step) <= 1 and abs(max(gaps) - 2 * step) <= STEP_MIN
        )
        rest = self._gaps.total() - 2 * found  # each has spoiled two
        return found if step >= STEP_MIN and even * 1000 >= rest * EVEN_PERMILLE else 0


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
