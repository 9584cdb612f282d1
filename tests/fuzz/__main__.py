"""`python -m tests.fuzz --inputs 5000000`: bent messages for every door where others' bytes come in.

Prints a table and one line of JSON.  Exit code 1 with the first finding: target, seed, and the input
in hexadecimal; `--seed` and `--only` repeat it.
"""

import argparse
import json
import os
import random
import resource
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import structlog

from mesh import clock
from tests.fuzz.targets import TARGETS

BATCH = 20_000
"""Inputs of one seed: a finding is repeated within so many."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one batch came to."""

    target: str
    seed: int
    inputs: int
    cpu_s: float
    peak_mib: int
    finding: str = ""


def run(target: str, seed: int, inputs: int) -> Batch:
    """Gives a target so many inputs; the same ones for the same seed."""
    started_s = time.process_time()
    draw = random.Random(f"{target} {seed}")
    finding = ""
    mutator, act = TARGETS[target](draw)
    done = 0
    for done in range(1, inputs + 1):
        data = mutator.next()
        try:
            act(data)
        except Exception:  # noqa: BLE001 - whatever it is, it is the finding
            finding = f"{target} seed {seed} input {done}: {data.hex()}\n{traceback.format_exc()}"
            break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Batch(
        target,
        seed,
        done,
        time.process_time() - started_s,
        peak >> (20 if sys.platform == "darwin" else 10),
        finding,
    )


def _quiet() -> None:
    structlog.configure(
        processors=[structlog.dev.ConsoleRenderer()],
        logger_factory=structlog.ReturnLoggerFactory(),
    )
    os.nice(10)


def campaign(inputs: int, jobs: int, seed: int, only: Sequence[str]) -> list[Batch]:
    """Batches over all targets, until so many inputs were given or something was found."""
    wanted = max(1, -(-inputs // BATCH))
    names = list(only or TARGETS)
    size = min(BATCH, inputs)
    tasks = [(names[number % len(names)], seed + number // len(names)) for number in range(wanted)]
    found: list[Batch] = []
    with ProcessPoolExecutor(jobs, initializer=_quiet) as pool:
        running = [pool.submit(run, target, number, size) for target, number in tasks]
        for one in running:
            found.append(one.result())
            if found[-1].finding:
                pool.shutdown(cancel_futures=True)
                break
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--jobs", type=int, default=1, help="on so many cores")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--only", action="append", choices=sorted(TARGETS))
    options = parser.parse_args(arguments)
    started_ms = clock.monotonic_ms()
    found = campaign(options.inputs, options.jobs, options.seed, options.only or ())
    seconds = (clock.monotonic_ms() - started_ms) / 1_000
    print(f"{'':18}{'inputs':>12}{'CPU s':>10}{'a second':>12}{'peak MiB':>10}")
    for name in dict.fromkeys(batch.target for batch in found):
        mine = [batch for batch in found if batch.target == name]
        inputs, cpu_s = sum(b.inputs for b in mine), sum(b.cpu_s for b in mine)
        peak = max(b.peak_mib for b in mine)
        print(f"{name:18}{inputs:>12,}{cpu_s:>10.1f}{inputs / max(cpu_s, 0.001):>12,.0f}{peak:>10}")
    findings = [batch.finding for batch in found if batch.finding]
    print(*findings, sep="\n")
    line = {
        "fuzz": "frames",
        "inputs": sum(batch.inputs for batch in found),
        "seconds": round(seconds, 1),
        "peak_mib": max(batch.peak_mib for batch in found),
        "seed": options.seed,
        "findings": len(findings),
    }
    print(json.dumps(line))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
