"""A replica that is wrong: what it says, what it leaves, from whom it takes the right ledger."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from mesh.codec import pack, unpack
from mesh.errors import ConflictError, DivergenceError, UnreachableError, WireError
from mesh.ids import NodeId, RaftId
from mesh.log import Base
from node.consensus.divergence import OwnMarks
from node.consensus.quarantine import ASK, REBUILDS_MAX, TOLD, Quarantine
from node.consensus.snapshot_duty import Snapshot
from node.requests import Handler

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
SNAPSHOT = Snapshot(index=9, term=1, size=5, digest="d" * 64, handle="snapshot-9-d")


class Peer:
    def __init__(self, node: NodeId) -> None:
        self.node = node


class World:
    """Driver, neighbours, requests and shelf in one: as far as a quarantine looks at them."""

    def __init__(self) -> None:
        self.sums = {10: b"right"}
        self.told: dict[NodeId, object] = {}
        self.leader: RaftId | None = RaftId("b.00000001")
        self.applied_index = 10
        self.abstains = False
        self.marks = OwnMarks(self.sums.get)
        self.marks.replaced(10)
        self.handlers: dict[str, Handler] = {}
        self.asked: list[NodeId] = []
        self.rebuilt: list[NodeId] = []
        self.handed_over = 0
        self.faults: list[Exception] = []
        self.transfer_fault: Exception | None = None
        self.seen: list[tuple[str, bool]] = []
        self.peers = self
        self.snapshots = self
        self.made_from: list[int] = []
        self.quarantine = Quarantine(
            own=A,
            driver=self,  # type: ignore[arg-type]  # what it uses of a driver
            requests=self,  # type: ignore[arg-type]  # what it uses of calls
            neighbours=self,  # type: ignore[arg-type]  # what it uses of neighbours
            shelf=self,  # type: ignore[arg-type]  # what it uses of a shelf
            name_of=lambda node: f"<{node}>",
            compare_s=0.01,
            retry_s=0.01,
        )

    @property
    def is_leader(self) -> bool:
        return self.leader == "a.00000001"

    def log_base(self) -> Base:
        return Base(3, 1, b"")

    def all(self) -> list[Peer]:
        return [Peer(node) for node in self.told]

    def status_of(self, node: NodeId) -> dict[str, object]:
        return {TOLD: self.told[node]}

    def register(self, method: str, handler: Handler) -> None:
        self.handlers[method] = handler

    async def call(self, node: NodeId, method: str, body: bytes, *, timeout_s: float) -> bytes:
        assert (method, unpack(body)) == (ASK, 3)
        self.seen.append((self.quarantine.fault, self.abstains))
        self.asked.append(node)
        if self.faults:
            raise self.faults.pop()
        return pack(tuple(getattr(SNAPSHOT, name) for name in SNAPSHOT.__slots__))

    async def rebuild(self, source: NodeId, snapshot: Snapshot, timeout_s: float) -> None:
        assert snapshot == SNAPSHOT
        self.rebuilt.append(source)
        self.sums[10] = b"right"

    async def transfer_leadership(self, to: NodeId | None, timeout_s: float) -> NodeId:
        self.handed_over += 1
        if self.transfer_fault is not None:
            raise self.transfer_fault
        self.leader = RaftId("c.00000001")
        return C

    async def newest(self, index_min: int) -> Snapshot:
        self.made_from.append(index_min)
        return SNAPSHOT


def run(world: World, until: Callable[[], object]) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(world.quarantine.run())
        async with asyncio.timeout(30):
            while not (until() or task.done()):
                await asyncio.wait({task}, timeout=0.01)
        if task.done():
            task.result()
        task.cancel()

    asyncio.run(main())


def says(checksum: bytes) -> object:
    return ((10, checksum),)


def test_a_wrong_follower_is_rebuilt_from_its_coordinator() -> None:
    world = World()
    world.sums[10] = b"wrong"
    world.told = {B: says(b"right"), C: says(b"right")}
    run(world, lambda: world.rebuilt and not world.quarantine.fault)
    assert world.rebuilt == [B]
    assert world.handed_over == 0
    (fault, abstained), *_ = world.seen
    assert "<b>, <c> at entry 10" in fault
    assert abstained
    assert not world.abstains
    assert world.quarantine.divergences == 1


def test_a_wrong_coordinator_hands_over_first() -> None:
    world = World()
    world.leader = RaftId("a.00000001")
    world.sums[10] = b"wrong"
    world.told = {B: says(b"right"), C: says(b"right")}
    run(world, lambda: world.rebuilt and not world.quarantine.fault)
    assert world.handed_over == 1
    assert world.rebuilt == [C], "who leads now"


def test_who_votes_alone_is_rebuilt_all_the_same() -> None:
    world = World()
    world.leader = RaftId("a.00000001")
    world.transfer_fault = ConflictError("nobody")
    world.sums[10] = b"wrong"
    world.told = {B: says(b"right"), C: says(b"right")}
    run(world, lambda: world.rebuilt and not world.quarantine.fault)
    assert world.rebuilt == [B]


def test_a_rebuild_that_fails_is_tried_again() -> None:
    world = World()
    world.sums[10] = b"wrong"
    world.told = {B: says(b"right")}
    world.faults = [UnreachableError("no route")]
    run(world, lambda: world.rebuilt and not world.quarantine.fault)
    assert world.asked == [B, B]


def test_a_replica_that_is_right_does_nothing_and_tells_its_checksums() -> None:
    world = World()
    world.told = {B: says(b"right"), C: says(b"wrong")}
    assert world.quarantine.told() == {TOLD: ((10, b"right"),)}
    looks = 0

    def twice() -> bool:
        nonlocal looks
        looks += 1
        return looks > 60

    run(world, twice)
    assert (world.asked, world.quarantine.divergences) == ([], 0)


def test_what_does_not_stay_right_stops_the_node() -> None:
    world = World()
    world.sums[10] = b"wrong"
    world.told = {B: says(b"other")}
    world.quarantine.divergences = REBUILDS_MAX
    with pytest.raises(DivergenceError, match="4th time"):
        run(world, lambda: False)


def serve(world: World, body: bytes) -> bytes:
    async def main() -> bytes:
        answer: Awaitable[bytes] = world.handlers[ASK](B, body)
        return await answer

    return asyncio.run(main())


def test_a_member_that_asks_gets_a_fresh_snapshot_now_and_then() -> None:
    world = World()
    assert unpack(serve(world, pack(3))) == (9, 1, 5, "d" * 64, "snapshot-9-d")
    world.applied_index = 1_000
    serve(world, pack(500))
    serve(world, pack(1 << 60))
    assert world.made_from == [3, 9, 9], "made at most every five seconds for whoever asks"
    with pytest.raises(WireError):
        serve(world, pack("x"))
