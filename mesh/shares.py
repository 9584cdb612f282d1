"""Which chunks of a file each of its sources brings.  No sockets, no clock, no threads of its own.

One source brings all of them in order (`Alone`).  Where other nodes have fetched the same film, they
help (`Pool`): the owner has everything and each helper what it says; whoever is free takes what
nobody else brings, and what a helper keeps for too long is taken by the owner as well.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Final, Protocol

from mesh.ids import NodeId
from mesh.transfer import Manifest, Spans, bytes_of

OFFERED_MAX: Final = 16
"""Chunks that a helper takes at once: a window; what a slow one holds up is no more."""
HELPER_MS: Final = 1_000
"""How long a helper may keep the last chunks before the owner is asked for them too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Helper:
    """A member that may have chunks of a film, and the handle by which it knows who asks for them."""

    peer: NodeId
    public_key: bytes
    hosts: tuple[str, ...]
    port: int
    handle: str


class Helpers(Protocol):
    """Who may help with one film; called from a thread of the transfer, every second."""

    @property
    def start(self) -> float:
        """Where in the film (0 to 1) the owner is asked first: elsewhere than others who fetch it now."""
        ...

    def look(self) -> Sequence[Helper]:
        """Those known now, best first."""
        ...


class Share(Protocol):
    """The chunks that one download is to bring."""

    def next(self, now_ms: int) -> int | None:
        """A chunk that is not there and that nobody else brings; None: there is none now."""
        ...

    def got(self, index: int) -> bool:
        """Notes that a chunk is there; False when it was there already."""
        ...

    @property
    def left(self) -> int:
        """How many it still waits for, asked for or not; 0: it is over."""
        ...

    @property
    def bytes_done(self) -> int:
        """Bytes of the whole that are there."""
        ...


class Alone:
    """All chunks of some spans, in order; `have` (a byte a chunk) is kept up to date."""

    def __init__(self, manifest: Manifest, spans: Spans, have: bytearray) -> None:
        self._manifest = manifest
        self._have = have
        # One at a time: a list of a large file's chunks would cost more than its window.
        self._fresh = chain.from_iterable(spans)
        self.left = sum(len(span) - have.count(1, span.start, span.stop) for span in spans)
        self.bytes_done = bytes_of(manifest, spans) - _bytes_left(manifest, spans, have, self.left)

    def next(self, now_ms: int) -> int | None:
        """The next one that is missing."""
        return next((index for index in self._fresh if not self._have[index]), None)

    def got(self, index: int) -> bool:
        """Each is brought once: whoever asks for it asks nobody else."""
        self._have[index] = 1
        self.left -= 1
        self.bytes_done += self._manifest.length(index)
        return True


def _bytes_left(manifest: Manifest, spans: Spans, have: bytearray, left: int) -> int:
    if not left:
        return 0
    short = manifest.chunk_bytes - manifest.length(manifest.chunks - 1)
    last_is_missing = spans[-1].stop == manifest.chunks and not have[-1]
    return left * manifest.chunk_bytes - last_is_missing * short


class Pool:
    """The missing chunks of a file that several sources bring, each in a thread."""

    def __init__(
        self,
        manifest: Manifest,
        spans: Spans,
        have: bytearray,
        start: float = 0.0,
        lock: AbstractContextManager[object] | None = None,
    ) -> None:
        """`lock` is held while a source takes or brings a chunk.

        `start` (0 to 1): where the owner is asked first, so that several receivers bring different
        parts and have something to give each other.
        """
        self._manifest = manifest
        self._have = have
        self._lock = lock or nullcontext()
        self._order = _from(spans, start)
        self._free = bytearray(manifest.chunks)
        for span in spans:
            for index in span:
                self._free[index] = not have[index]
        self._again: deque[int] = deque()
        self._helped: dict[int, int] = {}
        self.left = sum(have.count(0, span.start, span.stop) for span in spans)
        self.bytes_done = bytes_of(manifest, spans) - _bytes_left(manifest, spans, have, self.left)

    def got(self, index: int) -> bool:
        """Notes that a chunk is there; False when another source brought it first."""
        with self._lock:
            self._helped.pop(index, None)
            if self._have[index]:
                return False
            self._have[index] = 1
            self.left -= 1
            self.bytes_done += self._manifest.length(index)
            return True

    def is_there(self, index: int) -> bool:
        """Whether somebody brought it."""
        return bool(self._have[index])

    def next_of_owner(self, now_ms: int) -> int | None:
        """What is free, else what a helper has kept for too long."""
        with self._lock:
            while self._again:
                index = self._again.popleft()
                if not self._have[index]:
                    return index
            for index in self._order:
                if self._free[index]:
                    self._free[index] = 0
                    return index
            late = [i for i, since_ms in self._helped.items() if now_ms - since_ms >= HELPER_MS]
            for index in late:
                del self._helped[index]
                self._again.append(index)
            return self._again.popleft() if late else None

    def take(self, offered: Sequence[int], now_ms: int) -> tuple[int, ...]:
        """Free chunks that a helper says it has (a byte a chunk, not 0); they are its own now."""
        with self._lock:
            found: list[int] = []
            for index in self._candidates(offered):
                self._free[index] = 0
                self._helped[index] = now_ms
                found.append(index)
                if len(found) == OFFERED_MAX:
                    break
            return tuple(found)

    def _candidates(self, offered: Sequence[int]) -> Iterator[int]:
        at = self._free.find(1)
        while at >= 0:
            if at < len(offered) and offered[at]:
                yield at
            at = self._free.find(1, at + 1)

    def give_back(self, indexes: Sequence[int]) -> None:
        """What a helper did not bring: the owner is asked for it next."""
        with self._lock:
            for index in indexes:
                if self._helped.pop(index, None) is not None and not self._have[index]:
                    self._again.append(index)


def _from(spans: Spans, start: float) -> Iterator[int]:
    """All chunks in order, beginning at a part of them."""
    skip = int(sum(map(len, spans)) * start)
    later: list[range] = []
    sooner: list[range] = []
    for span in spans:
        cut = min(len(span), skip)
        sooner.append(span[:cut])
        later.append(span[cut:])
        skip -= cut
    return chain.from_iterable([*later, *sooner])


class OwnersShare:
    """Whatever of a pool nobody else brings, until all is there."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.next = pool.next_of_owner
        self.got = pool.got

    @property
    def left(self) -> int:
        """All that is missing, whoever brings it."""
        return self._pool.left

    @property
    def bytes_done(self) -> int:
        """From all sources."""
        return self._pool.bytes_done


class HelpersShare:
    """Some chunks that a helper has."""

    def __init__(self, pool: Pool, indexes: Sequence[int]) -> None:
        self._pool = pool
        self._indexes = indexes
        self._fresh = iter(indexes)
        self.got = pool.got

    def next(self, now_ms: int) -> int | None:
        """The next one."""
        return next((index for index in self._fresh if not self._pool.is_there(index)), None)

    @property
    def left(self) -> int:
        """Those that nobody brought yet."""
        return sum(not self._pool.is_there(index) for index in self._indexes)

    @property
    def bytes_done(self) -> int:
        """From all sources."""
        return self._pool.bytes_done
