"""What was done, counted: by node, by profile, by day."""

from dataclasses import dataclass
from typing import Final

from ledger.row_reader import RowReader

DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """Attempts of one node with one profile that began on one day (since 1970, in UTC).

    `good` ended with a result, `bad` failed, expired or were refused; the rest runs or was given back.
    """

    node: str
    profile: str
    day: int
    attempts: int
    good: int
    bad: int
    frames: int
    encode_ms: int
    fetch_ms: int
    fetched_bytes: int
    result_bytes: int


class HistoryReader(RowReader):
    """Counts over attempts, as of the moment of each call."""

    def done(self, since_ms: int) -> tuple[Done, ...]:
        """What began since then.  All it reads of attempts stands in one index."""
        # Said outright: the planner would rather walk the table in the order of the groups.
        index = "INDEXED BY attempt_counted" if self.schema() >= 3 else ""
        rows = self._fetch(
            "SELECT attempt.node, job.profile, attempt.granted_at_ms / ?1, count(*),"  # noqa: S608 - our own words
            " sum(attempt.state IN ('finished', 'kept', 'accepted')),"
            " sum(attempt.state IN ('failed', 'expired', 'refused')),"
            " sum(attempt.frames), sum(attempt.encode_ms), sum(attempt.fetch_ms),"
            " sum(attempt.fetched_bytes), sum(attempt.result_bytes)"
            f" FROM attempt {index} JOIN job ON job.id = attempt.job"
            " WHERE attempt.granted_at_ms >= ?2 GROUP BY 1, 2, 3",
            (DAY_MS, since_ms),
        )
        names = Done.__slots__
        return tuple(Done(**dict(zip(names, row, strict=True))) for row in rows)
