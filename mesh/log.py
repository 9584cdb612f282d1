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


class LogStorage(Protocol):
    """Durable log and hard state.  Reads are cheap and may run while `persist` runs in a thread."""

    def hard_state(self) -> HardState:
        """The last persisted hard state."""
        ...

    def first_index(self) -> int:
        """Index of the first entry that is kept; 1 as long as nothing was compacted."""
        ...

    def last_index(self) -> int:
        """Index of the last persisted entry; `first_index() - 1` when there is none."""
        ...

    def term(self, index: int) -> int | None:
        """Term of a persisted entry (0 for index 0), or None when it is not there."""
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
