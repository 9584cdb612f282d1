"""What people order about many jobs, nodes that fail too often, watched folders, and what is forgotten."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from ledger import apply_orders
from ledger import commands as c
from ledger import orders as o
from ledger.invariants import violations
from ledger.jobs import Converted, Job
from ledger.placing import place_of
from ledger.store_sqlite import SqliteRows
from tests.ledger_helper import Ledger, films_of, job_spec, node_report, plan_of

RAN = c.AttemptReport(
    command_line='["ffmpeg"]',
    stderr_tail="it broke",
    encoder="libsvtav1",
    ffmpeg="7.1",
    started_at_ms=1,
    fetch_ms=0,
    encode_ms=0,
    verify_ms=0,
    fetched_bytes=0,
    frames=0,
)


def change(action: o.Action, *jobs: str, priority: int = 0) -> o.ChangeJobs:
    return o.ChangeJobs(jobs=jobs, action=action, priority=priority, by="me")


def sound(ledger: Ledger) -> None:
    assert violations(SqliteRows(ledger.store.connection)) == []


def at_work(state: str) -> Ledger:
    """A job `j` in this state."""
    ledger = Ledger().formed("bert").submitted("j")
    if state == "queued":
        return ledger
    ledger.must(c.StartPlanning(job="j"))
    if state == "planning":
        return ledger
    ledger.must(plan_of("j"))
    ledger.leased("j", "a", "bert")
    if state == "waiting":
        ledger.must(ledger.fail("a", node="bert", backoff_ms=9))
    if state in ("verifying", "publishing", "done"):
        ledger.must(ledger.finish("a"))
    if state in ("publishing", "done"):
        ledger.must(ledger.accept("j", "a"))
    if state == "done":
        ledger.must(c.FinishJob(job="j", token=ledger.token("a"), finished_at_ms=77))
    if state == "failed":
        ledger.must(ledger.give_up("j"))
    assert ledger.job_state("j") == state
    return ledger


def job(ledger: Ledger, name: str = "j") -> Job:
    found = ledger.reader.job(name)
    assert found is not None
    return found


@pytest.mark.parametrize("state", ["queued", "planning", "running", "verifying", "done", "failed"])
def test_who_works_for_an_owner(state: str) -> None:
    reader = at_work(state).reader
    assert reader.works_for("anna") == (state in ("planning", "running", "verifying"))
    assert not reader.works_for("bert")


CANCELLED = ["queued", "planning", "running", "waiting", "verifying"]


@pytest.mark.parametrize("state", CANCELLED)
def test_cancel_and_retry(state: str) -> None:
    ledger = at_work(state)
    ledger.must(change("cancel", "j"))
    found = job(ledger)
    assert (found.state, found.error_code, found.error) == (
        "cancelled",
        "cancelled",
        "cancelled by me",
    )
    assert found.finished_at_ms > 0
    assert [a.state for a in ledger.reader.attempts("j", "leased")] == []
    assert [t.state for t in ledger.reader.tasks("j")] == ["cancelled"] * found.planned
    sound(ledger)
    # A worker that heard nothing yet hands back in vain.
    if state == "running":
        assert ledger.do(ledger.finish("a")).code == "stale_token"
    ledger.must(change("retry", "j"))
    found = job(ledger)
    assert (found.state, found.error_code, found.finished_at_ms) == ("queued", "", 0)
    sound(ledger)
    if found.planned:
        ledger.leased("j", "again", "anna")
        attempts = ledger.reader.attempts("j")
        assert [a.number for a in attempts] == [1, 2]
        ledger.must(ledger.finish("again"))
        ledger.must(ledger.accept("j", "again"))
        sound(ledger)


@pytest.mark.parametrize("state", ["publishing", "done", "failed"])
def test_what_cannot_be_cancelled_stays(state: str) -> None:
    ledger = at_work(state)
    before = job(ledger)
    ledger.must(change("cancel", "j", "unknown"))
    assert job(ledger) == before


def test_retry_forgets_tries_and_excluded_nodes() -> None:
    ledger = at_work("running")
    ledger.must(ledger.fail("a", node="bert", failure="encoder"))
    for name in ("b", "c", "d"):
        ledger.leased("j", name, "anna")
        ledger.must(ledger.fail(name, node="anna", report=RAN))
    found = job(ledger)
    assert found.state == "failed"
    assert found.error.startswith("set aside after 4 failures (anna 3, bert 1); the last: it broke")
    assert "mesh-cli retry j" in found.todo
    ledger.must(change("retry", "j"))
    (task,) = ledger.reader.tasks("j")
    assert (task.state, task.tries, task.excluded, task.attempts) == ("ready", 0, (), 4)
    sound(ledger)


@pytest.mark.parametrize("code", ["work_disk_full", "disk_full"])
def test_a_full_disk_is_no_strike_and_shuts_nobody_out(code: str) -> None:
    ledger = Ledger().formed("bert").planned("j", "k", "l")
    for name in ("j", "k", "l"):
        ledger.leased(name, f"a{name}", "bert")
        ledger.must(ledger.fail(f"a{name}", node="bert", code=code, report=RAN))
    bert = ledger.reader.node("bert")
    assert bert is not None
    assert (bert.strikes, bert.quarantine) == ((), "")
    ledger.leased("j", "again", "anna")
    ledger.must(ledger.fail("again", node="anna", report=RAN))
    full = {t.job: (t.disk_full, t.excluded) for t in ledger.reader.schedulable().tasks}
    assert full == {"j": (1, ()), "k": (1, ()), "l": (1, ())}
    # Once a person says so, everything counts anew.
    ledger.must(ledger.give_up("k"))
    ledger.must(change("retry", "k"))
    ledger.leased("k", "more", "bert")
    ledger.must(ledger.fail("more", node="bert", report=RAN))
    full = {t.job: (t.disk_full, t.excluded) for t in ledger.reader.schedulable().tasks}
    assert full["k"] == (0, ())


def test_two_live_jobs_never_write_one_file() -> None:
    ledger = at_work("failed")
    ledger.must(c.SubmitJobs(jobs=(job_spec("k", output=job(ledger).output),)))
    ledger.must(change("retry", "j"))
    assert job(ledger).state == "failed"
    ledger.must(change("cancel", "k"))
    ledger.must(change("retry", "j"))
    assert job(ledger).state == "queued"


def test_priority_reaches_tasks() -> None:
    ledger = at_work("running")
    ledger.must(change("priority", "j", priority=7))
    assert job(ledger).priority == 7
    assert [t.priority for t in ledger.reader.tasks("j")] == [7]
    assert ledger.reader.events("j")[-1].what == "priority 7, by me"
    assert ledger.do(change("priority", "j", priority=10**6)).code == "usage"


def test_a_command_is_bounded() -> None:
    ledger = Ledger().formed()
    many = tuple(str(n) for n in range(o.ORDERED_PER_COMMAND_MAX + 1))
    assert ledger.do(change("cancel", *many)).code == "usage"


# --- sweeps -----------------------------------------------------------------------------------------


def sweep(
    ledger: Ledger, limit: int = 3, action: o.Action = "cancel", **chosen: Any
) -> list[list[str]]:
    """Carries an order out as the coordinator does; the ids of each step."""
    name = f"s{ledger.store.applied_index}"
    ledger.must(
        o.StartSweep(id=name, action=action, priority=5, chosen=o.Chosen(**chosen), by="me")
    )
    steps: list[list[str]] = []
    while found := ledger.reader.open_sweeps():
        page = ledger.reader.sweep_page(found[0], limit)
        last = len(page) < limit
        ledger.must(
            o.StepSweep(
                sweep=name,
                cursor=found[0].cursor,
                down_to=0 if last else page[-1][0],
                jobs=tuple(job for _, job in page),
                last=last,
            )
        )
        steps.append([job for _, job in page])
    return steps


def test_a_sweep_goes_from_new_to_old_and_counts() -> None:
    ledger = Ledger().formed().submitted(*(f"j{n}" for n in range(8)))
    assert sweep(ledger) == [["j7", "j6", "j5"], ["j4", "j3", "j2"], ["j1", "j0"]]
    (done,) = [ledger.reader.sweep(f"s{n}") for n in range(99) if ledger.reader.sweep(f"s{n}")]
    assert done is not None
    assert (done.changed, done.skipped, done.cursor) == (8, 0, 0)
    assert {one.state for one in ledger.reader.jobs()} == {"cancelled"}
    sound(ledger)


def test_a_sweep_leaves_what_one_cancel_after_the_other_leaves() -> None:
    def of(orders: Callable[[Ledger], object]) -> list[object]:
        ledger = Ledger().formed("bert").submitted("new", "older").planned("planned")
        ledger.submitted("planning").leased("planned", "a", "bert")
        ledger.must(c.StartPlanning(job="planning"))
        ledger.now_ms = 9_000
        orders(ledger)
        sound(ledger)
        rows = ledger.store.connection.execute("SELECT * FROM job ORDER BY seq").fetchall()
        told = "SELECT job, at_ms, kind, node, what FROM event ORDER BY job, id"
        return [*rows, *ledger.store.connection.execute(told)]

    names = ("new", "older", "planned", "planning")
    one_by_one = of(lambda ledger: ledger.must(change("cancel", *names)))
    assert of(lambda ledger: sweep(ledger, 9)) == one_by_one


def test_jobs_that_come_later_are_not_meant() -> None:
    ledger = Ledger().formed().submitted("old")
    ledger.must(o.StartSweep(id="s", action="cancel", priority=0, chosen=o.Chosen(), by="me"))
    ledger.submitted("new")
    (found,) = ledger.reader.open_sweeps()
    assert [job for _, job in ledger.reader.sweep_page(found, 9)] == ["old"]


def test_a_step_counts_once() -> None:
    ledger = Ledger().formed().submitted("a", "b")
    ledger.must(o.StartSweep(id="s", action="cancel", priority=0, chosen=o.Chosen(), by="me"))
    (found,) = ledger.reader.open_sweeps()
    step = o.StepSweep(
        sweep="s", cursor=found.cursor, down_to=job(ledger, "b").seq, jobs=("b",), last=False
    )
    ledger.must(step)
    assert ledger.do(step).code == "conflict"
    assert ledger.reader.open_sweeps()[0].changed == 1


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        ({"folder": "/films/a"}, ["a1", "a2"]),
        ({"folder": "/films/a/"}, ["a1", "a2"]),
        ({"folder": "/films/a/1.mkv"}, ["a1"]),
        ({"folder": "/films/a%"}, []),
        ({"profile": "web"}, ["b1"]),
        ({"tenant": "t"}, ["b1"]),
        ({"node": "bert"}, ["c1"]),
        ({"since_ms": 3_000}, ["c1"]),
        ({"until_ms": 3_000}, ["a1", "a2", "b1"]),
        ({"states": ("planning",)}, []),
        ({"profile": "web", "tenant": "other"}, []),
    ],
)
def test_jobs_are_chosen(chosen: dict[str, Any], found: list[str]) -> None:
    ledger = Ledger().formed("bert")
    ledger.now_ms = 1_000
    ledger.must(
        c.SubmitJobs(
            jobs=(
                job_spec("a1", source="/films/a/1.mkv"),
                job_spec("a2", source="/films/a/b/2.mkv"),
                job_spec("b1", source="/films/ab/1.mkv", profile="web", tenant="t"),
            )
        )
    )
    ledger.now_ms = 3_000
    ledger.must(c.SubmitJobs(jobs=(job_spec("c1", owner="bert", source="/x"),)))
    assert sorted(one for step in sweep(ledger, **chosen) for one in step) == found


def test_finished_orders_are_forgotten_and_open_ones_bounded() -> None:
    from ledger.apply_orders import SWEEPS_MAX  # noqa: PLC0415 - beside its use

    ledger = Ledger().formed()
    for _ in range(SWEEPS_MAX + 5):
        sweep(ledger)
    assert ledger.store.connection.execute("SELECT count(*) FROM sweep").get == SWEEPS_MAX
    for n in range(SWEEPS_MAX):
        ledger.must(o.StartSweep(id=f"o{n}", action="cancel", priority=0, chosen=o.Chosen(), by=""))
    more = o.StartSweep(id="more", action="cancel", priority=0, chosen=o.Chosen(), by="")
    assert ledger.do(more).code == "busy"


# --- nodes that fail too often ----------------------------------------------------------------------


def fail_on(ledger: Ledger, name: str, node: str, **values: Any) -> None:
    attempt = f"{name}-{node}-{ledger.store.applied_index}"
    ledger.leased(name, attempt, node)
    ledger.must(ledger.fail(attempt, node=node, **({"report": RAN} | values)))


def quarantine(ledger: Ledger, node: str) -> str:
    found = ledger.reader.node(node)
    assert found is not None
    return found.quarantine


def test_a_node_that_fails_three_jobs_in_a_row_gets_no_more_until_it_is_released() -> None:
    ledger = Ledger().formed("bert").planned(*(f"j{n}" for n in range(5)))
    for n in range(2):
        fail_on(ledger, f"j{n}", "bert")
        fail_on(ledger, f"j{n}", "bert", failure="encoder")  # the same job twice is one strike
        assert quarantine(ledger, "bert") == ""
    fail_on(ledger, "j2", "bert")
    assert quarantine(ledger, "bert") == "failed 3 jobs in a row, the last with ffmpeg"
    ledger.must(node_report("bert", slots=9))
    assert quarantine(ledger, "bert") != "", "what it says of itself releases nobody"
    ledger.must(o.ReleaseNode(node="bert", by="bert"))
    assert quarantine(ledger, "bert") == ""
    fail_on(ledger, "j3", "bert")
    assert quarantine(ledger, "bert") == ""


def test_a_result_takes_strikes_back() -> None:
    ledger = Ledger().formed("bert").planned(*(f"j{n}" for n in range(5)))
    fail_on(ledger, "j0", "bert")
    fail_on(ledger, "j1", "bert")
    ledger.leased("j2", "good", "bert")
    ledger.must(ledger.finish("good"))
    fail_on(ledger, "j3", "bert")
    assert quarantine(ledger, "bert") == ""


def test_a_job_that_others_fail_at_too_is_nobodys_strike() -> None:
    ledger = Ledger().formed("bert").planned(*(f"j{n}" for n in range(9)))
    for n in range(9):
        fail_on(ledger, f"j{n}", "bert")
        fail_on(ledger, f"j{n}", "anna")
    assert quarantine(ledger, "anna") == quarantine(ledger, "bert") == ""


def test_what_was_no_run_of_ffmpeg_is_no_strike() -> None:
    ledger = Ledger().formed("bert").planned(*(f"j{n}" for n in range(9)))
    quiet = c.AttemptReport(**{**{f: getattr(RAN, f) for f in RAN.__slots__}, "command_line": ""})
    for n in range(5):
        fail_on(ledger, f"j{n}", "bert", report=quiet)
    assert quarantine(ledger, "bert") == ""


# --- history and content ----------------------------------------------------------------------------


def test_what_is_forgotten_leaves_what_was_converted() -> None:
    ledger = at_work("done")
    found = ledger.reader.converted(1_000, "d" * 64, "{}")
    assert isinstance(found, Job)
    assert ledger.reader.is_result(77, "e" * 64)
    assert not ledger.reader.is_result(77, "f" * 64)
    assert ledger.reader.converted(1_000, "d" * 64, '{"other": 1}') is None
    ledger.submitted("open")
    assert ledger.reader.result_at("anna", "/films/j.mp4", 77) == "av1"
    assert ledger.reader.result_at("anna", "/films/j.mp4", 78) is None
    assert ledger.reader.result_at("bert", "/films/j.mp4", 77) is None
    ledger.must(o.ForgetJobs(jobs=("j", "open", "unknown")))
    assert ledger.reader.result_profiles(77, "e" * 64) == ("av1",)
    assert ledger.reader.result_profiles(77, "f" * 64) == ()
    assert (ledger.reader.has_results_of(77), ledger.reader.has_results_of(7)) == (True, False)
    assert ledger.reader.job("j") is None
    assert ledger.job_state("open") == "queued"
    for table in ("task", "attempt"):
        assert ledger.store.connection.execute(f"SELECT count(*) FROM {table}").get == 0
    assert ledger.store.connection.execute("SELECT count(*) FROM event WHERE job = 'j'").get == 0
    assert ledger.reader.may_know(1_000)
    assert not ledger.reader.may_know(100)
    kept = ledger.reader.converted(1_000, "d" * 64, "{}")
    assert kept == Converted(
        id=f"1000/{'d' * 64}/{found.definition}", output=found.output, at_ms=77
    )
    sound(ledger)


def test_old_ones_and_too_many_are_forgotten() -> None:
    ledger = Ledger().formed()
    for n in range(4):
        ledger.now_ms = 1_000 * (n + 1)
        ledger.submitted(f"j{n}")
        ledger.must(change("cancel", f"j{n}"))
    ledger.submitted("open")

    def names(**values: int) -> list[str]:
        given = {"ended_before_ms": 0, "keep": 0, "limit": 9} | values
        return [one.id for one in ledger.reader.to_forget(**given)]

    assert names() == []
    assert names(ended_before_ms=3_000) == ["j0", "j1"]
    assert names(keep=3) == ["j0"]
    assert names(keep=1, limit=2) == ["j0", "j1"]
    assert names(keep=4) == []


def test_folders_are_watched_once() -> None:
    ledger = Ledger().formed("bert")
    watch = o.AddWatch(id="w", node="anna", folder="/in", profile="web", settings="{}")
    ledger.must(watch)
    assert ledger.do(watch).code == "conflict"
    again = o.AddWatch(id="x", node="anna", folder="/in", profile="web", settings="{}")
    assert "already" in ledger.do(again).what
    assert (
        ledger.do(o.AddWatch(id="y", node="who", folder="/", profile="web", settings="")).code
        == "not_found"
    )
    assert [w.id for w in ledger.reader.watches("anna")] == ["w"]
    assert ledger.reader.watches("bert") == ()
    ledger.must(o.RemoveWatch(id="w", by="me"))
    assert ledger.do(o.RemoveWatch(id="w", by="me")).code == "not_found"
    assert ledger.reader.watches() == ()


def test_profiles_are_put_replaced_and_removed() -> None:
    ledger = Ledger().formed("bert")
    ledger.must(o.PutProfile(name="tiny", definition='{"a":1}', by="me"))
    ledger.must(o.PutProfile(name="tiny", definition='{"a":2}', by="me"))
    ledger.must(o.PutProfile(name="big", definition="{}", by="me"))
    kept = ledger.reader.profile("tiny")
    assert kept is not None
    assert kept.definition == '{"a":2}'
    assert [profile.name for profile in ledger.reader.profiles()] == ["big", "tiny"]
    ledger.must(o.RemoveProfile(name="tiny", by="me"))
    assert ledger.reader.profile("tiny") is None
    assert ledger.do(o.RemoveProfile(name="tiny", by="me")).code == "not_found"
    sound(ledger)


def test_profiles_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger().formed("bert")
    monkeypatch.setattr(apply_orders, "PROFILES_MAX", 2)
    for name in ("a", "b"):
        ledger.must(o.PutProfile(name=name, definition="{}", by="me"))
    assert ledger.do(o.PutProfile(name="c", definition="{}", by="me")).code == "busy"
    ledger.must(o.PutProfile(name="b", definition="[]", by="me"))
    long = "x" * (apply_orders.DEFINITION_BYTES_MAX + 1)
    assert ledger.do(o.PutProfile(name="a", definition=long, by="me")).code == "usage"


# --- places and tenants -----------------------------------------------------------------------------


def placed(job: str, *place: str, **values: Any) -> c.SubmitPlacedFilms:
    films = films_of([job_spec(job, **values)])
    given = {field.name: getattr(films, field.name) for field in dataclasses.fields(films)}
    return c.SubmitPlacedFilms(**given, place=place)


def test_a_place_is_kept_with_its_job_and_with_its_task() -> None:
    ledger = Ledger().formed("bert")
    ledger.must(placed("j", *place_of(["attic"], ["bert"])))
    ledger.must(c.StartPlanning(job="j"))
    ledger.must(plan_of("j"))
    assert job(ledger).place == ("attic", "@bert")
    (seen,) = ledger.reader.schedulable().tasks
    assert seen.place == ("attic", "@bert")
    # Once the one node that was asked for cannot do it, nobody is left.
    ledger.leased("j", "a", "bert")
    ledger.must(ledger.fail("a", node="bert", failure="encoder"))
    assert job(ledger).state == "failed"
    assert ledger.refused(placed("k", *(f"l{n}" for n in range(18)))) == "usage"
    sound(ledger)


def test_a_label_may_come_so_its_job_waits() -> None:
    ledger = Ledger().formed("bert")
    ledger.must(placed("j", "attic"))
    ledger.must(c.StartPlanning(job="j"))
    ledger.must(plan_of("j"))
    ledger.leased("j", "a", "bert")
    ledger.must(ledger.fail("a", node="bert", failure="encoder"))
    assert job(ledger).state == "queued"


def test_tenants_have_shares_and_quotas_until_they_are_removed() -> None:
    ledger = Ledger().formed()
    ledger.must(o.PutTenant(name="a", share=3, slots=o.NO_LIMIT, by="me"))
    ledger.must(o.PutTenant(name="b", share=1, slots=2, by="me"))
    seen = ledger.reader.schedulable()
    assert (seen.shares, seen.quotas) == ({"a": 3, "b": 1}, {"b": 2})
    ledger.must(o.PutTenant(name="b", share=2, slots=0, by="me"))
    ledger.must(o.RemoveTenant(name="a", by="me"))
    seen = ledger.reader.schedulable()
    assert (seen.shares, seen.quotas) == ({"b": 2}, {"b": 0})
    assert ledger.refused(o.RemoveTenant(name="a", by="me")) == "not_found"
    assert ledger.refused(o.PutTenant(name="a", share=0, slots=0, by="me")) == "usage"
    assert ledger.refused(o.PutTenant(name="a", share=1, slots=-2, by="me")) == "usage"
    assert ledger.refused(o.PutTenant(name="a" * 65, share=1, slots=0, by="me")) == "usage"
    for bad in ({"queued_jobs": -2}, {"queued_bytes": -2}):
        given = {"name": "a", "share": 1, "slots": 0, "by": "me"}
        assert ledger.refused(o.PutTenant(**given, **bad)) == "usage"
    (row,) = ledger.reader.tenants()
    assert (row.queued_jobs, row.queued_bytes) == (o.NO_LIMIT, o.NO_LIMIT)
    ledger.must(o.PutTenant(name="b", share=2, slots=0, by="me", queued_jobs=5, queued_bytes=0))
    (row,) = ledger.reader.tenants()
    assert (row.queued_jobs, row.queued_bytes) == (5, 0)
    sound(ledger)


def test_what_a_tenant_has_waiting_is_what_nobody_works_on() -> None:
    ledger = Ledger().formed().planned("j1", "j2", "j3", tenant="a").submitted("j4", tenant="a")
    ledger.submitted("j5", source_bytes=7)
    assert ledger.reader.waiting_by_tenant() == {"a": (4, 4_000), "": (1, 7)}
    ledger.leased("j1", "a1", "anna")
    ledger.leased("j2", "a2", "anna")
    ledger.must(ledger.fail("a2", backoff_ms=9))  # it waits once more
    ledger.must(o.ChangeJobs(jobs=("j3",), action="cancel", priority=0, by="me"))
    assert ledger.reader.waiting_by_tenant() == {"a": (2, 2_000), "": (1, 7)}


def test_what_waits_for_a_place_or_a_quota_holds_up_no_planning() -> None:
    ledger = Ledger().formed()
    for n in range(6):
        ledger.must(placed(f"p{n}", "attic", priority=9))
    ledger.submitted("plain", "other", tenant="")
    ledger.submitted("theirs", tenant="b")

    def to_plan(*, oldest: bool = False) -> list[str]:
        return [one.id for one in ledger.reader.jobs_to_plan("anna", 3, oldest=oldest)]

    assert to_plan() == ["p0", "p1", "p2"]
    for name in to_plan():
        ledger.must(c.StartPlanning(job=name))
        ledger.must(plan_of(name))
    assert to_plan() == ["plain", "other", "theirs"]
    assert to_plan(oldest=True) == ["plain", "other", "theirs"]
    ledger.leased("p0", "a", "anna")
    assert to_plan() == ["p3", "plain", "other"]
    assert to_plan(oldest=True)[0] == "p3", "the oldest that may be planned"
