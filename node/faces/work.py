"""What the faces see and do about work: `WorkService` of this node, from its own replica."""

import secrets
from collections.abc import Callable, Sequence
from typing import Final

from ledger.jobs import FINAL_JOB_STATES, Job, Sweep
from ledger.orders import ChangeJobs, Chosen, ReleaseNode, StartSweep
from ledger.queries import Reader
from mesh import clock
from mesh.errors import ConflictError, NotFoundError
from mesh.ids import NodeId, sortable_id
from node.faces import tenants, watching
from node.faces.feed import names_of
from node.faces.history import job_history, stats_of
from node.faces.mesh_view import Parts
from node.gateway.work_models import (
    Changed,
    ChangeRequest,
    JobHistory,
    JobsChosen,
    NodeWork,
    OrderInfo,
    Released,
    RemoveTenantRequest,
    Stats,
    TenantInfo,
    TenantRequest,
    Tenants,
    Unchanged,
    Watches,
    WatchInfo,
    WatchRequest,
    WorkRequest,
)
from node.work.working import METHOD, WORKING, HeldWork, SetWork

STATS_MS: Final = 5_000
STATS_KEPT: Final = 8
"""Beginnings that are remembered: a page asks for a few."""
WORK_S: Final = 10.0
"""For a node to hear how to work and keep it on its disk."""
_WAS_OVER: Final = frozenset({"failed", "cancelled"})


class Work:
    """`WorkService`; `member` raises while this node belongs to no mesh."""

    def __init__(self, name: str, member: Callable[[], Parts]) -> None:
        self._name = name
        self._member = member
        self._stats: dict[int, tuple[int, Stats]] = {}

    # --- many jobs ------------------------------------------------------------------------------

    async def change(self, request: ChangeRequest) -> Changed:
        """Does one thing to many jobs."""
        if request.chosen is not None:
            return Changed(order=await self._start(request, request.chosen))
        parts = self._member()
        before = await parts.replica.read(lambda reader: _named(reader, request.jobs))
        command = ChangeJobs(
            jobs=tuple(job.id for job in before),
            action=request.action,
            priority=request.priority,
            by=self._name,
        )
        await parts.proposer.commit(command, cause=request.action)
        after = await parts.replica.read(
            lambda reader: {job.id: reader.job(job.id) for job in before}
        )
        told = Changed()
        for job in before:
            now = after[job.id] or job
            if why := _why_unchanged(request, job, now):
                told.unchanged.append(Unchanged(id=job.id, state=now.state, what=why))
            else:
                told.changed.append(job.id)
        return told

    async def _start(self, request: ChangeRequest, chosen: JobsChosen) -> OrderInfo:
        parts = self._member()
        node = ""
        if chosen.node:
            node = await parts.replica.read(lambda reader: _node(reader, chosen.node)[0])
        order = sortable_id("o", clock.wall_ms(), secrets.token_bytes(5))
        command = StartSweep(
            id=order,
            action=request.action,
            priority=request.priority,
            chosen=Chosen(
                states=tuple(chosen.states),
                folder=chosen.folder,
                node=node,
                profile=chosen.profile,
                tenant=chosen.tenant,
                since_ms=chosen.since_ms,
                until_ms=chosen.until_ms,
            ),
            by=self._name,
        )
        await parts.proposer.commit(command, cause=request.action)
        return await self.order(order)

    async def order(self, order: str) -> OrderInfo:
        """How far an order about many jobs is."""
        found = await self._member().replica.read(lambda reader: reader.sweep(order))
        if found is None:
            raise NotFoundError(f"no order {order}", "the last hundred are kept")
        return _order_info(found)

    # --- what was done --------------------------------------------------------------------------

    async def history(self, job: str) -> JobHistory:
        """Everything that happened to a job."""

        def read(reader: Reader) -> JobHistory:
            found = job_named(reader, job)
            events, attempts = reader.events(found.id), reader.attempts(found.id)
            return job_history(found, events, attempts, names_of(reader))

        return await self._member().replica.read(read)

    async def stats(self, since_ms: int) -> Stats:
        """What was done since then; a count over all attempts, so it is not made anew each time."""
        now_ms = clock.monotonic_ms()
        known = self._stats.get(since_ms)
        if known is None or now_ms - known[0] > STATS_MS:
            parts = self._member()
            made = await parts.replica.read(
                lambda reader: stats_of(reader.done(since_ms), since_ms, names_of(reader))
            )
            if len(self._stats) >= STATS_KEPT:
                self._stats.clear()
            known = self._stats[since_ms] = now_ms, made
        return known[1]

    # --- watched folders --------------------------------------------------------------------------

    async def add_watch(self, request: WatchRequest) -> WatchInfo:
        """Watches a folder of this machine."""
        return await watching.add(self._member(), request)

    async def watches(self) -> Watches:
        """All watched folders."""
        return await watching.listed(self._member())

    async def remove_watch(self, watch: str) -> WatchInfo:
        """Watches no more."""
        return await watching.remove(self._member(), watch, self._name)

    # --- nodes ----------------------------------------------------------------------------------

    async def set_work(self, name: str, request: WorkRequest) -> NodeWork:
        """Tells a node when and how to work; it keeps to it at once and over its restarts."""
        parts = self._member()
        node, shown = await parts.replica.read(lambda reader: _node(reader, name))
        wanted = SetWork(
            paused=request.paused,
            draining=request.draining,
            finish_s=request.finish_s,
            hours=None if request.hours is None else tuple(request.hours),
            busy_percent=request.busy_percent,
            nice=request.nice,
            threads=request.threads,
            gpu_percent=request.gpu_percent,
            memory_mib=request.memory_mib,
            labels=None if request.labels is None else tuple(request.labels),
        )
        answer = await parts.requests.call(
            NodeId(node), METHOD, WORKING.encode(wanted), timeout_s=WORK_S
        )
        held: HeldWork = WORKING.decode(answer)
        return NodeWork(
            id=node,
            name=shown,
            paused=held.paused,
            draining=held.draining,
            hours=list(held.hours),
            busy_percent=held.busy_percent,
            nice=held.nice,
            threads=held.threads,
            closed=held.closed,
            running=held.running,
            gpu_percent=held.gpu_percent,
            memory_mib=held.memory_mib,
            labels=list(held.labels),
        )

    async def release(self, name: str, by: str) -> Released:
        """Gives a quarantined node work again."""
        parts = self._member()
        node, shown = await parts.replica.read(lambda reader: _node(reader, name))
        await parts.proposer.commit(ReleaseNode(node=node, by=by), cause=f"release {name}")
        return Released(id=node, name=shown)

    # --- tenants --------------------------------------------------------------------------------

    async def tenants(self) -> Tenants:
        """Tenants of whom something is said."""
        return await tenants.listed(self._member())

    async def put_tenant(self, request: TenantRequest) -> TenantInfo:
        """A tenant's share and quota from now on."""
        return await tenants.put(self._member(), request, self._name)

    async def remove_tenant(self, request: RemoveTenantRequest) -> TenantInfo:
        """Nothing is said of it any more."""
        return await tenants.remove(self._member(), request, self._name)


def _named(reader: Reader, ids: Sequence[str]) -> list[Job]:
    return list({job.id: job for job in (job_named(reader, one) for one in ids)}.values())


def job_named(reader: Reader, job: str) -> Job:
    """The job of this id or of an unambiguous beginning.  Raises `NotFoundError`, `ConflictError`."""
    if (found := reader.job(job)) is not None:
        return found
    like = reader.jobs_like(job)
    if len(like) > 1:
        raise ConflictError(f"several jobs begin with {job}", "give more of the id")
    if not like:
        raise NotFoundError(f"no job {job}", "see `mesh-cli jobs`")
    return like[0]


def _node(reader: Reader, name: str) -> tuple[str, str]:
    """Id and name of the member of this name or id."""
    member = reader.member_by_name(name)
    if member is None:
        raise NotFoundError(f"no node {name}", "see `mesh-cli nodes`")
    return member.node, member.name


def _why_unchanged(request: ChangeRequest, before: Job, now: Job) -> str:
    """Empty where the order did what it says."""
    match request.action:
        case "cancel" if now.state != "cancelled":
            return (
                "its result is being put in place, which nothing undoes"
                if now.state == "publishing"
                else f"it is {now.state}"
            )
        case "cancel" if before.state == "cancelled":
            return "it is cancelled already"
        case "retry" if before.state not in _WAS_OVER:
            return f"it is {now.state}"
        case "retry" if now.state in _WAS_OVER:
            return f"another job writes {now.output} now"
        case "priority" if now.state in FINAL_JOB_STATES:
            return f"it is {now.state}"
        case _:
            return ""


def _order_info(sweep: Sweep) -> OrderInfo:
    return OrderInfo(
        id=sweep.id,
        action=sweep.action,
        by=sweep.by,
        done=sweep.cursor == 0,
        changed=sweep.changed,
        skipped=sweep.skipped,
        created_at_ms=sweep.created_at_ms,
        finished_at_ms=sweep.finished_at_ms or None,
    )
