"""Why a job does not go on now: every true reason, a sentence each, by the scheduler's own judgement."""

from dataclasses import dataclass
from typing import Final

from ledger.jobs import Job
from ledger.scheduler import PLANNED_AHEAD_MAX, explain, explain_lease, find
from ledger.scheduler_view import SchedulerView, TaskView
from ledger.speculation import explain_second

_WAITS: Final = frozenset({"queued", "planning", "waiting", "running"})
_OWNERS_TURN: Final = frozenset({"queued", "planning", "verifying", "publishing"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a node knows of a job's surroundings; `first` are the films that its owner plans before it."""

    view: SchedulerView
    now_ms: int
    has_coordinator: bool
    owner: str
    owner_heard: bool
    first: int
    leased: bool
    owner_waits: str = ""
    """What keeps its owner from planning, as that says itself."""


def reasons(job: Job, seen: Seen) -> list[str]:
    """Empty for a job that is over or being worked on; a lease ahead of a slot is told."""
    if job.is_final:
        return []
    found: list[str] = []
    if not seen.has_coordinator:
        found.append("no coordinator: too few voters can be reached, nothing new is decided")
    if not seen.owner_heard and (job.state in _OWNERS_TURN or not seen.leased):
        found.append(f"its owner {seen.owner}, which has the film, is not heard")
    if seen.leased or job.state not in _WAITS:
        return found + explain_lease(seen.view, job.id) + explain_second(seen.view, job.id)
    if job.state == "planning":
        return found or [f"its owner {seen.owner} reads and plans it now"]
    if not job.planned:
        return found + _unplanned(job, seen)
    task = find(seen.view.tasks, job.id)
    if task is not None:
        return found + explain(seen.view, task, seen.now_ms)
    return found or ["more tasks than one round looks at come first"]


def _unplanned(job: Job, seen: Seen) -> list[str]:
    alike = [task for task in seen.view.tasks if _is_alike(task, job)]
    if len(alike) >= PLANNED_AHEAD_MAX:
        # It is not planned while these wait: what they wait for is what it waits for.
        first = f"{len(alike)} tasks that ask for the same wait before it, the first because"
        return [f"{first}: {'; '.join(explain(seen.view, alike[0], seen.now_ms))}"]
    if seen.owner_waits:
        return [f"its owner {seen.owner} cannot plan a film: {seen.owner_waits}"]
    if seen.first:
        return [f"its owner {seen.owner} plans {seen.first} other films first"]
    return [f"its owner {seen.owner} has not planned it yet"]


def _is_alike(task: TaskView, job: Job) -> bool:
    """Whether an owner plans no more of these while many of those wait."""
    theirs = task.owner, task.tenant, task.profile, task.place
    return theirs == (job.owner, job.tenant, job.profile, job.place)
