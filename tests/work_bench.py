"""What a worker or an owner stands on in tests: a real ledger in memory, and ports that tests steer.

The stand-in of driver and proposer applies every command to the real state machine at once, so the
ledger alone decides what is taken and what is refused.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ledger import commands as c
from ledger.jobs import Attempt, Job
from ledger.queries import Reader
from mesh.errors import ConflictError, NoCoordinatorError, TransferError, UnreachableError
from mesh.ids import NodeId, RaftId
from node.consensus.news import News
from node.consensus.replica import Replica
from node.requests import error_of
from node.signals import Signal
from node.work.attempts import Conversion, ReportBytes, ReportFrames, Turn
from node.work.leases import WORK, WorkerHeartbeatAck
from node.work.order import Order
from node.work.owner import Plan
from node.work.progress import ProgressBoard
from tests.ledger_helper import Ledger, task_spec
from tests.meshwork import eventually

T = TypeVar("T")

TURNS = 10
"""Turns of the loop between what a read saw and its answer, as with a thread."""

CONVERSION = Conversion(
    command_line='["ffmpeg"]',
    stderr_tail="",
    encoder="libsvtav1",
    ffmpeg="7.1",
    encode_ms=1,
    verify_ms=1,
    frames=24,
    result_json='{"frames": 24}',
)


class InlineReplica(Replica):
    """Reads at once: the ledger in memory has one connection for all."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    async def read(self, query: Callable[[Reader], T]) -> T:
        found = query(self.reader)
        for _ in range(TURNS):
            await asyncio.sleep(0)
        return found


class Changed(Signal):
    """Everybody is told of every change."""

    def __init__(self, news: News) -> None:
        super().__init__()
        self._news = news

    def set(self, changes: int = 1) -> None:
        super().set(changes)
        self._news.tell(None, changes)


class Mesh:
    """Driver, proposer and requests in one: what is proposed is applied at once."""

    def __init__(self, own: str) -> None:
        self.ledger = Ledger()
        self.replica = InlineReplica(self.ledger.reader)
        self.leader: RaftId | None = RaftId(f"{own}.00000001")
        self.is_leader = True
        self.leader_changed = Signal()
        self.news = News(NodeId(own))
        self.news.all = Signal()  # a paced one needs a running loop
        self.ledger_changed = Changed(self.news)
        self.applied_index = 0
        self.down = False
        self.silent = False
        self.asked: list[c.Command] = []
        """Everything that was proposed, in the order in which it would enter the log."""
        self.held: type[Any] | None = None
        """Commands of this kind do not get any further, and what is behind them neither."""
        self.goes_on = asyncio.Event()
        self._log = asyncio.Lock()
        self.proposed: list[tuple[c.Command, c.Outcome]] = []
        self.beats: list[str] = []
        self.back: tuple[str, ...] = ()
        self.told: list[str] = []
        self.attempts: tuple[str, ...] = ()
        self.board = ProgressBoard(NodeId(own), lambda _: None, lambda: 0)

    async def propose(self, command: c.Command, *, cause: str, timeout_s: float = 15) -> c.Outcome:
        self.asked.append(command)
        await asyncio.sleep(0)
        if self.down:
            raise NoCoordinatorError("nobody decides", "wait")
        async with self._log:
            if self.held is type(command):
                await self.goes_on.wait()
            outcome = self.do(command)
        self.proposed.append((command, outcome))
        return outcome

    async def commit(self, command: c.Command, *, cause: str, timeout_s: float = 15) -> int:
        outcome = await self.propose(command, cause=cause, timeout_s=timeout_s)
        if not outcome.ok:
            raise error_of(outcome.code, outcome.what, outcome.todo)
        return outcome.index

    async def call(
        self, node: NodeId, method: str, body: bytes, *, timeout_s: float, cause: str = ""
    ) -> bytes:
        await asyncio.sleep(0)
        if self.silent:
            raise UnreachableError("silence")
        self.beats.append(method)
        beat = WORK.decode(body)
        self.attempts = beat.attempts
        self.told.append("open" if beat.accepting else "closed")
        back, self.back = self.back, ()
        return WORK.encode(WorkerHeartbeatAck(term=1, back=back))

    def do(self, command: c.Command) -> c.Outcome:
        if isinstance(command, c.ReleaseLeases):
            self.told.append("released")
        outcome = self.ledger.do(command)
        self.applied_index = outcome.index
        self.ledger_changed.set()
        return outcome

    def taken(self, kind: type[Any]) -> list[Any]:
        """Commands of this kind that the ledger took."""
        return [
            command for command, outcome in self.proposed if outcome.ok and type(command) is kind
        ]

    def attempt(self, attempt: str) -> Attempt:
        found = self.ledger.reader.attempt(attempt)
        assert found is not None
        return found


class Bench:
    """The worker's ports on real folders: what a film becomes is for the test to say."""

    def __init__(self, folder: Path) -> None:
        self.kept = folder / "kept"
        self.kept.mkdir()
        self.converting: list[str] = []
        self.fetched: list[str] = []
        self.cancelled: list[str] = []
        self.sweeps = 0
        self.fault: Exception | None = None
        self.sweep_fault: Exception | None = None
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.judged = asyncio.Event()
        self.judged.set()
        self.one_by_one = False
        """Whether `goes_on` is for one that encodes, and the next waits for it anew."""
        self.again: dict[str, bool] = {}
        """Attempts whose first result does not do."""

    async def fetch(self, order: Order, folder: Path, on_bytes: ReportBytes) -> tuple[Path, int]:
        self.fetched.append(order.attempt.id)
        source = folder / "source.mkv"
        source.write_bytes(b"film")
        on_bytes(4, 4)
        return source, 4

    async def convert(
        self,
        order: Order,
        source: Path,
        result: Path,
        *,
        turn: Turn,
        on_frames: ReportFrames,
        on_verifying: Callable[[int], None],
    ) -> Conversion:
        self.converting.append(order.attempt.id)
        try:
            await self.goes_on.wait()
        except asyncio.CancelledError:
            self.cancelled.append(order.attempt.id)
            raise
        if self.one_by_one:
            self.goes_on.clear()
        if self.fault is not None:
            raise self.fault
        on_frames(24, 24, 1.0, 1.0)
        turn.lend()
        on_verifying(24)
        await self.judged.wait()
        if self.again.pop(order.attempt.id, False):
            await turn.encode_again()
            self.converting.append(order.attempt.id)
            await self.goes_on.wait()
        _convert(source, result)
        return CONVERSION

    async def keep(self, order: Order, result: Path) -> tuple[int, str]:
        return _moved(result, self.kept / order.attempt.id), "e" * 64

    async def sweep(self, replica: Replica) -> None:
        self.sweeps += 1
        if self.sweep_fault is not None:
            raise self.sweep_fault


def _convert(source: Path, result: Path) -> None:
    result.write_bytes(source.read_bytes() + b" converted")


def _moved(result: Path, kept: Path) -> int:
    result.replace(kept)
    return kept.stat().st_size


class Shelf:
    """The owner's ports in memory: staging and destination as two small tables."""

    def __init__(self) -> None:
        self.staging: dict[str, str] = {}
        self.outputs: dict[str, str] = {}
        self.taken: list[str] = []
        self.plan_fault: Exception | None = None
        self.planned = Signal()
        self.take_fault: Exception | None = None
        self.publish_fault: Exception | None = None
        self.discard_fault: Exception | None = None
        self.plans: list[str] = []
        self.given_up: list[str] = []
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def plan(self, job: Job) -> Plan:
        self.plans.append(job.id)
        self.planned.set()
        try:
            await self.goes_on.wait()
        except asyncio.CancelledError:
            self.given_up.append(job.id)
            raise
        if self.plan_fault is not None:
            raise self.plan_fault
        return Plan(
            source_digest="d" * 64,
            source_bytes=job.source_bytes,
            probe_json="{}",
            plan_json="{}",
            needs=task_spec(job.id).needs,
            cost=9,
        )

    async def take(self, job: Job, attempt: Attempt, on_bytes: Callable[[int, int], None]) -> None:
        self.taken.append(attempt.id)
        if self.take_fault is not None:
            raise self.take_fault
        on_bytes(1, 1)
        self.staging[job.id] = attempt.result_digest

    async def publish(self, job: Job, attempt: Attempt) -> None:
        if self.publish_fault is not None:
            raise self.publish_fault
        there = self.outputs.get(job.output)
        if job.id not in self.staging:
            if there == attempt.result_digest:
                return
            raise TransferError("the staged result is gone", "")
        if there is not None and there != attempt.result_digest:
            raise ConflictError(f"{job.output} exists", "")
        self.outputs[job.output] = self.staging.pop(job.id)

    async def discard(self, job: Job) -> None:
        if self.discard_fault is not None:
            raise self.discard_fault
        self.staging.pop(job.id, None)


__all__ = ["CONVERSION", "Bench", "InlineReplica", "Mesh", "Shelf", "eventually"]
