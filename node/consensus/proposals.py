"""Commands on their way through the log, and who waits for their outcomes."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from ledger.commands import Outcome
from mesh.errors import BusyError, DarkStreamError, UsageError
from mesh.ids import CommandId
from mesh.log import ENTRY_BYTES_MAX

PROPOSALS_MAX: Final = 4_096
"""Commands waiting for the next batch; more are answered `busy`."""

Waiting = asyncio.Future[Outcome]


class Proposals:
    """A command is asked for by its id, however often it is repeated, and entered once."""

    def __init__(self) -> None:
        self._queue: deque[tuple[CommandId, bytes]] = deque()
        self._waiting: dict[CommandId, Waiting] = {}

    @property
    def is_empty(self) -> bool:
        """Whether none waits to be entered."""
        return not self._queue

    def add(self, command_id: CommandId, data: bytes) -> Waiting:
        """Where the outcome will be.  Raises `UsageError` (too large), `BusyError`.

        A repetition gets the same future; whoever gives up must leave it (`asyncio.shield`).
        """
        if len(data) > ENTRY_BYTES_MAX:
            raise UsageError(f"a command has more than {ENTRY_BYTES_MAX} bytes", "split it")
        future = self._waiting.get(command_id)
        if future is None:
            if len(self._queue) >= PROPOSALS_MAX:
                raise BusyError("too many commands wait", "retry in a moment")
            future = self._waiting[command_id] = asyncio.get_running_loop().create_future()
            future.add_done_callback(_retrieve)
            self._queue.append((command_id, data))
        return future

    def take(self, count_max: int) -> list[tuple[CommandId, bytes]]:
        """The commands to be entered next."""
        return [self._queue.popleft() for _ in range(min(count_max, len(self._queue)))]

    def resolve(self, command_id: CommandId, outcome: Outcome) -> None:
        """The command is applied."""
        future = self._waiting.pop(command_id, None)
        if future is not None and not future.done():
            future.set_result(outcome)

    def fail(self, command_id: CommandId, error: DarkStreamError) -> None:
        """The command was not entered, or nobody here will hear of it."""
        future = self._waiting.pop(command_id, None)
        if future is not None and not future.done():
            future.set_exception(error)

    def fail_all(self, error: DarkStreamError) -> None:
        """The same for all."""
        for command_id in tuple(self._waiting):
            self.fail(command_id, error)

    def cancel(self) -> None:
        """The node ends."""
        for future in self._waiting.values():
            future.cancel()


async def outcomes_of(
    asked: Sequence[Waiting | DarkStreamError], timeout_s: float
) -> list[Outcome | DarkStreamError]:
    """Each one's outcome, or why it has none; `BusyError` for what is not committed in time."""
    futures = [one for one in asked if isinstance(one, asyncio.Future)]
    if futures:
        await asyncio.wait(futures, timeout=timeout_s)
    return [one if isinstance(one, DarkStreamError) else _found(one) for one in asked]


def _found(future: Waiting) -> Outcome | DarkStreamError:
    if not future.done():
        return BusyError("not committed yet", "ask again with the same id")
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, DarkStreamError):
        return error
    raise error


def _retrieve(future: Waiting) -> None:
    # A future that nobody waits for any more must not warn about its exception.
    if not future.cancelled():
        future.exception()
