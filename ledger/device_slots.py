"""The devices of a node that encode, how many films each takes at once, and leases that name one (schema 3).

The processor is a device as each chip is.  A node that has told of none (an older version, or one
that has only just joined) has one nameless device with all its slots and encoders.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from ledger.vocabulary import COMMANDS
from mesh.codec import value

CPU: Final = "cpu"
"""The device that is the processor: sound, assembly and software encoders run there."""
DEVICES_MAX: Final = 64
"""Of one node: more than any machine holds."""
DEVICE_SLOTS_MAX: Final = 1_024
NAME_CHARS_MAX: Final = 64
LABEL_CHARS_MAX: Final = 128
ENCODERS_MAX: Final = 128
"""Of one device: FFmpeg has some forty that profiles can ask for."""


@value
@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSlots:
    """One device: its name on its node (`cpu`, `gpu0`), what people call it, films at once, what it encodes with."""

    device: str
    label: str
    slots: int
    encoders: tuple[str, ...]


@COMMANDS.kind("node.slots")
@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSlots:
    """All devices of a node, in place of what it said before; beside `node.report`, which older members read."""

    node: str
    devices: tuple[DeviceSlots, ...]


@value
@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLease:
    """Task to a device of a node, as attempt `attempt`; `device` is empty for a node that told of none."""

    task: str
    attempt: str
    node: str
    device: str


@COMMANDS.kind("lease.grant_devices")
@dataclass(frozen=True, slots=True, kw_only=True)
class GrantDevices:
    """The same as `lease.grant`, for certain devices; a device that its node has no more is skipped too."""

    leases: tuple[DeviceLease, ...]
    granted_at_ms: int


def fault_of(devices: Iterable[DeviceSlots]) -> str:
    """What is wrong with what a node says of its devices; empty: nothing."""
    found = tuple(devices)
    if len({one.device for one in found}) != len(found) or len(found) > DEVICES_MAX:
        return f"at most {DEVICES_MAX} devices, each once"
    for one in found:
        if not 0 < len(one.device) <= NAME_CHARS_MAX or len(one.label) > LABEL_CHARS_MAX:
            return f"a device's name has 1 to {NAME_CHARS_MAX} characters"
        if not 0 <= one.slots <= DEVICE_SLOTS_MAX or len(one.encoders) > ENCODERS_MAX:
            return f"a device has 0 to {DEVICE_SLOTS_MAX} slots"
    return ""


def to_text(devices: Iterable[DeviceSlots]) -> str:
    """As a row holds them."""
    rows = [[one.device, one.label, one.slots, list(one.encoders)] for one in devices]
    return json.dumps(rows, separators=(",", ":"), ensure_ascii=True)


@lru_cache(maxsize=256)
def from_text(text: str) -> tuple[DeviceSlots, ...]:
    """What a row holds; the same few texts come again and again."""
    return tuple(
        DeviceSlots(device=device, label=label, slots=slots, encoders=tuple(encoders))
        for device, label, slots, encoders in json.loads(text or "[]")
    )


def seat_of(node: str, device: str) -> str:
    """The name of a device in the whole mesh; of a nameless one that of its node."""
    return f"{node}/{device}" if device else node


def speed_key(profile: str, device: str) -> str:
    """Under which a node's speed with a profile is known: by itself for the processor."""
    return profile if device in ("", CPU) else f"{device}/{profile}"
