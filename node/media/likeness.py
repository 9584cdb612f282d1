"""Whether frames of a result show what the same frames of its film show: pure arithmetic on tiny pictures.

Decoding, counting and comparing times prove that a result is whole; none of them sees that it is another
film, that its chunks changed places, or that a chip painted half of it grey.  A few frames are compared:
each is turned upright and shrunk to 32 by 24 points, which no honest encoder changes much, however few
bits it gets.  Thresholds lie far from what honest ones do (node/DESIGN.md, Likeness): a result that is
refused wrongly would be made again and again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import sqrt
from operator import mul, sub
from typing import Final

WIDTH: Final = 32
HEIGHT: Final = 24
POINTS: Final = WIDTH * HEIGHT
LIKE_MIN: Final = 0.5
"""Correlation of two brightnesses below which they are different pictures; honest ones have 0.95 and more."""
MOVES_MIN: Final = 0.6
"""The same of what changes within some frames: at most 0.2 at two places of one film mostly, 0.8 and more in honest
results (of pure noise at the worst quality that is looked at)."""
MOVING: Final = 4.0
"""Levels of 255 (standard deviation) that must change for it."""
CRF_MAX: Final = 35
AV1_CRF_MAX: Final = 50
"""Of worse quality nothing is said: at 51 x264 and x265 make another picture of noise."""
CLEARLY: Final = 0.5
"""Part of the distance between two frames of the film by which the result must be nearer to the other:
1 for that very frame, -1 for the frame itself, whatever noise the encoder added to both."""
APART_MIN: Final = 0.1
"""Distance of two frames (0 to 2) below which they are not told apart: so little may be skipped by an encoder."""
FLAT: Final = 8.0
"""Levels of 255 (standard deviation) below which a picture, or a part of it, has nothing to be known by."""
EMPTIED: Final = 8.0
"""How many times less of it a part of the result must show to count as empty."""
PLACE_US: Final = 60_000_000
PLACES_MAX: Final = 12
"""One a minute of film, in the middle of which a decoder needs some hundred frames to come to it."""


def places(span_us: int, seed: str) -> tuple[int, ...]:
    """Where a film that lasts so long is looked at: at its beginning, and somewhere in each of some equal parts.

    `seed` is the result's digest: nobody knows the places before the result is made.
    """
    count = min(max(span_us // PLACE_US, 1), PLACES_MAX)
    dice = blake2b(seed.encode(), digest_size=4 * count).digest()
    drawn = (int.from_bytes(dice[4 * n : 4 * n + 4], "big") for n in range(count))
    return (0, *((n * span_us + (span_us * each >> 32)) // count for n, each in enumerate(drawn)))


@dataclass(frozen=True, slots=True)
class Thumb:
    """A tiny picture: brightness and both colours, a byte a point, row by row."""

    luma: bytes
    blue: bytes
    red: bytes


def differs(made: Thumb, film: Sequence[Thumb], own: int) -> str:
    """What is wrong with a frame that should show `film[own]`; "" where nothing is, or nothing can be told.

    The others of `film` are its neighbours in time.
    """
    wanted = film[own]
    if spread(wanted.luma) < FLAT:
        return ""  # black, or nearly: nothing to be known by
    like = alike(made.luma, wanted.luma)
    if like < LIKE_MIN:
        return f"it shows another picture (likeness {max(like, 0.0):.2f})"
    part = emptied(made.luma, wanted.luma)
    if part:
        return f"the {part} half of its picture is empty"
    if any(clearly_other(made, wanted, other) for at, other in enumerate(film) if at != own):
        return "it shows another frame, beside the one that is due"
    return colours(made, wanted)


def moves_otherwise(made: tuple[Thumb, Thumb], film: tuple[Thumb, Thumb]) -> bool:
    """Whether what changes between two frames is not what changes between the same two of the film."""
    wanted = _change(film)
    return spread(wanted) >= MOVING and alike(_change(made), wanted) < MOVES_MIN


def _change(pair: tuple[Thumb, Thumb]) -> list[int]:
    return list(map(sub, pair[1].luma, pair[0].luma))


def tells(codec: str, crf: int) -> bool:
    """Whether results of this quality are near enough to their film to be told from others."""
    if codec in ("ffv1", "prores"):
        return True
    return crf <= (AV1_CRF_MAX if codec == "av1" else CRF_MAX)


def spread(points: Sequence[int]) -> float:
    """Standard deviation, in levels."""
    mean = sum(points) / len(points)
    return sqrt(max(0.0, sum(map(mul, points, points)) / len(points) - mean * mean))


def alike(one: Sequence[int], other: Sequence[int]) -> float:
    """Correlation, -1 to 1; 0 where one of them is flat.  Tone mapping and brightness do not matter."""
    size = len(one)
    a, b = sum(one), sum(other)
    both = sum(map(mul, one, other)) - a * b / size
    scale = (sum(map(mul, one, one)) - a * a / size) * (sum(map(mul, other, other)) - b * b / size)
    return both / sqrt(scale) if scale > 0 else 0.0


def distance(one: bytes, other: bytes) -> float:
    """Between two pictures of equal brightness and contrast: 0 for the same, 2 for its negative."""
    return sqrt(max(0.0, 2 - 2 * alike(one, other)))


def clearly_other(made: Thumb, wanted: Thumb, other: Thumb) -> bool:
    """Whether a frame lies so much nearer to another frame of the film that it must be that one."""
    apart = distance(wanted.luma, other.luma)
    if apart < APART_MIN:
        return False
    nearer = distance(made.luma, wanted.luma) - distance(made.luma, other.luma)
    return nearer > CLEARLY * apart


def emptied(made: bytes, wanted: bytes) -> str:
    """Which half is empty in the result and is not in the film; "" where none is."""
    halves = {
        "upper": slice(0, POINTS // 2),
        "lower": slice(POINTS // 2, POINTS),
    }
    sides = {"left": range(WIDTH // 2), "right": range(WIDTH // 2, WIDTH)}
    for name, part in halves.items():
        if _empty(made[part], wanted[part]):
            return name
    for name, columns in sides.items():
        one, other = (
            bytes(points[row + column] for row in range(0, POINTS, WIDTH) for column in columns)
            for points in (made, wanted)
        )
        if _empty(one, other):
            return name
    return ""


def _empty(made: bytes, wanted: bytes) -> bool:
    there = spread(wanted)
    return there >= FLAT and spread(made) * EMPTIED < there


def colours(made: Thumb, wanted: Thumb) -> str:
    """Whether the colours are gone, or the two exchanged."""
    own, swapped = wanted.blue + wanted.red, wanted.red + wanted.blue
    seen = made.blue + made.red
    if _empty(seen, own):
        return "its colours are gone"
    apart = off(own, swapped)
    if apart >= FLAT and off(seen, own) - off(seen, swapped) > CLEARLY * apart:
        return "its colours are exchanged"
    return ""


def off(one: bytes, other: bytes) -> float:
    """Mean difference, in levels."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)
