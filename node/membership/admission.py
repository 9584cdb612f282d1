"""How this node comes to belong to a mesh, and how others come to belong to it through this node.

Serves the join socket in every state of the node, runs the first start (`find_mesh`), keeps the
nodes that wait for a person, and says what the node's advert should say.
"""

import asyncio
import contextlib
import secrets
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, Final

import structlog

from ledger.commands import CreateInvitation, MemberSpec
from mesh import clock
from mesh.discovery import AdmissionMode, Advert, NodeState, usable_hosts
from mesh.errors import BusyError, DarkStreamError, NotAllowedError, WireError
from mesh.ids import MeshId, node_id_of
from mesh.join_host import (
    Admit,
    Approved,
    Asked,
    Host,
    HostView,
    PendingApproval,
    PendingChanged,
    PromiseAsked,
    Ticket,
)
from mesh.join_refusals import refusal_of
from mesh.joining import (
    QUESTION_NONCE_BYTES,
    Answer,
    Ask,
    Facts,
    JoinAnswer,
    JoinGrant,
    Place,
    Promise,
    question_frame,
)
from mesh.transport import JoinCall
from mesh.trust import NONCE_BYTES, Identity, RateLimiter, mesh_fingerprint, mesh_tag, new_token
from node.membership.admission_ports import (
    AdmissionSettings,
    FaceState,
    Formed,
    MeshPort,
    Outcome,
    PromiseStore,
    Resolve,
)
from node.membership.newcomer import Newcomer
from node.signals import Signal

TICK_S: Final = 1.0
GREET_S: Final = 1.0
GREETINGS_A_MINUTE: Final = 12
"""To one node without a mesh, on its adverts."""
TASKS_MAX: Final = 32
"""Commits and greetings under way; the host's own limit is ten pending."""
LOG_INTERVAL_MS: Final = 60_000
"""A refusal is logged once per source and minute; `refused` counts the rest."""
SOURCES_MAX: Final = 1_024

_log = structlog.get_logger("join")


def create_invitation(
    mesh: MeshId, founder_key: bytes, *, entropy: bytes, uses: int, expires_at_ms: int
) -> tuple[str, CreateInvitation]:
    """The token's text for a person and the command for the ledger, from
    `trust.INVITATION_ENTROPY_BYTES` random bytes; the secret is in the text alone.
    """
    token = new_token(mesh, founder_key, entropy)
    command = CreateInvitation(
        id=token.invitation, key=token.key(), uses=uses, expires_at_ms=expires_at_ms
    )
    return token.text(), command


class Admission:
    """Joining, both ways.  All methods are for the event loop's thread.

    Give `on_frame` to the join listener, adverts to `heard`, run `run` beside everything else, and
    `find_mesh` once where the node has no mesh yet.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        incarnation: str,
        facts: Callable[[], Facts],
        mesh: MeshPort,
        call: JoinCall,
        resolve: Resolve,
        promises: PromiseStore,
        announce: Callable[[Advert], None],
        settings: AdmissionSettings,
    ) -> None:
        self._own = identity
        self._incarnation = incarnation
        self._facts = facts
        self._call = call
        self._greetings = RateLimiter(per_minute=GREETINGS_A_MINUTE, burst=3)
        self._mesh = mesh
        self._announce = announce
        self._settings = settings
        self._host = Host(identity)
        self._newcomer: Newcomer | None = Newcomer(
            identity=identity,
            facts=facts,
            call=call,
            resolve=resolve,
            promises=promises,
            settings=settings,
            changed=self._changed,
        )
        self._formed: tuple[MeshId, bytes] | None = None
        self._advert: Advert | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._logged: OrderedDict[str, int] = OrderedDict()
        self.refused: Counter[str] = Counter()
        """What strangers were refused, by code; for the metrics."""
        self.changed = Signal()
        """Set when the state, the code or the list of pending nodes changed."""

    # --- state ----------------------------------------------------------------------------------------

    @property
    def mesh(self) -> tuple[MeshId, bytes] | None:
        """Mesh id and founder's key, once there is a mesh."""
        return self._mesh.mesh() or self._formed

    @property
    def state(self) -> FaceState:
        """What faces show."""
        if self.mesh is not None:
            return "member"
        return self._newcomer.face_state if self._newcomer is not None else "waiting"

    @property
    def join_code(self) -> str | None:
        """The six digits that a person compares, while this node waits for approval."""
        return self._newcomer.code if self._newcomer is not None else None

    @property
    def waiting_for(self) -> str:
        """Why this node has no mesh yet, for a person; empty for a member."""
        return self._newcomer.waiting_for if self._newcomer is not None else ""

    @property
    def admission(self) -> AdmissionMode:
        """Whether others are admitted, and how."""
        return self._settings.admission

    def _wire_state(self) -> NodeState:
        if self.mesh is not None:
            return "member"
        return self._newcomer.state if self._newcomer is not None else "waiting"

    def advert(self) -> Advert:
        """What this node advertises now."""
        facts, mesh = self._facts(), self.mesh
        return Advert(
            node=self._own.node_id,
            incarnation=self._incarnation,
            public_key=self._own.public_key,
            mesh_tag=mesh_tag(mesh_fingerprint(*mesh)) if mesh is not None else None,
            state=self._wire_state(),
            admission=self._settings.admission,
            control_port=facts.control_port,
            bulk_port=facts.bulk_port,
            join_port=facts.join_port,
            hosts=facts.hosts,
        )

    def announce(self) -> None:
        """Advertises what changed; to be called when the node's addresses or its mesh changed."""
        advert = self.advert()
        if advert != self._advert:
            self._advert = advert
            self._announce(advert)

    def _changed(self) -> None:
        self.announce()
        self.changed.set()

    # --- this node's own way ----------------------------------------------------------------------------

    async def find_mesh(self) -> Outcome:
        """Forms a mesh or joins one, for as long as it takes; not to be called by a member.

        Raises `JoinRefusedError` when the token is of no use, `StorageError`.
        """
        newcomer = self._newcomer
        if newcomer is None or self._mesh.mesh() is not None:
            raise RuntimeError("this node has a mesh")
        self.announce()
        outcome = await newcomer.find()
        if isinstance(outcome, Formed):
            self._formed = (outcome.mesh, self._own.public_key)
        self._newcomer = None
        self._changed()
        return outcome

    def heard(self, advert: Advert) -> None:
        """An advert: a hint whom to ask while this node has no mesh.

        A member asks nodes that are about to form one: adverts may travel one way only, and whoever
        is asked looks for the asker.
        """
        if advert.node == self._own.node_id:
            return
        if self.mesh is None and self._newcomer is not None:
            self._newcomer.hint(Place(hosts=advert.hosts, join_port=advert.join_port))
        elif (
            self.mesh is not None
            and advert.state == "forming"
            and len(self._tasks) < TASKS_MAX
            and self._greetings.take(advert.node, clock.monotonic_ms())
        ):
            self._spawn(self._greet(advert))

    def hint(self, place: Place) -> None:
        """Somebody may answer there; of use only while this node has no mesh."""
        if self._newcomer is not None:
            self._newcomer.hint(place)

    async def _greet(self, advert: Advert) -> None:
        ask = Ask(facts=self._facts(), state="member")
        frame = question_frame(ask, secrets.token_bytes(QUESTION_NONCE_BYTES))
        for host in usable_hosts(advert.hosts):
            with contextlib.suppress(DarkStreamError):
                await self._call(host, advert.join_port, frame, GREET_S)
                return

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def run(self) -> None:
        """Keeps house: forgets guests that gave up, and the advert in step.  Runs until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            if self._host.tick(clock.monotonic_ms()):
                self.changed.set()
            self.announce()

    # --- strangers ----------------------------------------------------------------------------------------

    async def on_frame(self, guest_key: bytes, address: str, frame: bytes) -> bytes | None:
        """The answer to a stranger's frame; None for one that deserves none."""
        try:
            if self._settings.admission == "closed" and not self._listening(guest_key):
                raise NotAllowedError("no invitation is open")
            return await self._answered(guest_key, address, frame)
        except (WireError, NotAllowedError) as error:
            self._count(error.code, address, error.what)
            return None

    def _listening(self, guest_key: bytes) -> bool:
        return self.mesh is None or self._mesh.invitations_open() or self._mesh.is_member(guest_key)

    async def _answered(self, guest_key: bytes, address: str, frame: bytes) -> bytes | None:
        step = self._host.receive(
            guest_key,
            address,
            frame,
            self._view(),
            entropy=secrets.token_bytes(NONCE_BYTES),
            now_ms=clock.monotonic_ms(),
            wall_ms=clock.wall_ms(),
        )
        if step.refused is not None:
            self._count(step.refused.code, address, step.refused.what)
        reply = step.reply
        for effect in step.effects:
            match effect:
                case Asked():
                    reply = self._host.reply(effect.ticket, self._who(effect))
                case PromiseAsked():
                    reply = self._host.reply(effect.ticket, await self._promise(effect))
                case Admit():
                    reply = await self._admit(effect)
                case Approved():
                    self._commit_later(effect.ticket, effect.facts)
                case PendingChanged():
                    self.changed.set()
        return reply

    def _view(self) -> HostView:
        # The founder's own ledger may not have begun: until then it admits nobody.
        mesh = self._mesh.mesh()
        return HostView(
            fingerprint=mesh_fingerprint(*mesh) if mesh is not None else None,
            admission=self._settings.admission,
            invitation=self._mesh.invitation,
            is_member=self._mesh.is_member,
        )

    def _who(self, asked: Asked) -> Answer:
        mesh = self.mesh
        known: tuple[Place, ...] = ()
        if self._newcomer is not None and mesh is None:
            self._newcomer.asked(asked.ticket.node, asked.ask, asked.ticket.address)
            known = self._newcomer.known()
        return Answer(
            facts=self._facts(),
            state=self._wire_state(),
            fingerprint=mesh_fingerprint(*mesh) if mesh is not None else b"",
            admission=self._settings.admission,
            known=known,
        )

    async def _promise(self, asked: PromiseAsked) -> Promise:
        if self._newcomer is None or self.mesh is not None:
            return Promise(granted=False, to="", left_ms=0)
        ticket = asked.ticket
        return await self._newcomer.promise_asked(ticket.node, asked.request, ticket.address)

    async def _admit(self, effect: Admit) -> bytes:
        answer: JoinAnswer
        try:
            answer = await self._commit(effect.ticket, effect.facts, effect.invitation)
        except DarkStreamError as error:
            self._count(error.code, effect.ticket.address, error.what)
            answer = refusal_of(error)
        return self._host.reply(effect.ticket, answer)

    async def _commit(self, ticket: Ticket, facts: Facts, invitation: str | None) -> JoinGrant:
        member = member_spec(ticket.guest_key, facts)
        grant = await self._mesh.admit(member, invitation, facts.ledger_schema)
        _log.info("admitted", node=member.node, name=facts.name, by="token" if invitation else "")
        return grant

    def _commit_later(self, ticket: Ticket, facts: Facts) -> None:
        async def work() -> None:
            try:
                grant = await self._commit(ticket, facts, None)
            except DarkStreamError as error:
                self._host.undecided(ticket.guest_key, error)
                self._count(error.code, ticket.address, error.what)
            else:
                self._host.granted(ticket.guest_key, grant)
            self.changed.set()

        if self._settings.admission == "open":
            _log.warning("admitted without asking: this mesh is open", name=facts.name)
        self._spawn(work())

    def _count(self, code: str, address: str, what: str) -> None:
        self.refused[code] += 1
        now_ms = clock.monotonic_ms()
        last_ms = self._logged.get(address)
        if last_ms is not None and now_ms - last_ms < LOG_INTERVAL_MS:
            return
        self._logged[address] = now_ms
        self._logged.move_to_end(address)
        if len(self._logged) > SOURCES_MAX:
            self._logged.popitem(last=False)
        _log.warning("refused", socket="join", code=code, source=address, why=what)

    # --- a person decides ---------------------------------------------------------------------------------

    def pending(self) -> tuple[PendingApproval, ...]:
        """The nodes that wait for a person, in the order of asking."""
        return self._host.pending()

    async def approve(self, name_or_id: str, code: str | None = None) -> PendingApproval:
        """Admits the node that waits under this name or id and, when given, shows this code.

        Raises `NotFoundError`, `ConflictError` (several of that name), `NotAllowedError` (another
        code), `NoCoordinatorError`, and the ledger's refusal.
        """
        pending = self._host.find(name_or_id, code)
        self._host.decide(pending)
        ticket = Ticket(guest_key=pending.public_key, address=pending.address, question=b"")
        try:
            grant = await self._commit(ticket, pending.facts, None)
        except BaseException as error:
            failed = error if isinstance(error, DarkStreamError) else BusyError("interrupted")
            self._host.undecided(pending.public_key, failed)
            raise
        finally:
            self.changed.set()
        self._host.granted(pending.public_key, grant)
        return pending

    def deny(self, name_or_id: str) -> PendingApproval:
        """Refuses the node that waits under this name or id.  Raises `NotFoundError`, `ConflictError`."""
        pending = self._host.find(name_or_id)
        self._host.deny(pending, clock.monotonic_ms())
        self.changed.set()
        return pending


def member_spec(public_key: bytes, facts: Facts) -> MemberSpec:
    """The row of the members' table that these proven key and claimed facts give."""
    return MemberSpec(
        node=node_id_of(public_key),
        raft_id=facts.raft_id,
        public_key=public_key,
        name=facts.name,
        role=facts.role,
    )
