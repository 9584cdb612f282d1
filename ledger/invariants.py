"""What must hold in every ledger at every index: checked by the simulator, the tests and `verify`."""

from collections import Counter
from collections.abc import Sequence

from ledger.jobs import LIVE, PARTS, TWICE, Attempt, AttemptState, Job, Task
from ledger.rows import Rows

LIVE_MAX = 2
"""Attempts at one part that run side by side."""


def violations(rows: Rows) -> list[str]:
    """Every broken promise, as a sentence; empty when the ledger is sound."""
    jobs = {job.id: job for job in rows.where(Job)}
    tasks = {task.id: task for task in rows.where(Task)}
    attempts = rows.where(Attempt)
    return [
        *_orphans(jobs, tasks, attempts),
        *_live_attempts_fit(tasks, attempts),
        *_tokens_grow(attempts),
        *_states_fit(jobs, tasks, attempts),
    ]


def _orphans(
    jobs: dict[str, Job], tasks: dict[str, Task], attempts: Sequence[Attempt]
) -> list[str]:
    return [
        *(f"task {t.id} of a job that does not exist" for t in tasks.values() if t.job not in jobs),
        *(f"attempt {a.id} of no task" for a in attempts if a.task not in tasks),
    ]


def _live_attempts_fit(tasks: dict[str, Task], attempts: Sequence[Attempt]) -> list[str]:
    """A task has the live attempt that its state says; while a part runs, another may beside it."""
    live: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        if attempt.state in LIVE:
            live.setdefault(attempt.task, []).append(attempt)
    return [
        f"task {task.id} is {task.state} with live attempts {sorted(a.state for a in of_task)}"
        f" on {len({a.node for a in of_task})} nodes"
        for task in tasks.values()
        if not _fits(task, of_task := live.get(task.id, []))
    ]


def _fits(task: Task, live: Sequence[Attempt]) -> bool:
    states: set[AttemptState] = {attempt.state for attempt in live}
    if len(live) < LIVE_MAX:
        return states == ({task.state} if task.state in LIVE else set())
    apart = len({attempt.node for attempt in live}) == len(live) <= LIVE_MAX
    # One result is enough for `finished`; of `kept` there is one alone.
    both = {"leased": [{"leased"}], "finished": [{"finished"}, {"leased", "finished"}]}
    return task.kind in TWICE and apart and states in both.get(task.state, [])


def _tokens_grow(attempts: Sequence[Attempt]) -> list[str]:
    found: list[str] = []
    last: dict[str, Attempt] = {}
    for attempt in sorted(attempts, key=lambda a: (a.task, a.number)):
        before = last.get(attempt.task)
        if before is not None and attempt.token <= before.token:
            found.append(f"token of {attempt.id} does not grow over {before.id}")
        last[attempt.task] = attempt
    return found


def _states_fit(
    jobs: dict[str, Job], tasks: dict[str, Task], attempts: Sequence[Attempt]
) -> list[str]:
    found: list[str] = []
    of_job: dict[str, list[Task]] = {}
    for task in tasks.values():
        of_job.setdefault(task.job, []).append(task)
    accepted = Counter(a.job for a in attempts if a.state == "accepted")
    wanted = {
        "running": {"leased"},
        "waiting": {"ready"},
        "verifying": {"finished"},
        "publishing": {"accepted"},
        "done": {"accepted"},
        "failed": {"failed"},
        "cancelled": {"cancelled"},
    }
    for job in jobs.values():
        parts = [task for task in of_job.get(job.id, []) if task.kind != "whole"]
        states = {task.state for task in of_job.get(job.id, [])}
        allowed = wanted.get(job.state, {"ready"} if job.planned else set())
        if parts:
            found += _pieces_fit(job, parts)
        elif not states <= allowed:
            found.append(f"job {job.id} is {job.state} with tasks {sorted(states)}")
        if job.planned and not states:
            found.append(f"job {job.id} is planned and has no task")
        if job.state in ("publishing", "done") and not accepted[job.id]:
            found.append(f"job {job.id} is {job.state} without an accepted attempt")
        if accepted[job.id] > 1:
            found.append(f"job {job.id} has {accepted[job.id]} accepted attempts")
    return found


def _pieces_fit(job: Job, tasks: Sequence[Task]) -> list[str]:
    """A film in pieces: its assembly waits until the owner keeps all parts, and is what it ends with."""
    parts = {task.state for task in tasks if task.kind in PARTS}
    ends = [task.state for task in tasks if task.kind == "assemble"]
    whole: set[str] = {"kept"}
    fits = {
        "queued": parts == {"ready"} and ends == ["blocked"],
        "running": (parts == whole and ends in (["ready"], ["leased"]))
        or (
            whole < parts | whole <= {"ready", "leased", "finished", "kept"} and ends == ["blocked"]
        ),
        "verifying": parts == whole and ends == ["finished"],
        "publishing": parts == whole and ends == ["accepted"],
        "done": parts == whole and ends == ["accepted"],
        "failed": parts == {"failed"} and ends == ["failed"],
        "cancelled": parts == {"cancelled"} and ends == ["cancelled"],
    }
    if fits.get(job.state, False):
        return []
    return [f"job {job.id} is {job.state} with parts {sorted(parts)} and assembly {ends}"]
