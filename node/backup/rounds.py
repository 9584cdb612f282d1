"""One way of backing up, again and again beside the node's work: what failed is shown and tried again."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import structlog

from mesh import clock
from mesh.election import RandomSource
from mesh.errors import DarkStreamError
from node.signals import Signal

Kind = Literal["archive", "litestream"]

RETRY_FIRST_MS: Final = 2_000
RETRY_MAX_MS: Final = 300_000
"""Five minutes: what stood still for hours goes on soon after it is mended."""
LAST_ROUND_S: Final = 10.0
"""What a stopping node gives a last round; what it lacks then comes with the next start."""

_log = structlog.get_logger("backup")


@dataclass(slots=True, kw_only=True)
class BackupState:
    """How far one way is; `done_ms` by the wall clock, None before the first success."""

    kind: Kind
    target: str
    here: bool = True
    """It runs on this node now; litestream runs where the coordinator is."""
    index: int = 0
    """Everything up to this entry is there."""
    done_ms: int | None = None
    drilled_ms: int | None = None
    """When what was backed up was last brought back and found equal."""
    failures: int = 0
    """Since the start."""
    fault: DarkStreamError | None = None


class Watched(Protocol):
    """What rounds need of the driver."""

    applied_index: int
    ledger_changed: Signal


Round = Callable[[], Awaitable[int]]
"""Backs up once; the index up to which everything is there.  Raises `DarkStreamError`."""


class Rounds:
    """Runs a round when something was decided since the last, at most every `every_s` seconds."""

    def __init__(
        self,
        state: BackupState,
        *,
        host: Watched,
        every_s: int,
        first_ms: int,
        run_once: Round,
        random: RandomSource,
    ) -> None:
        """The first round begins within `first_ms`, by chance: nodes may share a folder."""
        self.state = state
        self._host = host
        self._every_s = every_s
        self._first_ms = first_ms
        self._run_once = run_once
        self._random = random
        self._one = asyncio.Lock()
        self._in_a_row = 0

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.sleep(self._random.randrange(0, self._first_ms + 1) / 1000)
        while True:
            seen = self._host.ledger_changed.count
            if await self._round():
                await asyncio.sleep(self._every_s)
                await self._host.ledger_changed.wait(seen)
            else:
                await asyncio.sleep(self._pause_ms() / 1000)

    async def finish(self) -> None:
        """What was decided last, before the node stops; not where the last try failed."""
        if self.state.fault is None and self.state.index < self._host.applied_index:
            try:
                async with asyncio.timeout(LAST_ROUND_S):
                    await self._round()
            except TimeoutError:
                _log.warning("no time for a last backup", kind=self.state.kind)

    async def _round(self) -> bool:
        async with self._one:
            state = self.state
            if state.fault is None and state.index >= self._host.applied_index:
                return True
            try:
                state.index = await self._run_once()
            except DarkStreamError as error:
                state.failures += 1
                self._in_a_row += 1
                if state.fault is None or state.fault.what != error.what:
                    _log.warning(
                        "a backup failed", kind=state.kind, why=error.line(), target=state.target
                    )
                state.fault = error
                return False
            if state.fault is not None:
                _log.info("backups go on", kind=state.kind, index=state.index)
            state.fault, self._in_a_row = None, 0
            state.done_ms = clock.wall_ms()
            return True

    def _pause_ms(self) -> int:
        """Twice as long each time, and up to a quarter more by chance."""
        doubled = min(RETRY_FIRST_MS << min(self._in_a_row - 1, 16), RETRY_MAX_MS)
        return doubled + self._random.randrange(0, doubled // 4)
