"""What the scheduler decides by, as far as the ledger knows: ready tasks, nodes, leases, speeds."""

import json
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from ledger.commands import SINCE, SpeculateLeases
from ledger.device_slots import from_text, speed_key
from ledger.jobs import (
    DISK_FULL,
    PLANNED_AT_ONCE,
    TWICE,
    WAITING_JOB_STATES,
    Attempt,
    Job,
    Member,
    Node,
    Task,
    Tenant,
)
from ledger.lines import with_waits
from ledger.orders import NO_LIMIT
from ledger.row_reader import RowReader
from ledger.scheduler_view import (
    JobFacts,
    NodeView,
    RunningView,
    SchedulerView,
    TaskView,
    task_view,
)
from ledger.seats import runs_at_seats, slots_of

READY_TASKS_MAX: Final = 512
"""Ready tasks of each kind of need that one round of the scheduler looks at: more than any mesh has free slots."""
NEEDS_MAX: Final = 64
"""Different needs (lists of encoders) that one round looks at: profiles have a handful."""
KINDS_MAX: Final = 256
"""Kinds of unplanned jobs (tenant, profile, place) that an owner looks at: two look-ups each."""
OLDEST_LOOKED_AT: Final = 16
"""The oldest ready tasks, which a round looks at however low their priority is."""
AHEAD_SINCE: Final = 3
"""The form from which on leases may wait at workers: those of before begin each at once."""
LATER_COUNTED_MAX: Final = 1_000
"""Jobs to be planned that a round counts: more makes no difference to what is decided now, and counting 10,000 took four fifths of a round."""
BEFORE_COUNTED_MAX: Final = 10_000
"""Films before one that a person asks about; further ahead they are only many."""
MEASURED_ATTEMPTS: Final = 32
"""Latest attempts of a node that its speed is measured by: a machine's load and films change."""


class WorkReader(RowReader):
    """Rows as the scheduler needs them, as of the moment of each call."""

    def schedulable(self) -> SchedulerView:
        """What the scheduler decides by, as far as the ledger knows; speeds are asked for apart."""
        # Each kind of need by itself: a heap of tasks that no node can do must not hide the others.
        found = [
            task
            for needs in self._ready_needs()
            for task in self._rows(
                Task,
                "WHERE state = 'ready' AND needs = ? ORDER BY priority DESC, seq LIMIT ?",
                (needs, READY_TASKS_MAX),
            )
        ]
        oldest = self._rows(Task, "WHERE state = 'ready' ORDER BY seq LIMIT ?", (OLDEST_LOOKED_AT,))
        tasks = {task.id: task for task in (*found, *oldest)}
        active = self.active_attempts()
        busy = Counter(attempt.node for attempt in active)
        reported = {node.node: node for node in self._rows(Node, "ORDER BY node")}
        members = self._rows(Member, "WHERE state = 'active' ORDER BY name")
        leased = self.tasks_named([attempt.task for attempt in active])
        views = self._task_views((*tasks.values(), *leased.values()))
        ordered = sorted(tasks.values(), key=lambda task: (-task.priority, task.seq))
        nodes = tuple(
            _node_view(member, reported[member.node], busy[member.node])
            for member in members
            if member.node in reported
        )
        holders = Counter(attempt.task for attempt in active)
        twice = self.schema() >= SINCE[SpeculateLeases]
        running = [
            RunningView(
                attempt=attempt.id,
                node=attempt.node,
                task=views[attempt.task],
                device=attempt.device,
                # Where a result waits for its owner, that is likely what will be kept.
                is_alone=twice
                and leased[attempt.task].kind in TWICE
                and leased[attempt.task].state == "leased"
                and holders[attempt.task] == 1,
            )
            for attempt in sorted(active, key=lambda attempt: (attempt.token, attempt.id))
            if attempt.task in views  # it ended between two of these reads
        ]
        tenants = self.tenants()
        return SchedulerView(
            tasks=tuple(views[task.id] for task in ordered if task.id in views),
            nodes=nodes,
            running=with_waits(runs_at_seats(running, nodes), slots_of(nodes)),
            later=self._later(),
            ahead=self.schema() >= AHEAD_SINCE,
            shares={tenant.name: tenant.share for tenant in tenants},
            quotas={t.name: t.slots for t in tenants if t.slots != NO_LIMIT},
        )

    def tenants(self) -> tuple[Tenant, ...]:
        """Tenants of whom something is said, by name."""
        return self._rows(Tenant, "ORDER BY name") if self.schema() >= 3 else ()

    def waiting_by_tenant(self) -> dict[str, tuple[int, int]]:
        """How many films of each tenant wait, and their bytes; some 50 ms for 100,000."""
        rows = self._fetch(
            "SELECT tenant, count(*), sum(source_bytes) FROM job"
            " WHERE state IN (SELECT value FROM json_each(?)) GROUP BY tenant",
            (json.dumps(WAITING_JOB_STATES),),
        )
        return {str(tenant): (int(count), int(size)) for tenant, count, size in rows}

    def speeds(self) -> dict[str, dict[str, int]]:
        """Cost units a second of each node by profile, as its latest attempts went.

        Of its chips under names of their own (`ledger.device_slots.speed_key`).
        """
        device = "latest.device" if self.schema() >= 3 else "''"
        also = ", device" if self.schema() >= 3 else ""
        found: dict[str, dict[str, int]] = {}
        for node in self._rows(Node, "ORDER BY node"):
            rows = self._fetch(
                "SELECT job.profile, sum(task.cost) * 1000 / sum(latest.encode_ms), "  # noqa: S608 - our own words
                f" {device} AS device FROM ("
                f"  SELECT * FROM (SELECT job, task, encode_ms{also} FROM attempt"
                "    WHERE node = ?1 AND state = 'accepted' ORDER BY rowid DESC LIMIT ?2)"
                f"  UNION ALL SELECT * FROM (SELECT job, task, encode_ms{also} FROM attempt"
                "    WHERE node = ?1 AND state = 'kept' ORDER BY rowid DESC LIMIT ?2)) AS latest"
                " JOIN job ON job.id = latest.job JOIN task ON task.id = latest.task"
                # What sound and assembly cost is told in no unit of pictures.
                " WHERE latest.encode_ms > 0 AND task.cost > 0 AND task.kind IN ('whole', 'chunk')"
                " GROUP BY job.profile, iif(device = 'cpu', '', device)",
                (node.node, MEASURED_ATTEMPTS),
            )
            found[node.node] = {
                speed_key(str(profile), str(device)): int(speed) for profile, speed, device in rows
            }
        return found

    def tasks_named(self, tasks: Sequence[str]) -> dict[str, Task]:
        """These tasks by their ids, those that are there."""
        rest = "WHERE id IN (SELECT value FROM json_each(?))"
        return {task.id: task for task in self._rows(Task, rest, (json.dumps(list(tasks)),))}

    def states_of(self, jobs: Sequence[str]) -> dict[str, str]:
        """The states of these jobs, of those that are there."""
        rows = self._fetch(
            "SELECT id, state FROM job WHERE id IN (SELECT value FROM json_each(?))",
            (json.dumps(list(jobs)),),
        )
        return {str(job): str(state) for job, state in rows}

    def attempt_states(self, attempts: Sequence[str]) -> dict[str, str]:
        """The states of these attempts, of those that are there."""
        rows = self._fetch(
            "SELECT id, state FROM attempt WHERE id IN (SELECT value FROM json_each(?))",
            (json.dumps(list(attempts)),),
        )
        return {str(attempt): str(state) for attempt, state in rows}

    def may_plan_early(self, job: Job, ahead: int) -> bool:
        """Whether a job that is not in the ledger yet is the next one that its owner plans.

        No other waits for its plan, and fewer than `ahead` tasks of the owner are ready.
        """
        if self.schema() < PLANNED_AT_ONCE:
            return False
        ready, waits = self._value(
            "SELECT (SELECT count(*) FROM task WHERE owner = ?1 AND state = 'ready'),"
            " EXISTS (SELECT 1 FROM job WHERE owner = ?1 AND state = 'queued' AND planned = 0"
            "  AND id <> ?2)"
            " OR EXISTS (SELECT 1 FROM job WHERE owner = ?1 AND state = 'planning')",
            (job.owner, job.id),
        )
        return not waits and int(ready) < ahead

    def finished_parts(self, owner: str, limit: int = 100) -> list[tuple[str, str]]:
        """Attempts at parts of an owner's films that it has not taken yet, each with its job, by the films' age."""
        # The results of whole films move their jobs on from `running`.
        rows = self._fetch(
            "SELECT attempt.id, attempt.job FROM job JOIN attempt ON attempt.job = job.id"
            " WHERE job.owner = ? AND job.state = 'running' AND attempt.state = 'finished'"
            " ORDER BY job.seq, attempt.number LIMIT ?",
            (owner, limit),
        )
        return [(str(attempt), str(job)) for attempt, job in rows]

    def to_plan(self, owner: str, ahead: int, *, oldest: bool = False) -> tuple[Job, ...]:
        """An owner's jobs to plan next: by priority and age, with `oldest` the oldest of each kind first.

        Of each kind (tenant, profile, place) only as many as keep `ahead` of its tasks ready: what waits
        for a node, a label or a quota holds up nobody else.  Without profiles' texts.
        """
        ready = {
            (str(tenant), int(definition), str(place)): int(count)
            for tenant, definition, place, count in self._fetch(
                "SELECT job.tenant, job.definition, job.place, count(*)"
                " FROM task JOIN job ON job.id = task.job"
                " WHERE task.owner = ? AND task.state = 'ready' GROUP BY 1, 2, 3",
                (owner,),
            )
        }
        waiting = (
            "WHERE owner = ? AND tenant = ? AND definition = ? AND place = ? AND state = 'queued'"
            " AND planned = 0 ORDER BY"
        )
        found: list[Job] = []
        for kind in self._kinds_to_plan(owner):
            room = ahead - ready.get(kind, 0)
            if room <= 0:
                continue
            if oldest:
                found += self._rows(Job, f"{waiting} seq LIMIT 1", (owner, *kind))
            found += self._rows(Job, f"{waiting} priority DESC, seq LIMIT ?", (owner, *kind, room))
        ordered = sorted(found, key=lambda job: (-job.priority, job.seq))
        first = sorted(found, key=lambda job: job.seq)[: int(oldest)]
        return tuple({job.id: job for job in (*first, *ordered)}.values())[:ahead]

    def _kinds_to_plan(self, owner: str) -> list[tuple[str, int, str]]:
        """What an owner's unplanned jobs ask for, each once; found by skipping through their index."""
        found: list[tuple[str, int, str]] = []
        last: tuple[str, int, str] = ("", -1, "")
        while len(found) < KINDS_MAX:
            rows = self._fetch(
                "SELECT tenant, definition, place FROM job WHERE owner = ? AND state = 'queued'"
                " AND planned = 0 AND (tenant, definition, place) > (?, ?, ?)"
                " ORDER BY tenant, definition, place LIMIT 1",
                (owner, *last),
            )
            if not rows:
                break
            ((tenant, definition, place),) = rows
            last = str(tenant), int(definition), str(place)
            found.append(last)
        return found

    def works_for(self, owner: str) -> bool:
        """Whether somebody works on films of this owner now, itself or another."""
        return bool(
            self._value(
                "SELECT EXISTS (SELECT 1 FROM job WHERE owner = ?"
                " AND state IN ('planning', 'running', 'verifying', 'publishing'))",
                (owner,),
            )
        )

    def planned_before(self, job: Job) -> int:
        """How many films its owner plans before this one, counted up to a bound."""
        return int(
            self._value(
                "SELECT count(*) FROM (SELECT 1 FROM job WHERE owner = ?1 AND state = 'queued'"
                " AND planned = 0 AND (priority > ?2 OR (priority = ?2 AND seq < ?3)) LIMIT ?4)",
                (job.owner, job.priority, job.seq, BEFORE_COUNTED_MAX),
            )
        )

    def active_attempts(self, *, node: str | None = None) -> tuple[Attempt, ...]:
        """Leases that are out, of one node or of all."""
        if node is None:
            return self._rows(Attempt, "WHERE state = 'leased' ORDER BY id")
        return self._rows(Attempt, "WHERE node = ? AND state = 'leased' ORDER BY id", (node,))

    def _task_views(self, tasks: Sequence[Task]) -> dict[str, TaskView]:
        """Tasks with what their jobs tell of them."""
        place = "place" if self.schema() >= 3 else "'[]'"
        sql = (
            f"SELECT id, tenant, profile, source_bytes, {place} FROM job"  # noqa: S608 - our own words
            " WHERE id IN (SELECT value FROM json_each(?))"
        )
        rows = self._fetch(
            sql,
            (json.dumps(sorted({task.job for task in tasks})),),
        )
        jobs = {
            str(job): JobFacts(str(tenant), str(profile), int(size), _terms(str(terms)))
            for job, tenant, profile, size, terms in rows
        }
        return {
            task.id: task_view(task, jobs[task.job], self._disk_full(task))
            for task in tasks
            if task.job in jobs
        }

    def _disk_full(self, task: Task) -> int:
        """How many of the tries that count ended because a disk was full; a retry begins to count anew."""
        if not task.tries:
            return 0
        return int(
            self._value(
                "SELECT count(*) FROM (SELECT error_code FROM attempt WHERE task = ?"
                " AND state IN ('failed', 'expired', 'refused') ORDER BY number DESC LIMIT ?)"
                " WHERE error_code IN (SELECT value FROM json_each(?))",
                (task.id, task.tries, json.dumps(sorted(DISK_FULL))),
            )
        )

    def _later(self) -> int:
        return int(
            self._value(
                "SELECT count(*) FROM (SELECT 1 FROM job"
                " WHERE state = 'queued' AND planned = 0 LIMIT ?)",
                (LATER_COUNTED_MAX,),
            )
        )

    def _ready_needs(self) -> list[str]:
        found: list[str] = []
        while len(found) < NEEDS_MAX:
            after = self._value(
                "SELECT min(needs) FROM task WHERE state = 'ready' AND needs > ?",
                (found[-1] if found else "",),
            )
            if after is None:
                break
            found.append(str(after))
        return found


@lru_cache(maxsize=256)
def _terms(text: str) -> tuple[str, ...]:
    # The same few places come again and again.
    return tuple(json.loads(text))


def _node_view(member: Member, node: Node, busy: int) -> NodeView:
    return NodeView(
        node=node.node,
        name=member.name,
        role=member.role,
        encoders=node.encoders,
        ffmpeg=node.ffmpeg,
        slots=node.slots,
        busy=busy,
        cpus=node.cpus,
        devices=from_text(node.device_slots),
        closed=f"is quarantined: it {node.quarantine}" if node.quarantine else "",
    )
