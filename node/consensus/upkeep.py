"""The regular care of a node's consensus: the log is cut off behind the ledger, lateness is measured."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import structlog

from mesh import clock
from mesh.log import LogStorage
from mesh.protocol import Raft
from node.consensus.compaction import Keep, LogWeight, compaction_point
from node.consensus.loop_lag import PROBE_MS, LoopLag
from node.consensus.snapshot_duty import T
from node.signals import Signal

ALONE_PROBE_MS: Final = 1_000
"""Where nobody else could be elected, lateness is measured for the metrics alone."""
COMPACT_S: Final = 1.0
"""How often the log is looked at, at most: a busy mesh writes some thousand entries meanwhile."""

_log = structlog.get_logger("consensus")


class Host(Protocol):
    """What the upkeep needs of the driver."""

    raft: Raft
    applied_index: int
    ledger_changed: Signal

    async def on_log_thread(self, work: Callable[[], T]) -> T:
        """Runs between two writes of the log."""
        ...

    async def make_durable(self) -> int:
        """The applied index that the ledger holds durably from now on."""
        ...


class Upkeep:
    """Compaction and the measure of lateness."""

    def __init__(
        self,
        host: Host,
        log: LogStorage,
        *,
        keep: Keep,
        election_min_ms: int,
        held: Callable[[int], Sequence[int]],
    ) -> None:
        self.weight = LogWeight()
        self.lag = LoopLag(election_min_ms)
        self._host = host
        self._log = log
        self._keep = keep
        self._held = held
        self._stretch = 100

    async def run(self) -> None:
        """Until cancelled, or until storage fails."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_lag(), name="lag")
            group.create_task(self._compact_often(), name="compact")

    # --- lateness -----------------------------------------------------------------------------------

    async def _watch_lag(self) -> None:
        while True:
            configuration = self._host.raft.configuration
            alone = configuration is not None and len(configuration.ids) == 1
            pause_ms = ALONE_PROBE_MS if alone else PROBE_MS
            due_ms = clock.monotonic_ms() + pause_ms
            await asyncio.sleep(pause_ms / 1000)
            now_ms = clock.monotonic_ms()
            self.late(now_ms - due_ms, now_ms)

    def late(self, lag_ms: int, now_ms: int) -> None:
        """The loop had its turn so much too late: elections wait accordingly."""
        self.lag.late(max(0, lag_ms), now_ms)
        stretch = self.lag.stretch_percent(now_ms)
        if stretch != self._stretch:
            if (stretch > 100) != (self._stretch > 100):
                worst_ms = int(self.lag.worst_ms(now_ms))
                _log.info("time-outs follow the loop", percent=stretch, late_ms=worst_ms)
            self._stretch = stretch
            self._host.raft.stretch(stretch)

    @property
    def stretch_percent(self) -> int:
        """How much longer elections wait at present; 100: not at all."""
        return self._stretch

    # --- compaction ---------------------------------------------------------------------------------

    async def _compact_often(self) -> None:
        while True:
            seen = self._host.ledger_changed.count
            await self.compact()
            await asyncio.sleep(COMPACT_S)
            await self._host.ledger_changed.wait(seen)

    async def compact(self) -> None:
        """Forgets what of the log nobody needs and the ledger holds durably."""
        point = self._point()
        if point is None:
            return
        durable = await self._host.make_durable()
        before = self._log.base().index
        base = self._host.raft.base_at(min(point, durable))
        if base is None or base.index <= before:
            return
        # Told first: the core must read nothing that is about to go.
        self._host.raft.compacted(base)
        await self._host.on_log_thread(lambda: self._log.compact(base))
        self.weight.forget(base.index)
        _log.debug("log compacted", entries=base.index - before, base=base.index)

    def _point(self) -> int | None:
        base = self._log.base().index
        # Who is behind the log already is served by a snapshot; what follows that is held for it.
        living = [
            peer.match for peer in self._host.raft.progress() if peer.active and peer.match >= base
        ]
        return compaction_point(
            base=base,
            applied=self._host.applied_index,
            weight=self.weight,
            keep=self._keep,
            needed=[*living, *self._held(clock.monotonic_ms())],
        )

    def applied(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Entries were applied: (index, bytes) of each."""
        for index, size in sizes:
            self.weight.note(index, size)
