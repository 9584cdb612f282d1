"""Reads of a replica: rows for the node, and `ledger query` for people.

Readers never write and never wait for the writer (WAL); each thread has a connection of its own.
"""

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import apsw

from ledger.change import EVENTS_PER_COMMAND_BITS, first_event
from ledger.commands import ENVELOPES, Outcome
from ledger.history_reader import HistoryReader
from ledger.job_filter import job_filters
from ledger.jobs import (
    OPEN_JOB_STATES,
    SEQ_BITS,
    Attempt,
    AttemptState,
    Definition,
    Event,
    Invitation,
    Job,
    JobState,
    Member,
    Mesh,
    Node,
    Task,
)
from ledger.order_reader import OrderReader
from ledger.row_reader import BUSY_MS
from ledger.work_reader import WorkReader
from mesh.errors import DamagedError, NotAllowedError, StorageError, UsageError

QUERY_MS: Final = 10_000
"""Longest time of a person's query."""
ROWS_MAX: Final = 100_000
CREATED_LOOKED_AT_MAX: Final = 10_000
"""Jobs since a time among which the oldest is looked for: a millisecond; of more, a page fills at once."""
QUERY_VALUE_BYTES_MAX: Final = 16 << 20
"""Longest text that a person's query may build: an entry of the log has 1 MiB."""
VIEWS: Final = (
    "jobs",
    "tasks",
    "attempts",
    "nodes",
    "files",
    "profiles",
    "tenants",
    "watches",
    "events",
    "members",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedState:
    """How far this replica is, and its rolling checksum there."""

    index: int
    term: int
    checksum: bytes


class Reader(WorkReader, OrderReader, HistoryReader):
    """Rows of the ledger, as of the moment of each call."""

    # --- the mesh -------------------------------------------------------------------------------

    def applied(self) -> AppliedState:
        """How far this replica is."""
        index, term, checksum = self._value(
            "SELECT applied_index, applied_term, checksum FROM state"
        )
        return AppliedState(index=index, term=term, checksum=checksum)

    def mesh(self) -> Mesh | None:
        """The mesh, once it is formed."""
        return self._one(Mesh, "", ())

    def members(self, *, active_only: bool = False) -> tuple[Member, ...]:
        """Members by name, the revoked and removed ones too unless asked otherwise."""
        return self._rows(
            Member, ("WHERE state = 'active' " if active_only else "") + "ORDER BY name"
        )

    def member(self, node: str) -> Member | None:
        """A member by node id."""
        return self._one(Member, "WHERE node = ?", (node,))

    def member_by_name(self, name: str) -> Member | None:
        """A member by node id, else by name, an active one first: a name may look like another's id."""
        by_id_first = "WHERE name = ?1 OR node = ?1 ORDER BY node = ?1 DESC, state"
        return self._one(Member, by_id_first, (name,))

    def invitation(self, invitation: str) -> Invitation | None:
        """An open invitation, with its secret verifier: never for a face."""
        return self._one(Invitation, "WHERE id = ?", (invitation,))

    def has_open_invitation(self, now_ms: int) -> bool:
        """Whether any invitation is neither used up nor expired."""
        return bool(
            self._value(
                "SELECT EXISTS (SELECT 1 FROM invitation WHERE expires_at_ms > ?)", (now_ms,)
            )
        )

    def nodes(self) -> tuple[Node, ...]:
        """What members reported of themselves."""
        return self._rows(Node, "ORDER BY node")

    def node(self, node: str) -> Node | None:
        """What one member reported of itself."""
        return self._one(Node, "WHERE node = ?", (node,))

    # --- jobs -----------------------------------------------------------------------------------

    def job(self, job: str) -> Job | None:
        """A job by its id, with the text of its profile."""
        found = self._with_profiles(self._rows(Job, "WHERE id = ?", (job,)))
        return found[0] if found else None

    def _with_profiles(self, jobs: Sequence[Job]) -> tuple[Job, ...]:
        """The jobs with the texts of their profiles, as those were when the jobs were submitted."""
        texts = {
            number: self._one(Definition, "WHERE id = ?", (number,))
            for number in {job.definition for job in jobs} - {0}
        }
        found = ((job, texts.get(job.definition)) for job in jobs)
        return tuple(job if d is None else replace(job, profile_json=d.text) for job, d in found)

    def jobs_like(self, beginning: str, limit: int = 2) -> tuple[Job, ...]:
        """Jobs whose ids begin like this."""
        return self._rows(
            Job,
            "WHERE id >= ?1 AND id < ?1 || char(0x10FFFF) ORDER BY id LIMIT ?2",
            (beginning, limit),
        )

    def jobs(
        self,
        *,
        state: JobState | None = None,
        node: str | None = None,
        since_ms: int | None = None,
        tenant: str | None = None,
        limit: int = 100,
        before_seq: int | None = None,
        until_ms: int | None = None,
        profile: str | None = None,
        folder: str | None = None,
    ) -> tuple[Job, ...]:
        """Jobs, newest first; `node` owns or worked on them, `before_seq` continues a page."""
        filters = job_filters(
            state=state,
            node=node,
            since_ms=since_ms,
            first_seq=None if since_ms is None else self._first_created_since(since_ms),
            tenant=tenant,
            before_seq=before_seq,
            until_ms=until_ms,
            profile=profile,
            folder=folder,
        )
        found = {j.seq: j for rest, v in filters for j in self._rows(Job, rest, (*v, limit))}
        return tuple(found[seq] for seq in sorted(found, reverse=True)[:limit])

    def _first_created_since(self, since_ms: int) -> int | None:
        """The least seq of the jobs that were made since then; None when they are too many to look.

        Proposers' clocks differ, so their order by time is not theirs by seq.  The first job of a
        command stands for all.
        """
        count, first = self._value(
            "SELECT count(*), coalesce(min(seq), 1 << 62) FROM"
            " (SELECT seq FROM job WHERE seq & 1023 = 0 AND created_at_ms >= ? LIMIT ?)",
            (since_ms, CREATED_LOOKED_AT_MAX + 1),
        )
        return int(first) if count <= CREATED_LOOKED_AT_MAX else None

    def changed_jobs(self, after_index: int, limit: int) -> tuple[Job, ...]:
        """Jobs that the history names behind this log index, new ones among them; by age."""
        told = self._rows(
            Job,
            "WHERE id IN (SELECT job FROM event WHERE id >= ? ORDER BY id LIMIT ?) ORDER BY seq",
            ((after_index + 1) << EVENTS_PER_COMMAND_BITS, limit),
        )
        new = self._rows(
            Job, "WHERE seq >= ? ORDER BY seq LIMIT ?", ((after_index + 1) << SEQ_BITS, limit)
        )
        found = {job.seq: job for job in (*told, *new)}
        return tuple(found[seq] for seq in sorted(found)[:limit])

    def count_by_state(self) -> dict[str, int]:
        """Number of jobs in each state that occurs."""
        found = self._fetch("SELECT state, count(*) FROM job GROUP BY state")
        return {str(state): int(count) for state, count in found}

    def jobs_of_owner(
        self, owner: str, states: Sequence[JobState], limit: int = 100
    ) -> tuple[Job, ...]:
        """An owner's oldest jobs in these states, with the texts of their profiles."""
        # A state at a time: together they would be sorted whole, or all of an owner's jobs walked.
        rest = "WHERE owner = ? AND state = ? ORDER BY seq LIMIT ?"
        found = [j for state in states for j in self._rows(Job, rest, (owner, state, limit))]
        return self._with_profiles(sorted(found, key=lambda job: job.seq)[:limit])

    def jobs_to_plan(self, owner: str, ahead: int, *, oldest: bool = False) -> tuple[Job, ...]:
        """An owner's jobs that wait for a plan, as `jobs_of_owner`: begun ones, then by priority and age.

        So many that `ahead` tasks of each kind are ready (`to_plan`), before schema 3 of all kinds
        together.  `oldest`: it is the turn of the oldest one, whatever its priority.
        """
        begun = self.jobs_of_owner(owner, ("planning",), ahead)
        if self.schema() >= 3:
            next_ones = self.to_plan(owner, ahead, oldest=oldest)
            return begun + self._with_profiles(next_ones[: ahead - len(begun)])
        limit = max(len(begun), ahead - self.count_ready_tasks(owner))
        waiting = "WHERE owner = ? AND state = 'queued' AND planned = 0 ORDER BY"
        first = self._rows(Job, f"{waiting} seq LIMIT 1", (owner,)) if oldest else ()
        rest = self._rows(Job, f"{waiting} priority DESC, seq LIMIT ?", (owner, limit - len(begun)))
        found = {job.id: job for job in (*first, *rest)}
        return begun + self._with_profiles(tuple(found.values())[: limit - len(begun)])

    def jobs_without_owner(self, limit: int) -> tuple[Job, ...]:
        """Jobs that nobody can go on with: their owner was revoked or removed."""
        found: list[Job] = []
        for member in self._rows(Member, "WHERE state <> 'active'"):
            found += self.jobs_of_owner(member.node, OPEN_JOB_STATES, limit - len(found))
        return tuple(found)

    def task(self, task: str) -> Task | None:
        """A task by its id."""
        return self._one(Task, "WHERE id = ?", (task,))

    def tasks(self, job: str) -> tuple[Task, ...]:
        """The tasks of a job, in their order."""
        return self._rows(Task, "WHERE job = ? ORDER BY seq", (job,))

    def count_ready_tasks(self, owner: str) -> int:
        """How many planned tasks of an owner wait for a worker."""
        return int(
            self._value("SELECT count(*) FROM task WHERE owner = ? AND state = 'ready'", (owner,))
        )

    def attempt(self, attempt: str) -> Attempt | None:
        """An attempt by its id."""
        return self._one(Attempt, "WHERE id = ?", (attempt,))

    def attempts(self, job: str, state: AttemptState | None = None) -> tuple[Attempt, ...]:
        """Every attempt of a job (in this state), in their order."""
        rest = "WHERE job = ?1 AND (?2 IS NULL OR state = ?2) ORDER BY token, number"
        return self._rows(Attempt, rest, (job, state))

    def film_frames(self, job: str) -> tuple[int, int] | None:
        """Of a film in pieces: frames of the parts that are done, and of all; None for a whole one."""
        total = self._value(
            "SELECT json_extract(plan_json, '$.frames') FROM job WHERE id = ?"
            " AND json_valid(plan_json) AND json_extract(plan_json, '$.split') IS NOT NULL",
            (job,),
        )
        # Two results of one part may be there, until the owner keeps one of them.
        done = self._value(
            "SELECT coalesce(sum(frames), 0) FROM (SELECT max(frames) AS frames FROM attempt"
            " WHERE job = ? AND state IN ('finished', 'kept') GROUP BY task)",
            (job,),
        )
        return (int(done), total) if isinstance(total, int) else None

    def events(self, job: str, limit: int = 1_000) -> tuple[Event, ...]:
        """The history of a job."""
        found = self._rows(Event, "WHERE job = ? ORDER BY id LIMIT ?", (job, limit))
        row = self.job(job)
        first = () if row is None else (first_event(row),)
        return tuple({event.id: event for event in (*first, *found)}.values())[:limit]

    def outcome(self, command_id: str) -> Outcome | None:
        """What a command gave, while it is remembered."""
        found = self._value("SELECT outcome FROM command WHERE id = ?", (command_id,))
        return None if found is None else ENVELOPES.decode(found)


# --- SQL of people --------------------------------------------------------------------------------

_BEHIND_VIEWS: Final = frozenset(
    {
        "job",
        "task",
        "attempt",
        "node",
        "profile",
        "watch",
        "event",
        "member",
        "definition",
        "tenant",
    }
)
"""What the views are made of; none of these holds a secret."""
_FUNCTIONS_REFUSED: Final = frozenset({"load_extension", "readfile", "writefile", "edit"})


def run_query(
    path: str, sql: str, max_rows: int = ROWS_MAX
) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Columns and rows of one SELECT over the documented views of a replica.

    Works while a node runs and when none does.  Raises `NotAllowedError` for anything but reading
    the views, `UsageError` for faulty SQL and for more than `max_rows` rows or 10 s,
    `StorageError` when there is no ledger.
    """
    connection = open_replica(path)
    try:
        connection.authorizer = _authorize
        connection.limit(apsw.SQLITE_LIMIT_LENGTH, QUERY_VALUE_BYTES_MAX)
        with _limited_time(connection):
            return _run(connection, sql, max_rows)
    except apsw.AuthError:
        raise NotAllowedError(
            "the query does more than read", f"SELECT from the views {', '.join(VIEWS)}"
        ) from None
    except apsw.InterruptError:
        raise UsageError(
            f"the query took longer than {QUERY_MS // 1000} s", "ask for less"
        ) from None
    except (apsw.SQLError, apsw.BindingsError, apsw.TooBigError, ValueError) as error:
        # ValueError: text that is no SQL at all, such as one with a NUL inside.
        if "because it is a view" in str(error):
            raise NotAllowedError("the query would change the ledger", "only SELECT it") from None
        if "not authorized" in str(error):  # functions are refused as an error of SQL
            raise NotAllowedError("the query calls what it may not", "only SELECT") from None
        raise UsageError(f"SQL: {error}", f"the views are {', '.join(VIEWS)}") from None
    except apsw.Error as error:
        raise StorageError(f"{path}: {error}", "check the file") from None
    finally:
        connection.close()


def _run(
    connection: apsw.Connection, sql: str, max_rows: int
) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    columns: list[tuple[str, ...]] = []

    def note(cursor: apsw.Cursor, _: str, __: object) -> bool:
        names = tuple(column[0] for column in cursor.description_full or ())
        if not cursor.is_readonly:
            raise apsw.AuthError("not a reading statement")
        if not names:  # a comment, or nothing
            return True
        if columns:
            raise UsageError("one statement at a time", "leave out the second one")
        columns.append(names)
        return True

    cursor = connection.cursor()
    cursor.exec_trace = note
    rows: list[tuple[Any, ...]] = []
    try:
        for row in cursor.execute(sql):
            if len(rows) >= max_rows:
                raise UsageError(f"more than {max_rows} rows", "add a LIMIT or aggregate")
            rows.append(tuple(row))
    finally:
        cursor.close(True)  # also with statements left that will not be run
    if not columns:
        raise UsageError("no statement in the query", 'try "SELECT state, count(*) FROM jobs"')
    return columns[0], rows


def open_replica(path: str) -> apsw.Connection:
    """A reading connection to a ledger, its node running or not.  Raises `StorageError`, `DamagedError`."""
    try:
        found = Path(path).is_file()
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}", "mend its permissions") from None
    if not found:
        raise StorageError(f"there is no ledger at {path}", "name the node's home with --home")
    try:
        connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
        connection.set_busy_timeout(BUSY_MS)
        connection.execute("SELECT applied_index FROM state").fetchall()
    except (apsw.CorruptError, apsw.NotADBError, apsw.SQLError) as error:
        todo = "restore it with mesh-cli ledger restore, or let the node join anew"
        raise DamagedError(f"{path} is no readable ledger: {error}", todo) from None
    except apsw.Error:
        # A folder that cannot be written has no place for WAL's shared memory; the file itself is
        # whole unless changes still wait in the write-ahead log, which then could not be seen.
        wal = Path(path + "-wal")
        if wal.is_file() and wal.stat().st_size:
            raise StorageError(
                f"{path} has changes in its write-ahead log that cannot be read from here",
                "run the query as the user of the node, or make the folder writable",
            ) from None
        try:
            uri = Path(path).absolute().as_uri() + "?immutable=1"
            flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
            connection = apsw.Connection(uri, flags=flags)
            connection.execute("SELECT applied_index FROM state").fetchall()
        except apsw.Error as error:
            raise StorageError(f"{path} is no readable ledger: {error}", "check the file") from None
    return connection


def _authorize(
    operation: int, first: str | None, second: str | None, _: str | None, inside: str | None
) -> int:
    """Reading the views, and base tables through them alone."""
    if operation in (apsw.SQLITE_SELECT, apsw.SQLITE_RECURSIVE):
        return apsw.SQLITE_OK
    if operation == apsw.SQLITE_READ:
        # Inside a view SQLite names the view; reads of the view itself name it as the table, and
        # `count(*)` of a common table expression names no column of any table.
        # A common table expression may borrow a view's name, so the tables are checked as well.
        # Counting rows reads no column of the table behind and names no view.
        behind = first in _BEHIND_VIEWS and (inside in VIEWS or not second)
        allowed = first in VIEWS or not first or behind
        return apsw.SQLITE_OK if allowed else apsw.SQLITE_DENY
    if operation == apsw.SQLITE_FUNCTION:
        refused = (second or "").lower() in _FUNCTIONS_REFUSED
        return apsw.SQLITE_DENY if refused else apsw.SQLITE_OK
    return apsw.SQLITE_DENY


@contextmanager
def _limited_time(connection: apsw.Connection) -> Generator[None, None, None]:
    stop = threading.Event()
    timer = threading.Timer(QUERY_MS / 1000, stop.set)
    timer.daemon = True
    timer.start()
    handler: Callable[[], bool] = stop.is_set
    connection.set_progress_handler(handler, 10_000)
    try:
        yield
    finally:
        timer.cancel()
