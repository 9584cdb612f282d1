"""A client's connection to the API: uvicorn's, and not held open by a client that says nothing.

Uvicorn ends a kept connection after some seconds of rest, but waits for ever for the first request and
for the end of a head that was begun: 256 such connections kept everybody else out.
"""

import asyncio
import itertools
from typing import Final

from uvicorn.protocols.http.h11_impl import H11Protocol

from node.gateway.problems import plain_problem

IDLE_MAX: Final = 128
"""Connections without a request at a time; when there are more the oldest is closed."""
HEAD_S: Final = 10.0
"""How long a client may take for the head of a request; browsers open connections ahead for less."""
_ORDER = itertools.count()


class Connection(H11Protocol):
    """One connection; `connections` of the server's state holds all of them."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        """Takes its place, the oldest silent one's if there are too many."""
        super().connection_made(transport)
        self.number = next(_ORDER)
        self.is_ended = False
        self._head = self.loop.call_later(HEAD_S, self._head_is_late)
        idle = {
            one.number: one
            for one in self.connections
            if isinstance(one, Connection) and one.is_idle and not one.is_ended
        }
        if len(idle) > IDLE_MAX:
            idle[min(idle)].end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets its time."""
        self._head.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Part of a request; the clock runs while none is complete."""
        was_idle = self.is_idle
        super().data_received(data)
        if not self.is_idle:
            self._head.cancel()
        elif not was_idle or self._head.cancelled():
            self._head.cancel()
            self._head = self.loop.call_later(HEAD_S, self._head_is_late)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, or has a head of more than 64 KiB: a problem document as everywhere."""
        body = plain_problem(400, f"the request cannot be read: {msg.rstrip('.')}")
        text = body.model_dump_json().encode()
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(text)}\r\nconnection: close\r\n\r\n"
        )
        if self.is_idle or not self.cycle.response_started:
            self.transport.write(head.encode("ascii") + text)
        self.transport.close()

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        cycle = getattr(self, "cycle", None)  # declared by uvicorn as never None
        return cycle is None or cycle.response_complete

    def end(self) -> None:
        """Hangs up; the loop says so to all others a turn later."""
        self.is_ended = True
        self.transport.abort()

    def _head_is_late(self) -> None:
        if self.is_idle:
            self.end()
