"""Which parts run a second time, and where: whose end everybody waits for, and only where it pays."""

from dataclasses import replace
from typing import Any

import pytest

from ledger.commands import SpeculateLeases
from ledger.device_slots import DeviceSlots
from ledger.estimates import with_estimates
from ledger.scheduler import decide
from ledger.scheduler_view import NodeView, RunningView, SchedulerView
from ledger.speculation import A_JOB_MAX, GAIN, GAIN_MS, LATE, LATE_MS, explain_second
from tests.unit.test_scheduler import leased, node, task, view

COST = 10_000
"""Ten seconds for bert and carl, a hundred for slow."""


def chunk(attempt: str, holder: str, job: str = "j", **values: Any) -> RunningView:
    """A part that somebody has and nobody else."""
    part = task(f"{job}-{attempt}", job=job, kind="chunk", cost=COST)
    return RunningView(attempt=attempt, node=holder, **({"task": part, "is_alone": True} | values))


def slow(**values: Any) -> NodeView:
    return node("slow", 100, busy=1, **values)


def idle(name: str = "bert", **values: Any) -> NodeView:
    return node(name, 1_000, **values)


def seconds(wanted: SchedulerView) -> dict[str, str]:
    """Who gets what a second time: the attempt that it is beside, and the node."""
    found = decide(wanted, 0).commands
    return {x.beside: x.node for g in found if isinstance(g, SpeculateLeases) for x in g.leases}


def at_the_end(rest_ms: float, *nodes: NodeView, **values: Any) -> SchedulerView:
    """Slow has the last part, which still takes so long."""
    run = chunk("a", "slow", rest_ms=rest_ms, **values.pop("run", {}))
    return view([], [slow(), *(nodes or (idle(),))], running=(run,), **values)


def test_an_idle_node_helps_with_what_it_would_do_clearly_sooner() -> None:
    assert seconds(at_the_end(90_000)) == {"a": "bert"}
    assert seconds(at_the_end(10_000 * GAIN + 1)) == {"a": "bert"}
    assert seconds(at_the_end(10_000 * GAIN)) == {}
    # Of what is short a part is no gain either: four seconds there, and seven where it is.
    short = task("j-a", job="j", kind="chunk", cost=4_000)
    quick = chunk("a", "slow", rest_ms=4_000 + GAIN_MS, task=short)
    assert seconds(view([], [slow(), idle()], running=(quick,))) == {}
    longer = replace(quick, rest_ms=4_001 + GAIN_MS)
    assert seconds(view([], [slow(), idle()], running=(longer,))) == {"a": "bert"}


def test_the_command_says_what_it_is_beside() -> None:
    (command,) = decide(at_the_end(90_000), 0).commands
    assert isinstance(command, SpeculateLeases)
    (lease,) = command.leases
    assert (lease.task, lease.attempt, lease.node, lease.beside) == ("j-a", "0", "bert", "a")


def test_the_fastest_of_those_that_idle_helps() -> None:
    assert seconds(at_the_end(90_000, idle(), node("carl", 2_000))) == {"a": "carl"}


@pytest.mark.parametrize(
    "other",
    [
        idle(busy=1),
        idle(slots=0),
        idle(alive=False),
        idle(closed="is paused"),
        idle(encoders=("y",)),
        idle(role="witness"),
        idle(free_bytes=1),
    ],
    ids=["busy", "no slots", "silent", "paused", "other encoder", "witness", "disk full"],
)
def test_who_cannot_do_it_does_not_help(other: NodeView) -> None:
    assert seconds(at_the_end(10**9, other)) == {}


def test_of_a_machine_the_device_that_can_do_it_helps_and_never_another_of_the_slow_one() -> None:
    cpu = DeviceSlots(device="cpu", label="", slots=1, encoders=("x",))
    chip = DeviceSlots(device="gpu0", label="", slots=1, encoders=("y",))
    other = DeviceSlots(device="gpu1", label="", slots=1, encoders=("x",))
    run = chunk("a", "slow", rest_ms=90_000, device="cpu")
    beside = slow(devices=(cpu, other))
    both = view([], [beside, idle(devices=(cpu, chip))], running=(run,))
    (command,) = decide(both, 0).commands
    assert isinstance(command, SpeculateLeases)
    assert [(one.node, one.device) for one in command.leases] == [("bert", "cpu")]
    assert seconds(view([], [beside, idle(devices=(chip,))], running=(run,))) == {}
    late = replace(run, rest_ms=10**9)
    assert seconds(view([], [beside], running=(late,))) == {}


def test_a_slot_that_is_only_soon_free_is_kept_for_what_comes() -> None:
    runs = (chunk("a", "slow", rest_ms=90_000), chunk("b", "bert", rest_ms=1_000))
    assert seconds(view([], [slow(), idle(busy=1)], running=runs, ahead=True)) == {}


def test_who_failed_at_it_does_not_help() -> None:
    part = task("j-a", job="j", kind="chunk", cost=COST, excluded=("bert",))
    assert seconds(at_the_end(90_000, run={"task": part})) == {}


def test_a_part_runs_twice_at_most_and_not_on_one_node() -> None:
    first = chunk("a", "slow", rest_ms=90_000, is_alone=False)
    second = chunk("b", "carl", rest_ms=90_000, is_alone=False, task=first.task)
    nodes = [slow(), idle("carl", busy=1), idle()]
    assert seconds(view([], nodes, running=(first, second))) == {}
    # A node with two slots has one for itself.
    wide = node("slow", 100, slots=2, busy=1)
    run = chunk("a", "slow", rest_ms=10**6)
    assert seconds(view([], [wide], running=(run,))) == {}


def test_what_waits_for_a_slot_is_not_run_twice() -> None:
    assert seconds(at_the_end(90_000, run={"waits": True})) == {}


def test_nobody_helps_while_a_task_wants_the_slot() -> None:
    run = chunk("a", "slow", rest_ms=90_000)
    nodes = [slow(), idle()]
    wanted = view([task("t")], nodes, running=(run,))
    assert (leased(wanted), seconds(wanted)) == ({"t": "bert"}, {})
    # It waits for a faster node that is soon free: its slot is kept for it, not given away.
    fast = node("fast", 20_000, busy=1)
    other = RunningView(attempt="o", node="fast", task=task("o"), rest_ms=100)
    waits = view([task("t", cost=30_000)], [*nodes, fast], running=(run, other))
    assert (leased(waits), seconds(waits)) == ({}, {})
    # One that this node cannot do, or may not yet, wants nothing of it.
    unable = view([task("t", needs=("y",))], nodes, running=(run,))
    assert seconds(unable) == {"a": "bert"}
    later = view([task("t", eligible_at_ms=60_000)], nodes, running=(run,))
    assert seconds(later) == {"a": "bert"}


def test_while_jobs_come_only_the_really_slow_are_helped() -> None:
    assert seconds(at_the_end(29_000, later=1)) == {}
    assert seconds(at_the_end(31_000, later=1)) == {"a": "bert"}


def test_the_slowest_parts_of_a_film_are_helped_first_and_not_all_at_once() -> None:
    runs = tuple(chunk(f"a{n}", f"s{n}", rest_ms=50_000 + n) for n in range(6))
    slows = [node(f"s{n}", 100, busy=1) for n in range(6)]
    helpers = [idle(f"i{n}") for n in range(6)]
    found = seconds(view([], [*slows, *helpers], running=runs))
    assert set(found) == {"a5", "a4", "a3", "a2"}
    assert len(set(found.values())) == len(found) == A_JOB_MAX
    # Those that run twice already count.
    pair = (chunk("x", "s0", is_alone=False), chunk("y", "s1", is_alone=False))
    pair = (pair[0], replace(pair[1], task=pair[0].task))
    found = seconds(view([], [*slows, *helpers], running=(*runs, *pair)))
    assert set(found) == {"a5", "a4", "a3"}
    # Of another film as many.
    film = tuple(chunk(f"b{n}", f"s{n}", "k", rest_ms=50_000) for n in range(2))
    assert len(seconds(view([], [*slows, *helpers], running=(*runs, *film)))) == 6


def test_a_quota_bounds_second_attempts_too() -> None:
    assert seconds(at_the_end(90_000, quotas={"": 1})) == {}
    assert seconds(at_the_end(90_000, quotas={"": 2})) == {"a": "bert"}


def test_its_own_progress_tells_more_than_its_nodes_speed() -> None:
    def told(ms: float, ran_ms: int) -> dict[str, str]:
        seen = at_the_end(0, run={"told_ms": ms})
        return seconds(with_estimates(seen, {"a": 0}, ran_ms))

    # By its node's speed it takes a hundred seconds.
    assert told(12_000, 1_000) == {}
    assert told(90_000, 99_000) == {"a": "bert"}
    # Late, and almost there.
    assert told(2_000, 500_000) == {}


def test_who_is_late_and_tells_nothing_is_thought_to_take_as_long_again() -> None:
    late_ms = int(LATE * 100_000 + LATE_MS)
    assert seconds(at_the_end(100, run={"ran_ms": late_ms})) == {}
    assert seconds(at_the_end(100, run={"ran_ms": late_ms + 1})) == {"a": "bert"}


def test_what_a_silent_node_has_is_anybodys() -> None:
    run = chunk("a", "slow", rest_ms=1, told_ms=1.0)
    assert seconds(view([], [slow(alive=False), idle()], running=(run,))) == {"a": "bert"}


def test_without_a_measured_speed_nobody_knows_whether_it_pays() -> None:
    run = chunk("a", "slow", rest_ms=10**9)
    assert seconds(view([], [node("slow", busy=1), node("bert")], running=(run,))) == {}


def test_a_film_says_which_of_its_parts_run_twice() -> None:
    first = chunk("a", "slow", is_alone=False)
    second = chunk("b", "bert", is_alone=False, task=first.task)
    seen = view([], [slow(), idle(busy=1)], running=(first, second, chunk("c", "bert")))
    assert explain_second(seen, "j") == [
        "its part j-a is slow on slow: bert does it as well, and the first result counts"
    ]
    assert explain_second(seen, "k") == []
