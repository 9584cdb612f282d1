"""Linearizable reads from any node: whom they ask, what they wait for, and when they give up."""

import asyncio

import pytest

from mesh import clock
from mesh.codec import pack
from mesh.errors import BusyError, NoCoordinatorError, NotLeaderError, WireError
from mesh.ids import NodeId, RaftId
from mesh.messages import Message, Request, Response
from node.consensus.read_index import METHOD, ReadIndex
from node.requests import Requests
from node.signals import Signal

A, B = NodeId("a"), NodeId("b")


class Driver:
    """Confirms what the test says, and applies when the test says so."""

    def __init__(self, own: NodeId) -> None:
        self.raft_id = RaftId(f"{own}.00000001")
        self.leader: RaftId | None = None
        self.leader_changed = Signal()
        self.applied_index = 0
        self.confirmed: int | Exception = 0
        self.told: list[NodeId] = []

    @property
    def is_leader(self) -> bool:
        return self.leader == self.raft_id

    async def read_index(self, timeout_s: float) -> int:
        await asyncio.sleep(0)
        if isinstance(self.confirmed, Exception):
            raise self.confirmed
        return self.confirmed

    def tell_commit(self, node: NodeId) -> None:
        self.told.append(node)

    async def wait_applied(self, index: int, timeout_s: float) -> bool:
        await asyncio.sleep(0)
        return self.applied_index >= index


class Pair:
    """Two nodes and the wire between them."""

    def __init__(self) -> None:
        self.a, self.b = Driver(A), Driver(B)
        self.requests_a = Requests(lambda to, message: self._carry(A, to, message))
        self.requests_b = Requests(lambda to, message: self._carry(B, to, message))
        self.reads_a = ReadIndex(self.a, self.requests_a)  # type: ignore[arg-type]  # what it uses of a driver
        self.reads_b = ReadIndex(self.b, self.requests_b)  # type: ignore[arg-type]  # see above

    def _carry(self, sender: NodeId, to: NodeId, message: Message) -> bool:
        assert isinstance(message, Request | Response)
        target = self.requests_a if to == A else self.requests_b
        asyncio.get_running_loop().call_soon(target.receive, sender, message)
        return True


def test_the_coordinator_confirms_for_itself_and_for_others() -> None:
    async def main() -> None:
        pair = Pair()
        pair.a.leader = pair.b.leader = pair.a.raft_id
        pair.a.confirmed = 7
        pair.a.applied_index = pair.b.applied_index = 9
        assert await pair.reads_a.catch_up(1) == 7
        assert await pair.reads_b.catch_up(1) == 7
        assert (pair.a.told, pair.b.told) == ([B], [])  # whoever asks hears of the commit at once

    asyncio.run(main())


def test_a_replica_that_does_not_come_so_far_says_so() -> None:
    async def main() -> None:
        pair = Pair()
        pair.a.leader = pair.b.leader = pair.a.raft_id
        pair.a.confirmed = 7
        pair.b.applied_index = 6
        with pytest.raises(BusyError, match="1 entries behind"):
            await pair.reads_b.catch_up(1)

    asyncio.run(main())


@pytest.mark.parametrize("fault", [NotLeaderError("gone"), TimeoutError(), BusyError("many")])
def test_without_a_majority_it_ends_as_no_coordinator(fault: Exception) -> None:
    async def main() -> None:
        pair = Pair()
        pair.a.leader = pair.b.leader = pair.a.raft_id
        pair.a.confirmed = fault
        for reads in (pair.reads_a, pair.reads_b):
            begun = clock.monotonic_ms()
            with pytest.raises(NoCoordinatorError):
                await reads.catch_up(0.3)
            assert clock.monotonic_ms() - begun < 3_000

    asyncio.run(main())


def test_a_new_coordinator_is_asked_as_soon_as_it_is_known() -> None:
    async def main() -> None:
        pair = Pair()
        waiting = asyncio.ensure_future(pair.reads_b.catch_up(5))
        await asyncio.sleep(0)
        pair.a.leader = pair.b.leader = pair.a.raft_id
        pair.a.confirmed = pair.b.applied_index = 3
        pair.b.leader_changed.set()
        assert await waiting == 3

    asyncio.run(main())


def test_an_answer_that_is_no_index_is_refused() -> None:
    async def main() -> None:
        pair = Pair()
        pair.b.leader = pair.a.raft_id
        pair.requests_a._handlers.clear()

        async def strange(_: NodeId, __: bytes) -> bytes:
            return pack(-1)

        pair.requests_a.register(METHOD, strange)
        with pytest.raises(WireError):
            await pair.reads_b.catch_up(1)

    asyncio.run(main())
