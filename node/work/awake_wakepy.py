"""Keeps this machine awake, by the means of its system: wakepy (Linux desktops, macOS, Windows)."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wakepy import Mode


class SystemWakeLock:
    """A `WakeLock`.  Without a session's bus, as in a service or a container, there is nobody to ask."""

    def __init__(self) -> None:
        # wakepy wants to be left in the thread in which it was entered; a bus that hangs holds up nobody.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="awake")
        self._mode: Mode | None = None

    async def hold(self) -> str:
        """Why sleep cannot be held off, or nothing: then it is."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._enter)

    async def let_go(self) -> None:
        """The machine may sleep again."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._leave)

    def _enter(self) -> str:
        from wakepy import keep  # noqa: PLC0415 - many nodes never need it, and starts should be short

        mode = keep.running(on_fail="pass")
        mode.__enter__()
        if mode.active:
            self._mode = mode
            return ""
        why = mode.result.get_failure_text(style="inline")
        mode.__exit__(None, None, None)
        return " ".join(why.split()) or "no means of this system is known"

    def _leave(self) -> None:
        mode, self._mode = self._mode, None
        if mode is not None:
            mode.__exit__(None, None, None)
