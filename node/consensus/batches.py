"""Proposals of one node to the coordinator, many to a call.

A proposal that finds nothing on its way leaves at once; what comes while `CALLS_MAX` calls are out
leaves together with the next.  So a lone command waits for nobody, and a thousand cost a handful of
frames.
"""

import asyncio
from collections import deque
from typing import Final

from ledger.commands import ENVELOPES, Outcome
from mesh.codec import pack, unpack
from mesh.errors import BusyError, DarkStreamError, WireError
from mesh.ids import NodeId
from node.requests import Requests, error_of

METHOD: Final = "ledger.propose"
CALLS_MAX: Final = 4
"""Calls out at once to a coordinator: while one is committed, others travel and are checked."""
COMMANDS_PER_CALL_MAX: Final = 256
CALL_BYTES_MAX: Final = 2 << 20
"""A call must fit a control frame (4 MiB); one command has at most 1 MiB."""
WAITING_MAX: Final = 4_096
"""Commands waiting for a call; more are answered `busy`."""

Answer = Outcome | DarkStreamError


class Batches:
    """Calls `METHOD` of the coordinator with everything that waits for it."""

    def __init__(self, requests: Requests, timeout_s: float) -> None:
        self._requests = requests
        self._timeout_s = timeout_s
        self._waiting: dict[NodeId, deque[tuple[bytes, asyncio.Future[Outcome]]]] = {}
        self._calls: dict[NodeId, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def propose(self, leader: NodeId, data: bytes) -> Outcome:
        """The coordinator's outcome of a sealed command.  Raises its error, or `UnreachableError`."""
        waiting = self._waiting.setdefault(leader, deque())
        if len(waiting) >= WAITING_MAX:
            raise BusyError("too many commands wait", "retry in a moment")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        waiting.append((data, future))
        if len(waiting) == 1:
            # What this turn of the loop still brings goes with it.
            loop.call_soon(self._start, leader)
        return await future

    def _start(self, leader: NodeId) -> None:
        if self._waiting.get(leader) and self._calls.get(leader, 0) < CALLS_MAX:
            self._calls[leader] = self._calls.get(leader, 0) + 1
            task = asyncio.get_running_loop().create_task(self._run(leader), name="proposals")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, leader: NodeId) -> None:
        try:
            while batch := self._take(leader):
                if self._waiting.get(leader):
                    self._start(leader)
                try:
                    answers = await self._call(leader, [data for data, _ in batch])
                except DarkStreamError as error:
                    answers = [error] * len(batch)
                for (_, future), answer in zip(batch, answers, strict=True):
                    if future.done():  # whoever asked has given up
                        continue
                    if isinstance(answer, Outcome):
                        future.set_result(answer)
                    else:
                        future.set_exception(answer)
        finally:
            self._calls[leader] -= 1
            if not self._waiting.get(leader):
                self._waiting.pop(leader, None)

    def _take(self, leader: NodeId) -> list[tuple[bytes, asyncio.Future[Outcome]]]:
        waiting = self._waiting.get(leader)
        batch: list[tuple[bytes, asyncio.Future[Outcome]]] = []
        size = 0
        while waiting and len(batch) < COMMANDS_PER_CALL_MAX:
            size += len(waiting[0][0])
            if batch and size > CALL_BYTES_MAX:
                break
            batch.append(waiting.popleft())
        return batch

    async def _call(self, leader: NodeId, datas: list[bytes]) -> list[Answer]:
        body = await self._requests.call(leader, METHOD, pack(datas), timeout_s=self._timeout_s)
        return decoded_answers(body, len(datas))


def decoded_commands(body: bytes) -> tuple[bytes, ...]:
    """The sealed commands of a call.  Raises `WireError`."""
    datas = unpack(body)
    if (
        not isinstance(datas, tuple)
        or not 0 < len(datas) <= COMMANDS_PER_CALL_MAX
        or not all(isinstance(data, bytes) for data in datas)
    ):
        raise WireError("not a call with commands")
    return datas


def encoded_answers(answers: list[Answer]) -> bytes:
    """An outcome, or code, what and todo, for each command in its order."""
    return pack(
        [
            ENVELOPES.encode(answer)
            if isinstance(answer, Outcome)
            else (answer.code, answer.what[:2_000], answer.todo[:500])
            for answer in answers
        ]
    )


def decoded_answers(body: bytes, count: int) -> list[Answer]:
    """The reverse.  Raises `WireError` for anything but one answer a command."""
    answers = unpack(body)
    if not isinstance(answers, tuple) or len(answers) != count:
        raise WireError("not an answer for each command")
    return [_decoded(answer) for answer in answers]


def _decoded(answer: object) -> Answer:
    match answer:
        case bytes():
            outcome = ENVELOPES.decode(answer)
            if isinstance(outcome, Outcome):
                return outcome
        case (str() as code, str() as what, str() as todo):
            return error_of(code, what, todo)
        case _:
            pass
    raise WireError("neither an outcome nor an error")
