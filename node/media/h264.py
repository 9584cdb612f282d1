"""What a packet of H.264 says of itself, as far as cutting needs it (ITU-T H.264, 7.3.1, 7.4.1 and table 7-1)."""

from collections.abc import Iterator
from typing import Final

_IDR: Final = 5
_SPS: Final = 7
_SLICES: Final = range(1, 6)
"""Types of NAL units that hold a part of a picture; what stands before them tells about it."""
_AVCC: Final = 1
"""The first byte of MP4's and Matroska's headers (ISO/IEC 14496-15), which count bytes before each NAL unit."""
_COUNT_AT: Final = 5
"""Where such headers tell how many sequence parameter sets follow, each behind two bytes of its length."""


def is_idr(packet: bytes, headers: bytes) -> bool:
    """Whether the picture in this packet is an IDR picture: nothing behind it refers to anything before it.

    A container's word for a keyframe is not enough: it is given to recovery points as well, from which
    on a picture becomes whole little by little.  `headers` is the stream's extradata.
    """
    kinds = (unit[0] & 31 for unit in _units(packet, headers))
    return next((kind for kind in kinds if kind in _SLICES), 0) == _IDR


def sizes_in(packet: bytes, headers: bytes) -> frozenset[bytes]:
    """The sequence parameter sets in this packet: they alone tell a picture's size and format (7.3.2.1.1)."""
    return frozenset(unit for unit in _units(packet, headers) if unit[0] & 31 == _SPS)


def sizes_of(headers: bytes) -> frozenset[bytes]:
    """Those that the stream's extradata holds."""
    if not _is_counted(headers):
        return frozenset(unit for unit in _marked(headers) if unit[0] & 31 == _SPS)
    at = _COUNT_AT + 1
    found: set[bytes] = set()
    for _ in range(headers[_COUNT_AT] & 31):
        size = int.from_bytes(headers[at : at + 2], "big")
        found.add(headers[at + 2 : at + 2 + size])
        at += 2 + size
    return frozenset(found)


def _is_counted(headers: bytes) -> bool:
    return headers[:1] == bytes((_AVCC,)) and len(headers) > _COUNT_AT


def _units(packet: bytes, headers: bytes) -> Iterator[bytes]:
    """NAL units up to the first that holds a part of the picture, which comes as its first bytes alone."""
    if not _is_counted(headers):
        return _marked(packet)
    return _counted(packet, 1 + (headers[4] & 3))


def _counted(packet: bytes, digits: int) -> Iterator[bytes]:
    at = 0
    while at + digits < len(packet):
        size = int.from_bytes(packet[at : at + digits], "big")
        begin = at + digits
        if packet[begin] & 31 in _SLICES:
            yield packet[begin : begin + 1]
            return
        yield packet[begin : begin + max(1, size)]
        at = begin + size


def _marked(packet: bytes) -> Iterator[bytes]:
    """Behind start codes, as in transport streams (annex B)."""
    at = packet.find(b"\0\0\1")
    while 0 <= at < len(packet) - 3:
        begin = at + 3
        if packet[begin] & 31 in _SLICES:
            yield packet[begin : begin + 1]
            return
        at = packet.find(b"\0\0\1", begin)
        yield (
            packet[begin : at if at >= 0 else len(packet)].rstrip(b"\0")
            or packet[begin : begin + 1]
        )
