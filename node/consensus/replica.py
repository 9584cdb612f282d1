"""Reads of this node's own ledger, off the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ledger.queries import Reader

T = TypeVar("T")

READERS = 2
"""Threads that read: one for the work loops, one for the faces."""


class Replica:
    """Runs functions of a `Reader` on threads of their own."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="reader")

    async def read(self, query: Callable[[Reader], T]) -> T:
        """What the query returns; it must not keep the reader."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, query, self._reader)

    def close(self) -> None:
        """Waits for running reads and closes the connections."""
        self._threads.shutdown(wait=True)
        self._reader.close()
