"""A node's proposals find the coordinator, and the next one when it dies."""

import asyncio
from typing import Any, cast

import pytest

from ledger.commands import Outcome, unseal
from mesh.errors import NoCoordinatorError
from mesh.ids import NodeId, RaftId
from mesh.messages import Message, Request, Response
from node.consensus.batches import decoded_commands, encoded_answers
from node.consensus.proposer import TRY_S, Proposer
from node.requests import Requests
from node.signals import Signal
from tests.ledger_helper import node_report

OLD, NEW = RaftId("old.00000000"), RaftId("new.00000000")


class Follower:
    """What a proposer needs of the driver of a node that does not lead."""

    is_leader = False

    def __init__(self) -> None:
        self.leader: RaftId | None = OLD
        self.leader_changed = Signal()
        self.waited_for: list[int] = []

    async def wait_applied(self, index: int, timeout_s: float) -> bool:
        assert timeout_s > 0
        self.waited_for.append(index)
        return True


class Others:
    """The other nodes: the old coordinator is silent, the new one takes everything."""

    def __init__(self) -> None:
        self.driver = Follower()
        self.asked: list[tuple[NodeId, str]] = []
        self.requests = Requests(self._send)
        self.proposer = Proposer(
            NodeId("own"), cast("Any", self.driver), self.requests, cast("Any", None)
        )

    def _send(self, node: NodeId, message: Message) -> bool:
        assert isinstance(message, Request)
        datas = decoded_commands(message.body)
        self.asked += [(node, unseal(data)[0].id) for data in datas]
        if node == "new":
            body = encoded_answers([Outcome(ok=True, index=7) for _ in datas])
            answer = Response(id=message.id, ok=True, body=body)
            asyncio.get_running_loop().call_soon(self.requests.receive, node, answer)
        return True

    def elect(self, leader: RaftId | None) -> None:
        self.driver.leader = leader
        self.driver.leader_changed.set()


def test_a_new_coordinator_is_asked_at_once_with_the_same_id() -> None:
    async def main() -> None:
        others = Others()
        command = node_report("own")
        proposing = asyncio.ensure_future(others.proposer.propose(command, cause="test"))
        for _ in range(10):
            await asyncio.sleep(0)
        assert [node for node, _ in others.asked] == ["old"]
        others.elect(None)
        for _ in range(10):
            await asyncio.sleep(0)
        others.elect(NEW)
        async with asyncio.timeout(TRY_S / 4):
            outcome = await proposing
        assert (outcome.index, others.driver.waited_for) == (7, [7])
        (old, first), (new, second) = others.asked
        assert (old, new) == ("old", "new")
        assert first == second

    asyncio.run(main())


def test_without_a_coordinator_it_is_said_when_the_time_is_over() -> None:
    async def main() -> None:
        others = Others()
        others.elect(None)
        with pytest.raises(NoCoordinatorError):
            await others.proposer.propose(node_report("own"), cause="test", timeout_s=0.3)
        assert others.asked == []

    asyncio.run(main())
