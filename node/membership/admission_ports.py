"""What joining needs of the rest of a node, and what it gives back: ports and plain values."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from ledger.commands import MemberSpec
from mesh.discovery import AdmissionMode
from mesh.forming import FormingTimes, PromiseRecord
from mesh.ids import MeshId
from mesh.join_host import Invitation
from mesh.joining import JoinGrant
from mesh.trust import Token

FaceState = Literal["looking", "forming", "waiting", "member"]
"""What faces show: looking for a mesh, about to form one, waiting to be admitted, member of one."""

Resolve = Callable[[str], Awaitable[tuple[str, ...]]]
"""All addresses of a DNS name; empty when it is unknown at the moment."""


class MeshPort(Protocol):
    """The mesh of this node, as its ledger knows it."""

    def mesh(self) -> tuple[MeshId, bytes] | None:
        """Mesh id and founder's public key; None before this node belongs to a mesh."""
        ...

    def invitation(self, invitation: str) -> Invitation | None:
        """An invitation that is not voided, used up and expired ones included."""
        ...

    def invitations_open(self) -> bool:
        """Whether any invitation can still be used."""
        ...

    def is_member(self, public_key: bytes) -> bool:
        """Whether this key is an active member's."""
        ...

    async def admit(
        self, member: MemberSpec, invitation: str | None, ledger_schema: int
    ) -> JoinGrant:
        """Commits `AddMember` and says what the newcomer must know, the coordinator first.

        Raises the ledger's refusal, `OutdatedError` (it could not read the ledger), or
        `NoCoordinatorError`.
        """
        ...


class PromiseStore(Protocol):
    """Keeps the promise not to form a mesh over a crash."""

    def load(self) -> PromiseRecord | None:
        """The promise that was saved last, if any.  Raises `StorageError`."""
        ...

    def save(self, record: PromiseRecord) -> None:
        """Replaces it; durable when this returns.  May block.  Raises `StorageError`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionSettings:
    """What a person decided about joining."""

    token: Token | None = None
    """Never forms; looks for a member of the token's mesh for ever."""
    mesh: bytes | None = None
    """Fingerprint of the only mesh to join: that of a node that comes back to it."""
    seeds: tuple[tuple[str, int], ...] = ()
    """Hosts (names or addresses) and control ports; the join port is two above."""
    new_mesh: bool = False
    """Forms at once, without looking."""
    belonged: bool = False
    """This node once belonged to a mesh: it never forms one."""
    admission: AdmissionMode = "ask"
    times: FormingTimes = field(default_factory=FormingTimes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Formed:
    """This node forms a mesh of this id; it is the founder."""

    mesh: MeshId


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """This node was admitted."""

    grant: JoinGrant


Outcome = Formed | Joined
