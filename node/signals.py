"""Waiting for the next change of something, without polling and without losing a change."""

import asyncio
import heapq
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from mesh import clock

FLOOD_PER_S: Final = 150
"""Changes a second above which a paced signal rests longer: there all who look cost a tenth of the speed."""
FLOOD_REST: Final = 4
"""Times as long."""


class Signal:
    """Counts changes; a waiter names the count that it has seen and wakes at the next one."""

    def __init__(self) -> None:
        self.count = 0
        self._event = asyncio.Event()

    def set(self, changes: int = 1) -> None:
        """Announces a change, or several that came at once, to every waiter."""
        del changes  # one word for all
        self.count += 1
        event, self._event = self._event, asyncio.Event()
        event.set()

    async def wait(self, seen: int, timeout_s: float | None = None) -> int:
        """Returns the present count once it differs from `seen`, or when the time is over."""
        if self.count == seen:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._event.wait()
        return self.count


class PacedSignal(Signal):
    """A signal that wakes soon after quiet, and once every `interval_s` while busy.

    For those who look at everything anew each time: a thousand changes a second are then twenty
    looks, and where more than `FLOOD_PER_S` come, five.  The first change after quiet is told after
    `first_s`, with what came meanwhile.  The last change of a burst is always announced.
    """

    def __init__(self, interval_s: float, first_s: float = 0.0) -> None:
        super().__init__()
        self._interval_s = interval_s
        self._first_s = first_s
        self._resting: asyncio.TimerHandle | None = None
        self._missed = 0

    def set(self, changes: int = 1) -> None:
        """Announces changes now or soon, or when the present interval is over."""
        if self._resting is None and not self._first_s:
            super().set()
            self._rest(self._interval_s)
            return
        self._missed += changes
        if self._resting is None:
            self._rest(self._first_s)

    def _rest(self, rest_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._resting = loop.call_later(rest_s, self._rested, rest_s)

    def _rested(self, rested_s: float) -> None:
        self._resting = None
        if self._missed:
            flood = rested_s >= self._interval_s and self._missed > FLOOD_PER_S * rested_s
            self._missed = 0
            super().set()
            self._rest(self._interval_s * (FLOOD_REST if flood else 1))


class Quiet:
    """Whether something may be done by itself, at once, that is cheaper together with more of its kind.

    After quiet it may, `burst` times; then once every `interval_ms`.  Time is an argument.
    """

    def __init__(self, interval_ms: int, burst: int) -> None:
        self._interval_ms = interval_ms
        self._burst = burst
        self._spent_until_ms = 0

    def allows(self, now_ms: int) -> bool:
        """Now?  Who asks does it then."""
        spent_ms = max(0, self._spent_until_ms - now_ms)
        if spent_ms > (self._burst - 1) * self._interval_ms:
            return False
        self._spent_until_ms = now_ms + spent_ms + self._interval_ms
        return True


class Alarm:
    """Rings at a time that is mostly put off before it comes: to put it off costs nothing."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._due_ms = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms = 0

    def set(self, due_ms: int) -> None:
        """Rings at this time (`clock.monotonic_ms`) instead of the one before."""
        self._due_ms = due_ms
        if self._timer is None or due_ms < self._timer_ms:
            self._start()

    def close(self) -> None:
        """Rings no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self) -> None:
        self.close()
        self._timer_ms = self._due_ms
        left_ms = max(0, self._due_ms - clock.monotonic_ms())
        self._timer = asyncio.get_running_loop().call_later(left_ms / 1000, self._look)

    def _look(self) -> None:
        self._timer = None
        if clock.monotonic_ms() < self._due_ms:
            self._start()
        else:
            self._ring()


class IndexWaits:
    """Those who wait until a growing index has come as far as theirs; only these are woken."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, asyncio.Future[None]]] = []
        self._count = 0

    @property
    def is_waited_for(self) -> bool:
        """Whether somebody waits, or did until his time was over, for an index that is to come."""
        return bool(self._heap)

    async def wait(self, index: int, timeout_s: float) -> bool:
        """Whether `index` is reached before the time is over."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._heap, (index, self._count, future))
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            return False
        return True

    def reached(self, index: int) -> None:
        """Wakes whoever waits for `index` or less."""
        while self._heap and self._heap[0][0] <= index:
            _, _, future = heapq.heappop(self._heap)
            if not future.done():  # whose time was over stays here until its index comes
                future.set_result(None)
