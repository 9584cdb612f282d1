"""The thread that writes the log, and what a leader goes on with while it waits for the disk."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mesh import clock
from mesh.effects import Effect, ReadReady, Send
from mesh.log import Entry, HardState, LogStorage
from mesh.messages import ConsensusMessage, Heartbeat, HeartbeatAck
from mesh.protocol import Raft

T = TypeVar("T")


class LogWriter:
    """One write at a time, in order.

    A heartbeat promises nothing but the term, and its answer nothing at all.  So once the term is
    durable a leader's heartbeats go out and their answers are heard during a write as well: no disk
    that stalls for a second may silence a leader that is alive, or cost it its own quorum.
    Whatever else the core says meanwhile waits for the end of the write.
    """

    def __init__(
        self,
        raft: Raft,
        log: LogStorage,
        *,
        send: Callable[[ConsensusMessage], None],
        tell: Callable[[ReadReady], None],
    ) -> None:
        self._raft = raft
        self._log = log
        self._send = send
        self._tell = tell
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="log")
        self.writes = 0
        """How many were made: each is one sync."""
        self._held: list[Effect] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def persist(self, hard_state: HardState | None, entries: Sequence[Entry]) -> list[Effect]:
        """Returns once all is durable, with what the core wants done after it."""
        held: list[Effect] = []
        if self._leads and self._log.hard_state().term == self._raft.term:
            self._held = held
            self._wait_for_beat()
        try:
            await self.run(lambda: self._log.persist(hard_state, entries))
            self.writes += 1
        finally:
            self._held = None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        return held

    async def run(self, work: Callable[[], T]) -> T:
        """Runs between two writes."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def heard(self, ack: HeartbeatAck) -> bool:
        """Takes an answer during a write of a leader; False: it is for the next batch."""
        if self._held is None:
            return False
        self._take(self._raft.receive(ack, clock.monotonic_ms()))
        return True

    def close(self) -> None:
        """Waits for the last write."""
        self._thread.shutdown(wait=True)

    @property
    def _leads(self) -> bool:
        return self._raft.leader == self._raft.raft_id

    def _wait_for_beat(self) -> None:
        left_ms = max(0, self._raft.next_deadline_ms() - clock.monotonic_ms())
        self._timer = asyncio.get_running_loop().call_later(left_ms / 1000, self._beat)

    def _beat(self) -> None:
        self._take(self._raft.tick(clock.monotonic_ms()))
        if self._leads:
            self._wait_for_beat()

    def _take(self, effects: Sequence[Effect]) -> None:
        assert self._held is not None, "only during a write"
        for effect in effects:
            match effect:
                case Send(message=Heartbeat() as message):
                    self._send(message)
                case ReadReady():
                    self._tell(effect)
                case _:
                    self._held.append(effect)
