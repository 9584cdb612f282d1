"""Keeps this machine awake, by the means of its system: wakepy (Linux desktops, macOS, Windows)."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from wakepy import Mode

REASON_CHARS_MAX: Final = 80
"""Of one means: a system's own words can be long."""
MEANS_TOLD_MAX: Final = 2
"""A system has up to six, and one that has none says much the same of each."""
_NO_BUS: Final = "DBUS_SESSION_BUS_ADDRESS"


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
        # Systems that this one is not are left out; what is left says the same of each of its means.
        tried = [(one.method_name, one.failure_reason) for one in mode.result.list_methods()]
        mode.__exit__(None, None, None)
        return _said(tried)

    def _leave(self) -> None:
        mode, self._mode = self._mode, None
        if mode is not None:
            mode.__exit__(None, None, None)


def _said(tried: Sequence[tuple[str, str]]) -> str:
    """Why nothing that was tried holds sleep off, in a line for a person."""
    if any(_NO_BUS in why for _, why in tried):
        return f"it runs outside a desktop's session ({_NO_BUS} is not set), as services and containers do"
    told = [f"{name}: {' '.join(why.split())[:REASON_CHARS_MAX]}" for name, why in tried]
    more = [f"{len(told) - MEANS_TOLD_MAX} more alike"] if len(told) > MEANS_TOLD_MAX else []
    return "; ".join(told[:MEANS_TOLD_MAX] + more) or "no means of this system is known"
