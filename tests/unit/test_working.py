"""The owner of a machine is its master: hours, pauses, drains, and stepping back for other users."""

import asyncio
import threading
from pathlib import Path

import pytest

from mesh.errors import UsageError
from node.work import keeper as keeper_module
from node.work.gpu_nvml import used_by_others
from node.work.hours import DAY_MINUTES, parse_hours
from node.work.keeper import Keeper
from node.work.limits_files import KeptFile
from node.work.rules import BUSY_AFTER_MS, FREE_AFTER_MS, Steps, WorkRules, closed_because
from node.work.usage_files import Usage
from node.work.working import WORKING, ConfiguredWork, KeptWork, SetWork, Working
from tests.meshwork import eventually


def at(day: int, clock: str) -> int:
    hour, minute = clock.split(":")
    return day * DAY_MINUTES + int(hour) * 60 + int(minute)


@pytest.mark.parametrize(
    ("text", "open_at", "closed_at"),
    [
        ("08:00-18:00", [at(0, "8:00"), at(6, "17:59")], [at(0, "18:00"), at(3, "7:59")]),
        ("22:00-06:00", [at(0, "23:00"), at(0, "5:59"), at(6, "22:00")], [at(2, "12:00")]),
        ("sun 22:00-06:00", [at(6, "23:00"), at(0, "5:59")], [at(0, "6:00"), at(5, "23:00")]),
        ("fri-mon 00:00-24:00", [at(4, "0:00"), at(6, "9:00"), at(0, "23:59")], [at(1, "0:00")]),
        ("sat,sun 10:00-11:00", [at(5, "10:30"), at(6, "10:00")], [at(4, "10:30")]),
        ("MON 1:00 - 2:00", [at(0, "1:30")], [at(0, "2:00")]),
    ],
)
def test_hours(text: str, open_at: list[int], closed_at: list[int]) -> None:
    hours = parse_hours([text])
    assert all(hours.are_open(minute) for minute in open_at)
    assert not any(hours.are_open(minute) for minute in closed_at)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "always",
        "25:00-26:00",
        "8:00-8:00",
        "8-18",
        "foo 8:00-9:00",
        "mon- 8:00-9:00",
        "8:60-9:00",
        "24:01-1:00",
    ],
)
def test_what_are_no_hours_is_said(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_hours([text])


def test_no_hours_are_always_and_several_add_up() -> None:
    assert parse_hours([]).are_open(5)
    hours = parse_hours(["mon 8:00-9:00", "tue 8:00-9:00"])
    assert hours.opens_in(at(0, "10:00")) == 22 * 60
    assert hours.opens_in(at(1, "8:30")) == 0
    assert hours.opens_in(at(6, "8:00")) == 24 * 60


def test_why_a_node_is_closed() -> None:
    hours = parse_hours(["mon 8:00-9:00"])
    assert closed_because(WorkRules(), 0, used="") == ""
    assert "paused" in closed_because(WorkRules(paused=True), 0, used="")
    assert "drains" in closed_because(WorkRules(draining=True), 0, used="")
    assert "begin in 1 h 30 min" in closed_because(WorkRules(hours=hours), at(0, "6:30"), used="")
    for used in ("machine", "graphics chip"):
        assert f"its {used} is used by others" in closed_because(WorkRules(), 0, used=used)


def test_work_steps_back_after_some_use_and_returns_after_some_rest() -> None:
    steps = Steps()
    for now_ms in range(0, BUSY_AFTER_MS, 1_000):
        steps.note(90, 50, now_ms)
        assert not steps.back
    steps.note(10, 50, BUSY_AFTER_MS)  # a moment of rest: it was nothing
    steps.note(90, 50, BUSY_AFTER_MS + 1)
    assert not steps.back
    steps.note(90, 50, 2 * BUSY_AFTER_MS + 1)
    assert steps.back
    steps.note(45, 50, 99_000)  # below the limit, and not by enough
    steps.note(45, 50, 99_000 + FREE_AFTER_MS)
    assert steps.back
    steps.note(30, 50, 200_000)
    steps.note(30, 50, 200_000 + FREE_AFTER_MS)
    assert not steps.back
    steps.back = True
    steps.note(None, 50, 0)
    assert not steps.back, "what cannot be known stops nothing"


def test_use_by_others_is_what_does_not_step_behind(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 50 10 800 0 0 0 0 0 0\ncpu0 1 2 3\n")
    usage = Usage(stat)
    assert usage.percent() is None
    stat.write_text("cpu  150 100 10 900 0 0 0 0 0 0\n")
    assert usage.percent() == 25.0
    stat.write_text("nonsense")
    assert usage.percent() is None
    assert Usage(tmp_path / "none").percent() is None


def test_use_of_chips_counts_the_engine_that_others_use_most() -> None:
    ours = (7, 90, 100, 0)
    assert used_by_others([], {7}) == used_by_others([ours], {7}) == 0.0
    assert used_by_others([ours, (8, 20, 0, 5), (9, 30, 10, 5)], {7}) == 50.0
    assert used_by_others([(8, 70, 0, 0), (9, 70, 0, 0)], ()) == 100.0


class Use:
    """How much others use, as the test says."""

    def __init__(self, percent: float | None = None) -> None:
        self.now = percent

    def percent(self) -> float | None:
        return self.now


class Lock:
    """Remembers whether sleep is held off."""

    def __init__(self, why: str = "") -> None:
        self.why = why
        self.asked = 0
        self.held = False

    async def hold(self) -> str:
        self.asked += 1
        self.held = not self.why
        return self.why

    async def let_go(self) -> None:
        self.held = False


async def nobody() -> bool:
    return False


class Children:
    def __init__(self) -> None:
        self.still = False
        self.nice = 0
        self.memory = 0

    def use_memory(self, mebibytes: int) -> None:
        self.memory = mebibytes

    def suspend(self, *, still: bool) -> None:
        self.still = still

    def use_nice(self, nice: int) -> None:
        self.nice = nice


class Busy:
    def __init__(self) -> None:
        self.running: tuple[str, ...] = ("a",)
        self.told: list[str] = []

    async def give_back(self, what: str) -> None:
        self.told.append(what)


def keeper_of(children: Children | None = None, lock: Lock | None = None) -> Keeper:
    return Keeper(children=children or Children(), processors=Use(), gpu=Use(), awake=lock)


def test_the_machine_stays_awake_while_something_runs_and_the_fault_is_told_once() -> None:
    async def body() -> None:
        busy, lock, refused = Busy(), Lock(), Lock("no bus of a session")
        keeper, other = keeper_of(lock=lock), keeper_of(lock=refused)
        tasks = [asyncio.ensure_future(one.run(busy, nobody)) for one in (keeper, other)]
        await eventually(lambda: lock.held and refused.asked)
        keeper.use(WorkRules(paused=True))
        other.use(WorkRules(paused=True))
        await eventually(lambda: not lock.held)
        keeper.use(WorkRules())
        other.use(WorkRules())
        await eventually(lambda: lock.held)
        busy.running = ()
        keeper.use(WorkRules(nice=1))
        await eventually(lambda: not lock.held)
        busy.running = ("b",)
        keeper.use(WorkRules(nice=2))
        await eventually(lambda: lock.held)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert not lock.held, "who ends lets the machine sleep"
        assert (lock.asked, refused.asked) == (3, 1)

    asyncio.run(body())


def test_who_has_films_that_others_work_on_stays_awake() -> None:
    async def body() -> None:
        idle, lock, works = Busy(), Lock(), [True]
        idle.running = ()

        async def wanted() -> bool:
            return works[0]

        keeper = keeper_of(lock=lock)
        task = asyncio.ensure_future(keeper.run(idle, wanted))
        await eventually(lambda: lock.held)
        works[0] = False
        keeper.use(WorkRules(nice=1))
        await eventually(lambda: not lock.held)
        task.cancel()

    asyncio.run(body())


def test_work_steps_back_for_others_on_a_chip() -> None:
    async def body() -> None:
        children, use = Children(), Use(95)
        keeper = Keeper(children=children, processors=Use(95), gpu=use)
        keeper.use(WorkRules(gpu_percent=50))
        # The samples' own clock is the keeper's: the rule itself is tested above.
        keeper._gpu_steps.back = True
        task = asyncio.ensure_future(keeper.run(Busy(), nobody))
        await eventually(lambda: children.still)
        assert keeper.closed == "steps back: its graphics chip is used by others"
        use.now = None
        keeper.use(WorkRules(gpu_percent=50))
        await eventually(lambda: not children.still)
        task.cancel()

    asyncio.run(body())


def test_a_driver_that_hangs_holds_up_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "ANSWER_S", 0.01)
    goes_on = threading.Event()
    calls: list[int] = []

    class Hangs:
        def percent(self) -> float | None:
            calls.append(1)
            goes_on.wait(20)
            return 95.0

    async def body() -> None:
        children, busy = Children(), Busy()
        keeper = Keeper(children=children, processors=Use(), gpu=Hangs())
        keeper.use(WorkRules(gpu_percent=50))
        keeper._gpu_steps.back = True
        task = asyncio.ensure_future(keeper.run(busy, nobody))
        await eventually(lambda: calls)
        await eventually(lambda: not children.still)
        keeper.use(WorkRules(gpu_percent=50, draining=True), finish_s=0)
        await eventually(lambda: busy.told)
        assert len(calls) == 1, "asked again while the first question hangs"
        # Its late answer is an answer, and the next question is asked.
        goes_on.set()
        keeper.use(WorkRules(gpu_percent=51))
        await eventually(lambda: len(calls) > 1)
        task.cancel()

    try:
        asyncio.run(body())
    finally:
        goes_on.set()


def test_the_keeper_pauses_and_ends_a_drain_in_time() -> None:
    async def body() -> None:
        children, busy, handed = Children(), Busy(), []
        keeper = keeper_of(children)
        keeper.hand_over = lambda: handed.append(1)
        task = asyncio.ensure_future(keeper.run(busy, nobody))
        keeper.use(WorkRules(paused=True, nice=15, memory_mib=700))
        assert children.still
        assert (children.nice, children.memory) == (15, 700)
        assert "paused" in keeper.closed
        keeper.use(WorkRules())
        assert not children.still
        assert keeper.closed == ""
        keeper.use(WorkRules(draining=True))
        assert not children.still, "what runs goes on"
        assert handed == [1]
        keeper.use(WorkRules(draining=True), finish_s=0)
        await eventually(lambda: busy.told)
        assert handed == [1]
        task.cancel()

    asyncio.run(body())


def working(folder: Path, keeper: Keeper) -> Working:
    store = KeptFile(folder / "work", WORKING, KeptWork)
    configured = ConfiguredWork(hours=("8:00-9:00",), nice=5, labels=("attic",))
    return Working(store=store, configured=configured, keeper=keeper, running=lambda: 3)


def test_what_a_person_sets_holds_over_a_restart_until_it_is_taken_back(tmp_path: Path) -> None:
    keeper = keeper_of()
    held = working(tmp_path, keeper).held()
    assert (held.hours, held.nice, held.paused, held.running) == (("8:00-9:00",), 5, False, 3)
    held = working(tmp_path, keeper).change(
        SetWork(paused=True, hours=("always",), nice=19, threads=2, labels=("b", "a"), memory_mib=9)
    )
    assert (held.hours, held.nice, held.threads) == ((), 19, 2)
    assert (held.labels, held.memory_mib) == (("a", "b"), 9)
    assert "paused" in held.closed
    held = working(tmp_path, keeper).held()
    assert (held.paused, held.hours, held.nice, held.threads) == (True, (), 19, 2)
    assert working(tmp_path, keeper).change(SetWork(labels=("none",))).labels == ()
    back = SetWork(paused=False, hours=("default",), nice=-1, threads=-1, labels=("default",))
    held = working(tmp_path, keeper).change(back)
    assert held.labels == ("attic",)
    assert (held.paused, held.hours, held.nice, held.threads) == (False, ("8:00-9:00",), 5, 0)


@pytest.mark.parametrize(
    "wanted",
    [
        SetWork(nice=20),
        SetWork(threads=-2),
        SetWork(busy_percent=101),
        SetWork(hours=("x",)),
        SetWork(finish_s=-1),
        SetWork(gpu_percent=101),
        SetWork(memory_mib=-2),
        SetWork(labels=("Attic",)),
        SetWork(labels=("a|b",)),
        SetWork(labels=tuple(f"l{n}" for n in range(17))),
    ],
)
def test_what_makes_no_sense_changes_nothing(tmp_path: Path, wanted: SetWork) -> None:
    stand = working(tmp_path, keeper_of())
    before = stand.held()
    with pytest.raises(UsageError):
        stand.change(wanted)
    assert stand.held() == before
