"""Compares the time of each frame of a result, and where its sounds begin, with its source: run as a child process around PyAV.

`python -m node.media.times_av FILM RESULT HOW [SOUND...]` reads both beside each other and holds some hundred
times of each, however long they are.  HOW is `packets`, or `decoding` for films whose packets are not
frames.  Each SOUND is the index of a stream of the film that is kept, in the order of the result's sounds.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from av.audio.frame import AudioFrame
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from node.media.join_av import moving
from node.media.probe_av import answered, open_film, packets_of
from node.media.retime import compare_times, in_order


class TimelessError(Exception):
    """A frame of the source tells no time, so there is nothing to compare."""


@dataclass(slots=True)
class Contradictions:
    """What a sound film's times never say."""

    count: int = 0
    decoded: int | None = None
    shown: int | None = None

    def packet(self, packet: "Packet[Any]") -> None:
        """Counts one that is decoded no later than the one before it, or later than it is shown."""
        dts = packet.dts
        if dts is not None:
            late = packet.pts is not None and packet.pts < dts
            self.count += late or (self.decoded is not None and dts <= self.decoded)
            self.decoded = dts

    def looked_at(self, times: Iterator[int]) -> Iterator[int]:
        """The same times, in order of presentation; counts frames that are shown no later than another."""
        for at in times:
            self.count += self.shown is not None and at <= self.shown
            self.shown = at
            yield at


def by_packets(film: InputContainer, found: Contradictions) -> Iterator[int]:
    """Presentation times of the packets that are shown, in decode order."""
    for packet in packets_of(film, moving(film)):
        found.packet(packet)
        if packet.is_discard:
            continue
        if packet.pts is None:
            raise TimelessError
        yield packet.pts


def by_decoding(film: InputContainer, found: Contradictions) -> Iterator[int]:
    """Presentation times of the pictures that a decoder shows, as it gives them."""
    stream = moving(film)
    stream.thread_type = "AUTO"
    for packet in packets_of(film, stream):
        found.packet(packet)
        yield from times_of(decoded(stream, packet))
    yield from times_of(decoded(stream, None))


def decoded(stream: VideoStream, packet: "Packet[Any] | None") -> list[VideoFrame]:
    """What a packet, or the end, gives; what cannot be decoded was judged by the probe."""
    try:
        return stream.codec_context.decode(packet)
    except FFmpegError:
        return []


def times_of(frames: list[VideoFrame]) -> Iterator[int]:
    """When they are shown."""
    for frame in frames:
        if frame.pts is None:
            raise TimelessError
        yield frame.pts


def heard(path: str, wanted: list[int] | None) -> list[tuple[Fraction, Fraction] | None]:
    """When each sound begins, from the first picture on, as a decoder gives it, and how long one frame of it is.

    `wanted`: indexes of streams; None: all sounds.  Priming does not count: decoders leave out what the
    container tells of it.
    """
    found: dict[int, tuple[Fraction, Fraction]] = {}
    with open_film(path) as film:
        sounds = [s.index for s in film.streams.audio] if wanted is None else wanted
        picture = moving(film).index
        streams = [film.streams[index] for index in sounds]
        first: Fraction | None = None
        for packet in film.demux([film.streams[picture], *streams]) if streams else ():
            if packet.stream_index in found or (
                packet.stream_index == picture and first is not None
            ):
                continue
            for frame in whatever(packet):
                if frame.pts is None or frame.time_base is None:
                    continue
                at = frame.pts * frame.time_base
                if packet.stream_index == picture:
                    first = at if first is None else min(first, at)
                elif isinstance(frame, AudioFrame):
                    long = Fraction(frame.samples, frame.sample_rate or 1)
                    found.setdefault(packet.stream_index, (at, long))
            if first is not None and len(found) == len(sounds):
                break
    if first is None:
        return [None] * len(sounds)
    begun = [found.get(index) for index in sounds]
    return [None if one is None else (one[0] - first, one[1]) for one in begun]


def whatever(packet: "Packet[Any]") -> "list[Any]":
    """What a packet of any kind gives."""
    try:
        return packet.decode()
    except FFmpegError:
        return []


def sounds_off(source: str, result: str, wanted: list[int]) -> tuple[float, float]:
    """Of the sound that begins farthest from its place: how much later, and how long a frame of it is, in microseconds."""
    worst = (0.0, 0.0)
    pairs = zip(heard(result, None), heard(source, wanted), strict=False)
    for made, due in pairs:
        if made is None or due is None:
            continue
        off, frame = float((made[0] - due[0]) * 1_000_000), float(made[1] * 1_000_000)
        worst = max(worst, (off, frame), key=lambda one: abs(one[0]))
    return worst


def compared(source: str, result: str, how: str, sounds: list[int]) -> dict[str, Any]:
    """The facts of `node.media.judge.TimesFound`."""
    late, frame = sounds_off(source, result, sounds)
    found = Contradictions()
    with open_film(source) as film, open_film(result) as made:
        bases = Fraction(moving(made).time_base or 0), Fraction(moving(film).time_base or 0)
        read = by_packets if how == "packets" else by_decoding
        try:
            apart = compare_times(
                in_order(by_packets(made, Contradictions())),
                bases[0],
                found.looked_at(in_order(read(film, found))),
                bases[1],
            )
        except TimelessError:
            return {"timeless": True, "sound_off_us": late, "sound_frame_us": frame}
    return {
        "frames": apart.frames,
        "wanted": apart.wanted,
        "off_us": float(apart.off * 1_000_000),
        "at": apart.at,
        "tick_us": float(max(bases) * 1_000_000),
        "contradictions": found.count,
        "sound_off_us": late,
        "sound_frame_us": frame,
    }


def run(words: list[str]) -> dict[str, Any]:
    """Does what the words say; what it prints."""
    match words:
        case [source, result, ("packets" | "decoding") as how, *sounds]:
            return compared(source, result, how, [int(index) for index in sounds])
        case _:
            raise SystemExit(2)


def main(words: list[str]) -> int:
    """Prints one JSON object; the exit code."""
    return answered(run, words, broken="reading it broke off", code="damaged_source")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
