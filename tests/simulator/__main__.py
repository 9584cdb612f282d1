"""`python -m tests.simulator --seed S` replays one run; `--seeds N` runs many; `--mutants` hunts planted bugs."""

import argparse
import sys
from collections.abc import Sequence

from mesh import clock
from tests.simulator.bugs import BUGS
from tests.simulator.campaign import MUTANT_SEEDS, Task, campaign, hunt_all, run
from tests.simulator.mesh_simulation import Result


def report(result: Result) -> str:
    """Everything needed to understand and to repeat a finding."""
    lines = [f"seed {result.parameters.seed}: {result.violation or 'no violation'}"]
    lines += [f"  {result.parameters}"]
    lines += [f"  {state}" for state in result.states]
    lines.append(
        f"  {result.decided} decided, {result.leaders} leaders, {result.steps} steps, "
        f"{result.virtual_ms} virtual ms"
    )
    return "\n".join(lines)


def _say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this one, with its trace")
    parser.add_argument("--seeds", type=int, help="run so many (100; 2,000 for each mutant)")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=1, help="on so many cores")
    parser.add_argument("--plant", choices=sorted(BUGS), help="with this bug planted")
    parser.add_argument("--mutants", action="store_true", help="plant each bug in turn")
    parser.add_argument("--only", action="append", choices=sorted(BUGS), help="of the mutants")
    parser.add_argument("--work", action="store_true", help="with jobs on real ledgers")
    parser.add_argument("--stop", action="store_true", help="stop at the first finding")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: nothing wrong was found, or, with `--mutants`, every planted bug was."""
    options = _options(arguments)
    if options.mutants:
        bugs = options.only or list(BUGS)
        return 0 if hunt_all(bugs, options.seeds or MUTANT_SEEDS, options.jobs, _say) else 1
    if options.seed is not None:
        result = run(Task(options.seed, options.work, options.plant))
        _say(*result.trace, report(result))
        return 1 if result.violation else 0
    seeds = range(options.first, options.first + (options.seeds or 100))
    started_ms = clock.monotonic_ms()
    totals = campaign(
        [Task(seed, options.work, options.plant) for seed in seeds],
        options.jobs,
        found=lambda task: _say(report(run(task))),
        progress=_say,
        stop=options.stop,
    )
    _say(totals.line(clock.monotonic_ms() - started_ms))
    return 1 if totals.violations else 0


if __name__ == "__main__":
    sys.exit(main())
