"""Who else may have the film that a worker fetches: the ledger says who worked on it, and they say what they have.

Nothing is advertised and nothing is kept: whoever had a lease on a job of this film is asked when
somebody needs it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from ledger.jobs import Attempt, Job
from mesh.errors import UnreachableError
from mesh.ids import NodeId
from mesh.shares import Helper

CACHED: Final = "cached"
"""Kind of a handle: `cached/<attempt>` is what a node has of the film that this lease is for."""
SHARERS_MAX: Final = 16
"""Nodes looked at, the latest first; of those that can be reached a few are asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contact:
    """How to reach a member's bulk port."""

    public_key: bytes
    hosts: tuple[str, ...]
    port: int


Contacts = Callable[[NodeId], Contact]
"""Raises `UnreachableError` while no address of the node is known."""


Holders = Callable[[int, str, int], Sequence[str]]
"""(size, digest, at most so many) → nodes that had a lease on a film of this content, the latest first."""


class Sharers:
    """Implements `Helpers` for one lease."""

    def __init__(
        self, own: NodeId, job: Job, attempt: Attempt, holders: Holders, contacts: Contacts
    ) -> None:
        self._own = own
        self._job = job
        self._attempt = attempt
        self._holders = holders
        self._contacts = contacts

    def _nodes(self) -> Sequence[str]:
        job = self._job
        return self._holders(job.source_bytes, job.source_digest, SHARERS_MAX)

    @property
    def start(self) -> float:
        """Its place among those who hold leases on the film."""
        nodes = sorted({*self._nodes(), self._own})
        return nodes.index(self._own) / len(nodes)

    def look(self) -> Sequence[Helper]:
        """All but the owner, whose film it is, and this node."""
        found: list[Helper] = []
        for node in self._nodes():
            if node in {self._own, self._job.owner}:
                continue
            try:
                contact = self._contacts(NodeId(node))
            except UnreachableError:
                continue
            found.append(
                Helper(
                    peer=NodeId(node),
                    public_key=contact.public_key,
                    hosts=contact.hosts,
                    port=contact.port,
                    handle=f"{CACHED}/{self._attempt.id}",
                )
            )
        return found
