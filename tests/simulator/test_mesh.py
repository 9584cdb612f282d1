import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.simulator.__main__ import main, report
from tests.simulator.bugs import BUGS, planted
from tests.simulator.mesh_simulation import Result, simulate
from tests.simulator.work_simulation import simulate_work

SEEDS = 160
WORK_SEEDS = 40
BUG_SEEDS = {
    "acknowledged-before-sync": 2,
    "commit-of-old-term": 106,
    "learner-counted": 5,
    "truncation-without-conflict": 18,
    "vote-for-a-shorter-log": 0,
    "vote-not-persisted": 88,
}
"""Seeds that find each planted bug, so that finding them again takes seconds; a change of the faults moves them."""


def test_no_violation_under_any_faults() -> None:
    results = [simulate(seed) for seed in range(SEEDS)]
    assert [report(result) for result in results if result.violation] == []
    # A run that decides nothing and elects nobody shows nothing.
    assert sum(result.decided for result in results) > 100 * SEEDS
    assert sum(result.leaders for result in results) > 5 * SEEDS


def test_no_violation_with_jobs_on_real_ledgers() -> None:
    results = [simulate_work(seed) for seed in range(WORK_SEEDS)]
    assert [report(result) for result in results if result.violation] == []
    assert sum(result.decided for result in results) > 50 * WORK_SEEDS


@pytest.mark.parametrize("name", sorted(BUGS))
def test_each_planted_bug_is_found(name: str) -> None:
    with planted(name) as node_class:
        assert simulate(BUG_SEEDS[name], node_class).violation is not None
    assert simulate(BUG_SEEDS[name]).violation is None


@pytest.mark.parametrize("run", [simulate, simulate_work])
def test_a_seed_replays_itself(run: Callable[[int], Result]) -> None:
    assert run(3) == run(3)


def test_traces_do_not_depend_on_the_hash_seed() -> None:
    program = (
        "from tests.simulator.mesh_simulation import simulate\n"
        "from tests.simulator.work_simulation import simulate_work\n"
        "for seed in (2, 3, 10): print(simulate(seed)); print(simulate_work(seed))\n"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            check=True,
            text=True,
            timeout=120,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert "leader" in outputs[0]


def test_the_command_line_replays_and_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "3"]) == 0
    assert "seed 3: no violation" in capsys.readouterr().out
    assert main(["--seeds", "3", "--first", "1"]) == 0
    assert "0 violations in 3 seeds" in capsys.readouterr().out
    assert main(["--seeds", "3", "--plant", "acknowledged-before-sync", "--stop"]) == 1
    assert "after" in capsys.readouterr().out
