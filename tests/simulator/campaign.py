"""Many seeds: one after the other or on several cores, with a line of progress; and the hunt for planted bugs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context

from mesh import clock
from tests.simulator.bugs import BUGS, planted
from tests.simulator.mesh_simulation import Result, simulate
from tests.simulator.work_simulation import simulate_work

MUTANT_SEEDS = 2_000
MISFITS = ("TypeError", "AttributeError")
"""A planted bug that the code has outgrown fails so: that finds nothing."""
PROGRESS_EVERY_MS = 5_000
CHUNK_PER_JOB = 8

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Task:
    """One run."""

    seed: int
    work: bool = False
    bug: str | None = None


def run(task: Task) -> Result:
    """Runs it."""
    simulation = simulate_work if task.work else simulate
    with planted(task.bug) as node_class:
        return simulation(task.seed, node_class)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is kept of a run that is one of very many: no trace."""

    task: Task
    violation: str | None
    steps: int
    virtual_ms: int
    decided: int


def judge(task: Task) -> Verdict:
    """Runs it and forgets the rest."""
    result = run(task)
    return Verdict(task, result.violation, result.steps, result.virtual_ms, result.decided)


def verdicts(tasks: Sequence[Task], jobs: int) -> Iterator[Verdict]:
    """The verdicts in the order of the tasks; on several cores when `jobs` is more than one."""
    if jobs == 1:
        yield from map(judge, tasks)
        return
    # Spawned, not forked: the same on every system, and no thread of the parent is copied.
    with get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(judge, tasks, chunksize=CHUNK_PER_JOB)


@dataclass(slots=True)
class Totals:
    """Sums of a campaign."""

    runs: int = 0
    violations: int = 0
    steps: int = 0
    virtual_ms: int = 0
    decided: int = 0

    def add(self, verdict: Verdict) -> None:
        self.runs += 1
        self.violations += verdict.violation is not None
        self.steps += verdict.steps
        self.virtual_ms += verdict.virtual_ms
        self.decided += verdict.decided

    def line(self, elapsed_ms: int) -> str:
        return (
            f"{self.violations} violations in {self.runs} seeds, {self.steps} steps, "
            f"{self.decided} decided, {self.virtual_ms / 1_000:.0f} virtual seconds, "
            f"{elapsed_ms / 1_000:.1f} s"
        )


def campaign(
    tasks: Sequence[Task], jobs: int, *, found: Callable[[Task], None], progress: Say, stop: bool
) -> Totals:
    """Runs all; `found` is told each task that ended in a violation."""
    totals = Totals()
    started_ms = told_ms = clock.monotonic_ms()
    for verdict in verdicts(tasks, jobs):
        totals.add(verdict)
        now_ms = clock.monotonic_ms()
        if now_ms - told_ms >= PROGRESS_EVERY_MS:
            told_ms = now_ms
            progress(f"{totals.runs} of {len(tasks)}: {totals.line(now_ms - started_ms)}")
        if verdict.violation is not None:
            found(verdict.task)
            if stop:
                break
    return totals


@dataclass(frozen=True, slots=True)
class Hunt:
    """How long it took to find a planted bug; `seed` None: not found."""

    bug: str
    seed: int | None
    violation: str
    seconds: float


def hunt(bug: str, seeds: Sequence[int], jobs: int) -> Hunt:
    """The first of these seeds that finds the bug and is sound without it."""
    started_ms = clock.monotonic_ms()
    work = BUGS[bug].kind == "work"
    tasks = [Task(seed, work, bug) for seed in seeds]
    for verdict in verdicts(tasks, jobs):
        if verdict.violation is None or verdict.violation.startswith(MISFITS):
            continue
        if judge(Task(verdict.task.seed, work)).violation is not None:
            continue  # what also fails without the bug does not prove that it was found
        seconds = (clock.monotonic_ms() - started_ms) / 1_000
        return Hunt(bug, verdict.task.seed, verdict.violation, seconds)
    return Hunt(bug, None, "", (clock.monotonic_ms() - started_ms) / 1_000)


def hunt_all(bugs: Sequence[str], seeds: int, jobs: int, say: Say) -> bool:
    """Plants each bug in turn, prints what came of it; True when all were found."""
    found = 0
    started_ms = clock.monotonic_ms()
    for bug in bugs:
        done = hunt(bug, range(seeds), jobs)
        found += done.seed is not None
        where = "NOT FOUND" if done.seed is None else f"seed {done.seed:4}"
        say(f"{bug:28} {where:10} {done.seconds:6.1f} s  {BUGS[bug].what}")
        if done.violation:
            say(f"{'':28}   {done.violation[:160]}")
    seconds = (clock.monotonic_ms() - started_ms) / 1_000
    say(f"{found}/{len(bugs)} planted bugs found within {seeds} seeds each, {seconds:.1f} s")
    return found == len(bugs)
