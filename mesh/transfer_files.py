"""Chunks on disk: sources that are checked at every read, partial files that survive a crash.

A partial file lies beside a journal that holds the digest of each written chunk in its place.  After
a crash what the journal names is read and digested again, so neither file needs a sync on the way:
what a power loss took does not match and is fetched again.
"""

import contextlib
import errno
import os
import shutil
import struct
from collections.abc import Callable, Generator
from io import FileIO
from itertools import chain
from pathlib import Path
from typing import Final

from mesh import codec
from mesh.allocate_files import allocate
from mesh.at_files import read_at, write_at
from mesh.destination_files import as_storage, sync_folder
from mesh.digests import DIGEST_BYTES, chunk_digest, file_digest
from mesh.errors import (
    DiskFullError,
    NotFoundError,
    PathError,
    SourceChangedError,
    StoppedError,
    TransferError,
    WireError,
)
from mesh.transfer import HAVE_CHUNKS_MAX, Manifest, Spans, bytes_of, kept_inode
from mesh.transport import CHUNK_BYTES
from mesh.walk_files import BINARY, CLOEXEC, NOFOLLOW, OpenFile, is_file

JOURNAL_SUFFIX: Final = ".journal"
PARTIAL_SUFFIX: Final = ".part"
_JOURNAL_MAGIC: Final = b"DSJ2"
_HEAD: Final = struct.Struct("<4sI")
TABLE_AT: Final = 128
"""Where the digests begin; what is before says whose they are."""
ABSENT: Final = bytes(DIGEST_BYTES)
_TABLE_PIECE_BYTES: Final = 1 << 20

OnProgress = Callable[[int], None]
ShouldStop = Callable[[], bool]


def never() -> bool:
    """For work that nobody wants to stop."""
    return False


def _silent(_: int) -> None:
    pass


# --- sources ------------------------------------------------------------------------------------


def digest_file(
    path: Path,
    on_progress: OnProgress = _silent,
    should_stop: ShouldStop = never,
) -> str:
    """The digest of a file (`mesh.digests`); tells the bytes read so far.

    Raises `StoppedError` when asked to, OSError when the file cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        return _digest(file, path.name, on_progress, should_stop, lambda _: None)


def _digest(
    file: FileIO,
    name: str,
    on_progress: OnProgress,
    should_stop: ShouldStop,
    on_digest: Callable[[bytes], object],
) -> str:
    buffer = memoryview(bytearray(CHUNK_BYTES))

    def tables() -> Generator[bytes]:
        done = 0
        while count := _filled(file, buffer):
            if should_stop():
                raise StoppedError(f"digesting {name} was stopped")
            digest = chunk_digest(buffer[:count])
            on_digest(digest)
            yield digest
            done += count
            on_progress(done)

    return file_digest(tables())


def _filled(file: FileIO, buffer: memoryview) -> int:
    # A read may end early (a network file system, a signal): chunks begin where all say they do.
    done = 0
    while done < len(buffer) and (count := file.readinto(buffer[done:])):
        done += count
    return done


def make_manifest(
    path: Path,
    on_progress: OnProgress = _silent,
    should_stop: ShouldStop = never,
    tables: Path | None = None,
    below: Path | None = None,
) -> Manifest:
    """Digests a source; keeps its chunks' digests in the folder `tables`, for `FileSource`.

    `below`: from this folder on no link is followed.  Raises `SourceChangedError` when it changes
    meanwhile or is no file, `StorageError` for the table.
    """
    digests = bytearray()
    with _as_source(path), contextlib.closing(OpenFile(path, below)) as opened:
        before = _facts(opened, path)
        with os.fdopen(opened.fd, "rb", buffering=0, closefd=False) as file:
            digest = _digest(file, path.name, on_progress, should_stop, digests.extend)
        if _facts(opened, path) != before:
            raise _changed(path, "changed while it was read")
    size, mtime_ns, inode = before
    if tables is not None:
        with as_storage("write", str(tables)):
            tables.mkdir(parents=True, exist_ok=True)
            made = tables / f"{digest}{PARTIAL_SUFFIX}"
            made.write_bytes(digests)
            made.replace(tables / digest)
    return Manifest(size=size, digest=digest, mtime_ns=mtime_ns, inode=inode)


def is_unchanged(path: Path, manifest: Manifest) -> bool:
    """Whether size, time and inode are still those of the manifest."""
    try:
        FileSource(path, manifest).close()
    except SourceChangedError:
        return False
    return True


class FileSource:
    """`Source` that reads a file and notices when it is not what was digested."""

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        table: Path | None = None,
        below: Path | None = None,
    ) -> None:
        """Opens it; with its `table` also a changed bit is noticed that left no trace.

        `below`: from this folder on no link is followed.  Raises `SourceChangedError` when it is not
        the file of the manifest.
        """
        self._path = path
        self.manifest = manifest
        with _as_source(path):
            self._file = OpenFile(path, below)
        self.descriptor = self._file.fd  # for a child that must read this very file
        try:
            self._check()
        except BaseException:
            self._file.close()
            raise
        self._table_path = table
        self._table = -1

    def read(
        self, offset: int, length: int, *, check: bool = False, at_once: bool = False
    ) -> tuple[bytes, bytes]:
        """Exactly these bytes of the unchanged file, and the digest that they should have.

        That is the table's, where there is one: the receiver judges, and only when it complains
        (`check`) they are digested here as well.
        """
        if not at_once:
            self._check()
        with _as_source(self._path):
            # Never mmap: a file that shrinks would end the process with SIGBUS.
            data = read_at(self._file.fd, length, offset)
        if len(data) != length:
            raise _changed(self._path, "became shorter while it was read")
        if at_once:
            return data, b""
        index, rest = divmod(offset, self.manifest.chunk_bytes)
        noted = b""
        if self._opened_table() >= 0 and not rest and length == self.manifest.length(index):
            noted = read_at(self._table, DIGEST_BYTES, index * DIGEST_BYTES)
        if noted and not check:
            return data, noted
        digest = chunk_digest(data)
        if noted and noted != digest:
            raise SourceChangedError(
                f"{self._path.name} reads differently at byte {offset} than when it was digested",
                "its disk or this node's memory is bad: check both, then submit it again",
            )
        return data, digest

    def digests(self, first: int, count: int) -> bytes:
        """Digests of chunks from the table; none from an empty stretch."""
        if self._opened_table() < 0:
            raise NotFoundError("no table of this film's digests is here", "it is made anew")
        left = max(0, min(count, self.manifest.chunks - first))
        return read_at(self._table, left * DIGEST_BYTES, first * DIGEST_BYTES)

    def there(self) -> bytes:
        """All of it."""
        return b"\1" * min(self.manifest.chunks, HAVE_CHUNKS_MAX)

    def _opened_table(self) -> int:
        # Judging it costs a small file as much as reading it: only when it is needed.
        path, self._table_path = self._table_path, None
        if path is not None:
            self._table = _open_table(path, self.manifest)
        return self._table

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._table >= 0:
            os.close(self._table)

    def _check(self) -> None:
        facts = (self.manifest.size, self.manifest.mtime_ns, self.manifest.inode)
        with _as_source(self._path):
            if _facts(self._file, self._path) != facts:
                raise _changed(self._path, "changed since it was digested")


def _open_table(path: Path, manifest: Manifest) -> int:
    """The open table, or -1 when there is none or another one: then the source does without."""
    try:
        fd = os.open(path, os.O_RDONLY | BINARY | NOFOLLOW | CLOEXEC)
    except OSError:
        return -1
    size = manifest.chunks * DIGEST_BYTES
    if os.fstat(fd).st_size == size:
        pieces = range(0, size, _TABLE_PIECE_BYTES)
        table = (read_at(fd, min(_TABLE_PIECE_BYTES, size - at), at) for at in pieces)
        if file_digest(table) == manifest.digest:
            return fd
    os.close(fd)
    return -1


def _facts(opened: OpenFile, path: Path) -> tuple[int, int, int]:
    """Size, time and inode, the same of the open file and of its name."""
    facts = [
        (found.st_size, found.st_mtime_ns, kept_inode(found.st_ino))
        for found in opened.facts()
        if is_file(found)
    ]
    if len(facts) != 2:
        raise _changed(path, "is no file any more")
    if facts[0] != facts[1]:
        raise _changed(path, "was replaced")
    return facts[0]


@contextlib.contextmanager
def _as_source(path: Path) -> Generator[None]:
    try:
        yield
    except FileNotFoundError:
        raise _changed(path, "is gone") from None
    except PathError:
        raise _changed(path, "is gone, or a link leads to it now") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _changed(path, "is a link now") from None
        raise SourceChangedError(
            f"{path.name} cannot be read any more: {error.strerror}", "check disk and permissions"
        ) from error


def _changed(path: Path, how: str) -> SourceChangedError:
    return SourceChangedError(
        f"{path.name} {how}", "wait until nothing writes it any more, then retry the job"
    )


# --- partial files ------------------------------------------------------------------------------


def free_bytes(folder: Path) -> int:
    """What an ordinary user may still write to the disk of this folder."""
    return shutil.disk_usage(folder).free


def require_space(folder: Path, wanted_bytes: int) -> None:
    """Raises `DiskFullError` when fewer bytes are free."""
    free = free_bytes(folder)
    if free < wanted_bytes:
        raise DiskFullError(
            f"{wanted_bytes:,} bytes are needed and {free:,} are free for {folder}",
            "free some space",
        )


class PartialFile:
    """`Target` on disk: a file with room for what was asked for, and its journal; one owner at a time.

    `stays`: the journal stays beside the whole file too, so that more ranges may be added, and what
    lies there is judged again before it is used (a cache).
    """

    def __init__(self, path: Path, *, stays: bool = False) -> None:
        self._path = path
        self._stays = stays
        self._fd = -1
        self._journal = -1
        self._manifest = Manifest(size=0, digest="")
        self._whole = False
        self._only = b""

    @property
    def _journal_path(self) -> Path:
        return self._path.with_name(self._path.name + JOURNAL_SUFFIX)

    @property
    def path(self) -> Path:
        """Where the file is put together; the whole one stays here until it is published."""
        return self._path

    def begin(self, manifest: Manifest, spans: Spans) -> bytearray:
        """Goes on with what an earlier try left, else makes room for all that is asked for."""
        self._manifest = manifest
        self._whole = spans == manifest.whole
        with as_storage("prepare", str(self._path)):
            have = None if self._is_one_chunk else self._resumed(manifest, spans)
            if have is None:
                self._create(manifest, spans)
                have = bytearray(manifest.chunks)
        return have

    @property
    def _is_one_chunk(self) -> bool:
        # Nothing to go on with: no journal, no room made before the only write.
        return self._manifest.chunks <= 1 and not self._stays

    def write(self, index: int, data: memoryview, digest: bytes) -> None:
        """Puts a chunk into its place and notes it."""
        with as_storage("write", str(self._path)):
            write_at(self._fd, data, index * self._manifest.chunk_bytes)
            if self._is_one_chunk:
                self._only = digest
            else:
                write_at(self._journal, memoryview(digest), TABLE_AT + index * DIGEST_BYTES)

    def finish(self, *, name_later: bool = False) -> None:
        """Compares the digest of all chunks' digests, where all are there; syncs file and folder."""
        with as_storage("verify", str(self._path)):
            right = not self._whole or file_digest(self._tables()) == self._manifest.digest
            if right:
                os.fsync(self._fd)
        self.close()
        if not right:
            self.discard()
            raise TransferError(
                f"{self._path.name} does not have the digest it should have",
                "the source changed unnoticed, or memory or disk is bad; try again",
            )
        with as_storage("sync", str(self._path)):
            if not self._stays and not self._is_one_chunk:
                self._journal_path.unlink(missing_ok=True)
        if not name_later:
            self.settle()

    @property
    def place(self) -> Path:
        """Its folder."""
        return self._path.parent

    def settle(self) -> None:
        """Syncs the folder."""
        with as_storage("sync", str(self.place)):
            sync_folder(self.place)

    def _tables(self) -> Generator[bytes]:
        if self._is_one_chunk:
            yield self._only
            return
        size = self._manifest.chunks * DIGEST_BYTES
        for start in range(0, size, _TABLE_PIECE_BYTES):
            piece = min(_TABLE_PIECE_BYTES, size - start)
            yield read_at(self._journal, piece, TABLE_AT + start)

    def close(self) -> None:
        """Closes both files; they stay."""
        for fd in (self._fd, self._journal):
            if fd >= 0:
                os.close(fd)
        self._fd = self._journal = -1

    def discard(self) -> None:
        """Removes both files."""
        self.close()
        for path in (self._path, self._journal_path):
            path.unlink(missing_ok=True)

    def _create(self, manifest: Manifest, spans: Spans) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | BINARY | NOFOLLOW | CLOEXEC
        try:
            self._fd = os.open(self._path, flags, 0o600)
        except (FileExistsError, FileNotFoundError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self.discard()
            self._fd = os.open(self._path, flags, 0o600)
        if self._is_one_chunk:
            return
        try:
            self._journal_path.unlink(missing_ok=True)
            self._make_room(spans)
            self._journal = os.open(self._journal_path, flags, 0o600)
            facts = codec.pack((manifest.size, manifest.digest, manifest.chunk_bytes))
            head = (_HEAD.pack(_JOURNAL_MAGIC, len(facts)) + facts).ljust(TABLE_AT, b"\0")
            assert len(head) == TABLE_AT, len(head)
            os.write(self._journal, head)
            os.ftruncate(self._journal, TABLE_AT + manifest.chunks * DIGEST_BYTES)
        except BaseException:
            self.discard()
            raise

    def _make_room(self, spans: Spans) -> None:
        # A full disk is noticed here, before a byte travels.
        require_space(self._path.parent, bytes_of(self._manifest, spans))
        os.ftruncate(self._fd, self._manifest.size)
        for span in spans:
            size = bytes_of(self._manifest, (span,))
            allocate(self._fd, span.start * self._manifest.chunk_bytes, size)

    def _resumed(self, manifest: Manifest, spans: Spans) -> bytearray | None:
        try:
            flags = os.O_RDWR | BINARY | NOFOLLOW | CLOEXEC
            self._fd = os.open(self._path, flags)
            self._journal = os.open(self._journal_path, flags)
        except FileNotFoundError:
            self.close()
            return None
        known = (
            is_journal_of(self._journal, manifest) and os.fstat(self._fd).st_size == manifest.size
        )
        if not known:
            self.close()
            return None
        have = bytearray(manifest.chunks)
        for index in chain.from_iterable(spans):
            noted = read_at(self._journal, DIGEST_BYTES, TABLE_AT + index * DIGEST_BYTES)
            if noted == ABSENT:
                continue
            data = read_at(self._fd, manifest.length(index), index * manifest.chunk_bytes)
            have[index] = chunk_digest(data) == noted
        self._make_room(_missing(spans, have))
        return have


def _missing(spans: Spans, have: bytearray) -> Spans:
    """The part of `spans` that is not there yet."""
    found: list[range] = []
    for index in chain.from_iterable(spans):
        if have[index]:
            continue
        if found and found[-1].stop == index:
            found[-1] = range(found[-1].start, index + 1)
        else:
            found.append(range(index, index + 1))
    return tuple(found)


def is_journal_of(journal: int, manifest: Manifest) -> bool:
    """Whether a journal is this file's and not damaged where it says so."""
    head = read_at(journal, TABLE_AT, 0)
    if len(head) < TABLE_AT:
        return False
    magic, length = _HEAD.unpack_from(head)
    if magic != _JOURNAL_MAGIC or length > TABLE_AT - _HEAD.size:
        return False
    try:
        facts = codec.unpack(head[_HEAD.size : _HEAD.size + length])
    except WireError:
        return False
    return bool(facts == (manifest.size, manifest.digest, manifest.chunk_bytes))


def remove_old_partials(folder: Path, before_wall_ms: int) -> int:
    """Removes partial files and journals that nothing has written since; how many."""
    removed = 0
    for path in sorted(folder.glob("*")):
        if not path.name.endswith((PARTIAL_SUFFIX, PARTIAL_SUFFIX + JOURNAL_SUFFIX)):
            continue
        with contextlib.suppress(FileNotFoundError):
            if path.lstat().st_mtime_ns // 1_000_000 < before_wall_ms:
                path.unlink()
                removed += 1
    return removed
