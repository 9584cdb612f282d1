"""Films, or parts of them, that were fetched once and may be needed again: the next attempt, profile or chunk.

A cached film is a partial file that stays (`mesh.transfer_files`): what lies there is judged again
each time it is used, and what is missing of it is fetched.  An attempt works on a hard link of its
own, so that nothing is taken away under it.
"""

import contextlib
import errno
import os
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Final

from mesh.at_files import read_at
from mesh.destination_files import as_storage
from mesh.digests import DIGEST_BYTES, chunk_digest
from mesh.errors import NotFoundError, SourceChangedError
from mesh.transfer import HAVE_CHUNKS_MAX, Manifest
from mesh.transfer_files import (
    ABSENT,
    JOURNAL_SUFFIX,
    TABLE_AT,
    free_bytes,
    is_journal_of,
    require_space,
)
from mesh.walk_files import BINARY, CLOEXEC, NOFOLLOW

BUSY_MS: Final = 60_000
"""What was written or used within a minute may be a film that is being fetched."""
_NO_LINKS: Final = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_BLOCK_BYTES: Final = 512
"""What `st_blocks` counts in, on every system."""


class CachedSource:
    """`Source` of a film that was fetched, or is being fetched: what its journal names can be read.

    It is not judged again here: whoever gets it has the owner's table, and judges.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Raises `NotFoundError` when nothing of this film is here."""
        self.manifest = manifest
        self._files = contextlib.ExitStack()
        try:
            self._fd = self._opened(path)
            self._journal = self._opened(path.with_name(path.name + JOURNAL_SUFFIX))
            if not is_journal_of(self._journal, manifest):
                raise FileNotFoundError
        except OSError:
            self._files.close()
            raise NotFoundError("this film is not in the cache", "ask its owner") from None

    def _opened(self, path: Path) -> int:
        fd = os.open(path, os.O_RDONLY | BINARY | NOFOLLOW | CLOEXEC)
        self._files.callback(os.close, fd)
        return fd

    def read(
        self, offset: int, length: int, *, check: bool = False, at_once: bool = False
    ) -> tuple[bytes, bytes]:
        """A chunk that is there, and what it was when it came; `check`: and is.

        Raises `NotFoundError`, `SourceChangedError`, `StorageError`.
        """
        index, rest = divmod(offset, self.manifest.chunk_bytes)
        with as_storage("read", "the cache"):
            noted = read_at(self._journal, DIGEST_BYTES, TABLE_AT + index * DIGEST_BYTES)
            if rest or length != self.manifest.length(index) or noted in (b"", ABSENT):
                raise NotFoundError("this part of the film is not in the cache", "ask its owner")
            data = read_at(self._fd, length, offset)
        if len(data) != length or (check and chunk_digest(data) != noted):
            raise SourceChangedError("the cache holds a damaged film", "check this node's disk")
        return data, noted

    def digests(self, first: int, count: int) -> bytes:
        """None: they are the owner's to tell."""
        raise NotFoundError("a cache tells no digests", "ask the owner of the film")

    def there(self) -> bytes:
        """The chunks that the journal names."""
        if self.manifest.chunks > HAVE_CHUNKS_MAX:
            raise NotFoundError("the film is too large to be shared", "ask its owner")
        with as_storage("read", "the cache"):
            table = read_at(self._journal, self.manifest.chunks * DIGEST_BYTES, TABLE_AT)
        # Of four bytes one is not 0, but for one chunk in four billion; and all at once.
        columns = (int.from_bytes(table[at::DIGEST_BYTES]) for at in range(4))
        return reduce(or_, columns).to_bytes(len(table) // DIGEST_BYTES)

    def close(self) -> None:
        """Closes the files."""
        self._files.close()


@dataclass(frozen=True, slots=True)
class _Cached:
    used_ns: int
    path: Path
    size: int
    """On the disk: parts that were never fetched take no room."""


class SourceCache:
    """A folder of fetched films, bounded in bytes and in age; used from threads, one a film."""

    def __init__(self, folder: Path, *, bytes_max: int, age_max_ms: int) -> None:
        """`bytes_max` 0: nothing is kept longer than it is needed."""
        self._folder = folder
        self._bytes_max = bytes_max
        self._age_max_ms = age_max_ms
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """Where the film of this name is put together."""
        return self._folder / name

    def source(self, name: str, manifest: Manifest) -> CachedSource:
        """What is here of a film.  Raises `NotFoundError`."""
        return CachedSource(self.path(name), manifest)

    def make_room(self, wanted_bytes: int, keep: Path) -> None:
        """Removes what was unused longest until the film `keep` may grow to so many bytes.

        The disk needs as much again for the result.  Raises `DiskFullError` when it has no room
        even so.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        cached = sorted(self._cached(), key=lambda one: one.used_ns)
        there = sum(one.size for one in cached if one.path == keep)
        needed = max(0, wanted_bytes - there) + wanted_bytes
        others = sum(one.size for one in cached) - there
        for one in cached:
            fits = others + max(wanted_bytes, there) <= self._bytes_max
            if fits and free_bytes(self._folder) >= needed:
                return
            if one.path != keep:
                self._remove(one.path)
                others -= one.size
        require_space(self._folder, needed)

    def lend(self, path: Path, to: Path) -> None:
        """Gives an attempt the film under a name of its own; one that may not stay is given away."""
        with as_storage("link", str(to)):
            to.unlink(missing_ok=True)
            try:
                to.hardlink_to(path)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                path.replace(to)
            else:
                os.utime(path)
            if self._bytes_max == 0 or not path.exists():
                self._remove(path)  # and the journal of what was given away

    def sweep(self, now_wall_ms: int) -> None:
        """Removes what nobody used for too long or has no place, and journals without a film."""
        with contextlib.suppress(FileNotFoundError):
            room = self._bytes_max
            for one in sorted(self._cached(), key=lambda one: -one.used_ns):
                room -= one.size
                resting_ms = now_wall_ms - one.used_ns // 1_000_000
                if resting_ms > self._age_max_ms or (room < 0 and resting_ms > BUSY_MS):
                    self._remove(one.path)
            for journal in self._folder.glob(f"*{JOURNAL_SUFFIX}"):
                if not journal.with_name(journal.name.removesuffix(JOURNAL_SUFFIX)).exists():
                    journal.unlink(missing_ok=True)

    def _cached(self) -> list[_Cached]:
        found: list[_Cached] = []
        for path in self._folder.iterdir():
            if path.name.endswith(JOURNAL_SUFFIX):
                continue
            with contextlib.suppress(FileNotFoundError):
                facts = path.lstat()
                blocks = getattr(facts, "st_blocks", None)  # Windows tells none
                size = facts.st_size if blocks is None else blocks * _BLOCK_BYTES
                found.append(_Cached(facts.st_mtime_ns, path, size))
        return found

    @staticmethod
    def _remove(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.with_name(path.name + JOURNAL_SUFFIX).unlink(missing_ok=True)
