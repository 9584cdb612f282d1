"""The worker turns leases into results, and lets go of them, whatever happens on the way."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ledger import commands as c
from ledger.device_slots import CPU, DeviceLease, DeviceSlots, GrantDevices, ReportSlots
from ledger.orders import ChangeJobs
from ledger.scheduler import OLDEST_EVERY
from mesh import clock
from mesh.errors import DiskFullError, SourceChangedError, TransferError
from mesh.ids import NodeId
from node.work import attempts
from node.work.attempts import BEGUN, AttemptError
from node.work.leases import LeaseTiming
from node.work.worker import Worker
from tests.ledger_helper import grant, node_report
from tests.work_bench import CONVERSION, Bench, Mesh, eventually

TIMING = LeaseTiming(heartbeat_ms=20, suspect_ms=100, fence_ms=5_000, expiry_ms=6_000)


class Stand:
    def __init__(self, folder: Path, timing: LeaseTiming = TIMING) -> None:
        self.folder = folder / "attempts"
        self.mesh = Mesh("bert")
        self.ledger = self.mesh.ledger.formed("bert").planned("j1", "j2")
        self.bench = Bench(folder)
        mesh: Any = self.mesh
        self.worker = Worker(
            own=NodeId("bert"),
            name="bert",
            driver=mesh,
            proposer=mesh,
            requests=mesh,
            replica=self.mesh.replica,
            board=self.mesh.board,
            converter=self.bench,
            sources=self.bench,
            results=self.bench,
            folder=self.folder,
            timing=timing,
        )

    def lease(self, job: str, attempt: str) -> None:
        assert self.mesh.do(grant((f"{job}-t", attempt, "bert"))).ok

    def state(self, attempt: str) -> str:
        return self.mesh.attempt(attempt).state


def run(stand: Callable[[], Stand], body: Callable[[Stand], Awaitable[None]]) -> Stand:
    async def main() -> Stand:
        made = stand()
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            task = group.create_task(made.worker.run())
            await body(made)
            task.cancel()
        return made

    return asyncio.run(main())


def test_an_attempt_is_told_to_be_on_once_it_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "TOLD_S", 0.02)

    async def body(stand: Stand) -> None:
        bench: Any = stand.bench
        goes_on = asyncio.Event()

        async def late(*_: object) -> object:
            await goes_on.wait()
            raise TransferError("the owner is gone", "")

        bench.fetch = late
        stand.lease("j1", "a1")
        await stand.mesh.board.changed.wait(0)
        (told,) = stand.mesh.board.of("j1")
        assert (told.phase, told.bytes_done, told.bytes_total) == ("fetching", 0, 1_000)
        goes_on.set()
        stand.lease("j2", "a2")
        await eventually(lambda: stand.state("a2") == "failed")
        seen = stand.mesh.board.changed.count
        assert await stand.mesh.board.changed.wait(seen, 0.06) == seen
        assert stand.mesh.board.of("j2") == []

    run(partial(Stand, tmp_path), body)


def test_a_lease_becomes_a_kept_result_and_nothing_else_is_left(tmp_path: Path) -> None:
    async def body(stand: Stand) -> None:
        stand.lease("j1", "a1")
        await eventually(lambda: stand.state("a1") == "finished")
        await eventually(lambda: not list(stand.folder.iterdir()))

    stand = run(partial(Stand, tmp_path), body)
    assert (stand.bench.kept / "a1").read_bytes() == b"film converted"
    attempt = stand.mesh.attempt("a1")
    assert attempt.result_bytes == 14
    assert attempt.fetched_bytes == 4
    assert stand.ledger.job_state("j1") == "verifying"


@pytest.mark.parametrize(
    ("fault", "failure", "code"),
    [
        (
            AttemptError(TransferError("no such encoder"), "encoder", CONVERSION),
            "encoder",
            "transfer",
        ),
        (AttemptError(TransferError("no film"), "input"), "input", "transfer"),
        (SourceChangedError("changed"), "input", "source_changed"),
        (TransferError("torn"), "transient", "transfer"),
        (OSError(28, "no space"), "transient", DiskFullError.code),
        (OSError(5, "broken disk"), "transient", "internal"),
        (ValueError("a probe that is no JSON"), "transient", "internal"),
        (KeyError("frames"), "transient", "internal"),
        (RecursionError("deep JSON"), "transient", "internal"),
    ],
    ids=repr,
)
def test_what_an_attempt_meets_fails_it_by_class_and_never_the_node(
    tmp_path: Path, fault: Exception, failure: str, code: str
) -> None:
    async def body(stand: Stand) -> None:
        stand.bench.fault = fault
        stand.lease("j1", "a1")
        await eventually(lambda: stand.state("a1") == "failed")
        stand.bench.fault = None
        stand.lease("j2", "a2")
        await eventually(lambda: stand.state("a2") == "finished")
        await eventually(lambda: not list(stand.folder.iterdir()))

    stand = run(partial(Stand, tmp_path), body)
    attempt = stand.mesh.attempt("a1")
    assert (attempt.failure, attempt.error_code) == (failure, code)
    (failed,) = stand.mesh.taken(c.FailAttempt)
    assert 2_000 <= failed.backoff_ms <= 60_000


def test_a_lease_that_goes_stops_its_run_and_only_it(tmp_path: Path) -> None:
    async def body(stand: Stand) -> None:
        stand.bench.goes_on.clear()
        stand.lease("j1", "a1")
        stand.lease("j2", "a2")
        await eventually(lambda: sorted(stand.bench.converting) == ["a1", "a2"])
        stand.mesh.do(c.ExpireLeases(attempts=("a1",), what="silence"))
        await eventually(lambda: stand.worker.running == ("a2",))
        await eventually(lambda: [p.name for p in stand.folder.iterdir()] == ["a2"])
        stand.bench.goes_on.set()
        await eventually(lambda: stand.state("a2") == "finished")

    stand = run(partial(Stand, tmp_path), body)
    assert stand.bench.cancelled == ["a1"]
    assert stand.state("a1") == "expired"


def test_nothing_is_handed_back_behind_a_closed_fence(tmp_path: Path) -> None:
    timing = LeaseTiming(heartbeat_ms=10, suspect_ms=20, fence_ms=150, expiry_ms=200)

    async def body(stand: Stand) -> None:
        stand.mesh.silent = True
        stand.bench.goes_on.clear()
        stand.lease("j1", "a1")
        await eventually(lambda: stand.bench.converting)
        worker: Any = stand.worker
        fence = worker._fence
        await eventually(lambda: not fence.may_hand_back(clock.monotonic_ms()))
        stand.bench.goes_on.set()
        await eventually((stand.bench.kept / "a1").exists)
        assert stand.state("a1") == "leased"
        stand.mesh.silent = False
        await eventually(lambda: stand.state("a1") == "finished")
        assert stand.mesh.beats

    run(partial(Stand, tmp_path, timing), body)


def test_a_result_waits_for_a_coordinator_and_is_handed_back_once(tmp_path: Path) -> None:
    async def body(stand: Stand) -> None:
        stand.mesh.down = True
        stand.lease("j1", "a1")
        await eventually((stand.bench.kept / "a1").exists)
        assert stand.state("a1") == "leased"
        stand.mesh.down = False
        await eventually(lambda: stand.state("a1") == "finished")

    stand = run(partial(Stand, tmp_path), body)
    assert stand.bench.converting == ["a1"]
    assert len(stand.mesh.taken(c.FinishAttempt)) == 1


def test_an_attempt_that_a_crash_cut_short_is_failed_not_begun_anew(tmp_path: Path) -> None:
    def made() -> Stand:
        stand = Stand(tmp_path)
        (stand.folder / "a1").mkdir(parents=True)
        (stand.folder / "a1" / "source.mkv").write_bytes(b"half")
        (stand.folder / "a1" / BEGUN).touch()
        stand.lease("j1", "a1")
        return stand

    async def body(stand: Stand) -> None:
        await eventually(lambda: stand.state("a1") == "failed")
        await eventually(lambda: not list(stand.folder.iterdir()))

    assert run(made, body).bench.converting == []


def test_what_a_crash_left_is_removed_when_its_lease_is_gone(tmp_path: Path) -> None:
    def made() -> Stand:
        stand = Stand(tmp_path)
        (stand.folder / "a0").mkdir(parents=True)
        (stand.folder / "a0" / "source.mkv").write_bytes(b"half")
        return stand

    async def body(stand: Stand) -> None:
        await eventually(lambda: not list(stand.folder.iterdir()))

    run(made, body)


def test_draining_finishes_what_ends_in_time(tmp_path: Path) -> None:
    async def body(stand: Stand) -> None:
        stand.bench.goes_on.clear()
        stand.lease("j1", "a1")
        await eventually(lambda: stand.bench.converting)
        draining = asyncio.ensure_future(stand.worker.drain(15))
        await eventually(lambda: not stand.worker.accepting)
        stand.bench.goes_on.set()
        await draining
        assert stand.state("a1") == "finished"

    assert run(partial(Stand, tmp_path), body).mesh.taken(c.ReleaseLeases) == []


def test_draining_gives_back_the_rest_and_begins_nothing_any_more(tmp_path: Path) -> None:
    async def body(stand: Stand) -> None:
        stand.bench.goes_on.clear()
        stand.lease("j1", "a1")
        await eventually(lambda: stand.bench.converting)
        draining = asyncio.ensure_future(stand.worker.drain(0.2))
        await eventually(lambda: not stand.worker.accepting)
        # The coordinator has not heard of it yet.
        stand.lease("j2", "a2")
        await draining
        assert (stand.state("a1"), stand.state("a2")) == ("released", "released")
        await eventually(lambda: not list(stand.folder.iterdir()))

    stand = run(partial(Stand, tmp_path), body)
    assert stand.bench.converting == ["a1"]
    assert stand.bench.cancelled == ["a1"]


def test_draining_without_a_coordinator_starts_nothing_again(tmp_path: Path) -> None:
    async def body(stand: Stand) -> None:
        stand.bench.goes_on.clear()
        stand.lease("j1", "a1")
        await eventually(lambda: stand.bench.converting)
        stand.mesh.down = True
        await stand.worker.drain(0.01)
        sweeps = stand.bench.sweeps
        stand.mesh.ledger_changed.set()
        await eventually(lambda: stand.bench.sweeps > sweeps)
        assert stand.worker.running == ()

    stand = run(partial(Stand, tmp_path), body)
    assert stand.bench.converting == ["a1"]
    assert stand.state("a1") == "leased"


def test_a_read_that_is_older_than_the_end_of_a_run_begins_nothing(tmp_path: Path) -> None:
    async def body(stand: Stand) -> None:
        stand.bench.goes_on.clear()
        stand.lease("j1", "a1")
        await eventually(lambda: stand.bench.converting)
        replica: Any = stand.mesh.replica
        fresh, reading, answers = replica.read, asyncio.Event(), asyncio.Event()

        async def slow(query: Callable[[Any], object]) -> object:
            found = query(stand.ledger.reader)
            reading.set()
            await answers.wait()
            return found

        replica.read = slow
        stand.mesh.ledger_changed.set()
        await reading.wait()
        replica.read = fresh
        stand.bench.goes_on.set()
        await eventually(lambda: stand.state("a1") == "finished" and not stand.worker.running)
        sweeps = stand.bench.sweeps
        answers.set()
        await eventually(lambda: stand.bench.sweeps > sweeps)

    assert run(partial(Stand, tmp_path), body).bench.fetched == ["a1"]


def test_an_id_that_is_a_path_touches_nothing(tmp_path: Path) -> None:
    films = tmp_path / "films"
    films.mkdir()
    (films / "mine.mkv").write_bytes(b"precious")

    async def body(stand: Stand) -> None:
        for task, attempt in (("j1-t", str(films)), ("j2-t", "../films")):
            assert stand.mesh.do(grant((task, attempt, "bert"))).ok
        sweeps = stand.bench.sweeps
        await eventually(lambda: stand.bench.sweeps > sweeps + 1 or stand.bench.fetched)

    stand = run(partial(Stand, tmp_path), body)
    assert stand.bench.fetched == []
    assert (films / "mine.mkv").read_bytes() == b"precious"


def test_a_cache_that_somebody_removed_does_not_end_the_node(tmp_path: Path) -> None:
    async def body(stand: Stand) -> None:
        stand.bench.sweep_fault = FileNotFoundError(2, "no such folder")
        await eventually(lambda: stand.bench.sweeps)
        stand.lease("j1", "a1")
        await eventually(lambda: stand.state("a1") == "finished")

    run(partial(Stand, tmp_path), body)


# --- more leases than slots -------------------------------------------------------------------------


def crowded(folder: Path, jobs: int, slots: int = 1) -> Stand:
    """Bert has few slots, and as many films to do that lie elsewhere."""
    stand = Stand(folder)
    stand.ledger.planned(*(f"k{n}" for n in range(jobs)))
    assert stand.mesh.do(node_report("bert", slots=slots)).ok
    stand.bench.goes_on.clear()
    return stand


def test_leases_beyond_slots_wait_in_their_order_and_the_next_is_fetched(tmp_path: Path) -> None:
    async def body(stand: Stand) -> None:
        for n in range(3):
            stand.lease(f"k{n}", f"a{n}")
        await eventually(lambda: stand.bench.fetched == ["a0", "a1"])
        await eventually(lambda: stand.bench.converting == ["a0"])
        assert (stand.worker.running, stand.worker.waiting) == (("a0",), ("a1", "a2"))
        stand.bench.goes_on.set()
        await eventually(lambda: all(stand.state(f"a{n}") == "finished" for n in range(3)))

    stand = run(lambda: crowded(tmp_path, 3), body)
    assert stand.bench.converting == stand.bench.fetched == ["a0", "a1", "a2"]


def test_the_next_one_encodes_while_a_result_is_judged_and_no_more_than_one_a_slot(
    tmp_path: Path,
) -> None:
    async def body(stand: Stand) -> None:
        stand.bench.judged.clear()
        for n in range(3):
            stand.lease(f"k{n}", f"a{n}")
        stand.bench.goes_on.set()
        await eventually(lambda: stand.bench.converting == ["a0", "a1"])
        await eventually(lambda: stand.worker.running == ("a0", "a1"))
        # Both are judged: what a third made would only wait.
        await eventually(lambda: stand.bench.fetched == ["a0", "a1", "a2"])
        assert stand.bench.converting == ["a0", "a1"]
        assert stand.worker.waiting == ("a2",)
        stand.bench.judged.set()
        await eventually(lambda: all(stand.state(f"a{n}") == "finished" for n in range(3)))

    stand = run(lambda: crowded(tmp_path, 3), body)
    assert stand.bench.converting == ["a0", "a1", "a2"]


def test_what_must_be_encoded_again_waits_for_a_slot_of_its_own(tmp_path: Path) -> None:
    async def body(stand: Stand) -> None:
        stand.bench.one_by_one = True
        stand.bench.judged.clear()
        stand.bench.again["a0"] = True
        stand.lease("k0", "a0")
        stand.lease("k1", "a1")
        stand.bench.goes_on.set()
        await eventually(lambda: stand.bench.converting == ["a0", "a1"])
        # The first does not do, and the second has the slot.
        stand.bench.judged.set()
        await eventually(lambda: stand.worker.waiting == ("a0",))
        assert stand.bench.converting == ["a0", "a1"]
        stand.bench.goes_on.set()
        await eventually(lambda: stand.state("a1") == "finished")
        await eventually(lambda: stand.bench.converting == ["a0", "a1", "a0"])
        assert stand.state("a0") == "leased"
        stand.bench.goes_on.set()
        await eventually(lambda: stand.state("a0") == "finished")

    run(lambda: crowded(tmp_path, 3), body)


def test_the_most_urgent_begins_first_but_the_oldest_has_its_turn(tmp_path: Path) -> None:
    count = OLDEST_EVERY + 2

    async def body(stand: Stand) -> None:
        stand.lease("k0", "a0")
        await eventually(lambda: stand.bench.converting == ["a0"])
        for n in range(1, count):
            change = ChangeJobs(jobs=(f"k{n}",), action="priority", priority=n, by="me")
            assert stand.mesh.do(change).ok
            stand.lease(f"k{n}", f"a{n}")
        await eventually(lambda: len(stand.worker.waiting) == count - 1)
        stand.bench.goes_on.set()
        await eventually(lambda: len(stand.bench.converting) == count)

    begun = run(lambda: crowded(tmp_path, count), body).bench.converting
    # The first found the node idle, the last of `OLDEST_EVERY` is the oldest.
    urgent = [f"a{n}" for n in range(count - 1, 0, -1)]
    assert begun[: OLDEST_EVERY - 1] == ["a0", *urgent[: OLDEST_EVERY - 2]]
    assert begun[OLDEST_EVERY - 1] == "a1"


def test_a_node_that_closes_gives_back_what_has_not_begun(tmp_path: Path) -> None:
    async def body(stand: Stand) -> None:
        for n in range(3):
            stand.lease(f"k{n}", f"a{n}")
        await eventually(lambda: stand.bench.converting == ["a0"] and len(stand.bench.fetched) > 1)
        closed.append("is paused")
        stand.mesh.told.clear()
        stand.mesh.ledger_changed.set()
        await eventually(lambda: stand.state("a1") == stand.state("a2") == "released")
        # The coordinator heard so before.
        told = [one for one in stand.mesh.told if one in ("closed", "released")]
        assert told[:1] == ["closed"]
        await eventually(lambda: [p.name for p in stand.folder.iterdir()] == ["a0"])
        assert stand.worker.running == ("a0",)

    closed: list[str] = []

    def made() -> Stand:
        stand = crowded(tmp_path, 3)
        worker: Any = stand.worker
        worker._owner_closed = lambda: "".join(closed)
        return stand

    stand = run(made, body)
    assert stand.ledger.job_state("k1") == "queued"


def test_a_node_without_slots_gives_back_what_waits(tmp_path: Path) -> None:
    async def body(stand: Stand) -> None:
        stand.lease("k0", "a0")
        await eventually(lambda: stand.state("a0") == "released")

    run(lambda: crowded(tmp_path, 1, slots=0), body)


def test_what_an_idle_node_would_do_sooner_is_given_back_unless_it_has_begun(
    tmp_path: Path,
) -> None:
    async def body(stand: Stand) -> None:
        for n in range(3):
            stand.lease(f"k{n}", f"a{n}")
        await eventually(lambda: stand.worker.waiting == ("a1", "a2"))
        stand.mesh.back = ("a0", "a2", "of another")
        await eventually(lambda: stand.state("a2") == "released")
        assert (stand.state("a0"), stand.state("a1")) == ("leased", "leased")
        stand.bench.goes_on.set()
        await eventually(lambda: stand.state("a1") == "finished")

    stand = run(lambda: crowded(tmp_path, 3), body)
    assert stand.bench.converting == ["a0", "a1"]


def test_what_waits_is_renewed_with_what_runs(tmp_path: Path) -> None:
    async def body(stand: Stand) -> None:
        for n in range(2):
            stand.lease(f"k{n}", f"a{n}")
        await eventually(lambda: stand.mesh.attempts == ("a0", "a1"))

    run(lambda: crowded(tmp_path, 2), body)


def test_a_node_that_stops_gives_back_what_waits_before_it_waits_for_what_runs(
    tmp_path: Path,
) -> None:
    async def body(stand: Stand) -> None:
        for n in range(2):
            stand.lease(f"k{n}", f"a{n}")
        await eventually(lambda: stand.bench.converting == ["a0"])
        draining = asyncio.ensure_future(stand.worker.drain(15))
        await eventually(lambda: stand.state("a1") == "released")
        assert stand.state("a0") == "leased"
        stand.bench.goes_on.set()
        await draining
        assert stand.state("a0") == "finished"

    run(lambda: crowded(tmp_path, 2), body)


def test_what_a_killed_process_had_only_fetched_is_nobodys_failure(tmp_path: Path) -> None:
    async def body(stand: Stand) -> None:
        for n in range(2):
            stand.lease(f"k{n}", f"a{n}")
        await eventually(lambda: stand.state("a0") == "failed")
        stand.bench.goes_on.set()
        await eventually(lambda: stand.state("a1") == "finished")

    def made() -> Stand:
        stand = crowded(tmp_path, 2)
        for name in ("a0", "a1"):
            (stand.folder / name).mkdir(parents=True)
            (stand.folder / name / "source.mkv").write_bytes(b"half")
        (stand.folder / "a0" / BEGUN).touch()
        return stand

    run(made, body)


# --- slots of each device ---------------------------------------------------------------------------


def with_chip(folder: Path, *, cpu: int = 1, chip: int = 1) -> Stand:
    """Bert has a processor and a chip; a0 and a1 are leased to the one, a2 and a3 to the other."""
    stand = crowded(folder, 4)
    devices = (
        DeviceSlots(device=CPU, label="processor", slots=cpu, encoders=("libsvtav1",)),
        DeviceSlots(device="gpu0", label="Chip", slots=chip, encoders=("libsvtav1",)),
    )
    assert stand.mesh.do(ReportSlots(node="bert", devices=devices)).ok
    leases = tuple(
        DeviceLease(task=f"k{n}-t", attempt=f"a{n}", node="bert", device=CPU if n < 2 else "gpu0")
        for n in range(4)
    )
    assert stand.mesh.do(GrantDevices(leases=leases, granted_at_ms=1)).ok
    return stand


def test_each_device_begins_what_is_its_own(tmp_path: Path) -> None:
    async def body(stand: Stand) -> None:
        stand.bench.goes_on.clear()
        await eventually(lambda: sorted(stand.bench.converting) == ["a0", "a2"])
        await eventually(lambda: sorted(stand.bench.fetched) == ["a0", "a1", "a2", "a3"])
        assert stand.worker.waiting == ("a1", "a3")
        stand.mesh.do(c.ExpireLeases(attempts=("a2",), what="silence"))
        await eventually(lambda: stand.worker.running == ("a0", "a3"))
        assert stand.worker.waiting == ("a1",)
        stand.bench.goes_on.set()
        await eventually(lambda: stand.state("a1") == "finished")

    run(lambda: with_chip(tmp_path), body)


def test_a_device_that_lost_its_slots_gives_back_what_waits_there_alone(tmp_path: Path) -> None:
    async def body(stand: Stand) -> None:
        stand.bench.goes_on.clear()
        await eventually(lambda: stand.state("a2") == stand.state("a3") == "released")
        assert [stand.state("a0"), stand.state("a1")] == ["leased", "leased"]

    run(lambda: with_chip(tmp_path, chip=0), body)


def test_a_film_that_its_chip_fails_at_waits_for_a_slot_of_the_processor(tmp_path: Path) -> None:
    async def body(stand: Stand) -> None:
        stand.bench.goes_on.clear()
        await eventually(lambda: sorted(stand.bench.converting) == ["a0", "a2"])
        worker: Any = stand.worker
        moved = asyncio.ensure_future(worker.to_processor(worker._held["a2"]))
        # Its slot of the chip is free for the next at once, and it has none of the processor yet.
        await eventually(lambda: "a3" in stand.bench.converting)
        assert not moved.done()
        assert stand.worker.running == ("a0", "a3")
        stand.mesh.do(c.ExpireLeases(attempts=("a0", "a1"), what="silence"))
        assert await moved
        assert stand.worker.running == ("a2", "a3")

    run(lambda: with_chip(tmp_path), body)


def test_without_slots_of_the_processor_nothing_falls_back_to_it(tmp_path: Path) -> None:
    async def body(stand: Stand) -> None:
        stand.bench.goes_on.clear()
        await eventually(lambda: stand.bench.converting == ["a2"])
        worker: Any = stand.worker
        assert await worker.to_processor(worker._held["a2"]) is False

    run(lambda: with_chip(tmp_path, cpu=0), body)
