"""First words of a child on POSIX, then it becomes the program: limits, priority, death with its parent.

Run by path with `python -I -S` (20 ms): a fork hook (`preexec_fn`) is unsafe in a process with threads,
and none of this can be set from outside.  Children that are forked by `warm_posix` say the same words.
Arguments: parent pid, nice, memory bytes, file bytes, CPU seconds (0: no limit), program, its arguments.
"""

import contextlib
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1


def limit(which: int, value: int) -> None:
    """Sets a soft and hard limit; one below an inherited hard limit is kept at that."""
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(which, (value, value))


def bounded(parent: int, nice: int, memory: int, size: int, seconds: int) -> None:
    """Bounds this process; ends it when its parent is gone already.  `size` below 0: no limit."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - only here, and not everywhere built

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            sys.exit(1)  # the parent died before the line above
        if memory:
            limit(resource.RLIMIT_DATA, memory)
    if size >= 0:
        limit(resource.RLIMIT_FSIZE, size)
    if seconds:
        limit(resource.RLIMIT_CPU, seconds)
    limit(resource.RLIMIT_CORE, 0)
    with contextlib.suppress(OSError):
        os.nice(nice)
    # A session is a group of its own for Linux' scheduler, and within it alone does nice count.
    with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as group:  # noqa: PTH123 - 20 ms
        group.write(str(nice))


def main() -> None:
    """Never returns."""
    parent, nice, memory, size, seconds = (int(text) for text in sys.argv[1:6])
    program = sys.argv[6:]
    bounded(parent, nice, memory, size, seconds)
    # Python ignores both; SIGPIPE must kill, while SIGXFSZ stays ignored, so that a write beyond the
    # limit fails with "File too large" and the program can say so.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execv(program[0], program)  # noqa: S606 - becoming the program is the purpose
    except OSError as error:
        sys.stderr.write(f"[fatal] cannot start {program[0]}: {error.strerror}\n")
        sys.exit(127)


if __name__ == "__main__":
    main()
