"""Two nodes that hear each other never make two meshes; somebody always makes one."""

from collections.abc import Iterable

import pytest

from mesh.forming import Forming, FormingEffect
from tests.simulator.forming_simulation import Simulation

SEEDS = 2_000
CHUNK = 250


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_exactly_one_mesh(first: int) -> None:
    for seed in range(first, first + CHUNK):
        run = Simulation(seed).run()
        founders = {node for _, node in run.formed}
        assert len(founders) == 1, f"seed {seed}: {run.formed} with {run.faults}"
        assert run.over(), f"seed {seed}: nobody decides, {run.faults}"


def test_without_faults_the_lowest_forms_soon() -> None:
    for seed in range(200):
        run = Simulation(seed)
        faults = run.faults
        if faults.crash or faults.stall or faults.loss or faults.spread_ms > 50:
            continue
        run.run()
        (formed,) = run.formed
        assert formed[1] == min(run.nodes), f"seed {seed}"
        assert formed[0] < 6_000, f"seed {seed}: {formed} with {faults}"


def _several(seeds: range) -> bool:
    return any(len({node for _, node in Simulation(seed).run().formed}) > 1 for seed in seeds)


def test_the_simulation_notices_when_nobody_is_asked_for_a_promise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decide = Forming._decide

    def without_asking(core: Forming, now_ms: int) -> Iterable[FormingEffect]:
        core._taken = dict.fromkeys(core._heard, now_ms + 1)
        return decide(core, now_ms)

    monkeypatch.setattr(Forming, "_decide", without_asking)
    assert _several(range(550, 700))


def test_the_simulation_notices_when_answers_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Forming, "_hear", lambda *_: None)
    assert _several(range(100))
