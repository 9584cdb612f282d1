"""What is printed, wherever it goes: a terminal that knows no UTF-8, a reader that left, a full disk."""

import errno
import io
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from mesh.errors import DarkStreamError, DiskFullError, StorageError

EXIT_READER_LEFT: Final = 141
"""As of a program that SIGPIPE ended: `mesh-cli jobs | head -1` is no failed job."""
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def ready() -> None:
    """From now on any text can be printed, and what is for stderr never lands on stdout."""
    _take_places()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who started us
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - stays open
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _take_places() -> None:
    """What was closed by who started us leads nowhere: else the next socket has its number, and libuv aborts when that is closed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


def full(error: OSError) -> DarkStreamError | None:
    """What a person is told when output cannot be written; None: it is another error."""
    if error.errno not in _FULL:
        return None
    what = f"what was to be printed cannot be written: {error.strerror}"
    return DiskFullError(what, "free some space, or send it elsewhere")


def ended(code: int) -> int:
    """The exit code, once everything printed has arrived; without what the interpreter would say of it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            # What is left in the buffer would fail once more at the interpreter's end, with exit code 120.
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            code = code or _unsaid(error)
    return code


def _unsaid(error: OSError) -> int:
    if isinstance(error, BrokenPipeError):
        return EXIT_READER_LEFT
    told = full(error) or StorageError(f"what was printed was lost: {error.strerror}")
    with suppress(OSError):
        print(told.line(), file=sys.stderr)
    return told.exit_code
