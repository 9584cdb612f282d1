"""What the owner of a machine allows it to do for others, and what follows from that now; pure."""

from dataclasses import dataclass, field
from typing import Final

from node.work.hours import Hours

BUSY_CALM: Final = 0.8
"""Of the limit: below that the machine counts as free again, so that work does not stutter around it."""
BUSY_AFTER_MS: Final = 5_000
"""So long others must use the machine before work steps back: a page that opens is no use."""
FREE_AFTER_MS: Final = 30_000
"""And so long it must be free before work goes on: people pause to think."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkRules:
    """`busy_percent`: of all processors, used by others, above which work steps back; 0: never.

    `gpu_percent` the same of the busiest graphics chip.  `nice` is FFmpeg's priority (0 to 19),
    `threads` how many it uses (0: as it likes), `memory_mib` how much it may have (0: as its films need).
    """

    paused: bool = False
    draining: bool = False
    hours: Hours = field(default_factory=Hours)
    busy_percent: int = 0
    nice: int = 10
    threads: int = 0
    gpu_percent: int = 0
    memory_mib: int = 0


class Steps:
    """Whether work steps back for others, from samples of how much they use; each with its time."""

    def __init__(self) -> None:
        self.back = False
        self._since_ms: int | None = None

    def note(self, used_percent: float | None, limit: int, now_ms: int) -> None:
        """Takes a sample; None: not to be known here."""
        if not limit or used_percent is None:
            self.back, self._since_ms = False, None
            return
        turned = used_percent < BUSY_CALM * limit if self.back else used_percent > limit
        if not turned:
            self._since_ms = None
            return
        if self._since_ms is None:
            self._since_ms = now_ms
        if now_ms - self._since_ms >= (FREE_AFTER_MS if self.back else BUSY_AFTER_MS):
            self.back, self._since_ms = not self.back, None


def closed_because(rules: WorkRules, minute: int, *, used: str) -> str:
    """Why the node takes no new work now, as a sentence about it; empty while it does.

    `used` is what others use so much that work steps back; empty: nothing.
    """
    if rules.paused:
        return "is paused by a person (`mesh-cli nodes resume NAME`)"
    if rules.draining:
        return "drains: it takes nothing new (`mesh-cli nodes resume NAME`)"
    if not rules.hours.are_open(minute):
        left = rules.hours.opens_in(minute)
        return f"is outside its hours, which begin in {left // 60} h {left % 60} min"
    return f"steps back: its {used} is used by others" if used else ""


def is_suspended(rules: WorkRules, *, stepped_back: bool) -> bool:
    """Whether FFmpeg stands still: what runs goes on later where it was."""
    return rules.paused or stepped_back
