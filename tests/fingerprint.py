"""Which frame of a source a frame of a result shows: a fingerprint that survives encoding.

Each frame is shrunk to 32 by 24 grey points; a frame of the result is the source's frame to which it
lies nearest among its neighbours.  A doubled, lost or exchanged frame shows as another number.
"""

from fractions import Fraction
from pathlib import Path

import av

WIDTH, HEIGHT = 32, 24
NEIGHBOURS = 4
Shown = tuple[Fraction, bytes]


def frames_of(path: Path) -> list[Shown]:
    """Time from the first frame and fingerprint of each frame, in order of presentation."""
    with av.open(str(path)) as film:
        stream = next(v for v in film.streams.video if not v.disposition.value & 0x400)
        base = stream.time_base
        assert base is not None
        found: list[tuple[int, bytes]] = []
        for frame in film.decode(stream):
            assert frame.pts is not None
            plane = frame.reformat(width=WIDTH, height=HEIGHT, format="gray").planes[0]
            rows = memoryview(bytes(plane))
            stride = plane.line_size
            found.append(
                (frame.pts, b"".join(rows[y * stride : y * stride + WIDTH] for y in range(HEIGHT)))
            )
    found.sort()
    return [((pts - found[0][0]) * base, print_) for pts, print_ in found]


def numbers_of(result: list[Shown], source: list[Shown]) -> list[int]:
    """For each frame of the result, the number of the source's frame that it shows."""
    numbers: list[int] = []
    for at, (_, shown) in enumerate(result):
        near = range(max(0, at - NEIGHBOURS), min(len(source), at + NEIGHBOURS + 1))
        numbers.append(min(near, key=lambda n: distance(shown, source[n][1]), default=-1))
    return numbers


def distance(one: bytes, other: bytes) -> int:
    """Sum of differences of all points."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True))


def farthest(result: list[Shown], source: list[Shown]) -> Fraction:
    """The largest difference in time, in seconds."""
    pairs = zip(result, source, strict=True)
    return max(abs(a[0] - b[0]) for a, b in pairs)
