"""What the reader gives, and the scheduler makes of it."""

from dataclasses import fields, replace
from itertools import count
from pathlib import Path

import pytest

from ledger import commands as c
from ledger import queries
from ledger.invariants import violations
from ledger.jobs import Attempt, Job, Task
from ledger.planned import first_job
from ledger.queries import Reader
from ledger.scheduler import explain, find, plan
from ledger.scheduler_view import NodeView, SchedulerView, TaskView
from ledger.store_sqlite import LedgerStore, SqliteRows
from ledger.submissions import SubmitPlacedFilms
from ledger.work_reader import READY_TASKS_MAX
from mesh.errors import StorageError
from tests.ledger_helper import Ledger, entry, films_of, grant, job_spec, node_report, plan_of, spec


def test_jobs_page_newest_first() -> None:
    ledger = Ledger().formed("bert")
    for number in range(3):
        ledger.now_ms = 1_000 * (number + 1)
        ledger.submitted(*(f"j{number}{letter}" for letter in "abc"))
    pages: list[list[str]] = []
    before: int | None = None
    while page := ledger.reader.jobs(limit=4, before_seq=before):
        pages.append([job.id for job in page])
        before = page[-1].seq
    assert pages == [["j2c", "j2b", "j2a", "j1c"], ["j1b", "j1a", "j0c", "j0b"], ["j0a"]]
    assert {j.id for j in ledger.reader.jobs(since_ms=3_000)} == {"j2a", "j2b", "j2c"}


def test_jobs_filters() -> None:
    ledger = Ledger().formed("bert").planned("j")
    ledger.submitted("b", owner="bert", tenant="t")
    ledger.leased("j", "a", "bert")
    reader = ledger.reader
    assert [j.id for j in reader.jobs(state="running")] == ["j"]
    assert [j.id for j in reader.jobs(node="bert")] == ["b", "j"]
    assert [j.id for j in reader.jobs(node="anna")] == ["j"]
    assert [j.id for j in reader.jobs(tenant="t")] == ["b"]
    assert reader.jobs(state="done", node="bert", tenant="t", since_ms=1) == ()
    assert reader.count_by_state() == {"running": 1, "queued": 1}


def test_jobs_like() -> None:
    ledger = Ledger().formed().submitted("ja", "jab", "jb")
    assert [j.id for j in ledger.reader.jobs_like("ja")] == ["ja", "jab"]
    assert [j.id for j in ledger.reader.jobs_like("jb")] == ["jb"]
    assert len(ledger.reader.jobs_like("j", limit=3)) == 3
    assert ledger.reader.jobs_like("%") == ()


def test_changed_jobs() -> None:
    ledger = Ledger().formed().submitted("j", "k")
    index = ledger.store.applied_index
    assert ledger.reader.changed_jobs(index, 10) == ()
    ledger.must(c.StartPlanning(job="k"))
    assert [j.id for j in ledger.reader.changed_jobs(index, 10)] == ["k"]
    assert {j.id for j in ledger.reader.changed_jobs(index - 1, 10)} == {"j", "k"}


def test_jobs_of_a_revoked_owner_are_found_until_they_end() -> None:
    ledger = Ledger().formed("bert").submitted("mine")
    ledger.submitted("his", "his-too", owner="bert")
    assert ledger.reader.jobs_without_owner(9) == ()
    ledger.must(c.RevokeMember(node="bert", by="anna"))
    assert [j.id for j in ledger.reader.jobs_without_owner(9)] == ["his", "his-too"]
    assert [j.id for j in ledger.reader.jobs_without_owner(1)] == ["his"]
    ledger.must(ledger.give_up("his"))
    assert [j.id for j in ledger.reader.jobs_without_owner(9)] == ["his-too"]


def test_planning_order() -> None:
    ledger = Ledger().formed("bert").submitted("old", "older")
    ledger.submitted("urgent", priority=5)
    ledger.submitted("his", owner="bert")
    ledger.must(c.StartPlanning(job="older"))
    reader = ledger.reader
    assert [j.id for j in reader.jobs_to_plan("anna", 9)] == ["older", "urgent", "old"]
    assert [j.id for j in reader.jobs_to_plan("anna", 2)] == ["older", "urgent"]
    assert [j.id for j in reader.jobs_to_plan("anna", 2, oldest=True)] == ["older", "old"]
    assert [j.id for j in reader.jobs_to_plan("anna", 9, oldest=True)] == ["older", "old", "urgent"]
    assert [j.id for j in reader.jobs_of_owner("anna", ("queued", "planning"))] == [
        "old",
        "older",
        "urgent",
    ]


def test_a_new_job_is_planned_early_where_it_is_the_next_one_anyway() -> None:
    ledger = Ledger().formed("bert")
    coming = first_job(films_of([job_spec("j")]))
    assert coming is not None

    def may(ahead: int = 9) -> bool:
        return ledger.reader.may_plan_early(coming, ahead)

    ledger.submitted("his", owner="bert")
    assert may()
    ledger.must(films_of([job_spec("j")]))
    assert may(), "it does not wait for itself"
    ledger.planned("k")
    assert may(2)
    assert not may(1), "enough of this owner is ready"
    ledger.submitted("older")
    assert not may(), "another waits for its plan"
    ledger.must(c.StartPlanning(job="older"))
    assert not may(), "another is planned"
    ledger.must(plan_of("older"))
    assert may()


def test_the_first_job_of_a_submission_is_foreseen_as_it_enters_the_ledger() -> None:
    ledger = Ledger().formed("bert")
    films = films_of([job_spec("j", priority=3, tenant="t", split=True), job_spec("k")])
    shared = {f.name: getattr(films, f.name) for f in fields(films)}
    placed = SubmitPlacedFilms(**shared, place=("label=fast",))
    coming = first_job(placed)
    ledger.must(placed)
    job = ledger.reader.job("j")
    assert job is not None
    assert coming == replace(job, seq=0, definition=0, created_at_ms=0, updated_at_ms=0)
    assert first_job(replace(films, ids=(), sources=())) is None


def test_rows_of_a_lease() -> None:
    ledger = Ledger().formed("bert").planned("j", "k")
    assert ledger.reader.count_ready_tasks("anna") == 2
    ledger.leased("j", "a", "bert")
    ledger.must(ledger.fail("a"))
    ledger.leased("j", "b", "anna")
    reader = ledger.reader
    assert reader.count_ready_tasks("anna") == 1
    assert [a.id for a in reader.attempts("j")] == ["a", "b"]
    assert [a.id for a in reader.active_attempts()] == ["b"]
    assert [a.id for a in reader.active_attempts(node="bert")] == []
    assert [t.id for t in reader.tasks("j")] == ["j-t"]
    assert reader.applied().index == ledger.store.applied_index
    assert reader.applied().checksum == ledger.store.checksum


def test_schedulable_view() -> None:
    ledger = Ledger().formed("bert").planned("low").planned("high", priority=1)
    ledger.must(c.AddMember(member=spec("silent"), invitation=None))
    ledger.must(c.AddMember(member=spec("gone"), invitation=None))
    ledger.must(node_report("gone"))
    ledger.must(c.RevokeMember(node="gone", by="anna"))
    ledger.planned("k")
    ledger.leased("k", "a", "bert")
    view = ledger.reader.schedulable()
    assert [task.job for task in view.tasks] == ["high", "low"]
    assert {node.node: node.busy for node in view.nodes} == {"anna": 0, "bert": 1}
    with pytest.raises(AssertionError):
        plan(replace(view, nodes=tuple(replace(n, alive=True) for n in view.nodes)), 0)


def test_tasks_that_nobody_can_do_do_not_hide_the_others() -> None:
    ledger = Ledger().formed()
    jobs = [f"j{number:04}" for number in range(READY_TASKS_MAX)]
    commands: list[c.Command] = [c.SubmitJobs(jobs=tuple(map(job_spec, jobs)))]
    for job in jobs:
        needs = c.TaskSpec(id=f"{job}-t", kind="whole", needs=("none_has",), cost=1)
        commands += [c.StartPlanning(job=job), plan_of(job, needs)]
    first = ledger.store.applied_index + 1
    ledger.store.apply([entry(index, command) for index, command in enumerate(commands, first)])
    ledger.planned("possible")
    assert find(ledger.reader.schedulable().tasks, "possible") is not None


def test_reader_of_a_file(tmp_path: Path) -> None:
    path = str(tmp_path / "ledger.db")
    store = LedgerStore(path)
    reader = Reader(path)
    store.apply([entry(1, c.FormMesh(mesh="m", founder=spec("anna")))])
    assert reader.mesh() is not None
    assert reader.member_by_name("anna") == reader.member("anna")
    store.apply([entry(2, c.AddMember(member=spec("bert"), invitation=None))])
    assert reader.applied().index == 2
    reader.close()
    store.close()
    with pytest.raises(StorageError):
        Reader(str(tmp_path / "none.db")).mesh()


# --- scheduler ----------------------------------------------------------------------------------


def task(name: str, **values: object) -> TaskView:
    made = TaskView(
        task=name,
        job=f"job-{name}",
        owner="anna",
        needs=("av1", "av1_hw"),
        cost=1,
        priority=0,
        seq=1,
        attempts=0,
        excluded=(),
        backoff_ms=0,
    )
    return replace(made, **values)  # type: ignore[arg-type]  # the table of the test names its fields


def node(name: str, **values: object) -> NodeView:
    made = NodeView(
        node=name,
        name=name.title(),
        role="full",
        encoders=("av1",),
        slots=2,
        busy=0,
        cpus=4,
        alive=True,
    )
    return replace(made, **values)  # type: ignore[arg-type]  # the table of the test names its fields


def leases(tasks: list[TaskView], nodes: list[NodeView], now_ms: int = 0) -> list[tuple[str, str]]:
    numbers = count(1)
    view = SchedulerView(
        tasks=tuple(tasks), nodes=tuple(nodes), new_attempt_id=lambda: f"a{next(numbers)}"
    )
    commands = plan(view, now_ms)
    assert all(isinstance(command, c.GrantLeases) for command in commands)
    granted = [x for g in commands if isinstance(g, c.GrantLeases) for x in g.leases]
    assert [lease.attempt for lease in granted] == [f"a{n + 1}" for n in range(len(granted))]
    return [(lease.task, lease.node) for lease in granted]


def test_priority_then_age() -> None:
    tasks = [task("young", seq=9), task("old", seq=1), task("urgent", seq=10, priority=1)]
    assert leases(tasks, [node("n", slots=2)]) == [("urgent", "n"), ("old", "n")]


def test_the_emptiest_node_then_the_owner_then_the_stronger() -> None:
    assert leases([task("t")], [node("anna", busy=1), node("bert")]) == [("t", "bert")]
    assert leases([task("t")], [node("bert", cpus=64), node("anna")]) == [("t", "anna")]
    assert leases([task("t")], [node("b", cpus=4), node("c", cpus=8)]) == [("t", "c")]
    assert leases([task("t")], [node("c"), node("b")]) == [("t", "b")]
    many = [task(f"t{n}", seq=n) for n in range(4)]
    assert leases(many, [node("anna"), node("bert")]) == [
        ("t0", "anna"),
        ("t1", "bert"),
        ("t2", "anna"),
        ("t3", "bert"),
    ]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"role": "witness"}, "witness"),
        ({"alive": False}, "not heard"),
        ({"busy": 2}, "no free slot (2 of 2 taken)"),
        ({"slots": 0}, "has no slots"),
        ({"closed": "is paused"}, "is paused"),
        ({"free_bytes": 10 << 20}, "too little disk (10 MiB free, 256 MiB needed)"),
        ({"encoders": ("x264",)}, "none of the encoders av1, av1_hw"),
        ({"node": "excluded"}, "failed this task before"),
    ],
)
def test_every_obstacle_is_named(changed: dict[str, object], reason: str) -> None:
    wanted, other = task("t", excluded=("excluded",)), replace(node("n"), **changed)  # type: ignore[arg-type]  # the table of the test names its fields
    assert leases([wanted], [other]) == []
    view = SchedulerView(tasks=(wanted,), nodes=(other,))
    (sentence,) = explain(view, wanted, 0)
    assert sentence.startswith("N: ")
    assert reason in sentence


def test_explain_without_obstacle() -> None:
    view = SchedulerView(tasks=(task("t"),), nodes=())
    assert explain(view, task("t"), 0) == ["no node works in this mesh"]
    again = "it failed and is tried again in 2 s"
    assert explain(view, task("t", eligible_at_ms=1_500), 0) == [
        again,
        "no node works in this mesh",
    ]
    able = SchedulerView(tasks=(), nodes=(node("n"),))
    assert explain(able, task("t"), 0) == ["N: could take it"]
    assert explain(able, task("t", eligible_at_ms=1_500), 0) == [again, "N: could take it"]


def test_waits_are_waited() -> None:
    waiting = [task("t", eligible_at_ms=100)]
    assert leases(waiting, [node("n")], 99) == []
    assert leases(waiting, [node("n")], 100) == [("t", "n")]


def test_grants_come_in_bounded_commands() -> None:
    many = [task(f"t{n}", seq=n) for n in range(c.LEASES_PER_COMMAND_MAX + 1)]
    numbers = count()
    view = SchedulerView(
        tasks=tuple(many),
        nodes=(node("n", slots=1_000),),
        new_attempt_id=lambda: str(next(numbers)),
        granted_at_ms=5,
    )
    sizes = [len(g.leases) for g in plan(view, 0) if isinstance(g, c.GrantLeases)]
    assert sizes == [c.LEASES_PER_COMMAND_MAX, 1]


def test_find() -> None:
    assert find([task("a"), task("b")], "job-b") == task("b")
    assert find([], "job-b") is None


# --- invariants can fail ------------------------------------------------------------------------


def broken(change: object) -> list[str]:
    ledger = Ledger().formed("bert").planned("j", "k")
    ledger.leased("j", "a", "bert")
    rows = SqliteRows(ledger.store.connection)
    assert callable(change)
    change(rows)
    return violations(rows)


def _row(rows: SqliteRows, cls: type, key: str) -> object:
    found = rows.get(cls, key)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("cls", "key", "values", "sentence"),
    [
        (Task, "j-t", {"job": "x"}, "of a job that does not exist"),
        (Attempt, "a", {"task": "x"}, "of no task"),
        (Attempt, "a", {"id": "b"}, "live attempts ['leased', 'leased']"),
        (Task, "j-t", {"state": "finished"}, "is finished with live attempts ['leased']"),
        (Attempt, "a", {"id": "b", "number": 2, "state": "expired"}, "does not grow"),
        (Job, "j", {"state": "verifying"}, "verifying with tasks"),
        (Job, "j", {"state": "done"}, "without an accepted attempt"),
        (Job, "new", {"id": "new", "seq": 99, "planned": 1}, "has no task"),
    ],
)
def test_invariants_see_damage(
    cls: type, key: str, values: dict[str, object], sentence: str
) -> None:
    def damage(rows: SqliteRows) -> None:
        rows.put(replace(_row(rows, cls, "j" if key == "new" else key), **values))  # type: ignore[type-var,arg-type]  # the table of the test names its fields

    found = broken(damage)
    assert any(sentence in line for line in found), found


def test_grant_helper_makes_leases() -> None:
    assert grant(("t", "a", "n")).leases[0].node == "n"


@pytest.mark.parametrize("looked_at", [10_000, 1])
def test_jobs_since_a_time_are_found_whatever_the_order_of_clocks(
    monkeypatch: pytest.MonkeyPatch, looked_at: int
) -> None:
    monkeypatch.setattr(queries, "CREATED_LOOKED_AT_MAX", looked_at)
    ledger = Ledger().formed("bert")
    ledger.submitted("a", "b", "c", "d")
    rows = SqliteRows(ledger.store.connection)
    for job, at_ms in {"a": 50, "b": 10, "c": 40, "d": 30}.items():
        rows.put(replace(_job(rows, job), created_at_ms=at_ms))
    for since_ms, expected in ((0, "dcba"), (30, "dca"), (31, "ca"), (50, "a"), (51, "")):
        found = ledger.reader.jobs(since_ms=since_ms)
        assert "".join(job.id for job in found) == expected, since_ms
        assert ledger.reader.jobs(since_ms=since_ms, limit=1) == found[:1]


def _job(rows: SqliteRows, key: str) -> Job:
    found = rows.get(Job, key)
    assert found is not None
    return found
