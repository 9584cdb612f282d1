"""One command being applied: its rows, its place in the log, and the history it writes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ledger.commands import Outcome, fencing_token
from ledger.jobs import SEQ_BITS, Event, Job, Mesh
from ledger.rows import Rows

EVENTS_PER_COMMAND_BITS = 14
"""Event ids are log index * 2^14 + number: a command of a thousand jobs writes a few thousand."""


def first_event(job: Job) -> Event:
    """The first line of a job's history, which the job itself tells."""
    index, place = job.seq >> SEQ_BITS, job.seq & (1 << SEQ_BITS) - 1
    return Event(
        id=index << EVENTS_PER_COMMAND_BITS | place,
        log_index=index,
        at_ms=job.created_at_ms,
        kind="job.queued",
        job=job.id,
        node=job.owner,
        what="",
    )


class RefusedError(Exception):
    """The command is refused: nothing of it is applied, its outcome says why."""

    def __init__(self, code: str, what: str, todo: str = "") -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.todo = todo


@dataclass(slots=True, kw_only=True)
class Change:
    """Context of one command; `at_ms` is the proposer's wall clock, kept for people."""

    rows: Rows
    index: int
    at_ms: int
    proposer: str
    events: int = field(default=0)

    def mesh(self) -> Mesh:
        """The mesh.  Raises `RefusedError` before it was formed."""
        found = self.rows.where(Mesh)
        if not found:
            raise RefusedError("no_mesh", "the ledger belongs to no mesh yet")
        return found[0]

    def token(self) -> int:
        """The fencing token of leases granted by this command."""
        return fencing_token(self.mesh().epoch, self.index)

    def tell(self, kind: str, *, job: str = "", node: str = "", what: str = "") -> None:
        """Adds a line of history."""
        assert self.events < 1 << EVENTS_PER_COMMAND_BITS
        self.rows.put(
            Event(
                id=(self.index << EVENTS_PER_COMMAND_BITS) | self.events,
                log_index=self.index,
                at_ms=self.at_ms,
                kind=kind,
                job=job,
                node=node,
                what=what,
            )
        )
        self.events += 1

    def tell_each(self, kind: str, *, jobs: Sequence[str], what: str = "") -> None:
        """Adds the same line to the history of each job."""
        if not jobs:
            return
        first = (self.index << EVENTS_PER_COMMAND_BITS) | self.events
        self.events += len(jobs)
        assert self.events <= 1 << EVENTS_PER_COMMAND_BITS
        line = Event(
            id=first,
            log_index=self.index,
            at_ms=self.at_ms,
            kind=kind,
            job="",
            node="",
            what=what,
        )
        self.rows.put_like(line, ("id", "job"), enumerate(jobs, first))

    def first_seq(self) -> int:
        """The seq of the first job that this command could make: those below it are older."""
        return self.index << SEQ_BITS

    def done(self) -> Outcome:
        """The outcome of a command that was applied."""
        return Outcome(ok=True, index=self.index)
