"""The receiver's core: which chunks to ask for and when.  No sockets, no files, no clock."""

from collections import deque
from dataclasses import dataclass
from typing import Final, Literal

from mesh.errors import TransferError
from mesh.shares import Alone, Share
from mesh.transfer import Manifest, Spans, bytes_of
from mesh.transport import WINDOW_BYTES_MAX, WINDOW_BYTES_MIN

ASK_AGAIN_MIN_MS: Final = 3_000
"""Silence after which chunks are asked for again; longer where chunks take longer."""
ASK_AGAIN_CHUNKS: Final = 4
"""Or the time that so many chunks took lately."""
GIVE_UP_MS: Final = 30_000
"""Silence after which a transfer fails and the task may go elsewhere."""
CHUNK_TRIES_MAX: Final = 4
"""A chunk whose digest is wrong so often will not become right."""

assert ASK_AGAIN_MIN_MS * 3 < GIVE_UP_MS


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask for this chunk now."""

    index: int
    offset: int
    length: int
    check: bool = False
    """It came damaged before: its sender should look whether that is its own doing."""


Verdict = Literal["write", "ignore", "bad"]


class Download:
    """Which chunks are there, on their way, or to be asked for; every method takes the time.

    `receive` judges an arrival, `tick` notices silence, `ask` names what to ask for next, and `lost`
    forgets what was on its way.
    """

    def __init__(
        self,
        manifest: Manifest,
        spans: Spans,
        have: bytearray,
        now_ms: int,
        share: Share | None = None,
    ) -> None:
        """`have` holds a byte a chunk, 1 for those of `spans` that are there; it is kept up to date.

        `share`: which of them it brings, where others bring some too.
        """
        assert len(have) == manifest.chunks, (len(have), manifest.chunks)
        self.manifest = manifest
        self.window_bytes = WINDOW_BYTES_MIN
        self.asked_again = 0
        self.bytes_total = bytes_of(manifest, spans)
        self.bytes_brought = 0
        """What came through this download."""
        self._have = have
        self._share = share or Alone(manifest, spans, have)
        self._again: deque[int] = deque()
        self._in_flight: dict[int, int] = {}
        self._bad: dict[int, int] = {}
        self._chunk_ms = 0
        self._arrived_ms = now_ms
        self._progress_ms = now_ms
        self._in_window = 0
        self._fills = True

    @property
    def bytes_done(self) -> int:
        """Bytes that are there, whoever brought them."""
        return self._share.bytes_done

    @property
    def done(self) -> bool:
        """Whether every chunk is there."""
        return self._share.left == 0

    @property
    def in_flight(self) -> int:
        """Chunks on their way."""
        return len(self._in_flight)

    def receive(self, offset: int, length: int, intact: bool, now_ms: int) -> Verdict:
        """Judges a chunk that arrived; `intact`: its digest is right.

        Raises `TransferError` when the same chunk was wrong too often.
        """
        index, rest = divmod(offset, self.manifest.chunk_bytes)
        asked_ms = self._in_flight.pop(index, None) if rest == 0 else None
        # One that was given up and comes after all is as good, once.
        if asked_ms is None and (rest or index not in self._again or self._have[index]):
            return "ignore"
        self._arrived_ms = now_ms
        self.window_bytes = max(self.window_bytes, WINDOW_BYTES_MIN)
        if not intact or length != self.manifest.length(index):
            return self._wrong(index)
        self._progress_ms = now_ms
        if asked_ms is not None:
            self._widen(now_ms - asked_ms)
        if not self._share.got(index):
            return "ignore"  # another source was faster
        self.bytes_brought += length
        return "write"

    def tick(self, now_ms: int) -> None:
        """Notices silence: asks again, or raises `TransferError` when it was too long."""
        if now_ms - self._progress_ms > GIVE_UP_MS:
            seconds = GIVE_UP_MS // 1000
            raise TransferError(f"no chunk arrived for {seconds} s", "check the link and the disk")
        if self._in_flight and now_ms - self._arrived_ms > self._patience_ms():
            self.asked_again += len(self._in_flight)
            self.lost(now_ms)
            # One chunk asks whether anybody is there: a whole window would travel a third time when
            # what is asked here waits in a dead connection that comes back to life.
            self.window_bytes = self.manifest.chunk_bytes

    @property
    def may_ask(self) -> bool:
        """Whether the window has room, and something to ask for is left.

        Once it is full there is room again when a quarter of it came: asked together, chunks wake
        nobody one by one.
        """
        window = self.window_bytes // self.manifest.chunk_bytes
        flying = len(self._in_flight)
        room = window if self._fills else window - max(1, window // 4) + 1
        self._fills = flying < room
        return self._fills and self._share.left > flying

    def ask(self, now_ms: int) -> Ask | None:
        """The next chunk to ask for; it counts as on its way."""
        index = self._next(now_ms) if self.may_ask else None
        if index is None:
            return None
        self._in_flight[index] = now_ms
        offset, length = index * self.manifest.chunk_bytes, self.manifest.length(index)
        return Ask(index, offset, length, check=index in self._bad)

    def _next(self, now_ms: int) -> int | None:
        while self._again:
            index = self._again.popleft()
            if not self._have[index] and index not in self._in_flight:
                return index
        return self._share.next(now_ms)

    def alive(self, now_ms: int) -> None:
        """The sender says that it has not forgotten: its answers wait for their turn."""
        self._arrived_ms = self._progress_ms = now_ms

    def lost(self, now_ms: int) -> None:
        """The connection is gone or silent: what was on its way is missing again."""
        self._again.extendleft(sorted(self._in_flight, reverse=True))
        self._in_flight.clear()
        self.window_bytes = WINDOW_BYTES_MIN
        self._in_window = 0
        self._arrived_ms = now_ms

    def _patience_ms(self) -> int:
        return max(ASK_AGAIN_MIN_MS, ASK_AGAIN_CHUNKS * self._chunk_ms)

    def _wrong(self, index: int) -> Verdict:
        self._bad[index] = self._bad.get(index, 0) + 1
        if self._bad[index] >= CHUNK_TRIES_MAX:
            raise TransferError(
                f"chunk {index} arrived damaged {CHUNK_TRIES_MAX} times",
                "check memory and disk of the sending node",
            )
        if index not in self._again:
            self._again.appendleft(index)
        return "bad"

    def _widen(self, took_ms: int) -> None:
        # A chunk's time includes its wait behind the window before it: divided, it is a rate.
        alone_ms = took_ms // (len(self._in_flight) + 1)
        self._chunk_ms = (3 * self._chunk_ms + alone_ms) // 4
        self._in_window += self.manifest.chunk_bytes
        if self._in_window >= self.window_bytes and self._chunk_ms * 16 < ASK_AGAIN_MIN_MS:
            self.window_bytes = min(self.window_bytes * 2, WINDOW_BYTES_MAX)
            self._in_window = 0
