"""What a node does only while it leads: keeps voters and the ledger's form right, leases tasks, expires leases.

It holds nothing that a successor would need: leases are in the ledger, and their clocks start anew
with every coordinator, which waits one lease time before it expires anything.
"""

import asyncio
import secrets
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import structlog

from ledger.commands import (
    LEASES_PER_COMMAND_MAX,
    Command,
    ExpireLeases,
    FailJob,
    PlanJob,
    PlanPieces,
)
from ledger.estimates import with_estimates
from ledger.jobs import TWICE, Job
from ledger.planned import first_job, planned_tasks
from ledger.scheduler import Granting, decide
from ledger.scheduler_view import (
    JobFacts,
    NodeView,
    SchedulerView,
    TaskView,
    Turns,
    task_view,
)
from ledger.submissions import SubmitFilms
from mesh import clock
from mesh.errors import DarkStreamError, NotLeaderError, StorageError
from mesh.ids import NodeId, sortable_id
from node.consensus.driver import Driver
from node.consensus.news import Look, follow
from node.consensus.proposer import Proposer
from node.consensus.replica import Replica
from node.membership.voters import Voters
from node.requests import Requests
from node.work.leases import WORK, LeaseClock, LeaseTiming, WorkerHeartbeat, WorkerHeartbeatAck
from node.work.migration import Migration
from node.work.paces import Paces
from node.work.progress import Progress
from node.work.standing import Standing, standing_as
from node.work.sweeps import Sweeps
from node.work.worker import HEARTBEAT

ROUND_S: Final = 0.5
"""Looks at least this often, also when nothing was applied: leases expire by time."""
IDLE_ROUND_S: Final = 2.0
"""While nothing is leased and nothing waits: no clock runs out, and what is new wakes the round."""
SPEEDS_MS: Final = 15_000
"""Speeds of nodes are measured anew so often: they are means over many films."""
FIRST_SPEEDS_MS: Final = 1_000
"""And so often while something is ready whose profile nobody has done yet, or a node at work not."""
COMING_MAX: Final = 64
"""Submissions whose first film's plan may follow before they are applied: that takes milliseconds."""
ORPHANS_MS: Final = 500
"""They are looked for so often: a mesh with thousands of them ends some thirty a second."""
ORPHANS_A_ROUND: Final = 16
"""Jobs of revoked or removed owners that one round ends: leases come in between."""

_log = structlog.get_logger("node")


class Coordinator:
    """Acts while `driver.is_leader`, sleeps otherwise."""

    def __init__(
        self,
        *,
        driver: Driver,
        proposer: Proposer,
        requests: Requests,
        replica: Replica,
        timing: LeaseTiming,
        voters: Voters,
        migration: Migration,
        sweeps: Sweeps,
        standing: Callable[[NodeId], Standing],
        progress: Callable[[str], Sequence[Progress]],
    ) -> None:
        """`standing` is how a node says that it stands to work, `progress` how far a job's attempts are."""
        self.voters = voters
        self._standing = standing
        self._progress = progress
        self._paces = Paces()
        self._migration = migration
        self._sweeps = sweeps
        self._driver = driver
        self._proposer = proposer
        self._replica = replica
        self._timing = timing
        self._clock = LeaseClock(timing, clock.monotonic_ms())
        self._seen_ms: dict[str, int] = {}
        self._began_ms: dict[str, int] = {}
        self._granted = 0
        self._orphans_ms = -ORPHANS_MS
        self._eligible_ms: dict[str, int] = {}
        self._turns = Turns()
        self._speeds: tuple[int, Mapping[str, Mapping[str, int]]] = (-SPEEDS_MS, {})
        self._back: dict[str, tuple[str, ...]] = {}
        self._at_rest: tuple[int, SchedulerView] | None = None
        """The last round's view, with the news that it has seen, where it left nothing to be leased."""
        self._granting: set[str] = set()
        """Tasks whose leases are on their way into the log."""
        self._plans: list[PlanJob | PlanPieces] = []
        """Plans that are about to enter the log, and whose leases may follow."""
        self._leasing: set[asyncio.Task[None]] = set()
        """Leases that follow a plan, until they are in the ledger."""
        self._coming: dict[str, Job] = {}
        """The first job of each submission that is on its way into the log, or was a moment ago."""
        self._group: asyncio.TaskGroup | None = None
        requests.register(HEARTBEAT, self._heartbeat)
        proposer.on_its_way = self._foresee

    async def run(self) -> None:
        """Works until cancelled."""
        while True:
            seen = self._driver.leader_changed.count
            if self._driver.is_leader:
                await self._lead()
            await self._driver.leader_changed.wait(seen)

    async def _lead(self) -> None:
        self._clock = LeaseClock(self._timing, clock.monotonic_ms())
        self._seen_ms.clear()
        self._began_ms.clear()
        self._eligible_ms.clear()
        self._turns = Turns()
        self._back.clear()
        self._coming.clear()
        self._plans.clear()
        self._paces = Paces()
        _log.info("this node coordinates now", term=self._driver.raft.term)
        self._at_rest = None
        async with asyncio.TaskGroup() as group:
            self._group = group
            autopilot = group.create_task(self.voters.keep(), name="autopilot")
            schedule = group.create_task(self._schedule(), name="schedule")
            migration = group.create_task(self._migration.keep(), name="migration")
            sweeps = group.create_task(self._sweeps.keep(), name="sweeps")
            # A lead that was lost and won again meanwhile is another one: its clocks start anew.
            term = self._driver.raft.term
            while self._driver.is_leader and self._driver.raft.term == term:
                await self._driver.leader_changed.wait(self._driver.leader_changed.count)
            self._group = None
            autopilot.cancel()
            schedule.cancel()
            migration.cancel()
            sweeps.cancel()

    # --- leases ---------------------------------------------------------------------------------

    async def _heartbeat(self, caller: NodeId, body: bytes) -> bytes:
        if not self._driver.is_leader:
            raise NotLeaderError("this node is not the coordinator", "ask the coordinator")
        beat: WorkerHeartbeat = WORK.decode(body)
        now_ms = clock.monotonic_ms()
        news = not self._clock.takes_work(caller, now_ms)
        self._clock.heard(caller, beat, now_ms)
        if news:
            self._driver.news.work.set()
        back = self._back.get(caller, ())
        return WORK.encode(WorkerHeartbeatAck(term=self._driver.raft.term, back=back))

    async def _schedule(self) -> None:
        await follow(self._driver.news.work, self._look)

    async def _look(self) -> Look:
        """One round."""
        if self._leasing:
            return Look(0.0, then=self._leased())
        look = Look(IDLE_ROUND_S)
        if self._driver.is_leader:
            with self._survived():
                look = Look(ROUND_S)
                look = await self._round()
        return look

    async def _leased(self) -> None:
        """What follows a plan goes first: the round that the plan woke would be in its way."""
        if self._leasing:
            await asyncio.wait(tuple(self._leasing))

    @contextmanager
    def _survived(self) -> Generator[None]:
        """Whatever one round meets, the next looks anew: a coordinator never stops deciding."""
        try:
            yield
        except StorageError:
            raise
        except DarkStreamError as error:
            _log.warning("a round of leases failed", reason=error.what)

    async def _round(self) -> Look:
        """Expires and decides.

        While a lease runs or a task waits, their clocks want another look soon.
        """
        now_ms, seen = clock.monotonic_ms(), self._driver.news.work.count
        self._at_rest = None
        read = await self._read(now_ms)
        view = self._noted(read, now_ms)
        expired = self._clock.expired(self._seen_ms.items(), now_ms)
        if expired:
            await self._expire(expired)
            read = await self._read(now_ms)
            view = self._noted(read, now_ms)
        await self._fail_jobs_without_owner(now_ms)
        decision = decide(view, now_ms)
        self._turns = decision.turns
        back: dict[str, tuple[str, ...]] = {}
        for node, attempt in decision.back:
            back[node] = (*back.get(node, ()), attempt)
        self._back = back
        free = any(node.busy < node.slots for node in view.nodes)
        if free and not view.tasks and not self._granting:
            self._at_rest = seen, read
        again_s = ROUND_S if view.running or view.tasks else IDLE_ROUND_S
        if not decision.commands:
            return Look(again_s)
        return Look(again_s, found=True, then=self._grant_all(decision.commands))

    async def _grant_all(self, commands: Sequence[Granting]) -> None:
        with self._survived():
            await self._grant(commands)

    async def _grant(self, commands: Sequence[Granting]) -> None:
        for command in commands:
            tasks = {lease.task for lease in command.leases}
            self._granting |= tasks
            try:
                await self._proposer.commit(command, cause="coordinator")
            finally:
                self._granting -= tasks
            for node in sorted({lease.node for lease in command.leases}):
                self._driver.tell_commit(NodeId(node))  # it has something to begin

    # --- leases that follow a plan ---------------------------------------------------------------

    def _foresee(self, command: Command) -> None:
        """Where nothing else waits, the leases of a plan enter the log right behind it."""
        if isinstance(command, SubmitFilms) and (job := first_job(command)) is not None:
            self._coming[job.id] = job
            while len(self._coming) > COMING_MAX:
                del self._coming[next(iter(self._coming))]
        if isinstance(command, PlanJob | PlanPieces) and self._group and self._at_rest:
            self._plans.append(command)
            if len(self._plans) == 1:
                leasing = self._group.create_task(self._lease_planned(), name="lease planned")
                self._leasing.add(leasing)
                leasing.add_done_callback(self._leasing.discard)

    async def _lease_planned(self) -> None:
        try:
            plans, self._plans = self._plans, []
            jobs = await self._replica.read(lambda reader: [reader.job(plan.job) for plan in plans])
            # What is not there yet nobody can have changed.
            coming = [self._coming.pop(plan.job, None) for plan in plans]
            rest, self._at_rest = self._at_rest, None
            # Whatever changed meanwhile is for the next round, which reads all of it.
            if rest is None or self._driver.news.work.count != rest[0]:
                return
            tasks = [
                task_view(task, JobFacts(job.tenant, job.profile, plan.source_bytes, job.place))
                for known, other, plan in zip(jobs, coming, plans, strict=True)
                if (job := known or other) is not None
                for task in planned_tasks(job, plan)
                if task.state == "ready"
            ]
            now_ms = clock.monotonic_ms()
            decision = decide(self._known(replace(rest[1], tasks=tuple(tasks)), now_ms), now_ms)
            self._turns = decision.turns
            # Should the plan be refused, its tasks are not there, and nothing is granted.
            await self._grant(decision.commands)
        except StorageError:
            raise
        except DarkStreamError as error:
            _log.info("a plan's leases wait for the next round", reason=error.what)

    async def _expire(self, expired: Sequence[str]) -> None:
        _log.warning("leases expired", attempts=len(expired))
        what = f"the worker was silent for {self._timing.expiry_ms / 1000:g} s"
        for start in range(0, len(expired), LEASES_PER_COMMAND_MAX):
            batch = tuple(expired[start : start + LEASES_PER_COMMAND_MAX])
            await self._proposer.commit(
                ExpireLeases(attempts=batch, what=what), cause="coordinator"
            )

    async def _fail_jobs_without_owner(self, now_ms: int) -> None:
        if now_ms - self._orphans_ms < ORPHANS_MS:
            return
        self._orphans_ms = now_ms
        lost, members = await self._replica.read(
            lambda reader: (reader.jobs_without_owner(ORPHANS_A_ROUND), reader.members())
        )
        states = {member.node: member.state for member in members}
        for job in lost:
            state = states.get(job.owner, "removed")
            command = FailJob(
                job=job.id,
                node=job.owner,
                code=f"owner_{state}",
                what=f"the node that has the film was {state}",
                todo="submit the film on a member",
            )
            await self._proposer.commit(command, cause="coordinator")

    async def view(self, now_ms: int) -> SchedulerView:
        """What leases would be decided by now, for `explain`."""
        view = await self._read(now_ms)
        self._note_waits(view, now_ms)
        return self._known(view, now_ms)

    def _noted(self, view: SchedulerView, now_ms: int) -> SchedulerView:
        """The same for a round, which notes what it saw first now."""
        # A lease's clock runs from when it was seen first, its work from when it likely began.
        running = {run.attempt: run for run in view.running}
        self._seen_ms = {a: self._seen_ms.get(a, now_ms) for a in running}
        self._began_ms = {
            a: now_ms if run.waits else self._began_ms.get(a, now_ms) for a, run in running.items()
        }
        self._note_waits(view, now_ms)
        jobs = {run.task.job for run in view.running if run.task.kind in TWICE}
        told = (progress for job in jobs for progress in self._progress(job))
        self._paces.note(running, told, now_ms)
        return self._known(view, now_ms)

    def _note_waits(self, view: SchedulerView, now_ms: int) -> None:
        # The wait counts from when it was seen here: no other machine's clock is asked.
        self._eligible_ms = {
            _wait(task): self._eligible_ms.get(_wait(task), now_ms + task.backoff_ms)
            for task in view.tasks
            if task.backoff_ms
        }

    async def _read(self, now_ms: int) -> SchedulerView:
        granting = frozenset(self._granting)
        view = await self._replica.read(lambda reader: reader.schedulable())
        if granting:  # or a plan's leases would be granted twice where they follow it
            tasks = tuple(task for task in view.tasks if task.task not in granting)
            view = replace(view, tasks=tasks)
        old_ms = now_ms - self._speeds[0]
        speeds = self._speeds[1]
        profiles = {profile for known in speeds.values() for profile in known}
        tasks = (*view.tasks, *(run.task for run in view.running if run.is_alone))
        new = any(task.profile not in profiles for task in tasks)
        # Only where its speed is known a node is leased ahead of its slots.
        new |= bool(view.tasks) and any(
            run.task.profile not in speeds.get(run.node, {}) for run in view.running
        )
        if old_ms > SPEEDS_MS or (new and old_ms > FIRST_SPEEDS_MS):
            self._speeds = now_ms, await self._replica.read(lambda reader: reader.speeds())
        return view

    def _known(self, view: SchedulerView, now_ms: int) -> SchedulerView:
        """The ledger's view with what only a coordinator knows: who is heard, who still waits."""
        speeds = self._speeds[1]
        known = replace(
            view,
            tasks=tuple(
                replace(task, eligible_at_ms=self._eligible_ms[_wait(task)])
                if task.backoff_ms
                else task
                for task in view.tasks
            ),
            nodes=tuple(
                replace(self._seen(node, now_ms), speeds=speeds.get(node.node, {}))
                for node in view.nodes
            ),
            running=self._paces.told(view.running, now_ms),
            new_attempt_id=self._new_attempt_id,
            turns=self._turns,
        )
        return with_estimates(known, self._began_ms, now_ms)

    def _new_attempt_id(self) -> str:
        """Ids sort as they were granted, also within one millisecond: workers begin in that order."""
        self._granted = (self._granted + 1) % (1 << 16)
        return sortable_id(
            "a", clock.wall_ms(), self._granted.to_bytes(2, "big") + secrets.token_bytes(3)
        )

    def _seen(self, node: NodeView, now_ms: int) -> NodeView:
        own = NodeId(node.node)
        told = standing_as(node, self._standing(own))
        if not self._driver.is_leader:
            return told  # it hears no heartbeats, and must not call the others silent
        closed = told.closed
        if not closed and not self._clock.takes_work(own, now_ms):
            closed = "takes no new work now"
        return replace(told, alive=self._clock.is_heard(own, now_ms), closed=closed)


def _wait(task: TaskView) -> str:
    return f"{task.task}/{task.attempts}"
