"""Devices as the scheduler sees them: each with slots of its own is a seat, like a node by itself.

Pure.  What a node shares among its devices (its disk, whether it is heard, its links) each seat has
alike; slots, encoders, speeds and what runs are the device's.  So processor and chips hold up nobody
but their own.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from ledger.device_slots import CPU, DeviceSlots, seat_of, speed_key
from ledger.jobs import AT_OWNER
from ledger.scheduler_view import NodeView, RunningView, SchedulerView, TaskView


def with_seats(view: SchedulerView) -> SchedulerView:
    """The view with each device of a node in its place; nodes that told of none stay as they are."""
    if not any(node.devices for node in view.nodes):
        return view
    held = Counter(run.seat for run in view.running)
    return replace(view, nodes=tuple(seat for node in view.nodes for seat in _seats(node, held)))


def _seats(node: NodeView, held: Counter[str]) -> Sequence[NodeView]:
    if not node.devices:
        return (node,)
    return [
        replace(
            node,
            devices=(),
            device=device.device,
            slots=device.slots,
            encoders=device.encoders,
            busy=held[seat_of(node.node, device.device)],
            speeds=_speeds(node, device),
        )
        for device in node.devices
    ]


def _speeds(node: NodeView, device: DeviceSlots) -> dict[str, int]:
    """By profile, of what this device made."""
    if device.device == CPU:
        return {profile: speed for profile, speed in node.speeds.items() if "/" not in profile}
    begin = speed_key("", device.device)
    return {
        key.removeprefix(begin): speed
        for key, speed in node.speeds.items()
        if key.startswith(begin)
    }


def slots_of(nodes: Sequence[NodeView]) -> dict[str, int]:
    """The slots of each seat."""
    found: dict[str, int] = {}
    for node in nodes:
        if not node.devices:
            found[node.seat] = node.slots
        for device in node.devices:
            found[seat_of(node.node, device.device)] = device.slots
    return found


def device_here(told: str, devices: Sequence[DeviceSlots]) -> str:
    """The device that a lease is at: one from before its node told of any is at the processor."""
    return told or (CPU if devices else "")


def is_at_processor(task: TaskView) -> bool:
    """Whether a task is nothing for a chip: sound, assembly, and what needs no encoder of pictures."""
    return task.kind in AT_OWNER or not task.needs


def choice_at(task: TaskView, seat: NodeView) -> int:
    """Which of the encoders that a task may be made with a seat gives it: 0 is the one that is wanted most."""
    if len(task.needs) < 2:
        return 0
    return _choice(task.needs, seat.encoders)


@lru_cache(maxsize=4_096)
def _choice(needs: tuple[str, ...], encoders: tuple[str, ...]) -> int:
    # The same encoder of several builds of FFmpeg is one choice.
    names = dict.fromkeys(need.partition("@")[0] for need in needs)
    return next((place for place, name in enumerate(names) if name in encoders), len(names))


def wanted_most(task: TaskView, seats: Sequence[NodeView]) -> list[NodeView]:
    """Of the seats that could take a task now those with the encoder that is wanted most."""
    if len(task.needs) < 2:
        return list(seats)
    first = min((choice_at(task, seat) for seat in seats), default=0)
    return [seat for seat in seats if choice_at(task, seat) == first]


def runs_at_seats(runs: Sequence[RunningView], nodes: Sequence[NodeView]) -> list[RunningView]:
    """The leases with the device that each is at."""
    devices = {node.node: node.devices for node in nodes}
    return [replace(run, device=device_here(run.device, devices.get(run.node, ()))) for run in runs]
