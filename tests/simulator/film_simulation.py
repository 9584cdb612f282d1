"""One film in pieces on machines whose speeds differ and change: how long until its end, and never twice.

The real ledger, scheduler and paces of progress, without a network: machines are a speed and slots,
and time goes on in steps of half a second, in each of which every machine works, the owner takes
what is finished, and the coordinator looks.  Machines may vanish with all they have and come back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

from ledger import commands as c
from ledger.estimates import with_estimates
from ledger.jobs import Attempt
from ledger.scheduler import decide
from ledger.scheduler_view import SchedulerView
from node.work.paces import Paces
from node.work.progress import Progress
from tests.ledger_helper import REPORT, Ledger, node_report

STEP_MS: Final = 500
SPEEDS_MS: Final = 15_000
SUSPECT_MS: Final = 6_000
EXPIRY_MS: Final = 20_000
FRAMES: Final = 250
"""Of each chunk, ten seconds of film."""
COST: Final = 300_000
"""Of each chunk: five minutes at the lowest speed, a quarter of one at the highest."""
SPEED: Final = 1_000
JOB: Final = "j"
CHECK_STEPS: Final = 40
STEPS_MAX: Final = 40_000


@dataclass(slots=True)
class Worker:
    """A machine; `factors` are times from which on it has this part of its speed."""

    name: str
    speed: int
    factors: Mapping[int, float] = field(default_factory=dict[int, float])
    away_since_ms: int | None = None
    back_ms: int = 0
    done: dict[str, float] = field(default_factory=dict[str, float])
    begun_ms: dict[str, int] = field(default_factory=dict[str, int])

    def speed_at(self, now_ms: int) -> float:
        past = [at_ms for at_ms in self.factors if at_ms <= now_ms]
        return self.speed * (self.factors[max(past)] if past else 1.0)


@dataclass(frozen=True, slots=True)
class End:
    """`ideal_ms` is when all work is done were it spread evenly; `work` how often a chunk was done, on the mean.

    `given_up`: a chunk failed as often as the ledger allows.
    """

    took_ms: int
    ideal_ms: int
    twice: int
    work: float
    given_up: bool


class FilmSimulation:
    """One run, until the film is done."""

    def __init__(
        self,
        workers: list[Worker],
        chunks: int,
        *,
        seed: int = 0,
        faults: bool = False,
        speculates: bool = True,
    ) -> None:
        self.workers = {worker.name: worker for worker in workers}
        self.chunks = chunks
        self.random = Random(seed)
        self.faults = faults
        self.speculates = speculates
        self.now_ms = 0
        self.paces = Paces()
        self.seen_ms: dict[str, int] = {}
        self.began_ms: dict[str, int] = {}
        self.speeds: tuple[int, Mapping[str, Mapping[str, int]]] = (-SPEEDS_MS, {})
        self.numbers = 0
        self.twice = 0
        self.spent = 0.0
        names = [worker.name for worker in workers]
        self.ledger = Ledger().formed(*names)
        for name in names:
            self.do(node_report(name, slots=1))
        self.do(node_report("anna", slots=1))
        self.ledger.submitted(JOB, split=True)
        parts = [
            c.PieceSpec(id=f"{JOB}-{n}", kind="chunk", needs=("libx264@7.1",), cost=COST)
            for n in range(chunks)
        ]
        self.do(
            c.PlanPieces(
                job=JOB,
                source_digest="d" * 64,
                source_bytes=1,
                probe_json="{}",
                plan_json="{}",
                tasks=(*parts, c.PieceSpec(id=f"{JOB}-e", kind="assemble", needs=(), cost=1)),
            )
        )

    def do(self, command: c.Command) -> None:
        """Applies a command, without looking at all rows each time."""
        self.ledger.put(command)

    def run(self) -> End:
        total, ideal_ms = self.chunks * COST, 0
        for step in range(STEPS_MAX):
            if self.ledger.job_state(JOB) in ("done", "failed"):
                break
            if total > 0:
                total -= int(sum(w.speed_at(self.now_ms) for w in self.workers.values()) / 2)
                ideal_ms = self.now_ms
            if self.faults:
                self._faults()
            for worker in self.workers.values():
                self._work(worker)
            self._own()
            self._coordinate()
            self.now_ms += STEP_MS
            if step % CHECK_STEPS == 0:
                self.ledger.check()
        self.ledger.check()
        attempts, tasks = self.ledger.reader.attempts(JOB), self.ledger.reader.tasks(JOB)
        kept = [a for a in attempts if a.state in ("kept", "accepted")]
        given_up = any(task.tries >= c.ATTEMPTS_MAX for task in tasks)
        assert self.ledger.job_state(JOB) == ("failed" if given_up else "done")
        assert len({a.task for a in kept}) == len(kept) == (0 if given_up else self.chunks + 1)
        work = self.spent / (self.chunks * COST)
        return End(self.now_ms, ideal_ms, self.twice, work, given_up)

    # --- machines -----------------------------------------------------------------------------------

    def _faults(self) -> None:
        for worker in self.workers.values():
            if worker.away_since_ms is None and self.random.random() < 0.002:
                worker.away_since_ms = self.now_ms
                worker.back_ms = self.now_ms + self.random.randrange(1_000, 60_000)
                worker.done.clear()
            elif worker.away_since_ms is not None and self.now_ms >= worker.back_ms:
                worker.away_since_ms = None

    def _work(self, worker: Worker) -> None:
        if worker.away_since_ms is not None:
            return
        leased = self.ledger.reader.active_attempts(node=worker.name)
        worker.done = {a.id: worker.done[a.id] for a in leased if a.id in worker.done}
        for attempt in leased:
            if not worker.done:  # one slot
                worker.done[attempt.id] = 0.0
                worker.begun_ms[attempt.id] = self.now_ms
        for attempt in [a for a in leased if a.id in worker.done]:
            gained = worker.speed_at(self.now_ms) * STEP_MS / 1_000
            self.spent += gained
            worker.done[attempt.id] += gained
            if worker.done[attempt.id] >= COST:
                del worker.done[attempt.id]
                self._finish(worker, attempt)

    def _finish(self, worker: Worker, attempt: Attempt) -> None:
        took_ms = self.now_ms + STEP_MS - worker.begun_ms[attempt.id]
        if self.faults and self.random.random() < 0.03:
            self.do(self.ledger.fail(attempt.id, node=worker.name))
            return
        report = replace(REPORT, encode_ms=took_ms)
        self.do(self.ledger.finish(attempt.id, report=report))

    def _own(self) -> None:
        """The owner takes what is finished; its own work costs nothing here."""
        for attempt, _ in self.ledger.reader.finished_parts("anna"):
            bad = self.faults and self.random.random() < 0.03
            self.do(self.ledger.refuse(JOB, attempt) if bad else self.ledger.accept(JOB, attempt))
        for attempt_row in self.ledger.reader.active_attempts(node="anna"):
            self.do(self.ledger.finish(attempt_row.id))
            self.do(self.ledger.accept(JOB, attempt_row.id))
            token = self.ledger.token(attempt_row.id)
            self.do(c.FinishJob(job=JOB, token=token, finished_at_ms=1))

    # --- the coordinator ----------------------------------------------------------------------------

    def _coordinate(self) -> None:
        reader = self.ledger.reader
        if self.now_ms - self.speeds[0] >= SPEEDS_MS:
            self.speeds = self.now_ms, reader.speeds()
        view = reader.schedulable()
        running = {run.attempt: run for run in view.running}
        self.seen_ms = {a: self.seen_ms.get(a, self.now_ms) for a in running}
        self.began_ms = {
            a: self.now_ms if run.waits else self.began_ms.get(a, self.now_ms)
            for a, run in running.items()
        }
        self._expire(view)
        self.paces.note(running, self._told(), self.now_ms)
        view = replace(
            view,
            nodes=tuple(
                replace(
                    node,
                    alive=self._silent_ms(node.node) < SUSPECT_MS,
                    # The owner has the film and puts it together.
                    closed="" if node.node != "anna" or self._is_whole else "has the film",
                    speeds=self.speeds[1].get(node.node, {}),
                )
                for node in view.nodes
            ),
            running=self.paces.told(view.running, self.now_ms),
            new_attempt_id=self._attempt_id,
        )
        decision = decide(with_estimates(view, self.began_ms, self.now_ms), self.now_ms)
        for command in decision.commands:
            if isinstance(command, c.SpeculateLeases):
                if not self.speculates:
                    continue
                self.twice += len(command.leases)
            self.do(command)
        for node, attempt in decision.back:
            if attempt not in self.workers[node].done:
                self.do(c.ReleaseLeases(node=node, attempts=(attempt,), what="an idle node"))

    @property
    def _is_whole(self) -> bool:
        return any(task.state == "ready" for task in self.ledger.reader.tasks(JOB)[-1:])

    def _silent_ms(self, name: str) -> int:
        worker = self.workers.get(name)
        if worker is None or worker.away_since_ms is None:
            return 0
        return self.now_ms - worker.away_since_ms

    def _expire(self, view: SchedulerView) -> None:
        lost = tuple(r.attempt for r in view.running if self._silent_ms(r.node) >= EXPIRY_MS)
        if lost:
            self.do(c.ExpireLeases(attempts=lost, what="silent"))

    def _told(self) -> list[Progress]:
        return [
            Progress(
                job=JOB,
                attempt=attempt,
                node=worker.name,
                phase="encoding",
                frames=int(FRAMES * done / COST),
                frames_total=FRAMES,
            )
            for worker in self.workers.values()
            if worker.away_since_ms is None
            for attempt, done in worker.done.items()
        ]

    def _attempt_id(self) -> str:
        self.numbers += 1
        return f"a{self.numbers:05}"


def machines(count: int, random: Random) -> list[Worker]:
    """Their speeds differ 20-fold."""
    speeds = sorted(int(SPEED * random.uniform(1, 20)) for _ in range(count))
    return [Worker(f"n{number:02}", speed) for number, speed in enumerate(speeds)]


def slowed(workers: list[Worker], chunks: int) -> list[Worker]:
    """The same, but the second fastest becomes ten times slower in the middle of the film."""
    middle_ms = 1_000 * chunks * COST // sum(worker.speed for worker in workers) // 2
    second = sorted(workers, key=lambda worker: worker.speed)[-2]
    return [
        Worker(w.name, w.speed, {middle_ms: 0.1}) if w is second else Worker(w.name, w.speed)
        for w in workers
    ]
