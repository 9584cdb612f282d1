"""The power goes in the middle of load, of one disk or of all nodes at once: nothing acknowledged is lost."""

from pathlib import Path
from random import Random

from ledger.log_sqlite import LogStore
from mesh.errors import StorageError
from mesh.log import Entry, HardState
from tests.lossy_disk import PowerGrid, PowerLossDisk, power_grid
from tests.simulator.mesh_simulation import Result
from tests.simulator.power_simulation import PowerSimulation

LOSSES = 10
CUTS = 60
MESH_SEED = 1

Log = dict[int, tuple[int, bytes]]


def _open(disk: PowerLossDisk, *, synced: bool) -> LogStore:
    log = LogStore(str(disk.root / "raft.db"), incarnation="0" * 8)
    if not synced:
        log._connection.pragma("synchronous", 0)
    return log


def _content(log: LogStore) -> tuple[HardState, Log]:
    entries = log.entries(log.first_index(), log.last_index() + 1, 1 << 30)
    return log.hard_state(), {entry.index: (entry.term, entry.data) for entry in entries}


def _write_until_dark(log: LogStore, random: Random) -> tuple[object, object]:
    """What was durable for sure when the power went, and what the write under way would have made."""
    after = _content(log)
    while True:
        state, kept = after
        first = random.randint(max(1, len(kept) - 3), len(kept) + 1)
        term = state.term + random.randrange(2)
        entries = [
            Entry(index, term, "command", random.randbytes(random.choice([10, 5_000])))
            for index in range(first, first + random.randint(1, 5))
        ]
        written = HardState(term, None, 0)
        kept = {index: value for index, value in kept.items() if index < first}
        before, after = after, (written, kept | {e.index: (e.term, e.data) for e in entries})
        try:
            log.persist(written, entries)
        except StorageError:
            return before, after


def _cut_again_and_again(grid: PowerGrid, folder: Path, *, synced: bool) -> int:
    """How often, of `CUTS` times, a write that was acknowledged is not there or is there in part."""
    random, lost = Random(7), 0
    (folder / "0").mkdir()
    disk = grid.plug(PowerLossDisk(folder / "0", random))
    log = _open(disk, synced=synced)
    for cut in range(1, CUTS + 1):
        disk.cut_after(random.randrange(1, 120))
        allowed = _write_until_dark(log, random)
        log.close()
        (folder / str(cut)).mkdir()
        disk = grid.plug(disk.restore(folder / str(cut)))
        try:
            log = _open(disk, synced=synced)
        except StorageError:
            return lost + 1
        lost += _content(log) not in allowed
    log.close()
    return lost


def test_a_write_is_there_whole_or_not_at_all_and_never_lost_once_acknowledged(
    tmp_path: Path,
) -> None:
    with power_grid() as grid:
        assert _cut_again_and_again(grid, tmp_path, synced=True) == 0


def test_the_disk_loses_what_is_not_synced(tmp_path: Path) -> None:
    with power_grid() as grid:
        assert _cut_again_and_again(grid, tmp_path, synced=False) > 0


def _run(seed: int, folder: Path, *, synced: bool) -> tuple[Result, int]:
    def opened(log: LogStore) -> None:
        if not synced:
            log._connection.pragma("synchronous", 0)

    folder.mkdir()
    with power_grid() as grid:
        simulation = PowerSimulation(seed, grid, folder, LOSSES, opened)
        return simulation.run(), simulation.losses


def test_five_nodes_lose_nothing_when_the_power_of_all_goes_ten_times(tmp_path: Path) -> None:
    result, losses = _run(MESH_SEED, tmp_path / "mesh", synced=True)
    assert result.violation is None
    assert losses == LOSSES
    assert result.decided > 100
    assert result.leaders > LOSSES // 2


def test_five_nodes_without_syncs_lose_what_they_acknowledged(tmp_path: Path) -> None:
    result, _ = _run(MESH_SEED, tmp_path / "mesh", synced=False)
    assert "durability" in (result.violation or ""), result.violation
