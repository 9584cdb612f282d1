"""What the scheduler decides by, as far as the ledger knows: ready tasks, nodes, leases, speeds."""

import json
from collections import Counter
from functools import lru_cache
from typing import Final, NamedTuple

from ledger.jobs import DISK_FULL, Attempt, Job, Member, Node, Task, Tenant
from ledger.orders import NO_LIMIT
from ledger.row_reader import RowReader
from ledger.scheduler import NodeView, RunningView, SchedulerView, TaskView

READY_TASKS_MAX: Final = 512
"""Ready tasks of each kind of need that one round of the scheduler looks at: more than any mesh has free slots."""
NEEDS_MAX: Final = 64
"""Different needs (lists of encoders) that one round looks at: profiles have a handful."""
KINDS_MAX: Final = 256
"""Kinds of unplanned jobs (tenant, profile, place) that an owner looks at: two look-ups each."""
OLDEST_LOOKED_AT: Final = 16
"""The oldest ready tasks, which a round looks at however low their priority is."""
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
        active = self._rows(Attempt, "WHERE state = 'leased' ORDER BY id")
        busy = Counter(attempt.node for attempt in active)
        reported = {node.node: node for node in self._rows(Node, "ORDER BY node")}
        members = self._rows(Member, "WHERE state = 'active' ORDER BY name")
        jobs = self._jobs_of([task.job for task in tasks.values()])
        ordered = sorted(tasks.values(), key=lambda task: (-task.priority, task.seq))
        tenants = self.tenants()
        return SchedulerView(
            tasks=tuple(_task_view(t, self._disk_full(t), jobs[t.job]) for t in ordered),
            nodes=tuple(
                _node_view(member, reported[member.node], busy[member.node])
                for member in members
                if member.node in reported
            ),
            running=self._running(active),
            later=self._later(),
            shares={tenant.name: tenant.share for tenant in tenants},
            quotas={t.name: t.slots for t in tenants if t.slots != NO_LIMIT},
        )

    def tenants(self) -> tuple[Tenant, ...]:
        """Tenants of whom something is said, by name."""
        return self._rows(Tenant, "ORDER BY name") if self.schema() >= 3 else ()

    def speeds(self) -> dict[str, dict[str, int]]:
        """Cost units a second of each node by profile, as its latest attempts went."""
        found: dict[str, dict[str, int]] = {}
        for node in self._rows(Node, "ORDER BY node"):
            rows = self._fetch(
                "SELECT job.profile, sum(task.cost) * 1000 / sum(latest.encode_ms) FROM ("
                "  SELECT * FROM (SELECT job, task, encode_ms FROM attempt"
                "    WHERE node = ?1 AND state = 'accepted' ORDER BY rowid DESC LIMIT ?2)"
                "  UNION ALL SELECT * FROM (SELECT job, task, encode_ms FROM attempt"
                "    WHERE node = ?1 AND state = 'kept' ORDER BY rowid DESC LIMIT ?2)) AS latest"
                " JOIN job ON job.id = latest.job JOIN task ON task.id = latest.task"
                # What sound and assembly cost is told in no unit of pictures.
                " WHERE latest.encode_ms > 0 AND task.cost > 0 AND task.kind IN ('whole', 'chunk')"
                " GROUP BY job.profile",
                (node.node, MEASURED_ATTEMPTS),
            )
            found[node.node] = {str(profile): int(speed) for profile, speed in rows}
        return found

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

    def _running(self, active: tuple[Attempt, ...]) -> tuple[RunningView, ...]:
        profiles = self._jobs_of([attempt.job for attempt in active])
        costs = {
            attempt.id: self._value("SELECT cost FROM task WHERE id = ?", (attempt.task,))
            for attempt in active
        }
        return tuple(
            RunningView(
                attempt=attempt.id,
                node=attempt.node,
                cost=int(costs[attempt.id]),
                profile=profiles[attempt.job].profile,
                tenant=profiles[attempt.job].tenant,
            )
            for attempt in active
        )

    def _jobs_of(self, jobs: list[str]) -> dict[str, "_JobFacts"]:
        """What the scheduler wants to know of these jobs."""
        place = "place" if self.schema() >= 3 else "'[]'"
        sql = f"SELECT tenant, profile, source_bytes, {place} FROM job WHERE id = ?"  # noqa: S608 - our own words
        found: dict[str, _JobFacts] = {}
        for job in dict.fromkeys(jobs):
            tenant, profile, size, terms = self._value(sql, (job,))
            found[job] = _JobFacts(str(tenant), str(profile), int(size), _terms(str(terms)))
        return found

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


class _JobFacts(NamedTuple):
    tenant: str
    profile: str
    source_bytes: int
    place: tuple[str, ...]


@lru_cache(maxsize=256)
def _terms(text: str) -> tuple[str, ...]:
    # The same few places come again and again.
    return tuple(json.loads(text))


def _task_view(task: Task, disk_full: int, job: _JobFacts) -> TaskView:
    return TaskView(
        task=task.id,
        job=task.job,
        kind=task.kind,
        owner=task.owner,
        needs=task.needs,
        cost=task.cost,
        priority=task.priority,
        seq=task.seq,
        attempts=task.attempts,
        excluded=task.excluded,
        backoff_ms=task.backoff_ms,
        tenant=job.tenant,
        profile=job.profile,
        # Of a slice the share of the film is not known here; it is made for the worker's own disk.
        source_bytes=0 if task.kind == "chunk" else job.source_bytes,
        place=job.place,
        disk_full=disk_full,
    )


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
        closed=f"is quarantined: it {node.quarantine}" if node.quarantine else "",
    )
