"""A folder on disk: what lies in it, and a word when something changes."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final

import structlog
import watchfiles

from mesh.transfer import kept_inode
from node.work.watch_rules import Facts

DEPTH_MAX: Final = 64
CHANGES_MAX: Final = 1_000
"""Changed files that are looked at one by one; after more the whole folder is."""
GATHER_MS: Final = 500
"""Changes within so short a time are told at once: a copy makes hundreds."""
_UNREADABLE: Final = "Unable to decode path"
"""What watchfiles says of a name that is no UTF-8; another sentence ends the listening, not the node."""

_log = structlog.get_logger("owner")


class _UnreadableNameError(Exception):
    pass


class WatchedFolder:
    """One folder; blocking methods are for threads.  Links inside are never followed."""

    def __init__(self, folder: Path, take: Callable[[str], bool], min_bytes: int) -> None:
        """`take` judges a path below the folder, with slashes, by its name."""
        self._folder = folder
        self._take = take
        self._min_bytes = min_bytes

    def scan(self) -> Iterator[tuple[str, Facts]]:
        """Every file that is taken.  Raises `OSError` where the folder itself cannot be read."""
        yield from self._scan(self._folder, "", 0)

    def facts_of(self, name: str) -> Facts | None:
        """Of one file; None: it is not there, or is none to take."""
        path = self._folder / name
        try:
            found = path.lstat()
            inside = path.parent.resolve() == path.parent
        except OSError:
            return None
        return _facts(found, self._min_bytes) if inside and self._take(name) else None

    def _scan(self, folder: Path, below: str, depth: int) -> Iterator[tuple[str, Facts]]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            if depth == 0:
                raise
            return
        for entry in entries:
            name = f"{below}{entry.name}"
            try:
                if entry.is_dir(follow_symlinks=False):
                    if depth < DEPTH_MAX:
                        yield from self._scan(Path(entry.path), f"{name}/", depth + 1)
                elif self._take(name):
                    facts = _facts(entry.stat(follow_symlinks=False), self._min_bytes)
                    if facts is not None:
                        yield name, facts
            except OSError:
                continue  # it vanished between the two

    async def changes(self, stop: asyncio.Event) -> AsyncIterator[set[str] | None]:
        """Names that changed, as the system tells; None: too many.  Ends where it tells nothing (network shares)."""
        while not stop.is_set():
            try:
                async for batch in self._batches(stop):
                    names = {Path(path).relative_to(self._folder).as_posix() for _, path in batch}
                    yield names if len(names) <= CHANGES_MAX else None
            except _UnreadableNameError:
                yield None  # the look through the folder tells which file it is
            except (OSError, RuntimeError) as error:
                _log.info("changes are not told, the folder is looked through", reason=str(error))
                return

    async def _batches(
        self, stop: asyncio.Event
    ) -> AsyncIterator[set[tuple[watchfiles.Change, str]]]:
        try:
            async for batch in watchfiles.awatch(
                self._folder, stop_event=stop, watch_filter=None, debounce=GATHER_MS, step=50
            ):
                yield batch
        except ExceptionGroup as group:  # of its own task group
            why = str(group.exceptions[0])
            # It ends at the first name that is no UTF-8, whatever else it had to tell.
            if _UNREADABLE in why:
                raise _UnreadableNameError from group
            raise OSError(why) from group


def _facts(found: os.stat_result, min_bytes: int) -> Facts | None:
    if not stat.S_ISREG(found.st_mode) or found.st_size < min_bytes:
        return None
    return Facts(found.st_size, found.st_mtime_ns, kept_inode(found.st_ino))
