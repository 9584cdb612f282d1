"""How late this node's loop is, and by how much elections must wait for it.  Pure.

A machine whose every core encodes gives the loop its turn late; a leader that it did not hear is
then not dead, it was not listened to.  The worst lateness counts at once and is forgotten slowly.
"""

from typing import Final

PROBE_MS: Final = 100
"""How often the loop is asked to be on time: as often as a leader speaks."""
HALF_LIFE_MS: Final = 10_000
"""After so long half of the worst lateness is forgotten: encoders come and go in minutes."""
STRETCH_MAX_PERCENT: Final = 400
"""A dead leader is replaced within four times the configured time, however slow the machine is."""
_STEP_PERCENT: Final = 25
"""Coarse, so that a few milliseconds more or less change nothing."""


class LoopLag:
    """The worst lateness lately, in milliseconds, and the stretch of time-outs that it asks for."""

    def __init__(self, election_min_ms: int) -> None:
        self._election_min_ms = election_min_ms
        self._worst_ms = 0.0
        self._seen_ms = 0

    def late(self, lag_ms: int, now_ms: int) -> None:
        """The loop came so much later than it was due; 0 counts too, it lets the past fade."""
        self._worst_ms = max(float(lag_ms), self.worst_ms(now_ms))
        self._seen_ms = now_ms

    def worst_ms(self, now_ms: int) -> float:
        """The worst lateness, less what time has healed."""
        halved: float = 0.5 ** (max(0, now_ms - self._seen_ms) / HALF_LIFE_MS)
        return self._worst_ms * halved

    def stretch_percent(self, now_ms: int) -> int:
        """100 as long as lateness is small; room for twice the lateness beside a whole time-out."""
        wanted = 100 + 200 * self.worst_ms(now_ms) / self._election_min_ms
        steps = int((wanted - 100) // _STEP_PERCENT)
        return min(STRETCH_MAX_PERCENT, 100 + steps * _STEP_PERCENT)
