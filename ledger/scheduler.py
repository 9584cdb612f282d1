"""Which task goes to which node: pure, from a view to commands, and why a job waits, from the same code.

Order: priority, then age.  Choice: the capable node with the least share of its slots taken; among
equals the owner itself, which fetches nothing, then the one with more processors.  Load comes
before locality, so that the films of one owner are spread over all machines.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ledger.commands import LEASES_PER_COMMAND_MAX, Command, GrantLeases, Lease, MemberRole
from ledger.jobs import AT_OWNER, can_do


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskView:
    """A task that is ready; `eligible_at_ms` is on the coordinator's monotonic clock."""

    task: str
    job: str
    kind: str = "whole"
    owner: str
    needs: tuple[str, ...]
    cost: int
    priority: int
    seq: int
    attempts: int
    excluded: tuple[str, ...]
    backoff_ms: int
    eligible_at_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """A member that may work; `busy` counts its leases, `alive` says that it was heard lately and takes work."""

    node: str
    name: str
    role: MemberRole
    encoders: tuple[str, ...]
    ffmpeg: str = ""
    slots: int
    busy: int
    cpus: int
    alive: bool = False


def _no_ids() -> str:
    raise AssertionError("the coordinator gives attempts their ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerView:
    """Ready tasks in their order (bounded), nodes, and a source of attempt ids."""

    tasks: tuple[TaskView, ...]
    nodes: tuple[NodeView, ...]
    new_attempt_id: Callable[[], str] = field(default=_no_ids)
    granted_at_ms: int = 0


def plan(view: SchedulerView, now_ms: int) -> list[Command]:
    """The leases to grant now, in batches."""
    busy = {node.node: node.busy for node in view.nodes}
    leases: list[Lease] = []
    for task in sorted(view.tasks, key=lambda task: (-task.priority, task.seq)):
        if task.eligible_at_ms > now_ms:
            continue
        able = [node for node in view.nodes if not _obstacle(task, node, busy[node.node])]
        if able:
            chosen = min(able, key=lambda node: _rank(task, node, busy[node.node]))
            busy[chosen.node] += 1
            leases.append(Lease(task=task.task, attempt=view.new_attempt_id(), node=chosen.node))
    return [
        GrantLeases(
            leases=tuple(leases[start : start + LEASES_PER_COMMAND_MAX]),
            granted_at_ms=view.granted_at_ms,
        )
        for start in range(0, len(leases), LEASES_PER_COMMAND_MAX)
    ]


def explain(view: SchedulerView, task: TaskView, now_ms: int) -> list[str]:
    """Why this task is not leased now: a sentence a node, or why no node is asked at all."""
    if task.eligible_at_ms > now_ms:
        left_s = (task.eligible_at_ms - now_ms + 999) // 1000
        return [f"it failed and is tried again in {left_s} s"]
    if not view.nodes:
        return ["no node works in this mesh"]
    sentences: list[str] = []
    for node in view.nodes:
        obstacle = _obstacle(task, node, node.busy)
        sentences.append(f"{node.name}: {obstacle or 'could take it; other jobs come first'}")
    return sentences


def _obstacle(task: TaskView, node: NodeView, busy: int) -> str:
    """Why the node cannot take the task, or nothing."""
    if node.role == "witness":
        return "is a witness and does no work"
    if not node.alive:
        return "is not heard or takes no work now"
    if node.node in task.excluded:
        return "failed this task before"
    if busy >= node.slots:
        return _unable(task, node) or f"has no free slot ({busy} of {node.slots} taken)"
    return _unable(task, node)


def _unable(task: TaskView, node: NodeView) -> str:
    if task.kind in AT_OWNER and node.node != task.owner:
        return "does not have the film, which this needs as a whole"
    if not can_do(task.needs, node.encoders, node.ffmpeg):
        return f"has none of the encoders {', '.join(task.needs)}"
    return ""


def _rank(task: TaskView, node: NodeView, busy: int) -> tuple[float, bool, int, str]:
    return busy / node.slots, node.node != task.owner, -node.cpus, node.node


def find(tasks: Sequence[TaskView], job: str) -> TaskView | None:
    """The first ready task of a job."""
    return next((task for task in tasks if task.job == job), None)
