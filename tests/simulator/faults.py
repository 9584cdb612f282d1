"""What breaks, when, and for how long: every rate is drawn from the seed (`Parameters`)."""

from itertools import product
from typing import TYPE_CHECKING

from mesh.ids import NodeId, RaftId, node_of, raft_id
from tests.simulator.node import Node

if TYPE_CHECKING:
    from tests.simulator.mesh_simulation import MeshSimulation

FAULTS_EVERY_MS = 100
MEMBERS_MIN = 1
BEARABLE_VOTERS_MIN = 3
"""Of fewer voters none can be lost."""
RETURN_MS_MAX = 2_000
CRASH_AFTER_PARTITION_MS_MAX = 300

Cut = tuple[NodeId, NodeId]


class Faults:
    """Breaks a simulation until its network is healed."""

    def __init__(self, mesh: "MeshSimulation") -> None:
        self._mesh = mesh
        self._random = mesh.random
        self._parameters = mesh.parameters

    def start(self) -> None:
        """From now on."""
        self._mesh.time.after(FAULTS_EVERY_MS, self._inject)

    def _happens(self, per_s: float) -> bool:
        return self._random.random() < per_s * FAULTS_EVERY_MS / 1_000

    def _inject(self) -> None:
        mesh, parameters = self._mesh, self._parameters
        if mesh.network.healed:
            return
        mesh.time.after(FAULTS_EVERY_MS, self._inject)
        if self._happens(parameters.partitions_per_s) and len(mesh.nodes) > 1:
            self.partition()
        for node in tuple(mesh.nodes.values()):
            self._strike(node)
        if self._happens(parameters.transfers_per_s):
            self._transfer()
        if self._happens(parameters.wipes_per_s):
            self._wipe()
        if self._happens(parameters.removals_per_s):
            self._remove()

    def _strike(self, node: Node) -> None:
        """What hits one node by itself."""
        parameters = self._parameters
        crash_rate = parameters.crashes_per_s
        if node.is_leader:
            crash_rate += parameters.leader_crashes_per_s
        if self._happens(crash_rate):
            self.crash(node, parameters.down_ms_max)
        if self._happens(parameters.pauses_per_s):
            node.pause(self._random.randrange(1, parameters.pause_ms_max))
        if self._happens(parameters.jumps_per_s):
            node.jump(self._random.randrange(1, parameters.jump_ms_max))
        if self._happens(parameters.full_disks_per_s):
            node.fill_disk(self._random.randrange(1, parameters.full_ms_max))

    # --- crashes ------------------------------------------------------------------------------

    def crash(self, node: Node, down_ms_max: int) -> None:
        """Down, and up again with what its disk holds."""
        if not node.is_up:
            return
        node.crash()
        down_ms = self._random.randrange(1, down_ms_max)
        self._mesh.time.after(down_ms, lambda: self._restart(node))

    def _restart(self, node: Node) -> None:
        if not node.is_up and self._mesh.nodes.get(node_of(node.raft_id)) is node:
            node.start()

    def _transfer(self) -> None:
        """Somebody wants the lead to move: to the best, or to anybody."""
        nodes = list(self._mesh.nodes.values())
        to = self._random.choice(nodes).raft_id if self._random.random() < 0.5 else None
        for node in nodes:
            if node.is_leader:
                node.transfer(to)

    # --- partitions ---------------------------------------------------------------------------

    def _leaders(self) -> list[NodeId]:
        return [node_of(node.raft_id) for node in self._mesh.nodes.values() if node.is_leader]

    def partition(self) -> None:
        """Cuts links for a while; what becomes of a leader that is cut off matters most."""
        random, parameters = self._random, self._parameters
        leaders = self._leaders()
        around = None
        if leaders and random.random() < parameters.aimed_partitions:
            around = random.choice(leaders)
        length_ms = random.randrange(50, parameters.partition_ms_max)
        self._mesh.network.cut(self._shape(sorted(self._mesh.nodes), around), length_ms)
        if around is not None:
            self._burst(self._mesh.nodes[around])
            if random.random() < parameters.crashes_after_partitions:
                self._mesh.time.after(length_ms, self._crash_a_leader_soon)

    def _shape(self, nodes: list[NodeId], around: NodeId | None) -> list[Cut]:
        """Which links: between two sides, one way only, around a bridge, or any."""
        random = self._random
        if around is not None:
            side = frozenset([around, random.choice(nodes)])
            return self._between(nodes, side)
        shape = random.choice(["sides", "sides", "bridge", "any"])
        links = [(left, right) for left, right in product(nodes, nodes) if left != right]
        if shape == "any":
            return [link for link in links if random.random() < 0.4]
        if shape == "bridge" and len(nodes) > 2:
            # Two sides that both reach one node, and not each other.
            bridge = random.choice(nodes)
            others = [node for node in nodes if node != bridge]
            side = frozenset(random.sample(others, random.randrange(1, len(others))))
            return [(left, right) for left, right in self._between(others, side)]
        return self._between(
            nodes, frozenset(random.sample(nodes, random.randrange(1, len(nodes))))
        )

    def _between(self, nodes: list[NodeId], side: frozenset[NodeId]) -> list[Cut]:
        directions = self._random.choice([0, 1]) if self._parameters.one_way else 2
        return [
            (left, right)
            for left, right in product(nodes, nodes)
            if (left in side) != (right in side)
            and (directions == 2 or (left in side) == bool(directions))
        ]

    def _burst(self, leader: Node) -> None:
        """A leader that is cut off takes commands which nobody else will ever see: a long tail."""
        if self._parameters.bursts_max:
            for _ in range(self._random.randrange(self._parameters.bursts_max)):
                self._mesh.work_at(leader)

    def _crash_a_leader_soon(self) -> None:
        """The links are back, and the leader dies before it has mended what diverged meanwhile."""

        def strike() -> None:
            leaders = self._leaders()
            if leaders and not self._mesh.network.healed:
                node = self._mesh.nodes[self._random.choice(leaders)]
                self.crash(node, self._parameters.down_ms_max)

        self._mesh.time.after(self._random.randrange(CRASH_AFTER_PARTITION_MS_MAX), strike)

    def split_change(self, leader: Node, voters: frozenset[RaftId]) -> None:
        """A change of the configuration is on its way: who hears of it, and who does not?

        The leader keeps some with it: nobody, whoever did not vote before the change, or any.
        """
        random, nodes = self._random, sorted(self._mesh.nodes)
        before = {node_of(voter) for voter in voters}
        match random.choice(["alone", "new", "any"]):
            case "alone":
                side = frozenset([node_of(leader.raft_id)])
            case "new":
                side = frozenset(node for node in nodes if node not in before)
            case _:
                side = frozenset(random.sample(nodes, random.randrange(len(nodes))))
        side |= {node_of(leader.raft_id)}
        cuts = [(a, b) for a, b in product(nodes, nodes) if (a in side) != (b in side)]
        self._mesh.network.cut(cuts, random.randrange(50, self._parameters.partition_ms_max))

    # --- members ------------------------------------------------------------------------------

    def _voters_when_steady(self) -> tuple[RaftId, ...]:
        """The voters, when all members stand in a configuration that its leader committed; else none."""
        mesh = self._mesh
        leaders = [node for node in mesh.nodes.values() if node.is_leader]
        if len(leaders) != 1 or leaders[0].raft is None or not leaders[0].raft.term_committed:
            return ()
        configuration = leaders[0].raft.configuration
        assert configuration is not None
        living = sorted(node.raft_id for node in mesh.members())
        if leaders[0].raft.pending_configuration or sorted(configuration.ids) != living:
            return ()
        return configuration.voters

    def _wipe(self) -> None:
        """A node loses its data directory and comes back as somebody else with the same key."""
        if len(self._voters_when_steady()) < BEARABLE_VOTERS_MIN:
            return
        node = self._random.choice(self._mesh.members())
        if node.is_up:
            node.crash()
        self._renew(node)

    def _renew(self, node: Node) -> None:
        mesh = self._mesh
        mesh.made += 1
        renewed = raft_id(node_of(node.raft_id), f"{mesh.made:08x}")
        mesh.add(renewed)
        mesh.request("join", renewed)

    def _remove(self) -> None:
        """A member is taken out and does not know it: it goes on and must disturb nobody."""
        mesh = self._mesh
        voters = self._voters_when_steady()
        # The only voter cannot be taken out: nobody else could decide that.
        bearable = len(voters) >= BEARABLE_VOTERS_MIN
        able = [node for node in mesh.members() if bearable or node.raft_id not in voters]
        if not voters or len(mesh.members()) <= MEMBERS_MIN or not able:
            return
        node = self._random.choice(able)
        if self._random.random() < 0.5:
            self._take_out(node)
            return
        # It goes politely: its lead and its vote are handed over first, as far as there is time.
        mesh.world.leaving.add(node.raft_id)
        wait_ms = self._random.randrange(RETURN_MS_MAX)
        mesh.time.after(wait_ms, lambda: self._let_go(node))

    def _let_go(self, node: Node) -> None:
        self._mesh.world.leaving.discard(node.raft_id)
        voters = self._voters_when_steady()
        bearable = len(voters) >= BEARABLE_VOTERS_MIN or node.raft_id not in voters
        # Whoever is needed to decide, or was wiped meanwhile, stays.
        if voters and bearable and node in self._mesh.members() and not self._mesh.network.healed:
            self._take_out(node)

    def _take_out(self, node: Node) -> None:
        mesh = self._mesh
        node.retired = True
        mesh.request("leave", node.raft_id)
        if mesh.members_return and self._random.random() < 0.5:
            wait_ms = self._random.randrange(RETURN_MS_MAX)
            mesh.time.after(wait_ms, lambda: self._return(node))

    def _return(self, node: Node) -> None:
        """Who was taken out joins again, with a new data directory, while links are still broken."""
        mesh = self._mesh
        if mesh.network.healed or mesh.nodes.get(node_of(node.raft_id)) is not node:
            return
        if not self._voters_when_steady():
            # Whoever wipes a machine before its removal is decided takes a vote with it for good:
            # of two voters, one of them promoted at this moment, nobody could be elected any more.
            mesh.time.after(RETURN_MS_MAX, lambda: self._return(node))
            return
        if node.is_up:
            node.crash()
        self._renew(node)
