"""How late this node's loop is, and by how much elections must wait for it.  Pure.

A machine whose every core encodes gives the loop its turn late; a leader that it did not hear is
then not dead, it was not listened to.  The worst lateness counts at once.  How long it counts
depends: a lone one (a node that starts, a snapshot) is over when it is over, what comes again and
again is forgotten slowly.
"""

from typing import Final

PROBE_MS: Final = 100
"""How often the loop is asked to be on time: as often as a leader speaks."""
HALF_LIFE_MS: Final = 10_000
"""After so long half of a usual lateness is forgotten: encoders come and go in minutes."""
LONE_HALF_LIFE_MS: Final = 500
"""The same for a lone one: an election time-out later it must not hold up the next election."""
USUAL: Final = 3
"""So many within the memory are usual: the lateness that this many reached counts for long."""
STALL_MS: Final = 500
"""What is late within so long is one stall: both the probe and the consensus loop report it."""
STRETCH_MAX_PERCENT: Final = 400
"""A dead leader is replaced within four times the configured time, however slow the machine is."""
_STEP_PERCENT: Final = 25
"""Coarse, so that a few milliseconds more or less change nothing."""


class LoopLag:
    """The worst lateness lately, in milliseconds, and the stretch of time-outs that it asks for."""

    def __init__(self, election_min_ms: int) -> None:
        self._election_min_ms = election_min_ms
        self._lag_ms_max = election_min_ms * (STRETCH_MAX_PERCENT - 100) // 200
        self._stalls: list[tuple[int, int]] = []
        """The worst ones, at most `USUAL`: when, and how late."""

    def late(self, lag_ms: int, now_ms: int) -> None:
        """The loop came so much later than it was due."""
        if lag_ms <= 0:
            return
        # Beyond the widest stretch it says nothing more, and would only be forgotten later.
        lag_ms = min(lag_ms, self._lag_ms_max)
        stalls = self._stalls
        if stalls and now_ms - stalls[-1][0] < max(STALL_MS, lag_ms):
            _, before_ms = stalls.pop()
            lag_ms = max(lag_ms, before_ms)
        stalls.append((now_ms, lag_ms))
        if len(stalls) > USUAL:
            least = min(stalls[:-1], key=lambda stall: _faded(stall, now_ms, HALF_LIFE_MS))
            stalls.remove(least)

    def worst_ms(self, now_ms: int) -> float:
        """The worst lateness, less what time has healed."""
        lone = max((_faded(s, now_ms, LONE_HALF_LIFE_MS) for s in self._stalls), default=0.0)
        if len(self._stalls) < USUAL:
            return lone
        return max(lone, min(_faded(s, now_ms, HALF_LIFE_MS) for s in self._stalls))

    def stretch_percent(self, now_ms: int) -> int:
        """100 as long as lateness is small; room for twice the lateness beside a whole time-out."""
        wanted = 100 + 200 * self.worst_ms(now_ms) / self._election_min_ms
        steps = int((wanted - 100) // _STEP_PERCENT)
        return min(STRETCH_MAX_PERCENT, 100 + steps * _STEP_PERCENT)


def _faded(stall: tuple[int, int], now_ms: int, half_life_ms: int) -> float:
    seen_ms, lag_ms = stall
    halved: float = 0.5 ** (max(0, now_ms - seen_ms) / half_life_ms)
    return lag_ms * halved
