"""How much others use of this machine's graphics chips, as NVIDIA's driver counts it (NVML).

Other makers' drivers do not tell it by process; there nobody knows, and nothing steps back.
"""

from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import Any, Final

import pynvml
import structlog

_NONE_LATELY: Final = (pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_ERROR_INSUFFICIENT_SIZE)

_log = structlog.get_logger("worker")


class GpuUse:
    """Use by processes that are not ours, of the busiest chip."""

    def __init__(self, own: Callable[[], Collection[int]]) -> None:
        """`own` are the processes that this node started and that run now."""
        self._own = own
        self._chips: list[Any] | None = None
        self._seen_us: dict[int, int] = {}

    def percent(self) -> float | None:
        """Since the last call; None where nobody knows."""
        if self._chips is None:
            self._chips = _chips()
        used = [self._used(number, chip) for number, chip in enumerate(self._chips)]
        return max((one for one in used if one is not None), default=None)

    def _used(self, number: int, chip: Any) -> float | None:  # noqa: ANN401 - NVML's handle
        since_us = self._seen_us.get(number, 0)
        try:
            samples = pynvml.nvmlDeviceGetProcessUtilization(chip, since_us)
        except pynvml.NVMLError as error:
            return 0.0 if getattr(error, "value", None) in _NONE_LATELY else None
        self._seen_us[number] = max((int(one.timeStamp) for one in samples), default=since_us)
        return used_by_others(
            ((int(s.pid), int(s.smUtil), int(s.encUtil), int(s.decUtil)) for s in samples),
            self._own(),
        )


def used_by_others(samples: Iterable[tuple[int, ...]], own: Collection[int]) -> float:
    """Percent of the engine (shaders, encoder, decoder) that others use most; samples are (pid, percent of each)."""
    theirs = [engines for pid, *engines in samples if pid not in own]
    return float(max((min(100, sum(each)) for each in zip(*theirs, strict=True)), default=0))


def _chips() -> list[Any]:
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError as error:
        _log.warning(
            "nobody knows how much others use the graphics chips here: nothing steps back for them",
            reason=str(error),
        )
        return []
    found: list[Any] = []
    for number in range(count):
        with suppress(pynvml.NVMLError):
            found.append(pynvml.nvmlDeviceGetHandleByIndex(number))
    return found
