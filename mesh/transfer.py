"""How a file goes from one member to another: manifest, window, resume, verification.  No sockets, no files.

The receiver asks and the sender answers, so a slow disk or link pushes back by itself.  A chunk
counts once its digest was checked, the file once the manifest's digest was.  mesh.download is the
receiver's core, mesh.transfer_files does this on disk, mesh.bulk_server_zmq and mesh.bulk_client_zmq over the network.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from mesh import errors
from mesh.codec import Vocabulary, value
from mesh.digests import DIGEST_BYTES
from mesh.errors import TransferError, WireError
from mesh.ids import NodeId
from mesh.transport import BULK_HEADER_BYTES_MAX, CHUNK_BYTES

BULK = Vocabulary("bulk")

FILE_BYTES_MAX: Final = 4 << 40
"""4 TiB: bounds the table of chunks that a peer's manifest can make this node hold (4 MiB)."""
HANDLE_CHARS_MAX: Final = 512
DIGESTS_MAX: Final = CHUNK_BYTES // DIGEST_BYTES
"""Chunk digests in one answer: a frame like a chunk's, enough for 32 GiB."""
HAVE_CHUNKS_MAX: Final = CHUNK_BYTES
"""Chunks of which one answer tells whether they are there: of a TiB."""
BUNDLE_FILES_MAX: Final = 64
"""Small files in one answer: of 16 KiB they fill a chunk, and of smaller ones it saves enough."""
BUNDLE_HANDLE_CHARS_MAX: Final = 8_192
"""All handles of a bundle: they and the rest of its head fit a head."""

assert HANDLE_CHARS_MAX * 4 < BULK_HEADER_BYTES_MAX
assert BUNDLE_HANDLE_CHARS_MAX * 4 + BUNDLE_FILES_MAX * 16 < BULK_HEADER_BYTES_MAX


# --- what is said -------------------------------------------------------------------------------


@value
@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A file as it was when its owner digested it.

    `digest` is that of `mesh.digests`, in hexadecimal; `mtime_ns` and `inode` are the source's, for its
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

    @property
    def whole(self) -> "Spans":
        """All chunks."""
        return (range(self.chunks),) if self.size else ()


Spans = tuple[range, ...]
"""Indexes of chunks: ranges in order that neither touch nor overlap."""
ByteRange = tuple[int, int]
"""First byte, and the one after the last."""


def spans_of(manifest: Manifest, ranges: Sequence[ByteRange]) -> Spans:
    """The chunks that hold these bytes.  Raises `UsageError` for a range outside the file."""
    found: list[range] = []
    for start, end in sorted(ranges):
        if not 0 <= start <= end <= manifest.size:
            raise errors.UsageError(
                f"bytes {start} to {end} are outside a file of {manifest.size}", "plan it again"
            )
        if start == end:
            continue
        first, stop = start // manifest.chunk_bytes, -(-end // manifest.chunk_bytes)
        if found and first <= found[-1].stop:
            first, stop = found[-1].start, max(stop, found[-1].stop)
            del found[-1]
        found.append(range(first, stop))
    return tuple(found)


def bytes_of(manifest: Manifest, spans: Spans) -> int:
    """How many bytes these chunks have together."""
    return sum(
        min(span.stop * manifest.chunk_bytes, manifest.size) - span.start * manifest.chunk_bytes
        for span in spans
    )


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


@BULK.kind("digests_request")
@dataclass(frozen=True, slots=True, kw_only=True)
class DigestsRequest:
    """Asks for the digests of the chunks from this index on, as many as one answer holds."""

    handle: str
    first: int


@BULK.kind("digests")
@dataclass(frozen=True, slots=True, kw_only=True)
class DigestsAnswer:
    """Head of a piece of the table; the digests follow as a raw frame."""

    first: int


@BULK.kind("chunk_request")
@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRequest:
    """Asks for these bytes of the file behind the handle; `check`: they came damaged before.

    `zstd`: they may come compressed.
    """

    handle: str
    offset: int
    length: int
    check: bool = False
    zstd: bool = False


@BULK.kind("chunk")
@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkAnswer:
    """Head of a chunk; its bytes follow as a raw frame.  `digest` is the BLAKE3 they should have.

    `length` is 0, or how many bytes the frame becomes when it is decompressed.
    """

    offset: int
    digest: bytes
    length: int = 0


@BULK.kind("have_request")
@dataclass(frozen=True, slots=True, kw_only=True)
class HaveRequest:
    """Asks which chunks of the file behind the handle are there: it may still be on its way itself."""

    handle: str


@BULK.kind("have")
@dataclass(frozen=True, slots=True, kw_only=True)
class HaveAnswer:
    """A raw frame follows with a byte a chunk, not 0 for those that are there."""


@BULK.kind("bundle_request")
@dataclass(frozen=True, slots=True, kw_only=True)
class BundleRequest:
    """Asks for several small files, each whole; together they have a chunk's bytes at most."""

    number: int
    handles: tuple[str, ...]


@BULK.kind("bundle")
@dataclass(frozen=True, slots=True, kw_only=True)
class BundleAnswer:
    """Head of a bundle; the bytes of its files follow as one raw frame, in the order of the request.

    `lengths`: of each file that was asked for; -1 for one that is refused or too large.  Whoever asks
    for that one alone is told why.
    """

    number: int
    lengths: tuple[int, ...]


@BULK.kind("waiting")
@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What was asked for is not forgotten: this node sends no faster for now."""


@BULK.kind("refusal")
@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The answer is no: an error with its stable code."""

    code: str
    what: str
    todo: str = ""


BulkMessage = (
    ManifestRequest
    | ManifestAnswer
    | DigestsRequest
    | DigestsAnswer
    | ChunkRequest
    | ChunkAnswer
    | HaveRequest
    | HaveAnswer
    | BundleRequest
    | BundleAnswer
    | Waiting
    | Refusal
)

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

    def read(
        self, offset: int, length: int, *, check: bool = False, at_once: bool = False
    ) -> tuple[bytes, bytes]:
        """Exactly these bytes of one chunk, and the digest they should have; `check`: and have.

        `at_once`: it was opened for this alone, so it is not looked at again, and no digest is
        wanted.  Raises `SourceChangedError` when the file is not what it was when it was digested.
        """
        ...

    def digests(self, first: int, count: int) -> bytes:
        """Digests of so many chunks at most.  Raises `NotFoundError` without a table of them."""
        ...

    def there(self) -> bytes:
        """A byte a chunk, not 0 for those that can be read.  Raises `NotFoundError` where nobody can say."""
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

    def begin(self, manifest: Manifest, spans: Spans) -> bytearray:
        """Makes room for these chunks; one byte a chunk, 1 for those of them that are there, verified.

        Raises `DiskFullError`, `StorageError`.
        """
        ...

    def write(self, index: int, data: memoryview, digest: bytes) -> None:
        """Puts a verified chunk into its place.  Raises `DiskFullError`, `StorageError`."""
        ...

    def finish(self, *, name_later: bool = False) -> None:
        """Everything asked for is there: verifies the whole, if it is whole, and makes it durable.

        `name_later`: all but its name, for which `settle` is called.  Raises `TransferError` (and
        forgets everything) when the digest is not the manifest's.
        """
        ...

    @property
    def place(self) -> Hashable:
        """Targets of one place are settled together."""
        ...

    def settle(self) -> None:
        """Makes the names of all finished targets of this place durable.  Raises `StorageError`."""
        ...

    def close(self) -> None:
        """Lets go; what was written stays for a resume."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A file that is to be brought: what it must be, and where it is put together."""

    handle: str
    expected: Manifest
    target: Target
    claim: Callable[[], bool] = lambda: True
    """Called right before its target is touched: whether it still may be."""
    should_stop: Callable[[], bool] = lambda: False


NextFile = Callable[[], Wanted | None]
"""The next file that is wanted; None: none is now."""


@dataclass(frozen=True, slots=True)
class Brought:
    """What became of a file: `error` is None when it lies there, verified and durable."""

    wanted: Wanted
    error: errors.DarkStreamError | None = None
