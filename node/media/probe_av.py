"""Reads a film with PyAV: run as a child process, `python -m node.media.probe_av -- FILE`; JSON on stdout.

`--made` before the file: what was made here, of which a few pictures are enough.

Never imported by the node: a hostile file may hang, crash or bloat this process alone, and PyAV's
memory goes with it.  Only whitelisted demuxers are used, and only local files are opened.
"""

import hashlib
import json
import os
import stat
import struct
import sys
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, cast

import av
import av.logging
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.sidedata.sidedata import SideData
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from node.media.formats import (
    BEGUN,
    FORMATS,
    PRIMARIES,
    PROTOCOLS,
    RANGES,
    SPACES,
    STREAMS_MAX,
    TRANSFERS,
    is_place,
)
from node.media.retime import in_order, misplaced
from node.media.tally_av import Tally

SAMPLE_PACKETS = 32
"""Enough to see reordering, field coding and packed frames; decoding them takes some 20 ms."""
MADE_PACKETS = 8
"""Of a result: FFmpeg decodes all of it and counts, so that here only colours, shape and HDR data are looked for;
32 were most of what reading a chunk takes."""
EARLY_PACKETS_MAX = 4_096
"""A minute of film: no keyframe distance of a recording is longer."""
TIMES_MAX = 8_000_000
"""Frames whose times are looked at: three days of film, 64 MB."""
HEAD_BYTES = 4 << 10
TEXT_MAX = 200
FRAMES_ARE_PACKETS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"})
"""Containers that store whole pictures; where the sample agrees, packets are counted.  Everything else is
decoded once: field-coded MPEG-TS, packed AVI and raw streams have packets that are not frames."""
TS_CODECS = frozenset({"h264", "hevc", "av1"})
DECLARING = ("mov", "matroska", "avi", "flv", "asf")
"""Containers whose header states the duration; for the others FFmpeg estimates it from what is there."""
PLAYLIST_HEADS = (
    b"#EXTM3U",
    b"ffconcat",
    b"<MPD",
    b"v=0",
    b"[playlist]",
    b"<smil",
    b"[InternetShortcut]",
)
WARNING_LEVEL = 24


class FaultError(Exception):
    """The file is none that can be described; `code` is a class of node.media.errors."""

    def __init__(self, code: str, what: str) -> None:
        super().__init__(what)
        self.code = code


@dataclass(slots=True)
class Decoded:
    """What decoding showed."""

    frames: int = 0
    packets: int = 0
    undecodable: int = 0
    damaged: int = 0
    early: list[int] = field(default_factory=list)
    """Times of the first packets: those before the first frame were dropped, mostly without a word."""
    first: VideoFrame | None = None
    first_pts: int | None = None
    last_pts: int | None = None
    times: "array[int]" = field(default_factory=lambda: array("q"))
    timeless: bool = False
    interlaced: bool = False
    side_data: set[str] = field(default_factory=set)

    @property
    def leading(self) -> int:
        """Packets that should have been shown before the first frame."""
        first = self.first_pts
        if first is None or self.timeless:
            return 0
        return max(self.undecodable, sum(pts < first for pts in self.early))

    def take(self, frame: VideoFrame) -> None:
        """Counts a frame; the first ones are looked at."""
        if self.first is None:
            self.first = frame
        if self.frames < SAMPLE_PACKETS:
            self.interlaced = self.interlaced or bool(frame.interlaced_frame)
            # PyAV calls it a mapping, but iterating it gives the values.
            data = cast("Iterator[SideData]", iter(frame.side_data))
            self.side_data |= {one.type.name for one in data}
        self.frames += 1
        if frame.pts is None:
            self.timeless = True
            return
        if len(self.times) < TIMES_MAX:
            self.times.append(frame.pts)
        self.first_pts = frame.pts if self.first_pts is None else min(self.first_pts, frame.pts)
        self.last_pts = frame.pts if self.last_pts is None else max(self.last_pts, frame.pts)


def open_film(path: str) -> InputContainer:
    """Opens a local file with a whitelisted demuxer."""
    options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": ",".join(PROTOCOLS)}
    try:
        return av.open("file:" + path, mode="r", options=options, metadata_errors="replace")
    except (FFmpegError, ValueError) as error:
        raise FaultError(
            "not_a_video", f"no video container that is read here ({_reason(error)})"
        ) from None


def check_file(path: str) -> int:
    """Size of a regular, readable file that does not point elsewhere."""
    try:
        status = os.stat(path)  # noqa: PTH116 - before opening: a FIFO or device must not be opened at all
        if not stat.S_ISREG(status.st_mode):
            raise FaultError("unreadable_source", "it is not a regular file")
        with open(path, "rb") as film:  # noqa: PTH123 - a plain path from argv
            head = film.read(HEAD_BYTES)
    except OSError as error:
        raise FaultError("unreadable_source", error.strerror or "it cannot be read") from None
    if not head:
        raise FaultError("empty_source", "the file is empty")
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(PLAYLIST_HEADS) or (start.startswith(b"<?xml") and b"<MPD" in head):
        raise FaultError("refused_format", "it is a playlist, which only points to other files")
    if head[:4] == b"RIFF" and 8 + int.from_bytes(head[4:8], "little") > status.st_size:
        # Its index lies at the end, and FFmpeg reads on without it and says nothing.
        raise FaultError(
            "damaged_source",
            f"it says it is {8 + int.from_bytes(head[4:8], 'little')} bytes long, and is {status.st_size}",
        )
    return status.st_size


def describe(path: str, sample: int = SAMPLE_PACKETS) -> dict[str, Any]:
    """The facts of `node.media.probe.RawProbe`; `sample` packets are decoded where that is enough."""
    size = check_file(path)
    tallies: dict[int, Tally] = {}
    times = array("q")
    read_error = ""
    with open_film(path) as film:
        if len(film.streams) > STREAMS_MAX:
            raise FaultError("not_a_video", f"{len(film.streams)} streams, at most {STREAMS_MAX}")
        main = main_stream(film)
        index = -1 if main is None else main.index
        declared_frames = 0 if main is None else main.frames
        declared = declared_ms(film)
        for stream in film.streams:
            tallies[stream.index] = Tally()
        try:
            for packet in film.demux():
                if packet.size or packet.pts is not None or packet.dts is not None:
                    tallies.setdefault(packet.stream_index, Tally()).add(packet)
                if packet.stream_index == index and len(times) < TIMES_MAX:
                    times.extend(shown_at(packet))
        except FFmpegError as error:
            read_error = _reason(error)
        facts: dict[str, Any] = {
            "container": film.format.name,
            "places": [_text(tag) for tag in _tags(film) if is_place(tag)],
            "bytes": size,
            **measured(film, tallies),
            "declared_ms": declared,
            "streams": [stream_facts(stream, tallies[stream.index]) for stream in film.streams],
            "read_error": read_error,
        }
    if index < 0:
        return facts
    if facts["container"].startswith(DECLARING):
        # AVI counts places of which some hold no picture (dropped while recording): its clock counts them.
        avi = facts["container"] == "avi"
        there = tallies[index].places if avi else tallies[index].read
        facts |= {"declared_frames": declared_frames, "packets_read": there}
    counted = tallies[index].packets
    return facts | main_facts(path, facts, index, (counted, times), sample)


def shown_at(packet: "Packet[Any]") -> tuple[int, ...]:
    """When it is shown; nothing where it is not, or does not say."""
    return () if packet.is_discard or packet.pts is None else (packet.pts,)


def main_stream(film: InputContainer) -> VideoStream | None:
    """The default moving picture, else the first; covers are none."""
    moving = [v for v in film.streams.video if not v.disposition & Disposition.attached_pic]
    chosen = [v for v in moving if v.disposition & Disposition.default]
    return next(iter(chosen or moving), None)


def main_facts(
    path: str,
    facts: dict[str, Any],
    main: int,
    shown: "tuple[int, array[int]]",
    sample: int,
) -> dict[str, Any]:
    """Counts the frames of the main stream: by packets where a sample shows that they are frames, else by decoding.

    `shown`: how many packets are, and when.
    """
    packets, times = shown
    described = next(s for s in facts["streams"] if s["index"] == main)
    if not described["codec"]:
        return {"main": main}
    seen = decode(path, main, sample)
    container, codec = facts["container"], described["codec"]
    whole = container in FRAMES_ARE_PACKETS or (
        container == "mpegts" and codec in TS_CODECS and not seen.interlaced
    )
    by_packets = whole and seen.frames == seen.packets and not seen.leading
    if not by_packets:
        seen = decode(path, main, None)
        described |= times_of(seen, described["time_base"])
    described |= picture_facts(seen)
    return {
        "main": main,
        "frames": packets if by_packets else seen.frames,
        "frames_by": "packets" if by_packets else "decoding",
        "misplaced": misplaced(in_order(times if by_packets else seen.times)),
        "undecodable": seen.leading,
        "damaged_packets": seen.damaged,
    }


def decode(path: str, index: int, packets_max: int | None) -> Decoded:
    """Decodes one stream, from its start, at most so many packets, and what they leave in the decoder."""
    seen = Decoded()
    begun = False
    with open_film(path) as film:
        stream = film.streams[index]
        assert isinstance(stream, VideoStream)
        if packets_max is None:
            stream.thread_type = "AUTO"
        for packet in packets_of(film, stream):
            if packets_max is not None and seen.packets >= packets_max:
                break
            if (
                not packet.is_discard
            ):  # what an edit list leaves out is not shown, and is not missing
                seen.packets += 1
                if packet.pts is not None and len(seen.early) < EARLY_PACKETS_MAX:
                    seen.early.append(packet.pts)
            take_all(seen, stream, packet)
            if seen.frames > SAMPLE_PACKETS and packets_max is None and not begun:
                begun = True
                sys.stderr.write(f"{BEGUN}\n")
                sys.stderr.flush()
        take_all(seen, stream, None)
    return seen


def packets_of(film: InputContainer, stream: VideoStream) -> "Iterator[Packet[Any]]":
    """Packets of one stream; an error of the reader ends them (the first pass has recorded it)."""
    try:
        for packet in film.demux(stream):
            if packet.size:
                yield packet
    except FFmpegError:
        return


def take_all(seen: Decoded, stream: VideoStream, packet: "Packet[Any] | None") -> None:
    """Counts the frames that a packet, or the end, gives."""
    try:
        for frame in stream.codec_context.decode(packet):
            seen.take(frame)
    except FFmpegError:
        if packet is None:
            return
        if seen.frames:
            seen.damaged += 1
        else:
            seen.undecodable += 1


def times_of(seen: Decoded, time_base: list[int]) -> dict[str, int]:
    """When the frames that are shown begin and end: what was dropped before the first keyframe does not count."""
    if seen.timeless or seen.first_pts is None or seen.last_pts is None:
        return {}
    base = Fraction(*time_base) * 1_000_000
    return {
        "start_us": round(seen.first_pts * base),
        "span_us": round((seen.last_pts - seen.first_pts) * base),
    }


def measured(film: InputContainer, tallies: dict[int, Tally]) -> dict[str, int]:
    """How long it is from the earliest to the latest presentation time in any stream, and when that ends."""
    starts: list[Fraction] = []
    ends: list[Fraction] = []
    for stream in film.streams:
        tally = tallies[stream.index]
        if tally.first is None or tally.last is None or stream.time_base is None:
            continue
        starts.append(tally.first * stream.time_base)
        ends.append(tally.last * stream.time_base)
    if not ends:
        return {}
    return {
        "duration_ms": max(0, round((max(ends) - min(starts)) * 1000)),
        "end_ms": round(max(ends) * 1000),
    }


def declared_ms(film: InputContainer) -> int | None:
    """What the header claims; None where FFmpeg only estimates."""
    if not film.format.name.startswith(DECLARING) or not film.duration or film.duration < 0:
        return None
    return film.duration * 1000 // av.time_base


def stream_facts(stream: Any, tally: Tally) -> dict[str, Any]:  # noqa: ANN401 - any kind of stream
    """The facts of `node.media.probe.StreamInfo`."""
    context = stream.codec_context
    base = stream.time_base or Fraction(0)
    span = tally.first is not None and tally.last is not None
    facts: dict[str, Any] = {
        "index": stream.index,
        "kind": stream.type
        if stream.type in ("video", "audio", "subtitle", "attachment")
        else "data",
        "codec": _text(context.codec.canonical_name) if context is not None else "",
        "time_base": _ratio(base),
        "language": _text(stream.language or ""),
        "title": _text(stream.metadata.get("title", "")),
        "default": bool(stream.disposition & Disposition.default),
        "forced": bool(stream.disposition & Disposition.forced),
        "attached_picture": bool(stream.disposition & Disposition.attached_pic),
        "disposition": _flags(stream.disposition),
        "extradata": digest_of(getattr(context, "extradata", None)),
        "packets": tally.packets,
        "discarded": tally.read - tally.packets,
        "bytes": tally.size,
        "start_us": round((tally.first or 0) * base * 1_000_000) if span else 0,
        "span_us": round((tally.newest - (tally.first or 0)) * base * 1_000_000),
        "duration_us": round(((tally.last or 0) - (tally.first or 0)) * base * 1_000_000)
        if span
        else 0,
    }
    if stream.type == "video" and context is not None:
        facts |= {
            "width": context.width,
            "height": context.height,
            "pixel_format": context.pix_fmt or "",
            "frame_rate": _ratio(stream.average_rate),
            "base_rate": _ratio(stream.base_rate),
            "sample_aspect": _aspect(stream.sample_aspect_ratio),
        }
    elif stream.type == "audio" and context is not None:
        facts |= {
            "sample_rate": context.sample_rate or 0,
            "channels": context.layout.nb_channels,
            "channel_layout": _text(context.layout.name),
        }
    return facts


def digest_of(data: bytes | None) -> str:
    """A name for parameter sets."""
    return hashlib.blake2b(data, digest_size=8).hexdigest() if data else ""


def mirrored(frame: VideoFrame) -> bool:
    """Whether the container's display matrix turns left into right."""
    for data in cast("Iterator[SideData]", iter(frame.side_data)):
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])
            return bool(a * d - b * c < 0)
    return False


def picture_facts(seen: Decoded) -> dict[str, Any]:
    """What only a decoded frame tells for certain."""
    frame = seen.first
    if frame is None:
        return {}
    return {
        "width": frame.width,
        "height": frame.height,
        "pixel_format": frame.format.name,
        "rotation": int(frame.rotation),
        "mirrored": mirrored(frame),
        "interlaced": seen.interlaced,
        "colour_range": RANGES.get(int(frame.color_range), ""),
        "colour_space": SPACES.get(int(frame.colorspace), ""),
        "colour_transfer": TRANSFERS.get(int(frame.color_trc), ""),
        "colour_primaries": PRIMARIES.get(int(frame.color_primaries), ""),
        "mastering_display": "MASTERING_DISPLAY_METADATA" in seen.side_data,
        "content_light": "CONTENT_LIGHT_LEVEL" in seen.side_data,
        "dynamic_hdr": any(name.startswith(("DYNAMIC_HDR", "DOVI")) for name in seen.side_data),
    }


def _tags(film: InputContainer) -> list[str]:
    return [*film.metadata, *(tag for stream in film.streams for tag in stream.metadata)]


def _flags(disposition: Disposition) -> str:
    return "+".join(str(one.name) for one in Disposition if one and disposition & one)


def _ratio(value: Fraction | None) -> list[int]:
    return [value.numerator, value.denominator] if value else [0, 1]


def _aspect(value: Fraction | None) -> list[int]:
    return [value.numerator, value.denominator] if value else [1, 1]


def _reason(error: Exception) -> str:
    return _text(getattr(error, "strerror", "") or type(error).__name__)


def _text(value: object) -> str:
    return str(value).encode("utf-8", "replace").decode("utf-8")[:TEXT_MAX]


def answered(
    run: Callable[[list[str]], dict[str, Any]], words: list[str], *, broken: str, code: str
) -> int:
    """Does what the words say and prints one JSON object; faults of films are part of it, so 0.

    `broken` and `code` tell of a film that breaks off where `run` did not expect it.
    """
    av.logging.restore_default_callback()
    av.logging.set_libav_level(WARNING_LEVEL)
    try:
        said = run(words)
    except FaultError as fault:
        said = {"fault": str(fault), "code": fault.code}
    except FFmpegError as error:
        said = {"fault": f"{broken}: {error.strerror}", "code": code}
    sys.stdout.write(json.dumps(said))
    return 0


def answered_probe(run: Callable[[list[str]], dict[str, Any]], words: list[str]) -> int:
    """Prints one JSON object that describes a film; faults of the file are part of it, so the exit code is 0."""
    av.logging.restore_default_callback()
    av.logging.set_libav_level(WARNING_LEVEL)
    try:
        facts = run(words)
    except FaultError as fault:
        facts = {"fault": fault.code, "what": str(fault)}
    sys.stdout.write(json.dumps(facts))
    return 0


def run(words: list[str]) -> dict[str, Any]:
    """What the words ask for."""
    *options, path = words
    return describe(path, MADE_PACKETS if "--made" in options else SAMPLE_PACKETS)


def main(words: list[str]) -> int:
    """Prints one JSON object; the exit code."""
    return answered_probe(run, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
