"""Which parts of films run a second time: pure, for the end of a film, whose slowest part everybody waits for.

Once a node idles, a part that it would do clearly sooner than the node that has it is leased to it as
well; the first result that the owner keeps counts, and the other attempt is ended.  How long the
first one still takes tells its own progress, else its node's measured speed; of a node that is not
heard nobody knows, so its parts are anybody's.

Dean and Ghemawat (MapReduce, 2004, 3.6) call these backup executions; that the time left decides, not
how far a task is, is LATE's (Zaharia and others, OSDI 2008), which also bounds them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from math import inf
from typing import Final, Protocol

from ledger.commands import LEASES_PER_COMMAND_MAX, SpeculateLeases, SpeculativeLease
from ledger.scheduler_view import NodeView, RunningView, SchedulerView, TaskView

GAIN: Final = 1.5
"""Times what the second attempt takes, that the first must still take: speeds are known to a fifth or so, and of a tie nothing is won."""
GAIN_BUSY: Final = 3.0
"""The same while jobs wait to be planned, for they will want the slot: then only for who is really slow."""
GAIN_MS: Final = 3_000
"""And that it must be sooner by: lease, slice and transfer are not reckoned."""
A_JOB_MAX: Final = 4
"""Second attempts at parts of one film at a time: the slowest few are what its end waits for."""
LOOKED_AT_MAX: Final = 64
"""Attempts, the slowest first, that one round looks for helpers for: each costs a look at every node."""
LATE: Final = 1.5
"""Times what was reckoned; who takes longer and tells no progress likely takes as long again."""
LATE_MS: Final = 5_000
"""In addition: fetching is not reckoned for parts."""


class Idle(Protocol):
    """Slots that nobody else wants now."""

    def idle_for(self, task: TaskView) -> Sequence[NodeView]:
        """Nodes with a free slot that can do it."""
        ...

    def takes_ms(self, task: TaskView, node: NodeView) -> float:
        """From now until it would be done there; 0 where no speed was measured."""
        ...

    def grant(self, task: TaskView, node: NodeView) -> None:
        """The slot is taken for it."""
        ...


def speculate(view: SchedulerView, idle: Idle) -> list[SpeculateLeases]:
    """The second leases to grant now: one command or none; the view's nodes are seats (ledger.seats)."""
    leases = tuple(
        SpeculativeLease(
            task=run.task.task,
            attempt=view.new_attempt_id(),
            node=node.node,
            device=node.device,
            beside=run.attempt,
        )
        for run, node in islice(second_attempts(view, idle), LEASES_PER_COMMAND_MAX)
    )
    return [SpeculateLeases(leases=leases, granted_at_ms=view.granted_at_ms)] if leases else []


def second_attempts(view: SchedulerView, idle: Idle) -> Iterator[tuple[RunningView, NodeView]]:
    """What runs, and the node that is to do the same beside it, the slowest first."""
    holders = Counter(run.task.task for run in view.running)
    jobs = {run.task.task: run.task.job for run in view.running}
    twice = Counter(jobs[task] for task, count in holders.items() if count > 1)
    seats = {node.seat: node for node in view.nodes}
    gain = GAIN_BUSY if view.later else GAIN
    left = [(left_ms(run, seats.get(run.seat), idle), run) for run in view.running if _may(run)]
    for rest_ms, run in sorted(left, key=lambda one: -one[0])[:LOOKED_AT_MAX]:
        if rest_ms <= GAIN_MS:
            break
        others = [node for node in idle.idle_for(run.task) if node.node != run.node]
        if not others or twice[run.task.job] >= A_JOB_MAX:
            continue
        took_ms, _, best = min((idle.takes_ms(run.task, seat), seat.seat, seat) for seat in others)
        if took_ms > 0 and rest_ms > max(gain * took_ms, took_ms + GAIN_MS):
            twice[run.task.job] += 1
            idle.grant(run.task, best)
            yield run, best


def _may(run: RunningView) -> bool:
    # What waits for a slot has not begun: it is asked back where it waits too long.
    return run.is_alone and not run.waits


def left_ms(run: RunningView, node: NodeView | None, idle: Idle) -> float:
    """How long this attempt likely still takes."""
    if node is None or not node.alive:
        return inf
    if run.told_ms is None and run.ran_ms > LATE * idle.takes_ms(run.task, node) + LATE_MS:
        return run.ran_ms
    return run.rest_ms


def explain_second(view: SchedulerView, job: str) -> list[str]:
    """Which parts of a job run twice; the view's leases are in the order in which they were granted."""
    names = {node.node: node.name for node in view.nodes}
    runs: dict[str, list[str]] = {}
    for run in view.running:
        if run.task.job == job:
            runs.setdefault(run.task.task, []).append(names.get(run.node, run.node))
    return [
        f"its part {task} is slow on {who[0]}: {who[1]} does it as well, and the first result counts"
        for task, who in runs.items()
        if len(who) > 1
    ]
