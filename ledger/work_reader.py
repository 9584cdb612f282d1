"""What the scheduler decides by, as far as the ledger knows: ready tasks, nodes, leases, speeds."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Final

from ledger.jobs import Attempt, Job, Member, Node, Task
from ledger.lines import with_waits
from ledger.row_reader import RowReader
from ledger.scheduler_view import NodeView, RunningView, SchedulerView, TaskView, task_view

READY_TASKS_MAX: Final = 512
"""Ready tasks of each kind of need that one round of the scheduler looks at: more than any mesh has free slots."""
NEEDS_MAX: Final = 64
"""Different needs (lists of encoders) that one round looks at: profiles have a handful."""
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
        running = [
            RunningView(attempt=attempt.id, node=attempt.node, task=views[attempt.task])
            for attempt in sorted(active, key=lambda attempt: (attempt.token, attempt.id))
            if attempt.task in views  # it ended between two of these reads
        ]
        return SchedulerView(
            tasks=tuple(views[task.id] for task in ordered if task.id in views),
            nodes=nodes,
            running=with_waits(running, {node.node: node.slots for node in nodes}),
            later=self._later(),
            ahead=self.schema() >= AHEAD_SINCE,
        )

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
                " WHERE latest.encode_ms > 0 AND task.cost > 0 GROUP BY job.profile",
                (node.node, MEASURED_ATTEMPTS),
            )
            found[node.node] = {str(profile): int(speed) for profile, speed in rows}
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

    def is_to_plan(self, job: str) -> bool:
        """Whether a job waits for its plan, or for the end of its planning."""
        return bool(
            self._value(
                "SELECT EXISTS (SELECT 1 FROM job WHERE id = ? AND planned = 0"
                " AND state IN ('queued', 'planning'))",
                (job,),
            )
        )

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
        ids = json.dumps(sorted({task.job for task in tasks}))
        jobs = {
            str(job): (str(tenant), str(profile), int(size))
            for job, tenant, profile, size in self._fetch(
                "SELECT id, tenant, profile, source_bytes FROM job"
                " WHERE id IN (SELECT value FROM json_each(?))",
                (ids,),
            )
        }
        return {task.id: task_view(task, *jobs[task.job]) for task in tasks if task.job in jobs}

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
