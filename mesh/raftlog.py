"""The core's view of the log: the newest entries in memory over what storage holds.

Entries that are not yet persisted stand only here; storage may still hold older ones at the same
indexes until the driver's next write replaces them, so everything from `_tail_first` on is read
from memory.  The rest of the tail is a bounded cache: appends to followers that keep up, term
look-ups and commits never reach the disk.
"""

from collections.abc import Sequence
from typing import Final

from mesh.errors import DivergenceError
from mesh.ids import RaftId
from mesh.log import Base, Entry, LogStorage
from mesh.membership import Configuration

CACHE_ENTRIES_MAX: Final = 4_096
"""Durable, committed entries kept in memory: a follower within a few batches never costs a read of the disk."""
CACHE_BYTES_MAX: Final = 8 << 20
"""The same in bytes of data: a small machine must be able to spare it."""
SCAN_BYTES: Final = 1 << 20
"""Read at once while the newest configuration is looked for at start."""


class RaftLog:
    """Unstable tail, cache and configurations over a `LogStorage`."""

    def __init__(self, storage: LogStorage, *, commit_index: int, applied_index: int) -> None:
        self._storage = storage
        self._tail: list[Entry] = []
        self._tail_first = storage.last_index() + 1
        self._tail_bytes = 0
        self._last_index = storage.last_index()
        self._last_term = storage.term(self._last_index) or 0
        self._taken = self._last_index
        self._stable = self._last_index
        self._base = storage.base()
        self._commit = max(commit_index, applied_index, self._base.index)
        if self._commit > self._last_index:
            raise DivergenceError(
                f"entries up to {self._commit} were committed or applied, "
                f"but the log ends at {self._last_index}",
                "raft.db is not the log of this ledger: restore both from the same moment",
            )
        if applied_index < self._base.index:
            raise DivergenceError(
                f"the ledger has applied {applied_index} entries, "
                f"but the log begins behind {self._base.index}",
                "raft.db is not the log of this ledger: restore both from the same moment",
            )
        self._handed = applied_index
        self._uncommitted_bytes = 0
        self._configurations = self._scan_configurations(self._last_index, self._commit)

    # --- reading ------------------------------------------------------------------------------

    @property
    def base(self) -> Base:
        """What stands before the first entry that can be read."""
        # The core is told before or after storage compacts, in a thread: whichever is further.
        stored = self._storage.base()
        return stored if stored.index > self._base.index else self._base

    @property
    def last_index(self) -> int:
        """Index of the newest entry, persisted or not."""
        return self._last_index

    @property
    def last_term(self) -> int:
        """Term of the newest entry, 0 when the log is empty."""
        return self._last_term

    @property
    def stable_index(self) -> int:
        """Up to here this node holds the log durably."""
        return self._stable

    @property
    def commit_index(self) -> int:
        """Up to here the log is decided."""
        return self._commit

    @property
    def uncommitted_bytes(self) -> int:
        """Bytes of data that were appended since the start and are neither committed nor replaced."""
        return self._uncommitted_bytes

    @property
    def handed_index(self) -> int:
        """Up to here committed entries were handed out to be applied."""
        return self._handed

    @property
    def configuration(self) -> Configuration | None:
        """The newest configuration in the log, committed or not; None before the first."""
        return self._configurations[-1][1] if self._configurations else None

    @property
    def configuration_index(self) -> int:
        """Index of the entry that holds `configuration`, 0 when there is none."""
        return self._configurations[-1][0] if self._configurations else 0

    def may_vote(self, raft: RaftId) -> bool:
        """Whether `raft` votes in the newest configuration, or in one that is not surely replaced.

        A voter whose removal is not decided may hold the newest entry of all and must be able to
        lead it to the end; nobody else could (dissertation, 4.2.2).
        """
        return any(raft in configuration.voters for _, configuration in self._configurations)

    @property
    def is_configuration_pending(self) -> bool:
        """Whether the configuration in force is not committed yet."""
        return self.configuration_index > self._commit

    def base_at(self, index: int) -> Base | None:
        """The base of a log that begins behind this index; None unless it is committed and durable here."""
        term = self.term(index)
        if term is None or index > min(self._commit, self._stable):
            return None
        known = [configuration for first, configuration in self._configurations if first <= index]
        if not known:
            known = [found for _, found in self._scan_configurations(index, index)]
        return Base(index, term, known[-1].encode() if known else b"")

    def term(self, index: int) -> int | None:
        """Term of the entry at `index`, or of the base; None when there is none."""
        if index == self._last_index:
            return self._last_term
        if index > self._last_index:
            return None
        if index >= self._tail_first:
            return self._tail[index - self._tail_first].term
        base = self.base
        if index <= base.index:
            return base.term if index == base.index else None
        return self._storage.term(index)

    def entries(
        self, low: int, high: int, *, bytes_max: int, entries_max: int
    ) -> tuple[Entry, ...]:
        """Entries low <= index < high within both limits, at least one if there is any.

        Nothing when `low` is compacted.
        """
        high = min(high, self._last_index + 1, low + entries_max)
        if low >= high:
            return ()
        if low < self._tail_first:
            stored = self._storage.entries(low, min(high, self._tail_first), bytes_max)
            return stored if stored and stored[0].index == low else ()
        taken: list[Entry] = []
        size = 0
        first = self._tail_first
        for entry in self._tail[low - first : high - first]:
            size += len(entry.data)
            if taken and size > bytes_max:
                break
            taken.append(entry)
        return tuple(taken)

    def is_up_to_date(self, last_index: int, last_term: int) -> bool:
        """Whether a log that ends so holds at least what this one does (Raft paper, 5.4.1)."""
        return (last_term, last_index) >= (self._last_term, self._last_index)

    def agreeing(self, index: int, term: int) -> tuple[int, int]:
        """The highest (index', term') of this log with index' <= index and term' <= term.

        No entry above it can match a log whose entry at `index` has `term`: terms only grow with
        the index, which also lets us find it by halving.  Below the base, terms are not known:
        there it is only an upper bound, with term 0.
        """
        low = self.base.index
        high = min(index, self._last_index)
        if high < low:
            return high, 0
        if (self.term(low) or 0) > term:
            return max(0, low - 1), 0
        while low < high:
            middle = (low + high + 1) // 2
            if (self.term(middle) or 0) <= term:
                low = middle
            else:
                high = middle - 1
        return low, self.term(low) or 0

    # --- writing ------------------------------------------------------------------------------

    def append(self, entries: Sequence[Entry]) -> None:
        """Puts entries at their indexes and forgets everything behind the last of them.

        Raises `DivergenceError` when a committed entry would be replaced, which correct peers
        cannot bring about.
        """
        if not entries:
            return
        first = entries[0].index
        if first <= self._commit:
            raise DivergenceError(
                f"entry {first} is committed (up to {self._commit}) and would be replaced",
                "stop this node and keep its data directory for an analysis",
            )
        if first <= self._last_index:
            self._truncate(first)
        self._tail.extend(entries)
        size = sum(len(entry.data) for entry in entries)
        self._tail_bytes += size
        self._uncommitted_bytes += size
        self._last_index = entries[-1].index
        self._last_term = entries[-1].term
        for entry in entries:
            if entry.kind == "configuration":
                self._configurations.append((entry.index, Configuration.decode(entry.data)))

    def match_and_append(
        self, prev_index: int, prev_term: int, entries: Sequence[Entry]
    ) -> int | None:
        """Appends what is new of `entries` when (`prev_index`, `prev_term`) matches.

        Returns the last index known to match the sender's log, or None when it does not match.
        An entry that is already here with the same term stays: a late or doubled message must
        never cut off what came after it (Raft paper, figure 2, AppendEntries 3).
        """
        if self.term(prev_index) != prev_term:
            return None
        if prev_index == self._last_index:
            self.append(entries)
        else:
            for position, entry in enumerate(entries):
                if self.term(entry.index) != entry.term:
                    self.append(entries[position:])
                    break
        return prev_index + len(entries)

    @property
    def has_unpersisted(self) -> bool:
        """Whether there are entries to persist that were not handed out yet."""
        return self._taken != self._last_index

    def take_unpersisted(self) -> tuple[Entry, ...]:
        """Entries to persist that were not handed out yet."""
        taken = tuple(self._tail[self._taken + 1 - self._tail_first :])
        self._taken = self._last_index
        return taken

    def persisted(self, index: int, term: int) -> None:
        """Everything up to the entry (`index`, `term`) is durable, if it is still part of the log."""
        if index > self._stable and self.term(index) == term:
            self._stable = index
            self._evict()

    def commit_to(self, index: int) -> bool:
        """Moves the commit index forward, never back; True when it moved."""
        index = min(index, self._last_index)
        if index <= self._commit:
            return False
        if index == self._last_index:
            self._uncommitted_bytes = 0
        else:
            # What was appended in this run and is not committed is never evicted, so it is here.
            low = max(self._commit + 1, self._tail_first) - self._tail_first
            for entry in self._tail[low : index + 1 - self._tail_first]:
                self._uncommitted_bytes -= len(entry.data)
        self._commit = index
        while len(self._configurations) > 1 and self._configurations[1][0] <= index:
            del self._configurations[0]
        return True

    def take_committed(self, *, ahead_max: int, bytes_max: int) -> tuple[Entry, ...]:
        """Committed entries to apply that were not handed out yet, within both limits."""
        if self._handed >= self._commit or ahead_max <= 0:
            return ()
        taken = self.entries(
            self._handed + 1, self._commit + 1, bytes_max=bytes_max, entries_max=ahead_max
        )
        self._handed = taken[-1].index
        return taken

    # --- snapshots ----------------------------------------------------------------------------

    def compacted(self, base: Base) -> None:
        """Entries up to `base.index`, all applied, are gone or about to go."""
        if base.index <= self._base.index:
            return
        assert base.index <= self._handed, "compacted past what was applied"
        self._base = base
        drop = min(base.index + 1 - self._tail_first, len(self._tail))
        if drop > 0:
            self._tail_bytes -= sum(len(entry.data) for entry in self._tail[:drop])
            del self._tail[:drop]
            self._tail_first += drop

    def restart(self, base: Base) -> None:
        """The ledger was replaced by a snapshot at `base`; the log holds nothing any more."""
        assert self._storage.last_index() == base.index > self._commit, (
            "restarted from another base"
        )
        self._base = base
        self._tail.clear()
        self._tail_bytes = 0
        self._tail_first = base.index + 1
        self._last_index = self._taken = self._stable = self._commit = self._handed = base.index
        self._last_term = base.term
        self._uncommitted_bytes = 0
        self._configurations = self._scan_configurations(base.index, base.index)

    # --- inside -------------------------------------------------------------------------------

    def _truncate(self, first: int) -> None:
        if first >= self._tail_first:
            dropped = self._tail[first - self._tail_first :]
            del self._tail[first - self._tail_first :]
            size = sum(len(entry.data) for entry in dropped)
            self._tail_bytes -= size
            self._uncommitted_bytes -= size
        else:
            self._tail.clear()
            self._tail_bytes = 0
            self._uncommitted_bytes = 0
            self._tail_first = first
        self._stable = min(self._stable, first - 1)
        self._taken = min(self._taken, first - 1)
        while self._configurations and self._configurations[-1][0] >= first:
            self._configurations.pop()

    def _evict(self) -> None:
        # Twice the limit before anything is moved, so that the cost of moving is spread.
        if len(self._tail) <= 2 * CACHE_ENTRIES_MAX and self._tail_bytes <= 2 * CACHE_BYTES_MAX:
            return
        drop = 0
        evictable = min(self._stable, self._commit)
        while self._tail_first + drop <= evictable and (
            len(self._tail) - drop > CACHE_ENTRIES_MAX or self._tail_bytes > CACHE_BYTES_MAX
        ):
            self._tail_bytes -= len(self._tail[drop].data)
            drop += 1
        del self._tail[:drop]
        self._tail_first += drop

    def _scan_configurations(self, last: int, until: int) -> list[tuple[int, Configuration]]:
        """The configurations in force from `until` to `last`, oldest first."""
        found: list[tuple[int, Configuration]] = []
        base = self.base
        high = last + 1
        step = 1_024
        while high > base.index + 1:
            low = max(base.index + 1, high - step)
            block: list[Entry] = []
            while low + len(block) < high:
                more = self._storage.entries(low + len(block), high, SCAN_BYTES)
                assert more, f"entry {low + len(block)} is not stored"
                block.extend(more)
            for entry in reversed(block):
                if entry.kind == "configuration":
                    found.append((entry.index, Configuration.decode(entry.data)))
                    if entry.index <= until:
                        return found[::-1]
            high = low
        if base.configuration:
            found.append((base.index, Configuration.decode(base.configuration)))
        return found[::-1]
