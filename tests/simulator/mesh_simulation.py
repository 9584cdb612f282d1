"""A whole mesh in virtual time: grow, break everything, check every step, heal, expect life."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from string import ascii_lowercase
from typing import Any

from mesh.ids import NodeId, RaftId, node_of, raft_id
from mesh.log import LogStorage
from mesh.membership import founding_entries, target_voters
from mesh.messages import ConsensusMessage
from tests.simulator.checks import Checks, Violation
from tests.simulator.faults import Faults
from tests.simulator.machine import Machine, MemoryMachine, plain_command
from tests.simulator.network import Network, Time
from tests.simulator.node import Node, World
from tests.simulator.parameters import Parameters
from tests.simulator.storage import MemoryLog

STEPS_MAX = 1_000_000
"""Ten times what the busiest honest run takes: more is a storm of messages."""
OPEN_REQUESTS_MAX = 64
LIVENESS_MS = 30_000
"""After healing: election, catch-up one entry a round trip, all changes of voters, all done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a run ended; `violation` None: all was well."""

    parameters: Parameters
    violation: str | None
    states: tuple[str, ...]
    trace: tuple[str, ...]
    decided: int
    leaders: int
    steps: int
    virtual_ms: int


def name_of(number: int) -> NodeId:
    """A node id that reads well in traces."""
    return NodeId(ascii_lowercase[number] * 2)


class MeshSimulation:
    """One run of one seed; the state machine is a list of ids."""

    members_return = True
    """Whether somebody who was taken out may join again."""

    def __init__(self, parameters: Parameters, node_class: type[Node] = Node) -> None:
        self.parameters = parameters
        self.random = Random(f"run {parameters.seed}")
        self.time = Time()
        self.network = Network(self.time, self.random, parameters, self._deliver)
        self.checks = Checks()
        self.nodes: dict[NodeId, Node] = {}
        self.node_class = node_class
        self.wanted: dict[str, bytes] = {}
        self.made = 0
        self.faults = Faults(self)
        self.world = World(
            parameters=parameters,
            random=self.random,
            time=self.time,
            network=self.network,
            checks=self.checks,
            disks={},
            open_machine=self.open_machine,
            crash=self.faults.crash,
            split_change=self.faults.split_change,
        )

    # --- what a form with a real ledger replaces ----------------------------------------------

    def open_machine(self, raft: RaftId, image: Any) -> Machine:
        return MemoryMachine(image)

    def open_disk(self, raft: RaftId) -> LogStorage:
        """An empty log."""
        del raft
        return MemoryLog()

    def command(self, verb: str, argument: str) -> tuple[str, bytes]:
        """A new command's id and data."""
        self.made += 1
        command_id = f"{verb}{self.made}"
        return command_id, plain_command(command_id, verb, argument)

    def work(self) -> None:
        """Something for the mesh to decide."""
        self.request("work", "")

    def work_at(self, node: Node) -> None:
        """The same, from a client that knows this node only and gives up."""
        node.propose(self.command("work", "")[1])

    def is_work_done(self) -> bool:
        """Whether, after healing, everything that was begun is finished."""
        return True

    def verify(self) -> None:
        """Raises `Violation` when the state machines are wrong in themselves."""

    # --- the run ------------------------------------------------------------------------------

    def run(self) -> Result:
        violation = None
        try:
            self._found()
            self._break()
            self._heal()
            self._live()
        except Violation as found:
            violation = str(found)
        except Exception as error:  # noqa: BLE001 - any failure of any node is a finding
            violation = f"{type(error).__name__}: {error}"
        states = tuple(map(self._state, self.nodes.values()))
        for node in self.nodes.values():
            if node.machine is not None:
                node.machine.close()
        return Result(
            parameters=self.parameters,
            violation=violation,
            states=states,
            trace=tuple(self.world.trace),
            decided=len(self.checks.decided),
            leaders=self.checks.leaders_seen,
            steps=self.time.steps,
            virtual_ms=self.time.now_ms,
        )

    def _found(self) -> None:
        founder = raft_id(name_of(0), "0" * 8)
        disk = self.open_disk(founder)
        hard_state, entries = founding_entries(founder)
        disk.persist(hard_state, entries)
        self.checks.written(founder, 0, entries)
        self.add(founder, disk)
        self.request("join", founder)

    def add(self, raft: RaftId, disk: LogStorage | None = None) -> Node:
        self.world.disks[raft] = disk or self.open_disk(raft)
        node = self.node_class(self.world, raft)
        self.nodes[node_of(raft)] = node
        if self.network.healed:
            node.heal()
        node.start()
        return node

    def _break(self) -> None:
        for number in range(1, self.parameters.nodes):
            self.time.after(number * self.parameters.join_every_ms, self._joiner(number))
        self.faults.start()
        self._client()
        self._run_until(self.parameters.faults_ms)

    def _joiner(self, number: int) -> Callable[[], None]:
        def join() -> None:
            raft = raft_id(name_of(number), "0" * 8)
            self.add(raft)
            self.request("join", raft)

        return join

    def _client(self) -> None:
        if self.network.healed:
            return
        wait_ms = int(self.random.expovariate(self.parameters.proposals_per_s) * 1_000)
        if len(self.wanted) < OPEN_REQUESTS_MAX:
            self.work()
        self.time.after(wait_ms, self._client)

    def request(self, verb: str, argument: str) -> str:
        """Proposes a command again and again until it took effect somewhere; each time anywhere."""
        command_id, data = self.command(verb, argument)
        self.wanted[command_id] = data
        self._try(command_id)
        return command_id

    def _try(self, command_id: str) -> None:
        for node in self.nodes.values():
            if node.machine is not None and node.machine.done(command_id):
                self.wanted.pop(command_id, None)
                return
        leaders = [node for node in self.nodes.values() if node.is_leader]
        if leaders:
            self.random.choice(leaders).propose(self.wanted[command_id])
        self.time.after(self.random.randrange(200, 600), lambda: self._try(command_id))

    def _deliver(self, message: ConsensusMessage) -> None:
        node = self.nodes.get(node_of(message.to))
        # A node with a new data directory lives at the same address: the core tells them apart.
        if node is not None:
            node.receive(message)

    # --- liveness -----------------------------------------------------------------------------

    def _heal(self) -> None:
        self.network.heal()
        self.world.leaving.clear()
        for node in self.nodes.values():
            node.heal()
            if not node.is_up:
                node.start()

    def _live(self) -> None:
        deadline_ms = self.time.now_ms + LIVENESS_MS
        while self.wanted or not self._settled():
            if self.time.now_ms >= deadline_ms:
                raise Violation(f"liveness: after {LIVENESS_MS} ms without faults {self._why()}")
            self._run_until(self.time.now_ms + 100)
        last = self.request("work", "")
        while last in self.wanted or not self._settled():
            if self.time.now_ms >= deadline_ms:
                raise Violation(f"liveness: a new command stays undecided: {self._why()}")
            self._run_until(self.time.now_ms + 100)
        self.verify()

    def _run_until(self, until_ms: int) -> None:
        while self.time.step(until_ms):
            if self.time.steps > STEPS_MAX:
                raise Violation(f"more than {STEPS_MAX} steps")

    def members(self) -> list[Node]:
        return [node for node in self.nodes.values() if not node.retired]

    def _settled(self) -> bool:
        return self._why() == ""

    def _why(self) -> str:
        members = self.members()
        leaders = [node for node in members if node.is_leader]
        if len(leaders) != 1 or leaders[0].raft is None:
            return f"{len(leaders)} lead"
        raft = leaders[0].raft
        configuration = raft.configuration
        assert configuration is not None
        ids = sorted(node.raft_id for node in members)
        if sorted(configuration.ids) != ids:
            return f"the configuration is {configuration}, the members are {ids}"
        if len(configuration.voters) != target_voters(len(members)):
            return f"{len(configuration.voters)} of {len(members)} members vote"
        states = {
            (node.machine.applied_index, node.machine.checksum())
            for node in members
            if node.machine is not None
        }
        if len(states) != 1 or next(iter(states))[0] != raft.last_index:
            return f"replicas are at {sorted(states)}, the log ends at {raft.last_index}"
        if not self.is_work_done():
            return "work is not done"
        return f"{len(self.wanted)} requests are open" if self.wanted else ""

    def _state(self, node: Node) -> str:
        raft = node.raft
        if raft is None:
            return f"{node.raft_id}: down, disk up to {node.disk.last_index()}"
        return (
            f"{node.raft_id}: {raft.role} of term {raft.term}, leader {raft.leader}, "
            f"commit {raft.commit_index}, last {raft.last_index}, applied {raft.applied_index}, "
            f"configuration {raft.configuration}" + (", removed" if node.retired else "")
        )


def simulate(seed: int, node_class: type[Node] = Node) -> Result:
    """Runs one seed."""
    return MeshSimulation(Parameters.draw(seed), node_class).run()
