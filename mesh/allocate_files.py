"""Room on the disk for bytes that are still to come."""

import errno
import os
import sys
from typing import Final

from mesh import clock

_PIECE_BYTES: Final = 16 << 20
_NOTED_MS: Final = 1
"""A disk notes a piece in less; memory that is filled needs four (measured: 4 MiB in a millisecond)."""
_SLOW_MAX: Final = 2
"""Pieces in a row that took longer: a disk that stalls does so for one, and a transfer waits meanwhile."""


def allocate(fd: int, start: int, size: int) -> None:
    """Reserves room where the system notes it; where it must fill the file instead, gives up soon.

    A file system in memory, or one that glibc helps out by writing, would do the work twice.
    """
    if sys.platform != "linux":
        return
    slow = 0
    for at in range(start, start + size, _PIECE_BYTES):
        begun_ms = clock.monotonic_ms()
        try:
            os.posix_fallocate(fd, at, min(_PIECE_BYTES, start + size - at))
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:
                raise
            return
        slow = slow + 1 if clock.monotonic_ms() - begun_ms > _NOTED_MS else 0
        if slow == _SLOW_MAX:
            return
