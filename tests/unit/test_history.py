"""What was done, counted and told."""

import apsw

from ledger.history_reader import DAY_MS
from node.faces.history import job_history, stats_of
from tests.ledger_helper import Ledger
from tests.unit.test_ledger_orders import RAN, fail_on


def worked() -> Ledger:
    ledger = Ledger().formed("bert").planned("a", "b")
    ledger.now_ms = 3 * DAY_MS
    ledger.leased("a", "a1", "bert")
    ledger.must(ledger.finish("a1"))
    ledger.must(ledger.accept("a", "a1"))
    fail_on(ledger, "b", "bert")
    ledger.now_ms = 5 * DAY_MS
    fail_on(ledger, "b", "anna")
    return ledger


def test_stats_by_node_profile_and_day() -> None:
    ledger = worked()
    found = stats_of(ledger.reader.done(0), 0, {"anna": "Anna", "bert": "Bert"})
    assert [(one.name, one.good, one.bad) for one in found.nodes] == [
        ("Anna", 0, 1),
        ("Bert", 1, 1),
    ]
    assert [(one.name, one.good, one.bad) for one in found.profiles] == [("av1", 1, 2)]
    assert [(one.name, one.attempts) for one in found.days] == [
        ("1970-01-04", 2),
        ("1970-01-06", 1),
    ]
    (bert,) = [one for one in found.nodes if one.name == "Bert"]
    assert (bert.frames, bert.encode_ms, bert.fps) == (6, 3, 2_000.0)
    later = stats_of(ledger.reader.done(4 * DAY_MS), 0, {})
    assert [one.name for one in later.nodes] == ["anna"]


def test_statistics_read_one_index_of_attempts() -> None:
    ledger = worked()
    asked: list[str] = []
    ledger.store.connection.trace_v2(apsw.SQLITE_TRACE_STMT, lambda told: asked.append(told["sql"]))
    ledger.reader.done(5)
    ledger.store.connection.trace_v2(0, None)
    (sql,) = [one for one in asked if "attempt.node" in one]
    plan = ledger.store.connection.execute(f"EXPLAIN QUERY PLAN {sql}", (1, 5)).fetchall()
    assert "attempt USING COVERING INDEX attempt_counted" in str(plan)


def test_a_job_tells_its_story() -> None:
    ledger = worked()
    job = ledger.reader.job("b")
    assert job is not None
    story = job_history(
        job, ledger.reader.events("b"), ledger.reader.attempts("b"), {"bert": "Bert"}
    )
    assert [line.kind for line in story.lines][:3] == ["job.queued", "job.planning", "job.queued"]
    assert [(a.node, a.state) for a in story.attempts] == [("Bert", "failed"), ("anna", "failed")]
    assert story.attempts[0].stderr_tail == RAN.stderr_tail
    assert story.attempts[0].command_line == ["ffmpeg"]


def test_jobs_are_filtered() -> None:
    ledger = Ledger().formed()
    ledger.now_ms = 1_000
    ledger.submitted("a", source="/films/a/x.mkv", profile="web")
    ledger.now_ms = 2_000
    ledger.submitted("b", source="/films/ab/x.mkv")
    assert [j.id for j in ledger.reader.jobs(profile="web")] == ["a"]
    assert [j.id for j in ledger.reader.jobs(folder="/films/a")] == ["a"]
    assert [j.id for j in ledger.reader.jobs(folder="/films")] == ["b", "a"]
    assert [j.id for j in ledger.reader.jobs(until_ms=2_000)] == ["a"]
    assert [j.id for j in ledger.reader.jobs(node="anna", folder="/films/ab")] == ["b"]
