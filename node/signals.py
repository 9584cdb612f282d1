"""Waiting for the next change of something, without polling and without losing a change."""

import asyncio
import heapq
from contextlib import suppress


class Signal:
    """Counts changes; a waiter names the count that it has seen and wakes at the next one."""

    def __init__(self) -> None:
        self.count = 0
        self._event = asyncio.Event()

    def set(self) -> None:
        """Announces a change to every waiter."""
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
    """A signal that wakes at once after quiet, and at most once every `interval_s` while busy.

    For those who look at everything anew each time: a thousand changes a second are then twenty
    looks.  The last change of a burst is always announced.
    """

    def __init__(self, interval_s: float) -> None:
        super().__init__()
        self._interval_s = interval_s
        self._resting: asyncio.TimerHandle | None = None
        self._missed = False

    def set(self) -> None:
        """Announces a change now, or when the present interval is over."""
        if self._resting is not None:
            self._missed = True
            return
        super().set()
        loop = asyncio.get_running_loop()
        self._resting = loop.call_later(self._interval_s, self._rested)

    def _rested(self) -> None:
        self._resting = None
        if self._missed:
            self._missed = False
            self.set()


class IndexWaits:
    """Those who wait until a growing index has come as far as theirs; only these are woken."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, asyncio.Future[None]]] = []
        self._count = 0

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
