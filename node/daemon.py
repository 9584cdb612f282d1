"""The process of a node: starts it, listens to signals, ends it in order, and says why with which exit code."""

import asyncio
import gc
import secrets
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from ledger.log_sqlite import LogStore
from ledger.queries import Reader
from ledger.store_sqlite import LedgerStore
from mesh import clock
from mesh.descriptors_posix import raise_descriptor_limit
from mesh.errors import DarkStreamError, OvertakenError, StorageError
from mesh.ids import MeshId, NodeId, raft_id
from mesh.memory_posix import keep_freed_memory
from mesh.trust import Identity, mesh_fingerprint
from mesh.trust_files import load_or_create_identity
from node.assembly import Assembly
from node.membership.former_files import set_aside
from node.settings.config import Config
from node.settings.home_paths import LEDGER_FILE, RAFT_FILE

GARBAGE_LOOKED_FOR: Final = 10_000
"""New objects after which cycles are looked for; the interpreter's 700 cost a tenth of applying commands."""

_log = structlog.get_logger("node")


def run(config: Config) -> int:
    """Runs a node until it is told to stop or cannot go on; the exit code."""
    keep_freed_memory()
    raise_descriptor_limit()
    # What was imported stays: a search of all objects for garbage took 60 ms again and again.
    gc.freeze()
    gc.set_threshold(GARBAGE_LOOKED_FOR)
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
        with _Stores(home) as stores:
            identity = load_or_create_identity(home)
            invited = self._config.join or self._config.join_file
            if invited and (stores.was_removed(identity.node_id) or stores.lack_the_log):
                stores.begin_anew()
            elif stores.lack_the_log:
                raise StorageError(
                    f"{home / RAFT_FILE} is lost, and {home / LEDGER_FILE} is not: without what this "
                    "node promised in it, it must not vote",
                    "where other members live, start it with --join TOKEN: what is here is set aside;"
                    " where it was the last, mesh-cli ledger backup FILE, then mesh-cli ledger restore"
                    " FILE",
                )
            while await self._is_overtaken(stores, identity):
                stores.return_anew()

    async def _is_overtaken(self, stores: "_Stores", identity: Identity) -> bool:
        """Lives until it ends with an error; True when others went on without this node."""
        try:
            await self._live(
                Assembly(self._config, identity=identity, log=stores.log, ledger=stores.ledger)
            )
        except* OvertakenError as group:
            _log.warning("overtaken", why=_first(group).what)
        return True

    async def _live(self, node: Assembly) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                await node.start(group)
                await self._stopping.wait()
                self._draining = group.create_task(node.drain(), name="drain")
                await asyncio.wait((self._draining,))
                node.gateway.stop()
                if self._signals == 1:
                    await node.gateway.ended()
                raise _StoppedByPerson
        finally:
            await node.close()


class _Stores:
    """Log and ledger of a home, open together; the log first, for its lock holds the home."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._open()

    def _open(self) -> None:
        self.log = LogStore(str(self._home / RAFT_FILE), incarnation=secrets.token_hex(4))
        try:
            self.ledger = LedgerStore(str(self._home / LEDGER_FILE))
        except BaseException:
            self.log.close()
            raise

    def __enter__(self) -> "_Stores":
        return self

    def __exit__(self, *_: object) -> None:
        self.ledger.close()
        self.log.close()

    def was_removed(self, node: NodeId) -> bool:
        """Whether the ledger says that this node, with this data directory, left its mesh for good."""
        member = Reader(self.ledger.connection).member(node)
        own = raft_id(node, self.log.incarnation)
        return member is not None and member.state == "removed" and member.raft_id == own

    @property
    def lack_the_log(self) -> bool:
        """The ledger holds something that this log knows nothing of."""
        return self.ledger.applied_index > 0 and self.log.get_value("mesh") is None

    def begin_anew(self) -> None:
        """Sets aside both files; the next ones are empty, and their node never forms a mesh."""
        self._set_aside()

    def return_anew(self) -> None:
        """The same, to come back to the same mesh and to tell there what only this node knew."""
        mesh = Reader(self.ledger.connection).mesh()
        folder = self._set_aside()
        if mesh is not None:
            fingerprint = mesh_fingerprint(MeshId(mesh.id), mesh.founder_key)
            self.log.set_value("return_to", fingerprint.hex())
            self.log.set_value("former", str(folder))

    def _set_aside(self) -> Path:
        self.__exit__()
        folder = set_aside(self._home, clock.wall_ms())
        _log.warning("what this node held of its mesh is set aside", folder=str(folder))
        self._open()
        return folder


def _first(group: BaseExceptionGroup[DarkStreamError]) -> DarkStreamError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, DarkStreamError)
    return error
