"""The driver performs the core's effects in order, on real loops, and resolves proposals."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

import pytest

from ledger.commands import Outcome
from mesh import clock
from mesh.errors import NotLeaderError, StorageError, UsageError
from mesh.ids import CommandId, NodeId, RaftId, node_of
from mesh.log import ENTRY_BYTES_MAX, Entry, HardState
from mesh.membership import Configuration
from mesh.messages import Message
from mesh.protocol import Raft, Timing, founding_entries
from node.driver import Driver
from tests.simulator.storage import MemoryLog

IDS = [RaftId(f"{name}.00000000") for name in ("a", "b", "c")]


class Ledger:
    """Counts what is applied; a command's id is its data."""

    def __init__(self) -> None:
        self.applied: list[Entry] = []
        self.fails = False

    def apply(self, entries: Sequence[Entry]) -> list[tuple[Entry, str | None, Outcome | None]]:
        if self.fails:
            raise StorageError("disk full", "free some space")
        self.applied += entries
        return [
            (e, e.data.decode(), Outcome(ok=True, index=e.index))
            if e.kind == "command"
            else (e, None, None)
            for e in entries
        ]


class Mesh:
    """Three drivers on one loop; a message arrives at the next turn, unless the link is cut."""

    def __init__(self, count: int) -> None:
        self.ledgers = [Ledger() for _ in range(count)]
        self.cut: set[NodeId] = set()
        self.drivers: dict[NodeId, Driver] = {}
        for raft_id, ledger in zip(IDS, self.ledgers, strict=False):
            storage = MemoryLog()
            if raft_id == IDS[0]:
                state, entries = founding_entries(raft_id)
                storage.persist(state, entries)
            raft = Raft(
                raft_id=raft_id,
                storage=storage,
                timing=Timing(heartbeat_ms=20, election_min_ms=100, election_max_ms=200),
                random=random.Random(raft_id),
                applied_index=0,
                now_ms=clock.monotonic_ms(),
            )
            node = node_of(raft_id)
            self.drivers[node] = Driver(raft, storage, ledger, self._sender(node))

    def _sender(self, sender: NodeId) -> Callable[[NodeId, Message], bool]:
        def send(to: NodeId, message: Message) -> bool:
            if to not in self.drivers or {to, sender} & self.cut:
                return False
            asyncio.get_running_loop().call_soon(self.drivers[to].receive, message)
            return True

        return send

    async def leader(self) -> Driver:
        while True:
            for node, driver in self.drivers.items():
                if driver.is_leader and node not in self.cut and driver.raft.term_committed:
                    return driver
            waits = [
                asyncio.ensure_future(d.leader_changed.wait(d.leader_changed.count, 0.05))
                for d in self.drivers.values()
            ]
            await asyncio.wait(waits)


def run(count: int, body: Callable[[Mesh], Awaitable[None]]) -> Mesh:
    async def main() -> Mesh:
        mesh = Mesh(count)
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            tasks = [group.create_task(driver.run()) for driver in mesh.drivers.values()]
            await body(mesh)
            for task in tasks:
                task.cancel()
        return mesh

    return asyncio.run(main())


async def grow(mesh: Mesh) -> Driver:
    leader = await mesh.leader()
    for step in (
        Configuration.of(IDS[:1], IDS[1:]),
        Configuration.of(IDS[:2], IDS[2:]),
        Configuration.of(IDS),
    ):
        while leader.raft.pending_configuration is not None:
            await leader.ledger_changed.wait(leader.ledger_changed.count, 0.05)
        await leader.change_configuration(step)
    return leader


def test_one_node_commits_and_answers() -> None:
    async def body(mesh: Mesh) -> None:
        leader = await mesh.leader()
        outcome = await leader.propose(CommandId("x"), b"x", 5)
        assert outcome.ok
        assert await leader.wait_applied(outcome.index, 1)
        assert not await leader.wait_applied(outcome.index + 1, 0.05)
        with pytest.raises(UsageError):
            await leader.propose(CommandId("big"), bytes(ENTRY_BYTES_MAX + 1), 5)

    mesh = run(1, body)
    assert [e.data for e in mesh.ledgers[0].applied if e.kind == "command"] == [b"x"]


def test_three_nodes_agree_under_load_and_after_losing_the_leader() -> None:
    async def body(mesh: Mesh) -> None:
        leader = await grow(mesh)
        follower = next(d for d in mesh.drivers.values() if not d.is_leader)
        with pytest.raises(NotLeaderError):
            await follower.propose(CommandId("no"), b"no", 1)
        names = [f"c{n}" for n in range(300)]
        await asyncio.gather(
            *(leader.propose(CommandId(name), name.encode(), 20) for name in names)
        )
        mesh.cut.add(node_of(leader.raft.raft_id))
        successor = await mesh.leader()
        assert successor is not leader
        outcome = await successor.propose(CommandId("after"), b"after", 10)
        mesh.cut.clear()
        assert await leader.wait_applied(outcome.index, 10)

    mesh = run(3, body)
    commands = [[e.data for e in ledger.applied if e.kind == "command"] for ledger in mesh.ledgers]
    assert commands[0][-1] == b"after"
    assert sorted(commands[0][:-1]) == sorted(f"c{n}".encode() for n in range(300))
    assert all(c == commands[0][: len(c)] for c in commands)


def test_the_same_command_asked_twice_is_proposed_once() -> None:
    async def body(mesh: Mesh) -> None:
        leader = await mesh.leader()
        first, second = await asyncio.gather(
            leader.propose(CommandId("x"), b"x", 5), leader.propose(CommandId("x"), b"x", 5)
        )
        assert first == second

    mesh = run(1, body)
    assert sum(e.kind == "command" for e in mesh.ledgers[0].applied) == 1


def test_a_ledger_that_cannot_apply_stops_the_node() -> None:
    async def body(mesh: Mesh) -> None:
        leader = await mesh.leader()
        mesh.ledgers[0].fails = True
        with pytest.raises(asyncio.CancelledError):
            await leader.propose(CommandId("x"), b"x", 5)

    with pytest.raises(ExceptionGroup) as caught:
        run(1, body)
    assert caught.value.subgroup(StorageError) is not None


def test_an_uncommitted_proposal_ends_when_the_lead_is_lost() -> None:
    async def body(mesh: Mesh) -> None:
        leader = await grow(mesh)
        mesh.cut.add(node_of(leader.raft.raft_id))
        with pytest.raises(NotLeaderError):
            await leader.propose(CommandId("lost"), b"lost", 20)

    run(3, body)


def test_hard_state_alone_is_persisted_without_entries() -> None:
    storage = MemoryLog()
    storage.persist(HardState(term=3, vote=None, commit=0), ())
    assert storage.hard_state().term == 3
