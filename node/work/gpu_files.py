"""How much of the graphics chips is used, as the kernel's drivers tell in files (AMD's does), and of all sources together."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

CARDS: Final = Path("/sys/class/drm")
_BUSY: Final = "card*/device/gpu_busy_percent"


class ChipFiles:
    """Of whole chips: known as use by others only while nothing of ours is at work there."""

    def __init__(self, at_work: Callable[[], bool], cards: Path = CARDS) -> None:
        """`at_work`: whether something of ours uses a chip now."""
        self._at_work = at_work
        self._cards = cards

    def percent(self) -> float | None:
        """Of the busiest chip now; None where nobody knows."""
        if self._at_work():
            return None
        found: list[float] = []
        with suppress(OSError):
            for path in self._cards.glob(_BUSY):
                # A chip that sleeps, or was taken out, answers with an error.
                with suppress(OSError, ValueError):
                    found.append(min(100.0, max(0.0, float(path.read_text("ascii")))))
        return max(found, default=None)


class Used(Protocol):
    """How much others use."""

    def percent(self) -> float | None:
        """Of all that there is; None where nobody knows."""
        ...


class Busiest:
    """The most that any of several sources tells."""

    def __init__(self, sources: Sequence[Used]) -> None:
        self._sources = tuple(sources)

    def percent(self) -> float | None:
        """None where none of them knows."""
        told = [source.percent() for source in self._sources]
        return max((one for one in told if one is not None), default=None)
