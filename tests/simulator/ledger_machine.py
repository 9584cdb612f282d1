"""A simulated node's ledger: the real one on SQLite in memory, under the eyes of a model of leases and jobs."""

from collections.abc import Sequence
from random import Random

from ledger.commands import (
    AcceptResult,
    Command,
    ExpireLeases,
    FailAttempt,
    FinishAttempt,
    GrantLeases,
    RefuseResult,
    ReleaseLeases,
    SpeculateLeases,
    unseal,
)
from ledger.invariants import violations
from ledger.jobs import FINAL_JOB_STATES, Attempt, Job, Task
from ledger.queries import Reader
from ledger.store_sqlite import LedgerStore, SqliteRows
from mesh.ids import RaftId
from mesh.log import Entry
from mesh.membership import MemberView
from tests.simulator.checks import Violation

_CHECK_ONE_IN = 8
_LIVE = frozenset({"leased", "finished", "accepted"})


class LedgerMachine:
    """A replica on SQLite, mostly in memory; its durable image is the serialized database."""

    def __init__(self, image: bytes | None, random: Random, path: str = ":memory:") -> None:
        self._store = LedgerStore(path)
        self._random = random
        if image is not None:
            connection = self._store.connection
            connection.deserialize("main", image)
            index, term, checksum = connection.execute(
                "SELECT applied_index, applied_term, checksum FROM state"
            ).get
            self._store.applied_index, self._store.applied_term = index, term
            self._store.checksum = checksum
            self._store.schema = connection.pragma("user_version")
        self.reader = Reader(self._store.connection)
        self._judge = Judge(self.reader)

    @property
    def applied_index(self) -> int:
        return self._store.applied_index

    def apply(self, entries: Sequence[Entry]) -> list[tuple[str, int]]:
        effective: list[tuple[str, int]] = []
        for entry in entries:
            command = unseal(entry.data)[1] if entry.kind == "command" else None
            before = self._judge.before(command)
            for _, command_id, outcome in self._store.apply([entry]):
                if outcome is None or command_id is None or command is None:
                    continue
                # A repeated command is answered with the outcome of the first time, and its index.
                if outcome.index == entry.index:
                    effective.append((command_id, entry.index))
                    if outcome.ok:
                        self._judge.after(command, before)
        if self._random.randrange(_CHECK_ONE_IN) == 0:
            self.verify()
        return effective

    def verify(self) -> None:
        found = violations(SqliteRows(self._store.connection))
        if found:
            raise Violation(f"ledger at {self.applied_index}: {'; '.join(found[:4])}")
        self._judge.jobs()

    def members(self) -> tuple[MemberView, ...]:
        return tuple(
            MemberView(raft_id=RaftId(member.raft_id), role=member.role)
            for member in self.reader.members(active_only=True)
        )

    def checksum(self) -> str:
        return self._store.checksum.hex()

    def image(self) -> bytes:
        return bytes(self._store.connection.serialize("main"))

    def done(self, command_id: str) -> bool:
        return self.reader.outcome(command_id) is not None

    def close(self) -> None:
        self._store.close()


_Before = dict[str, tuple[Attempt, Task, Job]]


class Judge:
    """What a lease and a job are, said once more and from outside the code that applies commands."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._seen: dict[str, str] = {}

    def before(self, command: Command | None) -> _Before:
        """The attempts that a command names, with their tasks and jobs, before it is applied."""
        found: _Before = {}
        for attempt_id in _named(command):
            attempt = self._reader.attempt(attempt_id)
            if attempt is not None:
                task, job = self._reader.task(attempt.task), self._reader.job(attempt.job)
                assert task is not None
                assert job is not None
                found[attempt_id] = attempt, task, job
        return found

    def after(self, command: Command, before: _Before) -> None:
        """Lease fencing: only who holds the newest lease of a task moves it, and each lease ends once."""
        if isinstance(command, GrantLeases | SpeculateLeases):
            for lease in command.leases:
                self._granted(lease.attempt)
            return
        for attempt_id, (attempt, task, job) in before.items():
            # Of a part two leases may run; an older one that still does is the other of them.
            holds = self._newest(task.id) == attempt_id or (
                task.kind == "chunk" and attempt.state in _LIVE
            )
            if isinstance(command, FinishAttempt | AcceptResult) and not (
                command.token == attempt.token and holds
            ):
                raise Violation(
                    f"lease fencing: {command} is taken, the newest lease of {task.id} is "
                    f"{self._newest(task.id)}"
                )
            # A command may name both attempts at a part, of which one is over.
            moved = any(t.id == task.id and a.state in _LIVE for a, t, _ in before.values())
            if moved:
                continue
            # The other parts of a film may have moved its job meanwhile.
            now = self._reader.task(task.id), self._reader.job(job.id)
            if now[0] != task or (now[1] != job and task.kind == "whole"):
                raise Violation(
                    f"lease fencing: {attempt_id} was {attempt.state}; {type(command).__name__} "
                    f"moves its task from {task} to {now[0]}"
                )

    def _granted(self, attempt_id: str) -> None:
        attempt = self._reader.attempt(attempt_id)
        if attempt is None:
            return  # its task was not ready any more
        others = [a for a in self._reader.attempts(attempt.job) if a.task == attempt.task]
        tokens = [a.token for a in others if a.id != attempt_id and a.number < attempt.number]
        if tokens and max(tokens) >= attempt.token:
            raise Violation(f"lease fencing: the token of {attempt} does not grow")

    def _newest(self, task: str) -> str:
        found = self._reader.task(task)
        assert found is not None
        attempts = [a for a in self._reader.attempts(found.job) if a.task == task]
        return max(attempts, key=lambda a: a.number).id

    def jobs(self) -> None:
        """Job conservation: none vanishes, and what is over stays as it ended."""
        now: dict[str, str] = {job.id: job.state for job in self._reader.jobs(limit=1_000)}
        for job, state in self._seen.items():
            if job not in now or (state in FINAL_JOB_STATES and now[job] != state):
                raise Violation(f"job conservation: {job} was {state} and is {now.get(job)}")
        self._seen = now


def _named(command: Command | None) -> tuple[str, ...]:
    match command:
        case FinishAttempt() | FailAttempt() | AcceptResult() | RefuseResult():
            return (command.attempt,)
        case ExpireLeases() | ReleaseLeases():
            return command.attempts
        case _:
            return ()
