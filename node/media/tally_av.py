"""Adds up the packets of one stream, as PyAV reads them."""

from dataclasses import dataclass
from typing import Any

from av.packet import Packet


@dataclass(slots=True)
class Tally:
    """What the packets of one stream add up to."""

    packets: int = 0
    read: int = 0
    size: int = 0
    first: int | None = None
    newest: int = 0
    last: int | None = None
    places: int = 0
    """One more than the latest decode time."""

    def add(self, packet: "Packet[Any]") -> None:
        """Counts a packet, and its times unless it is discarded."""
        self.read += 1
        if packet.dts is not None:
            self.places = max(self.places, packet.dts + 1)
        if packet.is_discard:
            return
        self.packets += 1
        self.size += packet.size
        at = packet.pts if packet.pts is not None else packet.dts
        if at is None:
            return
        end = at + (packet.duration or 0)
        self.newest = at if self.first is None else max(self.newest, at)
        self.first = at if self.first is None else min(self.first, at)
        self.last = end if self.last is None else max(self.last, end)
