"""Applies what leases tasks: one lease for each, and of parts of films a second one beside the first."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from ledger.change import Change, RefusedError
from ledger.commands import (
    LEASES_PER_COMMAND_MAX,
    GrantLeases,
    Lease,
    SpeculateLeases,
    SpeculativeLease,
)
from ledger.device_slots import DeviceLease, DeviceSlots, GrantDevices, from_text
from ledger.jobs import AT_OWNER, LIVE, TWICE, Attempt, Job, Member, Node, Task
from ledger.moves import move_job, move_task


def grant_leases(change: Change, command: GrantLeases | GrantDevices) -> None:
    """Leases tasks that are still ready to members that still belong; the rest are skipped."""
    token = change.token()
    check_batch(command.leases)
    for lease in command.leases:
        _grant(change, lease, token)


def _grant(change: Change, lease: Lease | DeviceLease, token: int) -> None:
    device = _device_of(change, lease)
    task = change.rows.get(Task, lease.task)
    if (
        task is None
        or device is None
        or task.state != "ready"
        or (task.kind in AT_OWNER and lease.node != task.owner)
        or not _may_be_leased(change, lease)
    ):
        return
    attempt = _begin(change, task, lease, device, token)
    move_task(change, task, "lease", attempts=attempt.number, backoff_ms=0)
    move_job(change, _job_of(change, task), "lease", node=lease.node, what=_told_of(task, device))


_NAMELESS: Final = DeviceSlots(device="", label="", slots=0, encoders=())


def _device_of(change: Change, lease: Lease | DeviceLease | SpeculativeLease) -> DeviceSlots | None:
    """The device that a lease is for; None: its node has it no more."""
    if isinstance(lease, Lease) or not lease.device:
        return _NAMELESS
    node = change.rows.get(Node, lease.node)
    devices = from_text(node.device_slots) if node is not None else ()
    return next((one for one in devices if one.device == lease.device), None)


def _told_of(task: Task, device: DeviceSlots) -> str:
    """What the history says of where a film is made: that a chip was wanted and another device took it, too."""
    if task.kind != "whole" or not device.device:
        return ""
    wanted = task.needs[0] if task.needs else ""
    told = f"on {device.device}"
    return f"{told}, which falls back from {wanted}" if wanted not in device.encoders else told


def speculate_leases(change: Change, command: SpeculateLeases) -> None:
    """Leases parts a second time beside those who are slow with them; what changed meanwhile is skipped."""
    token = change.token()
    check_batch(command.leases)
    for lease in command.leases:
        _speculate(change, lease, token)


def _speculate(change: Change, lease: SpeculativeLease, token: int) -> None:
    task = change.rows.get(Task, lease.task)
    if task is None or task.state != "leased" or task.kind not in TWICE:
        return
    others = live_attempts(change, task)
    if [other.id for other in others] != [lease.beside] or others[0].node == lease.node:
        return
    device = _device_of(change, lease)
    if device is None or lease.node in task.excluded or not _may_be_leased(change, lease):
        return
    attempt = _begin(change, task, lease, device, token)
    change.rows.put(replace(task, attempts=attempt.number))
    what = (
        f"{task.id} a second time beside {name_of(change, others[0].node)}, which is slow with it"
    )
    move_job(change, _job_of(change, task), "lease", node=lease.node, what=what)


def _may_be_leased(change: Change, lease: Lease | DeviceLease | SpeculativeLease) -> bool:
    member = change.rows.get(Member, lease.node)
    is_new = change.rows.get(Attempt, lease.attempt) is None
    return member is not None and member.state == "active" and is_new


def _begin(
    change: Change,
    task: Task,
    lease: Lease | DeviceLease | SpeculativeLease,
    device: DeviceSlots,
    token: int,
) -> Attempt:
    attempt = Attempt(
        id=lease.attempt,
        task=task.id,
        job=task.job,
        node=lease.node,
        number=task.attempts + 1,
        state="leased",
        token=token,
        granted_at_ms=change.at_ms,
        device=device.device,
    )
    change.rows.put(attempt)
    return attempt


def _job_of(change: Change, task: Task) -> Job:
    job = change.rows.get(Job, task.job)
    assert job is not None, f"task of a job that does not exist: {task.id}"
    return job


def live_attempts(change: Change, task: Task) -> list[Attempt]:
    """The attempts at a task that may still give its result; more than one only of parts."""
    found = change.rows.where(Attempt, task=task.id)
    return [attempt for attempt in found if attempt.state in LIVE]


def name_of(change: Change, node: str) -> str:
    """What people call a node."""
    member = change.rows.get(Member, node)
    return node if member is None else member.name


def check_batch(batch: Sequence[object]) -> None:
    """Raises `RefusedError` (`usage`) where one command names too many leases."""
    # Bounds the history that one command writes as well (EVENTS_PER_COMMAND_BITS).
    if len(batch) > LEASES_PER_COMMAND_MAX:
        raise RefusedError("usage", f"at most {LEASES_PER_COMMAND_MAX} leases in one command")
