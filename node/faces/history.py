"""What was done, as the faces show it: pure translation."""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime

from ledger.history_reader import DAY_MS, Done
from ledger.jobs import Attempt, Event, Job
from node.faces.views import attempt_info
from node.gateway.work_models import DoneLine, HistoryLine, JobHistory, Stats


def job_history(
    job: Job, events: Iterable[Event], attempts: Iterable[Attempt], names: Mapping[str, str]
) -> JobHistory:
    """A job's whole story."""
    return JobHistory(
        id=job.id,
        state=job.state,
        source=job.source,
        lines=[
            HistoryLine(
                at_ms=event.at_ms,
                kind=event.kind,
                node=names.get(event.node, event.node),
                what=event.what,
            )
            for event in events
        ],
        attempts=[attempt_info(attempt, names) for attempt in attempts],
    )


def stats_of(done: Iterable[Done], since_ms: int, names: Mapping[str, str]) -> Stats:
    """The counts summed up under each name."""
    rows = tuple(done)
    return Stats(
        since_ms=since_ms,
        nodes=_summed(rows, lambda one: names.get(one.node, one.node)),
        profiles=_summed(rows, lambda one: one.profile),
        days=_summed(rows, lambda one: _day(one.day)),
    )


def _summed(rows: Iterable[Done], name_of: Callable[[Done], str]) -> list[DoneLine]:
    found: dict[str, list[Done]] = {}
    for row in rows:
        found.setdefault(name_of(row), []).append(row)
    return [_line(name, found[name]) for name in sorted(found)]


def _line(name: str, rows: Iterable[Done]) -> DoneLine:
    rows = tuple(rows)
    frames, encode_ms = sum(r.frames for r in rows), sum(r.encode_ms for r in rows)
    return DoneLine(
        name=name,
        attempts=sum(r.attempts for r in rows),
        good=sum(r.good for r in rows),
        bad=sum(r.bad for r in rows),
        frames=frames,
        fps=round(1_000 * frames / encode_ms, 1) if encode_ms else 0.0,
        encode_ms=encode_ms,
        fetch_ms=sum(r.fetch_ms for r in rows),
        fetched_bytes=sum(r.fetched_bytes for r in rows),
        result_bytes=sum(r.result_bytes for r in rows),
    )


def _day(day: int) -> str:
    return datetime.fromtimestamp(day * DAY_MS / 1_000, UTC).strftime("%Y-%m-%d")
