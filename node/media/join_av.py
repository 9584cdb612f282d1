"""Joins encoded chunks to one picture with the times of the contract: run as a child process around PyAV.

`python -m node.media.join_av join INDEX TARGET CHUNK...` writes a file without sound; `python -m
node.media.join_av times INDEX RESULT [SOUND NUMBER...]` measures how far a finished film's times are from the
contract, and tells whether its sounds of these numbers are those of another file.
"""

import hashlib
import sys
from array import array
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from node.media.index import index_from_bytes
from node.media.probe_av import FaultError, answered, main_stream, open_film
from node.media.retime import compare_times, dts_of, in_order, ranks_of, reorder_depth

JOIN_PACKETS_MAX = 8_000_000
IN_MOV = frozenset({"h264", "hevc", "prores"})


class Packets:
    """A digest over pictures as they were encoded: equal ones were copied, byte for byte and in order."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, packet: "Packet[Any]") -> None:
        """The next in decode order."""
        self._hash.update(packet.size.to_bytes(8, "big"))
        self._hash.update(packet)

    def digest(self) -> str:
        """Of all so far."""
        return self._hash.hexdigest()


def moving(film: InputContainer) -> VideoStream:
    """The one picture of a chunk or result."""
    stream = main_stream(film)
    if stream is None or stream.time_base is None:
        raise FaultError("result_damaged", "a chunk holds no picture")
    return stream


def times_in(path: str, packets: Packets | None = None) -> "array[int]":
    """Presentation times in decode order."""
    with open_film(path) as film:
        stream = moving(film)
        times = array("q")
        for packet in film.demux(stream):
            if packet.size and not packet.is_discard:
                if packet.pts is None or len(times) >= JOIN_PACKETS_MAX:
                    raise FaultError("result_damaged", "a packet of it tells no time")
                times.append(packet.pts)
                if packets is not None:
                    packets.add(packet)
    return times


def join(index_file: str, target: str, chunks: list[str]) -> dict[str, Any]:
    """Writes the chunks' packets one after the other, timed by the contract alone."""
    index = index_from_bytes(Path(index_file).read_bytes())
    contract = index.contract()
    ranks = array("q")
    depth = 0
    headers: bytes | None = None
    for number, chunk in enumerate(chunks):
        headers = same_headers(chunk, number, headers)
        times = times_in(chunk)
        before = len(ranks)
        ranks.extend(before + rank for rank in ranks_of(times))
        depth = max(depth, reorder_depth(times))
    if len(ranks) != len(contract):
        raise FaultError(
            "frame_count", f"{len(ranks)} frames in all chunks, {len(contract)} in the film"
        )
    numerator, denominator = index.time_base
    shown = array("q", ((at - contract[0]) * numerator for at in contract))
    decoded = dts_of(shown, depth)
    at = 0
    packets = Packets()
    # MOV tells decode times, which reordered pictures need; NUT holds what MOV does not (FFV1, AV1).
    with open_film(chunks[0]) as film:
        container = "mov" if moving(film).codec_context.name in IN_MOV else "nut"
    options = {"avoid_negative_ts": "disabled"}
    if container == "mov":
        options["video_track_timescale"] = str(denominator)
    with av.open("file:" + target, "w", container, options=options) as out:
        copy = None
        for chunk in chunks:
            with open_film(chunk) as film:
                stream = moving(film)
                if copy is None:
                    copy = out.add_stream_from_template(stream, opaque=True)
                    copy.time_base = Fraction(1, denominator)
                for packet in film.demux(stream):
                    if not packet.size:
                        continue
                    packet.time_base = Fraction(1, denominator)
                    packet.pts, packet.dts = shown[ranks[at]], decoded[at]
                    packet.duration = duration(shown, ranks[at])
                    packet.stream = copy
                    packets.add(packet)
                    out.mux(packet)
                    at += 1
    return {"frames": at, "depth": depth, "packets": packets.digest()}


def same_headers(chunk: str, number: int, first: bytes | None) -> bytes:
    """The parameter sets of a chunk, which must be those of the first: the film has room for one."""
    with open_film(chunk) as film:
        found = moving(film).codec_context.extradata or b""
    if first is not None and found != first:
        raise FaultError("wrong_picture", f"chunk {number} was encoded with other parameter sets")
    return found


def duration(shown: "array[int]", rank: int) -> int:
    """How long a frame is shown; the last as long as the one before it."""
    if len(shown) < 2:
        return 1
    rank = min(rank, len(shown) - 2)
    return shown[rank + 1] - shown[rank]


def sounds_in(path: str, numbers: list[int] | None = None) -> list[str]:
    """A digest of each sound with its headers, as it was encoded; of those of these numbers."""
    with open_film(path) as film:
        streams = list(film.streams.audio)
        chosen = streams if numbers is None else [streams[n] for n in numbers if n < len(streams)]
        found = {stream.index: Packets() for stream in chosen}
        for packet in film.demux(chosen) if chosen else ():
            if packet.size:
                found[packet.stream_index].add(packet)
        headers = [bytes(stream.codec_context.extradata or b"").hex() for stream in chosen]
        return [
            f"{head} {found[s.index].digest()}" for s, head in zip(chosen, headers, strict=True)
        ]


def times_apart(index_file: str, result: str, sounds: list[str]) -> dict[str, Any]:
    """How far the frames of a result are from the contract, a digest of its packets, whose its sounds are."""
    index = index_from_bytes(Path(index_file).read_bytes())
    unit = Fraction(*index.time_base)
    packets = Packets()
    with open_film(result) as film:
        base = moving(film).time_base
    assert base is not None
    times = times_in(result, packets)
    apart = compare_times(in_order(times), base, index.contract(), unit)
    return {
        "frames": apart.frames,
        "wanted": apart.wanted,
        "off_us": float(apart.off * 1_000_000),
        "at": apart.at,
        "tick_us": float(max(base, unit) * 1_000_000),
        "packets": packets.digest(),
        "sounds": sounds_are(result, *sounds) if sounds else False,
    }


def sounds_are(result: str, part: str, *numbers: str) -> bool:
    """Whether these sounds of a result are all that a part holds."""
    return sounds_in(result, [int(number) for number in numbers]) == sounds_in(part)


def run(words: list[str]) -> dict[str, Any]:
    """Does what the words say; what it prints."""
    match words:
        case ["join", index_file, target, *chunks]:
            return join(index_file, target, chunks)
        case ["times", index_file, result, *sounds]:
            return times_apart(index_file, result, sounds)
        case _:
            raise SystemExit(2)


def main(words: list[str]) -> int:
    """Prints one JSON object; the exit code."""
    return answered(run, words, broken="joining broke off", code="result_damaged")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
