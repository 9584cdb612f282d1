"""Which frame of a source a frame of a result shows: a fingerprint that survives encoding.

Each frame is turned upright, shrunk to 32 by 24 grey points, and freed of its brightness and contrast
(tone mapping changes both).  A frame of the result shows the source's frame of the same number unless
it clearly lies nearer to a neighbour of that; a doubled, lost or exchanged frame shows as another number.
"""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 32, 24
NEIGHBOURS = 4
CLEARLY = 0.5
"""Part of the distance between two frames of the source by which the result must be nearer to the other:
1 for that very frame, -1 for the frame itself, whatever noise the encoder added to both."""
Print = NDArray[np.float32]
Shown = tuple[Fraction, Print]


def frames_of(path: Path) -> list[Shown]:
    """Time from the first frame and fingerprint of each frame, in order of presentation."""
    with av.open(str(path)) as film:
        stream = next(v for v in film.streams.video if not v.disposition.value & 0x400)
        base = stream.time_base
        assert base is not None
        found: list[tuple[int, Print]] = []
        for frame in film.decode(stream):
            assert frame.pts is not None
            found.append((frame.pts, print_of(frame)))
    found.sort(key=lambda shown: shown[0])
    return [((pts - found[0][0]) * base, print_) for pts, print_ in found]


def print_of(frame: Any) -> Print:
    """The fingerprint of one decoded frame."""
    turns = round(frame.rotation / 90) % 4
    width, height = (HEIGHT, WIDTH) if turns % 2 else (WIDTH, HEIGHT)
    plane = frame.reformat(width=width, height=height, format="gray").planes[0]
    rows = np.frombuffer(bytes(plane), np.uint8).reshape(height, plane.line_size)
    grey = np.rot90(rows[:, :width], turns).astype(np.float32).ravel()
    grey -= grey.mean()
    return grey / max(float(np.linalg.norm(grey)), 1.0)


def numbers_of(result: list[Shown], source: list[Shown]) -> list[int]:
    """For each frame of the result, the number of the source's frame that it shows."""
    numbers: list[int] = []
    for at, (_, shown) in enumerate(result):
        near = range(max(0, at - NEIGHBOURS), min(len(source), at + NEIGHBOURS + 1))
        best = min(near, key=lambda n: distance(shown, source[n][1]), default=-1)
        numbers.append(at if at in near and not _clearly(shown, source, at, best) else best)
    return numbers


def _clearly(shown: Print, source: list[Shown], at: int, best: int) -> bool:
    """Whether a frame lies so much nearer to another frame of the source that it must be that one."""
    own, other = source[at][1], source[best][1]
    return distance(shown, own) - distance(shown, other) > CLEARLY * distance(own, other)


def distance(one: Print, other: Print) -> float:
    """Between two fingerprints; 0 for the same picture."""
    return float(np.linalg.norm(one - other))


def farthest(result: list[Shown], source: list[Shown]) -> Fraction:
    """The largest difference in time, in seconds."""
    pairs = zip(result, source, strict=True)
    return max((abs(a[0] - b[0]) for a, b in pairs), default=Fraction(0))
