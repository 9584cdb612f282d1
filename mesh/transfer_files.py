"""Chunks on disk: sources that are checked at every read, partial files that survive a crash.

A partial file lies beside a journal that names each written chunk with its digest.  After a crash
what the journal names is read and digested again, so neither file needs a sync on the way: what a
power loss took does not match and is fetched again.
"""

import contextlib
import errno
import os
import shutil
import stat
import struct
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Final

from blake3 import blake3

from mesh import codec
from mesh.destination_files import BINARY, CLOEXEC, NOFOLLOW, as_storage, sync_folder
from mesh.errors import (
    DiskFullError,
    SourceChangedError,
    StoppedError,
    TransferError,
    WireError,
)
from mesh.transfer import DIGEST_BYTES, Manifest, kept_inode
from mesh.transport import CHUNK_BYTES

JOURNAL_SUFFIX: Final = ".journal"
PARTIAL_SUFFIX: Final = ".part"
_JOURNAL_MAGIC: Final = b"DSJ1"
_HEAD: Final = struct.Struct("<4sI")
_RECORD: Final = struct.Struct(f"<I{DIGEST_BYTES}s")
_HEAD_BYTES_MAX: Final = 4_096

OnProgress = Callable[[int], None]
ShouldStop = Callable[[], bool]


def never() -> bool:
    """For work that nobody wants to stop."""
    return False


def _silent(_: int) -> None:
    pass


# --- sources ------------------------------------------------------------------------------------


def digest_file(
    path: Path, on_progress: OnProgress = _silent, should_stop: ShouldStop = never
) -> str:
    """BLAKE3 of a file in hexadecimal; tells the bytes read so far.

    Raises `StoppedError` when asked to, OSError when the file cannot be read.
    """
    digest = blake3()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    done = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            if should_stop():
                raise StoppedError(f"digesting {path.name} was stopped")
            digest.update(buffer[:count])
            done += count
            on_progress(done)
    return digest.hexdigest()


def make_manifest(
    path: Path, on_progress: OnProgress = _silent, should_stop: ShouldStop = never
) -> Manifest:
    """Digests a source.  Raises `SourceChangedError` when it changes meanwhile or is no file."""
    before = _facts(path)
    with _as_source(path):
        digest = digest_file(path, on_progress, should_stop)
    if _facts(path) != before:
        raise _changed(path, "changed while it was read")
    size, mtime_ns, inode = before
    return Manifest(size=size, digest=digest, mtime_ns=mtime_ns, inode=inode)


def is_unchanged(path: Path, manifest: Manifest) -> bool:
    """Whether size, time and inode are still those of the manifest."""
    try:
        return _facts(path) == (manifest.size, manifest.mtime_ns, manifest.inode)
    except SourceChangedError:
        return False


class FileSource:
    """`Source` that reads a file and notices when it is not what was digested."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Opens it.  Raises `SourceChangedError` when it is not the file of the manifest."""
        self._path = path
        self.manifest = manifest
        self._check()
        with _as_source(path):
            self._fd = os.open(path, os.O_RDONLY | BINARY | NOFOLLOW | CLOEXEC)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes of the unchanged file."""
        self._check()
        with _as_source(self._path):
            # Never mmap: a file that shrinks would end the process with SIGBUS.
            data = read_at(self._fd, length, offset)
        if len(data) != length:
            raise _changed(self._path, "became shorter while it was read")
        return data

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)

    def _check(self) -> None:
        facts = (self.manifest.size, self.manifest.mtime_ns, self.manifest.inode)
        if _facts(self._path) != facts:
            raise _changed(self._path, "changed since it was digested")


def _facts(path: Path) -> tuple[int, int, int]:
    with _as_source(path):
        found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise _changed(path, "is no file any more")
    return found.st_size, found.st_mtime_ns, kept_inode(found.st_ino)


@contextlib.contextmanager
def _as_source(path: Path) -> Generator[None]:
    try:
        yield
    except FileNotFoundError:
        raise _changed(path, "is gone") from None
    except OSError as error:
        raise SourceChangedError(
            f"{path.name} cannot be read any more: {error.strerror}", "check disk and permissions"
        ) from error


def _changed(path: Path, how: str) -> SourceChangedError:
    return SourceChangedError(
        f"{path.name} {how}", "wait until nothing writes it any more, then retry the job"
    )


def read_at(fd: int, length: int, offset: int) -> bytes:
    """Bytes from a place in an open file; fewer only at its end."""
    if sys.platform == "win32":
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, length)
    else:  # noqa: RET505 - the checkers read a platform's branch as a whole
        return os.pread(fd, length, offset)


def _write_at(fd: int, data: memoryview, offset: int) -> None:
    if sys.platform == "win32":
        os.lseek(fd, offset, os.SEEK_SET)
    while data:
        if sys.platform != "win32":
            count = os.pwrite(fd, data, offset)
        else:
            count = os.write(fd, data)
        data, offset = data[count:], offset + count


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
    """`Target` on disk: a preallocated file and its journal; one owner at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._journal_path = path.with_name(path.name + JOURNAL_SUFFIX)
        self._fd = -1
        self._journal = -1
        self._manifest = Manifest(size=0, digest="")

    @property
    def path(self) -> Path:
        """Where the file is put together; the whole one stays here until it is published."""
        return self._path

    def begin(self, manifest: Manifest) -> bytearray:
        """Goes on with what an earlier try left, else makes room for all of it."""
        self._manifest = manifest
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with as_storage("prepare", str(self._path)):
            have = self._resumed(manifest)
            if have is None:
                self._create(manifest)
                have = bytearray(manifest.chunks)
        return have

    def write(self, index: int, data: memoryview, digest: bytes) -> None:
        """Puts a chunk into its place and notes it."""
        with as_storage("write", str(self._path)):
            _write_at(self._fd, data, index * self._manifest.chunk_bytes)
            os.write(self._journal, _RECORD.pack(index, digest))

    def finish(self) -> None:
        """Reads the whole back, compares, syncs file and folder."""
        with as_storage("verify", str(self._path)):
            whole = digest_file(self._path) == self._manifest.digest
            if whole:
                os.fsync(self._fd)
        self.close()
        if not whole:
            self.discard()
            raise TransferError(
                f"{self._path.name} does not have the digest it should have",
                "the source changed unnoticed, or memory or disk is bad; try again",
            )
        with as_storage("sync", str(self._path)):
            self._journal_path.unlink(missing_ok=True)
            sync_folder(self._path.parent)

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

    def _create(self, manifest: Manifest) -> None:
        self.discard()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | BINARY | NOFOLLOW | CLOEXEC
        self._fd = os.open(self._path, flags, 0o600)
        try:
            # A full disk is noticed here, before a byte travels.
            require_space(self._path.parent, manifest.size)
            _allocate(self._fd, manifest.size)
            self._journal = os.open(self._journal_path, flags | os.O_APPEND, 0o600)
            head = codec.pack((manifest.size, manifest.digest, manifest.chunk_bytes))
            os.write(self._journal, _HEAD.pack(_JOURNAL_MAGIC, len(head)) + head)
        except BaseException:
            self.discard()
            raise

    def _resumed(self, manifest: Manifest) -> bytearray | None:
        try:
            flags = os.O_RDWR | BINARY | NOFOLLOW | CLOEXEC
            self._fd = os.open(self._path, flags)
            self._journal = os.open(self._journal_path, flags | os.O_APPEND)
        except FileNotFoundError:
            self.close()
            return None
        noted = _noted(self._journal, manifest)
        if noted is None or os.fstat(self._fd).st_size != manifest.size:
            self.close()
            return None
        have = bytearray(manifest.chunks)
        for index, digest in noted.items():
            data = read_at(self._fd, manifest.length(index), index * manifest.chunk_bytes)
            have[index] = blake3(data).digest() == digest
        return have


def _noted(journal: int, manifest: Manifest) -> dict[int, bytes] | None:
    """The chunks that a journal names, by index; None when it is another file's or damaged."""
    os.lseek(journal, 0, os.SEEK_SET)
    with open(journal, "rb", closefd=False) as file:
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return None
        magic, length = _HEAD.unpack(head)
        if magic != _JOURNAL_MAGIC or length > _HEAD_BYTES_MAX:
            return None
        try:
            facts = codec.unpack(file.read(length))
        except WireError:
            return None
        if facts != (manifest.size, manifest.digest, manifest.chunk_bytes):
            return None
        noted: dict[int, bytes] = {}
        # A record torn by a crash is no record; a wrong one fails against the chunk itself.
        while len(record := file.read(_RECORD.size)) == _RECORD.size:
            index, digest = _RECORD.unpack(record)
            if index < manifest.chunks:
                noted[index] = digest
    return noted


def _allocate(fd: int, size: int) -> None:
    if sys.platform == "linux" and size:
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:
                raise
        else:
            return
    os.ftruncate(fd, size)


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
