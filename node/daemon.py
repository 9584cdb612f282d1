"""The process of a node: starts it, listens to signals, ends it in order, and says why with which exit code."""

import asyncio
import secrets
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import structlog

from ledger.log_sqlite import LogStore
from ledger.store_sqlite import LedgerStore
from mesh.errors import DarkStreamError
from mesh.trust_files import load_or_create_identity
from node.assembly import Assembly
from node.config import Config
from node.home_paths import LEDGER_FILE, RAFT_FILE

_log = structlog.get_logger("node")


def run(config: Config) -> int:
    """Runs a node until it is told to stop or cannot go on; the exit code."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(Daemon(config).run())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - not on every system
    except ImportError:
        return None
    return uvloop.new_event_loop


class _StoppedByPerson(Exception):  # noqa: N818 - ends the task group, never seen outside
    pass


class Daemon:
    """One node of this configuration."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._stopping = asyncio.Event()
        self._draining: asyncio.Task[None] | None = None
        self._signals = 0

    async def run(self) -> int:
        """Until SIGTERM or SIGINT (exit code 0), or until a part fails (its error's code)."""
        self._listen_to_signals()
        code = 0
        try:
            await self._run()
        except* _StoppedByPerson:
            _log.info("stopped")
        except* DarkStreamError as group:
            fault = _first(group)
            sys.stderr.write(fault.line() + "\n")
            code = fault.exit_code
        return code

    def _listen_to_signals(self) -> None:
        self._loop = loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                loop.add_signal_handler(number, self._on_signal)
            except NotImplementedError:  # Windows
                signal.signal(number, self._on_system_signal)

    def _on_system_signal(self, _: int, __: object) -> None:
        self._loop.call_soon_threadsafe(self._on_signal)

    def _on_signal(self) -> None:
        self._signals += 1
        self._stopping.set()
        if self._signals == 1:
            _log.info("stopping; a second signal stops at once")
        elif self._draining is not None:
            self._draining.cancel()

    async def _run(self) -> None:
        home = Path(self._config.home)
        log = LogStore(str(home / RAFT_FILE), incarnation=secrets.token_hex(4))
        try:
            identity = load_or_create_identity(home)
            ledger = LedgerStore(str(home / LEDGER_FILE))
            try:
                await self._live(Assembly(self._config, identity=identity, log=log, ledger=ledger))
            finally:
                ledger.close()
        finally:
            log.close()

    async def _live(self, node: Assembly) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                await node.start(group)
                await self._stopping.wait()
                self._draining = group.create_task(node.drain(), name="drain")
                await asyncio.wait((self._draining,))
                node.gateway.stop()
                raise _StoppedByPerson
        finally:
            await node.close()


def _first(group: BaseExceptionGroup[DarkStreamError]) -> DarkStreamError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, DarkStreamError)
    return error
