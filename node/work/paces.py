"""How long what runs still takes, by its own progress: pure; time is an argument.

A mean over a while that follows how often an attempt tells something new: some encoders give their
frames one by one, others a whole group of pictures after half a minute.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from ledger.scheduler_view import RunningView

WHILE_MS: Final = 10_000
"""The mean is over at least this: a machine has other things to do, too."""
GAPS: Final = 4
"""And over so many times the longest silence so far: who was silent as long before does not stand still."""
MOVES: Final = 2
"""Before nothing is told: the first frames come in a gust, and nobody knows yet how often some come."""
STILL: Final = 0.5
"""Frames that are counted for a while in which none came."""
POINTS_MAX: Final = 64
"""Remembered of one attempt; of more, every second one is as good."""


class Told(Protocol):
    """What an attempt told of itself (`node.work.progress.Progress`)."""

    @property
    def attempt(self) -> str:
        """Its id."""
        ...

    @property
    def phase(self) -> str:
        """`encoding`, `verifying`, or something that has no frames."""
        ...

    @property
    def frames(self) -> int:
        """How many are done in this phase."""
        ...

    @property
    def frames_total(self) -> int:
        """Of how many; 0: nobody knows."""
        ...


@dataclass(slots=True)
class _Pace:
    """One attempt in one phase; `points` are (ms, frames) at which it had moved."""

    phase: str
    total: int
    points: deque[tuple[int, int]]
    moves: int = 0
    gap_ms: int = 0

    def note(self, done: int, total: int, now_ms: int) -> None:
        self.total = total
        last_ms, last = self.points[-1]
        if done <= last:
            return
        self.moves += 1
        self.gap_ms = max(self.gap_ms, now_ms - last_ms)
        self.points.append((now_ms, done))
        # One point at or before the while stays: the mean begins there.
        while len(self.points) > 2 and self.points[1][0] <= now_ms - self.while_ms:
            self.points.popleft()
        if len(self.points) > POINTS_MAX:
            del self.points[1]

    @property
    def while_ms(self) -> int:
        return max(WHILE_MS, GAPS * self.gap_ms)

    def left_ms(self, now_ms: int) -> float | None:
        since_ms, before = self.points[0]
        if self.moves < MOVES or not self.total:
            # What is judged is almost there.
            return float(now_ms - since_ms) if self.phase == "verifying" else None
        for at_ms, frames in self.points:
            if at_ms > now_ms - self.while_ms:
                break
            since_ms, before = at_ms, frames
        last_ms, done = self.points[-1]
        left = max(0, self.total - done)
        rest_ms = left * (now_ms - since_ms) / max(STILL, done - before)
        # All frames are there and it does not end: it is likely to do so for as long again.
        return max(rest_ms, float(now_ms - last_ms))


class Paces:
    """What each running attempt has told of its frames."""

    def __init__(self) -> None:
        self._paces: dict[str, _Pace] = {}

    def note(self, running: Iterable[str], told: Iterable[Told], now_ms: int) -> None:
        """Takes what is told of these attempts, and forgets all others."""
        wanted = frozenset(running)
        self._paces = {a: pace for a, pace in self._paces.items() if a in wanted}
        for progress in told:
            if progress.attempt not in wanted or progress.phase not in ("encoding", "verifying"):
                continue
            pace = self._paces.get(progress.attempt)
            if pace is None or pace.phase != progress.phase:
                begun = deque([(now_ms, progress.frames)])
                pace = self._paces[progress.attempt] = _Pace(progress.phase, 0, begun)
            pace.note(progress.frames, progress.frames_total, now_ms)

    def told(self, running: Sequence[RunningView], now_ms: int) -> tuple[RunningView, ...]:
        """The same with how long each still takes, where it tells enough."""
        return tuple(
            replace(run, told_ms=pace.left_ms(now_ms))
            if (pace := self._paces.get(run.attempt))
            else run
            for run in running
        )
