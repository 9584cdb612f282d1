"""Linearizable reads from any node: the coordinator confirms an index, this replica catches up to it.

A replica answers by itself how the mesh was a moment ago; whoever must not miss what was
acknowledged anywhere before he asked (`--consistent`) pays one round trip to a majority.
"""

from typing import Final

from mesh import clock
from mesh.codec import pack, unpack
from mesh.errors import (
    BusyError,
    NoCoordinatorError,
    NotLeaderError,
    UnreachableError,
    WireError,
)
from mesh.ids import NodeId, node_of
from node.consensus.driver import Driver
from node.requests import Requests

METHOD: Final = "ledger.read_index"
TRY_S: Final = 1.0
"""One try at one coordinator: many round trips of any network that carries a mesh."""
TIMEOUT_S: Final = 10.0
"""Longer than any election that succeeds; a person waits for the answer."""
INDEX_MAX: Final = (1 << 63) - 1


class ReadIndex:
    """Asks for confirmed indexes, and serves those of other nodes while this one leads."""

    def __init__(self, driver: Driver, requests: Requests) -> None:
        self._driver = driver
        self._requests = requests
        requests.register(METHOD, self._serve)

    async def catch_up(self, timeout_s: float = TIMEOUT_S) -> int:
        """Returns an index once this replica holds it: everything acknowledged before the call is in it.

        Raises `NoCoordinatorError` when nobody could confirm one in time, `BusyError` when this
        replica is too far behind it.
        """
        deadline_ms = clock.monotonic_ms() + int(timeout_s * 1000)
        while (left_ms := deadline_ms - clock.monotonic_ms()) > 0:
            seen = self._driver.leader_changed.count
            try:
                index = await self._ask()
            except (NotLeaderError, UnreachableError, BusyError, TimeoutError):
                await self._driver.leader_changed.wait(seen, min(0.25, left_ms / 1000))
                continue
            left_s = max(0.1, (deadline_ms - clock.monotonic_ms()) / 1000)
            if not await self._driver.wait_applied(index, left_s):
                behind = index - self._driver.applied_index
                raise BusyError(
                    f"this replica is {behind} entries behind the coordinator",
                    "retry in a moment, ask another node, or ask without --consistent",
                )
            return index
        raise NoCoordinatorError(
            "no coordinator could confirm the read: too few voters can be reached",
            "start the missing nodes, or ask without --consistent for what this node knows",
        )

    async def _ask(self) -> int:
        leader = self._driver.leader
        if leader is None:
            raise NotLeaderError("no coordinator is known", "wait for an election")
        if self._driver.is_leader:
            return await self._driver.read_index(TRY_S)
        body = await self._requests.call(node_of(leader), METHOD, b"", timeout_s=TRY_S)
        match unpack(body):
            case int() as index if 0 <= index <= INDEX_MAX:
                return index
            case _:
                raise WireError("not an index")

    async def _serve(self, caller: NodeId, _: bytes) -> bytes:
        try:
            index = await self._driver.read_index(TRY_S)
        except TimeoutError:
            raise BusyError("no majority answered in time", "ask again") from None
        self._driver.tell_commit(caller)  # it waits until its own ledger is there
        return pack(index)
