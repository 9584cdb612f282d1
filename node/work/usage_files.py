"""How much of this machine others use: from the kernel's counters, where it has them (Linux)."""

from pathlib import Path
from typing import Final

STAT: Final = Path("/proc/stat")


class Usage:
    """Processor time of everything that did not step behind (`nice`), as FFmpeg does.

    A node, its threads and its encoders below normal priority are counted apart by the kernel; what
    the node itself takes at normal priority is a few percent.
    """

    def __init__(self, stat: Path = STAT) -> None:
        self._stat = stat
        self._before: tuple[int, int] | None = None

    def percent(self) -> float | None:
        """Of all processors, since the last call; None the first time, and where nobody knows."""
        now = self._read()
        before, self._before = self._before, now
        if now is None or before is None or now[1] <= before[1]:
            return None
        return 100 * (now[0] - before[0]) / (now[1] - before[1])

    def _read(self) -> tuple[int, int] | None:
        """Time of others, and all time, in ticks."""
        try:
            words = self._stat.read_text("ascii").split("\n", 1)[0].split()
            ticks = [int(word) for word in words[1:9]]
            user = ticks[0]  # system time is FFmpeg's as well: reading and writing its films
        except (OSError, ValueError, IndexError):
            return None
        return user, sum(ticks)
