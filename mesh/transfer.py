"""How a file goes from one member to another: manifest, window, resume, verification.  No sockets, no files.

The receiver asks and the sender answers, so a slow disk or link pushes back by itself.  A chunk
counts once its digest was checked, the file once the manifest's digest was.  mesh.transfer_files
does this on disk, mesh.bulk_zmq over the network.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from mesh import errors
from mesh.codec import Vocabulary, value
from mesh.errors import TransferError, WireError
from mesh.ids import NodeId
from mesh.transport import BULK_HEADER_BYTES_MAX, CHUNK_BYTES

BULK = Vocabulary("bulk")

DIGEST_BYTES: Final = 32
"""BLAKE3's own length."""
FILE_BYTES_MAX: Final = 4 << 40
"""4 TiB: bounds the table of chunks that a peer's manifest can make this node hold (4 MiB)."""
HANDLE_CHARS_MAX: Final = 512
WINDOW_BYTES_MIN: Final = 4 << 20
WINDOW_BYTES_MAX: Final = 16 << 20
"""Below 4 MiB a fast link idles, above 16 MiB nothing is gained (measured)."""
ASK_AGAIN_MIN_MS: Final = 3_000
"""Silence after which chunks are asked for again; longer where chunks take longer."""
ASK_AGAIN_CHUNKS: Final = 4
"""Or the time that so many chunks took lately."""
GIVE_UP_MS: Final = 30_000
"""Silence after which a transfer fails and the task may go elsewhere."""
CHUNK_TRIES_MAX: Final = 4
"""A chunk whose digest is wrong so often will not become right."""

assert WINDOW_BYTES_MIN % CHUNK_BYTES == WINDOW_BYTES_MAX % CHUNK_BYTES == 0
assert ASK_AGAIN_MIN_MS * 3 < GIVE_UP_MS
assert HANDLE_CHARS_MAX * 4 < BULK_HEADER_BYTES_MAX


# --- what is said -------------------------------------------------------------------------------


@value
@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A file as it was when its owner digested it.

    `digest` is BLAKE3 of the whole in hexadecimal; `mtime_ns` and `inode` are the source's, for its
    owner to notice a change, and mean nothing to others.
    """

    size: int
    digest: str
    mtime_ns: int = 0
    inode: int = 0
    chunk_bytes: int = CHUNK_BYTES

    def same_content(self, other: "Manifest") -> bool:
        """Whether both describe the same bytes."""
        return (self.size, self.digest) == (other.size, other.digest)

    @property
    def chunks(self) -> int:
        """How many chunks the file has; the last one may be short."""
        return -(-self.size // self.chunk_bytes)

    def length(self, index: int) -> int:
        """Bytes of the chunk of this index."""
        return min(self.chunk_bytes, self.size - index * self.chunk_bytes)


def kept_inode(st_ino: int) -> int:
    """An inode number as manifests and the ledger keep it: 63 bits of it, SQLite's integers have a sign.

    Network file systems and ReFS use all 64.
    """
    return st_ino & ((1 << 63) - 1)


def checked(manifest: Manifest) -> Manifest:
    """The manifest of another node, if it makes sense.  Raises `WireError`."""
    digest_fits = len(manifest.digest) == 2 * DIGEST_BYTES and all(
        char in "0123456789abcdef" for char in manifest.digest
    )
    chunk_fits = manifest.chunk_bytes == CHUNK_BYTES
    if not 0 <= manifest.size <= FILE_BYTES_MAX or not chunk_fits or not digest_fits:
        raise WireError("bulk: a manifest that makes no sense")
    return manifest


@BULK.kind("manifest_request")
@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestRequest:
    """Asks what is behind this handle."""

    handle: str


@BULK.kind("manifest")
@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestAnswer:
    """The file behind the handle."""

    manifest: Manifest


@BULK.kind("chunk_request")
@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRequest:
    """Asks for these bytes of the file behind the handle."""

    handle: str
    offset: int
    length: int


@BULK.kind("chunk")
@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkAnswer:
    """Head of a chunk; its bytes follow as a raw frame.  `digest` is their BLAKE3."""

    offset: int
    digest: bytes


@BULK.kind("refusal")
@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The answer is no: an error with its stable code."""

    code: str
    what: str
    todo: str = ""


BulkMessage = ManifestRequest | ManifestAnswer | ChunkRequest | ChunkAnswer | Refusal

_REFUSALS: Final[dict[str, type[errors.DarkStreamError]]] = {
    cls.code: cls
    for cls in (
        errors.NotAllowedError,
        errors.NotFoundError,
        errors.SourceChangedError,
        errors.BusyError,
    )
}


def error_of(refusal: Refusal) -> errors.DarkStreamError:
    """The error that another node's refusal means here."""
    text = refusal.what[:1_024]
    return _REFUSALS.get(refusal.code, TransferError)(text, refusal.todo[:1_024])


# --- ports --------------------------------------------------------------------------------------


class Source(Protocol):
    """A file that is open for reading by one transfer."""

    @property
    def manifest(self) -> Manifest:
        """What the file was when it was digested."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes.  Raises `SourceChangedError` when the file is not what it was."""
        ...

    def close(self) -> None:
        """Gives the file back."""
        ...


SourceFor = Callable[[NodeId, str], Source]
"""(peer, handle) → the file that the owner of the handle lets this peer have.

Raises `NotAllowedError` for a handle that is unknown or not this peer's; called in the thread that
serves everybody, so it answers from memory, and again every few seconds of a transfer.
"""


class Target(Protocol):
    """Where a file is put together; used by one transfer, in its thread."""

    def begin(self, manifest: Manifest) -> bytearray:
        """Makes room; one byte a chunk, 1 for those that are there already, verified.

        Raises `DiskFullError`, `StorageError`.
        """
        ...

    def write(self, index: int, data: memoryview, digest: bytes) -> None:
        """Puts a verified chunk into its place.  Raises `DiskFullError`, `StorageError`."""
        ...

    def finish(self) -> None:
        """Verifies the whole and makes it durable.

        Raises `TransferError` (and forgets everything) when the digest is not the manifest's.
        """
        ...

    def close(self) -> None:
        """Lets go; what was written stays for a resume."""
        ...


# --- the receiver's core ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask for this chunk now."""

    index: int
    offset: int
    length: int


Verdict = Literal["write", "ignore", "bad"]


class Download:
    """Which chunks are there, on their way, or to be asked for; every method takes the time.

    `receive` judges an arrival, `tick` says what to ask for, `lost` forgets what was on its way.
    """

    def __init__(self, manifest: Manifest, have: bytearray, now_ms: int) -> None:
        assert len(have) == manifest.chunks, (len(have), manifest.chunks)
        self.manifest = manifest
        self.window_bytes = WINDOW_BYTES_MIN
        self.asked_again = 0
        self._have = have
        self._missing = deque(index for index, flag in enumerate(have) if not flag)
        self._in_flight: dict[int, int] = {}
        self._bad: dict[int, int] = {}
        self._chunk_ms = 0
        self._arrived_ms = now_ms
        self._progress_ms = now_ms
        self._in_window = 0
        self.bytes_done = sum(manifest.length(i) for i, flag in enumerate(have) if flag)

    @property
    def done(self) -> bool:
        """Whether every chunk is there."""
        return not self._missing and not self._in_flight

    @property
    def in_flight(self) -> int:
        """Chunks on their way."""
        return len(self._in_flight)

    def receive(self, offset: int, length: int, intact: bool, now_ms: int) -> Verdict:
        """Judges a chunk that arrived; `intact`: its digest is right.

        Raises `TransferError` when the same chunk was wrong too often.
        """
        index, rest = divmod(offset, self.manifest.chunk_bytes)
        asked_ms = self._in_flight.get(index) if rest == 0 else None
        if asked_ms is None:
            return "ignore"
        self._arrived_ms = now_ms
        del self._in_flight[index]
        if not intact or length != self.manifest.length(index):
            return self._wrong(index)
        self._have[index] = 1
        self.bytes_done += length
        self._progress_ms = now_ms
        self._widen(now_ms - asked_ms)
        return "write"

    def tick(self, now_ms: int) -> tuple[Ask, ...]:
        """The chunks to ask for now.  Raises `TransferError` after too long a silence."""
        if now_ms - self._progress_ms > GIVE_UP_MS:
            seconds = GIVE_UP_MS // 1000
            raise TransferError(f"no chunk arrived for {seconds} s", "check the link and the disk")
        if self._in_flight and now_ms - self._arrived_ms > self._patience_ms():
            self.asked_again += len(self._in_flight)
            self.lost(now_ms)
        asks: list[Ask] = []
        slots = self.window_bytes // self.manifest.chunk_bytes
        while self._missing and len(self._in_flight) < slots:
            index = self._missing.popleft()
            self._in_flight[index] = now_ms
            size = self.manifest.chunk_bytes
            asks.append(Ask(index, index * size, self.manifest.length(index)))
        return tuple(asks)

    def lost(self, now_ms: int) -> None:
        """The connection is gone or silent: what was on its way is missing again."""
        self._missing.extendleft(sorted(self._in_flight, reverse=True))
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
        self._missing.appendleft(index)
        return "bad"

    def _widen(self, took_ms: int) -> None:
        # A chunk's time includes its wait behind the window before it: divided, it is a rate.
        alone_ms = took_ms // (len(self._in_flight) + 1)
        self._chunk_ms = (3 * self._chunk_ms + alone_ms) // 4
        self._in_window += self.manifest.chunk_bytes
        if self._in_window >= self.window_bytes and self._chunk_ms * 16 < ASK_AGAIN_MIN_MS:
            self.window_bytes = min(self.window_bytes * 2, WINDOW_BYTES_MAX)
            self._in_window = 0
