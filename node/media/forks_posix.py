"""A node's side of the Python that forks its children (`warm_posix`): begins it when needed, asks it, ends it.

Whatever goes wrong with it, a child is started anew instead: nothing here is needed for a film to be made.
"""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import structlog

from mesh.clock import monotonic_ms
from node.media.child import HELD, ChildRunner, HeldFile, Limits, RunResult, text_of
from node.media.warm import COLD, MESSAGE_BYTES_MAX, Asked, end_of, to_bytes

IDLE_S: Final = 60.0
"""It holds some 35 MB of its own; between the chunks of a film seconds pass."""
BEGUN_S: Final = 30.0
"""What importing takes on the slowest machine under load; then it hangs."""
UNTOLD_S: Final = 30.0
"""Between a child's last word and its end lies what closing its files takes; who tells no end after that hangs."""
COLD_MS: Final = 60_000
"""One that ended by itself is not tried again for so long."""
READ_BYTES: Final = 64 << 10
SIGKILLED: Final = -9
"""What children die of with it, whose end nobody tells then."""

_log = structlog.get_logger("media")


class WarmChildren:
    """Forks children around PyAV; gives none where that is not possible, and they are started then."""

    def __init__(self, runner: ChildRunner, python: str, *, idle_s: float = IDLE_S) -> None:
        """`runner` starts the Python that forks, at the node's own priority: each child lowers its own."""
        self._runner = runner
        self._python = python
        self._idle_s = idle_s
        self._can = sys.platform == "linux" and Path(HELD).is_dir()
        self._mother: _Mother | None = None
        self._cold_until_ms = monotonic_ms()

    async def start(self, asked: Asked) -> "Forked | None":
        """The child that was asked for; None: start it anew.

        Cancelled, it leaves no child.
        """
        message = to_bytes(asked)
        if not self._can or len(message) > MESSAGE_BYTES_MAX:
            return None
        mother = self._awake()
        child = None if mother is None else mother.ask(message, asked.held)
        if mother is None or child is None:
            return None
        beginning = asyncio.ensure_future(child.begin())
        try:
            async with asyncio.timeout(BEGUN_S):
                begun = await asyncio.shield(beginning)
        except TimeoutError:
            begun = False
            mother.give_up()
            await _end_of(beginning)
        except asyncio.CancelledError:
            if mother.children == 1:
                mother.kill()  # with nobody else's beside it both go at once
            untold = asyncio.get_running_loop().call_later(UNTOLD_S, mother.give_up)
            await _end_of(asyncio.ensure_future(_unwanted(beginning, child)))
            untold.cancel()
            mother.forget(child)
            raise
        if not begun:
            mother.forget(child)
            child.close()
            return None
        child.on_end(mother.forget)
        return child

    def _awake(self) -> "_Mother | None":
        if self._mother is not None and self._mother.over:
            if self._mother.hung or not self._mother.dismissed:
                self._cold_until_ms = monotonic_ms() + COLD_MS
            self._mother = None
        if self._mother is None and monotonic_ms() >= self._cold_until_ms:
            self._mother = _Mother(self._runner, self._python, self._idle_s)
        return self._mother

    async def close(self) -> None:
        """Ends it, and the children that it has."""
        if self._mother is not None:
            await self._mother.close()


def _last_word(ended: RunResult) -> str:
    said = ended.stderr.tail.strip().rpartition("\n")[2]
    return said or f"{ended.reason} {ended.signal or ended.exit_code}"


async def _unwanted(beginning: "asyncio.Future[bool]", child: "Forked") -> None:
    """Ends a child that was on its way, as soon as it is there."""
    if await beginning:
        child.kill()
        await child.wait()
    child.close()


async def _end_of(task: "asyncio.Future[Any]") -> None:
    """Waits for a task, however often it is cancelled itself."""
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait((task,))


class _Mother:
    """The Python that forks, while it lives."""

    def __init__(self, runner: ChildRunner, python: str, idle_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._idle_s = idle_s
        self._ours, self._hers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)
        self._children: set[Forked] = set()
        self._idle: asyncio.TimerHandle | None = None
        self.dismissed = False
        """It ends, or ended, because it was told to."""
        self.hung = False
        """It did nothing of what was asked."""
        command = (python, *COLD, "node.media.warm_posix", text_of(HeldFile(self._hers.fileno())))
        limits = Limits(time_ms=None, memory_bytes=None)
        self._run = asyncio.ensure_future(runner.run(command, limits=limits))
        self._run.add_done_callback(self._over)

    @property
    def over(self) -> bool:
        return self.dismissed or self._run.done()

    @property
    def children(self) -> int:
        """How many live or are on their way."""
        return len(self._children)

    def ask(self, message: bytes, held: Sequence[int]) -> "Forked | None":
        self._wake()
        reads, writes = zip(*(os.pipe() for _ in range(3)), strict=True)
        try:
            socket.send_fds(self._ours, [message], [*writes, *held])
        except OSError:  # its queue is full, or it is gone
            for number in reads:
                os.close(number)
            self._rest()
            return None
        finally:
            for number in writes:
                os.close(number)
        child = Forked(reads, self.give_up)
        self._children.add(child)
        return child

    def forget(self, child: "Forked") -> None:
        """It is over, or never was."""
        self._children.discard(child)
        self._rest()

    def _rest(self) -> None:
        """Ends it when nothing is asked for so long."""
        self._wake()
        if not self._children and not self.over:
            self._idle = self._loop.call_later(self._idle_s, self.dismiss)

    def _wake(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def dismiss(self) -> None:
        """It reads no more and ends."""
        self.dismissed = True
        self._ours.close()
        self._loop.call_later(UNTOLD_S, self._run.cancel)

    def give_up(self) -> None:
        """It hangs: it goes, and with it all its children, whose ends nobody would tell."""
        self.hung = True
        self.kill()

    def kill(self) -> None:
        self.dismiss()
        self._run.cancel()

    async def close(self) -> None:
        self.kill()
        await asyncio.wait((self._run,))

    def _over(self, run: "asyncio.Future[RunResult]") -> None:
        self._wake()
        # What lies in the socket is asked for no more: the pipes in it close.
        self._ours.close()
        self._hers.close()
        if self.dismissed or run.cancelled():
            return
        error = run.exception()
        said = repr(error) if error else _last_word(run.result())
        _log.warning("children are started anew for a while", reason=said)


class Forked:
    """A child that was forked: what `run_ffmpeg` needs of one."""

    def __init__(self, reads: Sequence[int], untold: Callable[[], None]) -> None:
        """`untold` is called when it must be over and nobody says so."""
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None
        self.pid = 0
        self.returncode: int | None = None
        self._told: asyncio.StreamReader | None = None
        self._reads = tuple(reads)
        self._loop = asyncio.get_running_loop()
        self._pipes: list[asyncio.BaseTransport] = []
        self._ending: asyncio.Task[int] | None = None
        self._untold = untold
        self._silent = 0
        self._waits: asyncio.TimerHandle | None = None

    async def _reader(self, number: int) -> asyncio.StreamReader:
        reader = asyncio.StreamReader(limit=READ_BYTES)
        pipe_end, _ = await self._loop.connect_read_pipe(
            lambda: _Heard(reader, self._fell_silent), os.fdopen(number, "rb", 0)
        )
        self._pipes.append(pipe_end)
        return reader

    async def begin(self) -> bool:
        """Hears it from now on, and waits until it leads a group of its own; False: it never will."""
        self.stdout, self.stderr, self._told = [await self._reader(n) for n in self._reads]
        pid = end_of(await self._told.readline())
        if pid is None:
            return False
        self.pid = pid
        self._ending = asyncio.ensure_future(self._end())
        return True

    async def _end(self) -> int:
        assert self._told is not None
        code = end_of(await self._told.readline())
        self.returncode = SIGKILLED if code is None else code
        self._wait_no_more()
        return self.returncode

    def _fell_silent(self) -> None:
        self._silent += 1
        if self._silent > 1:  # its stdout and stderr
            self._wait_for_end()

    def _wait_for_end(self) -> None:
        if self._waits is None and self.returncode is None and self._ending is not None:
            self._waits = self._loop.call_later(UNTOLD_S, self._untold)

    def _wait_no_more(self) -> None:
        if self._waits is not None:
            self._waits.cancel()

    def on_end(self, call: "Callable[[Forked], None]") -> None:
        """Calls when it is over."""
        assert self._ending is not None
        self._ending.add_done_callback(lambda _: call(self))

    async def wait(self) -> int:
        """Its exit code, when it is over."""
        assert self._ending is not None
        return await asyncio.shield(self._ending)

    def kill(self) -> None:
        """Ends its group at once."""
        if self.pid and self.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._wait_for_end()

    def close(self) -> None:
        """Hears no more of it."""
        self._wait_no_more()
        for pipe in self._pipes:
            pipe.close()
        self._pipes.clear()


class _Heard(asyncio.StreamReaderProtocol):
    """Reads a pipe, and tells when it is closed."""

    def __init__(self, reader: asyncio.StreamReader, lost: Callable[[], None]) -> None:
        super().__init__(reader)
        self._lost = lost

    def connection_lost(self, exc: Exception | None) -> None:
        """Whoever wrote is gone."""
        super().connection_lost(exc)
        self._lost()
