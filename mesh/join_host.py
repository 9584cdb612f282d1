"""The host's side of joining: what a member answers to strangers, as a state machine.

`receive` takes one frame of a stranger whose key CURVE has proven and gives a reply or an effect
that the caller performs and answers later (`reply`).  Nothing is kept of a stranger but a bounded
table of challenges and of pending approvals.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from mesh.discovery import AdmissionMode
from mesh.errors import ConflictError, DarkStreamError, NotAllowedError, NotFoundError, WireError
from mesh.ids import NodeId, node_id_of
from mesh.join_refusals import (
    BUSY,
    CLOSED,
    DENIED,
    EXPIRED,
    NO_APPROVAL,
    NO_CHALLENGE,
    NO_MESH,
    OTHER_MESH,
    TOO_MANY_TRIES,
    UNKNOWN_INVITATION,
    USED_UP,
    WRONG_NONCE,
    WRONG_PROOF,
)
from mesh.joining import (
    ApprovalCommit,
    ApprovalCommitted,
    ApprovalPending,
    ApprovalPoll,
    ApprovalReveal,
    ApprovalRevealed,
    Ask,
    Challenge,
    Facts,
    JoinAnswer,
    JoinGrant,
    PromiseRequest,
    Refusal,
    TokenHello,
    TokenProof,
    answer_frame,
    check_nonce,
    read_question,
)
from mesh.trust import (
    FINGERPRINT_BYTES,
    NONCE_BYTES,
    TRIES_A_MINUTE,
    Binding,
    Identity,
    RateLimiter,
    approval_code,
    check_proof,
    commitment,
    prove,
    same,
    source_of,
)

PENDING_MAX: Final = 10
"""Strangers with an approval or a challenge open: more than a person admits at a time."""
CHALLENGE_TTL_MS: Final = 10_000
"""A challenge is answered within a round trip; afterwards it makes room."""
SILENT_MAX_MS: Final = 30_000
"""A guest polls every second; one that is silent for so long has given up."""
GRANT_KEPT_MS: Final = 600_000
"""An admitted guest whose answer was lost finds its grant for so long."""
DENIED_MAX: Final = 256
DENIED_MS: Final = 600_000
"""A denied key is not shown to a person again for so long."""
FRAMES_A_MINUTE: Final = 2_400
FRAMES_BURST: Final = 200
"""Of one address: ten nodes of one machine that ask each other twice a second stay below."""
APPROVALS_A_MINUTE: Final = 30
"""Of all addresses together: a million codes at that rate take three weeks of a person's mistakes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """What the ledger holds of a token: the verifier key, what is left of it, and its end."""

    key: bytes = field(repr=False)
    uses_left: int
    expires_at_ms: int
    """Wall clock, as in the ledger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostView:
    """What the host knows at the moment of a frame; `fingerprint` is None without a mesh."""

    fingerprint: bytes | None
    admission: AdmissionMode
    invitation: Callable[[str], Invitation | None]
    is_member: Callable[[bytes], bool]
    """Whether this key may speak already: it comes back with a fresh data directory, or lost its grant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """Whose question, from where, and which: what a reply is sealed to."""

    guest_key: bytes
    address: str
    question: bytes

    @property
    def node(self) -> NodeId:
        """The stranger's proven node id."""
        return node_id_of(self.guest_key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Somebody asks who this is: reply with an `Answer`."""

    ticket: Ticket
    ask: Ask


@dataclass(frozen=True, slots=True, kw_only=True)
class PromiseAsked:
    """Somebody wants to form a mesh: reply with a `Promise`, after it is durable."""

    ticket: Ticket
    request: PromiseRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Admit:
    """Proven by token: commit the member, then reply with the grant or the refusal."""

    ticket: Ticket
    facts: Facts
    invitation: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Approved:
    """Approved without a person (open mesh, or a member that comes back): commit, then `granted`."""

    ticket: Ticket
    facts: Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingChanged:
    """The list of pending approvals changed."""


HostEffect = Asked | PromiseAsked | Admit | Approved | PendingChanged


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStep:
    """What a frame led to: a reply to send at once (None: none, or later), and effects in order."""

    reply: bytes | None = None
    effects: tuple[HostEffect, ...] = ()
    refused: Refusal | None = None
    """What the reply says, when it is a refusal: to be counted and logged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingApproval:
    """A node that waits for a person, as faces show it; everything but node and code is its claim."""

    node: NodeId
    public_key: bytes
    facts: Facts
    code: str
    address: str
    asked_ms: int
    """Monotonic clock of this host."""


@dataclass(slots=True, kw_only=True)
class _Challenge:
    facts: Facts
    invitation: str
    key: bytes
    binding: Binding
    made_ms: int


@dataclass(slots=True, kw_only=True)
class _Approval:
    facts: Facts
    address: str
    commitment: bytes
    host_nonce: bytes
    fingerprint: bytes
    asked_ms: int
    seen_ms: int
    code: str | None = None
    grant: JoinGrant | None = None
    deciding: bool = False


class Host:
    """Joining as a member sees it; one instance per node, for the life of its process."""

    def __init__(self, identity: Identity) -> None:
        self._own = identity
        self._frames = RateLimiter(per_minute=FRAMES_A_MINUTE, burst=FRAMES_BURST)
        self._tries = RateLimiter(per_minute=TRIES_A_MINUTE, burst=TRIES_A_MINUTE)
        self._approving = RateLimiter(per_minute=APPROVALS_A_MINUTE, burst=APPROVALS_A_MINUTE)
        self._challenges: dict[bytes, _Challenge] = {}
        self._approvals: dict[bytes, _Approval] = {}
        self._denied: OrderedDict[bytes, int] = OrderedDict()

    # --- frames -------------------------------------------------------------------------------------

    def receive(
        self,
        guest_key: bytes,
        address: str,
        frame: bytes,
        view: HostView,
        *,
        entropy: bytes,
        now_ms: int,
        wall_ms: int,
    ) -> HostStep:
        """What this frame leads to; `entropy` is `NONCE_BYTES` fresh random bytes.

        Raises `WireError` for a frame that no honest guest sends, and for a flood.
        """
        assert len(entropy) == NONCE_BYTES
        if not self._frames.take(source_of(address), now_ms):
            raise WireError("too many join frames from one address")
        message = read_question(frame, guest_key)
        ticket = Ticket(guest_key=guest_key, address=address, question=frame)
        dropped = self._age(now_ms)
        match message:
            case Ask():
                step = HostStep(effects=(Asked(ticket=ticket, ask=message),))
            case PromiseRequest():
                step = HostStep(effects=(PromiseAsked(ticket=ticket, request=message),))
            case TokenHello():
                step = self._token_hello(ticket, message, view, entropy, now_ms)
            case TokenProof():
                step = self._token_proof(ticket, message, view, now_ms, wall_ms)
            case ApprovalCommit():
                step = self._approval_commit(ticket, message, view, entropy, now_ms)
            case ApprovalReveal():
                step = self._approval_reveal(ticket, message, view, now_ms)
            case ApprovalPoll():
                step = self._approval_poll(ticket, now_ms)
        if dropped and PendingChanged() not in step.effects:
            step = replace(step, effects=(*step.effects, PendingChanged()))
        return step

    def reply(self, ticket: Ticket, message: JoinAnswer) -> bytes:
        """The sealed frame that answers this ticket's question.  Raises `WireError` for an unusable key."""
        return answer_frame(self._own, ticket.guest_key, ticket.question, message)

    def _say(self, ticket: Ticket, message: JoinAnswer, *effects: HostEffect) -> HostStep:
        refused = message if isinstance(message, Refusal) else None
        return HostStep(reply=self.reply(ticket, message), effects=effects, refused=refused)

    def _room(self, guest_key: bytes) -> bool:
        waiting = [key for key, approval in self._approvals.items() if approval.grant is None]
        return len({*waiting, *self._challenges} - {guest_key}) < PENDING_MAX

    # --- by token -----------------------------------------------------------------------------------

    def _token_hello(
        self, ticket: Ticket, hello: TokenHello, view: HostView, entropy: bytes, now_ms: int
    ) -> HostStep:
        check_nonce(hello.nonce)
        if view.fingerprint is None:
            return self._say(ticket, NO_MESH)
        if not self._tries.take(source_of(ticket.address), now_ms):
            return self._say(ticket, TOO_MANY_TRIES)
        if len(hello.fingerprint) != FINGERPRINT_BYTES or hello.fingerprint != view.fingerprint:
            return self._say(ticket, OTHER_MESH)
        invitation = view.invitation(hello.invitation)
        if invitation is None:
            return self._say(ticket, UNKNOWN_INVITATION)
        if not self._room(ticket.guest_key):
            return self._say(ticket, BUSY)
        binding = Binding(
            fingerprint=view.fingerprint,
            host_key=self._own.public_key,
            guest_key=ticket.guest_key,
            host_nonce=entropy,
            guest_nonce=hello.nonce,
        )
        self._challenges[ticket.guest_key] = _Challenge(
            facts=hello.facts,
            invitation=hello.invitation,
            key=invitation.key,
            binding=binding,
            made_ms=now_ms,
        )
        proof = prove(invitation.key, hello.invitation, "host", binding)
        return self._say(ticket, Challenge(nonce=entropy, proof=proof))

    def _token_proof(
        self, ticket: Ticket, message: TokenProof, view: HostView, now_ms: int, wall_ms: int
    ) -> HostStep:
        # Taken away at once: a challenge has one answer, and a replayed one has none.
        challenge = self._challenges.pop(ticket.guest_key, None)
        if challenge is None or now_ms - challenge.made_ms > CHALLENGE_TTL_MS:
            return self._say(ticket, NO_CHALLENGE)
        name = challenge.invitation
        if not check_proof(challenge.key, name, "guest", challenge.binding, message.proof):
            return self._say(ticket, WRONG_PROOF)
        self._tries.give_back(source_of(ticket.address))
        member = view.is_member(ticket.guest_key)
        # A member's grant was lost on the way, or its data directory; the key is trusted already.
        refusal = None if member else _refused(view.invitation(name), wall_ms)
        if refusal is not None:
            return self._say(ticket, refusal)
        used = None if member else name
        return HostStep(effects=(Admit(ticket=ticket, facts=challenge.facts, invitation=used),))

    # --- by approval --------------------------------------------------------------------------------

    def _approval_commit(
        self, ticket: Ticket, message: ApprovalCommit, view: HostView, entropy: bytes, now_ms: int
    ) -> HostStep:
        check_nonce(message.commitment)
        if view.fingerprint is None:
            return self._say(ticket, NO_MESH)
        if not self._may_ask(ticket, view):
            return self._say(ticket, CLOSED if view.admission == "closed" else DENIED)
        if not self._tries.take(source_of(ticket.address), now_ms):
            return self._say(ticket, TOO_MANY_TRIES)
        if not self._approving.take("all", now_ms) or not self._room(ticket.guest_key):
            return self._say(ticket, BUSY)
        shown = ticket.guest_key in self._approvals
        self._approvals[ticket.guest_key] = _Approval(
            facts=message.facts,
            address=ticket.address,
            commitment=message.commitment,
            host_nonce=entropy,
            fingerprint=view.fingerprint,
            asked_ms=now_ms,
            seen_ms=now_ms,
        )
        answer = ApprovalCommitted(
            fingerprint=view.fingerprint,
            commitment=commitment("host", self._own.public_key, entropy),
        )
        return self._say(ticket, answer, *([PendingChanged()] if shown else []))

    def _may_ask(self, ticket: Ticket, view: HostView) -> bool:
        if view.is_member(ticket.guest_key):
            return True
        return view.admission != "closed" and ticket.guest_key not in self._denied

    def _approval_reveal(
        self, ticket: Ticket, message: ApprovalReveal, view: HostView, now_ms: int
    ) -> HostStep:
        check_nonce(message.nonce)
        approval = self._approvals.get(ticket.guest_key)
        if approval is None:
            return self._say(ticket, NO_APPROVAL)
        if approval.code is not None:
            # A reveal that is repeated gets nothing new; one that differs would be a second try.
            del self._approvals[ticket.guest_key]
            return self._say(ticket, NO_APPROVAL, PendingChanged())
        if not same(commitment("guest", ticket.guest_key, message.nonce), approval.commitment):
            del self._approvals[ticket.guest_key]
            return self._say(ticket, WRONG_NONCE)
        approval.seen_ms = now_ms
        approval.code = approval_code(
            Binding(
                fingerprint=approval.fingerprint,
                host_key=self._own.public_key,
                guest_key=ticket.guest_key,
                host_nonce=approval.host_nonce,
                guest_nonce=message.nonce,
            )
        )
        effects: list[HostEffect] = [PendingChanged()]
        if view.admission == "open" or view.is_member(ticket.guest_key):
            approval.deciding = True
            effects.append(Approved(ticket=ticket, facts=approval.facts))
        return self._say(ticket, ApprovalRevealed(nonce=approval.host_nonce), *effects)

    def _approval_poll(self, ticket: Ticket, now_ms: int) -> HostStep:
        approval = self._approvals.get(ticket.guest_key)
        if approval is None or approval.code is None:
            denied = ticket.guest_key in self._denied
            return self._say(ticket, DENIED if denied else NO_APPROVAL)
        approval.seen_ms = now_ms
        return self._say(ticket, approval.grant or ApprovalPending())

    # --- a person decides ---------------------------------------------------------------------------

    def pending(self) -> tuple[PendingApproval, ...]:
        """The nodes that wait for a person, in the order of asking."""
        return tuple(
            PendingApproval(
                node=node_id_of(key),
                public_key=key,
                facts=approval.facts,
                code=approval.code,
                address=approval.address,
                asked_ms=approval.asked_ms,
            )
            for key, approval in self._approvals.items()
            if approval.code is not None and approval.grant is None and not approval.deciding
        )

    def find(self, name_or_id: str, code: str | None = None) -> PendingApproval:
        """The one that a person means.

        Raises `NotFoundError`, `ConflictError` (several of that name), `NotAllowedError` (its code
        is not `code`; the attempt is over, the guest starts again with another code).
        """
        found = [p for p in self.pending() if name_or_id in (p.facts.name, p.node)]
        if not found:
            raise NotFoundError(
                f"no node named {name_or_id!r} waits for approval here", "see `mesh-cli nodes`"
            )
        if len(found) > 1:
            raise ConflictError(
                f"{len(found)} nodes that call themselves {name_or_id!r} wait for approval",
                "approve by id, and compare the code",
            )
        if code is not None and not same(code.encode(), found[0].code.encode()):
            del self._approvals[found[0].public_key]
            raise NotAllowedError(
                f"{name_or_id} shows another code: somebody may stand between the two nodes",
                "wait for its new code and compare again",
            )
        return found[0]

    def decide(self, pending: PendingApproval) -> None:
        """A person approved: the commit is under way, until `granted` or `undecided`.

        Raises `NotFoundError` when the guest went away or asked anew with another code meanwhile.
        """
        approval = self._approvals.get(pending.public_key)
        if approval is None or approval.code != pending.code or approval.deciding:
            raise NotFoundError("the node does not wait with this code any more", "look again")
        approval.deciding = True

    def granted(self, guest_key: bytes, grant: JoinGrant) -> None:
        """The member is committed: its next poll takes the grant away."""
        if (approval := self._approvals.get(guest_key)) is not None:
            approval.grant, approval.deciding = grant, False
            self._tries.give_back(source_of(approval.address))

    def undecided(self, guest_key: bytes, error: DarkStreamError) -> None:
        """The commit failed: the node waits on, or is refused for good when another try is useless."""
        if (approval := self._approvals.get(guest_key)) is not None:
            approval.deciding = False
            if error.retry == "never":
                del self._approvals[guest_key]

    def deny(self, pending: PendingApproval, now_ms: int) -> None:
        """A person said no: this key is refused for `DENIED_MS`."""
        self._approvals.pop(pending.public_key, None)
        self._denied[pending.public_key] = now_ms
        if len(self._denied) > DENIED_MAX:
            self._denied.popitem(last=False)

    def tick(self, now_ms: int) -> tuple[HostEffect, ...]:
        """Forgets who gave up; to be called about once a second."""
        return (PendingChanged(),) if self._age(now_ms) else ()

    def _age(self, now_ms: int) -> bool:
        for key in [
            k for k, c in self._challenges.items() if now_ms - c.made_ms > CHALLENGE_TTL_MS
        ]:
            del self._challenges[key]
        for key in [k for k, at in self._denied.items() if now_ms - at > DENIED_MS]:
            del self._denied[key]
        old = [k for k, a in self._approvals.items() if now_ms - a.seen_ms > _patience(a)]
        shown = any(self._approvals[key].code is not None for key in old)
        for key in old:
            del self._approvals[key]
        return shown


def _patience(approval: _Approval) -> int:
    if approval.grant is not None or approval.deciding:
        return GRANT_KEPT_MS
    return CHALLENGE_TTL_MS if approval.code is None else SILENT_MAX_MS


def _refused(invitation: Invitation | None, wall_ms: int) -> Refusal | None:
    """How the invitation stands; only whoever has proven its secret is told."""
    if invitation is None:
        return UNKNOWN_INVITATION
    if invitation.uses_left <= 0:
        return USED_UP
    return EXPIRED if wall_ms >= invitation.expires_at_ms else None
