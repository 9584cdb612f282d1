"""Moves of jobs, tasks and attempts along their tables (ledger.jobs): every change of a state is one of these."""

from dataclasses import replace
from typing import Any

from ledger.change import Change, RefusedError
from ledger.jobs import (
    ATTEMPT_TRANSITIONS,
    JOB_TRANSITIONS,
    TASK_TRANSITIONS,
    Attempt,
    AttemptEvent,
    Job,
    JobEvent,
    Task,
    TaskEvent,
)


def move_job(
    change: Change,
    job: Job,
    event: JobEvent,
    *,
    node: str = "",
    what: str = "",
    **values: Any,  # noqa: ANN401 - columns of the row; replace() checks their names
) -> None:
    """Moves a job and tells it in its history.  Raises `RefusedError` (`conflict`)."""
    state = JOB_TRANSITIONS.get((job.state, event))
    if state is None:
        raise RefusedError("conflict", f"job {job.id} is {job.state}: no {event} from there")
    change.rows.put(replace(job, state=state, updated_at_ms=change.at_ms, **values))
    change.tell(f"job.{state}", job=job.id, node=node, what=what)


def move_task(
    change: Change,
    task: Task,
    event: TaskEvent,
    **values: Any,  # noqa: ANN401 - columns of the row; replace() checks their names
) -> None:
    """Moves a task.  Raises `RefusedError` (`conflict`)."""
    state = TASK_TRANSITIONS.get((task.state, event))
    if state is None:
        raise RefusedError("conflict", f"task {task.id} is {task.state}: no {event} from there")
    change.rows.put(replace(task, state=state, **values))


def move_attempt(
    change: Change,
    attempt: Attempt,
    event: AttemptEvent,
    **values: Any,  # noqa: ANN401 - columns of the row; replace() checks their names
) -> Attempt:
    """Moves an attempt, which ends with it.  Raises `RefusedError` (`stale_token`)."""
    state = ATTEMPT_TRANSITIONS.get((attempt.state, event))
    if state is None:
        raise RefusedError(
            "stale_token", f"attempt {attempt.id} is {attempt.state}: no {event} from there"
        )
    moved = replace(attempt, state=state, ended_at_ms=change.at_ms, **values)
    change.rows.put(moved)
    return moved


def end_tasks(change: Change, job: Job, event: TaskEvent) -> None:
    """Ends every task of a job and abandons what runs for it."""
    if not job.planned:
        return  # it has none: a sweep asks this of thousands
    for task in change.rows.where(Task, job=job.id):
        if (task.state, event) in TASK_TRANSITIONS:
            move_task(change, task, event)
    for attempt in change.rows.where(Attempt, job=job.id):
        if (attempt.state, "abandon") in ATTEMPT_TRANSITIONS:
            move_attempt(change, attempt, "abandon")
