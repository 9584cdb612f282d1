"""What a node backs up by itself: it archives where it is told to, and mirrors while it coordinates.

The work itself is done by `mesh-cli ledger archive` and `ledger mirror`, the commands that a person
types, as children below normal priority: reading a ledger of a million jobs takes seconds of a
processor, which neither the loop nor the consensus threads shall wait for.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from mesh import clock
from mesh.election import RandomSource
from mesh.errors import (
    BackupError,
    DamagedError,
    DarkStreamError,
    DivergenceError,
    NoCoordinatorError,
    errors_by_code,
)
from mesh.ids import NodeId
from node.backup.destination import Destination, place_name
from node.backup.litestream import (
    SYNC_S,
    SftpKeys,
    configuration,
    not_sent,
    replicate_command,
    restore_command,
    said,
    sync_command,
)
from node.backup.rounds import BackupState, Rounds, Watched
from node.consensus.replica import Replica
from node.media.child import MINUTE_MS, SECOND_MS, ChildRunner, Limits, RunResult
from node.signals import Signal

ROUND_MS: Final = 60 * MINUTE_MS
"""A thorough check and a drill of some million jobs on a slow machine."""
FIRST_MAX_MS: Final = 60_000
"""Nodes that start together and share a folder come one after another, within a minute."""
LISTEN_S: Final = 10.0
"""Until litestream has opened its socket: it looks at its destination first."""
LOOK_S: Final = 0.05
DRILL_EVERY_MS: Final = 24 * 60 * MINUTE_MS
"""And once when a node first coordinates; it costs a transfer of the whole ledger."""
_SENT_ANEW: Final = "all of it is sent anew; should this come again, use [backup] archive"

_log = structlog.get_logger("backup")


class Host(Watched, Protocol):
    """What duties need of the driver."""

    leader_changed: Signal

    @property
    def is_leader(self) -> bool:
        """This node coordinates."""
        ...


class Mirrors(Protocol):
    """Litestream's files: `litestream_files.MirrorFolder`."""

    def database(self, name: str) -> Path:
        """The mirror of that name; others are removed."""
        ...

    def reach(self, destination: Destination) -> None:
        """Looks that a folder is there, and makes the place in it."""
        ...

    def configure(self, text: str) -> Path:
        """Writes litestream's configuration; its path."""
        ...

    def socket(self) -> Path:
        """Where the control socket will be."""
        ...

    def scratch(self) -> Path:
        """Where a drill brings a ledger back to; nothing is there."""
        ...

    def remove(self) -> None:
        """Forgets the mirror."""
        ...

    def close(self) -> None:
        """Removes what lies outside the home."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What duties work with."""

    home: Path
    python: str
    runner: ChildRunner
    host: Host
    replica: Replica
    random: RandomSource
    fault: Callable[[], str]
    """What is wrong with this replica, when something is: then it is no source of backups."""


class LedgerCommands:
    """`mesh-cli ledger ...` for this home, in a child."""

    def __init__(self, means: Means) -> None:
        self._means = means

    async def run(self, *words: str) -> dict[str, Any]:
        """Its JSON answer.  Raises the error that it told, `BackupError` when it told none."""
        if fault := self._means.fault():
            raise DivergenceError(fault, "it is made anew from the others first")
        command = (self._means.python, "-P", "-m", "node.cli.mesh_cli", "ledger", *words)
        result = await self._means.runner.run(
            (*command, "--home", str(self._means.home), "--json"),
            limits=Limits(time_ms=ROUND_MS),
        )
        try:
            answer: Any = json.loads(result.stdout)
        except ValueError:
            answer = None
        match answer:
            case {"error": {"code": str() as code, "what": str() as what, "todo": str() as todo}}:
                raise errors_by_code().get(code, BackupError)(what, todo)
            case dict() if result.ok:
                return answer
            case _:
                raise BackupError(
                    f"mesh-cli ledger {words[0]} failed: {said(result)}", "see its log"
                )


class Archiver:
    """Keeps an archive in a folder up to date, on every node that names one.

    Rejected: on the coordinator's node alone; in folders of their own, machines would then each hold
    pieces, and a mesh that cannot elect would archive nothing of what it decided before.
    """

    def __init__(self, means: Means, folder: str, every_s: int) -> None:
        self._commands = LedgerCommands(means)
        self._folder = folder
        self.rounds = Rounds(
            BackupState(kind="archive", target=folder),
            host=means.host,
            every_s=every_s,
            first_ms=min(every_s * 1000, FIRST_MAX_MS),
            run_once=self._round,
            random=means.random,
        )

    async def run(self) -> None:
        """Until cancelled."""
        await self.rounds.run()

    async def finish(self) -> None:
        """What was decided last, before the node stops."""
        await self.rounds.finish()

    async def _round(self) -> int:
        made = await self._commands.run("archive", self._folder)
        if made["drilled"]:
            self.rounds.state.drilled_ms = clock.wall_ms()
        if made["snapshot"]:
            _log.info("snapshot archived", index=made["index"], drilled=made["drilled"])
        return int(made["index"])


@dataclass(slots=True)
class _Running:
    task: asyncio.Task[RunResult]
    socket: Path
    config: Path
    name: str


class Mirroring:
    """While this node coordinates: a mirror of its ledger, and litestream on it."""

    def __init__(
        self,
        means: Means,
        *,
        own: NodeId,
        destination: Destination,
        keys: SftpKeys,
        every_s: int,
        find: Callable[[], str],
        mirrors: Mirrors,
    ) -> None:
        self._means = means
        self._commands = LedgerCommands(means)
        self._own = own
        self._destination = destination
        self._keys = keys
        self._find = find
        self._mirrors = mirrors
        self._running: _Running | None = None
        self._drill_at_ms = 0
        self.rounds = Rounds(
            BackupState(kind="litestream", target=destination.text, here=False),
            host=means.host,
            every_s=every_s,
            first_ms=0,
            run_once=self._round,
            random=means.random,
        )

    async def run(self) -> None:
        """Until cancelled; litestream is gone when it returns."""
        state, host = self.rounds.state, self._means.host
        while True:
            seen = host.leader_changed.count
            if host.is_leader:
                state.here = True
                await self._lead()
                state.here = False
            self._look()
            await host.leader_changed.wait(seen)

    def _look(self) -> None:
        """A program that is missing is told at once, not when this node happens to lead."""
        state, before = self.rounds.state, self.rounds.state.fault
        try:
            self._find()
        except DarkStreamError as error:
            state.fault = error
            if before is None or before.what != error.what:
                _log.warning("litestream cannot run here", why=error.line())
        else:
            state.fault = None

    async def finish(self) -> None:
        """What was decided last, before the node stops."""
        if self.rounds.state.here:
            await self.rounds.finish()

    async def _lead(self) -> None:
        state, host = self.rounds.state, self._means.host
        # What an earlier lead sent may lie behind by now: nothing is known to be there.
        state.index, state.done_ms = 0, None
        rounds = asyncio.create_task(self.rounds.run(), name="mirror rounds")
        try:
            while host.is_leader:
                changed = asyncio.ensure_future(host.leader_changed.wait(host.leader_changed.count))
                try:
                    await asyncio.wait((changed, rounds), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
                if rounds.done():
                    rounds.result()
        finally:
            rounds.cancel()
            await asyncio.wait((rounds,))
            await self._stop()

    # --- one round --------------------------------------------------------------------------------

    async def _round(self) -> int:
        program = self._find()
        name = await self._name()
        if self._running is not None and self._running.name != name:
            await self._stop()
        destination = self._destination.below(name)
        self.rounds.state.target = destination.text
        await asyncio.to_thread(self._mirrors.reach, destination)
        database = await asyncio.to_thread(self._mirrors.database, name)
        try:
            made = await self._commands.run("mirror", str(database))
        except DamagedError:
            await self._stop()
            await asyncio.to_thread(self._mirrors.remove)
            raise
        running = await self._started(program, name, database, destination)
        await self._sync(program, running, database, destination)
        if clock.monotonic_ms() >= self._drill_at_ms:
            try:
                await self._drill(program, running, database, made)
            except BackupError:
                # Whatever is there now cannot be relied on: all of it is sent anew.
                await self._stop()
                await asyncio.to_thread(self._mirrors.remove)
                raise
            self._drill_at_ms = clock.monotonic_ms() + DRILL_EVERY_MS
            self.rounds.state.drilled_ms = clock.wall_ms()
        return int(made["index"])

    async def _drill(
        self, program: str, running: _Running, database: Path, made: dict[str, Any]
    ) -> None:
        """Brings back what was sent, and compares it with the mirror, which stands still meanwhile."""
        file = await asyncio.to_thread(self._mirrors.scratch)
        try:
            result = await self._means.runner.run(
                restore_command(program, running.config, database, file, None),
                limits=Limits(time_ms=ROUND_MS),
            )
            if not result.ok:
                raise BackupError(f"litestream's drill failed: {said(result)}", _SENT_ANEW)
            try:
                found = await self._commands.run("verify", str(file))
            except DamagedError as error:
                raise BackupError(f"litestream's drill failed: {error.what}", _SENT_ANEW) from None
        finally:
            await asyncio.to_thread(self._mirrors.scratch)
        there, here = (found["applied_index"], found["checksum"]), (made["index"], made["checksum"])
        if there != here:
            raise BackupError(
                f"litestream's drill brought back entry {there[0]}, and {here[0]} was sent",
                _SENT_ANEW,
            )
        _log.info("what litestream sent came back equal", index=here[0])

    async def _name(self) -> str:
        mesh = await self._means.replica.read(lambda reader: reader.mesh())
        if mesh is None:
            raise NoCoordinatorError("this node's mesh is only forming", "wait")
        return place_name(mesh.id, mesh.epoch, self._own)

    async def _started(
        self, program: str, name: str, database: Path, destination: Destination
    ) -> _Running:
        """Litestream, running and listening.  Raises `BackupError` with its last words."""
        if self._running is not None and self._running.task.done():
            await self._stop()
        if self._running is None:
            socket = self._mirrors.socket()
            config = self._mirrors.configure(
                configuration(database, destination, self._keys, socket)
            )
            work = self._means.runner.run(
                replicate_command(program, config), limits=Limits(time_ms=None)
            )
            task = asyncio.create_task(work, name="litestream")
            self._running = _Running(task, socket, config, name)
            _log.info("litestream runs", destination=destination.text)
        running = self._running
        try:
            async with asyncio.timeout(LISTEN_S):
                while not await asyncio.to_thread(running.socket.exists):
                    await asyncio.wait((running.task,), timeout=LOOK_S)
                    if running.task.done():
                        raise not_sent(destination, said(running.task.result()))
        except TimeoutError:
            raise not_sent(destination, f"it does not listen within {LISTEN_S:g} s") from None
        return running

    async def _sync(
        self, program: str, running: _Running, database: Path, destination: Destination
    ) -> None:
        result = await self._means.runner.run(
            sync_command(program, running.socket, database),
            limits=Limits(time_ms=(SYNC_S + 10) * SECOND_MS),
        )
        if running.task.done():
            raise not_sent(destination, said(running.task.result()))
        if not result.ok:
            raise not_sent(destination, said(result))

    async def _stop(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.task.cancel()
            await asyncio.wait((running.task,))
        self._mirrors.close()


class Duties:
    """Everything that this node backs up by itself."""

    def __init__(self, duties: Sequence[Archiver | Mirroring]) -> None:
        self._duties = tuple(duties)

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for duty in self._duties:
                group.create_task(duty.run(), name=duty.rounds.state.kind)

    async def finish(self) -> None:
        """What was decided last, before the node stops."""
        await asyncio.gather(*(duty.finish() for duty in self._duties))

    def states(self) -> tuple[BackupState, ...]:
        """How far each way is."""
        return tuple(replace(duty.rounds.state) for duty in self._duties)
