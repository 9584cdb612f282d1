"""What a node does only while it leads: keeps voters and the ledger's form right, leases tasks, expires leases.

It holds nothing that a successor would need: leases are in the ledger, and their clocks start anew
with every coordinator, which waits one lease time before it expires anything.
"""

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import structlog

from ledger.commands import LEASES_PER_COMMAND_MAX, ExpireLeases, FailJob
from ledger.scheduler import NodeView, SchedulerView, Turns, decide, with_estimates
from mesh import clock
from mesh.errors import DarkStreamError, NotLeaderError, StorageError
from mesh.ids import NodeId, sortable_id
from node.consensus.driver import Driver
from node.consensus.proposer import Proposer
from node.consensus.replica import Replica
from node.membership.voters import Voters
from node.requests import Requests
from node.signals import Signal
from node.work.leases import WORK, LeaseClock, LeaseTiming, WorkerHeartbeat, WorkerHeartbeatAck
from node.work.migration import Migration
from node.work.standing import Standing, standing_as
from node.work.sweeps import Sweeps
from node.work.worker import HEARTBEAT

ROUND_S: Final = 0.5
"""Looks at least this often, also when nothing was applied: leases expire by time."""
IDLE_ROUND_S: Final = 2.0
"""While nothing is leased and nothing waits: no clock runs out, and what is new wakes the round."""
SPEEDS_MS: Final = 15_000
"""Speeds of nodes are measured anew so often: they are means over many films."""
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
    ) -> None:
        """`standing` is how a node says that it stands to work."""
        self.voters = voters
        self._standing = standing
        self._migration = migration
        self._sweeps = sweeps
        self._driver = driver
        self._proposer = proposer
        self._replica = replica
        self._timing = timing
        self._clock = LeaseClock(timing, clock.monotonic_ms())
        self._seen_ms: dict[str, int] = {}
        self._eligible_ms: dict[str, int] = {}
        self._turns = Turns()
        self._speeds: tuple[int, Mapping[str, Mapping[str, int]]] | None = None
        self._heard = Signal()
        requests.register(HEARTBEAT, self._heartbeat)

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
        self._eligible_ms.clear()
        self._turns = Turns()
        _log.info("this node coordinates now", term=self._driver.raft.term)
        async with asyncio.TaskGroup() as group:
            autopilot = group.create_task(self.voters.keep(), name="autopilot")
            schedule = group.create_task(self._schedule(), name="schedule")
            migration = group.create_task(self._migration.keep(), name="migration")
            sweeps = group.create_task(self._sweeps.keep(), name="sweeps")
            # A lead that was lost and won again meanwhile is another one: its clocks start anew.
            term = self._driver.raft.term
            while self._driver.is_leader and self._driver.raft.term == term:
                await self._driver.leader_changed.wait(self._driver.leader_changed.count)
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
            self._heard.set()
        return WORK.encode(WorkerHeartbeatAck(term=self._driver.raft.term))

    async def _schedule(self) -> None:
        while self._driver.is_leader:
            ledger_seen, heard_seen = self._driver.ledger_changed.count, self._heard.count
            pause_s = ROUND_S
            try:
                if not await self._round():
                    pause_s = IDLE_ROUND_S
            except StorageError:
                raise
            except DarkStreamError as error:
                # Whatever one round meets, the next looks anew: a coordinator never stops deciding.
                _log.warning("a round of leases failed", reason=error.what)
            ledger = asyncio.ensure_future(self._driver.ledger_changed.wait(ledger_seen, pause_s))
            heard = asyncio.ensure_future(self._heard.wait(heard_seen, pause_s))
            try:
                await asyncio.wait((ledger, heard), return_when=asyncio.FIRST_COMPLETED)
            finally:
                ledger.cancel()
                heard.cancel()

    async def _round(self) -> bool:
        """Expires and grants; whether a lease runs or a task waits, whose clocks want another look soon."""
        now_ms = clock.monotonic_ms()
        active = await self._replica.read(lambda reader: reader.active_attempts())
        ids = {attempt.id for attempt in active}
        self._seen_ms = {a: self._seen_ms.get(a, now_ms) for a in ids}
        expired = self._clock.expired(self._seen_ms.items(), now_ms)
        if expired:
            _log.warning("leases expired", attempts=len(expired))
            silent_s = self._timing.expiry_ms / 1000
            what = f"the worker was silent for {silent_s:g} s"
            for start in range(0, len(expired), LEASES_PER_COMMAND_MAX):
                batch = expired[start : start + LEASES_PER_COMMAND_MAX]
                await self._proposer.commit(
                    ExpireLeases(attempts=batch, what=what), cause="coordinator"
                )
        await self._fail_jobs_without_owner()
        view = await self.view(now_ms)
        decision = decide(view, now_ms)
        self._turns = decision.turns
        for command in decision.commands:
            await self._proposer.commit(command, cause="coordinator")
        return bool(active or view.tasks)

    async def _fail_jobs_without_owner(self) -> None:
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
        """The scheduler's view with what only a coordinator knows: who is heard, who still waits."""
        view = await self._replica.read(lambda reader: reader.schedulable())
        speeds = await self._measured(now_ms)
        waiting: dict[str, int] = {}
        for task in view.tasks:
            if task.backoff_ms:
                # The wait counts from when this coordinator saw it: no other machine's clock is asked.
                key = f"{task.task}/{task.attempts}"
                waiting[key] = self._eligible_ms.get(key, now_ms + task.backoff_ms)
        self._eligible_ms = waiting
        known = replace(
            view,
            tasks=tuple(
                replace(task, eligible_at_ms=waiting.get(f"{task.task}/{task.attempts}", 0))
                for task in view.tasks
            ),
            nodes=tuple(
                replace(self._seen(node, now_ms), speeds=speeds.get(node.node, {}))
                for node in view.nodes
            ),
            new_attempt_id=_attempt_id,
            turns=self._turns,
        )
        return with_estimates(known, self._seen_ms, now_ms)

    def _seen(self, node: NodeView, now_ms: int) -> NodeView:
        own = NodeId(node.node)
        told = standing_as(node, self._standing(own))
        if not self._driver.is_leader:
            return told  # it hears no heartbeats, and must not call the others silent
        closed = told.closed
        if not closed and not self._clock.takes_work(own, now_ms):
            closed = "takes no new work now"
        return replace(told, alive=self._clock.is_heard(own, now_ms), closed=closed)

    async def _measured(self, now_ms: int) -> Mapping[str, Mapping[str, int]]:
        if self._speeds is None or now_ms - self._speeds[0] > SPEEDS_MS:
            self._speeds = now_ms, await self._replica.read(lambda reader: reader.speeds())
        return self._speeds[1]


def _attempt_id() -> str:
    return sortable_id("a", clock.wall_ms(), secrets.token_bytes(5))
