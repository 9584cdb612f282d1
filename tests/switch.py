"""A switch in software whose every way from one host to another can be made bad while it runs.

    python tests/switch.py HOSTS

opens a TAP device `p1` to `pHOSTS` for each host where it is started (`tests.switched_lan` moves
them to the hosts), says `ready`, and forwards frames between them until its input ends.  A line of
input, `{"from": 1, "to": 2, "way": {"loss": 0.3, "delay_ms": 200}}`, sets one way; it is answered by
`ok`, and holds for all frames that come later.  `{"plugged": 1, "is": false}` takes a host's carrier
away, `{"counts": true}` is answered by what each way carried.

The kernel of a test machine has no netem, hence this.  Where every way of a host is whole, it hands
over segments of up to 64 KiB, as a network card would.  Once a way loses, doubles, reorders or bounds
frames, they are single ones of at most 1,500 bytes and cost the switch a core at 1 Gbit/s.
"""

import dataclasses
import fcntl
import gc
import heapq
import json
import os
import random
import select
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any, Final

FRAME_BYTES_MAX: Final = 66_000
"""The largest segment with its headers."""
HEAD_BYTES: Final = 10
"""`struct virtio_net_hdr` in front of each frame: what is left to be cut and summed up."""
TURN_FRAMES_MAX: Final = 64
"""Frames taken from one host before the next has its turn."""
QUEUE_FRAMES: Final = 2_000
"""What the kernel holds of a host's frames while the switch is busy; its own default is 500."""
HELD_BYTES_MAX: Final = 64 << 20
"""Frames on their way in all; more are dropped, as by a switch without memory."""
GROUP_BIT: Final = 0x01
EVERYBODY: Final = b"\xff" * 6


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What the way from one host to another does to frames.  Shares are from 0 to 1."""

    cut: bool = False
    """Nothing arrives."""
    multicast: bool = True
    """Whether frames to a group arrive; broadcast does in any case."""
    loss: float = 0.0
    duplicate: float = 0.0
    """Share of frames that arrive twice."""
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    """Up to so much more delay, drawn for each frame; the order stays."""
    reorder: float = 0.0
    """Share of frames that are held back by `reorder_ms`, so that later ones overtake them."""
    reorder_ms: float = 10.0
    rate_mbit: float = 0.0
    """Megabits a second; 0: as fast as it goes."""
    queue_ms: float = 50.0
    """With a rate: frames that would wait longer than so for their turn are dropped."""

    def __post_init__(self) -> None:
        """Raises ValueError for what no way can be."""
        for name in ("loss", "duplicate", "reorder"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share from 0 to 1, not {getattr(self, name)}")
        for name in ("delay_ms", "jitter_ms", "reorder_ms", "rate_mbit", "queue_ms"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is at least 0, not {getattr(self, name)}")

    @property
    def is_whole(self) -> bool:
        """Whether nothing happens to single frames: many may travel as one segment."""
        return not (self.loss or self.duplicate or self.reorder or self.rate_mbit)


class Lane:
    """One way at work: when the frames that enter it arrive.  Pure; times are seconds."""

    def __init__(self, draw: random.Random) -> None:
        self.way = Way()
        self.carried = 0
        self.dropped = 0
        self._draw = draw
        self._free_s = 0.0
        """When the wire has sent what was given to it."""
        self._last_s = 0.0
        """When the last frame in order arrives: jitter overtakes nobody."""

    def arrivals(self, size: int, now_s: float, *, group: bool = False) -> tuple[float, ...]:
        """When a frame of `size` bytes arrives: never, once or twice.

        `group` says that it is addressed to a multicast group.
        """
        way, draw = self.way, self._draw
        if way.cut or (group and not way.multicast) or (way.loss and draw.random() < way.loss):
            self.dropped += 1
            return ()
        sent_s = now_s
        if way.rate_mbit:
            begin_s = max(self._free_s, now_s)
            if begin_s - now_s > way.queue_ms / 1_000:
                self.dropped += 1
                return ()
            self._free_s = sent_s = begin_s + size * 8 / (way.rate_mbit * 1e6)
        self.carried += 1
        due_s = max(sent_s + (way.delay_ms + way.jitter_ms * draw.random()) / 1_000, self._last_s)
        if way.reorder and draw.random() < way.reorder:
            due_s += way.reorder_ms / 1_000
        else:
            self._last_s = due_s
        if way.duplicate and draw.random() < way.duplicate:
            return due_s, due_s
        return (due_s,)

    def become(self, way: Way) -> None:
        """From now on the way is like this; what is on its way already arrives as it would have."""
        self.way = way
        self._free_s = self._last_s = 0.0


def mac(host: int) -> bytes:
    """The hardware address of a host's `eth0`: the switch learns nothing, it knows."""
    return bytes((0x02, 0, 10, 77, 0, host))


class Switch:
    """All lanes, and the frames that are on their way.  Pure.

    Frames begin with `HEAD_BYTES` that only the devices read.
    """

    def __init__(self, hosts: int, draw: random.Random) -> None:
        self.hosts = range(1, hosts + 1)
        self.lanes = {(a, b): Lane(draw) for a in self.hosts for b in self.hosts if a != b}
        self.unplugged = set[int]()
        self._by_mac = {mac(host): host for host in self.hosts}
        self._others = {a: [b for b in self.hosts if b != a] for a in self.hosts}
        self._held: list[tuple[float, int, int, bytes]] = []
        self._held_bytes = 0
        self._number = 0

    def take(self, source: int, frame: bytes, now_s: float) -> Iterator[int]:
        """A frame enters: yields the hosts that get it at once; others have it by `due` later."""
        if source in self.unplugged:
            return
        target = frame[HEAD_BYTES : HEAD_BYTES + 6]
        group = bool(target[0] & GROUP_BIT) and target != EVERYBODY
        if target[0] & GROUP_BIT:
            targets = self._others[source]
        else:
            known = self._by_mac.get(target)
            targets = [known] if known is not None and known != source else []
        size = len(frame) - HEAD_BYTES
        for host in targets:
            lane = self.lanes[source, host]
            for due_s in lane.arrivals(size, now_s, group=group):
                if due_s > now_s:
                    self._hold(lane, due_s, host, frame)
                elif host not in self.unplugged:
                    yield host

    def _hold(self, lane: Lane, due_s: float, host: int, frame: bytes) -> None:
        if self._held_bytes + len(frame) > HELD_BYTES_MAX:
            lane.dropped += 1
            return
        self._held_bytes += len(frame)
        self._number += 1
        heapq.heappush(self._held, (due_s, self._number, host, frame))

    def due(self, now_s: float) -> Iterator[tuple[int, bytes]]:
        """What arrives now: host and frame."""
        held = self._held
        while held and held[0][0] <= now_s:
            _, _, host, frame = heapq.heappop(held)
            self._held_bytes -= len(frame)
            if host not in self.unplugged:
                yield host, frame

    def wait_s(self, now_s: float) -> float | None:
        """Until the next frame is due; None: none is on its way."""
        return max(0.0, self._held[0][0] - now_s) if self._held else None

    def sends_segments(self, host: int) -> bool:
        """Whether every way of a host is whole."""
        return all(self.lanes[host, other].way.is_whole for other in self._others[host])


# --- the process: TAP devices, and orders from its input ------------------------------------------

_TUNSETIFF: Final = 0x400454CA
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNSETCARRIER: Final = 0x400454E2
_TAP_NO_PI_VNET_HDR: Final = 0x0002 | 0x1000 | 0x4000
_CSUM_TSO4_TSO6: Final = 0x1 | 0x2 | 0x4


def _open_tap(name: str) -> int:
    handle = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    request = struct.pack("16sH22x", name.encode(), _TAP_NO_PI_VNET_HDR)
    fcntl.ioctl(handle, _TUNSETIFF, request)
    fcntl.ioctl(handle, _TUNSETOFFLOAD, _CSUM_TSO4_TSO6)
    return handle


def _obey(switch: Switch, taps: dict[int, int], order: dict[str, Any]) -> str:
    if "way" in order:
        source = order["from"]
        switch.lanes[source, order["to"]].become(Way(**order["way"]))
        offload = _CSUM_TSO4_TSO6 if switch.sends_segments(source) else 0
        fcntl.ioctl(taps[source], _TUNSETOFFLOAD, offload)
    elif "plugged" in order:
        host, plugged = order["plugged"], order["is"]
        (switch.unplugged.discard if plugged else switch.unplugged.add)(host)
        fcntl.ioctl(taps[host], _TUNSETCARRIER, struct.pack("i", plugged))
    elif "counts" in order:
        lanes = switch.lanes.items()
        return json.dumps([[a, b, lane.carried, lane.dropped] for (a, b), lane in lanes])
    return "ok"


def _now_s() -> float:
    return time.monotonic()  # noqa: TID251 - mesh.clock's milliseconds are too coarse for a rate


class _Forwarder:
    """Between the devices and the pure switch."""

    def __init__(self, hosts: int) -> None:
        self.switch = Switch(hosts, random.Random())
        self.taps = {host: _open_tap(f"p{host}") for host in self.switch.hosts}

    def forward(self, source: int, frames_max: int) -> None:
        """What a host has sent."""
        handle, read = self.taps[source], os.read
        for _ in range(frames_max):
            try:
                frame = read(handle, FRAME_BYTES_MAX)
            except OSError:
                # Nothing more, or its interface is down.
                return
            for host in self.switch.take(source, frame, _now_s()):
                self._hand_over(host, frame)

    def arrive(self) -> None:
        """What was on its way and is due."""
        for host, frame in self.switch.due(_now_s()):
            self._hand_over(host, frame)

    def _hand_over(self, host: int, frame: bytes) -> None:
        # A host whose interface is down gets nothing.
        with suppress(OSError):
            os.write(self.taps[host], frame)


def serve(hosts: int, orders: IO[bytes]) -> None:
    """Forwards until the orders end."""
    forwarder = _Forwarder(hosts)
    switch, taps = forwarder.switch, forwarder.taps
    by_handle = {handle: host for host, handle in taps.items()}
    print("ready", flush=True)
    # Nothing here makes cycles, and a collection would hold all frames up.
    gc.disable()
    while True:
        wait_s = switch.wait_s(_now_s())
        ready, _, _ = select.select([*by_handle, orders.fileno()], (), (), wait_s)
        for handle in ready:
            if handle in by_handle:
                forwarder.forward(by_handle[handle], TURN_FRAMES_MAX)
                continue
            line = orders.readline()
            if not line:
                return
            for host in taps:
                # What was sent before the order goes as it was before the order.
                forwarder.forward(host, QUEUE_FRAMES)
            print(_obey(switch, taps, json.loads(line)), flush=True)
        forwarder.arrive()


if __name__ == "__main__":
    # Unbuffered: `select` must see every order that waits.
    with open(0, "rb", buffering=0) as given:
        serve(int(sys.argv[1]), given)
