"""How much others use of this machine's graphics chips, as NVIDIA's driver counts it (NVML).

By process where the driver tells so; where it does not (no permission, an old chip), for the whole
chip, and then only while nothing of ours is at work there.
"""

from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import Any, Final

import pynvml
import structlog

MEMORY_BYTES_MIN: Final = 256 << 20
"""What one film takes of a chip's memory at least: where others leave less, none can begin."""
LOOKS_UNTIL_RETRY: Final = 30
"""A driver that is not there, or went, is looked for again once a minute: it is loaded late, or was updated."""
_NONE_LATELY: Final = frozenset(
    {
        pynvml.NVML_SUCCESS,  # raised for an empty list
        pynvml.NVML_ERROR_NOT_FOUND,
        pynvml.NVML_ERROR_INSUFFICIENT_SIZE,
        pynvml.NVML_ERROR_NO_DATA,
    }
)
_NOT_BY_PROCESS: Final = frozenset(
    {
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_NO_PERMISSION,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    }
)

_log = structlog.get_logger("worker")


class GpuUse:
    """Use by processes that are not ours, of the busiest chip."""

    def __init__(
        self,
        own: Callable[[], Collection[int]],
        at_work: Callable[[], bool] = lambda: False,
    ) -> None:
        """`own` are the processes that this node started and that run now, `at_work` whether any uses a chip."""
        self._own = own
        self._at_work = at_work
        self._chips: list[Any] = []
        self._wait = 0
        self._told = ""
        self._seen_us: dict[int, int] = {}

    def percent(self) -> float | None:
        """Since the last call; None where nobody knows.  Raises nothing: a driver's troubles are not the node's."""
        if not self._chips:
            self._find()
        try:
            used = [self._used(number, chip) for number, chip in enumerate(self._chips)]
        except pynvml.NVMLError as error:
            self._lose(error)
            return None
        return max((one for one in used if one is not None), default=None)

    def _find(self) -> None:
        self._wait -= 1
        if self._wait > 0:
            return
        self._wait = LOOKS_UNTIL_RETRY
        try:
            pynvml.nvmlInit()
            for number in range(pynvml.nvmlDeviceGetCount()):
                # One that fell off the bus, or is another's, says nothing about the rest.
                with suppress(pynvml.NVMLError):
                    self._chips.append(pynvml.nvmlDeviceGetHandleByIndex(number))
        except pynvml.NVMLError as error:
            self._lose(error)

    def _lose(self, error: pynvml.NVMLError) -> None:
        self._chips.clear()
        self._seen_us.clear()
        self._wait = LOOKS_UNTIL_RETRY
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
        if str(error) != self._told:
            self._told = str(error)
            _log.warning(
                "nobody knows how much others use the graphics chips here: nothing steps back for them",
                reason=self._told,
            )

    def _used(self, number: int, chip: Any) -> float | None:  # noqa: ANN401 - NVML's handle
        """Of one chip.  Raises `NVMLError` when the driver does not answer any more."""
        if self._is_full(chip):
            return 100.0
        since_us = self._seen_us.get(number, 0)
        try:
            samples = pynvml.nvmlDeviceGetProcessUtilization(chip, since_us)
        except pynvml.NVMLError as error:
            if _code(error) in _NONE_LATELY:
                return 0.0
            if _code(error) in _NOT_BY_PROCESS:
                return None if self._at_work() else _whole(chip)
            raise
        self._seen_us[number] = max((int(one.timeStamp) for one in samples), default=since_us)
        return used_by_others(
            ((int(s.pid), int(s.smUtil), int(s.encUtil), int(s.decUtil)) for s in samples),
            self._own(),
        )

    def _is_full(self, chip: Any) -> bool:  # noqa: ANN401 - NVML's handle
        """Whether others leave too little memory for a film."""
        try:
            free = int(pynvml.nvmlDeviceGetMemoryInfo(chip).free)
            if free >= MEMORY_BYTES_MIN:
                return False
            own = self._own()
            ours = sum(
                int(one.usedGpuMemory or 0)
                for listed in _LISTED
                for one in listed(chip)
                if one.pid in own
            )
        except pynvml.NVMLError as error:
            if _code(error) in _NOT_BY_PROCESS:
                return False
            raise
        return free + ours < MEMORY_BYTES_MIN


_LISTED: Final[tuple[Callable[[Any], list[Any]], ...]] = (
    pynvml.nvmlDeviceGetComputeRunningProcesses,
    pynvml.nvmlDeviceGetGraphicsRunningProcesses,
)


def _code(error: pynvml.NVMLError) -> int:
    """NVML's number of an error, which its class sets where no type checker sees it."""
    return int(getattr(error, "value", pynvml.NVML_ERROR_UNKNOWN))


def used_by_others(samples: Iterable[tuple[int, ...]], own: Collection[int]) -> float:
    """Percent of the engine (shaders, encoder, decoder) that others use most; samples are (pid, percent of each)."""
    theirs = [engines for pid, *engines in samples if pid not in own]
    return float(max((min(100, sum(each)) for each in zip(*theirs, strict=True)), default=0))


def _whole(chip: Any) -> float | None:  # noqa: ANN401 - NVML's handle
    """Of all processes together, of the engine that is used most."""
    engines: tuple[Callable[[], Any], ...] = (
        lambda: pynvml.nvmlDeviceGetUtilizationRates(chip).gpu,
        lambda: pynvml.nvmlDeviceGetEncoderUtilization(chip)[0],
        lambda: pynvml.nvmlDeviceGetDecoderUtilization(chip)[0],
    )
    found: list[float] = []
    for engine in engines:
        try:
            found.append(float(engine()))
        except pynvml.NVMLError as error:
            if _code(error) not in _NOT_BY_PROCESS:
                raise
    return max(found, default=None)
