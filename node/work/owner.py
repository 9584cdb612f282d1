"""What the node that has the film does: plans its jobs, takes results in, publishes them.

Everything here follows the ledger, so that it goes on after a crash: planning starts anew, a result
is fetched again, a publication is finished by the digest of what lies there.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from ledger.commands import (
    AcceptResult,
    Command,
    FailJob,
    FinishJob,
    PieceSpec,
    PlanJob,
    PlanPieces,
    RefuseResult,
    StartPlanning,
    TaskSpec,
)
from ledger.jobs import PLANNED_AT_ONCE, Attempt, Job
from ledger.planned import first_job
from ledger.queries import Reader
from ledger.scheduler import OLDEST_EVERY, PLANNED_AHEAD_MAX
from ledger.submissions import SubmitFilms, SubmitJobs
from mesh import clock
from mesh.errors import (
    ConflictError,
    DarkStreamError,
    NoCoordinatorError,
    OutputDiskFullError,
    PathError,
    StorageError,
    TransferError,
    UnreachableError,
)
from mesh.ids import NodeId
from node.consensus.driver import Driver
from node.consensus.news import Look, follow
from node.consensus.proposer import Proposer, bounded_text
from node.consensus.replica import Replica
from node.media.errors import MixedSoftwareError
from node.membership.foreign import FOREIGN_FAULTS, is_plain_id
from node.work.progress import Pace, Progress, ProgressBoard

RECONCILE_S: Final = 2.0
PLANS_AT_ONCE: Final = 1
"""Planning reads whole films; two at once only seek against each other on a disk."""
TAKES_AT_ONCE: Final = 2
TOLD_S: Final = 0.2
"""Planning that is over sooner nobody sees: it is not told."""
RESTART_S: Final = 60.0
"""A job that needs a restart of its node is tried and told so again after a minute."""
ROOM_S: Final = 10.0  # somebody may have made some
WORKER_GONE_MS: Final = 60_000
"""A finished result whose holder stays silent this long is encoded again elsewhere."""

_log = structlog.get_logger("owner")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What planning found out, ready for the ledger."""

    source_digest: str
    source_bytes: int
    probe_json: str
    plan_json: str
    needs: tuple[str, ...]
    cost: int
    tasks: tuple[PieceSpec, ...] = ()
    """Of a film in pieces; empty: one task for all of it."""


class Planner(Protocol):
    """Reads a source: facts unchanged since submission, digest, probe, plan."""

    async def plan(self, job: Job) -> Plan:
        """The plan.  Raises errors that end the job."""
        ...


class Intake(Protocol):
    """Brings a worker's result next to its destination, and publishes it there."""

    async def take(self, job: Job, attempt: Attempt, on_bytes: Callable[[int, int], None]) -> None:
        """Fetches the result into staging and judges it: digest, packets.

        Raises `UnreachableError` while the worker is silent, `TransferError` and other errors when
        the result is not to be had or not right.
        """
        ...

    async def publish(self, job: Job, attempt: Attempt) -> None:
        """Renames staging into place and syncs; does nothing when the result already lies there.

        Raises `ConflictError` when another file is in the way, `TransferError` when staging is
        not there or not whole.
        """
        ...

    async def discard(self, job: Job) -> None:
        """Removes staging."""
        ...


class Owner:
    """Takes care of the jobs whose films lie on this node."""

    def __init__(
        self,
        *,
        own: NodeId,
        name: str,
        driver: Driver,
        proposer: Proposer,
        replica: Replica,
        board: ProgressBoard,
        planner: Planner,
        intake: Intake,
    ) -> None:
        self._own = own
        self._name = name
        self._driver = driver
        self._proposer = proposer
        self._replica = replica
        self._board = board
        self._planner = planner
        self._intake = intake
        self._busy: dict[str, tuple[Job, asyncio.Task[None]]] = {}
        self._unwanted: set[str] = set()
        self._ended: set[str] = set()
        """What came to its end since the last look began."""
        self._coming: set[str] = set()
        """Jobs that are planned while their submission is on its way: the ledger does not know them yet."""
        self._group: asyncio.TaskGroup | None = None
        self._planned = 0
        self._silent_since_ms: dict[str, int] = {}
        self._no_room: dict[str, str] = {}
        self._plans = asyncio.Semaphore(PLANS_AT_ONCE)
        self._takes = asyncio.Semaphore(TAKES_AT_ONCE)

    @property
    def waits(self) -> str:
        """What keeps a film from being planned; empty: nothing."""
        return next(iter(self._no_room.values()), "")

    async def run(self) -> None:
        """Works until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            await follow(self._driver.news.films, partial(self._look, group))

    async def submit(self, command: SubmitJobs | SubmitFilms) -> int:
        """Commits new jobs of this node; the log index.  Raises what `Proposer.commit` does.

        Where nothing else waits for its plan, the first film is planned meanwhile, and its plan enters
        the log behind the submission.
        """
        job = first_job(command) if isinstance(command, SubmitFilms) else None
        if job is None or self._group is None:
            return await self._proposer.commit(command, cause="submit")
        # Made first: on the coordinator's node it enters the log first.
        submission = asyncio.ensure_future(self._proposer.commit(command, cause=job.id))
        self._coming.add(job.id)
        self._begin(self._group, job.id, job, partial(self._plan_early, submission))
        try:
            return await submission
        except BaseException:
            self._end(job.id)
            raise
        finally:
            self._coming.discard(job.id)

    def _begin(self, group: asyncio.TaskGroup, key: str, job: Job, step: "Step") -> None:
        self._busy[key] = job, group.create_task(self._guarded(key, job, step), name=f"job {key}")

    def _end(self, key: str) -> None:
        """Nobody wants any more what is being done; it may have come to its end meanwhile."""
        if key in self._busy:
            self._unwanted.add(key)
            self._busy[key][1].cancel()

    async def _look(self, group: asyncio.TaskGroup) -> Look:
        self._ended.clear()
        steps, gone = await self._replica.read(self._looked)
        for key in gone:
            self._end(key)
        # What came to its end meanwhile was read before that: its end wakes the next look.
        new = [one for one in steps if one[0] not in self._busy and one[0] not in self._ended]
        for key, job, step in new:
            self._begin(group, key, job, step)
        return Look(RECONCILE_S, found=bool(new))

    def _looked(self, reader: Reader) -> tuple[list[tuple[str, Job, "Step"]], list[str]]:
        """What is to be done, and which of what is being done nobody wants any more."""
        coming = tuple(self._coming)
        busy = tuple((key, one) for key, one in tuple(self._busy.items()) if key not in coming)
        states = reader.states_of([job.id for _, (job, _) in busy])
        parts = reader.attempt_states([key for key, (job, _) in busy if key != job.id])
        gone = [
            key
            for key, (job, _) in busy
            if key not in self._unwanted
            # Of a part another attempt's result may be kept meanwhile.
            and (states.get(job.id, "cancelled") == "cancelled" or parts.get(key) == "abandoned")
        ]
        return self._steps(reader, {key for key, _ in busy}), gone

    def _steps(self, reader: Reader, busy: Collection[str]) -> list[tuple[str, Job, "Step"]]:
        steps: list[tuple[Job, Step]] = []
        for job in reader.jobs_of_owner(self._own, ("verifying", "publishing")):
            if job.id in busy:
                continue
            taken = job.state == "publishing"
            attempts = reader.attempts(job.id, "accepted" if taken else "finished")
            if attempts:
                step = self._publish_result if taken else self._take
                steps.append((job, partial(step, attempts[-1])))
        turn = self._planned % OLDEST_EVERY == OLDEST_EVERY - 1
        waiting = reader.jobs_to_plan(self._own, PLANNED_AHEAD_MAX, oldest=turn)
        told = reader.schema() < PLANNED_AT_ONCE
        steps.extend((job, partial(self._plan, told=told)) for job in waiting)
        chosen = [
            (job.id, job, step if is_plain_id(job.id) else self._reject) for job, step in steps
        ]
        return chosen + self._parts(reader)

    def _parts(self, reader: Reader) -> list[tuple[str, Job, "Step"]]:
        """Finished parts of films in pieces, each a step of its own."""
        steps: list[tuple[str, Job, Step]] = []
        for attempt, name in reader.finished_parts(self._own):
            job = reader.job(name) if attempt not in self._busy and is_plain_id(name) else None
            if job is not None:
                steps.append((attempt, job, partial(self._take_part, attempt)))
        return steps

    async def _guarded(self, key: str, job: Job, step: "Step") -> None:
        try:
            await step(job)
        except asyncio.CancelledError:
            if key not in self._unwanted:
                raise  # this node stops
            self._unwanted.discard(key)
            _log.info("not wanted any more", job=job.id, step=key)
            if key == job.id:
                await self._discard(job)
                self._board.over(job.id)
        except NoCoordinatorError:
            _log.info("waits for a coordinator", job=job.id)
        except UnreachableError as error:
            _log.info("waits for a node", job=job.id, reason=error.what)
            await self._driver.ledger_changed.wait(self._driver.ledger_changed.count, RECONCILE_S)
        except OutputDiskFullError as error:
            _log.warning("waits for room", job=job.id, reason=error.what, todo=error.todo)
            self._no_room[key] = f"{error.what}; {error.todo}"
            await asyncio.sleep(ROOM_S)
        except MixedSoftwareError as error:
            _log.warning("waits for a restart of this node", job=job.id, reason=error.what)
            await asyncio.sleep(RESTART_S)
        except DarkStreamError as error:
            await self._give_up(job, error)
        except OSError as error:
            await self._give_up(
                job, StorageError(str(error), "mend the disk or folder, then retry")
            )
        except FOREIGN_FAULTS as error:
            _log.exception("job failed", job=job.id)
            await self._give_up(job, DarkStreamError(f"internal fault: {error!r}"))
        finally:
            self._busy.pop(key, None)
            self._ended.add(key)
            self._no_room.pop(key, None)

    async def _reject(self, job: Job) -> None:
        # Such an id would name a file elsewhere; no node of ours draws one.
        raise PathError(f"{job.id[:80]!a} is no id of a job", "submit it again on its node")

    async def _give_up(self, job: Job, error: DarkStreamError) -> None:
        _log.warning("job failed", job=job.id, code=error.code, reason=error.what)
        await self._discard(job)
        command = FailJob(
            job=job.id,
            node=self._own,
            code=error.code,
            what=bounded_text(f"{self._name}: {error.what}"),
            todo=bounded_text(error.todo),
        )
        try:
            await self._proposer.propose(command, cause=job.id)
        except DarkStreamError as reason:
            _log.info("failure was not taken", job=job.id, reason=reason.what)

    async def _discard(self, job: Job) -> None:
        try:
            await self._intake.discard(job)
        except (DarkStreamError, OSError) as error:
            _log.warning("staging could not be removed", job=job.id, reason=str(error))

    async def _commit(self, job: Job, command: Command) -> bool:
        outcome = await self._proposer.propose(command, cause=job.id)
        if not outcome.ok:
            _log.info("overtaken", job=job.id, code=outcome.code, reason=outcome.what)
        return outcome.ok

    async def _plan(self, job: Job, *, told: bool) -> None:
        async with self._plans:
            if told and not await self._commit(job, StartPlanning(job=job.id)):
                return
            plan = await self._read_film(job, told=told)
            if plan is None:
                return
            self._planned += 1
        # The next film is read while the mesh hears of this one.
        await self._commit(job, _planned(job, plan))

    async def _plan_early(self, submission: "asyncio.Task[int]", job: Job) -> None:
        """Plans a film whose submission is on its way.

        On the coordinator's node the plan follows right behind it: should the submission be refused,
        the plan is as well.  Elsewhere the coordinator asks its ledger whose job it is, so it waits.
        """
        may = await self._replica.read(lambda r: r.may_plan_early(job, PLANNED_AHEAD_MAX))
        if not may or self._plans.locked():
            self._driver.news.films.set()  # it waits for its turn, which may have come meanwhile
            return
        try:
            async with self._plans:
                plan = await self._read_film(job, submission=submission)
                if plan is None:
                    return
                self._planned += 1
            if self._driver.is_leader or await _is_taken(submission):
                await self._commit(job, _planned(job, plan))
        except (DarkStreamError, OSError, *FOREIGN_FAULTS):
            # Before it is taken there is no job that could fail.
            if await _is_taken(submission):
                raise

    async def _read_film(
        self, job: Job, *, told: bool = False, submission: "asyncio.Task[int] | None" = None
    ) -> Plan | None:
        """The plan; that it is being made is told where it takes long enough for somebody to ask."""
        reading = asyncio.ensure_future(self._planner.plan(job))
        try:
            if not told:
                await asyncio.wait((reading,), timeout=TOLD_S)
            if not told and not reading.done():
                taken = submission is None or await _is_taken(submission)
                if not taken or not await self._commit(job, StartPlanning(job=job.id)):
                    return None
            return await reading
        finally:
            if not reading.done():
                reading.cancel()
                await asyncio.wait((reading,))

    async def _take(self, attempt: Attempt, job: Job) -> None:
        if await self._take_in(job, attempt):
            await self._publish_result(attempt, job)

    async def _take_part(self, attempt_id: str, job: Job) -> None:
        # The step may have been chosen by a read that is older than its end.
        attempt = await self._replica.read(lambda reader: reader.attempt(attempt_id))
        if attempt is not None and attempt.state == "finished":
            await self._take_in(job, attempt)

    async def _take_in(self, job: Job, attempt: Attempt) -> bool:
        """Whether the result lies here and the ledger accepted it."""
        async with self._takes:
            try:
                await self._fetch(job, attempt)
            except UnreachableError as error:
                if not self._gave_up_waiting(attempt):
                    raise
                await self._refuse(job, attempt, error)
                return False
            except (TransferError, DarkStreamError) as error:
                if isinstance(error, StorageError | ConflictError):
                    raise  # our own disk: another worker would not help
                await self._refuse(job, attempt, error)
                return False
        self._silent_since_ms.pop(attempt.id, None)
        return await self._commit(
            job,
            AcceptResult(
                job=job.id,
                attempt=attempt.id,
                token=attempt.token,
                output=job.output,
                result_bytes=attempt.result_bytes,
                result_digest=attempt.result_digest,
            ),
        )

    async def _fetch(self, job: Job, attempt: Attempt) -> None:
        loop = asyncio.get_running_loop()
        pace = Pace()

        def on_bytes(done: int, total: int) -> None:
            rate = pace.note(done, total, clock.monotonic_ms())
            if rate is None:
                return
            news = Progress(
                job=job.id,
                attempt=attempt.id,
                node=self._own,
                phase="returning",
                bytes_done=done,
                bytes_total=total,
                bytes_s=rate,
            )
            loop.call_soon_threadsafe(self._board.report, news)

        await self._intake.take(job, attempt, on_bytes)

    def _gave_up_waiting(self, attempt: Attempt) -> bool:
        now_ms = clock.monotonic_ms()
        since_ms = self._silent_since_ms.setdefault(attempt.id, now_ms)
        return now_ms - since_ms > WORKER_GONE_MS

    async def _refuse(self, job: Job, attempt: Attempt, error: DarkStreamError) -> None:
        _log.warning("result refused", job=job.id, attempt=attempt.id, reason=error.what)
        self._silent_since_ms.pop(attempt.id, None)
        await self._discard(job)
        await self._commit(
            job,
            RefuseResult(
                job=job.id,
                attempt=attempt.id,
                token=attempt.token,
                code=error.code,
                what=bounded_text(error.what),
                todo=bounded_text(error.todo),
            ),
        )

    async def _publish_result(self, attempt: Attempt, job: Job) -> None:
        try:
            await self._intake.publish(job, attempt)
        except TransferError:
            # Staging was lost (a crash before its sync, a person's clean-up): the worker still has it.
            async with self._takes:
                try:
                    await self._fetch(job, attempt)
                except UnreachableError as error:
                    if not self._gave_up_waiting(attempt):
                        raise
                    # Accepted is accepted: nobody encodes it again but on a person's word.
                    self._silent_since_ms.pop(attempt.id, None)
                    raise TransferError(
                        f"the staged result is gone and {error.what}", "retry the job"
                    ) from None
            await self._intake.publish(job, attempt)
        self._silent_since_ms.pop(attempt.id, None)
        await self._commit(
            job, FinishJob(job=job.id, token=attempt.token, finished_at_ms=clock.wall_ms())
        )
        self._board.over(job.id)
        _log.info("published", job=job.id, output=Path(job.output).name)


async def _is_taken(submission: "asyncio.Task[int]") -> bool:
    """Whether the ledger took it, once that is known."""
    await asyncio.wait((submission,))
    return not submission.cancelled() and submission.exception() is None


def _planned(job: Job, plan: Plan) -> PlanJob | PlanPieces:
    told: dict[str, Any] = {
        "job": job.id,
        "source_digest": plan.source_digest,
        "source_bytes": plan.source_bytes,
        "probe_json": plan.probe_json,
        "plan_json": plan.plan_json,
    }
    if plan.tasks:
        return PlanPieces(tasks=plan.tasks, **told)
    whole = TaskSpec(id=f"{job.id}-0", kind="whole", needs=plan.needs, cost=plan.cost)
    return PlanJob(tasks=(whole,), **told)


Step = Callable[[Job], Coroutine[Any, Any, None]]
