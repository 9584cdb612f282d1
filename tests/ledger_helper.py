"""A ledger in memory that tests command, and the values that they command it with."""

from collections.abc import Sequence
from typing import Any

from ledger import commands as c
from ledger.invariants import violations
from ledger.queries import Reader
from ledger.schema import SCHEMA_VERSION
from ledger.store_sqlite import LedgerStore, SqliteRows
from ledger.submissions import JobSpec
from mesh.log import Entry

REPORT = c.AttemptReport(
    command_line='["ffmpeg"]',
    stderr_tail="",
    encoder="libsvtav1",
    ffmpeg="7.1",
    started_at_ms=1,
    fetch_ms=2,
    encode_ms=3,
    verify_ms=4,
    fetched_bytes=5,
    frames=6,
)


def spec(node: str, **values: Any) -> c.MemberSpec:
    given: dict[str, Any] = {
        "node": node,
        "raft_id": f"{node}.00000001",
        "public_key": node.encode().ljust(32, b"\0"),
        "name": node,
        "role": "full",
    }
    return c.MemberSpec(**(given | values))


def node_report(node: str, **values: Any) -> c.ReportNode:
    given: dict[str, Any] = {
        "node": node,
        "ffmpeg": "7.1",
        "encoders": ("libsvtav1", "libx264"),
        "slots": 2,
        "cpus": 8,
        "platform": "Linux",
        "version": "0.1",
        "devices": "[]",
    }
    return c.ReportNode(**(given | values))


def job_spec(job: str, **values: Any) -> JobSpec:
    given: dict[str, Any] = {
        "id": job,
        "owner": "anna",
        "source": f"/films/{job}.mkv",
        "source_bytes": 1_000,
        "source_mtime_ns": 1,
        "source_inode": 2,
        "output": f"/films/{job}.mp4",
        "overwrite": False,
        "profile": "av1",
        "profile_json": "{}",
        "priority": 0,
        "tenant": "",
        "split": False,
    }
    return JobSpec(**(given | values))


def films_of(specs: Sequence[JobSpec]) -> c.SubmitFilms:
    """The same jobs in columns, with what all have in common from the first."""
    first = specs[0]
    return c.SubmitFilms(
        owner=first.owner,
        profile=first.profile,
        profile_json=first.profile_json,
        overwrite=first.overwrite,
        priority=first.priority,
        tenant=first.tenant,
        split=first.split,
        ids=tuple(spec.id for spec in specs),
        sources=tuple(spec.source for spec in specs),
        source_bytes=tuple(spec.source_bytes for spec in specs),
        source_mtimes_ns=tuple(spec.source_mtime_ns for spec in specs),
        source_inodes=tuple(spec.source_inode for spec in specs),
        outputs=tuple(spec.output for spec in specs),
    )


def plan_of(job: str, *tasks: c.TaskSpec, **values: Any) -> c.PlanJob:
    given: dict[str, Any] = {
        "job": job,
        "source_digest": "d" * 64,
        "source_bytes": 1_000,
        "probe_json": "{}",
        "plan_json": "{}",
        "tasks": tasks or (task_spec(job),),
    }
    return c.PlanJob(**(given | values))


def task_spec(job: str, **values: Any) -> c.TaskSpec:
    given: dict[str, Any] = {"id": f"{job}-t", "kind": "whole", "needs": ("libsvtav1",), "cost": 9}
    return c.TaskSpec(**(given | values))


def invitation(name: str, **values: Any) -> c.CreateInvitation:
    given: dict[str, Any] = {"id": name, "key": b"k" * 32, "uses": 1, "expires_at_ms": 10**6}
    return c.CreateInvitation(**(given | values))


def grant(*leases: tuple[str, str, str]) -> c.GrantLeases:
    """Leases as (task, attempt, node)."""
    return c.GrantLeases(
        leases=tuple(c.Lease(task=t, attempt=a, node=n) for t, a, n in leases), granted_at_ms=7
    )


def entry(index: int, command: c.Command, command_id: str = "", at_ms: int = 1_000) -> Entry:
    data = c.seal(
        command,
        command_id=command_id or f"c{index}",
        proposer="anna",
        proposed_at_ms=at_ms,
        cause="test",
    )
    return Entry(index, 1, "command", data)


class Ledger:
    """Commands go in one at a time; after each, whatever must always hold is checked."""

    def __init__(self, path: str = ":memory:") -> None:
        self.store = LedgerStore(path)
        self.reader = Reader(self.store.connection)
        self.now_ms = 1_000

    def do(self, command: c.Command, command_id: str = "") -> c.Outcome:
        """Applies a command as the next entry and gives its outcome."""
        outcome = self.put(command, command_id)
        self.check()
        return outcome

    def put(self, command: c.Command, command_id: str = "") -> c.Outcome:
        """The same without the look at all rows, which takes as long as there are many."""
        index = self.store.applied_index + 1
        ((_, _, outcome),) = self.store.apply([entry(index, command, command_id, self.now_ms)])
        assert outcome is not None
        return outcome

    def check(self) -> None:
        """Whatever must always hold does."""
        assert violations(SqliteRows(self.store.connection)) == []

    def must(self, command: c.Command) -> int:
        """Applies a command that has to succeed; its index."""
        outcome = self.do(command)
        assert outcome.ok, outcome
        return outcome.index

    def refused(self, command: c.Command) -> str:
        """Applies a command that has to be refused, without a trace; the code."""
        before = self.dump(), self.store.checksum
        outcome = self.do(command)
        assert not outcome.ok
        assert outcome.what
        assert (self.dump(), self.store.checksum) == before
        return outcome.code

    def dump(self) -> dict[str, list[tuple[Any, ...]]]:
        """All rows but the remembered commands and the applied index."""
        return dump(self.store)

    def job_state(self, job: str) -> str:
        found = self.reader.job(job)
        assert found is not None
        return found.state

    def token(self, attempt: str) -> int:
        found = self.reader.attempt(attempt)
        assert found is not None
        return found.token

    # --- ways into a state --------------------------------------------------------------------

    def formed(self, *others: str) -> "Ledger":
        """A mesh of anna and others, all of whom have reported."""
        self.must(c.FormMesh(mesh="m" * 32, founder=spec("anna"), schema=SCHEMA_VERSION))
        self.must(node_report("anna"))
        for other in others:
            self.must(c.AddMember(member=spec(other), invitation=None))
            self.must(node_report(other))
        return self

    def submitted(self, *jobs: str, **values: Any) -> "Ledger":
        self.must(c.SubmitJobs(jobs=tuple(job_spec(job, **values) for job in jobs)))
        return self

    def planned(self, *jobs: str, **values: Any) -> "Ledger":
        self.submitted(*jobs, **values)
        for job in jobs:
            self.must(c.StartPlanning(job=job))
            self.must(plan_of(job))
        return self

    def leased(self, job: str, attempt: str, node: str) -> int:
        """Leases a planned job's task; the token."""
        self.must(grant((f"{job}-t", attempt, node)))
        return self.token(attempt)

    def finish(self, attempt: str, token: int | None = None, **values: Any) -> c.FinishAttempt:
        given: dict[str, Any] = {
            "attempt": attempt,
            "token": self.token(attempt) if token is None else token,
            "result_bytes": 77,
            "result_digest": "e" * 64,
            "result_json": '{"frames": 24, "duration_ms": 1000}',
            "report": REPORT,
        }
        return c.FinishAttempt(**(given | values))

    def fail(self, attempt: str, token: int | None = None, **values: Any) -> c.FailAttempt:
        given: dict[str, Any] = {
            "attempt": attempt,
            "token": self.token(attempt) if token is None else token,
            "node": "anna",
            "failure": "transient",
            "code": "ffmpeg",
            "what": "it broke",
            "todo": "mend it",
            "backoff_ms": 0,
            "report": REPORT,
        }
        return c.FailAttempt(**(given | values))

    def accept(self, job: str, attempt: str, **values: Any) -> c.AcceptResult:
        given: dict[str, Any] = {
            "job": job,
            "attempt": attempt,
            "token": self.token(attempt),
            "output": f"/films/{job}.mp4",
            "result_bytes": 77,
            "result_digest": "e" * 64,
        }
        return c.AcceptResult(**(given | values))

    def refuse(self, job: str, attempt: str, **values: Any) -> c.RefuseResult:
        given: dict[str, Any] = {
            "job": job,
            "attempt": attempt,
            "token": self.token(attempt),
            "code": "digest",
            "what": "not what was promised",
            "todo": "",
        }
        return c.RefuseResult(**(given | values))

    def give_up(self, job: str) -> c.FailJob:
        return c.FailJob(job=job, node="anna", code="input", what="no film", todo="look")


def dump(store: LedgerStore) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every replicated table."""
    names = store.connection.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT IN ('command', 'state')"
        " ORDER BY name"
    ).fetchall()
    return {
        str(name): store.connection.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall()
        for (name,) in names
    }
