"""Applies what moves jobs, tasks and attempts through their states (tables in ledger.jobs)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ledger.apply_leases import check_batch, live_attempts, name_of
from ledger.change import Change, RefusedError
from ledger.commands import (
    ATTEMPTS_MAX,
    TASKS_PER_PLAN_MAX,
    TEXT_BYTES_MAX,
    AcceptResult,
    AttemptReport,
    ExpireLeases,
    FailAttempt,
    FailJob,
    FinishAttempt,
    FinishJob,
    PieceSpec,
    PlanJob,
    PlanPieces,
    RefuseResult,
    ReleaseLeases,
    StartPlanning,
)
from ledger.jobs import (
    AT_OWNER,
    COUNTED_ENDS,
    OVERTAKEN,
    PARTS,
    PLANNED_AT_ONCE,
    TWICE,
    Attempt,
    AttemptEvent,
    Job,
    JobEvent,
    Member,
    Node,
    Task,
    TaskState,
    can_do,
)
from ledger.moves import end_tasks, move_attempt, move_job, move_task
from ledger.placing import may_be
from ledger.planned import planned_tasks
from ledger.strikes import note_failure, note_success

# --- planning --------------------------------------------------------------------------------------


def start_planning(change: Change, command: StartPlanning) -> None:
    """The owner probes the source; said again after a restart, it changes nothing."""
    job = _job(change, command.job)
    if job.planned:
        raise RefusedError("conflict", f"job {job.id} is planned already")
    if job.state == "planning":
        return
    move_job(change, job, "start_planning", node=job.owner)


def plan_job(change: Change, command: PlanJob) -> None:
    """The owner's plan for a whole film: from here on its task can be leased."""
    if len(command.tasks) != 1:
        # A second task could never be leased beside the first: the job's states know one.
        raise RefusedError("usage", "the plan of a whole film has exactly one task")
    _plan(change, command)


def plan_pieces(change: Change, command: PlanPieces) -> None:
    """The owner's plan for a film in pieces: from here on its parts can be leased."""
    _check_pieces(command.tasks)
    _plan(change, command)


def _plan(change: Change, command: PlanJob | PlanPieces) -> None:
    job = _job(change, command.job)
    if job.planned or any(change.rows.get(Task, spec.id) is not None for spec in command.tasks):
        raise RefusedError("conflict", f"job {job.id} is planned already")
    if change.rows.schema < PLANNED_AT_ONCE and job.state == "queued":
        raise RefusedError("conflict", f"job {job.id} is {job.state}: no plan from there")
    move_job(
        change,
        job,
        "plan",
        node=job.owner,
        planned=1,
        source_digest=command.source_digest,
        source_bytes=command.source_bytes,
        probe_json=command.probe_json,
        plan_json=command.plan_json,
    )
    for task in planned_tasks(job, command):
        change.rows.put(task)


def _check_pieces(tasks: Sequence[PieceSpec]) -> None:
    """Chunks, at most one sound, and the assembly as the last."""
    kinds = Counter(task.kind for task in tasks)
    fits = (
        kinds["chunk"] > 0
        and kinds["audio"] <= 1
        and kinds["assemble"] == 1
        and tasks[-1].kind == "assemble"
        and len({task.id for task in tasks}) == len(tasks) <= TASKS_PER_PLAN_MAX
    )
    if not fits:
        raise RefusedError(
            "usage", "a film in pieces is chunks, at most one sound, and last their assembly"
        )


def fail_job(change: Change, command: FailJob) -> None:
    """Gives a job up, with its reason; leases that run for it end."""
    job = _job(change, command.job)
    _fail(change, job, command.node, code=command.code, what=command.what, todo=command.todo)


# --- leases ---------------------------------------------------------------------------------------


def expire_leases(change: Change, command: ExpireLeases) -> None:
    """Takes leases back from silent workers; what was handed back in time stays."""
    check_batch(command.attempts)
    for attempt_id in command.attempts:
        attempt = change.rows.get(Attempt, attempt_id)
        if attempt is not None and attempt.state == "leased":
            _end(change, attempt, "expire", code="lease_expired", what=command.what)


def release_leases(change: Change, command: ReleaseLeases) -> None:
    """A worker gives its own leases back; nobody is to blame."""
    check_batch(command.attempts)
    for attempt_id in command.attempts:
        attempt = change.rows.get(Attempt, attempt_id)
        if attempt is not None and attempt.state == "leased" and attempt.node == command.node:
            _end(change, attempt, "release", code="released", what=command.what)


def end_attempts_of(change: Change, node: str, what: str) -> None:
    """Expires every lease of a node that does not belong any more."""
    for attempt in change.rows.where(Attempt, node=node, state="leased"):
        # With the last try of one part its film ends, and with it other leases of the node.
        now = change.rows.get(Attempt, attempt.id) if change.rows.schema >= 3 else attempt
        if now is not None and now.state == "leased":
            _end(change, now, "expire", code="lease_expired", what=what)


def finish_attempt(change: Change, command: FinishAttempt) -> None:
    """The worker holds a judged result; its lease is over.  Said again after a lost answer, it holds."""
    attempt = _attempt(change, command.attempt, command.token)
    if (
        attempt.state in ("finished", "kept", "accepted")
        and attempt.result_digest == command.result_digest
    ):
        return
    _expect(attempt, "leased")
    move_attempt(
        change,
        attempt,
        "finish",
        result_bytes=command.result_bytes,
        result_digest=command.result_digest,
        result_json=command.result_json,
        **_kept(command.report),
    )
    task = _task(change, attempt.task)
    move_task(change, task, "finish")
    event: JobEvent = "part" if task.kind in PARTS else "finish"
    move_job(change, _job(change, attempt.job), event, node=attempt.node)
    note_success(change, attempt.node)


def fail_attempt(change: Change, command: FailAttempt) -> None:
    """The worker could not do it: never again, elsewhere, or again after a wait."""
    attempt = _attempt(change, command.attempt, command.token)
    _expect(attempt, "leased")
    attempt = replace(attempt, failure=command.failure, **_kept(command.report))
    _end(
        change,
        attempt,
        "fail",
        code=command.code,
        what=command.what,
        todo=command.todo,
        backoff_ms=command.backoff_ms if command.failure == "transient" else 0,
    )
    ended = change.rows.get(Attempt, attempt.id)
    assert ended is not None, "it was written just now"
    note_failure(change, ended)


# --- results --------------------------------------------------------------------------------------


def accept_result(change: Change, command: AcceptResult) -> None:
    """The owner holds the verified result: it will be published, and nothing can undo that."""
    attempt = _attempt(change, command.attempt, command.token)
    _expect(attempt, "finished")
    _expect_job(attempt, command.job)
    if command.result_digest != attempt.result_digest:
        raise RefusedError("digest", "this is not the result that the worker handed back")
    task, job = _task(change, attempt.task), _job(change, attempt.job)
    if task.kind in PARTS:
        _keep(change, attempt, task, job)
        return
    move_attempt(change, attempt, "accept")
    move_task(change, task, "accept")
    move_job(change, job, "accept", node=attempt.node, output=command.output)


def _keep(change: Change, attempt: Attempt, task: Task, job: Job) -> None:
    """The owner holds a part; who works on it as well stops, and with the last one the film can be assembled."""
    move_attempt(change, attempt, "keep")
    for other in live_attempts(change, task) if task.kind in TWICE else ():
        if other.id != attempt.id:
            what = f"another machine was faster, {name_of(change, attempt.node)}"
            move_attempt(change, other, "abandon", error_code=OVERTAKEN, error=what)
    move_task(change, task, "keep")
    move_job(change, job, "part", node=attempt.node)
    open_states: tuple[TaskState, ...] = ("ready", "leased", "finished")
    if any(change.rows.where(Task, job=job.id, state=state) for state in open_states):
        return
    for blocked in change.rows.where(Task, job=job.id, state="blocked"):
        move_task(change, blocked, "unblock")


def refuse_result(change: Change, command: RefuseResult) -> None:
    """The owner could not get the result or would not take it: again, until attempts run out."""
    attempt = _attempt(change, command.attempt, command.token)
    _expect(attempt, "finished")
    _expect_job(attempt, command.job)
    _end(change, attempt, "refuse", code=command.code, what=command.what, todo=command.todo)


def finish_job(change: Change, command: FinishJob) -> None:
    """The output is in place and synced."""
    job = _job(change, command.job)
    accepted = change.rows.where(Attempt, job=job.id, state="accepted")
    if not any(attempt.token == command.token for attempt in accepted):
        raise RefusedError("stale_token", f"job {job.id} was not accepted under this token")
    move_job(
        change,
        job,
        "publish",
        node=job.owner,
        finished_at_ms=command.finished_at_ms,
        error_code="",
        error="",
        todo="",
        error_node="",
    )


# --- shared steps ---------------------------------------------------------------------------------


def _end(
    change: Change,
    attempt: Attempt,
    event: AttemptEvent,
    *,
    code: str,
    what: str,
    todo: str = "",
    backoff_ms: int = 0,
) -> None:
    """Ends an attempt without a result, and decides what becomes of its task and job."""
    ended = move_attempt(change, attempt, event, error_code=code, error=what, todo=todo)
    task, job = _task(change, attempt.task), _job(change, attempt.job)
    tries = task.tries + (ended.state in COUNTED_ENDS)
    excluded = task.excluded
    if ended.failure == "encoder" and attempt.node not in excluded:
        excluded = (*excluded, attempt.node)
    others = live_attempts(change, task) if task.kind in TWICE else []
    # However often it failed: who works on it as well may bring it to its end.
    hopeless = ended.failure == "input" or (tries >= ATTEMPTS_MAX and not others)
    if hopeless or not (others or _somebody_is_left(change, task, excluded)):
        change.rows.put(replace(task, tries=tries, excluded=excluded))
        if change.rows.schema >= 3 and tries >= ATTEMPTS_MAX:
            what, todo = _story(change, task, what, todo)
        _fail(change, job, attempt.node, code=code, what=what, todo=todo)
        return
    if not others:
        move_task(change, task, "again", tries=tries, excluded=excluded, backoff_ms=backoff_ms)
    elif task.state == "finished" and all(other.state == "leased" for other in others):
        move_task(change, task, "go_on", tries=tries, excluded=excluded)
    else:
        change.rows.put(replace(task, tries=tries, excluded=excluded))
    waits: JobEvent = "wait" if backoff_ms and job.state == "running" else "again"
    if task.kind != "whole":
        waits = "part"  # the others of the film go on
    if event != "release":
        job = replace(job, error_code=code, error=what, todo=todo, error_node=attempt.node)
    move_job(change, job, waits, node=attempt.node, what=what)


def _story(change: Change, task: Task, what: str, todo: str) -> tuple[str, str]:
    """Of a job that is set aside after its last try: where it failed and how the last one ended."""
    ended = [a for a in change.rows.where(Attempt, task=task.id) if a.state in COUNTED_ENDS]
    members = {member.node: member.name for member in change.rows.where(Member)}
    counts = Counter(members.get(attempt.node, attempt.node) for attempt in ended)
    where = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    told = f"set aside after {len(ended)} failures ({where}); the last: {what}"
    mend = f"`mesh-cli job history {task.job}` tells each; mend the cause, then mesh-cli retry {task.job}"
    return told[-TEXT_BYTES_MAX:], f"{todo}; {mend}" if todo else mend


def _somebody_is_left(change: Change, task: Task, excluded: tuple[str, ...]) -> bool:
    """Whether a member could still do the task; a node that has not reported yet might, or get its label."""
    if not excluded:
        return True
    if task.kind in AT_OWNER:
        return task.owner not in excluded
    place = _job(change, task.job).place
    for member in change.rows.where(Member, state="active"):
        if member.node in excluded or member.role == "witness" or not may_be(place, member.node):
            continue
        node = change.rows.get(Node, member.node)
        if node is None or can_do(task.needs, node.encoders, node.ffmpeg):
            return True
    return False


def _fail(change: Change, job: Job, node: str, *, code: str, what: str, todo: str) -> None:
    move_job(
        change,
        job,
        "fail",
        node=node,
        what=what,
        error_code=code,
        error=what,
        todo=todo,
        error_node=node,
        finished_at_ms=change.at_ms,
    )
    end_tasks(change, job, "fail")


def _job(change: Change, job_id: str) -> Job:
    job = change.rows.get(Job, job_id)
    if job is None:
        raise RefusedError("not_found", f"no job {job_id}")
    return job


def _task(change: Change, task_id: str) -> Task:
    task = change.rows.get(Task, task_id)
    assert task is not None, f"attempt of a task that does not exist: {task_id}"
    return task


def _attempt(change: Change, attempt_id: str, token: int) -> Attempt:
    attempt = change.rows.get(Attempt, attempt_id)
    if attempt is None or attempt.token != token:
        raise RefusedError("stale_token", f"attempt {attempt_id} has no lease with this token")
    return attempt


def _expect(attempt: Attempt, state: str) -> None:
    if attempt.state != state:
        raise RefusedError("stale_token", f"attempt {attempt.id} is {attempt.state}, not {state}")


def _expect_job(attempt: Attempt, job: str) -> None:
    if attempt.job != job:
        raise RefusedError("conflict", f"attempt {attempt.id} is none of job {job}")


def _kept(report: AttemptReport) -> dict[str, Any]:
    return {
        "command_line": report.command_line,
        "stderr_tail": report.stderr_tail,
        "encoder": report.encoder,
        "ffmpeg": report.ffmpeg,
        "started_at_ms": report.started_at_ms,
        "fetch_ms": report.fetch_ms,
        "encode_ms": report.encode_ms,
        "verify_ms": report.verify_ms,
        "fetched_bytes": report.fetched_bytes,
        "frames": report.frames,
    }
