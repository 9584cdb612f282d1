"""Waiting for the next change of something, without polling and without losing a change."""

import asyncio
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
