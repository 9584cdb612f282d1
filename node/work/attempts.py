"""One attempt of a worker: fetches, encodes, judges, and hands back, or says why it could not."""

import asyncio
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

import structlog

from ledger.commands import AttemptReport, FailAttempt, FailureClass, FinishAttempt
from mesh import clock
from mesh.errors import DarkStreamError, DiskFullError, NoCoordinatorError, SourceChangedError
from mesh.ids import NodeId
from node.consensus.driver import Driver
from node.consensus.proposer import Proposer, bounded_text
from node.consensus.replica import Replica
from node.media.errors import MediaError
from node.membership.foreign import FOREIGN_FAULTS
from node.work.leases import Fence
from node.work.order import Order
from node.work.progress import Pace, Progress, ProgressBoard

BACKOFF_FIRST_MS: Final = 2_000
BACKOFF_MAX_MS: Final = 60_000
BEGUN: Final = "begun"
"""A file in an attempt's folder: it had a slot.  What a killed process had only fetched ahead is nobody's failure."""

TOLD_S: Final = 0.2
"""An attempt that is over sooner is not told to be on."""

_log = structlog.get_logger("worker")


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
        turn: "Turn",
        on_frames: ReportFrames,
        on_verifying: Callable[[int], None],
    ) -> Conversion:
        """Writes `result`, and lets its slot go while it judges it.

        Raises `AttemptError`; cancelling it kills FFmpeg within two seconds.
        """
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


class Turn:
    """An attempt's slot: it waits for it, has it, and lets it go: while its result is judged, then for good."""

    def __init__(self, free: Callable[[], None], device: str = "") -> None:
        """`free` is called when others may have the slot; it is one of `device`."""
        self._given = asyncio.Event()
        self._free = free
        self.device = device
        self.is_over = False
        self.is_judged = False
        """Its result is made and not yet kept: the next one may encode beside it."""

    @property
    def is_given(self) -> bool:
        """Whether the attempt has, or had, its slot."""
        return self._given.is_set()

    @property
    def is_awaited(self) -> bool:
        """Whether it has none and wants one."""
        return not self._given.is_set() and not self.is_over

    @property
    def holds(self) -> bool:
        """Whether it has its slot now, for itself alone."""
        return self._given.is_set() and not self.is_over and not self.is_judged

    def give(self) -> None:
        """From now on it has one."""
        self._given.set()

    async def wait(self) -> None:
        """Until it has one."""
        await self._given.wait()

    def lend(self) -> None:
        """Its result is judged from now on, and the next one may encode."""
        if self.holds:
            self.is_judged = True
            self._free()

    async def encode_again(self) -> None:
        """Until it has a slot for itself once more."""
        if self.is_judged:
            await self.move(self.device)
        await self._given.wait()

    async def move(self, device: str) -> None:
        """Lets its slot go and waits for one of another device."""
        self.device = device
        self.is_judged = False
        self._given.clear()
        self._free()
        await self._given.wait()

    def end(self) -> None:
        """It needs none any more."""
        if not self.is_over:
            self.is_over = True
            self._free()


class Attempts:
    """Runs attempts, and remembers whose end the ledger holds."""

    def __init__(
        self,
        *,
        own: NodeId,
        name: str,
        driver: Driver,
        proposer: Proposer,
        board: ProgressBoard,
        converter: Converter,
        sources: Sources,
        results: Results,
        folder: Path,
        fence: Fence,
    ) -> None:
        self._own = own
        self._name = name
        self._driver = driver
        self._proposer = proposer
        self._board = board
        self._converter = converter
        self._sources = sources
        self._results = results
        self._folder = folder
        self._fence = fence
        self.over: set[str] = set()
        """Attempts that this worker has ended, or given back, whatever an older read says."""

    async def run(self, order: Order, turn: Turn, *, interrupted: bool) -> None:
        """Fetches at once, and encodes when it has a slot.

        Never raises for what an attempt meets: the attempt fails with it.
        """
        attempt = order.attempt.id
        folder = self._folder / attempt
        log = _log.bind(job=order.job.id, attempt=attempt)
        try:
            if interrupted:
                raise AttemptError(
                    DarkStreamError(f"node {self._name} was stopped while it worked on this"),
                    "transient",
                )
            folder.mkdir(parents=True, exist_ok=True)
            with _Reporter(self._board, order, self._own) as reporter:
                await self._attempt(order, folder, turn, reporter)
        except AttemptError as error:
            log.warning("attempt failed", code=error.cause_code, reason=error.what)
            await self._fail(order, turn, error)
        except DarkStreamError as error:
            log.warning("attempt failed", code=error.code, reason=error.what)
            await self._fail(order, turn, AttemptError(error, _class_of(error)))
        except OSError as error:
            log.warning("attempt failed", reason=str(error))
            fault = DiskFullError if error.errno == 28 else DarkStreamError
            await self._fail(
                order, turn, AttemptError(fault(f"{self._name}: {error}"), "transient")
            )
        except FOREIGN_FAULTS as error:
            log.exception("attempt failed")
            fault_here = DarkStreamError(f"{self._name}: internal fault: {error!r}")
            await self._fail(order, turn, AttemptError(fault_here, "transient"))
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, True)

    async def _attempt(self, order: Order, folder: Path, turn: Turn, reporter: "_Reporter") -> None:
        job, attempt = order.job, order.attempt
        begun_ms = clock.monotonic_ms()
        source, fetched_bytes = await self._sources.fetch(order, folder, reporter.bytes)
        fetch_ms = clock.monotonic_ms() - begun_ms
        await turn.wait()
        (folder / BEGUN).touch()
        started_at_ms = clock.wall_ms()
        result = folder / f"result{Path(job.output).suffix}"
        conversion = await self._converter.convert(
            order,
            source,
            result,
            turn=turn,
            on_frames=reporter.frames,
            on_verifying=reporter.verifying,
        )
        result_bytes, digest = await self._results.keep(order, result)
        turn.end()
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
            self.over.add(order.attempt.id)
            if outcome.ok:
                _log.info("attempt finished", job=order.job.id, attempt=order.attempt.id)
            else:
                _log.warning("result refused", attempt=order.attempt.id, code=outcome.code)
            return

    async def _fail(self, order: Order, turn: Turn, error: AttemptError) -> None:
        turn.end()
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
            self.over.add(order.attempt.id)
        except DarkStreamError as reason:
            # The lease still runs: it is worked on again, until it expires or somebody decides.
            _log.info("failure was not taken", attempt=order.attempt.id, reason=reason.what)


class _Reporter:
    """Tells the board how far one attempt is while it is entered; `bytes` may be called from any thread.

    That it begins is told once it has lasted a moment: of one that is over by then nobody sees it, and
    each notice wakes every node.
    """

    def __init__(self, board: ProgressBoard, order: Order, own: NodeId) -> None:
        self._board = board
        self._base = Progress(
            job=order.job.id, attempt=order.attempt.id, node=own, phase="fetching"
        )
        self._total = 0
        self._pace = Pace()
        self._loop = asyncio.get_running_loop()
        begun = replace(self._base, bytes_total=order.job.source_bytes)
        self._pace.note(0, begun.bytes_total, clock.monotonic_ms())
        self._begin = self._loop.call_later(TOLD_S, self._tell, begun)

    def __enter__(self) -> "_Reporter":
        return self

    def __exit__(self, *_: object) -> None:
        self._begin.cancel()

    def bytes(self, done: int, total: int) -> None:
        rate = self._pace.note(done, total, clock.monotonic_ms())
        if rate is None:
            return
        news = replace(self._base, bytes_done=done, bytes_total=total, bytes_s=rate)
        self._loop.call_soon_threadsafe(self._tell, news)

    def frames(self, done: int, total: int, fps: float, speed: float) -> None:
        self._total = total
        self._tell(
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
        self._tell(replace(self._base, phase="verifying", frames=done, frames_total=self._total))

    def _tell(self, news: Progress) -> None:
        self._begin.cancel()
        self._board.report(news)


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
