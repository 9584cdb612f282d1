"""Small files of one peer travel together: whoever comes while some are on their way joins them.

A hundred short results are a hundred coroutines that want one file each: each in a thread and an
exchange of its own would cost more than their bytes.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Protocol

import structlog

from mesh.errors import DarkStreamError, TransferError
from mesh.ids import NodeId
from mesh.transfer import Brought, Manifest, NextFile, Target, Wanted
from mesh.transport import CHUNK_BYTES

_log = structlog.get_logger("transfer")

Several = Callable[[NodeId, NextFile, Callable[[], bool]], Generator[Brought]]
"""(peer, next file, whether to stop) → what became of each file; runs in a thread."""


class RunInThread(Protocol):
    """Runs blocking work in a thread that a cancelled caller waits for."""

    async def __call__(self, work: Callable[[Callable[[], bool]], None], /) -> None:
        """Raises what the work raised."""
        ...


class _Item:
    """One file, and whether its caller still wants it."""

    def __init__(self, handle: str, target: Target, expected: Manifest) -> None:
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.wanted = Wanted(
            handle=handle,
            expected=expected,
            target=target,
            claim=self._claim,
            should_stop=lambda: self.is_dropped,
        )
        self.is_dropped = self._is_unwritten = False
        self._token = [self.wanted]
        """Whoever takes it decides whether the file is written."""

    def _claim(self) -> bool:
        try:
            self._token.pop()
        except IndexError:
            return False
        return True

    def drop(self) -> bool:
        """Its caller is gone; whether nothing will be written for it."""
        self.is_dropped = True
        self._is_unwritten = self._claim()
        return self._is_unwritten

    def tell(self, error: DarkStreamError | None) -> None:
        if self.future.done():
            return
        if self._is_unwritten:
            self.future.cancel()  # nobody waits for it any more
        elif error is None:
            self.future.set_result(None)
        else:
            self.future.set_exception(error)


class SmallFiles:
    """Brings files of a chunk at most; all methods are for the loop's thread."""

    def __init__(
        self, several: Several, run: RunInThread, target_at: Callable[[Path], Target]
    ) -> None:
        self._several = several
        self._target_at = target_at
        self._run = run
        self._queues: dict[NodeId, deque[_Item]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @staticmethod
    def are(expected: Manifest) -> bool:
        """Whether a file is small enough."""
        return expected.size <= CHUNK_BYTES

    async def bring(self, peer: NodeId, handle: str, path: Path, expected: Manifest) -> None:
        """Returns when the file lies there, verified and durable.  Raises what a transfer can meet."""
        item = _Item(handle, self._target_at(path), expected)
        queue = self._queues.get(peer)
        if queue is None:
            queue = self._queues[peer] = deque()
            task = asyncio.get_running_loop().create_task(self._drain(peer, queue))
            self._tasks.add(task)
            task.add_done_callback(self._drained)
        queue.append(item)
        try:
            await asyncio.shield(item.future)
        except asyncio.CancelledError:
            # Only when nothing is written any more may the caller remove what was.
            if not item.drop():
                await asyncio.wait((item.future,))
            if item.future.done() and not item.future.cancelled():
                item.future.exception()
            raise

    def _drained(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("small files could not be brought", exc_info=error)

    async def _drain(self, peer: NodeId, queue: deque[_Item]) -> None:
        loop = asyncio.get_running_loop()
        under_way: dict[int, _Item] = {}

        def next_file() -> Wanted | None:
            while queue:
                item = queue.popleft()
                if item.is_dropped:
                    continue
                under_way[id(item.wanted)] = item
                return item.wanted
            return None

        def work(should_stop: Callable[[], bool]) -> None:
            for done in self._several(peer, next_file, should_stop):
                item = under_way.pop(id(done.wanted))
                loop.call_soon_threadsafe(item.tell, done.error)

        fault: DarkStreamError = TransferError("the transfer was stopped", "try again")
        try:
            while any(not item.is_dropped for item in queue):
                await self._run(work)
        except DarkStreamError as error:
            fault = error
        finally:
            del self._queues[peer]
            for item in (*under_way.values(), *queue):
                item.tell(fault)
