"""When the packets of an assembled film are decoded and shown: pure arithmetic on the contract.

The n-th presented frame gets the n-th time of the source, whatever the encoder wrote; decode times
follow from it by one rule.  So a seam between chunks is no place of its own.
"""

from collections.abc import Sequence


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
