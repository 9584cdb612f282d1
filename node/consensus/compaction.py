"""How much of the log is kept behind the ledger.  Pure.

What is cut off can be had only as a snapshot, which costs a whole ledger on the wire; what is kept
costs disk.  So: a number of entries, fewer where entries are large, more for a short while where a
follower is just about to be served from it.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

KEEP_ENTRIES: Final = 20_000
"""A follower that was away for a minute of a busy mesh, or a day of a quiet one, needs no snapshot."""
KEEP_BYTES: Final = 256 << 20
"""The same in bytes of commands, whichever is less: a small machine must be able to spare it."""
PATIENCE: Final = 8
"""For a living follower or a snapshot on its way up to so many times as much is kept, never more."""
_STEPS: Final = 10
"""Cut off in steps of a tenth of what is kept: each costs a sync of the log and one of the ledger."""
_MARK_ENTRIES: Final = 128
_MARK_BYTES: Final = 1 << 20
_MARKS_MAX: Final = 8_192
"""Marks of a log of a million entries, or of eight GiB; 128 KB of memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """What stays of the log behind what is applied."""

    entries: int = KEEP_ENTRIES
    bytes: int = KEEP_BYTES


class LogWeight:
    """How heavy the end of the log is, in steps of about a MiB: only what passed since the start counts."""

    def __init__(self) -> None:
        self._marks: deque[tuple[int, int]] = deque(maxlen=_MARKS_MAX)
        self._total = 0

    def note(self, index: int, size: int) -> None:
        """The entry `index` with `size` bytes of data was applied; indexes only grow."""
        self._total += size
        last = self._marks[-1] if self._marks else (0, 0)
        if index - last[0] >= _MARK_ENTRIES or self._total - last[1] >= _MARK_BYTES:
            self._marks.append((index, self._total))

    def forget(self, index: int) -> None:
        """Entries up to `index` are cut off."""
        while self._marks and self._marks[0][0] < index:
            self._marks.popleft()

    def within(self, size: int) -> int:
        """An index behind which at most about `size` bytes lie; 0 when all that is known weighs less."""
        # Few marks lie behind the answer: they are walked from the end.
        for index, total in reversed(self._marks):
            if self._total - total > size:
                return index
        return 0


def compaction_point(
    *,
    base: int,
    applied: int,
    weight: LogWeight,
    keep: Keep,
    needed: Iterable[int] = (),
) -> int | None:
    """Up to which index the log should be forgotten now; None: it is not worth while yet.

    `base` is the index before the first kept entry.  `needed`: indexes behind which somebody reads
    or will soon (the match of a living follower, a snapshot that is being fetched).
    """
    wanted = max(applied - keep.entries, weight.within(keep.bytes))
    furthest = max(applied - PATIENCE * keep.entries, weight.within(PATIENCE * keep.bytes))
    point = max(furthest, min([wanted, *needed]))
    heavy = weight.within(keep.bytes) > base
    enough = 1 if heavy else max(1, keep.entries // _STEPS)
    return point if point - base >= enough else None
