"""Room on the disk for bytes that are still to come."""

import errno
import os
import sys
from typing import Final

from mesh import clock

_ALLOCATE_BYTES: Final = 32 << 20
_ALLOCATE_MS: Final = 25
_FILLING: Final = 16 << 20
"""Bytes a millisecond: memory is filled with 4 MiB in one (measured), a disk only notes hundreds."""


def allocate(fd: int, start: int, size: int) -> None:
    """Reserves room where the system notes it; where it must fill the file instead, gives up soon.

    A file system in memory, or one that glibc helps out by writing, would do the work twice.
    """
    if sys.platform != "linux":
        return
    begun_ms = clock.monotonic_ms()
    for at in range(start, start + size, _ALLOCATE_BYTES):
        try:
            os.posix_fallocate(fd, at, min(_ALLOCATE_BYTES, start + size - at))
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:
                raise
            return
        spent_ms = clock.monotonic_ms() - begun_ms
        if spent_ms > _ALLOCATE_MS and (at + _ALLOCATE_BYTES - start) // spent_ms < _FILLING:
            return
