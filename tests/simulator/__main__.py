"""`python -m tests.simulator --seed S` replays one run; `--seeds N` runs many and prints what it finds."""

import argparse
import sys
from collections.abc import Sequence

from mesh import clock
from tests.simulator.bugs import BUGS, planted
from tests.simulator.mesh_simulation import Result, simulate
from tests.simulator.work_simulation import simulate_work


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
    print(*lines, sep="\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this one, with its trace")
    parser.add_argument("--seeds", type=int, default=100, help="run so many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--plant", choices=sorted(BUGS), help="with this bug planted")
    parser.add_argument("--work", action="store_true", help="with jobs on real ledgers")
    parser.add_argument("--stop", action="store_true", help="stop at the first finding")
    options = parser.parse_args(arguments)
    run = simulate_work if options.work else simulate
    started_ms = clock.monotonic_ms()
    with planted(options.plant) as node_class:
        if options.seed is not None:
            result = run(options.seed, node_class)
            _say(*result.trace, report(result))
            return 1 if result.violation else 0
        found = steps = virtual_ms = 0
        for seed in range(options.first, options.first + options.seeds):
            result = run(seed, node_class)
            steps += result.steps
            virtual_ms += result.virtual_ms
            if result.violation:
                found += 1
                _say(f"{report(result)}\n  after {clock.monotonic_ms() - started_ms} ms")
                if options.stop:
                    break
        _say(
            f"{found} violations in {options.seeds} seeds, {steps} steps, "
            f"{virtual_ms / 1000:.0f} virtual seconds, {clock.monotonic_ms() - started_ms} ms"
        )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
