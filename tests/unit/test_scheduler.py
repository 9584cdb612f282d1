"""Where work goes once speeds are measured, whose turn it is, and every reason of a wait."""

from dataclasses import replace
from itertools import count
from typing import Any

from ledger.commands import GrantLeases
from ledger.estimates import with_estimates
from ledger.jobs import Job
from ledger.lines import AHEAD_A_SLOT_MAX, AHEAD_MS, ends_of_waiting, lines_of
from ledger.placing import place_of
from ledger.scheduler import (
    OLDEST_EVERY,
    PLANNED_AHEAD_MAX,
    SPARE_BYTES,
    decide,
    explain,
)
from ledger.scheduler_view import NodeView, RunningView, SchedulerView, TaskView, Turns
from node.faces.waiting import Seen, reasons


def task(name: str, **values: Any) -> TaskView:
    given: dict[str, Any] = {
        "task": name,
        "job": name,
        "owner": "anna",
        "needs": ("x",),
        "cost": 1_000,
        "priority": 0,
        "seq": 1,
        "attempts": 0,
        "excluded": (),
        "backoff_ms": 0,
        "profile": "web",
    }
    return TaskView(**(given | values))


def node(name: str, speed: int = 0, **values: Any) -> NodeView:
    given: dict[str, Any] = {
        "node": name,
        "name": name,
        "role": "full",
        "encoders": ("x",),
        "slots": 1,
        "busy": 0,
        "cpus": 4,
        "alive": True,
        "speeds": {"web": speed} if speed else {},
    }
    return NodeView(**(given | values))


def run(attempt: str, node: str, **values: Any) -> RunningView:
    return RunningView(attempt=attempt, node=node, task=task(f"of {attempt}"), **values)


def view(tasks: list[TaskView], nodes: list[NodeView], **values: Any) -> SchedulerView:
    numbers = count()
    return SchedulerView(
        tasks=tuple(tasks),
        nodes=tuple(nodes),
        new_attempt_id=lambda: str(next(numbers)),
        **values,
    )


def leased(wanted: SchedulerView) -> dict[str, str]:
    found = decide(wanted, 0).commands
    return {x.task: x.node for g in found if isinstance(g, GrantLeases) for x in g.leases}


def test_the_faster_node_is_chosen_and_a_far_film_only_where_it_pays() -> None:
    slow, fast = node("anna", 100), node("bert", 1_000)
    assert leased(view([task("t")], [slow, fast])) == {"t": "bert"}
    # Ten seconds here, or one second and twenty of fetching.
    far = replace(fast, links={"anna": 50_000_000})
    assert leased(view([task("t", source_bytes=10**9)], [slow, far])) == {"t": "anna"}
    near = replace(fast, links={"anna": 500_000_000})
    assert leased(view([task("t", source_bytes=10**9)], [slow, near])) == {"t": "bert"}


def test_a_slow_node_does_not_begin_at_the_end_what_a_faster_one_ends_sooner() -> None:
    slow = node("anna", 10)
    busy = node("bert", 1_000, busy=1)
    soon, late = ((run("r", "bert", rest_ms=ms),) for ms in (9_000, 200_000))
    assert leased(view([task("t")], [slow, busy], running=soon)) == {}
    assert leased(view([task("t")], [slow, busy], running=late)) == {"t": "anna"}
    # While much is left, everyone works.
    assert leased(view([task("t")], [slow, busy], running=soon, later=10_000)) == {"t": "anna"}
    # A node that may not have it is no reason to wait.
    not_bert = task("t", excluded=("bert",))
    assert leased(view([not_bert], [slow, busy], running=soon)) == {"t": "anna"}


def test_what_one_node_alone_can_do_goes_first_and_short_tasks_last() -> None:
    sound = task("sound", kind="audio", needs=(), cost=1, seq=9)
    tasks = [task("short", cost=10), task("long", cost=1_000), sound]
    assert leased(view(tasks, [node("anna")])) == {"sound": "anna"}
    assert leased(view(tasks, [node("bert"), node("anna")])) == {"sound": "anna", "long": "bert"}
    # With more to come, in their order.
    assert leased(view(tasks, [node("anna")], later=10)) == {"short": "anna"}


def test_when_a_slot_is_free_again_is_reckoned_from_what_runs() -> None:
    runs = (run("a", "n"), run("b", "n"), run("c", "n", waits=True))
    seen = view([], [node("n", 100, slots=2, busy=3)], running=runs)
    reckoned = with_estimates(seen, {"a": 0, "b": 4_000, "c": 0}, 5_000)
    assert [one.rest_ms for one in reckoned.running] == [5_000, 9_000, 10_000]
    assert reckoned.running_cost == 500 + 900 + 1_000
    # What waits has the slot that is free first, and the next one the other.
    assert lines_of(reckoned)["n"].starts_ms(0) == 9_000
    assert lines_of(reckoned)["n"].starts_ms(1) == 5_000
    assert ends_of_waiting(reckoned) == {"c": 15_000}


def busy_view(tasks: list[TaskView], rest_ms: float, **values: Any) -> SchedulerView:
    """Bert has one slot, which is taken for a while."""
    busy = node("bert", 1_000, busy=1)
    return view(tasks, [busy], running=(run("r", "bert", rest_ms=rest_ms),), ahead=True, **values)


def test_a_slot_that_is_soon_free_is_leased_ahead() -> None:
    assert leased(busy_view([task("t")], AHEAD_MS - 1)) == {"t": "bert"}
    assert leased(busy_view([task("t")], AHEAD_MS + 1)) == {}
    # What takes long to fetch is leased sooner: 20 s by a link that was not measured.
    far = task("t", source_bytes=10**9)
    assert leased(busy_view([far], AHEAD_MS + 25_000)) == {"t": "bert"}
    assert leased(busy_view([far], AHEAD_MS + 35_000)) == {}
    # Members of before begin every lease at once; and nothing is known of a profile that nobody ran.
    assert leased(replace(busy_view([task("t")], 0), ahead=False)) == {}
    assert leased(busy_view([task("t", profile="new")], 0)) == {}


def test_what_is_leased_ahead_is_bounded_by_time_and_number() -> None:
    seconds = [task(f"t{n}", seq=n) for n in range(90)]
    # Each takes a second: those that begin within the time.
    assert len(leased(busy_view(seconds, 500, later=1))) == AHEAD_MS // 1_000
    quick = [replace(one, cost=1) for one in seconds]
    assert len(leased(busy_view(quick, 500, later=1))) == AHEAD_A_SLOT_MAX
    full = busy_view(quick, 500, later=1)
    waiting = tuple(run(f"w{n}", "bert", waits=True, rest_ms=1) for n in range(AHEAD_A_SLOT_MAX))
    full = replace(full, running=full.running + waiting)
    full = replace(full, nodes=(replace(full.nodes[0], busy=1 + AHEAD_A_SLOT_MAX),))
    assert leased(full) == {}
    assert explain(full, quick[0], 0)[0] == "bert: has no free slot (1 of 1 taken, 16 wait for one)"
    # What waits is no reason for what is more urgent.
    urgent = replace(quick[0], priority=1)
    assert leased(replace(full, tasks=(urgent,))) == {"t0": "bert"}


def test_a_free_slot_comes_before_one_that_is_soon_free_unless_that_is_done_sooner() -> None:
    idle, busy = node("anna", 1_000), node("bert", 1_000, busy=1)
    soon = (run("r", "bert", rest_ms=100),)
    assert leased(view([task("t")], [idle, busy], running=soon, ahead=True)) == {"t": "anna"}
    fast = replace(busy, speeds={"web": 10_000})
    assert leased(view([task("t")], [idle, fast], running=soon, ahead=True)) == {"t": "bert"}


def test_what_waits_is_asked_back_for_an_idle_node_that_ends_it_sooner() -> None:
    slow, idle = node("anna", 10, busy=2), node("bert", 1_000)
    held = (run("r", "anna", rest_ms=9_000), run("w", "anna", waits=True, rest_ms=100_000))
    asked = view([], [slow, idle], running=held, ahead=True)
    assert decide(asked, 0).back == (("anna", "w"),)
    # Not what has begun, not for a slot that something else needs, not where it gains nothing.
    assert decide(replace(asked, running=held[:1]), 0).back == ()
    assert decide(replace(asked, tasks=(task("t"),)), 0).back == ()
    alike = (replace(held[0], rest_ms=100), replace(held[1], rest_ms=1_000))
    assert decide(replace(asked, running=alike), 0).back == ()
    assert decide(replace(asked, nodes=(slow, replace(idle, closed="is paused"))), 0).back == ()


def test_what_a_round_grants_counts_for_disks_at_once() -> None:
    room = SPARE_BYTES + 250
    tasks = [task(f"t{n}", seq=n, source_bytes=100) for n in range(3)]
    nodes = [node("bert", slots=9, free_bytes=room)]
    assert leased(view(tasks, nodes)) == {"t0": "bert"}
    assert len(leased(view(tasks, [node("anna", slots=9, free_bytes=room)]))) == 2


def test_what_runs_and_waits_at_a_node_has_its_part_of_the_disk() -> None:
    film = task("t", source_bytes=100 << 20)
    other = replace(film, task="o")
    full = SPARE_BYTES + (400 << 20)
    bert = node("bert", 1_000, slots=3, busy=1, free_bytes=full)

    def with_one(**values: Any) -> SchedulerView:
        held = RunningView(attempt="a", node="bert", task=other, **values)
        return view([film, replace(film, task="u", seq=2)], [bert], running=(held,), later=9)

    # 200 MiB each: what has only begun needs all of it, half done the half, what waits all again.
    assert leased(with_one()) == {"t": "bert"}
    assert leased(with_one(left=0.5)) == {"t": "bert"}
    assert sorted(leased(with_one(left=0.0))) == ["t", "u"]
    assert leased(with_one(waits=True)) == {"t": "bert"}
    tight = replace(bert, free_bytes=full - (201 << 20))
    seen_now = replace(with_one(), nodes=(tight,))
    assert leased(seen_now) == {}
    assert explain(seen_now, film, 0)[0] == (
        "bert: has too little disk (255 MiB free beside 200 MiB for what it has, 456 MiB needed)"
    )
    # How much is left is reckoned with how long.
    (run_now,) = with_estimates(with_one(), {"a": 0}, 250).running
    assert run_now.left == 0.75


def test_a_film_that_filled_a_disk_asks_for_more_and_comes_back_when_there_is_room() -> None:
    film = task("t", source_bytes=100, disk_full=1)
    tight = node("bert", free_bytes=SPARE_BYTES + 399)
    assert leased(view([film], [tight])) == {}
    said = explain(view([film], [tight]), film, 0)
    assert said[0].startswith("bert: has too little disk")
    roomy = replace(tight, free_bytes=SPARE_BYTES + 400)
    assert leased(view([film], [tight, replace(roomy, node="cleo")])) == {"t": "cleo"}
    assert leased(view([film], [roomy])) == {"t": "bert"}


def test_tenants_take_turns_by_cost_and_share() -> None:
    tasks = [task(f"a{n}", tenant="a", seq=n) for n in range(9)]
    tasks += [task(f"b{n}", tenant="b", seq=100 + n, cost=500) for n in range(9)]
    found = leased(view(tasks, [node("n", slots=6)], later=1))
    assert sorted(found) == ["a0", "a1", "b0", "b1", "b2", "b3"]
    found = leased(view(tasks, [node("n", slots=5)], later=1, shares={"a": 2}))
    assert sorted(found) == ["a0", "a1", "a2", "b0", "b1"]


def test_a_tenant_gets_no_more_than_its_quota_and_is_told_so() -> None:
    tasks = [task(f"a{n}", tenant="a", seq=n, priority=9) for n in range(9)]
    tasks += [task(f"b{n}", tenant="b", seq=100 + n) for n in range(9)]
    running = (replace(run("x", "n"), task=task("of x", tenant="a")),)
    seen_now = view(tasks, [node("n", slots=6, busy=1)], quotas={"a": 3}, running=running)
    assert sorted(leased(seen_now)) == ["a0", "a1", "b0", "b1", "b2"]
    full = replace(seen_now, quotas={"a": 1})
    assert sorted(leased(full)) == ["b0", "b1", "b2", "b3", "b4"]
    said = explain(full, tasks[0], 0)
    assert said[0].startswith("its tenant a has as many slots as its quota allows, 1")
    assert "quota" not in " ".join(explain(full, tasks[-1], 0))


def test_a_job_goes_only_where_it_may_and_says_what_a_node_lacks() -> None:
    nodes = [
        node("anna", labels=("attic",)),
        node("bert", labels=("attic", "chip")),
        node("cleo", labels=("chip",)),
    ]
    placed = task("t", place=place_of(["attic", "chip"], []))
    assert leased(view([placed], nodes)) == {"t": "bert"}
    asked = task("t", place=place_of(["chip"], ["cleo", "anna"]))
    assert leased(view([asked], nodes)) == {"t": "cleo"}
    nobody = task("t", place=place_of(["cellar"], ["bert"]))
    assert leased(view([nobody], nodes)) == {}
    assert explain(view([nobody], nodes), nobody, 0) == [
        "anna, cleo: lacks the label cellar, is none of the nodes that were asked for (--on)",
        "bert: lacks the label cellar",
    ]
    # Sound and assembly are done where the film is, whatever was asked for.
    sound = replace(nobody, kind="audio", needs=())
    assert leased(view([sound], nodes)) == {"t": "anna"}


def test_turns_go_on_over_rounds_and_nobody_saves_up() -> None:
    turns = Turns()
    granted: list[str] = []
    tasks = [task(f"a{n}", tenant="a", seq=n) for n in range(9)]
    tasks += [task(f"b{n}", tenant="b", seq=100 + n) for n in range(9)]
    for step in range(8):
        ready = [t for t in tasks if t.task not in granted and (step >= 4 or t.tenant == "a")]
        decision = decide(view(ready, [node("n")], turns=turns, later=1), 0)
        turns = decision.turns
        (command,) = decision.commands
        assert isinstance(command, GrantLeases)
        granted += [lease.task for lease in command.leases]
    assert granted[:4] == ["a0", "a1", "a2", "a3"]
    assert sorted(granted[4:]) == ["a4", "a5", "b0", "b1"]


def test_the_oldest_of_lower_priority_has_its_turn() -> None:
    tasks = [task(f"u{n}", priority=9, seq=100 + n) for n in range(40)]
    tasks += [task("lowly", priority=-100, seq=5), task("mean", priority=0, seq=1)]
    found = list(leased(view(tasks, [node("n", slots=2 * OLDEST_EVERY)])))
    assert found.index("mean") == OLDEST_EVERY - 1
    assert found.index("lowly") == 2 * OLDEST_EVERY - 1
    # With one priority age alone decides: no second queue.
    alike = [replace(t, priority=0) for t in tasks]
    assert next(iter(leased(view(alike, [node("n")], later=1)))) == "mean"


def test_every_true_reason_is_told() -> None:
    nodes = [
        node("a", busy=1),
        node("b", busy=1),
        node("c", encoders=()),
        node("d", closed="is paused"),
    ]
    others = [task(f"o{n}", priority=3) for n in range(4)]
    lowly = task("t", priority=-5, excluded=("b",))
    said = explain(view([*others, lowly], nodes), lowly, 0)
    assert said == [
        "a: has no free slot (1 of 1 taken)",
        "b: failed this task before, has no free slot (1 of 1 taken)",
        "c: has none of the encoders x",
        "d: is paused",
        "its priority -5 is lower than that of all 4 others that are ready",
    ]
    many = [node(f"n{n}", alive=False) for n in range(9)]
    assert explain(view([lowly], many), lowly, 0) == ["n0, n1, n2, n3 and 5 more: is not heard"]
    older = [task("old", seq=0), task("high", priority=1)]
    said = explain(view(older, [node("n")]), task("t", seq=5), 0)
    assert said[1:] == [
        "1 of higher priority than 0 come first",
        "1 older of the same priority come first",
    ]


def seen(**values: Any) -> Seen:
    given: dict[str, Any] = {
        "view": view([task("j")], [node("n", encoders=())]),
        "now_ms": 0,
        "has_coordinator": True,
        "owner": "Anna",
        "owner_heard": True,
        "first": 0,
        "leased": False,
    }
    return Seen(**(given | values))


def test_a_job_tells_what_else_it_waits_for() -> None:
    from tests.ledger_helper import Ledger  # noqa: PLC0415 - a real row, for its many columns

    ledger = Ledger().formed().planned("j")
    found = ledger.reader.job("j")
    assert isinstance(found, Job)
    blind = ["no coordinator: too few voters can be reached, nothing new is decided"]
    assert reasons(found, seen(has_coordinator=False))[:1] == blind
    assert reasons(found, seen()) == ["n: has none of the encoders x"]
    assert reasons(found, seen(leased=True)) == []
    held = (replace(run("a", "n", waits=True), task=task("j")), run("b", "n", waits=True))
    ahead = view([], [node("n")], running=held)
    next_one = "n has it next: it begins there when a slot is free"
    assert reasons(found, seen(leased=True, view=ahead)) == [next_one]
    silent = ["its owner Anna, which has the film, is not heard"]
    assert reasons(found, seen(owner_heard=False))[:1] == silent
    new = replace(found, planned=0)
    no_room = "/out has 1 MiB free, a result needs 2 or more; free some there"
    assert reasons(new, seen(first=3, owner_waits=no_room)) == [
        f"its owner Anna cannot plan a film: {no_room}"
    ]
    assert reasons(found, seen(owner_waits=no_room)) == ["n: has none of the encoders x"]
    assert reasons(new, seen(first=3)) == ["its owner Anna plans 3 other films first"]
    # Behind enough of its own kind it waits for what those wait for.
    like = task("o", owner=new.owner, tenant=new.tenant, profile=new.profile)
    many = view([like] * PLANNED_AHEAD_MAX, [node("n", encoders=())])
    (said,) = reasons(new, seen(view=many, first=3))
    assert said.endswith("the first because: n: has none of the encoders x")
    others = replace(many, tasks=(replace(like, tenant="other"),) * PLANNED_AHEAD_MAX)
    assert "plans 3 other films" in reasons(new, seen(view=others, first=3))[0]
    assert reasons(replace(found, state="publishing"), seen()) == []
    assert reasons(replace(found, state="publishing"), seen(owner_heard=False)) == silent
    assert reasons(replace(found, state="failed"), seen(has_coordinator=False)) == []
