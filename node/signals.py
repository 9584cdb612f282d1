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
