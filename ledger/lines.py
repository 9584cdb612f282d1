"""The line at each node's slots: when a lease that is granted now would begin, and how many wait before it.

Pure, and only as good as what was measured: a worker begins what it holds by priority, then in the
order of its leases (`node.work.turns`), and this reckons with the same order.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from ledger.scheduler_view import NodeView, RunningView, SchedulerView

AHEAD_MS: Final = 5_000
"""A slot that is likely free within this time is leased ahead: a lease's way takes some ms, cutting a slice and bringing it a second or two."""
FETCH_AHEAD: Final = 1.5
"""Times what fetching takes by the measured link, in addition: links have other users."""
AHEAD_MS_MAX: Final = 120_000
"""Further ahead nothing is known: what runs may end sooner elsewhere."""
AHEAD_A_SLOT_MAX: Final = 16
"""Leases that wait for each slot at most, of one priority and those above: with tasks of some ms the way of a lease is not what bounds them, and giving all back is one command."""


def lead_ms(fetch_ms: float) -> float:
    """How long before its begin a task is leased that takes so long to fetch."""
    return min(AHEAD_MS_MAX, AHEAD_MS + FETCH_AHEAD * fetch_ms)


class Line:
    """One node's slots and what waits for them."""

    def __init__(
        self, slots: int, begun: Sequence[float], waiting: Sequence[tuple[int, float]]
    ) -> None:
        """`begun` are the rests of what runs, `waiting` priority and length of what does not yet, in its order."""
        self._slots = slots
        self._begun = sorted(begun)
        self._waiting = list(waiting)
        self._ends: dict[int, list[float]] = {}
        self.free = slots - len(begun) - len(waiting)

    @property
    def held(self) -> int:
        """Leases that it has, begun or not."""
        return len(self._begun) + len(self._waiting)

    def starts_ms(self, priority: int) -> float:
        """When a lease of this priority would begin, from now on."""
        if self.free > 0 or self._slots <= 0:
            return 0.0
        return self._slots_free(priority)[0]

    def has_room(self, priority: int) -> bool:
        """Whether one more of this priority may wait."""
        if self.free > 0:
            return True
        before = sum(one >= priority for one, _ in self._waiting)
        return before < AHEAD_A_SLOT_MAX * self._slots

    def add(self, priority: int, takes_ms: float) -> None:
        """A lease is granted."""
        if self.free > 0:
            self._begun = sorted((*self._begun, takes_ms))
            self._ends.clear()
        else:
            self._waiting.append((priority, takes_ms))
            for known, ends in self._ends.items():
                if priority >= known:
                    heapq.heapreplace(ends, ends[0] + takes_ms)
        self.free -= 1

    def _slots_free(self, priority: int) -> list[float]:
        """When each slot is free for a lease of this priority, as a heap."""
        ends = self._ends.get(priority)
        if ends is None:
            # Of more than slots the first to end free none.
            ends = self._begun[max(0, len(self._begun) - self._slots) :]
            ends = [0.0] * (self._slots - len(ends)) + ends
            for before, takes_ms in self._waiting:
                if before >= priority:
                    heapq.heapreplace(ends, ends[0] + takes_ms)
            self._ends[priority] = ends
        return ends


def lines_of(view: SchedulerView) -> Mapping[str, Line]:
    """The line of each node, or of each of its devices (ledger.seats), as it is before this round."""
    begun: dict[str, list[float]] = {}
    waiting: dict[str, list[tuple[int, float]]] = {}
    for run in view.running:
        if run.waits:
            waiting.setdefault(run.seat, []).append((run.task.priority, run.rest_ms))
        else:
            begun.setdefault(run.seat, []).append(run.rest_ms)
    return {
        node.seat: _line(node, begun.get(node.seat, []), waiting.get(node.seat, []))
        for node in view.nodes
    }


def ends_of_waiting(view: SchedulerView) -> Mapping[str, float]:
    """When each lease that waits for a slot is likely done where it is, from now on, by attempt."""
    slots: dict[str, list[float]] = {}
    for run in view.running:
        if not run.waits:
            slots.setdefault(run.seat, []).append(run.rest_ms)
    for ends in slots.values():
        heapq.heapify(ends)
    found: dict[str, float] = {}
    for run in sorted((r for r in view.running if r.waits), key=lambda r: -r.task.priority):
        if begun := slots.get(run.seat):
            found[run.attempt] = begun[0] + run.rest_ms
            heapq.heapreplace(begun, found[run.attempt])
    return found


def _line(node: NodeView, begun: Sequence[float], waiting: Sequence[tuple[int, float]]) -> Line:
    # Leases that the view does not tell of end nobody knows when.
    unknown = [float(AHEAD_MS_MAX)] * (node.busy - len(begun) - len(waiting))
    return Line(node.slots, [*begun, *unknown], waiting)


def with_waits(running: Sequence[RunningView], slots: Mapping[str, int]) -> tuple[RunningView, ...]:
    """The leases, in the order in which they were granted, with those that likely wait for a slot.

    `slots` are those of each seat.

    Which ones a worker has begun it knows best; who asks for one that has begun is not heard.
    """
    begun: dict[str, int] = {}
    found: list[RunningView] = []
    for run in running:
        begun[run.seat] = begun.get(run.seat, 0) + 1
        found.append(replace(run, waits=begun[run.seat] > slots.get(run.seat, 0)))
    return tuple(found)
