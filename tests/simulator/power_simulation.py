"""A working mesh on real files, whose nodes all lose their power at once, again and again."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from ledger.log_sqlite import LogStore
from mesh.errors import StorageError
from mesh.ids import RaftId, node_of
from mesh.log import LogStorage
from tests.lossy_disk import PowerGrid, PowerLossDisk
from tests.simulator.ledger_machine import LedgerMachine
from tests.simulator.machine import Machine
from tests.simulator.mesh_simulation import Result
from tests.simulator.parameters import Parameters
from tests.simulator.work_simulation import Actor, WorkSimulation

NODES = 5
GROWN_MS = 1_500
CALM_MS_MAX = 2_500
"""Time for an election and some load between two losses of power; sometimes there is none at all."""
OPERATIONS_MAX = 300
"""Then it goes during one of so many writes and syncs of all nodes."""


def _weather(seed: int) -> Parameters:
    """Five nodes, a little bad luck, and no need of snapshots: those move files behind the disk's back."""
    return replace(
        Parameters.draw(seed),
        nodes=NODES,
        faults_ms=60_000,
        loss=0.0,
        delay_ms_max=5,
        partitions_per_s=0.0,
        crashes_per_s=0.05,
        leader_crashes_per_s=0.1,
        aimed_at_new_leaders=0.0,
        aimed_at_votes=0.0,
        aimed_at_commits=0.0,
        aimed_at_changes=0.0,
        pauses_per_s=0.0,
        wipes_per_s=0.0,
        removals_per_s=0.0,
        failing_writes=0.0,
        full_disks_per_s=0.0,
        compactions=0.0,
        heartbeat_ms=20,
        election_min_ms=100,
        election_max_ms=200,
        join_every_ms=50,
        skew_ms_max=5,
    )


class PowerSimulation(WorkSimulation):
    """Runs until the power was lost `losses` times, then heals and expects life."""

    def __init__(
        self,
        seed: int,
        grid: PowerGrid,
        folder: Path,
        losses: int,
        opened: Callable[[LogStore], None],
    ) -> None:
        super().__init__(_weather(seed))
        self.losses = 0
        self._wanted = losses
        self._grid = grid
        self._folder = folder
        self._opened = opened
        self._power = Random(f"power {seed}")
        self._disk = grid.plug(PowerLossDisk(self._root(), self._power))
        self._cut_in(GROWN_MS)

    def _root(self) -> Path:
        root = self._folder / f"{self.losses:03}"
        root.mkdir()
        return root

    def _cut_in(self, delay_ms: int) -> None:
        disk, operations = self._disk, self._power.randrange(1, OPERATIONS_MAX)
        self.time.after(delay_ms, lambda: disk.cut_after(operations))

    def _path(self, raft: RaftId, name: str) -> str:
        home = self._disk.root / raft
        home.mkdir(exist_ok=True)
        return str(home / name)

    def open_disk(self, raft: RaftId) -> LogStorage:
        log = LogStore(self._path(raft, "raft.db"), incarnation="0" * 8)
        self._opened(log)
        return log

    def open_machine(self, raft: RaftId, image: Any) -> Machine:
        random = Random(f"{self.parameters.seed} {raft}")
        machine = LedgerMachine(None, random, self._path(raft, "ledger.db"))
        Actor(self, node_of(raft), machine)
        return machine

    def _run_until(self, until_ms: int) -> None:
        while True:
            try:
                super()._run_until(until_ms)
            except StorageError:
                if not self._disk.is_off:
                    raise
                while self._disk.is_off:
                    self._power_comes_back()
            else:
                return
            if self.losses >= self._wanted and not self.network.healed:
                return

    def _break(self) -> None:
        super()._break()
        assert self.losses >= self._wanted, f"only {self.losses} losses of power: more load"

    def _power_comes_back(self) -> None:
        self.losses += 1
        for node in self.nodes.values():
            node.vanish()
            self._close(node.raft_id)
        self._disk = self._grid.plug(self._disk.restore(self._root()))
        if self.losses < self._wanted:
            if self._power.random() < 0.2:
                self._disk.cut_after(self._power.randrange(1, OPERATIONS_MAX))
            else:
                self._cut_in(self._power.randrange(CALM_MS_MAX))
        try:
            for node in self.nodes.values():
                node.disk = self.world.disks[node.raft_id] = self.open_disk(node.raft_id)
                self.checks.survived(node.raft_id, node.disk)
                node.start()
        except StorageError:
            # It went again before everything was up.
            if not self._disk.is_off:
                raise

    def _close(self, raft: RaftId) -> None:
        log = self.world.disks[raft]
        assert isinstance(log, LogStore)
        log.close()

    def run(self) -> Result:
        result = super().run()
        for raft in self.world.disks:
            self._close(raft)
        return result
