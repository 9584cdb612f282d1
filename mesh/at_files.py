"""Bytes at a place of an open file, whatever its position."""

import os
import sys


def read_at(fd: int, length: int, offset: int) -> bytes:
    """Bytes from a place in an open file; fewer only at its end."""
    if sys.platform == "win32":
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, length)
    else:  # noqa: RET505 - the checkers read a platform's branch as a whole
        return os.pread(fd, length, offset)


def write_at(fd: int, data: memoryview, offset: int) -> None:
    """Puts bytes into a place of an open file.  Raises OSError."""
    if sys.platform == "win32":
        os.lseek(fd, offset, os.SEEK_SET)
    while data:
        if sys.platform != "win32":
            count = os.pwrite(fd, data, offset)
        else:
            count = os.write(fd, data)
        data, offset = data[count:], offset + count
