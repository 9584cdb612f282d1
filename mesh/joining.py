"""What strangers say to each other: a vocabulary of its own, in frames of at most 8 KiB.

A guest asks over the join socket with its own node key as CURVE client, so the host knows who asks.
The socket's server key is everybody's, so the host proves itself inside: every answer is sealed to
the question with both node keys (`trust.seal`).  A question holds a fresh nonce; an old answer fits
no new question.

Three conversations: `Ask` (who are you, also the word of nodes that form a mesh), joining with a
token (hello, challenge, proof, grant) and joining by approval (commit, commit, reveal, reveal, then
polls until a grant or a refusal).  The two sides are in mesh.join_host and mesh.join_guest.
"""

import re
from dataclasses import dataclass, replace
from typing import Final, Literal

from mesh.codec import Vocabulary, value
from mesh.discovery import PORT_MAX, AdmissionMode, NodeState, usable_hosts
from mesh.errors import WireError
from mesh.ids import INCARNATION_CHARS, NodeId, node_id_of
from mesh.transport import HOSTS_MAX, JOIN_FRAME_BYTES_MAX, KEY_BYTES, is_host
from mesh.trust import FINGERPRINT_BYTES, NONCE_BYTES, Identity, check_seal, digest, seal

JOIN: Final = Vocabulary("join")
Role = Literal["full", "witness"]

QUESTION_NONCE_BYTES: Final = 16
PLACES_MAX: Final = 8
"""Other nodes that an answer names: one good address heals a network."""
PROMISES_MAX: Final = 64
"""Nodes of one network that look for a mesh at the same time."""
GRANT_HOSTS_MAX: Final = 4
"""Addresses of each member in a grant; its hello tells the rest."""
_SEAL_BYTES: Final = 256
"""Room for the envelope around an answer."""
TEXT_CHARS_MAX: Final = 300
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


# --- values -----------------------------------------------------------------------------------------


@value
@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a node claims about itself; only its key is proven."""

    raft_id: str
    name: str
    role: Role
    hosts: tuple[str, ...]
    control_port: int
    bulk_port: int
    join_port: int
    ledger_schema: int = 1
    """The newest form of the ledger that it knows; nodes that say none are older than this word."""


@value
@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where some node answers on its join socket."""

    hosts: tuple[str, ...]
    join_port: int


@value
@dataclass(frozen=True, slots=True, kw_only=True)
class GrantedMember:
    """A member as a newcomer is told: whom to trust and where to dial."""

    node: str
    raft_id: str
    public_key: bytes
    name: str
    role: Role
    hosts: tuple[str, ...] = ()
    control_port: int = 0
    bulk_port: int = 0
    join_port: int = 0


# --- envelopes --------------------------------------------------------------------------------------


@JOIN.kind("question")
@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a guest sends: a message and a nonce that it drew for this question alone."""

    nonce: bytes
    body: bytes


@JOIN.kind("sealed")
@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """What a host sends: its node key, a message, and the proof that this key answered this question."""

    key: bytes
    body: bytes
    proof: bytes


# --- who are you, and forming -----------------------------------------------------------------------


@JOIN.kind("ask")
@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Who are you?  And who asks: its claims and its state."""

    facts: Facts
    state: NodeState


@JOIN.kind("answer")
@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Who answers; `fingerprint` is empty without a mesh; `known` are others that proved themselves."""

    facts: Facts
    state: NodeState
    fingerprint: bytes
    admission: AdmissionMode
    known: tuple[Place, ...] = ()


@JOIN.kind("promise.request")
@dataclass(frozen=True, slots=True, kw_only=True)
class PromiseRequest:
    """The lowest identity that it knows of asks the others not to form; `promised_by` have promised it."""

    facts: Facts
    promised_by: tuple[str, ...]


@JOIN.kind("promise")
@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """`granted`: I form no mesh for `left_ms` (durably).  Otherwise `to` holds my promise, or I know better."""

    granted: bool
    to: str
    left_ms: int


# --- by token ---------------------------------------------------------------------------------------


@JOIN.kind("token.hello")
@dataclass(frozen=True, slots=True, kw_only=True)
class TokenHello:
    """The guest names mesh and invitation and gives its nonce."""

    facts: Facts
    fingerprint: bytes
    invitation: str
    nonce: bytes


@JOIN.kind("token.challenge")
@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """The host proves that it knows the invitation's key, and wants the same."""

    nonce: bytes
    proof: bytes


@JOIN.kind("token.proof")
@dataclass(frozen=True, slots=True, kw_only=True)
class TokenProof:
    """The guest proves that it knows the secret."""

    proof: bytes


# --- by approval ------------------------------------------------------------------------------------


@JOIN.kind("approval.commit")
@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalCommit:
    """The guest fixes its nonce without showing it."""

    facts: Facts
    commitment: bytes


@JOIN.kind("approval.committed")
@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalCommitted:
    """The host fixes its nonce, and says which mesh it is."""

    fingerprint: bytes
    commitment: bytes


@JOIN.kind("approval.reveal")
@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalReveal:
    """The guest's nonce."""

    nonce: bytes


@JOIN.kind("approval.revealed")
@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRevealed:
    """The host's nonce: both sides can show the code now."""

    nonce: bytes


@JOIN.kind("approval.poll")
@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalPoll:
    """Asks whether a person has decided."""


@JOIN.kind("approval.pending")
@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalPending:
    """Not yet."""


# --- the end ----------------------------------------------------------------------------------------


@JOIN.kind("grant")
@dataclass(frozen=True, slots=True, kw_only=True)
class JoinGrant:
    """Admitted: the mesh and whom to trust in it.  `members` are in order of use, the coordinator first;
    the list may be shortened to fit a frame, the replica brings the rest.
    """

    mesh: str
    founder_key: bytes
    members: tuple[GrantedMember, ...]
    members_epoch: int
    epoch: int = 1
    """Grows with each recovery by force: how the newcomer knows that it is not behind one."""


@JOIN.kind("refusal")
@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Not admitted, with a stable code; `again_ms` is 0 when asking again is useless."""

    code: str
    what: str
    todo: str = ""
    again_ms: int = 0


JoinQuestion = (
    Ask | PromiseRequest | TokenHello | TokenProof | ApprovalCommit | ApprovalReveal | ApprovalPoll
)
JoinAnswer = (
    Answer
    | Promise
    | Challenge
    | ApprovalCommitted
    | ApprovalRevealed
    | ApprovalPending
    | JoinGrant
    | Refusal
)
_QUESTIONS: Final = (
    *(Ask, PromiseRequest, TokenHello, TokenProof),
    *(ApprovalCommit, ApprovalReveal, ApprovalPoll),
)
_ANSWERS: Final = (
    *(Answer, Promise, Challenge, ApprovalCommitted),
    *(ApprovalRevealed, ApprovalPending, JoinGrant, Refusal),
)


# --- frames -----------------------------------------------------------------------------------------


def question_frame(message: JoinQuestion, nonce: bytes) -> bytes:
    """The frame of a question; `nonce` is fresh, `QUESTION_NONCE_BYTES` long."""
    if len(nonce) != QUESTION_NONCE_BYTES:
        raise ValueError(f"a question takes a nonce of {QUESTION_NONCE_BYTES} bytes")
    frame = JOIN.encode(Question(nonce=nonce, body=JOIN.encode(message)))
    assert len(frame) <= JOIN_FRAME_BYTES_MAX, "our own questions are bounded"
    return frame


def read_question(frame: bytes, guest_key: bytes) -> JoinQuestion:
    """The message in a guest's frame, its facts checked.  Raises `WireError`."""
    outer = _decoded(frame)
    if not isinstance(outer, Question) or len(outer.nonce) != QUESTION_NONCE_BYTES:
        raise WireError("not a question")
    message: object = JOIN.decode(outer.body)
    if not isinstance(message, _QUESTIONS):
        raise WireError("not a question of joining")
    match message:
        case Ask() | PromiseRequest() | TokenHello() | ApprovalCommit():
            check_facts(guest_key, message.facts)
        case TokenProof() | ApprovalReveal() | ApprovalPoll():
            pass
    if isinstance(message, PromiseRequest) and len(message.promised_by) > PROMISES_MAX:
        raise WireError("more promises than nodes can form at once")
    return message


def answer_frame(own: Identity, guest_key: bytes, question: bytes, message: JoinAnswer) -> bytes:
    """The sealed frame that answers the question in this frame.  Raises `WireError` for an unusable key."""
    if isinstance(message, JoinGrant):
        message = fitted(message)
    body = JOIN.encode(message)
    proof = seal(own.keys, guest_key, _question_digest(question), body)
    frame = JOIN.encode(Sealed(key=own.public_key, body=body, proof=proof))
    assert len(frame) <= JOIN_FRAME_BYTES_MAX, "our own answers are bounded"
    return frame


def read_answer(own: Identity, question: bytes, frame: bytes) -> tuple[bytes, JoinAnswer]:
    """The host's proven key and its message.  Raises `WireError`."""
    outer = _decoded(frame)
    if not isinstance(outer, Sealed) or len(outer.key) != KEY_BYTES:
        raise WireError("not a sealed answer")
    check_seal(own.keys, outer.key, _question_digest(question), outer.body, outer.proof)
    message = JOIN.decode(outer.body)
    if not isinstance(message, _ANSWERS):
        raise WireError("not an answer of joining")
    match message:
        case Answer():
            check_facts(outer.key, message.facts)
            _check_fingerprint(message.fingerprint, empty=message.state != "member")
        case ApprovalCommitted():
            _check_fingerprint(message.fingerprint, empty=False)
        case Refusal():
            message = _printable(message)
        case Promise() if not 0 <= message.left_ms <= 1 << 31:
            raise WireError("a promise without an end")
        case JoinGrant():
            _check_grant(message)
        case _:
            pass
    return outer.key, message


def _decoded(frame: bytes) -> object:
    if len(frame) > JOIN_FRAME_BYTES_MAX:
        raise WireError("a join frame over the limit")
    return JOIN.decode(frame)


def _question_digest(question: bytes) -> bytes:
    return digest(b"join question", question)


# --- checks -----------------------------------------------------------------------------------------


def check_facts(key: bytes, facts: Facts) -> NodeId:
    """The node id of these facts.  Raises `WireError` for what no honest node says."""
    node = node_id_of(key)
    prefix, _, incarnation = facts.raft_id.partition(".")
    if prefix != node or not _is_hex(incarnation, INCARNATION_CHARS):
        raise WireError("facts whose consensus identity is not the asker's")
    if _NAME.fullmatch(facts.name) is None:
        raise WireError("facts with a bad name")
    _check_place(facts.hosts, facts.join_port)
    for port in (facts.control_port, facts.bulk_port):
        if not 0 < port <= PORT_MAX:
            raise WireError("facts with a bad port")
    return node


def _is_hex(text: str, chars: int) -> bool:
    return len(text) == chars and all(char in "0123456789abcdef" for char in text)


def _check_place(hosts: tuple[str, ...], join_port: int) -> None:
    if len(hosts) > HOSTS_MAX or not all(map(is_host, hosts)):
        raise WireError("bad addresses")
    if not 0 < join_port <= PORT_MAX:
        raise WireError("a bad port")


def _check_fingerprint(fingerprint: bytes, *, empty: bool) -> None:
    if len(fingerprint) != (0 if empty else FINGERPRINT_BYTES):
        raise WireError("a bad fingerprint of a mesh")


def check_nonce(nonce: bytes) -> bytes:
    """The nonce, if it has the right size.  Raises `WireError`."""
    if len(nonce) != NONCE_BYTES:
        raise WireError("a nonce of the wrong size")
    return nonce


def _check_grant(grant: JoinGrant) -> None:
    if not _is_hex(grant.mesh, 32) or len(grant.founder_key) != KEY_BYTES or not grant.members:
        raise WireError("a grant without a mesh")
    for member in grant.members:
        if len(member.public_key) != KEY_BYTES or node_id_of(member.public_key) != member.node:
            raise WireError("a grant whose members are not the digests of their keys")
        if member.raft_id.partition(".")[0] != member.node:
            raise WireError("a grant whose members have foreign identities")
        if len(member.hosts) > HOSTS_MAX or not all(map(is_host, member.hosts)):
            raise WireError("a grant with bad addresses")
        ports = (member.control_port, member.bulk_port, member.join_port)
        if not all(0 <= port <= PORT_MAX for port in ports):
            raise WireError("a grant with a bad port")


def _printable(refusal: Refusal) -> Refusal:
    def clean(text: str) -> str:
        return "".join(char for char in text[:TEXT_CHARS_MAX] if char.isprintable())

    again_ms = min(max(refusal.again_ms, 0), 1 << 31)
    return Refusal(
        code=clean(refusal.code),
        what=clean(refusal.what),
        todo=clean(refusal.todo),
        again_ms=again_ms,
    )


def usable_places(places: tuple[Place, ...]) -> tuple[Place, ...]:
    """The places worth dialling among those that somebody named."""
    kept: list[Place] = []
    for place in places[:PLACES_MAX]:
        hosts = usable_hosts(place.hosts)
        if hosts and 0 < place.join_port <= PORT_MAX:
            kept.append(Place(hosts=hosts, join_port=place.join_port))
    return tuple(kept)


def fitted(grant: JoinGrant) -> JoinGrant:
    """The grant with as many members, in their order, as fit a frame."""
    members = tuple(replace(m, hosts=m.hosts[:GRANT_HOSTS_MAX]) for m in grant.members)
    while len(members) > 1:
        shorter = replace(grant, members=members)
        if len(JOIN.encode(shorter)) <= JOIN_FRAME_BYTES_MAX - _SEAL_BYTES:
            return shorter
        members = members[:-1]
    return replace(grant, members=members)
