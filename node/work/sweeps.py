"""Carries out orders about many jobs while this node leads: step by step, so that others get their turn."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import structlog

from ledger.jobs import Sweep
from ledger.orders import ORDERED_PER_COMMAND_MAX, ForgetJobs, StepSweep
from mesh import clock
from mesh.errors import DarkStreamError, StorageError
from node.consensus.driver import Driver
from node.consensus.proposer import Proposer
from node.consensus.replica import Replica
from node.settings.sections import HistoryConfig

STEP_JOBS: Final = ORDERED_PER_COMMAND_MAX
"""Some 10 ms of the thread that applies: what any other command waits at most for one step."""
LOOK_S: Final = 2.0
AGAIN_S: Final = 1.0
FORGET_EVERY_MS: Final = 60_000
FORGET_JOBS: Final = 64
"""Jobs that one command removes: a film in pieces has a thousand rows."""
_DAY_MS: Final = 86_400_000

_log = structlog.get_logger("node")


class Sweeps:
    """The coordinator's hand: orders that are open, and jobs that are old enough to be forgotten."""

    def __init__(
        self,
        *,
        driver: Driver,
        proposer: Proposer,
        replica: Replica,
        kept: HistoryConfig,
    ) -> None:
        self._driver = driver
        self._proposer = proposer
        self._replica = replica
        self._kept = kept
        self._forgotten_ms = -FORGET_EVERY_MS

    async def keep(self) -> None:
        """While this node leads."""
        while self._driver.is_leader:
            seen = self._driver.ledger_changed.count
            try:
                busy = await self._step() or await self._forget()
            except StorageError:
                raise
            except DarkStreamError as error:
                _log.warning("an order waits", reason=error.what)
                await self._driver.leader_changed.wait(self._driver.leader_changed.count, AGAIN_S)
                continue
            if not busy:
                await self._driver.ledger_changed.wait(seen, LOOK_S)

    async def _step(self) -> bool:
        """Carries out the oldest order; whether there was one."""
        sweeps = await self._replica.read(lambda reader: reader.open_sweeps())
        if not sweeps:
            return False
        sweep: Sweep = sweeps[0]
        page = await self._page(sweep)
        while True:
            last = len(page) < STEP_JOBS
            step = StepSweep(
                sweep=sweep.id,
                cursor=sweep.cursor,
                down_to=0 if last else page[-1][0],
                jobs=tuple(job for _, job in page),
                last=last,
            )
            proposed = self._proposer.propose(step, cause=sweep.id)
            if last:
                outcome = await proposed
                break
            sweep = replace(sweep, cursor=step.down_to)
            # The next step is read while this one is decided and applied: it touches other jobs.
            outcome, page = await asyncio.gather(proposed, self._page(sweep))
            if not outcome.ok:
                break
        if outcome.ok:
            _log.info("an order is carried out", order=sweep.id, action=sweep.action, by=sweep.by)
        return True

    async def _page(self, sweep: Sweep) -> Sequence[tuple[int, str]]:
        return await self._replica.read(lambda reader: reader.sweep_page(sweep, STEP_JOBS))

    async def _forget(self) -> bool:
        """Removes some jobs that are old enough; whether there were any."""
        now_ms = clock.monotonic_ms()
        if now_ms - self._forgotten_ms < FORGET_EVERY_MS:
            return False
        # By the wall clock of whoever wrote when a job ended: a retention of days forgives minutes.
        before_ms = clock.wall_ms() - self._kept.keep_days * _DAY_MS if self._kept.keep_days else 0
        old = await self._replica.read(
            lambda reader: reader.to_forget(
                ended_before_ms=before_ms, keep=self._kept.keep_jobs, limit=FORGET_JOBS
            )
        )
        if not old:
            self._forgotten_ms = now_ms
            return False
        jobs = tuple(job.id for job in old)
        await self._proposer.propose(ForgetJobs(jobs=jobs), cause="retention")
        return True
