"""The replicated log: its entries, its durable state, and the port that stores them.

*Log* always means this log, never text that a program prints.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from mesh.codec import value
from mesh.ids import RaftId

EntryKind = Literal["command", "configuration", "empty"]
ENTRY_BYTES_MAX = 1 << 20
"""One entry must fit a consensus frame (4 MiB) several times over."""


@value
@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the log; `index` counts from 1 without gaps."""

    index: int
    term: int
    kind: EntryKind
    data: bytes


@value
@dataclass(frozen=True, slots=True)
class HardState:
    """What a voter must never forget: written and synced before any answer that depends on it."""

    term: int = 0
    vote: RaftId | None = None
    commit: int = 0


@value
@dataclass(frozen=True, slots=True)
class Base:
    """What stands before the first kept entry: all up to `index` is only in a snapshot.

    `configuration` is the encoded configuration in force at `index`; empty before the first.
    """

    index: int = 0
    term: int = 0
    configuration: bytes = b""


class LogStorage(Protocol):
    """Durable log and hard state.  Reads are cheap and may run while a write runs in a thread."""

    def hard_state(self) -> HardState:
        """The last persisted hard state."""
        ...

    def base(self) -> Base:
        """What stands before the first kept entry; `Base()` as long as nothing was compacted."""
        ...

    def first_index(self) -> int:
        """Index of the first entry that is kept: `base().index + 1`."""
        ...

    def last_index(self) -> int:
        """Index of the last persisted entry; `first_index() - 1` when there is none."""
        ...

    def term(self, index: int) -> int | None:
        """Term of a persisted entry or of the base, or None when it is not there."""
        ...

    def entries(self, low: int, high: int, bytes_max: int) -> tuple[Entry, ...]:
        """Entries low <= index < high, at least one if any, at most about `bytes_max` bytes of data."""
        ...

    def persist(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        """Durably replaces everything from `entries[0].index` on, and the hard state, in one step.

        Returns only after the sync.  Raises `StorageError`; then nothing may be assumed and the
        node stops.
        """
        ...

    def compact(self, base: Base) -> None:
        """Durably forgets the entries up to `base.index`, which the ledger holds durably.

        Entries behind it stay.  A base that is not ahead of the present one changes nothing.
        Raises `StorageError`.
        """
        ...

    def restart_from(self, base: Base, hard_state: HardState) -> None:
        """Durably forgets all entries: the ledger was replaced by a snapshot at `base`.

        Afterwards `last_index() == base.index`.  In one step with the hard state, whose term and
        vote are those that were promised before.  Raises `StorageError`.
        """
        ...
