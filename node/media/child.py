"""What is asked of a child process and what it gave; the port through which children run.

Everything that reads or writes film bytes runs in a child (FFmpeg, or Python around PyAV), so that
a hostile file can hang, crash or bloat only the child.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from node.media.progress import FFmpegProgress
from node.media.stderr_log import StderrSummary

Reason = Literal[
    "exited",
    "signal",
    "cancelled",
    "time",
    "stalled",
    "output",
    "disk",
    "stdout",
    "stderr",
    "start",
]
"""Why the child is over: by itself, by a foreign signal, or stopped by us for one of our limits; `start`: it never ran."""

SECOND_MS = 1_000
MINUTE_MS = 60 * SECOND_MS
GIB = 1 << 30
DISK_RESERVE_BYTES = 256 << 20
"""What a child leaves free: the node's log and ledger stop the node when they cannot be written."""
DISK_RESERVE_PART = 8
"""And never more than an eighth of a small disk."""
STDOUT_BYTES_PER_S = 64 << 10
"""A hundred times what FFmpeg's progress takes."""


class SupportsPath(Protocol):
    """A `pathlib.Path` as seen from pure code."""

    def __fspath__(self) -> str: ...


AnyPath = str | SupportsPath
HELD: Final = "/proc/self/fd/"
"""Linux: a file that a process holds open, under its number; opened anew there, whatever its name leads to now."""


@dataclass(frozen=True, slots=True)
class HeldFile:
    """A file that this process holds open; a child inherits it and opens that very file, each time from its start."""

    descriptor: int

    def __fspath__(self) -> str:
        return f"{HELD}{self.descriptor}"


def held_in(command: Sequence[str]) -> tuple[int, ...]:
    """The descriptors of held files that a command names."""
    words = (word.removeprefix("file:") for word in command)
    numbers = {word.removeprefix(HELD) for word in words if word.startswith(HELD)}
    return tuple(sorted(int(number) for number in numbers if number.isdecimal()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one child; None means unlimited.

    `stall_ms` counts from the last growth of frames, time or size that FFmpeg reported.
    `memory_bytes` bounds private writable memory (RLIMIT_DATA, Linux only), `output_bytes` each
    file written (RLIMIT_FSIZE) and what FFmpeg reports as its total size.  `writes` names a file that it
    writes: the child is ended before it fills the disk of its folder (DISK_RESERVE_BYTES).
    """

    time_ms: int | None
    stall_ms: int | None = None
    output_bytes: int | None = None
    writes: AnyPath | None = None
    memory_bytes: int | None = 16 * GIB
    stdout_bytes: int = 1 << 20
    stderr_bytes: int = 64 << 20
    """A damaged film makes some megabytes of warnings; more is a program that prints without end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """How a child ended. `exit_code` is None when a signal ended it; `stdout` is empty for progress runs."""

    command: tuple[str, ...]
    exit_code: int | None
    signal: int | None
    reason: Reason
    stdout: bytes
    stderr: StderrSummary
    progress: FFmpegProgress | None
    duration_ms: int

    @property
    def ok(self) -> bool:
        """Ended by itself with exit code 0: necessary, never sufficient."""
        return self.reason == "exited" and self.exit_code == 0


OnProgress = Callable[[FFmpegProgress], None]


class ChildRunner(Protocol):
    """Runs children: below normal priority, in a process group of their own, never outliving the call.

    Cancelling the call kills the whole group and raises `asyncio.CancelledError` after it is gone.
    """

    async def run(
        self,
        command: Sequence[str],
        *,
        limits: Limits,
        on_progress: OnProgress | None = None,
    ) -> RunResult:
        """Runs to the end.  With `on_progress`, stdout is read as FFmpeg's `-progress` blocks, else collected."""
        ...


def text_of(path: AnyPath) -> str:
    """The text of a path."""
    return path if isinstance(path, str) else path.__fspath__()
