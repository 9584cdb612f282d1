"""Reads the packet index of a film and cuts slices from it: run as a child process around PyAV.

`python -m node.media.cut_av index FILM INDEX` writes the index and prints a `CutTable`;
`python -m node.media.cut_av slice FILM INDEX SLICE FIRST STOP BASE DEPTH` writes one slice.

A slice is NUT: the one container here that holds every codec and any time base exactly (Matroska
rounds to milliseconds, MP4 lacks codecs).  Both versions of FFmpeg lose no frame in it.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.stream import VideoStream

from node.media.h264 import is_idr, sizes_in, sizes_of
from node.media.index import DISCARD, KEY, PacketIndex, index_from_bytes, table_of
from node.media.probe_av import FaultError, answered, check_file, main_stream, open_film
from node.media.retime import dts_of

MICRO = 1_000_000
LOOK_S = 5
"""Between keyframes that are decoded to see whether the picture still has its size: some 10 ms of work each,
which of two hours makes 14 s.  Not in H.264 while there is one set of parameters, which alone tells it."""
CHANGES = "its picture changes its size or format on the way"
Shape = tuple[int, int, str]
SEEK_EARLIER = (0, 10)
"""Seconds before the wanted packet at which demuxers are asked to begin; then from the start."""


def read_index(path: str) -> tuple[PacketIndex, str]:
    """All packets of the main picture, in decode order, and why they are no use for a split ("" if they are)."""
    check_file(path)
    with open_film(path) as film:
        stream = moving(film)
        looks = Looks(stream)
        base = stream.time_base
        assert base is not None
        index = PacketIndex(time_base=(base.numerator, base.denominator), zero_us=zero_us(film))
        for packet in packets_of(film, stream):
            index.add(
                pts=packet.pts,
                dts=packet.dts,
                pos=-1 if packet.pos is None else packet.pos,
                size=packet.size,
                key=packet.is_keyframe,
                discard=packet.is_discard,
                fresh=packet.is_keyframe and is_fresh(stream, packet),
            )
            if packet.is_keyframe:
                looks.keyframe(packet, float((packet.pts or 0) * base))
    return index, CHANGES if len(looks.shapes) > 1 else ""


class Looks:
    """Which sizes and formats the picture has on its way, as far as its keyframes show."""

    def __init__(self, stream: VideoStream) -> None:
        self._stream = stream
        context = stream.codec_context
        self._headers = context.extradata or b""
        self._told = sizes_of(self._headers) if context.name == "h264" else None
        self._at = 0.0
        self.shapes: set[Shape] = set()

    def keyframe(self, packet: "Packet[Any]", at: float) -> None:
        """The next one, `at` seconds."""
        changed = self._is_told_anew(packet)
        may_differ = self._told is None or len(self._told) != 1
        if changed or not self.shapes or (may_differ and abs(at - self._at) >= LOOK_S):
            self.shapes |= shapes_of(self._stream, packet)
            self._at = at

    def _is_told_anew(self, packet: "Packet[Any]") -> bool:
        if packet.has_sidedata("new_extradata"):
            self._told = None  # an MP4 with headers of its own for each part
            return True
        if self._told is None:
            return False
        sizes = sizes_in(bytes(packet), self._headers)
        changed = not sizes <= self._told
        self._told |= sizes
        return changed


def is_fresh(stream: VideoStream, packet: "Packet[Any]") -> bool:
    """Whether decoding may begin at this keyframe: other codecs than H.264 mark none that are less."""
    context = stream.codec_context
    return context.name != "h264" or is_idr(bytes(packet), context.extradata or b"")


def shapes_of(stream: VideoStream, packet: "Packet[Any]") -> set[Shape]:
    """Size and format of a keyframe; nothing where it cannot be decoded alone."""
    context = stream.codec_context
    try:
        frames = [*context.decode(packet), *context.decode(None)]
    except FFmpegError:
        frames = []
    context.flush_buffers()
    return {(frame.width, frame.height, frame.format.name) for frame in frames}


def moving(film: InputContainer) -> VideoStream:
    """The main picture; the probe has found it before."""
    stream = main_stream(film)
    if stream is None or stream.time_base is None:
        raise FaultError("no_video_stream", "no moving picture in it")
    return stream


def zero_us(film: InputContainer) -> int:
    """When the film begins on its own clock."""
    start = cast(
        "int | None", film.start_time
    )  # None where no stream tells, whatever its type says
    return 0 if start is None else start * MICRO // av.time_base


def packets_of(film: InputContainer, stream: VideoStream) -> "Iterator[Packet[Any]]":
    """Packets with bytes; the empty one at the end of the file is none."""
    for packet in film.demux(stream):
        if packet.size:
            yield packet


@dataclass(frozen=True, slots=True)
class Part:
    """The packets [first, stop) with their times less `base`; `depth` is the film's reordering."""

    first: int
    stop: int
    base: int
    depth: int


def write_slice(path: str, index: PacketIndex, target: str, part: Part) -> int:
    """Copies a part of the main picture; its bytes."""
    wanted = index.pts[part.first : part.stop]
    decode = dts_of(sorted(wanted), part.depth)
    size = 0
    options = {"avoid_negative_ts": "disabled"}
    with open_film(path) as film, av.open("file:" + target, "w", "nut", options=options) as out:
        copy = out.add_stream_from_template(moving(film), opaque=True)
        copy.time_base = Fraction(*index.time_base)
        for at, packet in enumerate(slice_packets(path, index, part.first, part.stop)):
            packet.pts, packet.dts = wanted[at] - part.base, decode[at] - part.base
            packet.stream = copy
            size += packet.size
            out.mux(packet)
    return size


def slice_packets(path: str, index: PacketIndex, first: int, stop: int) -> "Iterator[Packet[Any]]":
    """Exactly the packets that the index names, wherever the demuxer's own index leads to."""
    at = first
    for packet in from_packet(path, index, first):
        if not same(packet, index, at):
            raise FaultError("film_changed", "its packets are not those of its index")
        yield packet
        at += 1
        if at == stop:
            return
    raise FaultError("film_changed", f"it ends after {at} of {len(index)} packets")


def from_packet(path: str, index: PacketIndex, first: int) -> "Iterator[Packet[Any]]":
    """Packets from `first` on: by a seek where one leads before it, else from the film's start."""
    for seconds in SEEK_EARLIER if first else ():
        with open_film(path) as film:
            packets = packets_of(film, moving(film))
            begin = sought(film, packets, index, first, seconds)
            if begin is not None:
                yield begin
                yield from packets
                return
    with open_film(path) as film:
        for at, packet in enumerate(packets_of(film, moving(film))):
            if at >= first:
                yield packet


def sought(
    film: InputContainer,
    packets: "Iterator[Packet[Any]]",
    index: PacketIndex,
    first: int,
    seconds: int,
) -> "Packet[Any] | None":
    """The packet `first`, after a seek to so many seconds before it; None where that leads behind it."""
    stream = moving(film)
    goal = index.pts[first] - seconds * index.time_base[1] // index.time_base[0]
    try:
        film.seek(goal, stream=stream, backward=True)
        for packet in packets:
            if same(packet, index, first):
                return packet
            if packet.pts is not None and packet.pts > index.pts[first] and packet.is_keyframe:
                return None
    except FFmpegError:
        return None
    return None


def same(packet: "Packet[Any]", index: PacketIndex, at: int) -> bool:
    """Whether this is the packet that the index names there."""
    flags = index.flags[at]
    return (
        packet.pts == index.pts[at]
        and packet.size == index.size[at]
        and (not flags & KEY or packet.is_keyframe or bool(flags & DISCARD))
    )


def run(words: list[str]) -> dict[str, Any]:
    """Does what the words say; what it prints."""
    match words:
        case ["index", film, target]:
            index, fault = read_index(film)
            Path(target).write_bytes(index.to_bytes())
            return {"fault": fault} if fault else table_of(index).model_dump()
        case ["slice", film, index_file, target, *numbers]:
            index = index_from_bytes(Path(index_file).read_bytes())
            return {"bytes": write_slice(film, index, target, Part(*map(int, numbers)))}
        case _:
            raise SystemExit(2)


def main(words: list[str]) -> int:
    """Prints one JSON object; the exit code."""
    return answered(run, words, broken="reading it broke off", code="damaged_source")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
