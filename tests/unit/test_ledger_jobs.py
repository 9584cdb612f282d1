"""The life of a job: every state, every event, every refusal."""

from dataclasses import replace

import pytest

from ledger import commands as c
from ledger import moves
from ledger.change import Change, RefusedError
from ledger.jobs import (
    ATTEMPT_TRANSITIONS,
    JOB_TRANSITIONS,
    TASK_TRANSITIONS,
    Attempt,
    Job,
    Task,
)
from ledger.store_sqlite import SqliteRows
from ledger.submissions import JOBS_PER_COMMAND_MAX
from tests.ledger_helper import Ledger, grant, job_spec, node_report, plan_of, spec, task_spec

JOBS = """
queued      start_planning>planning plan>queued lease>running fail>failed cancel>cancelled
planning    start_planning>planning plan>queued fail>failed cancel>cancelled
running     lease>running part>running finish>verifying again>queued wait>waiting fail>failed cancel>cancelled
waiting     lease>running fail>failed cancel>cancelled
verifying   accept>publishing again>queued part>running fail>failed cancel>cancelled
publishing  publish>done fail>failed
done
failed      retry>queued
cancelled   retry>queued
paused
"""
JOB_EVENTS = [
    "start_planning",
    "plan",
    "lease",
    "finish",
    "again",
    "wait",
    "part",
    "accept",
    "publish",
    "fail",
    "cancel",
    "retry",
]
TASKS = """
blocked   unblock>ready fail>failed cancel>cancelled
ready     lease>leased fail>failed cancel>cancelled
leased    finish>finished again>ready fail>failed cancel>cancelled
finished  finish>finished go_on>leased keep>kept accept>accepted again>ready fail>failed cancel>cancelled
kept      fail>failed cancel>cancelled
accepted  fail>failed
failed    revive>ready hold>blocked
cancelled revive>ready hold>blocked
"""
TASK_EVENTS = [
    "unblock",
    "lease",
    "finish",
    "again",
    "go_on",
    "keep",
    "accept",
    "fail",
    "cancel",
    "revive",
    "hold",
]
ATTEMPTS = """
leased     finish>finished fail>failed expire>expired release>released abandon>abandoned
finished   keep>kept accept>accepted refuse>refused abandon>abandoned
kept       abandon>abandoned
accepted   abandon>abandoned
failed
expired
released
refused
abandoned
"""
ATTEMPT_EVENTS = ["finish", "keep", "accept", "fail", "expire", "release", "refuse", "abandon"]


def expected(table: str, events: list[str]) -> list[tuple[str, str, str]]:
    cells: list[tuple[str, str, str]] = []
    for line in table.strip().splitlines():
        state, *moves = line.split()
        to = dict(move.split(">") for move in moves)
        assert set(to) <= set(events)
        cells.extend((state, event, to.get(event, "")) for event in events)
    return cells


def change_of(ledger: Ledger) -> Change:
    return Change(rows=SqliteRows(ledger.store.connection), index=99, at_ms=5, proposer="anna")


@pytest.fixture(scope="module")
def sample() -> tuple[Ledger, Job, Task, Attempt]:
    ledger = Ledger().formed("bert").planned("j")
    ledger.leased("j", "a", "bert")
    job, task, attempt = (
        ledger.reader.job("j"),
        ledger.reader.task("j-t"),
        ledger.reader.attempt("a"),
    )
    assert job is not None
    assert task is not None
    assert attempt is not None
    return ledger, job, task, attempt


@pytest.mark.parametrize(("state", "event", "to"), expected(JOBS, JOB_EVENTS))
def test_job_table(
    sample: tuple[Ledger, Job, Task, Attempt], state: str, event: str, to: str
) -> None:
    ledger, job, _, _ = sample
    change = change_of(ledger)
    row = replace(job, state=state)
    if not to:
        with pytest.raises(RefusedError) as refused:
            moves.move_job(change, row, event)
        assert refused.value.code == "conflict"
    else:
        moves.move_job(change, row, event)
        assert ledger.job_state("j") == to
        assert ledger.reader.events("j")[-1].kind == f"job.{to}"


@pytest.mark.parametrize(("state", "event", "to"), expected(TASKS, TASK_EVENTS))
def test_task_table(
    sample: tuple[Ledger, Job, Task, Attempt], state: str, event: str, to: str
) -> None:
    ledger, _, task, _ = sample
    row = replace(task, state=state)
    if not to:
        with pytest.raises(RefusedError):
            moves.move_task(change_of(ledger), row, event)
    else:
        moves.move_task(change_of(ledger), row, event)
        moved = ledger.reader.task("j-t")
        assert moved is not None
        assert moved.state == to


@pytest.mark.parametrize(("state", "event", "to"), expected(ATTEMPTS, ATTEMPT_EVENTS))
def test_attempt_table(
    sample: tuple[Ledger, Job, Task, Attempt], state: str, event: str, to: str
) -> None:
    ledger, _, _, attempt = sample
    row = replace(attempt, state=state)
    if not to:
        with pytest.raises(RefusedError) as refused:
            moves.move_attempt(change_of(ledger), row, event)
        assert refused.value.code == "stale_token"
    else:
        assert moves.move_attempt(change_of(ledger), row, event).state == to


def test_tables_have_nothing_else() -> None:
    def moves(cells: list[tuple[str, str, str]]) -> set[tuple[str, str, str]]:
        return {cell for cell in cells if cell[2]}

    assert {(*key, to) for key, to in JOB_TRANSITIONS.items()} == moves(expected(JOBS, JOB_EVENTS))
    assert {(*key, to) for key, to in TASK_TRANSITIONS.items()} == moves(
        expected(TASKS, TASK_EVENTS)
    )
    assert {(*key, to) for key, to in ATTEMPT_TRANSITIONS.items()} == moves(
        expected(ATTEMPTS, ATTEMPT_EVENTS)
    )


# --- a whole life -------------------------------------------------------------------------------


def test_life_of_a_job() -> None:
    ledger = Ledger().formed("bert").submitted("j")
    assert ledger.job_state("j") == "queued"
    ledger.must(c.StartPlanning(job="j"))
    ledger.must(c.StartPlanning(job="j"))
    assert ledger.job_state("j") == "planning"
    ledger.must(plan_of("j"))
    assert ledger.job_state("j") == "queued"
    index = ledger.must(grant(("j-t", "a", "bert")))
    token = ledger.token("a")
    assert token == (1 << 40) | index
    assert ledger.job_state("j") == "running"
    ledger.must(ledger.finish("a"))
    assert ledger.job_state("j") == "verifying"
    ledger.must(ledger.accept("j", "a", output="/films/other.mp4"))
    assert ledger.job_state("j") == "publishing"
    ledger.must(c.FinishJob(job="j", token=token, finished_at_ms=4_000))

    job, task, attempt = (
        ledger.reader.job("j"),
        ledger.reader.task("j-t"),
        ledger.reader.attempt("a"),
    )
    assert job is not None
    assert job.is_final
    assert (job.state, job.output, job.finished_at_ms) == ("done", "/films/other.mp4", 4_000)
    assert job.source_digest == "d" * 64
    assert task is not None
    assert (task.state, task.tries, task.attempts) == ("accepted", 0, 1)
    assert attempt is not None
    assert (attempt.state, attempt.frames, attempt.node) == ("accepted", 6, "bert")
    assert [event.kind for event in ledger.reader.events("j")] == [
        "job.queued",
        "job.planning",
        "job.queued",
        "job.running",
        "job.verifying",
        "job.publishing",
        "job.done",
    ]
    said_again = ledger.dump()
    ledger.must(ledger.finish("a"))
    assert ledger.dump() == said_again, "finishing holds when its answer was lost"
    other = replace(ledger.finish("a"), result_digest="f" * 64)
    for late in (other, ledger.accept("j", "a"), ledger.refuse("j", "a")):
        assert ledger.refused(late) == "stale_token"
    assert ledger.refused(ledger.give_up("j")) == "conflict"


# --- refusals -----------------------------------------------------------------------------------


def test_nothing_before_the_mesh() -> None:
    ledger = Ledger()
    assert ledger.refused(c.SubmitJobs(jobs=(job_spec("j"),))) == "no_mesh"
    assert ledger.refused(grant(("t", "a", "n"))) == "no_mesh"


def test_unknown_ids_are_refused() -> None:
    ledger = Ledger().formed()
    assert ledger.refused(c.StartPlanning(job="x")) == "not_found"
    assert ledger.refused(plan_of("x")) == "not_found"
    assert ledger.refused(ledger.give_up("x")) == "not_found"
    assert ledger.refused(ledger.finish("x", token=1)) == "stale_token"
    assert ledger.refused(ledger.fail("x", token=1)) == "stale_token"
    assert ledger.refused(c.FinishJob(job="x", token=1, finished_at_ms=0)) == "not_found"
    assert ledger.refused(node_report("x")) == "not_found"


def test_submission_is_all_or_none() -> None:
    ledger = Ledger().formed().submitted("j")
    assert ledger.refused(c.SubmitJobs(jobs=())) == "usage"
    assert ledger.refused(c.SubmitJobs(jobs=(job_spec("k"), job_spec("j")))) == "conflict"
    assert ledger.reader.job("k") is None
    assert ledger.refused(c.SubmitJobs(jobs=(job_spec("k", owner="nobody"),))) == "not_found"
    many = tuple(job_spec(f"k{n}") for n in range(JOBS_PER_COMMAND_MAX + 1))
    assert ledger.refused(c.SubmitJobs(jobs=many)) == "usage"
    ledger.must(c.SubmitJobs(jobs=many[:-1]))


def test_two_live_jobs_never_write_one_file() -> None:
    ledger = Ledger().formed("bert").submitted("j", output="/out.mp4")
    again = job_spec("k", output="/out.mp4")
    assert ledger.refused(c.SubmitJobs(jobs=(again,))) == "conflict"
    twice = (job_spec("l", output="/o"), job_spec("m", output="/o"))
    assert ledger.refused(c.SubmitJobs(jobs=twice)) == "conflict"
    # The same path on another machine is another file.
    ledger.submitted("n", output="/out.mp4", owner="bert")
    ledger.must(ledger.give_up("j"))
    ledger.must(c.SubmitJobs(jobs=(again,)))


def test_plans_that_do_not_fit() -> None:
    ledger = Ledger().formed().submitted("j", "k")
    ledger.must(c.StartPlanning(job="j"))
    empty = c.PlanJob(
        job="j", source_digest="", source_bytes=0, probe_json="", plan_json="", tasks=()
    )
    assert ledger.refused(empty) == "usage"
    two = plan_of("j", task_spec("j"), task_spec("j", id="j-2"))
    assert ledger.refused(two) == "usage"
    ledger.must(plan_of("j"))
    assert ledger.refused(plan_of("j")) == "conflict"
    assert ledger.refused(c.StartPlanning(job="j")) == "conflict"
    ledger.must(c.StartPlanning(job="k"))
    assert ledger.refused(plan_of("k", task_spec("j"))) == "conflict"  # another job's task


def test_stale_tokens() -> None:
    ledger = Ledger().formed("bert").planned("j", "k")
    old = ledger.leased("j", "a", "bert")
    ledger.leased("k", "other", "bert")
    assert ledger.refused(ledger.finish("a", token=old - 1)) == "stale_token"
    ledger.must(c.ExpireLeases(attempts=("a",), what="silent"))
    assert ledger.refused(ledger.finish("a", token=old)) == "stale_token"
    assert ledger.refused(ledger.fail("a", token=old)) == "stale_token"
    new = ledger.leased("j", "b", "anna")
    assert new > old
    assert ledger.refused(ledger.finish("b", token=old)) == "stale_token"
    assert ledger.refused(ledger.accept("j", "b")) == "stale_token"
    ledger.must(ledger.finish("b"))
    assert ledger.refused(ledger.accept("j", "b", token=old)) == "stale_token"
    assert ledger.refused(ledger.refuse("j", "b", token=old)) == "stale_token"
    assert ledger.refused(ledger.accept("k", "b")) == "conflict"
    assert ledger.refused(ledger.refuse("k", "b")) == "conflict"
    assert ledger.refused(ledger.accept("j", "b", result_digest="f" * 64)) == "digest"
    ledger.must(ledger.accept("j", "b"))
    assert ledger.refused(c.FinishJob(job="j", token=old, finished_at_ms=1)) == "stale_token"
    assert ledger.job_state("j") == "publishing"


def test_grants_skip_what_does_not_fit_and_grant_the_rest() -> None:
    ledger = Ledger().formed("bert", "cleo").planned("j", "k")
    ledger.must(c.RevokeMember(node="cleo", by="anna"))
    ledger.must(
        grant(
            ("nothing", "a1", "bert"),
            ("j-t", "a2", "nobody"),
            ("j-t", "a3", "cleo"),
            ("j-t", "a4", "bert"),
            ("j-t", "a5", "anna"),
            ("k-t", "a4", "anna"),
            ("k-t", "a6", "anna"),
        )
    )
    leased = {a.id: a.node for a in ledger.reader.active_attempts()}
    assert leased == {"a4": "bert", "a6": "anna"}


def test_batches_are_bounded() -> None:
    ledger = Ledger().formed()
    many = tuple(f"a{n}" for n in range(c.LEASES_PER_COMMAND_MAX + 1))
    assert ledger.refused(grant(*((a, a, a) for a in many))) == "usage"
    assert ledger.refused(c.ExpireLeases(attempts=many, what="")) == "usage"
    assert ledger.refused(c.ReleaseLeases(node="anna", attempts=many, what="")) == "usage"
    ledger.must(c.ExpireLeases(attempts=many[:-1], what=""))


def test_numbers_beyond_64_bit_are_refused() -> None:
    ledger = Ledger().formed("bert").planned("k")
    assert ledger.refused(c.SubmitJobs(jobs=(job_spec("j", source_bytes=1 << 63),))) == "usage"
    ledger.must(c.SubmitJobs(jobs=(job_spec("j", source_bytes=(1 << 63) - 1),)))
    ledger.leased("k", "a", "bert")
    assert ledger.refused(ledger.fail("a", backoff_ms=(1 << 64) - 1)) == "usage"


# --- failures -----------------------------------------------------------------------------------


def test_input_failure_ends_the_job() -> None:
    ledger = Ledger().formed("bert").planned("j")
    ledger.leased("j", "a", "bert")
    ledger.must(ledger.fail("a", failure="input", code="no_video"))
    job, task, attempt = (
        ledger.reader.job("j"),
        ledger.reader.task("j-t"),
        ledger.reader.attempt("a"),
    )
    assert job is not None
    assert (job.state, job.error_code, job.error, job.todo) == (
        "failed",
        "no_video",
        "it broke",
        "mend it",
    )
    assert job.error_node == "bert"
    assert job.finished_at_ms == ledger.now_ms
    assert task is not None
    assert task.state == "failed"
    assert attempt is not None
    assert (attempt.state, attempt.failure) == ("failed", "input")


def test_encoder_failure_excludes_the_node_until_nobody_is_left() -> None:
    ledger = Ledger().formed("bert", "cleo", "dora").planned("j")
    ledger.must(node_report("cleo", encoders=("libx264",)))  # cannot do it
    ledger.must(c.AddMember(member=_witness("wim"), invitation=None))
    ledger.must(c.RevokeMember(node="dora", by="anna"))
    ledger.leased("j", "a", "bert")
    ledger.must(ledger.fail("a", failure="encoder", backoff_ms=500))
    task = ledger.reader.task("j-t")
    assert task is not None
    assert (task.state, task.excluded, task.backoff_ms, task.tries) == ("ready", ("bert",), 0, 1)
    assert ledger.job_state("j") == "queued"
    ledger.leased("j", "b", "anna")
    ledger.must(ledger.fail("b", failure="encoder"))
    assert ledger.job_state("j") == "failed"
    task = ledger.reader.task("j-t")
    assert task is not None
    assert task.excluded == ("bert", "anna")


def _witness(node: str) -> c.MemberSpec:
    return spec(node, role="witness")


def test_a_node_that_has_not_reported_might_still_do_it() -> None:
    ledger = Ledger().formed().planned("j")
    ledger.must(c.AddMember(member=spec("bert"), invitation=None))
    ledger.leased("j", "a", "anna")
    ledger.must(ledger.fail("a", failure="encoder"))
    assert ledger.job_state("j") == "queued"


def test_transient_failures_wait_and_run_out() -> None:
    ledger = Ledger().formed("bert").planned("j")
    for number in range(1, c.ATTEMPTS_MAX):
        ledger.leased("j", f"a{number}", "bert")
        ledger.must(ledger.fail(f"a{number}", backoff_ms=250 * number))
        assert ledger.job_state("j") == "waiting"
        task = ledger.reader.task("j-t")
        assert task is not None
        assert (task.tries, task.backoff_ms, task.excluded) == (number, 250 * number, ())
    ledger.leased("j", "last", "bert")
    task = ledger.reader.task("j-t")
    assert task is not None
    assert task.backoff_ms == 0
    ledger.must(ledger.fail("last", backoff_ms=250))
    assert ledger.job_state("j") == "failed"


def test_refused_results_count_and_release_does_not() -> None:
    ledger = Ledger().formed("bert").planned("j")
    for number in range(c.ATTEMPTS_MAX + 2):
        ledger.leased("j", f"r{number}", "bert")
        ledger.must(c.ReleaseLeases(node="bert", attempts=(f"r{number}",), what="shutdown"))
        assert ledger.job_state("j") == "queued"
    job = ledger.reader.job("j")
    assert job is not None
    assert job.error == ""
    for number in range(c.ATTEMPTS_MAX):
        assert ledger.job_state("j") == "queued"
        ledger.leased("j", f"a{number}", "bert")
        ledger.must(ledger.finish(f"a{number}"))
        ledger.must(ledger.refuse("j", f"a{number}"))
    assert ledger.job_state("j") == "failed"
    job = ledger.reader.job("j")
    assert job is not None
    assert job.error_code == "digest"


def test_a_result_after_a_failure_clears_the_error() -> None:
    ledger = Ledger().formed("bert").planned("j")
    ledger.leased("j", "a", "bert")
    ledger.must(ledger.fail("a"))
    token = ledger.leased("j", "b", "anna")
    ledger.must(ledger.finish("b"))
    ledger.must(ledger.accept("j", "b"))
    ledger.must(c.FinishJob(job="j", token=token, finished_at_ms=2))
    job = ledger.reader.job("j")
    assert job is not None
    assert (job.error_code, job.error, job.todo, job.error_node) == ("", "", "", "")


def test_release_and_expiry_touch_only_what_they_may() -> None:
    ledger = Ledger().formed("bert").planned("j", "k")
    ledger.leased("j", "a", "bert")
    ledger.leased("k", "b", "bert")
    ledger.must(c.ReleaseLeases(node="anna", attempts=("a", "nothing"), what=""))
    assert ledger.job_state("j") == "running"  # not anna's lease
    ledger.must(ledger.finish("a"))
    ledger.must(c.ExpireLeases(attempts=("a", "b", "nothing"), what="silent for 15 s"))
    assert ledger.job_state("j") == "verifying"  # handed back in time
    assert ledger.job_state("k") == "queued"
    task, attempt, job = (
        ledger.reader.task("k-t"),
        ledger.reader.attempt("b"),
        ledger.reader.job("k"),
    )
    assert task is not None
    assert task.tries == 1
    assert attempt is not None
    assert (attempt.state, attempt.error_code, attempt.ended_at_ms) == (
        "expired",
        "lease_expired",
        ledger.now_ms,
    )
    assert job is not None
    assert (job.error, job.error_node) == ("silent for 15 s", "bert")


@pytest.mark.parametrize("at", ["queued", "planning", "ready", "leased", "finished", "accepted"])
def test_a_job_can_be_given_up_anywhere(at: str) -> None:
    ledger = Ledger().formed("bert")
    if at in ("queued", "planning"):
        ledger.submitted("j")
        if at == "planning":
            ledger.must(c.StartPlanning(job="j"))
    else:
        ledger.planned("j")
        if at != "ready":
            ledger.leased("j", "a", "bert")
        if at in ("finished", "accepted"):
            ledger.must(ledger.finish("a"))
        if at == "accepted":
            ledger.must(ledger.accept("j", "a"))
    ledger.must(ledger.give_up("j"))
    assert ledger.job_state("j") == "failed"
    assert ledger.reader.active_attempts() == ()
    assert all(a.state == "abandoned" for a in ledger.reader.attempts("j"))
    assert all(t.state == "failed" for t in ledger.reader.tasks("j"))
    assert ledger.refused(ledger.give_up("j")) == "conflict"


def test_a_repeated_command_answers_the_same_and_does_nothing() -> None:
    ledger = Ledger().formed()
    first = ledger.do(c.SubmitJobs(jobs=(job_spec("j"),)), "same")
    before = ledger.dump(), ledger.store.checksum
    assert ledger.do(c.SubmitJobs(jobs=(job_spec("j"),)), "same") == first
    assert ledger.do(c.SubmitJobs(jobs=(job_spec("other"),)), "same") == first
    refused = ledger.do(c.StartPlanning(job="late"), "no")
    ledger.submitted("late")
    assert ledger.do(c.StartPlanning(job="late"), "no") == refused
    assert ledger.reader.outcome("same") == first
    assert ledger.reader.outcome("never") is None
    assert before[0]["job"] != ledger.dump()["job"]
