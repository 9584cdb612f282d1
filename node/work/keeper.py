"""Keeps to what the owner of this machine allows: pauses FFmpeg, closes the node, ends a drain in time."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final, Protocol

import structlog

from mesh import clock
from node.signals import Signal
from node.work.hours import DAY_MINUTES
from node.work.rules import Steps, WorkRules, closed_because, is_suspended

LOOK_S: Final = 2.0
"""Hours turn by the minute and use by the second; a person's word wakes it at once."""

ANSWER_S: Final = 1.0
"""Counters answer in milliseconds; the driver of a broken chip may never do."""
AWAKE_TODO: Final = "switch its sleep off, or say `keep_awake = false` under [work]"

_log = structlog.get_logger("worker")


class Children(Protocol):
    """The programs that work for others: FFmpeg's runs."""

    def suspend(self, *, still: bool) -> None:
        """Lets those that encode stand still, new ones too, or go on."""
        ...

    def use_nice(self, nice: int) -> None:
        """Their priority from now on, of those that run too where the system lets it."""
        ...

    def use_memory(self, mebibytes: int) -> None:
        """How much each of those that begin from now on may have; 0: as it needs."""
        ...


class WakeLock(Protocol):
    """What keeps the machine from going to sleep; each call may take seconds, from one caller at a time."""

    async def hold(self) -> str:
        """Holds sleep off from now on; why it cannot, or nothing."""
        ...

    async def let_go(self) -> None:
        """The machine may sleep again."""
        ...


class Used(Protocol):
    """How much others use of this machine."""

    def percent(self) -> float | None:
        """Of all that there is, since it was asked last; None where nobody knows."""
        ...


class Draining(Protocol):
    """What works, and can give back what it has."""

    @property
    def running(self) -> tuple[str, ...]:
        """Attempts that run now."""
        ...

    async def give_back(self, what: str) -> None:
        """Stops what runs and gives its leases back."""
        ...


class Keeper:
    """Looks every two seconds, and at once when the rules change."""

    def __init__(
        self,
        *,
        children: Children,
        processors: Used,
        gpu: Used,
        awake: WakeLock | None = None,
    ) -> None:
        """`awake` keeps the machine awake while it works; None: it may sleep."""
        self._children = children
        self._awake = awake
        self._held = False
        self._rules = WorkRules()
        self._steps = Steps()
        self._gpu_steps = Steps()
        self._asked_processors, self._asked_gpu = _Asked(processors), _Asked(gpu)
        self._closed = ""
        self._still = False
        self._finish_ms: int | None = None
        self._changed = Signal()
        self.hand_over: Callable[[], object] = lambda: None
        """Called when a drain begins: lead and vote go to others."""

    @property
    def closed(self) -> str:
        """Why the node takes no new work now; empty while it does."""
        return self._closed

    @property
    def threads(self) -> int:
        """How many threads FFmpeg may use; 0: as it likes."""
        return self._rules.threads

    def use(self, rules: WorkRules, finish_s: int | None = None) -> None:
        """These rules from now on; a drain gives back after `finish_s` what still runs, None: never."""
        if rules.draining and not self._rules.draining:
            self.hand_over()
        if rules.draining:
            if finish_s is not None:
                self._finish_ms = clock.monotonic_ms() + 1_000 * finish_s
        else:
            self._finish_ms = None
        self._rules = rules
        self._children.use_nice(rules.nice)
        self._children.use_memory(rules.memory_mib)
        self._look()
        self._changed.set()

    async def run(self, worker: Draining, wanted: Callable[[], Awaitable[bool]]) -> None:
        """Until cancelled; `wanted` says whether somebody works on films of this machine."""
        try:
            while True:
                seen = self._changed.count
                await self._asked_processors.note(self._steps, self._rules.busy_percent)
                await self._asked_gpu.note(self._gpu_steps, self._rules.gpu_percent)
                self._look()
                if self._awake is not None:
                    works = bool(worker.running) and not self._still
                    await self._stay_awake(works or await wanted())
                if self._finish_ms is not None and clock.monotonic_ms() >= self._finish_ms:
                    self._finish_ms = None
                    await worker.give_back("the node drains, and its time is over")
                await self._changed.wait(seen, LOOK_S)
        finally:
            if self._awake is not None and self._held:
                await self._awake.let_go()

    async def _stay_awake(self, needed: bool) -> None:
        """Holds sleep off while that is needed; where it cannot be, it is said once and not tried again."""
        if self._awake is None or needed == self._held:
            return
        if not needed:
            self._held = False
            await self._awake.let_go()
            return
        if why := await self._awake.hold():
            self._awake = None
            _log.warning("this machine may go to sleep while it works", reason=why, todo=AWAKE_TODO)
            return
        self._held = True

    def _look(self) -> None:
        used = "machine" if self._steps.back else "graphics chip" if self._gpu_steps.back else ""
        back = bool(used)
        closed = closed_because(self._rules, minute_of_week(clock.wall_ms()), used=used)
        if closed != self._closed:
            _log.info("takes work again" if not closed else f"this node {closed}")
            self._closed = closed
        still = is_suspended(self._rules, stepped_back=back)
        if still != self._still:
            self._still = still
            self._children.suspend(still=still)


class _Asked:
    """Asks in a thread, and for no longer than a driver that hangs may hold up everything else."""

    def __init__(self, used: Used) -> None:
        self._used = used
        self._answer: asyncio.Future[float | None] | None = None

    async def note(self, steps: Steps, limit: int) -> None:
        """Takes a sample where there is a limit; what did not answer yet is not asked again."""
        percent = None
        if limit:
            answer = self._answer or asyncio.ensure_future(asyncio.to_thread(self._used.percent))
            await asyncio.wait((answer,), timeout=ANSWER_S)
            self._answer = None if answer.done() else answer
            percent = answer.result() if answer.done() else None
        steps.note(percent, limit, clock.monotonic_ms())


def minute_of_week(wall_ms: int) -> int:
    """Minutes since Monday 00:00 in this machine's time zone."""
    now = datetime.fromtimestamp(wall_ms / 1_000, UTC).astimezone()
    return now.weekday() * DAY_MINUTES + now.hour * 60 + now.minute
