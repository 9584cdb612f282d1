"""What the driver needs of the ledger: blocking, called on one thread of its own."""

from collections.abc import Sequence, Set
from typing import Final, Protocol

from ledger.commands import Outcome
from ledger.touched import Touched
from mesh.errors import DamagedError, UnknownKindError, WireError
from mesh.log import Entry

APPLY_BATCH_MAX: Final = 512
"""Entries applied in one ledger transaction."""
APPLY_BYTES_MAX: Final = 1 << 20
"""The same in bytes: a thousand jobs take a tenth of a second, and their proposers wait for it."""

Applied = tuple[Entry, str | None, Outcome | None]
"""An entry, the id of the command in it and what that command gave; None for entries of the log itself."""


class Ledger(Protocol):
    """The replica as its one writer sees it."""

    @property
    def applied_index(self) -> int:
        """Index of the last entry that is applied."""
        ...

    @property
    def touched(self) -> Set[Touched]:
        """Whose rows the last batch changed."""
        ...

    def apply(self, entries: Sequence[Entry]) -> Sequence[Applied]:
        """Applies committed entries in one transaction; raises when the node must stop."""
        ...

    def checksum_at(self, index: int) -> bytes | None:
        """The rolling checksum behind a recent entry, at least of the last batch; from any thread."""
        ...

    def make_durable(self) -> int:
        """Syncs what is applied; the index up to which a power loss can take nothing."""
        ...


def apply_own(ledger: Ledger, entries: Sequence[Entry]) -> Sequence[Applied]:
    """Applies entries of this node's own log: one that cannot be read is damage here, nobody sent it.

    Raises `DamagedError`, `UnknownKindError` for one of a newer version, and what `apply` raises.
    """
    try:
        return ledger.apply(entries)
    except UnknownKindError:
        raise
    except WireError as error:
        raise DamagedError(
            f"an entry of the log from {entries[0].index} to {entries[-1].index} cannot be read:"
            f" {error.what}",
            "run mesh-cli ledger verify; restore this node, or let it join anew",
        ) from None


def next_batch(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """The first entries within both bounds, at least one."""
    size = 0
    for count, entry in enumerate(entries[:APPLY_BATCH_MAX]):
        size += len(entry.data)
        if count and size > APPLY_BYTES_MAX:
            return tuple(entries[:count])
    return tuple(entries[:APPLY_BATCH_MAX])
