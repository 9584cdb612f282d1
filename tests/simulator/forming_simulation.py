"""Fresh nodes that start at about the same time, in virtual time, with every fault drawn from the seed.

The model of a call is TCP's: a lost packet costs a retransmission, not the message; a caller gives up
after a second while its question may still arrive.  Nodes crash and come back with what they made
durable, stall, and write slowly.  Of each two nodes at least one hears the other's advert.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from mesh.forming import (
    AnswerPromise,
    AskPlace,
    Form,
    Forming,
    FormingEffect,
    FormingTimes,
    JoinMesh,
    PersistPromise,
    PromiseRecord,
    RequestPromise,
)
from mesh.ids import NodeId
from mesh.joining import Answer, Ask, Facts, Place, Promise, PromiseRequest
from mesh.trust import identity_of

CALL_MS = 1_000
TICK_MS = 100
END_MS = 180_000


def identities(count: int) -> list[NodeId]:
    return sorted(identity_of(bytes([n + 1]) * 32).node_id for n in range(count))


@dataclass
class Faults:
    """Rates of one run."""

    loss: float
    delay_ms: int
    advert_ms: int
    advert_loss: float
    spread_ms: int
    crash: float
    stall: float
    slow_disk_ms: int
    stale_places: int

    @classmethod
    def draw(cls, random: Random) -> "Faults":
        return cls(
            loss=random.choice([0, 0, 0.02, 0.1, 0.2]),
            delay_ms=random.choice([2, 20, 100, 200]),
            advert_ms=random.choice([100, 400, 1_300]),
            advert_loss=random.choice([0, 0, 0.3, 1]),
            spread_ms=random.choice([0, 50, 1_000, 4_000]),
            crash=random.choice([0, 0, 0.3]),
            stall=random.choice([0, 0, 0.02]),
            slow_disk_ms=random.choice([1, 5, 300]),
            stale_places=random.choice([0, 0, 3]),
        )


@dataclass(eq=False)
class SimulatedNode:
    node: NodeId
    facts: Facts
    place: Place
    core: Forming | None = None
    promise: PromiseRecord | None = None
    formed_durably: bool = False
    formed_ms: int | None = None
    joined: NodeId | None = None
    life: int = 0
    awake_ms: int = 0
    crashes_left: int = 1

    @property
    def up(self) -> bool:
        return self.core is not None

    @property
    def member(self) -> bool:
        return self.formed_ms is not None


class Simulation:
    """One run; `run` ends when every node has decided and stayed so, or at `END_MS`."""

    def __init__(self, seed: int, times: FormingTimes | None = None) -> None:
        self.random = Random(seed)
        self.faults = Faults.draw(self.random)
        self.times = times or FormingTimes()
        self.now_ms = 0
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0
        self.formed: list[tuple[int, NodeId]] = []
        self.nodes: dict[NodeId, SimulatedNode] = {}
        for number, node in enumerate(identities(self.random.randint(2, 5))):
            host = f"10.0.0.{number + 1}"
            facts = Facts(
                raft_id=f"{node}.00000000",
                name=f"n{number}",
                role="full",
                hosts=(host,),
                control_port=7440,
                bulk_port=7441,
                join_port=7442,
            )
            place = Place(hosts=(host,), join_port=7442)
            self.nodes[node] = SimulatedNode(node=node, facts=facts, place=place)
        self._ways: list[tuple[SimulatedNode, SimulatedNode]] = []
        for node in self.nodes.values():
            self._at(self.random.randint(0, self.faults.spread_ms), self._starter(node))
        self._adverts()

    # --- time -----------------------------------------------------------------------------------------

    def _at(self, at_ms: int, what: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._queue, (at_ms, self._order, what))

    def _in(self, delay_ms: int, what: Callable[[], None]) -> None:
        self._at(self.now_ms + delay_ms, what)

    def run(self) -> "Simulation":
        while self._queue and self.now_ms < END_MS and not self.over():
            self.now_ms, _, what = heapq.heappop(self._queue)
            what()
        return self

    def over(self) -> bool:
        return all(n.formed_durably or n.joined is not None for n in self.nodes.values())

    # --- nodes ----------------------------------------------------------------------------------------

    def _starter(self, node: SimulatedNode) -> Callable[[], None]:
        def start() -> None:
            if node.up:
                return
            node.life += 1
            node.joined = None
            node.formed_ms = self.now_ms if node.formed_durably else None
            node.core = Forming(
                node.node, now_ms=self.now_ms, times=self.times, promise=node.promise
            )
            self._browse(node)
            for number in range(self.faults.stale_places):
                stale = Place(hosts=(f"10.9.9.{number}",), join_port=7442)
                node.core.search.add(stale, self.now_ms)
            self._tick(node, node.life)
            if node.crashes_left and self.random.random() < self.faults.crash:
                node.crashes_left -= 1
                self._in(self.random.randint(0, 8_000), self._crasher(node))

        return start

    def _crasher(self, node: SimulatedNode) -> Callable[[], None]:
        def crash() -> None:
            if node.formed_durably:
                return  # whoever looks for a mesh while its only member is off cannot hear it
            node.core = None
            if node.member:
                # Nobody may have joined what was never durable: the founder admits nobody before.
                self.formed = [entry for entry in self.formed if entry[1] != node.node]
            node.formed_ms = None
            self._in(self.random.randint(100, 3_000), self._starter(node))

        return crash

    def _adverts(self) -> None:
        """Which adverts travel: of each pair at least one way."""
        nodes = list(self.nodes.values())
        for number, one in enumerate(nodes):
            for other in nodes[number + 1 :]:
                ways = [(one, other), (other, one)]
                if self.random.random() < self.faults.advert_loss:
                    ways.pop(self.random.randrange(2))
                self._ways += ways

    def _browse(self, started: SimulatedNode) -> None:
        """A node that starts hears the others, and they hear it."""
        for hearer, heard in self._ways:
            if started in (hearer, heard):
                self._in(self.random.randint(1, self.faults.advert_ms), self._hearer(hearer, heard))

    def _hearer(self, hearer: SimulatedNode, heard: SimulatedNode) -> Callable[[], None]:
        def hear() -> None:
            if hearer.core is None or not heard.up:
                return
            if hearer.member:
                self._ask(hearer, heard.place)
            else:
                hearer.core.search.add(heard.place, self.now_ms)

        return hear

    def _tick(self, node: SimulatedNode, life: int) -> None:
        if node.core is None or node.life != life:
            return
        if self.now_ms >= node.awake_ms:
            if self.random.random() < self.faults.stall:
                node.awake_ms = self.now_ms + self.random.randint(100, 3_000)
            elif not node.member and node.joined is None:
                self._perform(node, node.core.tick(self.now_ms))
        self._in(TICK_MS, lambda: self._tick(node, life))

    def _perform(self, node: SimulatedNode, effects: tuple[FormingEffect, ...]) -> None:
        for effect in effects:
            match effect:
                case AskPlace():
                    self._ask(node, effect.place)
                case RequestPromise():
                    self._request(node, effect)
                case Form():
                    self._form(node)
                case JoinMesh():
                    node.joined = effect.node
                case PersistPromise() | AnswerPromise():
                    raise AssertionError(effect)

    def _form(self, node: SimulatedNode) -> None:
        life = node.life
        node.formed_ms = self.now_ms
        self.formed.append((self.now_ms, node.node))

        def durable() -> None:
            if node.life == life and node.up:
                node.formed_durably = True

        self._in(self.random.randint(0, self.faults.slow_disk_ms), durable)

    # --- calls ----------------------------------------------------------------------------------------

    def _travel_ms(self) -> int:
        """One way of a message over TCP."""
        total, wait = self.random.randint(1, self.faults.delay_ms), 200
        while self.random.random() < self.faults.loss:
            total, wait = total + wait, 2 * wait
        return total

    def _call(
        self,
        caller: SimulatedNode,
        place: Place,
        serve: Callable[[SimulatedNode, Callable[[object], None]], None],
        done: Callable[[SimulatedNode, object], None],
        failed: Callable[[], None],
    ) -> None:
        life, open_call = caller.life, [True]
        target = next((n for n in self.nodes.values() if n.place == place), None)

        def alive() -> bool:
            return open_call[0] and caller.up and caller.life == life

        def give_up() -> None:
            if alive():
                open_call[0] = False
                failed()

        def arrive() -> None:
            assert target is not None
            if not target.up:
                return
            if target.awake_ms > self.now_ms:
                self._at(target.awake_ms, arrive)
                return
            serve(target, answer)

        def answer(value: object) -> None:
            self._in(self._travel_ms(), lambda: finish(value))

        def finish(value: object) -> None:
            if alive():
                if caller.awake_ms > self.now_ms:
                    self._at(caller.awake_ms, lambda: finish(value))
                    return
                open_call[0] = False
                assert target is not None
                done(target, value)

        self._in(CALL_MS, give_up)
        if target is not None:
            self._in(self._travel_ms() + self._travel_ms(), arrive)

    def _ask(self, node: SimulatedNode, place: Place) -> None:
        ask = Ask(facts=node.facts, state=self._who(node).state)

        def serve(target: SimulatedNode, answer: Callable[[object], None]) -> None:
            assert target.core is not None
            if not target.member and target.joined is None:
                target.core.asked(node.node, ask, node.place.hosts[0], self.now_ms)
            answer(self._who(target))

        def done(target: SimulatedNode, value: object) -> None:
            assert node.core is not None
            assert isinstance(value, Answer)
            self._perform(node, node.core.answered(place, target.node, value, self.now_ms))

        def failed() -> None:
            assert node.core is not None
            node.core.failed(place, self.now_ms)

        self._call(node, place, serve, done, failed)

    def _who(self, node: SimulatedNode) -> Answer:
        assert node.core is not None
        state = "member" if node.member else "forming" if node.joined is None else "waiting"
        return Answer(
            facts=node.facts,
            state=state,  # type: ignore[arg-type]  # one of the three
            fingerprint=b"f" * 16 if node.member else b"",
            admission="ask",
            known=node.core.known(),
        )

    def _request(self, node: SimulatedNode, effect: RequestPromise) -> None:
        request = PromiseRequest(facts=node.facts, promised_by=effect.promised_by)

        def serve(target: SimulatedNode, answer: Callable[[object], None]) -> None:
            assert target.core is not None
            life = target.life
            if target.member:
                answer(Promise(granted=False, to="", left_ms=0))
                return
            steps = list(
                target.core.promise_asked(node.node, request, node.place.hosts[0], self.now_ms)
            )

            def go_on() -> None:
                if not target.up or target.life != life:
                    return
                step = steps.pop(0)
                if isinstance(step, PersistPromise):
                    record = step.record

                    def durable() -> None:
                        if target.up and target.life == life:
                            target.promise = record
                            go_on()

                    self._in(self.random.randint(0, self.faults.slow_disk_ms), durable)
                else:
                    assert isinstance(step, AnswerPromise)
                    answer(step.promise)

            go_on()

        def done(target: SimulatedNode, value: object) -> None:
            assert node.core is not None
            assert isinstance(value, Promise)
            node.core.promised(target.node, value, effect.sent_ms, self.now_ms)

        self._call(node, effect.place, serve, done, lambda: None)
