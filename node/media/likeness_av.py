"""Reads a result and compares a few of its frames with its film: run as a child process around PyAV.

`python -m node.media.likeness_av FILM FIRST PLACES RESULT` prints what `probe_av` prints of RESULT, and
`unlike`: what is wrong with the frames at one of the PLACES (microseconds from the result's first frame, by
commas; 0 is its beginning).  FIRST is when the result's first frame is shown in the film, in ticks of it, or
`-` for the film's own first.  One child for both: starting one takes longer than looking.
"""

import sys
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Final

import av.logging
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation

from node.media.join_av import moving
from node.media.likeness import HEIGHT, WIDTH, Thumb, differs, moves_otherwise
from node.media.probe_av import MADE_PACKETS, FaultError, answered_probe, describe, open_film

FRAMES: Final = 8
FAULTS_MIN: Final = 2
"""Frames at one place that must be wrong: exchanged ones are two, and one alone may be an encoder's slip."""
BESIDE: Final = 2
"""Frames of the film on each side that a frame is compared with as well."""
AHEAD_S: Final = 1
"""How much earlier than a place reading begins: a decoder that starts there shows the first pictures wrongly, or not."""
READ_MAX: Final = 2_000
"""Frames decoded on the way to one place; where keyframes are farther apart, less is compared."""
QUIET_LEVEL: Final = -8
Timed = tuple[Fraction, Thumb]


def shown(film: InputContainer) -> Iterator[VideoFrame]:
    """Frames from where the film stands; what cannot be decoded is left out."""
    stream = moving(film)
    try:
        for packet in film.demux(stream):
            try:
                frames = stream.codec_context.decode(packet if packet.size else None)
            except FFmpegError:
                continue
            yield from (frame for frame in frames if not frame.is_corrupt)
            if not packet.size:
                return
    except FFmpegError:
        return


def thumb(frame: VideoFrame) -> Thumb:
    """The frame, upright and tiny."""
    turns = round(frame.rotation / 90) % 4
    width, height = (HEIGHT, WIDTH) if turns % 2 else (WIDTH, HEIGHT)
    small = frame.reformat(
        width=width, height=height, format="yuv444p", interpolation=Interpolation.AREA
    )
    luma, blue, red = (
        upright(bytes(plane), plane.line_size, (width, height), turns) for plane in small.planes
    )
    return Thumb(luma, blue, red)


def upright(points: bytes, line: int, size: tuple[int, int], turns: int) -> bytes:
    """The rows without their padding, turned to the left by so many quarters."""
    width, height = size
    rows = [points[at * line : at * line + width] for at in range(height)]
    for _ in range(turns):
        rows = [bytes(column) for column in zip(*rows, strict=True)][::-1]
    return b"".join(rows)


class Film:
    """One of the two, and when its first frame that counts is shown."""

    def __init__(self, path: str, first: int | None) -> None:
        self.path = path
        with open_film(path) as film:
            base = moving(film).time_base
            assert base is not None
            self.base = base
            frame = next(shown(film), None)
            start = None if frame is None else frame.pts
            self.ordered = film.format.name == "avi" or start is None
            """Its times tell nothing: frames are taken as they come."""
        self.inside = first is not None
        self.first = first if first is not None else start or 0

    def near(self, place: Fraction, ahead: int, count: int) -> list[Timed]:
        """`count` frames from `place` on, and two before, by their time from the film's first."""
        before: deque[tuple[Fraction, VideoFrame]] = deque(maxlen=BESIDE)
        found: list[Timed] = []
        with open_film(self.path) as film:
            wanted = self.first + round((place - ahead) / self.base)
            if self.inside or wanted > self.first:
                film.seek(wanted, stream=moving(film), backward=True)
            for number, frame in enumerate(shown(film)):
                at = Fraction(0) if frame.pts is None else (frame.pts - self.first) * self.base
                if at < place and not self.ordered:
                    before.append((at, frame))
                else:
                    found.append((at, thumb(frame)))
                if len(found) >= count or number > READ_MAX:
                    break
        return [*((at, thumb(frame)) for at, frame in before), *found]


def faults_at(film: Film, made: Film, place: Fraction) -> tuple[int, list[str]]:
    """How many frames of the result were compared there, and what is wrong with which."""
    if place > 0 and film.ordered:
        return 0, []
    try:
        seen = [one for one in made.near(place, 0, FRAMES) if one[0] >= place]
        wanted = film.near(place, AHEAD_S if place > 0 else 0, FRAMES + BESIDE)
    except FFmpegError:
        return 0, []  # some demuxers do not seek; both were read from end to end before
    slack = max(film.base, made.base)
    faults: list[str] = []
    pairs: list[tuple[Thumb, Thumb]] = []
    for number, (at, picture) in enumerate(seen):
        if film.ordered:
            own = number
        else:
            own = min(range(len(wanted)), key=lambda n: abs(wanted[n][0] - at), default=0)
        if own >= len(wanted) or (not film.ordered and abs(wanted[own][0] - at) > slack):
            continue
        pairs.append((picture, wanted[own][1]))
        low = max(0, own - BESIDE)
        around = [one for _, one in wanted[low : own + BESIDE + 1]]
        fault = differs(picture, around, own - low)
        if fault:
            faults.append(f"{float(at):.3f} s: {fault}")
    if not pairs:
        return 0, []
    (first, film_first), (last, film_last) = pairs[0], pairs[-1]
    if len(faults) < FAULTS_MIN and moves_otherwise((first, last), (film_first, film_last)):
        faults = [f"{float(place):.3f} s: it does not move as the film does"] * FAULTS_MIN
    return len(pairs), faults


def unlike(source: str, result: str, first: str, places: list[int]) -> str:
    """What is wrong at the first place where something is; "" where nothing was found."""
    film, made = Film(source, None if first == "-" else int(first)), Film(result, None)
    for place in places:
        frames, faults = faults_at(film, made, Fraction(place, 1_000_000))
        if len(faults) >= min(FAULTS_MIN, frames) > 0:
            return faults[0]
    return ""


def run(words: list[str]) -> dict[str, Any]:
    """Does what the words say; what it prints."""
    source, first, places, result = words
    facts = describe(result, MADE_PACKETS)
    # What decoders say in the middle of a film is no complaint about the result.
    av.logging.set_libav_level(QUIET_LEVEL)
    try:
        return facts | {
            "unlike": unlike(source, result, first, [int(at) for at in places.split(",")])
        }
    except (FaultError, FFmpegError) as fault:
        return facts | {"unlike": f"the film cannot be read beside it: {fault}"}


def main(words: list[str]) -> int:
    """Prints one JSON object; the exit code."""
    return answered_probe(run, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
