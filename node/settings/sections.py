"""Sections of the configuration about work: when and how a node works, and how long history is kept."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from ledger.device_slots import DEVICES_MAX
from ledger.placing import LABELS_MAX, checked_label
from node.work.hours import RANGES_MAX, parse_hours

SLOTS_MAX = 256
"""More parallel encodes than any machine of today can hold."""
DEVICE_NAME = r"^[a-z][a-z0-9]{0,31}$"
"""As `node.media.cards` gives them."""


class Section(BaseModel):
    """Base of all sections: strict, nothing unknown, frozen."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def _device(name: str) -> str:
    if re.fullmatch(DEVICE_NAME, name) is None:
        raise ValueError(f"{name[:40]!r} is no device: `mesh-cli nodes` shows their names, as gpu0")
    return name


class HistoryConfig(Section):
    """How long jobs that are over are kept with their history; the coordinator's settings count."""

    keep_days: int = Field(default=365, ge=0, le=36_500)
    """After so many days a job that is over is forgotten; 0: never."""
    keep_jobs: int = Field(default=500_000, ge=0, le=100_000_000)
    """Of more jobs that are over, the oldest are forgotten; 0: any number is kept."""


def _hours(texts: tuple[str, ...]) -> tuple[str, ...]:
    parse_hours(texts)
    return texts


def _as_tuple(value: Any) -> Any:  # noqa: ANN401 - a value of the file, judged by the field's own type
    return tuple(value) if isinstance(value, list) else value


class ScheduleConfig(Section):
    """When a node works; outside it finishes what runs and takes nothing new."""

    hours: Annotated[tuple[str, ...], BeforeValidator(_as_tuple), AfterValidator(_hours)] = Field(
        default=(), max_length=RANGES_MAX
    )
    """`["mon-fri 22:00-06:00", "sat,sun 00:00-24:00"]`, in the machine's own time; none: always."""


class WorkConfig(Section):
    """How much of its machine a node takes; `mesh-cli nodes limit` changes it while it runs."""

    nice: int = Field(default=10, ge=0, le=19)
    """FFmpeg's priority: 19 takes only what nobody else wants."""
    threads: int = Field(default=0, ge=0, le=1_024)
    """Threads of one FFmpeg; 0: as many as it likes."""
    busy_percent: int = Field(default=0, ge=0, le=100)
    """While others use more of all processors, FFmpeg stands still and nothing new is taken; 0: never (Linux)."""
    gpu_percent: int = Field(default=0, ge=0, le=100)
    """The same for the busiest graphics chip; 0: never (NVIDIA, AMD on Linux)."""
    memory_mib: int = Field(default=0, ge=0, le=1 << 24)
    """Private memory of one FFmpeg at most; 0: as films need, at most 16 GiB (Linux)."""
    device_slots: dict[
        Annotated[str, AfterValidator(_device)], Annotated[int, Field(ge=0, le=SLOTS_MAX)]
    ] = Field(default_factory=dict[str, int], max_length=DEVICES_MAX)
    """`{ gpu0 = 2, cpu = 0 }`: films at once on each device, by the names that `mesh-cli nodes` shows."""
    keep_awake: bool = True
    """Sleep is held off while the node works or others work on its films, where its system knows a way."""
    labels: Annotated[
        tuple[Annotated[str, AfterValidator(checked_label)], ...], BeforeValidator(_as_tuple)
    ] = Field(default=(), max_length=LABELS_MAX)
    """`["gpu", "attic"]`: what `--needs` of a job can ask for."""
