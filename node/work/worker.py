"""Turns leases into results: holds what the ledger leases to this node, and begins it as slots are free.

The worker holds no state that matters: what it runs is what this node's ledger says is leased to
it.  A lease that disappears from the ledger stops its run; a lease without a run starts one.  Those
beyond the node's slots wait: the next ones are fetched meanwhile, and all of them are given back
when the node takes no work any more, or an idle one would do them sooner.
"""

import asyncio
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import structlog

from ledger.commands import LEASES_PER_COMMAND_MAX, ReleaseLeases
from ledger.device_slots import CPU
from ledger.queries import Reader
from mesh import clock
from mesh.errors import DarkStreamError
from mesh.ids import NodeId, node_of
from node.consensus.driver import Driver
from node.consensus.news import Look, follow
from node.consensus.proposer import Proposer
from node.consensus.replica import Replica
from node.membership.foreign import is_plain_id
from node.requests import Requests
from node.work.attempts import BEGUN, Attempts, Converter, Results, Sources, Turn
from node.work.leases import WORK, Fence, LeaseTiming, WorkerHeartbeat, WorkerHeartbeatAck
from node.work.order import Order
from node.work.progress import ProgressBoard
from node.work.turns import Slots, in_line, next_turn, pool_of, slots_of

HEARTBEAT: Final = "worker.heartbeat"
RECONCILE_S: Final = 1.0
"""The ledger is looked at again at least this often, also when nothing was applied."""
TIDY_MS: Final = 500
"""Files that nobody needs are looked for at most so often: with the second above a cancelled job leaves none after two."""

_log = structlog.get_logger("worker")


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
        self._driver = driver
        self._proposer = proposer
        self._requests = requests
        self._replica = replica
        self._results = results
        self._folder = folder
        self._timing = timing
        self._fence = Fence(timing, clock.monotonic_ms())
        self._attempts = Attempts(
            own=own,
            name=name,
            driver=driver,
            proposer=proposer,
            board=board,
            converter=converter,
            sources=sources,
            results=results,
            folder=folder,
            fence=self._fence,
        )
        self._held: dict[str, Order] = {}
        """Leases of the last look that are not over, begun or not."""
        self._runs: dict[str, tuple[Turn, asyncio.Task[None]]] = {}
        self._slots: Slots | None = None
        """As the mesh knows them; None: it does not yet, and every lease begins at once."""
        self._begun: Counter[str] = Counter()
        self._interrupted: set[str] = set()
        self._tidied_ms = -TIDY_MS
        self._fit = fit
        self._owner_closed = closed
        self._draining = False
        self._group: asyncio.TaskGroup | None = None

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
        """Attempts that have begun and are not over."""
        return tuple(attempt for attempt, (turn, _) in self._runs.items() if turn.is_given)

    @property
    def waiting(self) -> tuple[str, ...]:
        """Leases that wait for a slot."""
        return tuple(order.attempt.id for order in self._in_wait())

    async def run(self) -> None:
        """Works until cancelled."""
        await asyncio.to_thread(self._find_interrupted)
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self._heartbeats(), name="worker heartbeat")
            group.create_task(follow(self._driver.news.leases, self._look), name="worker")

    def _find_interrupted(self) -> None:
        """What an earlier process had begun; what it had only fetched ahead is fetched once more."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.iterdir():
            if (path / BEGUN).exists():
                self._interrupted.add(path.name)
            else:
                shutil.rmtree(path, ignore_errors=True)

    # --- giving back ------------------------------------------------------------------------------

    async def drain(self, limit_s: float) -> None:
        """Takes nothing new, waits for what runs up to the limit, gives the rest back.

        What has not begun is given back at once: others can do it meanwhile.
        """
        self._draining = True
        if self.waiting:
            await self._beat()  # or it would be leased here again
            await self._give_back(self.waiting, "the node stops")
        runs = [run for _, run in self._runs.values()]
        if runs:
            _log.info("finishing what runs", attempts=len(runs), limit_s=limit_s)
            await asyncio.wait(runs, timeout=limit_s)
        for attempt in tuple(self._runs):
            self._stop(attempt)
        # By the ledger: what was granted meanwhile was never begun.
        orders, _ = await self._replica.read(self._leased)
        over = self._attempts.over
        await self._release(
            [o.attempt.id for o in orders if o.attempt.id not in over], "the node stops"
        )

    async def give_back(self, what: str) -> None:
        """Stops what runs and gives all leases back; the node itself goes on."""
        await self._give_back(tuple({**self._held, **self._runs}), what)

    async def _give_back(self, attempts: Sequence[str], what: str) -> None:
        for attempt in attempts:
            self._attempts.over.add(attempt)
            self._stop(attempt)
        self._begin()
        await self._release(attempts, what)

    async def _release(self, attempts: Sequence[str], what: str) -> None:
        for start in range(0, len(attempts), LEASES_PER_COMMAND_MAX):
            batch = tuple(attempts[start : start + LEASES_PER_COMMAND_MAX])
            release = ReleaseLeases(node=self._own, attempts=batch, what=what)
            try:
                await self._proposer.propose(release, cause="shutdown", timeout_s=2.0)
            except DarkStreamError as error:
                _log.info("leases could not be given back, they will expire", reason=error.what)
                return

    # --- heartbeats -------------------------------------------------------------------------------

    async def _heartbeats(self) -> None:
        while True:
            seen = self._driver.leader_changed.count
            await self._beat()
            # A new coordinator hears of this worker at once: it may be idle and work may wait.
            await self._driver.leader_changed.wait(seen, self._timing.heartbeat_ms / 1000)

    async def _beat(self) -> None:
        """Tells the coordinator what this worker has and whether it takes more."""
        leader = self._driver.leader
        if leader is None:
            return
        held = tuple({**self._held, **self._runs})
        beat = WorkerHeartbeat(attempts=held, accepting=self.accepting)
        sent_ms = clock.monotonic_ms()
        try:
            answer = await self._requests.call(
                node_of(leader),
                HEARTBEAT,
                WORK.encode(beat),
                timeout_s=self._timing.heartbeat_ms / 1000,
            )
            ack: WorkerHeartbeatAck = WORK.decode(answer)
        except DarkStreamError as error:
            _log.debug("heartbeat not answered", reason=error.what)
        else:
            self._fence.acknowledged(sent_ms)
            self._asked_back(ack.back)

    def _asked_back(self, attempts: Sequence[str]) -> None:
        """The coordinator wants these for an idle node: what has begun meanwhile stays."""
        waiting = set(self.waiting)
        if back := [attempt for attempt in attempts if attempt in waiting]:
            assert self._group is not None, "heartbeats run in it"
            giving = self._give_back(back, "a node that is idle does it sooner")
            self._group.create_task(giving, name="give back")

    # --- what is leased ---------------------------------------------------------------------------

    async def _look(self) -> Look:
        orders, self._slots = await self._replica.read(self._leased)
        wanted = {order.attempt.id for order in orders}
        over = self._attempts.over
        over &= wanted
        new = not wanted <= {*self._held, *self._runs, *over}
        # This read may be older than the end of a run.
        self._held = {o.attempt.id: o for o in orders if o.attempt.id not in over}
        for attempt, (turn, _) in tuple(self._runs.items()):
            if attempt not in wanted and not turn.is_over:
                _log.info("lease is gone, stopping", attempt=attempt)
                self._stop(attempt)
        self._begin()
        if self._hopeless() and not self._draining:
            # Granted before the coordinator heard that this node is closed: it hears so first, or it
            # would lease here again what is given back.
            await self._beat()
            why = self.closed or "has no slots any more"
            await self._give_back(self._hopeless(), f"the node {why}")
        await self._tidy(wanted)
        return Look(RECONCILE_S, found=new)

    def _leased(self, reader: Reader) -> tuple[Sequence[Order], Slots | None]:
        attempts = reader.active_attempts(node=self._own)
        # A job does not change while it is leased; a task's priority may.
        known = {order.attempt.id: order.job for order in tuple(self._held.values())}
        tasks = reader.tasks_named([attempt.task for attempt in attempts])
        orders: list[Order] = []
        for attempt in attempts:
            task = tasks.get(attempt.task)
            job = known.get(attempt.id) or reader.job(attempt.job)
            # The id names a folder; a lease with another kind of id expires.
            if task is not None and job is not None and is_plain_id(attempt.id):
                orders.append(Order(job=job, task=task, attempt=attempt))
        row = reader.node(self._own)
        return orders, None if row is None else slots_of(row)

    def _hopeless(self) -> list[str]:
        """What waits for a slot that this node will not have."""
        slots, closed = self._slots, not self.accepting
        return [
            order.attempt.id
            for order in self._in_wait()
            if closed or (slots is not None and not slots.get(self._pool(order, slots)))
        ]

    def _pool(self, order: Order, slots: Slots) -> str:
        run = self._runs.get(order.attempt.id)
        return pool_of(order.attempt.device if run is None else run[0].device, slots)

    def _in_wait(self) -> list[Order]:
        return [
            order
            for attempt, order in self._held.items()
            if attempt not in self._runs or self._runs[attempt][0].is_awaited
        ]

    def _begin(self) -> None:
        """Begins what has a slot, and fetches what is next; a node that is closed begins nothing."""
        if not self.accepting:
            return
        known = {"": len(self._held)} if self._slots is None else self._slots
        lines: dict[str, dict[str, Order]] = {}
        for order in self._in_wait():
            lines.setdefault(self._pool(order, known), {})[order.attempt.id] = order
        taken = self._taken(known)
        for device, waiting in lines.items():
            slots = known.get(device, 0)
            for _ in range(min(slots - taken[device], len(waiting))):
                order = waiting.pop(next_turn(waiting.values(), self._begun[device]).attempt.id)
                self._begun[device] += 1
                self._started(order).give()
            # As many as could begin at once are fetched ahead; on the film's own node only slices are to be cut.
            for order in in_line(waiting.values())[: max(0, slots)]:
                if order.job.owner != self._own or order.task.kind == "chunk":
                    self._started(order)

    def _taken(self, slots: Slots) -> Counter[str]:
        """How many slots of each device are in use."""
        turns = [turn for turn, _ in self._runs.values() if not turn.is_over]
        taken = Counter(pool_of(turn.device, slots) for turn in turns if turn.holds)
        judged = Counter(pool_of(turn.device, slots) for turn in turns if turn.is_judged)
        for device, count in judged.items():
            # Beside each slot one result may be judged; more would be films that nobody waits for.
            taken[device] += max(0, count - slots.get(device, 0))
        return taken

    async def to_processor(self, order: Order) -> bool:
        """Waits for a slot of the processor, for a film that its chip failed at; False: it has none."""
        slots = self._slots or {}
        run = self._runs.get(order.attempt.id)
        if run is None or not order.attempt.device or CPU not in slots:
            return True
        if not slots[CPU]:
            return False
        await run[0].move(CPU)
        return True

    def _started(self, order: Order) -> Turn:
        attempt = order.attempt.id
        if attempt in self._runs:
            return self._runs[attempt][0]
        assert self._group is not None, "it begins only while it runs"
        turn = Turn(self._begin, order.attempt.device)
        run = self._group.create_task(self._run(order, turn), name=f"attempt {attempt}")
        self._runs[attempt] = turn, run
        return turn

    async def _run(self, order: Order, turn: Turn) -> None:
        attempt = order.attempt.id
        interrupted = attempt in self._interrupted
        self._interrupted.discard(attempt)
        # Who cancels it takes it out, and begins what is next.
        await self._attempts.run(order, turn, interrupted=interrupted)
        self._runs.pop(attempt, None)
        # Should its end not have been taken, the next look brings it back.
        self._held.pop(attempt, None)
        turn.end()

    def _stop(self, attempt: str) -> None:
        self._held.pop(attempt, None)
        if attempt in self._runs:
            _, run = self._runs.pop(attempt)
            run.cancel()

    async def _tidy(self, wanted: set[str]) -> None:
        now_ms = clock.monotonic_ms()
        if now_ms - self._tidied_ms < TIDY_MS:
            return
        self._tidied_ms = now_ms
        try:
            if self._interrupted:
                await asyncio.to_thread(self._remove_leftovers, wanted | set(self._runs))
            await self._results.sweep(self._replica)
        except OSError as error:
            _log.warning("leftovers could not be removed", reason=str(error))

    def _remove_leftovers(self, wanted: set[str]) -> None:
        """Removes what runs of an earlier process left whose leases are gone."""
        for name in self._interrupted - wanted:
            shutil.rmtree(self._folder / name, ignore_errors=True)
        self._interrupted &= wanted
