"""The owner plans, takes in and publishes; after any crash it goes on from what the ledger says."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ledger import commands as c
from ledger.jobs import Attempt, Job
from ledger.orders import ChangeJobs
from ledger.submissions import JobSpec
from mesh.errors import (
    ConflictError,
    DiskFullError,
    NotAllowedError,
    OutputDiskFullError,
    SourceChangedError,
    TransferError,
    UnreachableError,
)
from mesh.ids import NodeId
from node.media.errors import MixedSoftwareError
from node.work import owner as owner_module
from node.work.owner import Owner
from tests.ledger_helper import films_of, grant, job_spec, spec
from tests.work_bench import TURNS, Mesh, Shelf, eventually

OUTPUT = "/films/j1.mp4"
RESULT = "e" * 64


class Stand:
    def __init__(self) -> None:
        self.mesh = Mesh("anna")
        self.ledger = self.mesh.ledger.formed("bert")
        self.shelf = Shelf()
        mesh: Any = self.mesh
        self.owner = Owner(
            own=NodeId("anna"),
            name="anna",
            driver=mesh,
            proposer=mesh,
            replica=self.mesh.replica,
            board=self.mesh.board,
            planner=self.shelf,
            intake=self.shelf,
        )

    def state(self, job: str = "j1") -> str:
        return self.ledger.job_state(job)

    def error(self, job: str = "j1") -> tuple[str, str]:
        found = self.ledger.reader.job(job)
        assert found is not None
        return found.error_code, found.error

    def finished(self, attempt: str = "a1", **values: Any) -> None:
        """A worker converts the planned job."""
        assert self.mesh.do(grant(("j1-0", attempt, "bert"))).ok
        assert self.mesh.do(self.ledger.finish(attempt, **values)).ok

    def verifying(self) -> "Stand":
        self.ledger.submitted("j1")
        self.ledger.must(c.StartPlanning(job="j1"))
        plan = c.TaskSpec(id="j1-0", kind="whole", needs=("libsvtav1",), cost=9)
        self.ledger.must(
            c.PlanJob(
                job="j1",
                source_digest="d" * 64,
                source_bytes=1_000,
                probe_json="{}",
                plan_json="{}",
                tasks=(plan,),
            )
        )
        self.finished()
        return self

    def publishing(self) -> "Stand":
        self.verifying()
        self.ledger.must(self.ledger.accept("j1", "a1"))
        return self


def run(stand: Stand, body: Callable[[Stand], Awaitable[None]]) -> Stand:
    async def main() -> None:
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            task = group.create_task(stand.owner.run())
            await body(stand)
            task.cancel()

    asyncio.run(main())
    return stand


def until(state: str, job: str = "j1") -> Callable[[Stand], Awaitable[None]]:
    async def body(stand: Stand) -> None:
        await eventually(lambda: stand.state(job) == state)

    return body


def test_a_job_goes_its_whole_way() -> None:
    async def body(stand: Stand) -> None:
        stand.mesh.do(c.SubmitJobs(jobs=(_spec(),)))
        await eventually(lambda: stand.state() == "queued" and stand.ledger.reader.tasks("j1"))
        stand.finished()
        await eventually(lambda: stand.state() == "done")

    stand = run(Stand(), body)
    assert stand.shelf.outputs == {OUTPUT: RESULT}
    assert stand.shelf.staging == {}
    assert stand.mesh.attempt("a1").state == "accepted"
    assert stand.mesh.board.of("j1") == []


def _spec(job: str = "j1", **values: Any) -> JobSpec:
    return job_spec(job, **values)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (SourceChangedError("film.mkv changed"), "source_changed"),
        (OSError(5, "broken disk"), "storage"),
        (ValueError("a profile that is no JSON"), "internal"),
        (KeyError("codec"), "internal"),
    ],
    ids=repr,
)
def test_a_film_that_cannot_be_planned_fails_its_job_alone(fault: Exception, code: str) -> None:
    async def body(stand: Stand) -> None:
        stand.shelf.plan_fault = fault
        stand.mesh.do(c.SubmitJobs(jobs=(_spec(),)))
        await eventually(lambda: stand.state() == "failed")
        stand.shelf.plan_fault = None
        stand.ledger.submitted("j2")
        stand.mesh.ledger_changed.set()
        await eventually(lambda: stand.ledger.reader.tasks("j2"))

    assert run(Stand(), body).error()[0] == code


def test_a_node_whose_software_was_replaced_keeps_its_jobs_until_it_is_restarted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owner_module, "RESTART_S", 0.01)

    async def body(stand: Stand) -> None:
        stand.shelf.plan_fault = MixedSoftwareError("replaced", "restart the node")
        stand.mesh.do(c.SubmitJobs(jobs=(_spec(),)))
        await eventually(lambda: stand.shelf.plans)
        assert stand.state() == "queued"
        stand.shelf.plan_fault = None
        stand.mesh.ledger_changed.set()
        await eventually(lambda: stand.ledger.reader.tasks("j1"))

    run(Stand(), body)


def test_a_film_whose_result_finds_no_room_waits_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owner_module, "ROOM_S", 0.01)

    async def body(stand: Stand) -> None:
        stand.shelf.plan_fault = OutputDiskFullError("/out has 1 MiB free", "free some")
        stand.mesh.do(c.SubmitJobs(jobs=(_spec(),)))
        await eventually(lambda: stand.owner.waits == "/out has 1 MiB free; free some")
        assert stand.state() == "queued"
        stand.shelf.plan_fault = None
        stand.mesh.ledger_changed.set()
        await eventually(lambda: stand.ledger.reader.tasks("j1"))
        await eventually(lambda: not stand.owner.waits)

    run(Stand(), body)


def test_planning_is_told_only_where_it_takes_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_module, "TOLD_S", 0.01)

    async def body(stand: Stand) -> None:
        stand.mesh.do(c.SubmitJobs(jobs=(_spec(),)))
        await eventually(lambda: stand.ledger.reader.tasks("j1"))
        assert not stand.mesh.taken(c.StartPlanning)
        stand.shelf.goes_on.clear()
        stand.mesh.do(c.SubmitJobs(jobs=(_spec("j2"),)))
        await eventually(lambda: stand.ledger.job_state("j2") == "planning")
        stand.shelf.goes_on.set()
        await eventually(lambda: stand.ledger.reader.tasks("j2"))

    run(Stand(), body)


def test_a_job_that_is_cancelled_while_it_is_planned_is_read_no_further() -> None:
    async def body(stand: Stand) -> None:
        stand.shelf.goes_on.clear()
        stand.mesh.do(c.SubmitJobs(jobs=(_spec(),)))
        await eventually(lambda: stand.shelf.plans == ["j1"])
        stand.mesh.do(ChangeJobs(jobs=("j1",), action="cancel", priority=0, by="me"))
        await eventually(lambda: stand.shelf.given_up == ["j1"])

    run(Stand(), body)


def _held_submission(stand: Stand, *jobs: str) -> "asyncio.Task[int]":
    """A person submits films of this node; the log does not hold that yet."""
    stand.mesh.held = c.SubmitFilms
    films = films_of([_spec(job) for job in jobs or ("j1",)])
    return asyncio.ensure_future(stand.owner.submit(films))


def test_a_film_is_planned_while_its_submission_is_on_its_way_and_its_plan_follows() -> None:
    async def body(stand: Stand) -> None:
        submission = _held_submission(stand, "j1", "j2")
        await eventually(lambda: len(stand.mesh.asked) == 2)
        assert [type(command) for command in stand.mesh.asked] == [c.SubmitFilms, c.PlanJob]
        assert stand.shelf.plans == ["j1"]
        assert not submission.done()
        stand.mesh.goes_on.set()
        assert await submission
        await eventually(lambda: stand.ledger.reader.tasks("j1"))
        await eventually(lambda: stand.ledger.reader.tasks("j2"))

    assert run(Stand(), body).shelf.plans == ["j1", "j2"]


def test_beside_another_coordinator_the_plan_waits_for_its_submission() -> None:
    async def body(stand: Stand) -> None:
        stand.mesh.is_leader = False
        submission = _held_submission(stand)
        await stand.shelf.planned.wait(0)
        for _ in range(TURNS * 5):
            await asyncio.sleep(0)
        assert len(stand.mesh.asked) == 1
        stand.mesh.goes_on.set()
        await submission
        await eventually(lambda: stand.ledger.reader.tasks("j1"))

    assert run(Stand(), body).shelf.plans == ["j1"]


@pytest.mark.parametrize("leads", [True, False])
@pytest.mark.parametrize("planned", [True, False])
def test_a_submission_that_is_refused_leaves_no_plan_and_no_failure(
    *, leads: bool, planned: bool
) -> None:
    async def body(stand: Stand) -> None:
        stand.mesh.is_leader = leads
        if not planned:
            stand.shelf.goes_on.clear()
        stand.mesh.held = c.SubmitFilms
        twice = films_of([_spec("j1", output="/films/o"), _spec("j2", output="/films/o")])
        submission = asyncio.ensure_future(stand.owner.submit(twice))
        await stand.shelf.planned.wait(0)
        stand.mesh.goes_on.set()
        with pytest.raises(ConflictError):
            await submission
        for _ in range(TURNS * 5):
            await asyncio.sleep(0)
        assert stand.ledger.reader.job("j1") is None
        assert not any(isinstance(command, c.FailJob) for command in stand.mesh.asked)
        assert stand.shelf.given_up == ([] if planned else ["j1"])

    run(Stand(), body)


def test_a_film_that_cannot_be_planned_fails_once_its_job_is_there() -> None:
    async def body(stand: Stand) -> None:
        stand.shelf.plan_fault = SourceChangedError("film.mkv changed")
        submission = _held_submission(stand)
        await stand.shelf.planned.wait(0)
        for _ in range(TURNS * 5):
            await asyncio.sleep(0)
        assert len(stand.mesh.asked) == 1
        stand.mesh.goes_on.set()
        await submission
        await eventually(lambda: stand.state() == "failed")

    stand = run(Stand(), body)
    assert stand.error()[0] == "source_changed"
    assert stand.shelf.plans == ["j1"]


def test_a_film_waits_for_its_turn_where_others_wait_for_their_plans() -> None:
    async def body(stand: Stand) -> None:
        stand.shelf.goes_on.clear()
        stand.mesh.do(c.SubmitJobs(jobs=(_spec("j0"),)))
        await stand.shelf.planned.wait(0)
        await stand.owner.submit(films_of([_spec("j1")]))
        assert stand.shelf.plans == ["j0"]
        stand.shelf.goes_on.set()
        await eventually(lambda: stand.ledger.reader.tasks("j1"))

    assert run(Stand(), body).shelf.plans == ["j0", "j1"]


def test_a_job_that_is_cancelled_right_after_its_submission_is_read_no_further() -> None:
    async def body(stand: Stand) -> None:
        stand.shelf.goes_on.clear()
        submission = _held_submission(stand)
        await stand.shelf.planned.wait(0)
        stand.mesh.ledger_changed.set()  # a look does not take it for one that is gone
        for _ in range(TURNS * 5):
            await asyncio.sleep(0)
        assert stand.shelf.given_up == []
        stand.mesh.goes_on.set()
        await submission
        stand.mesh.do(ChangeJobs(jobs=("j1",), action="cancel", priority=0, by="a person"))
        await eventually(lambda: stand.shelf.given_up == ["j1"])

    assert run(Stand(), body).state() == "cancelled"


def test_planning_begun_before_a_restart_is_done_anew() -> None:
    stand = Stand()
    stand.ledger.submitted("j1")
    stand.ledger.must(c.StartPlanning(job="j1"))

    async def body(stand: Stand) -> None:
        await eventually(lambda: stand.ledger.reader.tasks("j1"))

    run(stand, body)


@pytest.mark.parametrize(
    "fault",
    [TransferError("digest"), NotAllowedError("not yours"), SourceChangedError("other file")],
)
def test_a_result_that_is_not_right_is_refused_and_made_again(fault: Exception) -> None:
    stand = Stand().verifying()
    stand.shelf.take_fault = fault

    async def body(stand: Stand) -> None:
        await eventually(lambda: stand.mesh.attempt("a1").state == "refused")
        stand.shelf.take_fault = None
        stand.finished("a2")
        await eventually(lambda: stand.state() == "done")

    assert run(stand, body).shelf.taken == ["a1", "a2"]


def test_a_full_disk_of_the_owner_fails_the_job_instead_of_another_worker() -> None:
    stand = Stand().verifying()
    stand.shelf.take_fault = DiskFullError("the disk is full", "free some space")
    run(stand, until("failed"))
    assert stand.error() == ("disk_full", "anna: the disk is full")


def test_a_silent_worker_is_waited_for_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand().verifying()
    stand.shelf.take_fault = UnreachableError("bert is silent")

    async def body(stand: Stand) -> None:
        await eventually(lambda: stand.shelf.taken)
        assert stand.mesh.attempt("a1").state == "finished"
        monkeypatch.setattr(owner_module, "WORKER_GONE_MS", -1)
        await eventually(lambda: stand.mesh.attempt("a1").state == "refused")

    run(stand, body)


def test_a_worker_that_comes_back_in_time_hands_its_result_over() -> None:
    stand = Stand().verifying()
    stand.shelf.take_fault = UnreachableError("bert is silent")

    async def body(stand: Stand) -> None:
        await eventually(lambda: stand.shelf.taken)
        stand.shelf.take_fault = None
        await eventually(lambda: stand.state() == "done")

    run(stand, body)


def test_another_file_in_the_way_is_never_replaced() -> None:
    stand = Stand().publishing()
    stand.shelf.staging["j1"] = RESULT
    stand.shelf.outputs[OUTPUT] = "somebody's film"
    run(stand, until("failed"))
    assert stand.shelf.outputs == {OUTPUT: "somebody's film"}
    assert stand.error()[0] == "conflict"
    assert stand.shelf.staging == {}


def test_staging_that_was_lost_is_fetched_again() -> None:
    stand = Stand().publishing()
    run(stand, until("done"))
    assert stand.shelf.taken == ["a1"]
    assert stand.shelf.outputs == {OUTPUT: RESULT}


def test_a_crash_between_the_new_name_and_its_record_is_finished_by_digest() -> None:
    stand = Stand().publishing()
    stand.shelf.outputs[OUTPUT] = RESULT
    run(stand, until("done"))
    assert stand.shelf.taken == []
    assert len(stand.mesh.taken(c.FinishJob)) == 1


def test_lost_staging_and_a_lost_worker_end_the_job_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand = Stand().publishing()
    stand.shelf.take_fault = UnreachableError("bert is silent")
    monkeypatch.setattr(owner_module, "WORKER_GONE_MS", -1)
    run(stand, until("failed"))
    assert "bert is silent" in stand.error()[1]


def test_without_a_coordinator_every_step_waits() -> None:
    stand = Stand().verifying()
    stand.mesh.down = True

    async def body(stand: Stand) -> None:
        await eventually(lambda: stand.shelf.taken)
        assert stand.state() == "verifying"
        stand.mesh.down = False
        await eventually(lambda: stand.state() == "done")

    run(stand, body)


def test_staging_that_cannot_be_removed_does_not_end_the_node() -> None:
    stand = Stand().publishing()
    stand.shelf.publish_fault = ConflictError("a file is there")
    stand.shelf.discard_fault = PermissionError(13, "read-only")
    run(stand, until("failed"))
    assert stand.error()[0] == "conflict"


def test_an_id_that_is_a_path_ends_its_job_untouched() -> None:
    evil = "../../films/j1"
    stand = Stand()
    stand.ledger.submitted(evil, output=OUTPUT)
    run(stand, until("failed", evil))
    assert stand.error(evil)[0] == "path"
    assert stand.mesh.taken(c.StartPlanning) == []


def test_a_cancelled_job_is_left_at_once() -> None:
    stand = Stand()
    planning, left = asyncio.Event(), asyncio.Event()

    async def plan(job: Job) -> None:
        planning.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    async def body(stand: Stand) -> None:
        shelf: Any = stand.shelf
        planned, shelf.plan = shelf.plan, plan
        stand.mesh.do(c.SubmitJobs(jobs=(_spec(),)))
        await planning.wait()
        shelf.plan = planned
        stand.mesh.do(ChangeJobs(jobs=("j1",), action="cancel", priority=0, by="me"))
        await left.wait()
        await eventually(lambda: not stand.owner._busy)
        assert stand.state() == "cancelled"
        # The next film is not held up, and the same one may come back.
        stand.mesh.do(ChangeJobs(jobs=("j1",), action="retry", priority=0, by="me"))
        await eventually(lambda: stand.state() == "queued" and stand.ledger.reader.tasks("j1"))

    run(stand, body)


def test_a_part_whose_other_result_is_kept_is_fetched_no_further() -> None:
    """Two nodes made the same part; the one that is there first counts, and the other is in nobody's way."""
    stand = Stand()
    stand.ledger.must(c.AddMember(member=spec("carl"), invitation=None))
    stand.ledger.submitted("j1", split=True)
    chunk = c.PieceSpec(id="j1-0", kind="chunk", needs=(), cost=9)
    last = c.PieceSpec(id="j1-film", kind="assemble", needs=(), cost=1)
    stand.ledger.must(
        c.PlanPieces(
            job="j1",
            source_digest="d" * 64,
            source_bytes=1_000,
            probe_json="{}",
            plan_json="{}",
            tasks=(chunk, last),
        )
    )
    begun, left = asyncio.Event(), asyncio.Event()

    async def body(stand: Stand) -> None:
        shelf: Any = stand.shelf
        take = shelf.take

        async def slow(job: Job, attempt: Attempt, on_bytes: Any) -> None:
            if attempt.id != "slow":
                await begun.wait()
                await take(job, attempt, on_bytes)
                return
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                left.set()

        shelf.take = slow
        stand.mesh.do(grant(("j1-0", "slow", "bert")))
        beside = c.SpeculativeLease(
            task="j1-0", attempt="quick", node="carl", device="", beside="slow"
        )
        stand.mesh.do(c.SpeculateLeases(leases=(beside,), granted_at_ms=8))
        stand.mesh.do(stand.ledger.finish("slow"))
        await begun.wait()
        stand.mesh.do(stand.ledger.finish("quick"))
        await left.wait()
        await eventually(lambda: not stand.owner._busy)
        assert stand.mesh.attempt("quick").state == "kept"
        assert stand.mesh.attempt("slow").state == "abandoned"
        assert stand.state() == "running"
        # What else of the film is being put in place is not touched.
        assert stand.shelf.staging

    run(stand, body)


def test_a_step_that_came_to_its_end_during_a_look_is_not_begun_by_it() -> None:
    """The look reads of a film that it is to be planned, and hears so when it is planned already."""

    async def body(stand: Stand) -> None:
        owner: Any = stand.owner
        replica: Any = stand.mesh.replica
        fresh = replica.read
        looked = asyncio.Event()

        async def slow(query: Any) -> Any:
            replica.read = fresh
            stand.mesh.held = c.PlanJob
            submission = asyncio.ensure_future(owner.submit(films_of([_spec()])))
            await eventually(lambda: stand.ledger.reader.job("j1"))
            found = query(stand.ledger.reader)
            stand.mesh.goes_on.set()
            await submission
            await eventually(lambda: not owner._busy)
            looked.set()
            return found

        await eventually(lambda: owner._group)
        replica.read = slow
        stand.mesh.ledger_changed.set()
        await looked.wait()
        await eventually(lambda: not owner._busy)

    stand = run(Stand(), body)
    assert stand.shelf.plans == ["j1"]
    assert len(stand.mesh.taken(c.PlanJob)) == 1
