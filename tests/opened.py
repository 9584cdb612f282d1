"""What is opened below a folder, told by the kernel (inotify): no opener can hide from it."""

import contextlib
import ctypes
import os
import struct
import sys
from collections.abc import Generator, Sequence
from pathlib import Path

_OPEN, _CREATE, _DELETE, _MOVED = 0x20, 0x100, 0x200, 0xC0
_EVENT = struct.Struct("iIII")


def available() -> str | None:
    """Why it cannot watch here, if it cannot."""
    return None if sys.platform == "linux" else "inotify is Linux's"


class Opened:
    """Counts what was opened, made or removed in the watched folders since it was made."""

    def __init__(self, folders: Sequence[Path]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK)
        self._folders = {
            libc.inotify_add_watch(
                self._fd, os.fsencode(folder), _OPEN | _CREATE | _DELETE | _MOVED
            ): folder
            for folder in folders
        }
        assert self._fd >= 0
        assert min(self._folders) >= 0, self._folders

    def names(self) -> list[str]:
        """Paths that were touched since the last call; a folder itself ends with a slash."""
        found: list[str] = []
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._fd, 1 << 16):
                at = 0
                while at < len(data):
                    watch, _, _, length = _EVENT.unpack_from(data, at)
                    at += _EVENT.size
                    name = data[at : at + length].rstrip(b"\0").decode(errors="replace")
                    at += length
                    found.append(f"{self._folders.get(watch)}/{name}")
        return found

    def close(self) -> None:
        os.close(self._fd)


@contextlib.contextmanager
def watched(*folders: Path) -> Generator[Opened]:
    """Watches these folders, not what lies in folders inside them."""
    made = Opened(folders)
    try:
        yield made
    finally:
        made.close()
