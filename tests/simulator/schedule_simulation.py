"""A queue of films on machines of very different speed, decided by the real scheduler.

No network and no ledger: what is asked is how well the scheduler places work, so nodes are a speed
and slots, films a cost, and time jumps from one end of a task to the next, with a look of the
coordinator shortly before each.  Leases beyond slots wait at their node, in its order, and are given
back when they are asked for, some time later, unless they have begun.  Nodes may vanish with all
they have and come back; what they had is ready again.
"""

import heapq
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Final

from ledger.commands import GrantLeases
from ledger.estimates import with_estimates
from ledger.lines import AHEAD_A_SLOT_MAX, AHEAD_MS, with_waits
from ledger.scheduler import OLDEST_EVERY, decide
from ledger.scheduler_view import NodeView, RunningView, SchedulerView, TaskView, Turns

PLANNED_AHEAD: Final = 64
"""Ready tasks that the scheduler sees at once, as owners plan ahead; the others are `later`."""
SPEED: Final = 1_000
HEARTBEAT_MS: Final = 2_000
"""In which a worker hears that a lease is wanted back."""


@dataclass(slots=True)
class Machine:
    name: str
    speed: int
    slots: int
    away_until_ms: int = 0
    running: set[str] = field(default_factory=set[str])
    waiting: list[str] = field(default_factory=list[str])
    begun: int = 0
    done_cost: int = 0
    measured: bool = False


@dataclass(frozen=True, slots=True)
class Film:
    name: str
    cost: int
    priority: int
    tenant: str
    submitted_ms: int = 0


@dataclass(slots=True)
class Outcome:
    makespan_ms: int
    bound_ms: float
    ends: Counter[str]
    longest_wait_ms: dict[int, int]
    served: dict[str, int]

    @property
    def ratio(self) -> float:
        return self.makespan_ms / self.bound_ms


class ScheduleSimulation:
    """One run; ends when every film is done, or tenants' shares after `until_cost`."""

    def __init__(
        self,
        machines: list[Machine],
        films: list[Film],
        *,
        seed: int = 0,
        faults: bool = False,
        shares: dict[str, int] | None = None,
        until_cost: int | None = None,
    ) -> None:
        self.machines = {machine.name: machine for machine in machines}
        self.films = {film.name: film for film in films}
        self.shares = shares or {}
        self.until_cost = until_cost
        self.random = Random(seed)
        self.faults = faults
        self.now_ms = 0
        self.turns = Turns()
        self.events: list[tuple[int, int, str, str]] = []
        self.number = 0
        self.order = {film.name: number for number, film in enumerate(films)}
        self.unplanned: list[Film] = []
        self.coming = sorted(films, key=lambda film: film.submitted_ms)
        self.ready: dict[str, TaskView] = {}
        self.since_ms: dict[str, int] = {}
        self.node_of: dict[str, str] = {}
        self.tries: Counter[str] = Counter()
        self.asked: set[str] = set()
        self.given_back = 0
        self.ahead = 0
        self.ends: Counter[str] = Counter()
        self.waits: dict[int, int] = {}
        self.waited: set[str] = set()
        self.served: dict[str, int] = {}

    def run(self) -> Outcome:
        if self.faults:
            for name in self.machines:
                self._at(self.random.randrange(1, 60_000), "leave", name)
        for at_ms in sorted({film.submitted_ms for film in self.films.values()} - {0}):
            self._at(at_ms, "submit", "")
        while len(self.ends) < len(self.films) and not self._enough():
            self._plan_ahead()
            self._decide()
            self._next()
        total = sum(film.cost for film in self.films.values())
        speeds = [m.speed for m in self.machines.values()]
        whole = sum(m.speed * m.slots for m in self.machines.values())
        longest = max(film.cost for film in self.films.values()) / max(speeds)
        return Outcome(
            makespan_ms=self.now_ms,
            bound_ms=1_000 * max(total / whole, longest),
            ends=self.ends,
            longest_wait_ms=self.waits,
            served=self.served,
        )

    def _enough(self) -> bool:
        return self.until_cost is not None and sum(self.served.values()) >= self.until_cost

    def _at(self, in_ms: int, kind: str, name: str) -> None:
        self.number += 1
        heapq.heappush(self.events, (self.now_ms + in_ms, self.number, kind, name))

    def _plan_ahead(self) -> None:
        came = 0
        while came < len(self.coming) and self.coming[came].submitted_ms <= self.now_ms:
            came += 1
        if came:
            self.unplanned += self.coming[:came]
            del self.coming[:came]
            self.unplanned.sort(key=lambda film: (-film.priority, self.order[film.name]))
        # Each tenant's films lie with an owner of their own, which plans ahead by itself.
        ready = Counter(task.tenant for task in self.ready.values())
        left: list[Film] = []
        for position, film in enumerate(self.unplanned):
            if ready[film.tenant] < PLANNED_AHEAD:
                ready[film.tenant] += 1
                self._make_ready(film)
            else:
                left.append(film)
            if len(self.ready) >= PLANNED_AHEAD * len({f.tenant for f in self.films.values()}):
                left += self.unplanned[position + 1 :]
                break
        self.unplanned = left
        # An owner plans its oldest film as well, however low its priority.
        if left:
            oldest = min(left, key=lambda film: self.order[film.name])
            if not any(
                self.order[name] <= self.order[oldest.name]
                for name in self.ready
                if self.ready[name].priority == oldest.priority
            ):
                self._make_ready(oldest)
                left.remove(oldest)

    def _make_ready(self, film: Film) -> None:
        self.ready[film.name] = self._task(film)

    def _task(self, film: Film) -> TaskView:
        return TaskView(
            task=film.name,
            job=film.name,
            owner=f"owner {film.tenant}",
            needs=("x",),
            cost=film.cost,
            priority=film.priority,
            seq=self.order[film.name],
            attempts=self.tries[film.name],
            excluded=(),
            backoff_ms=0,
            tenant=film.tenant,
            profile="web",
        )

    def _decide(self) -> None:
        running = [
            RunningView(attempt=film, node=node, task=self._task(self.films[film]))
            for film, node in self.node_of.items()
        ]
        view = SchedulerView(
            tasks=tuple(self.ready.values()),
            nodes=tuple(self._node(machine) for machine in self.machines.values()),
            running=with_waits(running, {m.name: m.slots for m in self.machines.values()}),
            new_attempt_id=lambda: "a",
            turns=self.turns,
            shares=self.shares,
            later=len(self.unplanned),
            ahead=True,
        )
        decision = decide(with_estimates(view, self.since_ms, self.now_ms), self.now_ms)
        self.turns = decision.turns
        for command in decision.commands:
            assert isinstance(command, GrantLeases)
            for lease in command.leases:
                self._grant(lease.task, self.machines[lease.node])
        for _, name in decision.back:
            if name not in self.asked:
                self.asked.add(name)
                self._at(self.random.randrange(1, HEARTBEAT_MS), "asked", name)

    def _node(self, machine: Machine) -> NodeView:
        return NodeView(
            node=machine.name,
            name=machine.name,
            role="full",
            encoders=("x",),
            slots=machine.slots,
            busy=len(machine.running) + len(machine.waiting),
            cpus=8,
            alive=machine.away_until_ms <= self.now_ms,
            speeds={"web": machine.speed} if machine.measured else {},
        )

    def _grant(self, name: str, machine: Machine) -> None:
        assert name in self.ready, "leased twice"
        assert machine.away_until_ms <= self.now_ms, "leased to who is away"
        del self.ready[name]
        machine.waiting.append(name)
        self.node_of[name] = machine.name
        self.tries[name] += 1
        self._fill(machine)
        of_all = AHEAD_A_SLOT_MAX * machine.slots * len({f.priority for f in self.films.values()})
        assert len(machine.waiting) <= of_all, "a hoard"
        self.ahead += name in machine.waiting

    def _fill(self, machine: Machine) -> None:
        while machine.waiting and len(machine.running) < machine.slots:
            oldest = machine.begun % OLDEST_EVERY == OLDEST_EVERY - 1
            first = max(self.films[name].priority for name in machine.waiting)
            name = next(n for n in machine.waiting if oldest or self.films[n].priority == first)
            machine.begun += 1
            machine.waiting.remove(name)
            self._begin(name, machine)

    def _begin(self, name: str, machine: Machine) -> None:
        film = self.films[name]
        machine.running.add(name)
        self.since_ms[name] = self.now_ms
        if name not in self.waited:
            self.waited.add(name)
            waited = self.now_ms - film.submitted_ms
            self.waits[film.priority] = max(self.waits.get(film.priority, 0), waited)
        # How long it takes is not exactly what cost says.
        takes = 1_000 * film.cost / machine.speed * self.random.uniform(0.95, 1.05)
        self._at(max(1, int(takes)), f"end {self.tries[name]}", name)
        self._at(max(1, int(takes - AHEAD_MS / 2)), "look", name)

    def _next(self) -> None:
        at_ms, _, kind, name = heapq.heappop(self.events)
        self.now_ms = at_ms
        if kind == "leave":
            self._leave(self.machines[name])
        elif kind in ("submit", "look"):
            pass  # what came is planned before the next decision
        elif kind == "asked":
            self._give_back(name)
        elif kind == "back":
            self._at(self.random.randrange(60_000, 300_000), "leave", name)
        elif kind == f"end {self.tries[name]}" and name in self.node_of:
            machine = self.machines[self.node_of.pop(name)]
            film = self.films[name]
            machine.running.discard(name)
            self._fill(machine)
            machine.measured = True
            self.ends[name] += 1
            self.served[film.tenant] = self.served.get(film.tenant, 0) + film.cost

    def _give_back(self, name: str) -> None:
        self.asked.discard(name)
        machine = self.machines.get(self.node_of.get(name, ""))
        if machine is not None and name in machine.waiting:
            machine.waiting.remove(name)
            del self.node_of[name]
            self._make_ready(self.films[name])
            self.given_back += 1

    def _leave(self, machine: Machine) -> None:
        away_ms = self.random.randrange(1_000, 60_000)
        machine.away_until_ms = self.now_ms + away_ms
        for name in sorted((*machine.running, *machine.waiting)):
            del self.node_of[name]
            self._make_ready(self.films[name])
        machine.running.clear()
        machine.waiting.clear()
        self._at(away_ms, "back", machine.name)


def machines_of(count: int, random: Random) -> list[Machine]:
    """Nodes whose speeds differ 20-fold, with one to three slots."""
    made: list[Machine] = []
    for number in range(count):
        speed = SPEED if not number else int(SPEED * random.uniform(1, 20))
        speed = 20 * SPEED if number == 1 else speed
        made.append(Machine(name=f"n{number}", speed=speed, slots=random.choice([1, 1, 2, 3])))
    return made


def films_of(count: int, random: Random, tenants: tuple[str, ...] = ("",)) -> list[Film]:
    """Films from minutes to hours, in three priorities."""
    return [
        Film(
            name=f"f{number}",
            cost=int(SPEED * 10 * random.lognormvariate(0, 0.8)) + 1,
            priority=random.choice([-1, 0, 0, 0, 1]),
            tenant=random.choice(tenants),
        )
        for number in range(count)
    ]
