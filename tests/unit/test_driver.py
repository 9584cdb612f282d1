"""The driver performs the core's effects in order, on real loops, and resolves proposals."""

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Sequence

import pytest

from ledger.commands import Outcome
from mesh import clock
from mesh.errors import (
    ConflictError,
    DarkStreamError,
    NotLeaderError,
    OutdatedError,
    StorageError,
    UnreachableError,
    UsageError,
)
from mesh.ids import CommandId, NodeId, RaftId, node_of
from mesh.log import ENTRY_BYTES_MAX, Base, Entry, HardState
from mesh.membership import Configuration
from mesh.messages import Heartbeat, HeartbeatAck, Message, VoteRequest
from mesh.protocol import Raft, Timing, founding_entries
from node.consensus.compaction import Keep
from node.consensus.driver import Driver
from node.consensus.snapshot_duty import Snapshot
from tests.simulator.storage import MemoryLog

IDS = [RaftId(f"{name}.00000000") for name in ("a", "b", "c")]


class Ledger:
    """Counts what is applied; a command's id is its data."""

    def __init__(self) -> None:
        self.applied: list[Entry] = []
        self.transactions = 0
        self.fails = False
        self.durable = 0
        self.durable_max = 1 << 60

    @property
    def applied_index(self) -> int:
        return self.applied[-1].index if self.applied else 0

    def apply(self, entries: Sequence[Entry]) -> list[tuple[Entry, str | None, Outcome | None]]:
        if self.fails:
            raise StorageError("disk full", "free some space")
        fresh = [entry for entry in entries if entry.index > self.applied_index]
        assert [e.index for e in fresh] == [self.applied_index + 1 + n for n in range(len(fresh))]
        self.applied += fresh
        self.transactions += 1
        return [
            (e, e.data.decode(), Outcome(ok=True, index=e.index))
            if e.kind == "command"
            else (e, None, None)
            for e in fresh
        ]

    touched = frozenset[tuple[str, str]]()

    def checksum_at(self, index: int) -> bytes | None:
        return b"%d" % index

    def make_durable(self) -> int:
        self.durable = min(self.applied_index, self.durable_max)
        return self.durable

    @property
    def commands(self) -> list[bytes]:
        return [entry.data for entry in self.applied if entry.kind == "command"]


class Shelves:
    """The snapshots of all nodes, by handle."""

    def __init__(self) -> None:
        self.files: dict[str, list[Entry]] = {}
        self.made = 0
        self.fetched: list[str] = []
        self.fault: DarkStreamError | None = None
        """What the next fetch meets."""
        self.dead: set[NodeId] = set()
        """Who answers no transfer, but does not refuse one either."""
        self.goes_on = asyncio.Event()
        self.goes_on.set()


class Shelf:
    """Snapshots are copies of the list of what is applied."""

    def __init__(self, shelves: Shelves, ledger: Ledger) -> None:
        self.notes: list[Base | None] = []
        self._shelves = shelves
        self._ledger = ledger
        self._newest: Snapshot | None = None
        self._incoming: list[Entry] | None = None

    async def newest(self, index_min: int) -> Snapshot:
        if self._newest is None or self._newest.index < index_min:
            held = list(self._ledger.applied)
            last, size = held[-1], len(held)
            self._newest = Snapshot(
                index=last.index, term=last.term, size=size, digest="d", handle=f"h{last.index}"
            )
            self._shelves.files[self._newest.handle] = held
            self._shelves.made += 1
        return self._newest

    async def fetch(
        self, source: NodeId, snapshot: Snapshot, on_bytes: Callable[[int, int], None]
    ) -> None:
        if source in self._shelves.dead:
            await asyncio.Event().wait()
        await self._shelves.goes_on.wait()
        fault, self._shelves.fault = self._shelves.fault, None
        if fault is not None:
            raise fault
        self._shelves.fetched.append(f"{source}/{snapshot.handle}")
        self._incoming = list(self._shelves.files[snapshot.handle])

    def begin(self, base: Base) -> None:
        self.notes.append(base)

    def install(self, snapshot: Snapshot) -> None:
        assert self._incoming is not None
        assert self._incoming[-1].index == snapshot.index
        self._ledger.applied = self._incoming

    def finish(self) -> None:
        self.notes.append(None)
        self._incoming = None


class SlowLog(MemoryLog):
    """A disk that stalls when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.stalled = 0

    def persist(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        self.stalled += not self.goes_on.is_set()
        self.goes_on.wait(20)
        super().persist(hard_state, entries)


QUICK = Timing(heartbeat_ms=20, election_min_ms=100, election_max_ms=200)
PATIENT = Timing(heartbeat_ms=60, election_min_ms=700, election_max_ms=1_100)
"""For what must not be elected: on a busy machine this loop stands still for longer than 100 ms."""


class Mesh:
    """Three drivers on one loop; a message arrives at the next turn, unless the link is cut."""

    def __init__(self, count: int, keep: Keep | None = None, timing: Timing = QUICK) -> None:
        self.shelves = Shelves()
        self.shelves_of: dict[NodeId, Shelf] = {}
        self.logs: list[MemoryLog] = []
        self.ledgers = [Ledger() for _ in range(count)]
        self.cut: set[NodeId] = set()
        self.drivers: dict[NodeId, Driver] = {}
        for raft_id, ledger in zip(IDS, self.ledgers, strict=False):
            storage = SlowLog()
            self.logs.append(storage)
            if raft_id == IDS[0]:
                state, entries = founding_entries(raft_id)
                storage.persist(state, entries)
            raft = Raft(
                raft_id=raft_id,
                storage=storage,
                timing=timing,
                random=random.Random(raft_id),
                applied_index=0,
                now_ms=clock.monotonic_ms(),
            )
            node = node_of(raft_id)
            shelf = self.shelves_of[node] = Shelf(self.shelves, ledger)
            self.drivers[node] = Driver(
                raft, storage, ledger, self._sender(node), shelf=shelf, keep=keep, timing=timing
            )

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


def run(
    count: int,
    body: Callable[[Mesh], Awaitable[None]],
    keep: Keep | None = None,
    timing: Timing = QUICK,
) -> Mesh:
    async def main() -> Mesh:
        mesh = Mesh(count, keep, timing)
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


def test_a_follower_for_which_nobody_waits_applies_many_commands_at_once() -> None:
    async def body(mesh: Mesh) -> None:
        leader = await grow(mesh)
        follower = next(d for d in mesh.drivers.values() if not d.is_leader)
        ledgers = dict(zip(mesh.drivers, mesh.ledgers, strict=True))
        lead = ledgers[node_of(leader.raft.raft_id)]
        follow = ledgers[node_of(follower.raft.raft_id)]
        before = lead.transactions, follow.transactions
        for number in range(100):
            outcome = await leader.propose(CommandId(f"c{number}"), b"c%d" % number, 10)
        waited = asyncio.ensure_future(follower.wait_applied(outcome.index, 10))
        await asyncio.sleep(0)
        leader.tell_commit(node_of(follower.raft.raft_id))
        assert await waited
        assert lead.transactions - before[0] >= 100
        assert follow.transactions - before[1] < 50

    run(3, body)


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


# --- snapshots, compaction, reads, transfers --------------------------------------------------------

SMALL = Keep(entries=20, bytes=1 << 20)


async def fill(leader: Driver, count: int, name: str = "c") -> None:
    await asyncio.gather(
        *(leader.propose(CommandId(f"{name}{n}"), f"{name}{n}".encode(), 20) for n in range(count))
    )


async def until(mesh: Mesh, holds: Callable[[], object]) -> None:
    """Looks again at each change of any ledger."""
    while not holds():
        await asyncio.wait(
            [
                asyncio.ensure_future(d.ledger_changed.wait(d.ledger_changed.count, 0.05))
                for d in mesh.drivers.values()
            ]
        )


def test_the_log_is_cut_off_behind_what_the_ledger_holds_durably() -> None:
    async def body(mesh: Mesh) -> None:
        leader = await mesh.leader()
        await fill(leader, 100)
        await leader.upkeep.compact()
        ledger, log = mesh.ledgers[0], mesh.logs[0]
        assert log.base().index == ledger.applied_index - SMALL.entries
        assert ledger.durable >= log.base().index
        assert log.term(log.base().index) == log.base().term
        assert Configuration.decode(log.base().configuration).voters == (IDS[0],)
        before = log.base()
        await leader.upkeep.compact()
        assert log.base() == before, "nothing to do"

    run(1, body, SMALL)


def test_a_living_follower_is_served_from_the_log_a_silent_one_is_not_waited_for() -> None:
    async def body(mesh: Mesh) -> None:
        leader = await grow(mesh)
        await until(mesh, lambda: len({d.applied_index for d in mesh.drivers.values()}) == 1)
        slow = next(d for d in mesh.drivers.values() if not d.is_leader)
        mesh.cut.add(node_of(slow.raft.raft_id))
        await fill(leader, 60)
        await leader.upkeep.compact()
        assert mesh.logs[0].base().index <= slow.applied_index, "heard a moment ago"
        lost = next(p for p in leader.raft.progress() if p.raft_id == slow.raft.raft_id)
        while lost.active:
            await leader.leader_changed.wait(leader.leader_changed.count, 0.05)
            lost = next(p for p in leader.raft.progress() if p.raft_id == slow.raft.raft_id)
        await leader.upkeep.compact()
        assert mesh.logs[0].base().index == leader.applied_index - SMALL.entries

    run(3, body, SMALL)


def test_what_is_not_durable_is_never_cut_off() -> None:
    async def body(mesh: Mesh) -> None:
        leader = await mesh.leader()
        ledger = mesh.ledgers[0]
        ledger.durable_max = 7
        await fill(leader, 100)
        await leader.upkeep.compact()
        assert mesh.logs[0].base().index == 7

    run(1, body, SMALL)


def test_a_node_far_behind_gets_a_snapshot_and_then_the_log() -> None:
    async def body(mesh: Mesh) -> None:
        leader = await grow(mesh)
        lost = next(d for d in mesh.drivers.values() if not d.is_leader)
        mesh.cut.add(node_of(lost.raft.raft_id))
        await fill(leader, 400)
        await leader.upkeep.compact()
        assert mesh.logs[0].base().index > lost.applied_index
        mesh.cut.clear()
        await fill(leader, 10, "after")
        await until(mesh, lambda: lost.applied_index >= leader.applied_index)
        assert lost.snapshots.installed == 1
        shelf = mesh.shelves_of[node_of(lost.raft.raft_id)]
        assert [note is not None for note in shelf.notes] == [True, False]

    mesh = run(3, body, SMALL)
    assert mesh.shelves.made >= 1
    assert mesh.ledgers[0].commands == mesh.ledgers[1].commands == mesh.ledgers[2].commands


def test_a_snapshot_that_cannot_be_fetched_is_offered_again() -> None:
    async def body(mesh: Mesh) -> None:
        leader = await grow(mesh)
        lost = next(d for d in mesh.drivers.values() if not d.is_leader)
        mesh.cut.add(node_of(lost.raft.raft_id))
        await fill(leader, 400)
        await leader.upkeep.compact()
        mesh.shelves.fault = UnreachableError("no route", "look at the network")
        mesh.cut.clear()
        await until(mesh, lambda: lost.applied_index >= leader.applied_index)
        assert lost.snapshots.installed == 1

    run(3, body, SMALL)


def test_a_snapshot_of_a_newer_version_stops_the_node() -> None:
    async def body(mesh: Mesh) -> None:
        leader = await grow(mesh)
        lost = next(d for d in mesh.drivers.values() if not d.is_leader)
        mesh.cut.add(node_of(lost.raft.raft_id))
        await fill(leader, 400)
        await leader.upkeep.compact()
        mesh.shelves.fault = OutdatedError("the ledger has schema 9", "update DarkStream")
        mesh.cut.clear()
        await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup) as caught:
        run(3, body, SMALL)
    assert caught.value.subgroup(OutdatedError) is not None


def test_heartbeats_go_on_while_a_snapshot_is_fetched() -> None:
    async def body(mesh: Mesh) -> None:
        leader = await grow(mesh)
        lost = next(d for d in mesh.drivers.values() if not d.is_leader)
        mesh.cut.add(node_of(lost.raft.raft_id))
        await fill(leader, 400)
        await leader.upkeep.compact()
        mesh.shelves.goes_on.clear()
        mesh.cut.clear()
        await until(mesh, lambda: mesh.shelves.made)
        term = leader.raft.term
        changes = leader.leader_changed.count
        await leader.leader_changed.wait(changes, 1.0)
        assert leader.is_leader, "five election time-outs later"
        assert leader.raft.term == term
        await fill(leader, 10, "meanwhile")
        mesh.shelves.goes_on.set()
        await until(mesh, lambda: lost.applied_index >= leader.applied_index)

    run(3, body, SMALL)


def test_a_transfer_from_a_dead_leader_is_given_up_for_the_new_ones() -> None:
    async def body(mesh: Mesh) -> None:
        leader = await grow(mesh)
        await until(mesh, lambda: leader.raft.pending_configuration is None)
        lost, heir = [d for d in mesh.drivers.values() if not d.is_leader]
        mesh.cut.add(node_of(lost.raft.raft_id))
        await fill(leader, 400)
        await until(mesh, lambda: heir.applied_index == leader.applied_index)
        await leader.upkeep.compact()
        await heir.upkeep.compact()
        mesh.shelves.dead.add(node_of(leader.raft.raft_id))
        mesh.cut.clear()
        await until(mesh, lambda: mesh.shelves.made)
        mesh.cut.add(node_of(leader.raft.raft_id))
        await until(mesh, lambda: heir.is_leader)
        await until(mesh, lambda: lost.snapshots.installed)
        assert [name.partition("/")[0] for name in mesh.shelves.fetched] == [
            node_of(heir.raft.raft_id)
        ]

    run(3, body, SMALL)


def test_a_stalling_disk_does_not_silence_a_leader() -> None:
    async def body(mesh: Mesh) -> None:
        leader = await grow(mesh)
        await until(mesh, lambda: leader.raft.pending_configuration is None)
        log = mesh.logs[0]
        assert isinstance(log, SlowLog)
        log.goes_on.clear()
        term = leader.raft.term
        asked = asyncio.ensure_future(leader.propose(CommandId("x"), b"x", 20))
        others = [d for d in mesh.drivers.values() if d is not leader]
        for _ in range(2):  # of the longest election time-out
            seen = others[0].leader_changed.count
            await others[0].leader_changed.wait(seen, PATIENT.election_max_ms / 1000)
        assert log.stalled == 1
        assert {d.raft.term for d in mesh.drivers.values()} == {term}
        assert leader.is_leader
        log.goes_on.set()
        assert (await asked).ok

    run(3, body, timing=PATIENT)


def test_a_ledger_is_rebuilt_and_applies_again_what_the_log_holds() -> None:
    async def body(mesh: Mesh) -> None:
        leader = await grow(mesh)
        await fill(leader, 30)
        wrong = next(d for d in mesh.drivers.values() if not d.is_leader)
        await until(mesh, lambda: wrong.applied_index == leader.applied_index)
        ledger = mesh.ledgers[IDS.index(wrong.raft.raft_id)]
        source = mesh.shelves_of[node_of(leader.raft.raft_id)]
        snapshot = await source.newest(0)
        await fill(leader, 30, "later")
        await until(mesh, lambda: wrong.applied_index == leader.applied_index)
        ledger.applied[5] = Entry(ledger.applied[5].index, 1, "command", b"rotten")
        await wrong.snapshots.rebuild(node_of(leader.raft.raft_id), snapshot, 5)
        await fill(leader, 5, "last")
        await until(mesh, lambda: len({d.applied_index for d in mesh.drivers.values()}) == 1)

    mesh = run(3, body)
    assert mesh.ledgers[0].commands == mesh.ledgers[1].commands == mesh.ledgers[2].commands


def test_a_read_index_holds_everything_acknowledged_and_needs_a_majority() -> None:
    async def body(mesh: Mesh) -> None:
        leader = await grow(mesh)
        outcome = await leader.propose(CommandId("x"), b"x", 5)
        found = await asyncio.gather(*(leader.read_index(5) for _ in range(20)))
        assert min(found) >= outcome.index
        follower = next(d for d in mesh.drivers.values() if not d.is_leader)
        with pytest.raises(NotLeaderError):
            await follower.read_index(1)
        mesh.cut.add(node_of(leader.raft.raft_id))
        with pytest.raises(NotLeaderError):
            await leader.read_index(20)

    run(3, body)


def test_the_lead_is_handed_over_to_whom_it_is_meant_for() -> None:
    async def body(mesh: Mesh) -> None:
        leader = await grow(mesh)
        await until(mesh, lambda: leader.raft.pending_configuration is None)
        target = next(d for d in mesh.drivers.values() if not d.is_leader)
        node = node_of(target.raft.raft_id)
        assert await leader.transfer_leadership(node, 5) == node
        assert target.is_leader
        with pytest.raises(NotLeaderError):
            await leader.transfer_leadership(node, 5)
        with pytest.raises(ConflictError):
            await target.transfer_leadership(NodeId("stranger"), 5)
        assert await target.transfer_leadership(None, 5) != node

    run(3, body)


def test_a_late_loop_waits_longer_for_its_leader() -> None:
    async def body(mesh: Mesh) -> None:
        leader = await mesh.leader()
        follower = next(d for d in mesh.drivers.values() if not d.is_leader)
        usual_ms = follower.raft.next_deadline_ms() - clock.monotonic_ms()
        assert usual_ms <= 200
        leader.upkeep.late(2_000, clock.monotonic_ms())
        follower.upkeep.late(2_000, clock.monotonic_ms())
        assert follower.upkeep.stretch_percent == 400
        heard = follower.raft.next_deadline_ms()
        while follower.raft.next_deadline_ms() == heard:
            await follower.ledger_changed.wait(follower.ledger_changed.count, 0.02)
        assert follower.raft.next_deadline_ms() - clock.monotonic_ms() > 300

    async def grown(mesh: Mesh) -> None:
        await grow(mesh)
        await body(mesh)

    run(3, grown)


def test_a_loop_that_stood_still_hears_its_leader_before_it_campaigns() -> None:
    """What the leader said meanwhile waits in a socket that is read after the timer fired."""

    async def main() -> list[Message]:
        sent: list[Message] = []
        storage = MemoryLog()
        encoded = Configuration.of(IDS).encode()
        storage.persist(HardState(term=2), [Entry(1, 1, "configuration", encoded)])
        ledger = Ledger()
        raft = Raft(
            raft_id=IDS[0],
            storage=storage,
            timing=QUICK,
            random=random.Random(1),
            applied_index=0,
            now_ms=clock.monotonic_ms(),
        )
        driver = Driver(
            raft,
            storage,
            ledger,
            lambda _, message: not sent.append(message),
            shelf=Shelf(Shelves(), ledger),
            timing=QUICK,
        )
        word = Heartbeat(sender=IDS[1], to=IDS[0], term=2, commit=0)
        running = asyncio.ensure_future(driver.run())
        for _ in range(3):
            driver.receive(word)
            await driver.leader_changed.wait(driver.leader_changed.count, 0.02)
            threading.Event().wait(0.5)
            await driver.ledger_changed.wait(driver.ledger_changed.count, 0.02)
        running.cancel()
        await asyncio.wait({running})
        return sent

    sent = asyncio.run(main())
    assert sum(isinstance(message, HeartbeatAck) for message in sent) == 3
    assert not [message for message in sent if isinstance(message, VoteRequest)]
