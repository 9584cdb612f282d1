"""Blocking work in threads that a cancelled caller waits for."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


async def run_stoppable(threads: ThreadPoolExecutor, work: Callable[[Callable[[], bool]], T]) -> T:
    """Runs blocking work that looks at `should_stop`; cancelling stops it."""
    stop = threading.Event()
    future = asyncio.get_running_loop().run_in_executor(threads, work, stop.is_set)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        # Only when the thread has let go of its files may they be removed.
        stop.set()
        await asyncio.wait((future,))
        if not future.cancelled():
            future.exception()
        raise
