"""Blocking work in threads that a cancelled caller waits for."""

import asyncio
import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

T = TypeVar("T")

BACKGROUND_NICE: Final = 5
"""Behind the loop and the threads of log and ledger, before FFmpeg (10)."""


def in_background() -> None:
    """Lowers this thread behind the rest of its process, where a system can (Linux)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            thread = threading.get_native_id()
            nice = os.getpriority(os.PRIO_PROCESS, thread) + BACKGROUND_NICE
            os.setpriority(os.PRIO_PROCESS, thread, nice)


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


async def resolve(host: str) -> tuple[str, ...]:
    """The addresses of a host; none when it has none now."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    return tuple(dict.fromkeys(str(one[4][0]) for one in found))
