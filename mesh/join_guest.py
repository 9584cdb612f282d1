"""The guest's side of joining: two conversations with one host each, as state machines.

Both take the host's proven key with every answer (`joining.read_answer`) and pin it: a host cannot
change in the middle.  A conversation that fails is thrown away; the next one draws new nonces.
"""

from dataclasses import dataclass
from typing import Final

from mesh.errors import JoinRefusedError, WireError
from mesh.ids import MeshId
from mesh.join_refusals import NOT_KNOWN_THERE
from mesh.joining import (
    ApprovalCommit,
    ApprovalCommitted,
    ApprovalPending,
    ApprovalPoll,
    ApprovalReveal,
    ApprovalRevealed,
    Challenge,
    Facts,
    JoinAnswer,
    JoinGrant,
    JoinQuestion,
    Refusal,
    TokenHello,
    TokenProof,
    check_nonce,
)
from mesh.trust import (
    NONCE_BYTES,
    Binding,
    Identity,
    Token,
    approval_code,
    check_proof,
    commitment,
    mesh_fingerprint,
    prove,
    same,
)

POLL_MS: Final = 1_000
"""How often a waiting guest asks: a person who approves sees it in about a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Say:
    """Ask the host this next, after `after_ms`."""

    question: JoinQuestion
    after_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """Admitted, by a host that proved itself."""

    grant: JoinGrant


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """This conversation is over; `proven`: the host has shown that it speaks for the token's mesh."""

    refusal: Refusal
    proven: bool

    def error(self) -> JoinRefusedError:
        """The refusal as an error for a person."""
        return JoinRefusedError(self.refusal.what, self.refusal.todo)


GuestStep = Say | Granted | Refused


class TokenGuest:
    """Joins with a token: hello, challenge, proof, grant."""

    def __init__(
        self, own: Identity, facts: Facts, token: Token, host_key: bytes, nonce: bytes
    ) -> None:
        assert len(nonce) == NONCE_BYTES
        self._own = own
        self._facts = facts
        self._token = token
        self._key = token.key()
        self._host_key = host_key
        self._nonce = nonce
        self._proven = False

    def start(self) -> Say:
        """The first question."""
        return Say(
            question=TokenHello(
                facts=self._facts,
                fingerprint=self._token.fingerprint,
                invitation=self._token.invitation,
                nonce=self._nonce,
            )
        )

    def receive(self, host_key: bytes, answer: JoinAnswer) -> GuestStep:
        """What follows from an answer.  Raises `WireError` when the host does not prove itself."""
        _pinned(host_key, self._host_key)
        match answer:
            case Refusal():
                return Refused(refusal=answer, proven=self._proven)
            case Challenge() if not self._proven:
                return self._challenged(answer)
            case JoinGrant() if self._proven:
                _check_mesh(answer, self._token.fingerprint, self._host_key)
                return Granted(grant=answer)
            case _:
                raise WireError("an answer out of turn")

    def _challenged(self, challenge: Challenge) -> Say | Refused:
        binding = Binding(
            fingerprint=self._token.fingerprint,
            host_key=self._host_key,
            guest_key=self._own.public_key,
            host_nonce=check_nonce(challenge.nonce),
            guest_nonce=self._nonce,
        )
        name = self._token.invitation
        if not check_proof(self._key, name, "host", binding, challenge.proof):
            return Refused(refusal=NOT_KNOWN_THERE, proven=False)
        self._proven = True
        return Say(question=TokenProof(proof=prove(self._key, name, "guest", binding)))


class ApprovalGuest:
    """Joins by a person's approval: commit, commit, reveal, reveal, then polls; `code` is there to compare."""

    def __init__(
        self, own: Identity, facts: Facts, fingerprint: bytes, host_key: bytes, nonce: bytes
    ) -> None:
        assert len(nonce) == NONCE_BYTES
        self._own = own
        self._facts = facts
        self._fingerprint = fingerprint
        self._host_key = host_key
        self._nonce = nonce
        self._commitment: bytes | None = None
        self.code: str | None = None
        """The six digits, once both nonces are known."""

    def start(self) -> Say:
        """The first question."""
        fixed = commitment("guest", self._own.public_key, self._nonce)
        return Say(question=ApprovalCommit(facts=self._facts, commitment=fixed))

    def receive(self, host_key: bytes, answer: JoinAnswer) -> GuestStep:
        """What follows from an answer.  Raises `WireError` when the host does not keep to its word."""
        _pinned(host_key, self._host_key)
        match answer:
            case Refusal():
                return Refused(refusal=answer, proven=False)
            case ApprovalCommitted() if self._commitment is None:
                if answer.fingerprint != self._fingerprint:
                    raise WireError("the host changed its mesh")
                self._commitment = answer.commitment
                return Say(question=ApprovalReveal(nonce=self._nonce))
            case ApprovalRevealed() if self._commitment is not None and self.code is None:
                return self._revealed(self._commitment, answer)
            case ApprovalPending() if self.code is not None:
                return Say(question=ApprovalPoll(), after_ms=POLL_MS)
            case JoinGrant() if self.code is not None:
                _check_mesh(answer, self._fingerprint, self._host_key)
                return Granted(grant=answer)
            case _:
                raise WireError("an answer out of turn")

    def _revealed(self, committed: bytes, answer: ApprovalRevealed) -> Say:
        nonce = check_nonce(answer.nonce)
        if not same(commitment("host", self._host_key, nonce), committed):
            raise WireError("the host's nonce is not the one it committed to")
        self.code = approval_code(
            Binding(
                fingerprint=self._fingerprint,
                host_key=self._host_key,
                guest_key=self._own.public_key,
                host_nonce=nonce,
                guest_nonce=self._nonce,
            )
        )
        return Say(question=ApprovalPoll())


def _pinned(host_key: bytes, expected: bytes) -> None:
    if host_key != expected:
        raise WireError("another node answered than the one that was asked")


def _check_mesh(grant: JoinGrant, fingerprint: bytes, host_key: bytes) -> None:
    if not same(mesh_fingerprint(MeshId(grant.mesh), grant.founder_key), fingerprint):
        raise WireError("a grant for another mesh")
    if host_key not in (member.public_key for member in grant.members):
        raise WireError("a grant of a node that is no member")
