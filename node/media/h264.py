"""What a packet of H.264 says of itself, as far as cutting needs it (ITU-T H.264, 7.3.1, 7.4.1 and table 7-1)."""

from typing import Final

_IDR: Final = 5
_SLICES: Final = range(1, 6)
"""Types of NAL units that hold a part of a picture; what stands before them tells about it."""
_AVCC: Final = 1
"""The first byte of MP4's and Matroska's headers (ISO/IEC 14496-15), which count bytes before each NAL unit."""


def is_idr(packet: bytes, headers: bytes) -> bool:
    """Whether the picture in this packet is an IDR picture: nothing behind it refers to anything before it.

    A container's word for a keyframe is not enough: it is given to recovery points as well, from which
    on a picture becomes whole little by little.  `headers` is the stream's extradata.
    """
    if headers[:1] == bytes((_AVCC,)) and len(headers) > 4:
        kinds = _counted(packet, 1 + (headers[4] & 3))
    else:
        kinds = _marked(packet)
    return next((kind for kind in kinds if kind in _SLICES), 0) == _IDR


def _counted(packet: bytes, digits: int) -> list[int]:
    kinds: list[int] = []
    at = 0
    while at + digits < len(packet):
        kinds.append(packet[at + digits] & 31)
        if kinds[-1] in _SLICES:
            break
        at += digits + int.from_bytes(packet[at : at + digits], "big")
    return kinds


def _marked(packet: bytes) -> list[int]:
    """Behind start codes, as in transport streams (annex B)."""
    kinds: list[int] = []
    at = packet.find(b"\0\0\1")
    while 0 <= at < len(packet) - 3:
        kinds.append(packet[at + 3] & 31)
        if kinds[-1] in _SLICES:
            break
        at = packet.find(b"\0\0\1", at + 3)
    return kinds
