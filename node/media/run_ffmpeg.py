"""The one home of child processes: FFmpeg, and Python around PyAV.

Each child has a session (so a process group) of its own, runs below normal priority, is bounded in
time, memory, output and words, and is gone when `run` returns or is cancelled.  On Linux it also dies
with this process (PR_SET_PDEATHSIG); elsewhere a killed node leaves FFmpeg to finish its one file.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Final, Protocol

import structlog

from mesh.clock import monotonic_ms
from node.media.child import (
    DISK_RESERVE_BYTES,
    DISK_RESERVE_PART,
    HELD,
    STDOUT_BYTES_PER_S,
    Limits,
    OnProgress,
    Reason,
    RunResult,
    held_in,
    text_of,
)
from node.media.progress import FFmpegProgress, ProgressParser
from node.media.stderr_log import StderrLog
from node.media.warm import Asked, asked_of

NICE: Final = 10
"""Below the node itself: FFmpeg starves machines, heartbeats must not wait for it."""
READ_BYTES: Final = 64 << 10
WATCH_MS: Final = 250
SLOW_TAIL_BYTES_PER_MS: Final = 10_000
"""Moving the index to the front rewrites the file without a word: 10 MB/s is waited for on top of the stall limit."""
SILENT_MS: Final = 60_000
"""An FFmpeg that told its progress and tells nothing for so long hangs; a slow frame is told of all the same."""
LAUNCHER: Final = Path(__file__).with_name("launch_posix.py")
_PRIVATE: Final = ("DARKSTREAM_", "FFREPORT", "AV_LOG_FORCE", "AWS_CA_BUNDLE")
"""Not for children: our secrets, variables that make FFmpeg write elsewhere, and one with which
litestream 0.5 cannot start (it reads SSL_CERT_FILE)."""

_log = structlog.get_logger("media")


class _Watch:
    """What both readers and the limits share about one child."""

    def __init__(self, limits: Limits, silent_ms: int = SILENT_MS) -> None:
        self.limits = limits
        self.silent_ms = silent_ms
        self.started_ms = monotonic_ms()
        self.moved_ms = self.started_ms
        self.heard_ms = self.started_ms
        self.still_ms: int | None = None
        self.stderr = StderrLog()
        self.stdout = bytearray()
        self.parser = ProgressParser()
        self.progress: FFmpegProgress | None = None
        self.heard_bytes = 0
        self.over: Reason | None = None
        self.group_killed = False
        self.stop = asyncio.Event()

    def end(self, reason: Reason) -> None:
        self.over = self.over or reason
        self.stop.set()

    def note(self, block: FFmpegProgress) -> None:
        before = self.progress
        self.heard_ms = monotonic_ms()
        if before is None or block.advance != before.advance or block.end:
            self.moved_ms = monotonic_ms()
        self.progress = block
        limit = self.limits.output_bytes
        if limit is not None and (block.total_size or 0) > limit:
            self.end("output")

    def hear(self, count: int) -> None:
        """Bytes of progress; a program that prints without end is told by their rate."""
        self.heard_bytes += count
        seconds = (monotonic_ms() - self.started_ms) // 1000
        if self.heard_bytes > self.limits.stdout_bytes + seconds * STDOUT_BYTES_PER_S:
            self.end("stdout")

    def suspended(self, *, still: bool) -> None:
        """It stands still from now on, or goes on: what was lost counts for no limit."""
        now_ms = monotonic_ms()
        if still:
            self.still_ms = self.still_ms or now_ms
        elif self.still_ms is not None:
            lost_ms, self.still_ms = now_ms - self.still_ms, None
            self.started_ms += lost_ms
            self.moved_ms += lost_ms
            self.heard_ms += lost_ms

    def check(self) -> None:
        if self.still_ms is not None:
            return
        now_ms = monotonic_ms()
        limits = self.limits
        if limits.writes is not None and _is_nearly_full(Path(text_of(limits.writes)).parent):
            self.end("disk")
        if limits.time_ms is not None and now_ms - self.started_ms > limits.time_ms:
            self.end("time")
        if limits.stall_ms is not None:
            size = 0 if self.progress is None else self.progress.total_size or 0
            slow_tail_ms = size // SLOW_TAIL_BYTES_PER_MS
            if now_ms - self.moved_ms > limits.stall_ms + slow_tail_ms:
                self.end("stalled")
            # It spoke twice a second and is silent now: it hangs, or somebody stopped it.
            if self.progress is not None and now_ms - self.heard_ms > self.silent_ms + slow_tail_ms:
                self.end("stalled")


class FFmpegRunner:
    """The `ChildRunner` of this machine."""

    def __init__(
        self, *, nice: int = NICE, silent_ms: int = SILENT_MS, warm: "Warm | None" = None
    ) -> None:
        """`warm` forks children around PyAV, where it can."""
        self._nice = nice
        self._warm = warm
        self._silent_ms = silent_ms
        self._still = False
        self._memory_bytes: int | None = None
        self._encoding: dict[int, _Watch] = {}
        """Process groups that report progress, which the owner of the machine may let stand still."""

    def suspend(self, *, still: bool) -> None:
        """Lets FFmpeg stand still, runs that begin meanwhile too, or go on; its limits of time stand still with it.

        POSIX only: elsewhere nothing is suspended, and a closed node finishes what it has.
        """
        self._still = still
        for group, watch in self._encoding.items():
            _suspend(group, watch, still=still)

    def use_nice(self, nice: int) -> None:
        """The priority from now on, of what runs too; who may not raise it keeps what it has."""
        self._nice = nice
        for group in self._encoding if sys.platform != "win32" else ():
            with suppress(OSError):
                os.setpriority(os.PRIO_PGRP, group, nice)

    def use_memory(self, mebibytes: int) -> None:
        """How much private memory each encoder that begins from now on may have; 0: as its call says.

        Linux only (RLIMIT_DATA): elsewhere no process can be bounded from outside, which is told.
        """
        self._memory_bytes = mebibytes << 20 or None
        if mebibytes and sys.platform != "linux":
            _log.warning("memory is not limited on this system", asked_mib=mebibytes)

    @property
    def is_still(self) -> bool:
        """Whether what encodes stands still."""
        return self._still

    @property
    def encoding(self) -> tuple[int, ...]:
        """Processes that encode now."""
        return tuple(self._encoding)

    async def run(
        self,
        command: Sequence[str],
        *,
        limits: Limits,
        on_progress: OnProgress | None = None,
    ) -> RunResult:
        """See `node.media.child.ChildRunner`."""
        if on_progress is not None and self._memory_bytes is not None:
            allowed = min(self._memory_bytes, limits.memory_bytes or self._memory_bytes)
            limits = replace(limits, memory_bytes=allowed)
        watch = _Watch(limits, self._silent_ms)
        told = _named(command)
        try:
            process = await self._start(command, limits)
        except OSError as error:
            watch.stderr.feed(f"[fatal] cannot start {command[0]}: {error.strerror}".encode())
            return _result(told, watch, "start", None)
        if on_progress is not None:
            self._encoding[process.pid] = watch
            if self._still:
                _suspend(process.pid, watch, still=True)
        try:
            await self._attend(process, watch, on_progress)
        finally:
            self._encoding.pop(process.pid, None)
            await _gone(process, watch)
        reason: Reason = watch.over or ("exited" if (process.returncode or 0) >= 0 else "signal")
        return _result(told, watch, reason, process.returncode)

    async def _start(self, command: Sequence[str], limits: Limits) -> "Child":
        bounds = _bounds(limits, self._nice)
        asked = None if self._warm is None else asked_of(command, sys.executable, bounds)
        if self._warm is not None and asked is not None:
            forked = await self._warm.start(asked)
            if forked is not None:
                return forked
        # Cancelled between fork and return, a child would be left without anybody who knows it.
        spawning = asyncio.ensure_future(_spawn(_launched(command, bounds)))
        try:
            return await asyncio.shield(spawning)
        except asyncio.CancelledError:
            while not spawning.done():  # nor cancelled once more
                with suppress(asyncio.CancelledError):
                    await asyncio.wait((spawning,))
            with suppress(OSError):
                await _gone(spawning.result(), _Watch(limits))
            raise

    async def _attend(
        self, process: "Child", watch: _Watch, on_progress: OnProgress | None
    ) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        async with asyncio.TaskGroup() as group:
            readers = (
                group.create_task(_read_stdout(process.stdout, watch, on_progress)),
                group.create_task(_read_stderr(process.stderr, watch)),
            )
            waiter = group.create_task(process.wait())
            stopper = group.create_task(watch.stop.wait())
            # `wait` may also wait for the pipes, which a grandchild can hold: the return code decides.
            while process.returncode is None and not waiter.done() and not watch.stop.is_set():
                await asyncio.wait(
                    (waiter, stopper),
                    timeout=WATCH_MS / 1000,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                watch.check()
            _kill_group(process.pid, watch)  # the pipes close, the readers end
            await asyncio.wait(readers)
            watch.stop.set()


class Child(Protocol):
    """A process as this module needs it; `asyncio.subprocess.Process` is one."""

    @property
    def stdout(self) -> asyncio.StreamReader | None:
        """What it prints."""
        ...

    @property
    def stderr(self) -> asyncio.StreamReader | None:
        """What it complains of."""
        ...

    @property
    def pid(self) -> int:
        """Its number, and its group's."""
        ...

    @property
    def returncode(self) -> int | None:
        """None while it lives; negative: the signal that ended it."""
        ...

    async def wait(self) -> int:
        """Its exit code, when it is over."""
        ...

    def kill(self) -> None:
        """Ends it at once."""
        ...


class Warm(Protocol):
    """Children that need no start of their own, because another one of their kind is forked."""

    async def start(self, asked: Asked) -> Child | None:
        """The child, with a group of its own and all its bounds; None: it is to be started.

        Cancelled, it leaves no child.
        """
        ...


class _PosixChild:
    """A process that was started in a thread, and is waited for in one of its own."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._pipes: list[asyncio.BaseTransport] = []
        self._ended: asyncio.Future[int] = self._loop.create_future()
        threading.Thread(target=self._reap, name=f"child {process.pid}", daemon=True).start()

    async def listen(self) -> None:
        """Begins to read what it says."""
        self.stdout = await self._reader(self._process.stdout)
        self.stderr = await self._reader(self._process.stderr)

    async def _reader(self, pipe: "IO[bytes] | None") -> asyncio.StreamReader:
        reader = asyncio.StreamReader(limit=READ_BYTES)
        pipe_end, _ = await self._loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        self._pipes.append(pipe_end)
        return reader

    def _reap(self) -> None:
        code = self._process.wait()
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._over, code)

    def _over(self, code: int) -> None:
        if not self._ended.done():
            self._ended.set_result(code)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        """Reads no more."""
        for pipe in self._pipes:
            pipe.close()


async def _spawn(command: Sequence[str]) -> Child:
    env = {key: value for key, value in os.environ.items() if not key.startswith(_PRIVATE)}
    if sys.platform == "win32":
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            creationflags=subprocess.BELOW_NORMAL_PRIORITY_CLASS
            | subprocess.CREATE_NEW_PROCESS_GROUP,
        )
    # Not by the loop: uvloop forks, and stands still until the child has become the program, which on
    # a busy machine took 200 ms (a load of 34 on two cores); this took 16 ms at most.
    process = await asyncio.to_thread(
        subprocess.Popen,
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        start_new_session=True,
        pass_fds=held_in(command),
    )
    child = _PosixChild(process)
    await child.listen()
    return child


def _bounds(limits: Limits, nice: int) -> tuple[int, int, int, int]:
    """As `launch_posix` takes them: nice, memory, file size, seconds."""
    return (
        nice,
        limits.memory_bytes or 0,
        -1 if limits.output_bytes is None else limits.output_bytes,
        # CPU time is a second net under the watch of this loop, which may be starved or killed.
        0 if limits.time_ms is None else (limits.time_ms // 1000 + 1) * (os.cpu_count() or 1),
    )


def _launched(command: Sequence[str], bounds: tuple[int, int, int, int]) -> Sequence[str]:
    if sys.platform == "win32":
        return command
    program = shutil.which(command[0])
    if program is None:
        raise FileNotFoundError(2, "no such program", command[0])
    launcher = (sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()))
    return (*launcher, *(str(number) for number in bounds), program, *command[1:])


async def _read_stdout(
    stream: asyncio.StreamReader, watch: _Watch, on_progress: OnProgress | None
) -> None:
    while data := await stream.read(READ_BYTES):
        if on_progress is None:
            if len(watch.stdout) + len(data) > watch.limits.stdout_bytes:
                watch.end("stdout")
            else:
                watch.stdout += data
            continue
        watch.hear(len(data))
        for block in watch.parser.feed(data):
            watch.note(block)
            on_progress(block)


async def _read_stderr(stream: asyncio.StreamReader, watch: _Watch) -> None:
    while data := await stream.read(READ_BYTES):
        watch.stderr.feed(data)
        if watch.stderr.bytes_seen > watch.limits.stderr_bytes:
            watch.end("stderr")


async def _gone(process: Child, watch: _Watch) -> None:
    """Kills the child with all it started and waits until it is reaped, cancelled or not."""
    _kill_group(process.pid, watch)
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
    waiting = asyncio.ensure_future(process.wait())
    cancelled = False
    while not waiting.done():
        try:
            await asyncio.shield(waiting)
        except asyncio.CancelledError:
            cancelled = True
    close: Callable[[], None] | None = getattr(process, "close", None)  # asyncio's has none
    if close is not None:
        close()
    if cancelled:
        raise asyncio.CancelledError


def _named(command: Sequence[str]) -> tuple[str, ...]:
    """The command for people: held files by their names."""
    names: dict[str, str] = {}
    for number in held_in(command):
        with suppress(OSError):
            names[f"{HELD}{number}"] = str(Path(f"{HELD}{number}").readlink())
    return tuple(_replaced(word, names) for word in command)


def _replaced(word: str, names: Mapping[str, str]) -> str:
    bare = word.removeprefix("file:")
    return word if bare not in names else word[: len(word) - len(bare)] + names[bare]


def _is_nearly_full(folder: Path) -> bool:
    try:
        disk = shutil.disk_usage(folder)
    except OSError:
        return False  # the child will say what is wrong with it
    return disk.free < min(DISK_RESERVE_BYTES, disk.total // DISK_RESERVE_PART)


def _suspend(group: int, watch: _Watch, *, still: bool) -> None:
    if sys.platform == "win32" or watch.group_killed:
        return
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGSTOP if still else signal.SIGCONT)
        watch.suspended(still=still)


def _kill_group(pid: int, watch: _Watch) -> None:
    # Once only: the number of a group that is gone may be given to others.
    if sys.platform != "win32" and not watch.group_killed:
        watch.group_killed = True
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def _result(
    command: Sequence[str], watch: _Watch, reason: Reason, returncode: int | None
) -> RunResult:
    killed = returncode is not None and returncode < 0
    return RunResult(
        command=tuple(command),
        exit_code=None if killed else returncode,
        signal=-returncode if killed and returncode is not None else None,
        reason=reason,
        stdout=bytes(watch.stdout),
        stderr=watch.stderr.summary(),
        progress=watch.progress,
        duration_ms=monotonic_ms() - watch.started_ms,
    )
