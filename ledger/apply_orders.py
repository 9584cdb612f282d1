"""Applies what people order: many jobs at once, nodes that get work again, watched folders."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, assert_never

from ledger.change import Change, RefusedError
from ledger.jobs import (
    FINAL_JOB_STATES,
    JOB_TRANSITIONS,
    RESULT_OF,
    Attempt,
    Converted,
    Event,
    Job,
    Member,
    Node,
    Profile,
    Sweep,
    Task,
    TaskEvent,
    Tenant,
    Watch,
)
from ledger.moves import end_tasks, move_job, move_task
from ledger.orders import (
    NO_LIMIT,
    ORDERED_PER_COMMAND_MAX,
    SHARE_MAX,
    Action,
    AddWatch,
    ChangeJobs,
    ForgetJobs,
    PutProfile,
    PutTenant,
    ReleaseNode,
    RemoveProfile,
    RemoveTenant,
    RemoveWatch,
    StartSweep,
    StepSweep,
)
from ledger.rows import Alteration

SWEEPS_MAX: Final = 100
"""Orders that are kept: people look at the last ones; more that are open at once are refused."""
WATCHES_MAX: Final = 1_000
PROFILES_MAX: Final = 500
TENANTS_MAX: Final = 1_000
TENANT_CHARS_MAX: Final = 64
DEFINITION_BYTES_MAX: Final = 16 << 10
"""A profile has some hundred characters."""
PRIORITY_LIMIT: Final = 1_000
"""Beyond what any face takes; a number without bound would be a mistake."""
_DONE: Final = 0


# --- many jobs --------------------------------------------------------------------------------------


def change_jobs(change: Change, command: ChangeJobs) -> None:
    """Does one thing to named jobs."""
    _check_count(len(command.jobs))
    _check_value(command.action, command.priority)
    for job in change.rows.where_any(Job, "id", command.jobs):
        _do(change, job, command.action, command.priority, command.by)


def start_sweep(change: Change, command: StartSweep) -> None:
    """Remembers the order; the coordinator's steps carry it out."""
    change.mesh()
    _check_value(command.action, command.priority)
    if change.rows.get(Sweep, command.id) is not None:
        raise RefusedError("conflict", "there is an order of this id already")
    known = sorted(change.rows.where(Sweep), key=lambda sweep: sweep.created_at_ms)
    over = [sweep for sweep in known if sweep.cursor == _DONE]
    if len(known) - len(over) >= SWEEPS_MAX:
        raise RefusedError("busy", f"{SWEEPS_MAX} orders are on their way", "wait for them")
    for old in over[: max(0, len(known) - SWEEPS_MAX + 1)]:
        change.rows.delete(Sweep, old.id)
    chosen = command.chosen
    change.rows.put(
        Sweep(
            id=command.id,
            action=command.action,
            value=command.priority,
            states=chosen.states,
            folder=chosen.folder,
            node=chosen.node,
            profile=chosen.profile,
            tenant=chosen.tenant,
            since_ms=chosen.since_ms,
            until_ms=chosen.until_ms,
            by=command.by,
            cursor=change.first_seq(),
            created_at_ms=change.at_ms,
        )
    )


def step_sweep(change: Change, command: StepSweep) -> None:
    """One step of an order, from newer jobs to older ones."""
    _check_count(len(command.jobs))
    sweep = change.rows.get(Sweep, command.sweep)
    if sweep is None or sweep.cursor != command.cursor or sweep.cursor == _DONE:
        raise RefusedError("conflict", "the order does not stand there any more")
    if not command.last and not 0 < command.down_to < command.cursor:
        raise RefusedError("usage", "a step goes down")
    # What waits to be planned is most of a library, and has nothing but its own row.
    at_once = _cancel_unplanned(change, command.jobs, sweep.by) if sweep.action == "cancel" else ()
    changed = len(at_once)
    for job in change.rows.where_any(Job, "id", sorted(set(command.jobs).difference(at_once))):
        changed += _do(change, job, sweep.action, sweep.value, sweep.by)
    change.rows.put(
        replace(
            sweep,
            cursor=_DONE if command.last else command.down_to,
            changed=sweep.changed + changed,
            skipped=sweep.skipped + len(command.jobs) - changed,
            finished_at_ms=change.at_ms if command.last else 0,
        )
    )


def _do(change: Change, job: Job, action: Action, value: int, by: str) -> bool:
    """Whether it made sense in the job's state and was done."""
    match action:
        case "cancel":
            return _cancel(change, job, by)
        case "retry":
            return _retry(change, job, by)
        case "priority":
            return _prioritize(change, job, value, by)
        case _:
            assert_never(action)


def _cancel(change: Change, job: Job, by: str) -> bool:
    if (job.state, "cancel") not in JOB_TRANSITIONS:
        return False
    what = f"cancelled by {by}"
    move_job(
        change,
        job,
        "cancel",
        what=f"by {by}",
        finished_at_ms=change.at_ms,
        error_code="cancelled",
        error=what,
        todo=f"mesh-cli retry {job.id}",
        error_node="",
    )
    end_tasks(change, job, "cancel")
    return True


_CANCELLED: Final = (
    "state",
    "updated_at_ms",
    "finished_at_ms",
    "error_code",
    "error",
    "todo",
    "error_node",
)


def _cancel_unplanned(change: Change, jobs: Sequence[str], by: str) -> Sequence[str]:
    """Cancels those of these jobs that nobody has begun, all at once; as `_cancel` leaves them."""
    now, what = change.at_ms, f"cancelled by {by}"
    alteration = Alteration(
        only={"state": ("queued",), "planned": (0,)},
        names=_CANCELLED,
        values_of=lambda job: (
            JOB_TRANSITIONS["queued", "cancel"],
            now,
            now,
            "cancelled",
            what,
            f"mesh-cli retry {job}",
            "",
        ),
    )
    done = change.rows.alter(Job, jobs, alteration)
    change.tell_each("job.cancelled", jobs=done, what=f"by {by}")
    return done


def _retry(change: Change, job: Job, by: str) -> bool:
    if (job.state, "retry") not in JOB_TRANSITIONS:
        return False
    for other in change.rows.where(Job, output=job.output):
        if other.owner == job.owner and other.state not in FINAL_JOB_STATES:
            return False  # two live jobs must never write one file
    move_job(
        change,
        job,
        "retry",
        what=f"once more, by {by}",
        finished_at_ms=0,
        error_code="",
        error="",
        todo="",
        error_node="",
    )
    for task in change.rows.where(Task, job=job.id) if job.planned else ():
        event: TaskEvent = "hold" if task.kind == "assemble" else "revive"
        anew = {"tries": 0, "excluded": (), "backoff_ms": 0, "priority": job.priority}
        move_task(change, task, event, **anew)
    return True


def _prioritize(change: Change, job: Job, value: int, by: str) -> bool:
    if job.is_final:
        return False
    if job.priority == value:
        return True
    change.rows.put(replace(job, priority=value, updated_at_ms=change.at_ms))
    change.tell(f"job.{job.state}", job=job.id, what=f"priority {value}, by {by}")
    for task in change.rows.where(Task, job=job.id) if job.planned else ():
        change.rows.put(replace(task, priority=value))
    return True


def forget_jobs(change: Change, command: ForgetJobs) -> None:
    """Removes jobs that are over, with all that is told of them."""
    _check_count(len(command.jobs))
    for job in change.rows.where_any(Job, "id", command.jobs):
        if not job.is_final:
            continue
        if job.state == "done" and job.source_digest:
            made = f"{job.source_bytes}/{job.source_digest}/{job.definition}"
            change.rows.put(Converted(id=made, output=job.output, at_ms=job.finished_at_ms))
            for attempt in change.rows.where(Attempt, job=job.id, state="accepted"):
                result = f"{attempt.result_bytes}/{attempt.result_digest}/{RESULT_OF}{job.profile}"
                change.rows.put(Converted(id=result, output=job.output, at_ms=job.finished_at_ms))
        for task in change.rows.where(Task, job=job.id):
            change.rows.delete(Task, task.id)
        for attempt in change.rows.where(Attempt, job=job.id):
            change.rows.delete(Attempt, attempt.id)
        for event in change.rows.where(Event, job=job.id):
            change.rows.delete(Event, event.id)
        change.rows.delete(Job, job.id)


def _check_count(count: int) -> None:
    if count > ORDERED_PER_COMMAND_MAX:
        raise RefusedError("usage", f"at most {ORDERED_PER_COMMAND_MAX} jobs in one command")


def _check_value(action: Action, value: int) -> None:
    if action == "priority" and not -PRIORITY_LIMIT <= value <= PRIORITY_LIMIT:
        raise RefusedError("usage", f"a priority lies within {PRIORITY_LIMIT}")


# --- nodes and folders ------------------------------------------------------------------------------


def release_node(change: Change, command: ReleaseNode) -> None:
    """The node gets work again."""
    node = change.rows.get(Node, command.node)
    if node is None:
        raise RefusedError("not_found", f"no node {command.node}")
    if node.quarantine or node.strikes:
        change.rows.put(replace(node, strikes=(), quarantine=""))
        change.tell("node.released", node=node.node, what=f"by {command.by}")


def add_watch(change: Change, command: AddWatch) -> None:
    """A folder is watched from now on."""
    member = change.rows.get(Member, command.node)
    if member is None or member.state != "active":
        raise RefusedError("not_found", f"no member {command.node}")
    watches = change.rows.where(Watch)
    if any(watch.id == command.id for watch in watches):
        raise RefusedError("conflict", "there is a watch of this id already")
    place = command.node, command.folder, command.profile
    if any((watch.node, watch.folder, watch.profile) == place for watch in watches):
        raise RefusedError(
            "conflict",
            f"{command.folder} is watched for {command.profile} already",
            "see `mesh-cli watch list`",
        )
    if len(watches) >= WATCHES_MAX:
        raise RefusedError("busy", f"{WATCHES_MAX} folders are watched", "remove some")
    change.rows.put(
        Watch(
            id=command.id,
            node=command.node,
            folder=command.folder,
            profile=command.profile,
            settings=command.settings,
        )
    )
    change.tell("watch.added", node=command.node, what=command.folder)


def remove_watch(change: Change, command: RemoveWatch) -> None:
    """The folder is watched no more."""
    watch = change.rows.get(Watch, command.id)
    if watch is None:
        raise RefusedError("not_found", f"no watch {command.id}", "see `mesh-cli watch list`")
    change.rows.delete(Watch, watch.id)
    change.tell("watch.removed", node=watch.node, what=f"{watch.folder}, by {command.by}")


# --- profiles ---------------------------------------------------------------------------------------


def put_profile(change: Change, command: PutProfile) -> None:
    """Every node knows it from now on."""
    change.mesh()
    if len(command.definition.encode()) > DEFINITION_BYTES_MAX:
        raise RefusedError("usage", f"a profile has more than {DEFINITION_BYTES_MAX} bytes")
    known = {profile.name for profile in change.rows.where(Profile)}
    if command.name not in known and len(known) >= PROFILES_MAX:
        raise RefusedError("busy", f"there are {PROFILES_MAX} profiles", "remove some")
    change.rows.put(
        Profile(name=command.name, definition=command.definition, updated_at_ms=change.at_ms)
    )
    change.tell("profile.put", what=f"{command.name}, by {command.by}")


def remove_profile(change: Change, command: RemoveProfile) -> None:
    """The profile is known no more."""
    if change.rows.get(Profile, command.name) is None:
        raise RefusedError(
            "not_found", f"no profile {command.name}", "see `mesh-cli profiles list`"
        )
    change.rows.delete(Profile, command.name)
    change.tell("profile.removed", what=f"{command.name}, by {command.by}")


# --- tenants ----------------------------------------------------------------------------------------


def put_tenant(change: Change, command: PutTenant) -> None:
    """The scheduler keeps to it from its next round on; what runs goes on."""
    change.mesh()
    if len(command.name) > TENANT_CHARS_MAX:
        raise RefusedError("usage", f"a tenant's name has more than {TENANT_CHARS_MAX} characters")
    quotas = command.slots, command.queued_jobs, command.queued_bytes
    if not 1 <= command.share <= SHARE_MAX or min(quotas) < NO_LIMIT:
        raise RefusedError(
            "usage", f"a share is 1 to {SHARE_MAX}, a quota 0 or more, or without limit"
        )
    known = {tenant.name for tenant in change.rows.where(Tenant)}
    if command.name not in known and len(known) >= TENANTS_MAX:
        raise RefusedError("busy", f"there are {TENANTS_MAX} tenants", "remove some")
    change.rows.put(
        Tenant(
            name=command.name,
            share=command.share,
            slots=command.slots,
            queued_jobs=command.queued_jobs,
            queued_bytes=command.queued_bytes,
            updated_at_ms=change.at_ms,
        )
    )
    slots = "any number of" if command.slots == NO_LIMIT else f"at most {command.slots}"
    change.tell(
        "tenant.put", what=f"{command.name}: share {command.share}, {slots} slots, by {command.by}"
    )


def remove_tenant(change: Change, command: RemoveTenant) -> None:
    """As if nothing had been said of it."""
    if change.rows.get(Tenant, command.name) is None:
        raise RefusedError(
            "not_found", f"nothing is said of {command.name}", "see `mesh-cli tenants list`"
        )
    change.rows.delete(Tenant, command.name)
    change.tell("tenant.removed", what=f"{command.name}, by {command.by}")
