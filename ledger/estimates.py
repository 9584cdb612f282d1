"""How fast nodes are and how long what runs still takes: pure, as far as it was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from ledger.scheduler_view import NodeView, RunningView, SchedulerView
from ledger.seats import with_seats

OVERRUN: Final = 0.1
"""Of the time that it ran, where that is more than was reckoned for all of it."""


class Speeds:
    """Cost units a second of each node by profile; of what was not measured the mean of the others."""

    def __init__(self, view: SchedulerView) -> None:
        self._nodes = [node for node in view.nodes if node.takes_work and node.slots > 0]
        costs = [task.cost for task in view.tasks]
        mean = sum(costs) / len(costs) if costs else 0
        self._left = sum(costs) + view.running_cost + view.later * mean
        self._means: dict[str, float] = {}
        self._ends: dict[tuple[str, frozenset[str]], float] = {}

    def known(self, profile: str) -> bool:
        """Whether anybody was measured with it."""
        return self._mean(profile) > 0

    def of(self, node: NodeView, profile: str) -> float:
        """Of one node."""
        return max(1.0, node.speeds.get(profile) or self._mean(profile))

    def all_done_ms(self, profile: str, able: Sequence[NodeView]) -> float:
        """When all that is left would be done, were it spread evenly; devices count that can do such tasks."""
        devices = frozenset(node.seat for node in able if node.device)
        key = profile, devices
        if key not in self._ends:
            speed = sum(
                self.of(node, profile) * node.slots
                for node in self._nodes
                if not node.device or node.seat in devices
            )
            self._ends[key] = 1_000 * self._left / max(1.0, speed)
        return self._ends[key]

    def _mean(self, profile: str) -> float:
        if profile not in self._means:
            found = [speed for n in self._nodes if (speed := n.speeds.get(profile, 0)) > 0]
            self._means[profile] = sum(found) / len(found) if found else 0.0
        return self._means[profile]


def with_estimates(view: SchedulerView, since_ms: Mapping[str, int], now_ms: int) -> SchedulerView:
    """The view with how long each lease still takes; `since_ms` says since when each attempt runs."""
    seats = with_seats(view)
    speeds = Speeds(seats)
    nodes = {node.seat: node for node in seats.nodes}
    running: list[RunningView] = []
    cost_left = 0.0
    for run in view.running:
        if (node := nodes.get(run.seat)) is None:
            continue
        speed = speeds.of(node, run.task.profile)
        ran_ms = 0 if run.waits else now_ms - since_ms.get(run.attempt, now_ms)
        # What ran longer than was reckoned is likely to do so for some time more.
        rest_ms = max(1_000 * run.task.cost / speed - ran_ms, OVERRUN * ran_ms)
        if run.told_ms is not None:
            rest_ms = run.told_ms
        left = rest_ms / (rest_ms + ran_ms) if ran_ms else 1.0
        running.append(replace(run, rest_ms=rest_ms, ran_ms=ran_ms, left=left))
        cost_left += min(rest_ms * speed / 1_000, run.task.cost)
    return replace(view, running_cost=int(cost_left), running=tuple(running))
