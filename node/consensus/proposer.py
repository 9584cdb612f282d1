"""Commits commands from any node: here when this node leads, else through the coordinator.

The command id is drawn once and kept over all retries, and applying is idempotent by it, so a lost
answer never doubles a change.
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Final

from ledger.commands import TEXT_BYTES_MAX, Command, Envelope, Outcome, seal, unseal
from ledger.queries import Reader
from mesh import clock
from mesh.errors import (
    BusyError,
    DarkStreamError,
    NoCoordinatorError,
    NotAllowedError,
    NotLeaderError,
    UnknownKindError,
    UnreachableError,
    WireError,
)
from mesh.ids import CommandId, NodeId, node_of
from node.consensus.batches import METHOD, Answer, Batches, decoded_commands, encoded_answers
from node.consensus.driver import Driver
from node.consensus.replica import Replica
from node.membership.foreign import check_authority, needs_ledger
from node.requests import Requests, error_of

TRY_S: Final = 2.0
"""One try at one coordinator; a new one is elected within about a second."""
CATCH_UP_S: Final = 0.5
"""For the coordinator's own replica to apply what another's has applied already."""
TIMEOUT_S: Final = 15.0
"""Longer than any election that succeeds; after it the person is told that nobody decides."""


Sealed = dict[int, tuple[Envelope, Command]]
"""Commands of a call by their place in it."""


class Proposer:
    """`propose` any command from anywhere; serves other nodes' proposals while this node leads."""

    def __init__(self, own: NodeId, driver: Driver, requests: Requests, replica: Replica) -> None:
        self._own = own
        self._replica = replica
        self._driver = driver
        self._batches = Batches(requests, TRY_S)
        self.on_its_way: Callable[[Command], None] = lambda _: None
        """Told of each command that this node, which leads, is about to enter into the log."""
        requests.register(METHOD, self._serve)

    async def propose(
        self, command: Command, *, cause: str, timeout_s: float = TIMEOUT_S
    ) -> Outcome:
        """The outcome of the committed command, once this node's own ledger holds it too.

        Raises `NoCoordinatorError` when no coordinator took it in time.
        """
        command_id = CommandId(secrets.token_hex(12))
        data = seal(
            command,
            command_id=command_id,
            proposer=self._own,
            proposed_at_ms=clock.wall_ms(),
            cause=cause,
        )
        deadline_ms = clock.monotonic_ms() + int(timeout_s * 1000)
        if self._driver.is_leader:
            self.on_its_way(command)
        while clock.monotonic_ms() < deadline_ms:
            seen = self._driver.leader_changed.count
            try:
                outcome = await self._try(command_id, data, seen)
            except (NotLeaderError, UnreachableError, BusyError, TimeoutError):
                left_s = (deadline_ms - clock.monotonic_ms()) / 1000
                await self._driver.leader_changed.wait(seen, min(0.25, max(0.0, left_s)))
            else:
                left_s = max(0.1, (deadline_ms - clock.monotonic_ms()) / 1000)
                await self._driver.wait_applied(outcome.index, left_s)
                return outcome
        raise NoCoordinatorError(
            "no coordinator took the change in time: too few voters can be reached",
            "start the missing nodes; `mesh-cli status` names them, and says what to do without them",
        )

    async def commit(self, command: Command, *, cause: str, timeout_s: float = TIMEOUT_S) -> int:
        """Like `propose`, but a refused command raises its error; returns the log index."""
        outcome = await self.propose(command, cause=cause, timeout_s=timeout_s)
        if not outcome.ok:
            raise error_of(outcome.code, outcome.what, outcome.todo)
        return outcome.index

    async def _try(self, command_id: CommandId, data: bytes, seen: int) -> Outcome:
        leader = self._driver.leader
        if leader is None:
            raise NotLeaderError("no coordinator is known", "wait for an election")
        if self._driver.is_leader:
            return await self._driver.propose(command_id, data, TRY_S)
        asked = asyncio.ensure_future(self._batches.propose(node_of(leader), data))
        changed = asyncio.ensure_future(self._driver.leader_changed.wait(seen))
        try:
            # A dead coordinator's silence must not outlast the election of the next one.
            await asyncio.wait((asked, changed), return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise NotLeaderError("the coordinator changed", "ask the new one")
            return asked.result()
        finally:
            asked.cancel()
            changed.cancel()

    async def _serve(self, caller: NodeId, body: bytes) -> bytes:
        asked = decoded_commands(body)
        read, refused = _read(caller, asked)
        if not self._driver.is_leader:
            raise NotLeaderError("this node is not the coordinator", "ask the coordinator")
        refused |= await self._not_allowed(caller, read)
        taken = {n: (CommandId(envelope.id), asked[n]) for n, (envelope, _) in read.items()}
        taken = {n: command for n, command in taken.items() if n not in refused}
        for n in taken:
            self.on_its_way(read[n][1])
        outcomes = await self._driver.propose_all(tuple(taken.values()), TRY_S * 0.9)
        self._driver.tell_commit(caller)  # it waits until its own ledger holds them
        answers: dict[int, Answer] = {**refused, **dict(zip(taken, outcomes, strict=True))}
        return encoded_answers([answers[n] for n in range(len(asked))])

    async def _not_allowed(self, caller: NodeId, read: Sealed) -> dict[int, DarkStreamError]:
        """What this caller may not propose (now), by its place."""

        def check(reader: Reader | None) -> dict[int, DarkStreamError]:
            found: dict[int, DarkStreamError] = {}
            for number, (_, command) in read.items():
                try:
                    check_authority(reader, caller, command)
                except (NotAllowedError, BusyError) as error:
                    found[number] = error
            return found

        if not any(needs_ledger(command) for _, command in read.values()):
            return check(None)
        decided = self._driver.raft.commit_index
        found = await self._replica.read(check)
        if any(isinstance(error, BusyError) for error in found.values()):
            # What the caller's replica is ahead by is decided here as well, and applied in a moment.
            await self._driver.wait_applied(decided, CATCH_UP_S)
            found = await self._replica.read(check)
        return found


def _read(caller: NodeId, asked: Sequence[bytes]) -> tuple[Sealed, dict[int, DarkStreamError]]:
    """The commands, and what is wrong with others, by their place.

    What no replica can read stops every one of them once it is committed: it is read here.
    """
    read: Sealed = {}
    refused: dict[int, DarkStreamError] = {}
    for number, data in enumerate(asked):
        try:
            envelope, command = unseal(data)
        except (WireError, UnknownKindError) as error:
            refused[number] = error
            continue
        if envelope.proposer == caller:
            read[number] = envelope, command
        else:
            refused[number] = NotAllowedError(
                f"node {caller} proposed in the name of {envelope.proposer}"
            )
    return read, refused


def bounded_text(text: str) -> str:
    """The end of a free text, cut to what may enter the ledger."""
    raw = text.encode("utf-8", errors="replace")
    return raw[-TEXT_BYTES_MAX:].decode("utf-8", errors="ignore")
