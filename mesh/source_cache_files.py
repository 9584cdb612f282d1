"""Films, or parts of them, that were fetched once and may be needed again: the next attempt, profile or chunk.

A cached film is a partial file that stays (`mesh.transfer_files`): what lies there is judged again
each time it is used, and what is missing of it is fetched.  An attempt works on a hard link of its
own, so that nothing is taken away under it.
"""

import contextlib
import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mesh.destination_files import as_storage
from mesh.transfer_files import JOURNAL_SUFFIX, free_bytes, require_space

BUSY_MS: Final = 60_000
"""What was written or used within a minute may be a film that is being fetched."""
_NO_LINKS: Final = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_BLOCK_BYTES: Final = 512
"""What `st_blocks` counts in, on every system."""


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
