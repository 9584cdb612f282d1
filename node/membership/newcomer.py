"""A node without a mesh, on the event loop: asks around, forms or joins, for as long as it takes.

The decisions are mesh.forming's and mesh.join_guest's; here they get a network, a clock and random
bytes.
"""

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

import structlog

from mesh import clock
from mesh.discovery import NodeState
from mesh.errors import DarkStreamError, JoinRefusedError, UnreachableError
from mesh.forming import (
    AnswerPromise,
    AskPlace,
    Form,
    Forming,
    FormingEffect,
    JoinMesh,
    PersistPromise,
    RequestPromise,
    Search,
)
from mesh.ids import MeshId, NodeId, node_id_of
from mesh.join_guest import ApprovalGuest, Granted, Refused, Say, TokenGuest
from mesh.joining import (
    PLACES_MAX,
    QUESTION_NONCE_BYTES,
    Answer,
    ApprovalPoll,
    Ask,
    Facts,
    JoinAnswer,
    JoinGrant,
    JoinQuestion,
    Place,
    Promise,
    PromiseRequest,
    TokenProof,
    question_frame,
    read_answer,
    usable_places,
)
from mesh.transport import JoinCall
from mesh.trust import NONCE_BYTES, Identity
from node.membership.admission_ports import (
    AdmissionSettings,
    FaceState,
    Formed,
    Joined,
    Outcome,
    PromiseStore,
    Resolve,
)

TICK_S: Final = 0.1
CALL_S: Final = 1.0
"""One question to one place; a place that counts is asked several times within `answer_ms`."""
COMMIT_S: Final = 20.0
"""The answer to a token's proof waits for a commit, which may wait for an election."""
STAGGER_S: Final = 0.2
"""Head start of an address over the next one of the same place."""
RESOLVE_S: Final = 30.0
"""How often the names of seeds are looked up again; at first more often."""
POLLS_LOST_MAX: Final = 20
"""Polls without an answer before another host is tried; the host forgets a silent guest as well."""
SEARCH_ASK_MS: Final = 1_000
RETRY_MIN_MS: Final = 1_000
RETRY_MAX_MS: Final = 60_000
"""Backoff between conversations with the same host."""
UNKNOWN_MAX_MS: Final = 10_000
"""A token that no member knows for so long is refused: a replica is behind by less."""
HOSTS_KNOWN_MAX: Final = 64
SEED_JOIN_OFFSET: Final = 2

_log = structlog.get_logger("join")


@dataclass(slots=True)
class _Candidate:
    """A member that answered, and when to talk to it next."""

    place: Place
    answer: Answer
    key: bytes
    retry_ms: int
    failures: int = 0


class Newcomer:
    """Finds a mesh for this node, once; `state`, `code` and `known` are for the faces and for answers."""

    def __init__(
        self,
        *,
        identity: Identity,
        facts: Callable[[], Facts],
        call: JoinCall,
        resolve: Resolve,
        promises: PromiseStore,
        settings: AdmissionSettings,
        changed: Callable[[], None],
    ) -> None:
        self._own = identity
        self._facts = facts
        self._call = call
        self._resolve = resolve
        self._promises = promises
        self._settings = settings
        self._changed = changed
        self._forming: Forming | None = None
        self._search = Search(ask_ms=SEARCH_ASK_MS, answer_ms=settings.times.answer_ms)
        self._candidates: dict[NodeId, _Candidate] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._outcome: Form | JoinMesh | None = None
        self._unknown_since_ms: int | None = None
        self._talking = False
        self._said: set[str] = set()
        self.code: str | None = None
        """The six digits to compare, while a person has to approve."""

    @property
    def state(self) -> NodeState:
        """As adverts and answers tell it."""
        return "forming" if self._forming is not None else "waiting"

    @property
    def face_state(self) -> FaceState:
        """As faces show it."""
        if self._forming is not None:
            looking = self._forming.waiting_for(clock.monotonic_ms()).startswith("looking")
            return "looking" if looking else "forming"
        return "waiting" if self._talking else "looking"

    @property
    def waiting_for(self) -> str:
        """What it waits for, for a person."""
        if self._forming is not None:
            return self._forming.waiting_for(clock.monotonic_ms())
        if self.code is not None:
            return f"approval by a person, who compares the code {self.code}"
        if self._settings.token is not None:
            return "a member of the token's mesh"
        return "a member of a mesh"

    def known(self) -> tuple[Place, ...]:
        """Other places that this node heard from, for its answers."""
        members = [candidate.place for candidate in self._candidates.values()]
        heard = self._forming.known() if self._forming is not None else ()
        return tuple(dict.fromkeys([*members, *heard]))[:PLACES_MAX]

    # --- what comes in --------------------------------------------------------------------------------

    def hint(self, place: Place) -> None:
        """An advert or another node says that somebody answers there."""
        for usable in usable_places((place,)):
            self._searching().add(usable, clock.monotonic_ms())

    def asked(self, node: NodeId, ask: Ask, address: str) -> None:
        """A node asked this one who it is."""
        if self._forming is not None:
            self._forming.asked(node, ask, address, clock.monotonic_ms())

    async def promise_asked(self, node: NodeId, request: PromiseRequest, address: str) -> Promise:
        """What to answer a node that wants to form, once it is durable.  Raises `StorageError`."""
        now_ms = clock.monotonic_ms()
        # A node that only joins keeps its word as well: it may be started otherwise the next time.
        core = self._forming or Forming(self._own.node_id, now_ms=now_ms)
        answer = Promise(granted=False, to="", left_ms=0)
        for effect in core.promise_asked(node, request, address, now_ms):
            match effect:
                case PersistPromise():
                    await asyncio.to_thread(self._promises.save, effect.record)
                case AnswerPromise():
                    answer = effect.promise
                case _:
                    raise AssertionError(effect)
        return answer

    # --- the way to a mesh ----------------------------------------------------------------------------

    async def find(self) -> Outcome:
        """Forms or joins.  Raises `JoinRefusedError` when a token is of no use, `StorageError`."""
        try:
            if self._settings.new_mesh:
                return self._formed()
            self._spawn(self._look_up_seeds())
            may_form = self._settings.token is None and not self._settings.belonged
            if may_form and isinstance(await self._decide(), Form):
                return self._formed()
            self._changed()
            return Joined(grant=await self._join())
        finally:
            await self._end_tasks()
            self.code = None

    def _formed(self) -> Formed:
        return Formed(mesh=MeshId(secrets.token_hex(16)))

    async def _decide(self) -> Form | JoinMesh:
        now_ms = clock.monotonic_ms()
        promise = await asyncio.to_thread(self._promises.load)
        self._forming = Forming(
            self._own.node_id, now_ms=now_ms, times=self._settings.times, promise=promise
        )
        for place in self._search.places():
            self._forming.search.add(place, now_ms)
        self._changed()
        said = ""
        while self._outcome is None:
            self._perform(self._forming.tick(clock.monotonic_ms()))
            why = self._forming.waiting_for(clock.monotonic_ms())
            if why != said:
                said = why
                _log.info("without a mesh", waiting_for=why)
                self._changed()
            if self._outcome is None:
                await asyncio.sleep(TICK_S)
        outcome = self._outcome
        if isinstance(outcome, JoinMesh):
            self._search = self._forming.search
            self._forming = None
        return outcome

    def _perform(self, effects: tuple[FormingEffect, ...]) -> None:
        for effect in effects:
            match effect:
                case AskPlace():
                    self._spawn(self._ask(effect.place))
                case RequestPromise():
                    self._spawn(self._request_promise(effect))
                case Form():
                    self._outcome = effect
                case JoinMesh():
                    self._outcome = effect
                case PersistPromise() | AnswerPromise():
                    raise AssertionError(effect)

    async def _ask(self, place: Place) -> None:
        try:
            key, answer, host = await self._question(
                place, Ask(facts=self._facts(), state=self.state), CALL_S
            )
        except DarkStreamError:
            if self._forming is not None:
                self._forming.failed(place, clock.monotonic_ms())
            else:
                self._search.done(place, clock.monotonic_ms(), answered=False)
            return
        if not isinstance(answer, Answer):
            self._searching().done(place, clock.monotonic_ms(), answered=False)
            return
        node, now_ms = node_id_of(key), clock.monotonic_ms()
        if answer.state == "member" and node != self._own.node_id:
            self._remember(node, key, Place(hosts=(host,), join_port=place.join_port), answer)
        if self._forming is not None:
            self._perform(self._forming.answered(place, node, answer, now_ms))
            return
        self._search.done(place, now_ms, answered=True)
        if node == self._own.node_id:
            self._search.forget(place)
        for known in usable_places(answer.known):
            self._search.add(known, now_ms)

    async def _request_promise(self, effect: RequestPromise) -> None:
        forming = self._forming
        if forming is None:
            return
        request = PromiseRequest(facts=self._facts(), promised_by=effect.promised_by)
        try:
            key, answer, _ = await self._question(effect.place, request, CALL_S)
        except DarkStreamError:
            return
        if node_id_of(key) == effect.node and isinstance(answer, Promise):
            forming.promised(effect.node, answer, effect.sent_ms, clock.monotonic_ms())

    # --- joining --------------------------------------------------------------------------------------

    def _remember(self, node: NodeId, key: bytes, place: Place, answer: Answer) -> None:
        known = self._candidates.get(node)
        if known is not None:
            known.place, known.answer = place, answer
        elif len(self._candidates) < HOSTS_KNOWN_MAX:
            self._candidates[node] = _Candidate(place, answer, key, clock.monotonic_ms())

    async def _join(self) -> JoinGrant:
        while True:
            now_ms = clock.monotonic_ms()
            for place in self._search.due(now_ms):
                self._spawn(self._ask(place))
            candidate = self._next_candidate(now_ms)
            if candidate is None:
                await asyncio.sleep(TICK_S)
                continue
            grant = await self._talk(candidate)
            if grant is not None:
                return grant

    def _next_candidate(self, now_ms: int) -> _Candidate | None:
        ready = [one for one in self._matching() if one.retry_ms <= now_ms]
        return min(ready, key=lambda candidate: candidate.retry_ms, default=None)

    def _matching(self) -> list[_Candidate]:
        """The members that answered and say that they belong to the token's mesh, if there is one."""
        token = self._settings.token
        wanted = token.fingerprint if token is not None else self._settings.mesh
        matching: list[_Candidate] = []
        for node, candidate in self._candidates.items():
            if wanted is not None and candidate.answer.fingerprint != wanted:
                self._say_once(node, "a node of another mesh than the wanted one", node=node)
            else:
                matching.append(candidate)
        return matching

    async def _talk(self, candidate: _Candidate) -> JoinGrant | None:
        name = candidate.answer.facts.name
        self._talking = True
        self._changed()
        try:
            step = await self._converse(candidate)
        except DarkStreamError as error:
            _log.info("joining did not work yet", host=name, why=error.what)
            self._retry_later(candidate, RETRY_MIN_MS << min(candidate.failures, 6))
            return None
        finally:
            self._talking = False
            self.code = None
            self._changed()
        if isinstance(step, Granted):
            _log.info("admitted", host=name, mesh=step.grant.mesh)
            return step.grant
        refusal = step.refusal
        _log.warning("refused", host=name, code=refusal.code, why=refusal.what, todo=refusal.todo)
        again_ms = refusal.again_ms or RETRY_MIN_MS << min(candidate.failures, 6)
        self._retry_later(candidate, again_ms)
        if refusal.again_ms == 0:
            self._judge_final(step)
        return None

    def _judge_final(self, refused: Refused) -> None:
        """Raises when no other host can say anything better."""
        if self._settings.token is None:
            return
        if refused.proven:
            raise refused.error()
        # Anybody can say this, and a member may not have heard of a new invitation yet: it counts
        # when it lasts, and when nobody else is left to ask.
        if any(one.failures == 0 for one in self._matching()):
            return
        now_ms = clock.monotonic_ms()
        if self._unknown_since_ms is None:
            self._unknown_since_ms = now_ms
        elif now_ms - self._unknown_since_ms >= UNKNOWN_MAX_MS:
            raise refused.error()

    def _retry_later(self, candidate: _Candidate, after_ms: int) -> None:
        candidate.failures += 1
        candidate.retry_ms = clock.monotonic_ms() + min(max(after_ms, RETRY_MIN_MS), RETRY_MAX_MS)

    async def _converse(self, candidate: _Candidate) -> Granted | Refused:
        guest: TokenGuest | ApprovalGuest
        facts, nonce, token = self._facts(), secrets.token_bytes(NONCE_BYTES), self._settings.token
        if token is not None:
            guest = TokenGuest(self._own, facts, token, candidate.key, nonce)
        else:
            mesh = candidate.answer.fingerprint
            guest = ApprovalGuest(self._own, facts, mesh, candidate.key, nonce)
        step: Say | Granted | Refused = guest.start()
        lost = 0
        while isinstance(step, Say):
            await asyncio.sleep(step.after_ms / 1000)
            patience_s = COMMIT_S if isinstance(step.question, TokenProof) else 3 * CALL_S
            try:
                key, answer, _ = await self._question(candidate.place, step.question, patience_s)
            except UnreachableError:
                lost += 1
                # Only a poll may be repeated; all else must be said once.
                if not isinstance(step.question, ApprovalPoll) or lost > POLLS_LOST_MAX:
                    raise
                await asyncio.sleep(CALL_S)
                continue
            lost = 0
            step = guest.receive(key, answer)
            if isinstance(guest, ApprovalGuest) and guest.code != self.code:
                self.code = guest.code
                _log.warning(
                    "waiting for approval: on a member run `mesh-cli nodes approve`",
                    code=self.code,
                    host=candidate.answer.facts.name,
                )
                self._changed()
        return step

    # --- questions ------------------------------------------------------------------------------------

    async def _question(
        self, place: Place, message: JoinQuestion, timeout_s: float
    ) -> tuple[bytes, JoinAnswer, str]:
        """The first proven answer from any address of a place.  Raises `UnreachableError`, `WireError`."""
        frame = question_frame(message, secrets.token_bytes(QUESTION_NONCE_BYTES))

        async def one(host: str, delay_s: float) -> tuple[bytes, JoinAnswer, str]:
            await asyncio.sleep(delay_s)
            reply = await self._call(host, place.join_port, frame, timeout_s)
            return (*read_answer(self._own, frame, reply), host)

        tasks = [
            asyncio.ensure_future(one(host, number * STAGGER_S))
            for number, host in enumerate(place.hosts)
        ]
        failure: DarkStreamError = UnreachableError("no address", "give HOST:PORT")
        try:
            for next_one in asyncio.as_completed(tasks):
                try:
                    return await next_one
                except DarkStreamError as error:
                    failure = error
            raise failure
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_up_seeds(self) -> None:
        wait_s = 1.0
        while True:
            for host, port in self._settings.seeds:
                for address in await self._resolve(host):
                    place = Place(hosts=(address,), join_port=port + SEED_JOIN_OFFSET)
                    self._searching().add(place, clock.monotonic_ms(), keep=True)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, RESOLVE_S)

    def _searching(self) -> Search:
        return self._forming.search if self._forming is not None else self._search

    def _say_once(self, key: str, what: str, **more: object) -> None:
        if key not in self._said and len(self._said) < HOSTS_KNOWN_MAX:
            self._said.add(key)
            _log.info(what, **more)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end_tasks(self) -> None:
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception) and not isinstance(result, JoinRefusedError):
                _log.error("asking around failed", exc_info=result)
