"""Devices: which a machine has, how many films each takes, and where the scheduler puts a film."""

from dataclasses import replace
from typing import Any

import pytest

from ledger import commands as c
from ledger.device_slots import (
    CPU,
    DEVICE_SLOTS_MAX,
    DeviceLease,
    DeviceSlots,
    GrantDevices,
    ReportSlots,
    fault_of,
    from_text,
    speed_key,
    to_text,
)
from ledger.estimates import with_estimates
from ledger.placing import place_of
from ledger.scheduler import decide, explain
from ledger.scheduler_view import NodeView, RunningView, SchedulerView, TaskView
from ledger.seats import with_seats
from node.media.cards import SlotRules, cards_of, rules_of, slots_of
from node.media.hardware import Detection, Device, Encoder
from tests.ledger_helper import Ledger, grant, node_report
from tests.unit.test_scheduler import node, task, view

PROCESSOR = DeviceSlots(device=CPU, label="processor", slots=1, encoders=("x264",))
CHIP = DeviceSlots(device="gpu0", label="Chip", slots=1, encoders=("nvenc",))
OTHER = replace(CHIP, device="gpu1")


def machine(name: str, *devices: DeviceSlots, **values: Any) -> NodeView:
    given: dict[str, Any] = {"slots": 1, "encoders": ("x264", "nvenc"), "devices": devices}
    return node(name, **(given | values))


def on_cpu(name: str, **values: Any) -> TaskView:
    return task(name, needs=("x264",), **values)


def on_chip(name: str, **values: Any) -> TaskView:
    return task(name, needs=("nvenc",), **values)


def either(name: str, **values: Any) -> TaskView:
    return task(name, needs=("nvenc", "x264"), **values)


def at(name: str, device: str, **values: Any) -> RunningView:
    return RunningView(attempt=f"a{name}", node="n", device=device, task=on_cpu(name), **values)


def placed(wanted: SchedulerView) -> dict[str, str]:
    """The device of each task that is leased."""
    found: dict[str, str] = {}
    for command in decide(wanted, 0).commands:
        assert isinstance(command, GrantDevices)
        found |= {lease.task: f"{lease.node} {lease.device}" for lease in command.leases}
    return found


def test_processor_and_chips_hold_up_nobody_but_their_own() -> None:
    tasks = [on_cpu(f"c{n}", seq=n) for n in range(3)]
    tasks += [on_chip(f"g{n}", seq=9 + n) for n in range(4)]
    bert = machine("n", PROCESSOR, CHIP, OTHER)
    found = placed(view(tasks, [bert], later=1))
    assert found == {"c0": "n cpu", "g0": "n gpu0", "g1": "n gpu1"}
    full_chips = (at("x", "gpu0"), at("y", "gpu1"))
    assert placed(view(tasks, [bert], later=1, running=full_chips)) == {"c0": "n cpu"}
    full_cpu = (at("x", "cpu"),)
    found = placed(view(tasks, [bert], later=1, running=full_cpu))
    assert found == {"g0": "n gpu0", "g1": "n gpu1"}


def test_more_slots_of_a_chip_take_more_and_none_take_nothing() -> None:
    tasks = [on_chip(f"g{n}", seq=n) for n in range(5)]
    assert len(placed(view(tasks, [machine("n", PROCESSOR, replace(CHIP, slots=3))]))) == 3
    none = machine("n", PROCESSOR, replace(CHIP, slots=0))
    assert placed(view(tasks, [none])) == {}
    assert explain(view(tasks, [none]), tasks[0], 0)[0] == (
        "n: gpu0 has no slots (`mesh-cli nodes limit NAME --device gpu0=N`)"
    )


def test_sound_and_assembly_are_the_processors() -> None:
    bert = machine("anna", replace(PROCESSOR, slots=0), CHIP)
    sound = task("s", kind="audio", needs=())
    assert placed(view([sound], [bert])) == {}
    no_slots = "anna: has no slots (`mesh-cli nodes limit NAME --slots N`)"
    assert explain(view([sound], [bert]), sound, 0)[0] == no_slots
    assert placed(view([sound], [machine("anna", PROCESSOR, CHIP)])) == {"s": "anna cpu"}


def test_the_chip_that_is_wanted_comes_first_and_the_processor_when_all_chips_are_taken() -> None:
    tasks = [either(f"e{n}", seq=n) for n in range(3)]
    bert = machine("n", PROCESSOR, CHIP, speeds={"web": 9_000, speed_key("web", "gpu0"): 10})
    # However much faster the processor is: a person's order is a person's order.
    assert placed(view(tasks, [bert], later=1)) == {"e0": "n gpu0", "e1": "n cpu"}
    assert placed(view(tasks[:1], [bert])) == {"e0": "n gpu0"}
    other = machine("m", PROCESSOR)
    found = placed(view(tasks, [bert, other], later=1))
    assert found["e0"] == "n gpu0"
    assert sorted(found.values()) == ["m cpu", "n cpu", "n gpu0"]


def test_nodes_that_told_of_no_device_work_as_ever_beside_others() -> None:
    old = node("old", slots=2, encoders=("x264", "nvenc"))
    tasks = [on_chip("g0"), on_chip("g1", seq=2), on_chip("g2", seq=3), on_cpu("c", seq=4)]
    found = placed(view(tasks, [old, machine("n", PROCESSOR, CHIP)], later=1))
    assert sorted(found.values()) == ["n cpu", "n gpu0", "old ", "old "]
    (alone,) = decide(view(tasks, [old]), 0).commands
    assert isinstance(alone, c.GrantLeases), "every version reads it"


def test_every_reason_is_of_the_devices_that_count() -> None:
    taken = (at("x", "gpu0"),)
    bert = machine("n", PROCESSOR, CHIP)
    plain = machine("m", PROCESSOR)
    seen = view([on_chip("g")], [bert, plain], running=taken)
    assert explain(seen, seen.tasks[0], 0) == [
        "n: all slots of gpu0 are taken (1 of 1)",
        "m: has none of the encoders nvenc",
    ]
    busy = view([on_cpu("c")], [bert], running=(at("x", CPU),))
    assert explain(busy, busy.tasks[0], 0) == ["n: all slots of cpu are taken (1 of 1)"]
    labelled = on_chip("l", place=place_of(["attic"], []))
    assert explain(view([labelled], [bert]), labelled, 0) == ["n: lacks the label attic"]
    both = view([either("e")], [bert], running=(at("x", "gpu0"), at("y", CPU)))
    assert explain(both, both.tasks[0], 0) == [
        "n: all slots of cpu are taken (1 of 1)",
        "n: all slots of gpu0 are taken (1 of 1)",
    ]


def test_lines_and_speeds_are_of_each_device() -> None:
    speeds = {"web": 100, speed_key("web", "gpu0"): 1_000}
    bert = machine("n", PROCESSOR, CHIP, speeds=speeds)
    cpu, chip = with_seats(view([], [bert])).nodes
    assert (cpu.speeds, chip.speeds) == ({"web": 100}, {"web": 1_000})
    assert (cpu.seat, chip.seat) == ("n/cpu", "n/gpu0")
    runs = (at("x", CPU), at("y", "gpu0"))
    reckoned = with_estimates(view([], [bert], running=runs), {}, 0)
    assert [run.rest_ms for run in reckoned.running] == [10_000, 1_000]
    # A slot of the chip that is soon free is leased ahead, the processor's is not.
    ahead = view([on_chip("g"), on_cpu("c")], [bert], running=reckoned.running, ahead=True, later=1)
    assert placed(ahead) == {"g": "n gpu0"}


def test_what_waits_for_a_chip_is_not_asked_back_for_a_processor() -> None:
    speeds = {"web": 1_000, speed_key("web", "gpu0"): 10, speed_key("web", "gpu1"): 1_000}
    held = at("x", "gpu0", rest_ms=8_000)
    runs = (held, replace(held, attempt="ay", task=either("y"), waits=True, rest_ms=90_000))
    slow = machine("n", PROCESSOR, CHIP, speeds=speeds)
    assert decide(view([], [slow], running=runs, ahead=True), 0).back == ()
    with_other = machine("n", PROCESSOR, CHIP, OTHER, speeds=speeds)
    assert decide(view([], [with_other], running=runs, ahead=True), 0).back == (("n", "ay"),)


def test_a_fast_chip_is_no_reason_to_leave_a_slow_processor_idle() -> None:
    slow = machine("m", PROCESSOR, speeds={"web": 10})
    fast = machine("n", PROCESSOR, CHIP, speeds={"web": 1_000, speed_key("web", "gpu0"): 10**6})
    seen = view([on_cpu("c")], [slow, fast], running=(at("x", CPU, rest_ms=9_000),), later=150)
    # All that is left takes the processors 150 s, and the slow one is done with this in 100.
    assert placed(seen) == {"c": "m cpu"}


def test_hundreds_of_films_for_the_processor_beside_an_idle_chip_cost_a_bounded_look() -> None:
    tasks = [on_cpu(f"c{n}", seq=n) for n in range(400)]
    nodes = [machine(f"n{n}", PROCESSOR, CHIP, speeds={"web": 1}) for n in range(20)]
    running = tuple(replace(at(f"x{n}", CPU, rest_ms=90_000), node=f"n{n}") for n in range(20))
    looks = 0

    class Counted(dict[str, int]):
        def get(self, *words: Any) -> Any:
            nonlocal looks
            looks += 1
            return super().get(*words)

    counted = [replace(one, links=Counted()) for one in nodes]
    assert placed(view(tasks, counted, running=running, ahead=True, later=1)) == {}
    assert looks < 2_000


# --- the ledger ---------------------------------------------------------------------------------------


def told(node: str, *devices: DeviceSlots) -> ReportSlots:
    return ReportSlots(node=node, devices=devices)


def on(*leases: tuple[str, str, str, str]) -> GrantDevices:
    made = (DeviceLease(task=t, attempt=a, node=n, device=d) for t, a, n, d in leases)
    return GrantDevices(leases=tuple(made), granted_at_ms=7)


ENCODERS = ("libsvtav1", "libx264")


def test_the_ledger_keeps_devices_and_where_each_film_was_made() -> None:
    ledger = Ledger().formed("bert").planned("j1", "j2", "j3")
    chip = replace(CHIP, encoders=("av1_nvenc",))
    ledger.must(told("bert", replace(PROCESSOR, encoders=ENCODERS), chip))
    ledger.must(on(("j1-t", "a1", "bert", CPU), ("j2-t", "a2", "bert", "gpu0")))
    # A device that is not there any more, and one from before there were any.
    ledger.must(on(("j3-t", "a3", "bert", "gpu7")))
    assert ledger.reader.attempt("a3") is None
    ledger.must(grant(("j3-t", "a4", "bert")))
    found = {a: ledger.reader.attempt(a) for a in ("a1", "a2", "a4")}
    assert {a: row.device for a, row in found.items() if row} == {"a1": CPU, "a2": "gpu0", "a4": ""}
    whats = [event.what for event in ledger.reader.events("j2") if event.kind == "job.running"]
    # av1_nvenc is none of what the task needs: a fallback is told.
    assert whats == ["on gpu0, which falls back from libsvtav1"]
    (what,) = [e.what for e in ledger.reader.events("j1") if e.kind == "job.running"]
    assert what == "on cpu"
    # What it can do besides is told anew without forgetting them.
    ledger.must(node_report("bert", slots=5))
    row = ledger.reader.node("bert")
    assert row is not None
    assert [one.device for one in from_text(row.device_slots)] == [CPU, "gpu0"]
    seen = ledger.reader.schedulable()
    assert {(run.attempt, run.device) for run in seen.running} == {
        ("a1", CPU), ("a2", "gpu0"), ("a4", CPU),
    }  # fmt: skip
    # Both at the processor, which has one slot: the later one waits.
    assert {run.attempt for run in seen.running if run.waits} == {"a4"}


def test_speeds_are_measured_apart() -> None:
    ledger = Ledger().formed("bert").planned("j1", "j2")
    ledger.must(
        told("bert", replace(PROCESSOR, encoders=ENCODERS), replace(CHIP, encoders=ENCODERS))
    )
    for job, attempt, device in (("j1", "a1", CPU), ("j2", "a2", "gpu0")):
        ledger.must(on((f"{job}-t", attempt, "bert", device)))
        ledger.must(ledger.finish(attempt))
        ledger.must(ledger.accept(job, attempt))
    assert ledger.reader.speeds()["bert"] == {"av1": 3_000, "gpu0/av1": 3_000}


@pytest.mark.parametrize(
    "bad",
    [
        (PROCESSOR, PROCESSOR),
        (replace(CHIP, device=""),),
        (replace(CHIP, slots=-1),),
        (replace(CHIP, slots=DEVICE_SLOTS_MAX + 1),),
        (replace(CHIP, label="x" * 999),),
        tuple(replace(CHIP, device=f"gpu{n}") for n in range(65)),
    ],
)
def test_devices_that_are_none_are_refused(bad: tuple[DeviceSlots, ...]) -> None:
    assert fault_of(bad)
    assert Ledger().formed().refused(told("anna", *bad)) == "usage"


def test_devices_of_a_node_that_said_nothing_yet_are_refused() -> None:
    assert Ledger().formed().refused(told("zoe", PROCESSOR)) == "not_found"
    assert from_text(to_text((PROCESSOR, CHIP))) == (PROCESSOR, CHIP)


# --- which devices a machine has ------------------------------------------------------------------------


def device(name: str, vendor: int, *, driver: int = 0, **values: Any) -> Device:
    given: dict[str, Any] = {
        "name": name, "type": "discrete GPU", "vendor_id": vendor, "device_id": 1,
        "api_version": "1.3.0", "driver_version": driver << 22,
    }  # fmt: skip
    return Device(**(given | values))


def works(name: str, family: Any, *places: str) -> Encoder:
    return Encoder(name=name, family=family, usable=True, devices=places)


def found(devices: list[Device], *encoders: Encoder) -> Detection:
    return Detection(
        ffmpeg="9", ffmpeg_path="/f", origin="", passed_over=(), devices=tuple(devices),
        devices_note="", encoders=(works("libx264", "CPU"), works("aac", "CPU"), *encoders),
    )  # fmt: skip


def told_of(seen: Detection, **rules: Any) -> dict[str, tuple[int, tuple[str, ...]]]:
    slots = slots_of(cards_of(seen), seen.devices, SlotRules(**({"cpu": 2} | rules)))
    return {one.device: (one.slots, one.encoders) for one in slots}


INTEL = device("UHD 770", 0x8086, type="integrated GPU")
RTX = device("NVIDIA GeForce RTX 3060", 0x10DE, driver=560)
TESLA = device("NVIDIA L4", 0x10DE, driver=560)


def test_a_machine_without_chips_has_its_processor() -> None:
    assert told_of(found([])) == {CPU: (2, ("libx264",))}
    broken = found([RTX], Encoder(name="h264_nvenc", family="NVENC", usable=False, why="no"))
    assert told_of(broken) == {CPU: (2, ("libx264",))}


def test_the_interfaces_of_one_chip_share_its_slots() -> None:
    seen = found(
        [INTEL, RTX],
        works("h264_nvenc", "NVENC", ""),
        works("h264_qsv", "QSV", ""),
        works("h264_vaapi", "VAAPI", "/dev/dri/renderD128"),
        works("h264_vulkan", "Vulkan", "0", "1"),
        works("scale_vulkan", "Vulkan", "0"),
    )
    assert told_of(seen) == {
        CPU: (2, ("libx264",)),
        "gpu0": (1, ("h264_qsv", "h264_vaapi", "h264_vulkan")),
        "gpu1": (2, ("h264_nvenc", "h264_vulkan")),
    }
    places = {card.device: card.places for card in cards_of(seen)}
    assert places["gpu0"]["h264_vaapi"] == "/dev/dri/renderD128"
    assert places["gpu1"] == {"h264_nvenc": "", "h264_vulkan": "1"}


def test_two_chips_of_one_maker_are_told_apart_by_their_numbers() -> None:
    seen = found([TESLA, INTEL, TESLA], works("h264_nvenc", "NVENC", "0", "1"))
    places = {card.device: card.places for card in cards_of(seen)}
    assert places["gpu0"] == {"h264_nvenc": "0"}
    assert places["gpu2"] == {"h264_nvenc": "1"}
    assert "gpu1" not in places


def test_what_belongs_to_no_chip_that_is_known_is_a_device_by_itself() -> None:
    # No Vulkan loader: nobody lists the chips, and yet NVENC and two render nodes work.
    nodes = ("/dev/dri/renderD128", "/dev/dri/renderD129")
    seen = found([], works("h264_nvenc", "NVENC", ""), works("h264_vaapi", "VAAPI", *nodes))
    assert told_of(seen) == {
        CPU: (2, ("libx264",)),
        "nvenc0": (2, ("h264_nvenc",)),
        "vaapi0": (1, ("h264_vaapi",)),
        "vaapi1": (1, ("h264_vaapi",)),
    }


def test_a_person_says_how_many_and_the_driver_how_many_at_most() -> None:
    seen = found([TESLA], works("h264_nvenc", "NVENC", ""))
    assert told_of(seen, devices={"gpu0": 9, CPU: 0}) == {
        CPU: (0, ("libx264",)),
        "gpu0": (9, ("h264_nvenc",)),
    }
    # None at all is none on chips either.
    assert {slots for slots, _ in told_of(seen, cpu=0).values()} == {0}
    assert told_of(seen, cpu=0, devices={"gpu0": 1})["gpu0"][0] == 1


@pytest.mark.parametrize(("driver", "sessions"), [(560, 8), (551, 8), (535, 5), (525, 3)])
def test_consumer_chips_share_the_sessions_of_their_driver(driver: int, sessions: int) -> None:
    card = RTX.model_copy(update={"driver_version": driver << 22})
    seen = found([card, card], works("h264_nvenc", "NVENC", "0", "1"))
    slots = told_of(seen, devices={"gpu0": 3, "gpu1": 9})
    assert slots["gpu0"][0] + slots["gpu1"][0] == sessions
    assert slots["gpu0"][0] == 3


@pytest.mark.parametrize(
    ("said", "cpu", "devices"),
    [
        ((None, {}), 3, {"cpu": 4, "gpu0": 2}),
        ((1, {}), 1, {"gpu0": 2}),
        ((0, {}), 0, {}),
        ((0, {"gpu0": 1}), 0, {"gpu0": 1}),
        ((None, {"cpu": 0}), 3, {"cpu": 0, "gpu0": 2}),
    ],
)
def test_what_a_person_says_goes_before_what_is_configured(
    said: tuple[int | None, dict[str, int]], cpu: int, devices: dict[str, int]
) -> None:
    rules = rules_of(7, (3, {"cpu": 4, "gpu0": 2}), said)
    assert rules == SlotRules(cpu=cpu, devices=devices)
    assert rules_of(7, (None, {}), (None, {})) == SlotRules(cpu=7)
