"""Who is woken by which change of the ledger.

Most who follow it look at all of it, paced.  Those on a job's way from its submission to its end
are told of what concerns them alone, at once: each look of theirs is some queries, and a job is
four changes, each of which waits for the one before.
"""

import asyncio
from collections.abc import Awaitable, Callable, Set
from typing import Final, NamedTuple

from ledger.touched import Touched
from mesh import clock
from mesh.ids import NodeId
from node.signals import PacedSignal, Signal

LOOKS_S: Final = 0.05
"""Those who follow all of the ledger look at most so often."""
FIRST_LOOK_S: Final = 0.02
"""And so long after the first change of many: those on a job's way go first, its next changes are seen with it, and no person notices."""
LOOKS_AT_ONCE: Final = 8
"""Looks of those on a job's way that are free after quiet."""
REST_TIMES: Final = 2
"""Who was overtaken by news while it looked rests so many times as long as it looked: what comes in gusts is seen together, and all that look take a third of a processor each at most."""
BUSY_REST_TIMES: Final = 9
"""After `LOOKS_AT_ONCE` looks without quiet, where they find nothing to do: a tenth of a processor. Looks at each of some hundred changes a second took the coordinator as long as the changes themselves."""
REST_MAX_S: Final = 0.05

Touches = Set[Touched] | None
"""What a batch concerns; None: anything, for the ledger was replaced."""


class News:
    """A signal for each concern."""

    def __init__(self, own: NodeId) -> None:
        self._own = own
        self.all: Signal = PacedSignal(LOOKS_S, FIRST_LOOK_S)
        self.leases = Signal()
        """Leases of this node, and what it may do."""
        self.films = Signal()
        """Jobs whose films lie here, and leases of them wherever they are."""
        self.work = Signal()
        """What leases are decided by: tasks, leases, nodes, members, tenants."""
        self.row = Signal()
        """What the mesh knows of this node."""
        self.members = Signal()
        """Who belongs."""

    def tell(self, touched: Touches, changes: int = 1) -> None:
        """A batch of so many entries was applied."""
        tables = None if touched is None else {table for table, _ in touched}
        # In this order they wake: whose turn it is on a job's way comes first.
        if touched is None or touched & {("attempt", self._own), ("node", self._own)}:
            self.leases.set()
        if touched is None or touched & {("job", self._own), ("task", self._own), ("job", "")}:
            self.films.set()
        if tables is None or tables & {"task", "attempt", "node", "member", "tenant"}:
            self.work.set()
        if touched is None or ("node", self._own) in touched:
            self.row.set()
        if tables is None or tables & {"member", "mesh"}:
            self.members.set()
        self.all.set(changes)


class Look(NamedTuple):
    """What came of a look at the ledger."""

    again_s: float
    """When to look again at the latest."""
    found: bool = False
    """Whether there was something to do: tasks of a millisecond are worth looks without end."""
    then: Awaitable[None] | None = None
    """What the next look waits for, though it is no looking: what this one decided enters the ledger."""


class Pace:
    """How long who follows rests after a look: looks after quiet are free, looks without end are not."""

    def __init__(self, now_ms: int) -> None:
        self._left, self._before_ms = float(LOOKS_AT_ONCE), now_ms

    def rest_s(
        self, begun_ms: int, ended_ms: int, *, overtaken: bool, found: bool = False
    ) -> float:
        """After a look between these times of a monotonic clock; `overtaken` by news meanwhile."""
        earned = (begun_ms - self._before_ms) / 1_000 / LOOKS_S
        left, self._before_ms = min(LOOKS_AT_ONCE, self._left + earned), begun_ms
        self._left = max(0.0, left - 1)
        times = REST_TIMES if overtaken else 0
        if left < 1:
            times = REST_TIMES if found else BUSY_REST_TIMES
        return min(REST_MAX_S, times * (ended_ms - begun_ms) / 1_000)


async def follow(news: Signal, look: Callable[[], Awaitable[Look]]) -> None:
    """Looks, and again at the next news or after the seconds that the look says, until cancelled."""
    pace = Pace(clock.monotonic_ms())
    while True:
        seen = news.count
        begun_ms = clock.monotonic_ms()
        again_s, found, then = await look()
        ended_ms = clock.monotonic_ms()
        overtaken = news.count != seen
        rest_s = pace.rest_s(begun_ms, ended_ms, overtaken=overtaken, found=found)
        if then is not None:
            await then
        if (left_s := rest_s - (clock.monotonic_ms() - ended_ms) / 1_000) > 0:
            await asyncio.sleep(left_s)
        await news.wait(seen, again_s)
