"""A Python that has imported all that children around PyAV need, and forks them: `python -P -m node.media.warm_posix SOCKET`.

It reads no film, holds nothing but its socket and the pipes on which it tells how children ended, has one
thread, and is what such a child is before its first words; so a fork is as good as a start, and takes
some milliseconds.  It ends with its socket.  Linux only: frameworks of macOS do not survive a fork.
"""

import gc
import importlib
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from fcntl import F_DUPFD, fcntl
from pathlib import Path
from typing import Final

from node.media.child import HELD
from node.media.launch_posix import bounded
from node.media.warm import HELD_MAX, MESSAGE_BYTES_MAX, MODULES, Asked, from_bytes

PIPES: Final = 3
"""Descriptors before the held files: stdout, stderr, and where the end is told."""


def main(words: list[str]) -> int:
    """Serves until its socket is closed."""
    with socket.socket(fileno=int(words[0].removeprefix(HELD))) as control:
        for module in MODULES:
            importlib.import_module(module)
        # What never changes is not looked at again by any child, so its pages stay shared.
        gc.collect()
        gc.freeze()
        serve(control)
    return 0


def serve(control: socket.socket) -> None:
    """Forks what is asked for, and tells how it ended."""
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    watched = select.poll()
    watched.register(control, select.POLLIN)
    watched.register(woken, select.POLLIN)
    living: dict[int, int] = {}
    while True:
        ready = {number for number, _ in watched.poll()}
        if woken in ready:
            os.read(woken, 4096)
            tell_ends(living)
        if control.fileno() in ready:
            data, given, _, _ = socket.recv_fds(control, MESSAGE_BYTES_MAX, PIPES + HELD_MAX)
            if not data:
                return
            begin(data, given, living)


def tell_ends(living: dict[int, int]) -> None:
    """Reaps children that ended."""
    while living:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        tell(living[pid], os.waitstatus_to_exitcode(status))
        os.close(living.pop(pid))


def tell(pipe: int, number: int) -> None:
    """A line to whoever asked, who may be gone."""
    with suppress(OSError):
        os.write(pipe, b"%d\n" % number)


def begin(data: bytes, given: Sequence[int], living: dict[int, int]) -> None:
    """Forks a child and tells its number, once it leads a group of its own."""
    parent = os.getpid()
    pipe = given[PIPES - 1]
    ready, readied = os.pipe()
    try:
        child = os.fork()
    except OSError as error:
        sys.stderr.write(f"[fatal] cannot fork: {error.strerror}\n")
        child = -1
    if child == 0:
        become(data, given, readied, parent)
    for number in (*given[: PIPES - 1], *given[PIPES:], readied):
        os.close(number)
    os.read(ready, 1)
    os.close(ready)
    if child < 0:
        os.close(pipe)
        return
    living[child] = pipe
    tell(pipe, child)


def become(data: bytes, given: Sequence[int], readied: int, parent: int) -> None:
    """The child: from here on what a program is that was started for this.  Never returns."""
    code = 1
    try:
        os.setsid()
        os.write(readied, b"\n")
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        asked = from_bytes(data)
        place(given, asked.held)
        bounded(parent, asked.nice, asked.memory, asked.size, asked.seconds)
        code = did(asked)
    finally:
        # As an interpreter ends, but that nothing of the parent's is ended here.
        if sys.exc_info()[1] is not None:
            traceback.print_exc()
        os._exit(code)


def did(asked: Asked) -> int:
    """Runs the program; its exit code."""
    sys.argv = [asked.module, *asked.words]
    try:
        code: object = sys.modules[asked.module].main(list(asked.words))
    except SystemExit as ended:
        code = ended.code
    sys.stdout.flush()
    return code if isinstance(code, int) else 1


def place(given: Sequence[int], held: Sequence[int]) -> None:
    """Puts descriptors where the program expects them, and closes all others."""
    wanted = (1, 2, *held)
    films = (*given[: PIPES - 1], *given[PIPES:])
    # First out of each other's way.
    above = max(*wanted, *given) + 1
    aside = [fcntl(number, F_DUPFD, above) for number in films]
    for number, target in zip(aside, wanted, strict=True):
        os.dup2(number, target)
    for number in [int(path.name) for path in Path(HELD).iterdir()]:
        if number and number not in wanted:
            with suppress(OSError):  # the listing's own is closed by now
                os.close(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
