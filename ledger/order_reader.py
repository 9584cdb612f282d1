"""What orders about many jobs are carried out by, what was converted, and what may be forgotten."""

from collections.abc import Sequence
from typing import Final

from ledger.job_filter import below
from ledger.jobs import (
    JOB_TRANSITIONS,
    OPEN_JOB_STATES,
    RESULT_OF,
    Converted,
    Job,
    JobState,
    Profile,
    Sweep,
    Watch,
)
from ledger.orders import Action
from ledger.row_reader import RowReader
from ledger.rows import SqlValue

STATES_OF: Final[dict[Action, tuple[JobState, ...]]] = {
    "cancel": tuple(s for s in OPEN_JOB_STATES if (s, "cancel") in JOB_TRANSITIONS),
    "retry": ("failed", "cancelled"),
    "priority": OPEN_JOB_STATES,
}
"""In which states an action makes sense; an order that names none means all of them."""


MEASURED_RESULTS: Final = 100
"""Latest results of a profile that its share of bytes is measured by."""


class OrderReader(RowReader):
    """Rows that orders need, as of the moment of each call."""

    def sweep(self, sweep: str) -> Sweep | None:
        """One order about many jobs."""
        return self._one(Sweep, "WHERE id = ?", (sweep,)) if self.schema() >= 3 else None

    def open_sweeps(self) -> tuple[Sweep, ...]:
        """The orders that are not done, the oldest first."""
        if self.schema() < 3:
            return ()
        return self._rows(Sweep, "WHERE cursor > 0 ORDER BY created_at_ms, id")

    def sweep_page(self, sweep: Sweep, limit: int) -> tuple[tuple[int, str], ...]:
        """Seq and id of the newest chosen jobs that the order has not come to.

        Fewer than `limit`: these are the last.
        """
        conditions, values = _conditions(sweep)
        states = sweep.states or STATES_OF[sweep.action]
        found: list[tuple[int, str]] = []
        for state in states:  # each by its index; together they would be sorted whole
            rest = f"WHERE state = ? AND {' AND '.join(conditions)} ORDER BY seq DESC LIMIT ?"
            found += self._fetch(f"SELECT seq, id FROM job {rest}", (state, *values, limit))  # noqa: S608 - conditions of our own
        return tuple((int(seq), str(job)) for seq, job in sorted(found, reverse=True)[:limit])

    def watches(self, node: str | None = None) -> tuple[Watch, ...]:
        """The watched folders of a node, or of all."""
        if self.schema() < 3:
            return ()
        if node is None:
            return self._rows(Watch, "ORDER BY node, folder, profile")
        return self._rows(Watch, "WHERE node = ? ORDER BY folder, profile", (node,))

    def watch(self, watch: str) -> Watch | None:
        """One watched folder."""
        return self._one(Watch, "WHERE id = ?", (watch,)) if self.schema() >= 3 else None

    def profiles(self) -> tuple[Profile, ...]:
        """The profiles of the mesh's own people, by name."""
        return self._rows(Profile, "ORDER BY name") if self.schema() >= 3 else ()

    def profile(self, name: str) -> Profile | None:
        """One of them."""
        return self._one(Profile, "WHERE name = ?", (name,)) if self.schema() >= 3 else None

    def may_know(self, size: int) -> bool:
        """Whether a film or a result of this size is known: whether its content is worth reading."""
        return self.schema() >= 3 and bool(
            self._value(
                "SELECT EXISTS (SELECT 1 FROM job WHERE source_bytes = ?1 AND source_digest <> '')"
                " OR EXISTS (SELECT 1 FROM attempt WHERE result_bytes = ?1 AND state = 'accepted')"
                " OR EXISTS (SELECT 1 FROM converted WHERE id >= ?1 || '/' AND id < ?1 || '0')",
                (size,),
            )
        )

    def converted(self, size: int, digest: str, profile_json: str) -> Job | Converted | None:
        """What made, or will make, the result of this content with this profile; a failed job counts too.

        The newest job, cancelled ones left out; else what is kept of a job that was forgotten.
        """
        definition = self._value("SELECT id FROM definition WHERE text = ?", (profile_json,))
        if definition is None or self.schema() < 3:
            return None
        job = self._one(
            Job,
            "WHERE source_bytes = ? AND source_digest = ? AND source_digest <> '' AND definition = ?"
            " AND state <> 'cancelled' ORDER BY seq DESC",
            (size, digest, definition),
        )
        return job or self._one(Converted, "WHERE id = ?", (f"{size}/{digest}/{definition}",))

    def holders(self, size: int, digest: str, limit: int) -> tuple[str, ...]:
        """Nodes that had a lease for a film of this content, the latest first: they may have its bytes."""
        if self.schema() < 3:
            return ()  # there is no index by content
        found = self._fetch(
            "SELECT attempt.node FROM job JOIN attempt ON attempt.job = job.id"
            " WHERE job.source_bytes = ? AND job.source_digest = ? AND job.source_digest <> ''"
            " GROUP BY attempt.node ORDER BY max(attempt.granted_at_ms) DESC, attempt.node LIMIT ?",
            (size, digest, limit),
        )
        return tuple(str(row[0]) for row in found)

    def result_share(self, profile: str) -> float | None:
        """Bytes of a profile's latest results by those of their sources; None: there are none."""
        found = self._value(
            "SELECT sum(attempt.result_bytes) * 1.0 / sum(latest.source_bytes) FROM"
            " (SELECT id, source_bytes FROM job WHERE state = 'done' AND profile = ?"
            "   ORDER BY seq DESC LIMIT ?) AS latest"
            " JOIN attempt ON attempt.job = latest.id AND attempt.state = 'accepted'",
            (profile, MEASURED_RESULTS),
        )
        return None if found is None else float(found)

    def is_result(self, size: int, digest: str) -> bool:
        """Whether this is the content of a result of ours."""
        return bool(self.result_profiles(size, digest))

    def result_profiles(self, size: int, digest: str) -> tuple[str, ...]:
        """The profiles that made results of this content, forgotten jobs' too."""
        if self.schema() < 3:
            return ()
        made = f"{size}/{digest}/{RESULT_OF}"
        rows = self._fetch(
            "SELECT job.profile FROM attempt JOIN job ON job.id = attempt.job"
            " WHERE result_bytes = ?1 AND result_digest = ?2 AND attempt.state = 'accepted'"
            " UNION SELECT substr(id, length(?3) + 1) FROM converted WHERE id > ?3 AND id < ?3 || '~'",
            (size, digest, made),
        )
        return tuple(sorted(str(profile) for (profile,) in rows))

    def result_at(self, owner: str, path: str, size: int) -> str | None:
        """The profile whose result lies at this path, by its name and size."""
        found = self._value(
            "SELECT job.profile FROM job JOIN attempt ON attempt.job = job.id"
            " AND attempt.state = 'accepted' AND attempt.result_bytes = ?"
            " WHERE job.output = ? AND job.owner = ? AND job.state = 'done' ORDER BY seq DESC",
            (size, path, owner),
        )
        return None if found is None else str(found)

    def has_results_of(self, size: int) -> bool:
        """Whether a result of this size is known: whether a file's content is worth reading."""
        return self.schema() >= 3 and bool(
            self._value(
                "SELECT EXISTS (SELECT 1 FROM attempt WHERE result_bytes = ?1 AND state = 'accepted')"
                " OR EXISTS (SELECT 1 FROM converted WHERE id >= ?1 || '/' AND id < ?1 || '0')",
                (size,),
            )
        )

    def job_of_output(self, owner: str, output: str) -> Job | None:
        """The newest job of an owner that writes, or wrote, this file."""
        return self._one(Job, "WHERE output = ? AND owner = ? ORDER BY seq DESC", (output, owner))

    def to_forget(self, *, ended_before_ms: int, keep: int, limit: int) -> tuple[Job, ...]:
        """Jobs that are over and too old, or too many; the oldest first.  0 sets no such bound."""
        if self.schema() < 3:
            return ()
        rest = "WHERE finished_at_ms > 0 AND finished_at_ms < ? ORDER BY finished_at_ms LIMIT ?"
        old = self._rows(Job, rest, (ended_before_ms, limit)) if ended_before_ms > 0 else ()
        if old or not keep:
            return old
        count = int(self._value("SELECT count(*) FROM job WHERE finished_at_ms > 0"))
        if count <= keep:
            return ()
        rest = "WHERE finished_at_ms > 0 ORDER BY finished_at_ms LIMIT ?"
        return self._rows(Job, rest, (min(limit, count - keep),))


def _conditions(sweep: Sweep) -> tuple[Sequence[str], Sequence[SqlValue]]:
    conditions, values = ["seq < ?"], [sweep.cursor]
    found: list[SqlValue] = list(values)

    def add(condition: str, *value: SqlValue) -> None:
        conditions.append(condition)
        found.extend(value)

    if sweep.folder:
        add(*below(sweep.folder))
    if sweep.node:
        add("(owner = ? OR id IN (SELECT job FROM attempt WHERE node = ?))", sweep.node, sweep.node)
    if sweep.profile:
        add("profile = ?", sweep.profile)
    if sweep.tenant:
        add("tenant = ?", sweep.tenant)
    if sweep.since_ms:
        add("created_at_ms >= ?", sweep.since_ms)
    if sweep.until_ms:
        add("created_at_ms < ?", sweep.until_ms)
    return conditions, found
