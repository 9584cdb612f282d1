"""What a simulated node does with snapshots: makes, offers, fetches, installs, and compacts behind them."""

from typing import TYPE_CHECKING, Any

from mesh.effects import Effect
from mesh.ids import RaftId, node_of
from mesh.log import Base, HardState
from mesh.messages import SnapshotOffer
from mesh.protocol import Raft

if TYPE_CHECKING:
    from tests.simulator.node import Node


class Snapshots:
    """The part of a `Node` that `mesh.effects` calls the driver's answers to snapshots."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._world = node.world

    def _later(self, act: Any) -> None:
        """In a while, in the node's loop, if it lives so long."""
        node, life = self._node, self._node.life

        def call() -> None:
            if node.life == life:
                node.call(act)

        bound_ms = 1 if self._world.network.healed else self._world.parameters.snapshot_ms_max
        self._world.time.after(self._world.random.randrange(bound_ms + 1), call)

    def _fails(self) -> bool:
        chance = self._world.parameters.snapshots_fail
        return not self._world.network.healed and self._world.random.random() < chance

    # --- leader -------------------------------------------------------------------------------

    def make(self, to: RaftId) -> None:
        """Answers `SnapshotNeeded`, in a while."""

        def offer(raft: Raft) -> list[Effect]:
            node = self._node
            base = raft.base_at(node.applied_index)
            if base is None or node.machine is None or self._fails():
                return raft.snapshot_unavailable(to, node.now_ms)
            self._world.snapshots.append((base, node.machine.image()))
            handle = str(len(self._world.snapshots) - 1)
            return raft.offer_snapshot(to, base, 1, "0" * 64, handle, node.now_ms)

        self._later(offer)

    # --- follower -----------------------------------------------------------------------------

    def install(self, offer: SnapshotOffer) -> None:
        """Answers `InstallSnapshot`, in a while."""

        def finish(raft: Raft) -> list[Effect]:
            node = self._node
            here, there = node_of(node.raft_id), node_of(offer.sender)
            if self._fails() or not self._world.network.passes(there, here):
                return raft.install_failed(node.now_ms)
            base, image = self._world.snapshots[int(offer.handle)]
            before = node.disk.hard_state()
            self._world.checks.forgets(raft, base, node.disk)
            node.disk.restart_from(base, HardState(before.term, before.vote, base.index))
            node.replace_machine(image)
            assert node.applied_index == base.index
            return raft.installed(base, node.now_ms)

        self._later(finish)

    # --- both ---------------------------------------------------------------------------------

    def compact(self, durable_index: int) -> None:
        """Forgets, now or never, what the ledger holds durably."""
        keep = self._world.random.randrange(self._world.parameters.compaction_keeps_max + 1)
        if self._world.random.random() >= self._world.parameters.compactions:
            return

        def forget(raft: Raft) -> list[Effect]:
            base: Base | None = raft.base_at(durable_index - keep)
            if base is not None and base.index > self._node.disk.base().index:
                raft.compacted(base)
                self._node.disk.compact(base)
            return []

        self._later(forget)
