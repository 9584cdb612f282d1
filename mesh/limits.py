"""How fast bytes may go: token buckets for the node and for each link, up and down.  No clock, no locks."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, get_args

from mesh.ids import NodeId

Direction = Literal["up", "down"]
_BOTH: Final[tuple[Direction, ...]] = get_args(Direction)

BURST_MS: Final = 100
"""What may go at once after a rest, in time at the full rate: 1 % of a measurement of ten seconds."""
RATE_BYTES_S_MAX: Final = 1 << 40
_UNITS: Final = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "ki": 1 << 10,
    "mi": 1 << 20,
    "gi": 1 << 30,
}
_RATE: Final = re.compile(
    r"(\d{1,12}(?:\.\d{1,3})?)\s*([kmg]i?)?\s*(b|bit)?(?:/s|ps)?", re.IGNORECASE
)


def parse_rate(text: str) -> int:
    """Bytes a second from what people write: 20M, 20 MB/s, 1.5 MiB/s, 100 Mbit/s; off is 0.

    Raises ValueError.
    """
    if text.strip().lower() in {"off", "none", "0"}:
        return 0
    match = _RATE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no rate; write it as 20MB/s, 500k, 100Mbit/s or off")
    number, unit, kind = match.groups()
    rate = float(number) * _UNITS[(unit or "").lower()]
    rate = int(rate / 8 if (kind or "").lower() == "bit" else rate)
    if not 1 <= rate <= RATE_BYTES_S_MAX:
        raise ValueError(f"{text!r} is less than a byte a second or more than a terabyte")
    return rate


def rate_text(rate: int) -> str:
    """A rate for people."""
    if not rate:
        return "off"
    for unit, size in (("GB/s", 10**9), ("MB/s", 10**6), ("kB/s", 10**3)):
        if rate >= size:
            return f"{rate / size:.3g} {unit}"
    return f"{rate} B/s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Bytes a second, 0 for as fast as it goes."""

    up: int = 0
    down: int = 0

    def of(self, direction: Direction) -> int:
        """The rate of one direction."""
        return self.up if direction == "up" else self.down


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRates:
    """What holds for a node altogether, and for its links with single peers."""

    node: Rates = field(default_factory=Rates)
    links: Mapping[NodeId, Rates] = field(default_factory=lambda: MappingProxyType({}))


class Bucket:
    """Tokens are bytes.  Whoever finds any may take more than there are; the debt is waited for.

    So a chunk larger than the burst passes, and the rate over time is exact.
    """

    def __init__(self, rate: int, now_ms: int) -> None:
        assert 0 <= rate <= RATE_BYTES_S_MAX, rate
        self.rate = rate
        # In thousandths of a byte: a rate in bytes a second gives whole ones for each millisecond.
        self._tokens = rate * BURST_MS
        self._now_ms = now_ms

    def change(self, rate: int, now_ms: int) -> None:
        """Another rate from now on; a debt at a slow one is not paid at it for long."""
        assert 0 <= rate <= RATE_BYTES_S_MAX, rate
        self._fill(now_ms)
        # Whoever went as fast as it goes owes nothing.
        self._tokens = min(self._tokens, rate * BURST_MS) if self.rate else rate * BURST_MS
        self.rate = rate

    def delay_ms(self, now_ms: int) -> int:
        """How long until something may go; 0: now."""
        if not self.rate:
            return 0
        self._fill(now_ms)
        return 0 if self._tokens > 0 else -self._tokens // self.rate + 1

    def spend(self, count: int) -> None:
        """So many bytes went or were asked for."""
        if self.rate:
            self._tokens -= count * 1_000

    def _fill(self, now_ms: int) -> None:
        passed_ms = max(0, now_ms - self._now_ms)
        self._now_ms = max(now_ms, self._now_ms)
        self._tokens = min(self._tokens + self.rate * passed_ms, self.rate * BURST_MS)


class Limits:
    """All buckets of a node; asks and spends name the peer and the direction."""

    def __init__(self) -> None:
        self._rates = LinkRates()
        self._node: dict[Direction, Bucket] = {}
        self._links: dict[tuple[NodeId, Direction], Bucket] = {}

    @property
    def rates(self) -> LinkRates:
        """What holds now."""
        return self._rates

    def change(self, rates: LinkRates, now_ms: int) -> None:
        """Other rates from now on, also for what runs."""
        self._rates = rates
        for direction in _BOTH:
            self._node.setdefault(direction, Bucket(0, now_ms)).change(
                rates.node.of(direction), now_ms
            )
        self._links = {key: old for key, old in self._links.items() if key[0] in rates.links}
        for peer, link in rates.links.items():
            for direction in _BOTH:
                bucket = self._links.setdefault((peer, direction), Bucket(0, now_ms))
                bucket.change(link.of(direction), now_ms)

    def delay_ms(self, peer: NodeId, direction: Direction, now_ms: int) -> int:
        """How long until bytes may go to or come from this peer; 0: now."""
        return max((b.delay_ms(now_ms) for b in self._of(peer, direction)), default=0)

    def spend(self, peer: NodeId, direction: Direction, count: int) -> None:
        """So many bytes go to this peer, or were asked of it."""
        for bucket in self._of(peer, direction):
            bucket.spend(count)

    def _of(self, peer: NodeId, direction: Direction) -> tuple[Bucket, ...]:
        found = (self._node.get(direction), self._links.get((peer, direction)))
        return tuple(bucket for bucket in found if bucket is not None and bucket.rate)
