"""A bounded ring of the latest events, from which listeners read at their own speed."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from node.gateway.models import Event

EVENTS_MAX = 1_024
"""Kept for resuming: about a minute of a mesh of 30 workers that report twice a second each."""


class EventRing:
    """Keeps the latest events; a listener that falls behind is told so by one `gap`.

    `first_id` must be above every id that an earlier process gave (its wall clock at start, in
    microseconds, does that), so that a listener of that process resumes with a gap and no mistake.
    """

    def __init__(self, first_id: int, *, events_max: int = EVENTS_MAX) -> None:
        self._ring: deque[Event] = deque(maxlen=events_max)
        self._next_id = first_id
        self._news = asyncio.Event()
        self._closed = False
        self._listeners = 0

    @property
    def has_listeners(self) -> bool:
        """Whether anybody reads now."""
        return self._listeners > 0

    @property
    def last_id(self) -> int:
        """The id of the latest event (one below the first while there is none)."""
        return self._next_id - 1

    def publish(self, event: Event) -> Event:
        """Gives the event its id and wakes every listener; returns it with the id."""
        numbered = event.model_copy(update={"id": self._next_id})
        self._next_id += 1
        self._ring.append(numbered)
        self._wake()
        return numbered

    def close(self) -> None:
        """Ends every listener."""
        self._closed = True
        self._wake()

    def listen(self, after_id: int | None = None) -> AsyncIterator[Event]:
        """Events after `after_id`, or from this call on, until `close`; the gateway bounds how many listen."""
        return self._follow(self.last_id if after_id is None else after_id)

    async def _follow(self, position: int) -> AsyncIterator[Event]:
        self._listeners += 1
        try:
            while not self._closed:
                news = self._news
                for event in self._after(position):
                    position = event.id
                    yield event
                if position == self.last_id:
                    await news.wait()
        finally:
            self._listeners -= 1

    def _after(self, position: int) -> list[Event]:
        oldest = self._next_id - len(self._ring)
        if position > self.last_id or position < oldest - 1:
            at_ms = self._ring[-1].at_ms if self._ring else 0
            return [Event(id=self.last_id, kind="gap", at_ms=at_ms)]
        return [event for event in self._ring if event.id > position]

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
