"""First start: whether a node without a mesh finds one, waits for another to form it, or forms it.

Pure: `tick`, `answered`, `failed`, `asked`, `promise_asked`, `promised` take the time and give
effects.  Two nodes that hear each other never both form: whoever forms has a promise, not older than
it may be, from every node without a mesh that it hears, and a promise binds its giver over a crash.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mesh.ids import NodeId, is_node_id
from mesh.joining import (
    PLACES_MAX,
    PROMISES_MAX,
    Answer,
    Ask,
    Facts,
    Place,
    Promise,
    PromiseRequest,
    usable_places,
)

PLACES_KNOWN_MAX: Final = 256
"""Places to ask; the one that failed most often makes room."""
ASKING_MAX: Final = 16
"""Questions in flight: each costs a handshake (1.6 ms of CPU on both sides together)."""
HEARD_MAX: Final = PROMISES_MAX
"""Nodes without a mesh that count at the same time."""
RETRY_MAX_MS: Final = 8_000
"""Longest wait between tries at a place that does not answer; tried for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FormingTimes:
    """Durations in milliseconds; the relations that safety needs are asserted."""

    look_ms: int = 3_000
    """At least so long a node looks for a mesh: mDNS shows all neighbours in 0.1 to 1.3 s."""
    steady_ms: int = 2_000
    """No new node without a mesh for so long, before one forms."""
    answer_ms: int = 3_000
    """A place that does not answer within this does not count."""
    wait_max_ms: int = 10_000
    """Silent places and newcomers delay forming until then at most, from the start."""
    ask_ms: int = 500
    """Between two questions to the same place, and two requests to the same node."""
    heard_ms: int = 5_000
    """A node that did not answer for so long does not count any more."""
    promise_ms: int = 30_000
    """How long a promise binds its giver."""
    promise_used_ms: int = 20_000
    """How long its taker relies on it, from when it asked: clocks drift and processes stall."""

    def __post_init__(self) -> None:
        if self.promise_used_ms * 3 > self.promise_ms * 2:
            raise ValueError("a promise must bind half as long again as it is relied on")
        if not self.ask_ms * 4 <= self.heard_ms < self.promise_used_ms:
            raise ValueError("ask_ms, heard_ms and promise_used_ms do not fit each other")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromiseRecord:
    """What is kept on disk: this node promised `to`, who answers at `place`, not to form a mesh.

    After a restart it binds anew for a whole `promise_ms`, for no clock outlives a process, and the
    node asks there first.
    """

    to: NodeId
    place: Place | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AskPlace:
    """Ask who is there; then call `answered` or `failed`."""

    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestPromise:
    """Ask this node not to form; call `promised` with the answer, if one comes."""

    node: NodeId
    place: Place
    promised_by: tuple[str, ...]
    sent_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PersistPromise:
    """Make this promise durable, before the answer that follows it is sent."""

    record: PromiseRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerPromise:
    """Answer the promise request, after what stands before it."""

    promise: Promise


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """Form the mesh, now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinMesh:
    """A member answered: this node never forms; it asks to be admitted."""

    node: NodeId
    place: Place
    answer: Answer


FormingEffect = AskPlace | RequestPromise | PersistPromise | AnswerPromise | Form | JoinMesh


@dataclass(slots=True)
class _Asked:
    first_ms: int | None = None
    """When the present count of `answer_ms` began; None: not asked yet."""
    next_ms: int = 0
    failures: int = 0
    in_flight: bool = False
    answered: bool = False
    kept: bool = False
    urgent: bool = False


class Search:
    """Which places to ask, and when: bounded, with backoff, for ever."""

    def __init__(self, *, ask_ms: int, answer_ms: int) -> None:
        self._ask_ms = ask_ms
        self._answer_ms = answer_ms
        self._places: dict[Place, _Asked] = {}

    def add(self, place: Place, now_ms: int, *, keep: bool = False) -> None:
        """A place to ask; `keep`: named by a person, never dropped for another."""
        known = self._places.get(place)
        if known is None:
            self._places[place] = _Asked(next_ms=now_ms, kept=keep)
            self._make_room()
        else:
            known.kept |= keep

    def urge(self, place: Place | None, now_ms: int) -> None:
        """Whoever was promised to form the mesh is there: asked without backoff, the only such place."""
        for asked in self._places.values():
            asked.urgent = False
        if place is not None:
            self.add(place, now_ms)
            if (known := self._places.get(place)) is not None:
                known.urgent = True

    def stirred(self, place: Place, now_ms: int) -> None:
        """Somebody there speaks: ask at once, and wait for its answer as for that of a new place."""
        self.add(place, now_ms)
        if (known := self._places.get(place)) is not None and not known.answered:
            known.first_ms = None
            known.failures = 0
            known.next_ms = now_ms

    def due(self, now_ms: int) -> tuple[Place, ...]:
        """The places to ask now; each is in flight until `done`."""
        free = ASKING_MAX - sum(asked.in_flight for asked in self._places.values())
        ready = [p for p, a in self._places.items() if not a.in_flight and a.next_ms <= now_ms]
        ready.sort(key=lambda p: (not self._places[p].kept, self._places[p].next_ms))
        chosen = tuple(ready[: max(0, free)])
        for place in chosen:
            asked = self._places[place]
            asked.in_flight = True
            if asked.first_ms is None:
                asked.first_ms = now_ms
        return chosen

    def done(self, place: Place, now_ms: int, *, answered: bool) -> None:
        """The question to this place is over."""
        asked = self._places.get(place)
        if asked is None:
            return
        asked.in_flight = False
        asked.answered = answered
        asked.failures = 0 if answered else asked.failures + 1
        # While its answer could still count, a place is asked often.
        young = asked.first_ms is not None and now_ms - asked.first_ms < self._answer_ms
        factor = 0 if young or asked.urgent else min(asked.failures, 10)
        asked.next_ms = now_ms + min(self._ask_ms << factor, RETRY_MAX_MS)

    def forget(self, place: Place) -> None:
        """Nobody else is there: it is this node itself."""
        self._places.pop(place, None)

    def unsettled(self, now_ms: int) -> bool:
        """Whether a place may still answer in time."""
        return any(
            not asked.answered
            and (asked.first_ms is None or now_ms - asked.first_ms < self._answer_ms)
            for asked in self._places.values()
        )

    def slept(self, gap_ms: int) -> None:
        """This process stalled: the time does not count against those who were to answer."""
        for asked in self._places.values():
            if asked.first_ms is not None and not asked.answered:
                asked.first_ms += gap_ms

    def places(self) -> tuple[Place, ...]:
        """All places that are asked."""
        return tuple(self._places)

    def _make_room(self) -> None:
        if len(self._places) <= PLACES_KNOWN_MAX:
            return
        loose = [p for p, a in self._places.items() if not (a.kept or a.urgent or a.in_flight)]
        if loose:
            del self._places[max(loose, key=lambda p: self._places[p].failures)]


@dataclass(frozen=True, slots=True)
class _Heard:
    place: Place
    at_ms: int


class Forming:
    """The decision of one node without a mesh; thrown away once it is made."""

    def __init__(
        self,
        own: NodeId,
        *,
        now_ms: int,
        times: FormingTimes | None = None,
        promise: PromiseRecord | None = None,
    ) -> None:
        self._own = own
        self._times = times or FormingTimes()
        self._start_ms = now_ms
        self._changed_ms = now_ms
        self._lost_ms: int | None = None
        self._ticked_ms = now_ms
        self.search = Search(ask_ms=self._times.ask_ms, answer_ms=self._times.answer_ms)
        self._heard: dict[NodeId, _Heard] = {}
        self._given: tuple[NodeId, int] | None = None
        """To whom this node promised not to form, and until when."""
        if promise is not None and promise.to != own:
            self._given = (promise.to, now_ms + self._times.promise_ms)
            self.search.urge(promise.place, now_ms)
        self._taken: dict[NodeId, int] = {}
        """Who promised this node, and until when that may be relied on."""
        self._requested_ms: dict[NodeId, int] = {}
        self.decided = False

    # --- what comes in --------------------------------------------------------------------------------

    def answered(
        self, place: Place, node: NodeId, answer: Answer, now_ms: int
    ) -> tuple[FormingEffect, ...]:
        """A node that proved its key answered there."""
        self.search.done(place, now_ms, answered=True)
        if node == self._own:
            self.search.forget(place)
            return ()
        for known in usable_places(answer.known):
            self.search.add(known, now_ms)
        if answer.state == "forming":
            self._hear(node, place, now_ms)
        else:
            self._lose([node], now_ms)
        if answer.state != "member" or self.decided:
            return ()
        self.decided = True
        return (JoinMesh(node=node, place=place, answer=answer),)

    def failed(self, place: Place, now_ms: int) -> None:
        """Nobody answered there, or nobody that proved a key."""
        self.search.done(place, now_ms, answered=False)

    def asked(self, node: NodeId, ask: Ask, address: str, now_ms: int) -> None:
        """A node asked this one: it is there, so its own answer is worth waiting for.

        It does not count by this alone: only who can be asked counts.
        """
        place = _place_of(ask.facts, address)
        if node != self._own and node not in self._heard and place is not None:
            self.search.stirred(place, now_ms)

    def promise_asked(
        self, node: NodeId, request: PromiseRequest, address: str, now_ms: int
    ) -> tuple[FormingEffect, ...]:
        """Another node wants to form: promise it not to, or say why not."""
        refused = AnswerPromise(promise=Promise(granted=False, to="", left_ms=0))
        if self.decided or node == self._own:
            return (refused,)
        self._wake(now_ms)
        self._drop_silent(now_ms)
        place = _place_of(request.facts, address)
        if place is not None and node not in self._heard:
            self.search.stirred(place, now_ms)
        lower = min([self._own, *self._heard])
        if lower < node:
            return (AnswerPromise(promise=Promise(granted=False, to=lower, left_ms=0)),)
        given = self._promise(now_ms)
        if given is not None and given[0] != node and given[0] not in request.promised_by:
            left = given[1] - now_ms
            return (AnswerPromise(promise=Promise(granted=False, to=given[0], left_ms=left)),)
        self._given = (node, now_ms + self._times.promise_ms)
        self.search.urge(place, now_ms)
        # A node that promised has no use for the promises that it was given.
        self._taken.clear()
        return (
            PersistPromise(record=PromiseRecord(to=node, place=place)),
            AnswerPromise(promise=Promise(granted=True, to=node, left_ms=self._times.promise_ms)),
        )

    def promised(self, node: NodeId, promise: Promise, sent_ms: int, now_ms: int) -> None:
        """The answer to a promise request that was sent at `sent_ms`."""
        if not promise.granted or self._promise(now_ms) is not None:
            return
        margin = self._times.promise_ms - self._times.promise_used_ms
        used_ms = min(promise.left_ms - margin, self._times.promise_used_ms)
        self._taken[node] = sent_ms + used_ms

    # --- what follows ---------------------------------------------------------------------------------

    def tick(self, now_ms: int) -> tuple[FormingEffect, ...]:
        """To be called several times a second."""
        self._wake(now_ms)
        self._drop_silent(now_ms)
        if self.decided:
            return ()
        asks = tuple(AskPlace(place=place) for place in self.search.due(now_ms))
        return (*asks, *self._decide(now_ms))

    def _decide(self, now_ms: int) -> Iterable[FormingEffect]:
        if self._still_looking(now_ms) or self._promise(now_ms) is not None:
            return ()
        if any(node < self._own for node in self._heard):
            return ()
        promised = sorted(n for n, until in self._taken.items() if now_ms < until)
        missing = [node for node in sorted(self._heard) if node not in promised]
        if not missing:
            self.decided = True
            return (Form(),)
        return tuple(
            self._request(node, promised, now_ms) for node in missing if self._may(node, now_ms)
        )

    def _may(self, node: NodeId, now_ms: int) -> bool:
        return now_ms - self._requested_ms.get(node, -self._times.ask_ms) >= self._times.ask_ms

    def _request(self, node: NodeId, promised: list[NodeId], now_ms: int) -> RequestPromise:
        self._requested_ms[node] = now_ms
        return RequestPromise(
            node=node,
            place=self._heard[node].place,
            promised_by=tuple(promised[:PROMISES_MAX]),
            sent_ms=now_ms,
        )

    def _still_looking(self, now_ms: int) -> bool:
        since_ms = now_ms - self._start_ms
        if since_ms < self._times.look_ms:
            return True
        if self._lost_ms is not None and now_ms - self._lost_ms < self._times.steady_ms:
            return True
        if since_ms >= self._times.wait_max_ms:
            return False
        unsteady = now_ms - self._changed_ms < self._times.steady_ms
        return (unsteady and bool(self._heard)) or self.search.unsettled(now_ms)

    # --- what is known --------------------------------------------------------------------------------

    def known(self) -> tuple[Place, ...]:
        """Where others without a mesh were heard: told in answers."""
        return tuple(self._heard[node].place for node in sorted(self._heard))[:PLACES_MAX]

    def waiting_for(self, now_ms: int) -> str:
        """Why nothing is decided yet, for a person."""
        given = self._promise(now_ms)
        if self._still_looking(now_ms):
            return "looking for a mesh"
        if given is not None:
            return f"node {given[0]} was promised to form the mesh"
        lower = min([self._own, *self._heard])
        if lower != self._own:
            return f"node {lower} is to form the mesh"
        missing = [n for n in sorted(self._heard) if self._taken.get(n, now_ms) <= now_ms]
        return f"node {missing[0]} has not agreed yet" if missing else "about to form a mesh"

    def _promise(self, now_ms: int) -> tuple[NodeId, int] | None:
        if self._given is not None and now_ms >= self._given[1]:
            self._given = None
        return self._given

    def _hear(self, node: NodeId, place: Place, now_ms: int) -> None:
        if not is_node_id(node) or (node not in self._heard and len(self._heard) >= HEARD_MAX):
            return
        if node not in self._heard:
            self._changed_ms = now_ms
        self._heard[node] = _Heard(place, now_ms)

    def _wake(self, now_ms: int) -> None:
        """A stall of this process is not the others' silence: they are heard out first."""
        gap_ms, self._ticked_ms = now_ms - self._ticked_ms, now_ms
        if gap_ms > self._times.ask_ms:
            self._start_ms += gap_ms
            self.search.slept(gap_ms)
            for node, heard in self._heard.items():
                self._heard[node] = _Heard(heard.place, min(now_ms, heard.at_ms + gap_ms))

    def _drop_silent(self, now_ms: int) -> None:
        limit_ms = self._times.heard_ms
        silent = [n for n, h in self._heard.items() if now_ms - h.at_ms > limit_ms]
        if silent:
            # Who was there a moment ago may be back in the next: not bounded by wait_max_ms, because
            # only nodes that have proven their key can cause it.
            self._lost_ms = now_ms
        self._lose(silent, now_ms)

    def _lose(self, nodes: Iterable[NodeId], now_ms: int) -> None:
        for node in nodes:
            if self._heard.pop(node, None) is not None:
                self._changed_ms = now_ms
                self._taken.pop(node, None)
                self._requested_ms.pop(node, None)


def _place_of(facts: Facts, address: str) -> Place | None:
    """Where somebody answers that spoke from this address."""
    hosts = tuple(dict.fromkeys((address, *facts.hosts)))
    return next(iter(usable_places((Place(hosts=hosts, join_port=facts.join_port),))), None)
