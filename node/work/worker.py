"""Turns leases into results: fetches, encodes, judges, and hands back, as the ledger says.

The worker holds no state that matters: what it runs is what this node's ledger says is leased to
it.  A lease that disappears from the ledger stops its run; a lease without a run starts one.
"""

import asyncio
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

import structlog

from ledger.commands import (
    LEASES_PER_COMMAND_MAX,
    AttemptReport,
    FailAttempt,
    FailureClass,
    FinishAttempt,
    ReleaseLeases,
)
from ledger.jobs import Attempt, Job, Task
from ledger.queries import Reader
from mesh import clock
from mesh.errors import DarkStreamError, DiskFullError, NoCoordinatorError, SourceChangedError
from mesh.ids import NodeId, node_of
from node.consensus.driver import Driver
from node.consensus.proposer import Proposer, bounded_text
from node.consensus.replica import Replica
from node.media.errors import MediaError
from node.membership.foreign import FOREIGN_FAULTS, is_plain_id
from node.requests import Requests
from node.work.leases import WORK, Fence, LeaseTiming, WorkerHeartbeat
from node.work.progress import Pace, Progress, ProgressBoard

HEARTBEAT: Final = "worker.heartbeat"
RECONCILE_S: Final = 1.0
"""The ledger is looked at again at least this often, also when nothing was applied."""
BACKOFF_FIRST_MS: Final = 2_000
BACKOFF_MAX_MS: Final = 60_000

_log = structlog.get_logger("worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One attempt with everything that it needs."""

    job: Job
    task: Task
    attempt: Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What an encoder did: facts for the report, and the judged result."""

    command_line: str
    stderr_tail: str
    encoder: str
    ffmpeg: str
    encode_ms: int
    verify_ms: int
    frames: int
    result_json: str


class AttemptError(DarkStreamError):
    """An attempt failed; carries the class that decides about a retry, and the report of the run."""

    def __init__(
        self,
        error: DarkStreamError,
        failure: FailureClass,
        conversion: Conversion | None = None,
    ) -> None:
        super().__init__(error.what, error.todo)
        self.cause_code = error.code
        self.failure: FailureClass = failure
        self.conversion = conversion


ReportFrames = Callable[[int, int, float, float], None]
"""frames done, frames in all, frames a second, times real time."""
ReportBytes = Callable[[int, int], None]
"""bytes done, bytes in all; may be called from any thread."""


class Converter(Protocol):
    """Encodes a source as the job asks and judges the result by decoding it."""

    async def convert(
        self,
        order: Order,
        source: Path,
        result: Path,
        *,
        on_frames: ReportFrames,
        on_verifying: Callable[[int], None],
    ) -> Conversion:
        """Writes `result`.  Raises `AttemptError`; cancelling it kills FFmpeg within two seconds."""
        ...


class Sources(Protocol):
    """Gives a worker the bytes of a job's source."""

    async def fetch(self, order: Order, folder: Path, on_bytes: ReportBytes) -> tuple[Path, int]:
        """A path that holds exactly the planned source, and how many bytes travelled for it."""
        ...


class Results(Protocol):
    """Keeps judged results until their owners have them."""

    async def keep(self, order: Order, result: Path) -> tuple[int, str]:
        """Moves a result to where the owner can fetch it; its size and BLAKE3 digest."""
        ...

    async def sweep(self, replica: Replica) -> None:
        """Deletes results whose jobs need them no more."""
        ...


class Worker:
    """Runs the attempts that are leased to this node."""

    def __init__(
        self,
        *,
        own: NodeId,
        name: str,
        driver: Driver,
        proposer: Proposer,
        requests: Requests,
        replica: Replica,
        board: ProgressBoard,
        converter: Converter,
        sources: Sources,
        results: Results,
        folder: Path,
        timing: LeaseTiming,
        fit: Callable[[], bool] = lambda: True,
        closed: Callable[[], str] = lambda: "",
    ) -> None:
        """`fit`: whether this node may take work at all, its replica may be wrong; `closed`: why its owner takes none."""
        self._own = own
        self._name = name
        self._driver = driver
        self._proposer = proposer
        self._requests = requests
        self._replica = replica
        self._board = board
        self._converter = converter
        self._sources = sources
        self._results = results
        self._folder = folder
        self._timing = timing
        self._fence = Fence(timing, clock.monotonic_ms())
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._interrupted: set[str] = set()
        self._over: set[str] = set()
        self._fit = fit
        self._owner_closed = closed
        self._draining = False

    @property
    def accepting(self) -> bool:
        """Whether it takes new work."""
        return not self.closed

    @property
    def closed(self) -> str:
        """Why it takes no new work; empty while it does."""
        if self._draining:
            return "stops and takes nothing new"
        return (
            self._owner_closed() if self._fit() else "has a damaged replica that is being rebuilt"
        )

    @property
    def running(self) -> tuple[str, ...]:
        """Attempts that run now."""
        return tuple(self._runs)

    async def run(self) -> None:
        """Works until cancelled."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._interrupted = {path.name for path in self._folder.iterdir()}
        async with asyncio.TaskGroup() as group:
            group.create_task(self._heartbeats(), name="worker heartbeat")
            group.create_task(self._reconcile(group), name="worker")

    async def drain(self, limit_s: float) -> None:
        """Takes nothing new, waits for what runs up to the limit, gives the rest back."""
        self._draining = True
        runs = list(self._runs.values())
        if runs:
            _log.info("finishing what runs", attempts=len(runs), limit_s=limit_s)
            await asyncio.wait(runs, timeout=limit_s)
        for attempt in tuple(self._runs):
            self._stop(attempt)
        # By the ledger: what was granted meanwhile was never begun.
        orders = await self._replica.read(self._orders)
        left = tuple(o.attempt.id for o in orders if o.attempt.id not in self._over)
        await self._release(left, "the node stops")

    async def give_back(self, what: str) -> None:
        """Stops what runs and gives its leases back; the node itself goes on."""
        running = self.running
        for attempt in running:
            self._over.add(attempt)
            self._stop(attempt)
        await self._release(running, what)

    async def _release(self, attempts: Sequence[str], what: str) -> None:
        if not attempts:
            return
        batch = tuple(attempts[:LEASES_PER_COMMAND_MAX])
        release = ReleaseLeases(node=self._own, attempts=batch, what=what)
        try:
            await self._proposer.propose(release, cause="shutdown", timeout_s=2.0)
        except DarkStreamError as error:
            _log.info("leases could not be given back, they will expire", reason=error.what)

    async def _heartbeats(self) -> None:
        while True:
            leader = self._driver.leader
            seen = self._driver.leader_changed.count
            if leader is not None:
                beat = WorkerHeartbeat(attempts=tuple(self._runs), accepting=self.accepting)
                sent_ms = clock.monotonic_ms()
                try:
                    await self._requests.call(
                        node_of(leader),
                        HEARTBEAT,
                        WORK.encode(beat),
                        timeout_s=self._timing.heartbeat_ms / 1000,
                    )
                    self._fence.acknowledged(sent_ms)
                except DarkStreamError as error:
                    _log.debug("heartbeat not answered", reason=error.what)
            # A new coordinator hears of this worker at once: it may be idle and work may wait.
            await self._driver.leader_changed.wait(seen, self._timing.heartbeat_ms / 1000)

    async def _reconcile(self, group: asyncio.TaskGroup) -> None:
        while True:
            seen = self._driver.ledger_changed.count
            orders = await self._replica.read(self._orders)
            wanted = {order.attempt.id for order in orders}
            self._over &= wanted
            for attempt in tuple(self._runs):
                if attempt not in wanted:
                    _log.info("lease is gone, stopping", attempt=attempt)
                    self._stop(attempt)
            if not self.accepting and not self._draining:
                # Granted before the coordinator heard that this node is closed.
                begun = self._over | set(self._runs)
                unbegun = [o.attempt.id for o in orders if o.attempt.id not in begun]
                await self._release(unbegun, f"the node {self.closed}")
            for order in orders:
                attempt = order.attempt.id
                # This read may be older than the end of a run; a draining node begins nothing.
                if attempt not in self._runs and attempt not in self._over and self.accepting:
                    run = self._run_order(order)
                    self._runs[attempt] = group.create_task(run, name=f"attempt {attempt}")
            try:
                await asyncio.to_thread(self._remove_leftovers, wanted | set(self._runs))
                await self._results.sweep(self._replica)
            except OSError as error:
                _log.warning("leftovers could not be removed", reason=str(error))
            await self._driver.ledger_changed.wait(seen, RECONCILE_S)

    def _orders(self, reader: Reader) -> Sequence[Order]:
        orders: list[Order] = []
        for attempt in reader.active_attempts(node=self._own):
            task = reader.task(attempt.task)
            job = reader.job(attempt.job)
            # The id names a folder; a lease with another kind of id expires.
            if task is not None and job is not None and is_plain_id(attempt.id):
                orders.append(Order(job=job, task=task, attempt=attempt))
        return orders

    def _remove_leftovers(self, wanted: set[str]) -> None:
        """Removes what runs of an earlier process left whose leases are gone."""
        for name in self._interrupted - wanted:
            shutil.rmtree(self._folder / name, ignore_errors=True)
        self._interrupted &= wanted

    def _stop(self, attempt: str) -> None:
        run = self._runs.pop(attempt, None)
        if run is not None:
            run.cancel()

    async def _run_order(self, order: Order) -> None:
        attempt = order.attempt.id
        folder = self._folder / attempt
        log = _log.bind(job=order.job.id, attempt=attempt)
        try:
            if attempt in self._interrupted:
                self._interrupted.discard(attempt)
                raise AttemptError(
                    DarkStreamError(f"node {self._name} was stopped while it worked on this"),
                    "transient",
                )
            folder.mkdir(parents=True, exist_ok=True)
            await self._attempt(order, folder)
        except AttemptError as error:
            log.warning("attempt failed", code=error.cause_code, reason=error.what)
            await self._fail(order, error)
        except DarkStreamError as error:
            log.warning("attempt failed", code=error.code, reason=error.what)
            await self._fail(order, AttemptError(error, _class_of(error)))
        except OSError as error:
            log.warning("attempt failed", reason=str(error))
            fault = DiskFullError if error.errno == 28 else DarkStreamError
            await self._fail(order, AttemptError(fault(f"{self._name}: {error}"), "transient"))
        except FOREIGN_FAULTS as error:
            log.exception("attempt failed")
            fault_here = DarkStreamError(f"{self._name}: internal fault: {error!r}")
            await self._fail(order, AttemptError(fault_here, "transient"))
        finally:
            self._runs.pop(attempt, None)
            await asyncio.to_thread(shutil.rmtree, folder, True)

    async def _attempt(self, order: Order, folder: Path) -> None:
        job, attempt = order.job, order.attempt
        started_at_ms, begun_ms = clock.wall_ms(), clock.monotonic_ms()
        reporter = _Reporter(self._board, order, self._own)
        reporter.bytes(0, job.source_bytes)
        source, fetched_bytes = await self._sources.fetch(order, folder, reporter.bytes)
        fetch_ms = clock.monotonic_ms() - begun_ms
        result = folder / f"result{Path(job.output).suffix}"
        conversion = await self._converter.convert(
            order,
            source,
            result,
            on_frames=reporter.frames,
            on_verifying=reporter.verifying,
        )
        result_bytes, digest = await self._results.keep(order, result)
        await self._hand_back(
            order,
            FinishAttempt(
                attempt=attempt.id,
                token=attempt.token,
                result_bytes=result_bytes,
                result_digest=digest,
                result_json=conversion.result_json,
                report=_report(conversion, started_at_ms, fetch_ms, fetched_bytes),
            ),
        )

    async def _hand_back(self, order: Order, command: FinishAttempt) -> None:
        """Proposes the result until it is taken or refused; never beyond the fence."""
        while True:
            while not self._fence.may_hand_back(clock.monotonic_ms()):
                await self._driver.leader_changed.wait(self._driver.leader_changed.count, 0.5)
            try:
                outcome = await self._proposer.propose(command, cause=order.job.id)
            except NoCoordinatorError:
                _log.info("result waits for a coordinator", attempt=order.attempt.id)
                continue
            self._over.add(order.attempt.id)
            if outcome.ok:
                _log.info("attempt finished", job=order.job.id, attempt=order.attempt.id)
            else:
                _log.warning("result refused", attempt=order.attempt.id, code=outcome.code)
            return

    async def _fail(self, order: Order, error: AttemptError) -> None:
        conversion = error.conversion
        number = order.attempt.number
        ceiling = min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS << min(number, 10))
        command = FailAttempt(
            attempt=order.attempt.id,
            token=order.attempt.token,
            node=self._own,
            failure=error.failure,
            code=error.cause_code,
            what=bounded_text(error.what),
            todo=bounded_text(error.todo),
            # Full jitter (half to whole): nodes that failed together do not come back together.
            backoff_ms=ceiling // 2 + secrets.randbelow(ceiling // 2),
            report=_report(conversion, clock.wall_ms(), 0, 0),
        )
        try:
            await self._proposer.propose(command, cause=order.job.id)
            self._over.add(order.attempt.id)
        except DarkStreamError as reason:
            # The lease still runs: it is worked on again, until it expires or somebody decides.
            _log.info("failure was not taken", attempt=order.attempt.id, reason=reason.what)


class _Reporter:
    """Tells the board how far one attempt is; `bytes` may be called from any thread."""

    def __init__(self, board: ProgressBoard, order: Order, own: NodeId) -> None:
        self._board = board
        self._base = Progress(
            job=order.job.id, attempt=order.attempt.id, node=own, phase="fetching"
        )
        self._total = 0
        self._pace = Pace()
        self._loop = asyncio.get_running_loop()

    def bytes(self, done: int, total: int) -> None:
        rate = self._pace.note(done, total, clock.monotonic_ms())
        if rate is None:
            return
        news = replace(self._base, bytes_done=done, bytes_total=total, bytes_s=rate)
        self._loop.call_soon_threadsafe(self._board.report, news)

    def frames(self, done: int, total: int, fps: float, speed: float) -> None:
        self._total = total
        self._board.report(
            replace(
                self._base,
                phase="encoding",
                frames=done,
                frames_total=total,
                fps=fps,
                speed=speed,
            )
        )

    def verifying(self, done: int) -> None:
        self._board.report(
            replace(self._base, phase="verifying", frames=done, frames_total=self._total)
        )


def _report(
    conversion: Conversion | None, started_at_ms: int, fetch_ms: int, fetched_bytes: int
) -> AttemptReport:
    return AttemptReport(
        command_line=bounded_text(conversion.command_line) if conversion else "",
        stderr_tail=bounded_text(conversion.stderr_tail) if conversion else "",
        encoder=conversion.encoder if conversion else "",
        ffmpeg=conversion.ffmpeg if conversion else "",
        started_at_ms=started_at_ms,
        fetch_ms=fetch_ms,
        encode_ms=conversion.encode_ms if conversion else 0,
        verify_ms=conversion.verify_ms if conversion else 0,
        fetched_bytes=fetched_bytes,
        frames=conversion.frames if conversion else 0,
    )


def _class_of(error: DarkStreamError) -> FailureClass:
    if isinstance(error, MediaError):
        return error.failure
    return "input" if isinstance(error, SourceChangedError) else "transient"
