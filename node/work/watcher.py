"""Converts what appears in watched folders: each content once, whatever its file is called."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final, Protocol

import structlog
from pydantic import ValidationError

from ledger.jobs import Job, Watch
from ledger.queries import Reader
from mesh import clock
from mesh.errors import DarkStreamError, NoCoordinatorError, QuotaError
from mesh.ids import NodeId
from node.consensus.driver import Driver
from node.consensus.replica import Replica
from node.gateway.models import SubmitRequest, SubmitResult
from node.signals import Signal
from node.work.watch_rules import Facts, Memory, WatchSettings

LOOK_S: Final = 2.0
AGAIN_S: Final = 5.0
"""After a fault of the folder, or without a coordinator."""
TURN_FILES: Final = 64
"""Files that are looked into before the folder is looked at again."""

_log = structlog.get_logger("owner")


class Folder(Protocol):
    """A folder on disk (node.work.watch_files)."""

    def scan(self) -> Iterable[tuple[str, Facts]]:
        """Every file that is taken; blocking.  Raises `OSError`."""
        ...

    def facts_of(self, name: str) -> Facts | None:
        """Of one file; None: it is not there, or is none to take.  Blocking."""
        ...

    def changes(self, stop: asyncio.Event) -> AsyncIterator[set[str] | None]:
        """Names that changed; None: too many."""
        ...


Open = Callable[[Path, WatchSettings], Folder]
Submit = Callable[[SubmitRequest], Awaitable[SubmitResult]]


@dataclass(slots=True)
class Watched:
    """How one watched folder stands: files by what became of them, and what is wrong with it."""

    counts: dict[str, int] = field(default_factory=dict[str, int])
    fault: str = ""


class Watcher:
    """Takes care of the folders of this node's machine that are watched, as its ledger says."""

    def __init__(
        self,
        *,
        own: NodeId,
        driver: Driver,
        replica: Replica,
        open_folder: Open,
        digest: Callable[[str], Awaitable[str]],
        submit: Submit,
        profile_json: Callable[[SubmitRequest], str],
    ) -> None:
        """`profile_json` is the text by which the ledger knows a request's profile."""
        self._own = own
        self._driver = driver
        self._replica = replica
        self._open = open_folder
        self._digest = digest
        self._submit = submit
        self._profile_json = profile_json
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._by_size: dict[int, list[str]] = {}
        """Jobs of this process whose films were not read yet, by size."""
        self.states: dict[str, Watched] = {}

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                seen = self._driver.ledger_changed.count
                watches = {
                    w.id: w for w in await self._replica.read(lambda r: r.watches(self._own))
                }
                for gone in self._tasks.keys() - watches:
                    self._tasks.pop(gone).cancel()
                    self.states.pop(gone, None)
                for new in watches.keys() - self._tasks.keys():
                    self.states[new] = Watched()
                    work = self._watch(watches[new], self.states[new])
                    self._tasks[new] = group.create_task(work, name=f"watch {new}")
                await self._driver.ledger_changed.wait(seen, LOOK_S)

    async def _watch(self, watch: Watch, state: Watched) -> None:
        try:
            settings = WatchSettings.model_validate_json(watch.settings)
        except ValidationError as error:
            state.fault = f"its settings cannot be read: {error.error_count()} faults"
            return
        folder = self._open(Path(watch.folder), settings)
        turn = _Turn(self, watch, settings, folder, state)
        async with asyncio.TaskGroup() as group:
            group.create_task(turn.listen(), name=f"changes {watch.id}")
            group.create_task(turn.run(), name=f"files {watch.id}")

    async def judge(self, request: SubmitRequest, path: str, facts: Facts) -> str | Job:
        """Why a file needs no job: a sentence, or the open job that has its content; empty: it does."""
        text = self._profile_json(request)
        unplanned, may_know = await self._replica.read(
            lambda r: (self._unplanned(r, facts.size), r.may_know(facts.size))
        )
        if unplanned is not None:
            return unplanned  # its content is known once it is planned
        if not may_know:
            return ""
        digest = await self._digest(path)

        def known(reader: Reader) -> str | Job:
            if reader.is_result(facts.size, digest):
                return "it is a result of a conversion itself"
            found = reader.converted(facts.size, digest, text)
            if not isinstance(found, Job):
                return "" if found is None else "its content is converted already"
            if found.state == "failed" and found.source != path:
                return ""  # that file is gone or could not be read; this one may do better
            return "its content is converted already" if found.is_final else found

        return await self._replica.read(known)

    async def writes_again(self, request: SubmitRequest, output: str) -> bool:
        """Whether a result of ours lies there, so that a film that was replaced may replace it."""
        found = await self._replica.read(lambda r: r.job_of_output(self._own, output))
        return found is not None and found.state == "done"

    async def submit(self, request: SubmitRequest) -> SubmitResult:
        """Makes the jobs."""
        result = await self._submit(request)
        for job in result.jobs:
            if job.id is not None:
                self._by_size.setdefault(job.source_bytes, []).append(job.id)
        return result

    def _unplanned(self, reader: Reader, size: int) -> Job | None:
        """A job of ours with a film of this size whose content nobody has read yet."""
        found = [job for one in self._by_size.get(size, ()) if (job := reader.job(one)) is not None]
        waiting = [job for job in found if job.state in ("queued", "planning") and not job.planned]
        if waiting:
            self._by_size[size] = [job.id for job in waiting]
            return waiting[0]
        self._by_size.pop(size, None)
        return None


class _Turn:
    """The work on one folder."""

    def __init__(
        self,
        watcher: Watcher,
        watch: Watch,
        settings: WatchSettings,
        folder: Folder,
        state: Watched,
    ) -> None:
        self._watcher = watcher
        self._watch = watch
        self._request = settings.request
        self._filters = settings.filters
        self._folder = folder
        self._state = state
        self._memory = Memory()
        self._changed: set[str] = set()
        self._all = True
        self._woken = Signal()
        self._stop = asyncio.Event()

    async def listen(self) -> None:
        """Notes what the system tells of changes."""
        try:
            async for names in self._folder.changes(self._stop):
                if names is None:
                    self._all = True
                else:
                    self._changed |= names
                self._woken.set()
        finally:
            self._stop.set()

    async def run(self) -> None:
        """Looks, takes what is settled, and looks again."""
        scanned_ms = -1
        while True:
            woken = self._woken.count
            now_ms = clock.monotonic_ms()
            due = scanned_ms < 0 or now_ms - scanned_ms >= 1_000 * self._filters.scan_s
            try:
                if due or self._all:
                    self._all, scanned_ms = False, now_ms
                    found = await asyncio.to_thread(lambda: list(self._folder.scan()))
                    self._memory.look(found, clock.monotonic_ms(), whole=True)
                await self._look_at_changed()
                self._state.fault = ""
                busy = await self._take()
            except NoCoordinatorError:
                await self._woken.wait(self._woken.count, AGAIN_S)
                continue
            except QuotaError as error:
                # Its files wait here instead.
                self._state.fault = error.what
                self._state.counts = self._memory.counts()
                await self._woken.wait(self._woken.count, AGAIN_S)
                continue
            except OSError as error:
                self._state.fault = f"{self._watch.folder} cannot be read: {error.strerror}"
                await self._woken.wait(self._woken.count, AGAIN_S)
                continue
            self._state.counts = self._memory.counts()
            if self._memory.full:
                self._state.fault = "it holds more files than are remembered; watch parts of it"
            if not busy:
                await self._woken.wait(woken, self._pause_s(scanned_ms))

    def _pause_s(self, scanned_ms: int) -> float:
        now_ms = clock.monotonic_ms()
        scan_ms = scanned_ms + 1_000 * self._filters.scan_s - now_ms
        settle_ms = self._memory.settles_in_ms(now_ms, 1_000 * self._filters.settle_s)
        # What waits for its turn, not for its settling, is looked at again in a moment.
        waits_ms = scan_ms if settle_ms is None else min(scan_ms, max(settle_ms, 1_000))
        return max(0.05, waits_ms / 1_000)

    async def _look_at_changed(self) -> None:
        changed, self._changed = self._changed, set()
        for name in sorted(changed):
            facts = await asyncio.to_thread(self._folder.facts_of, name)
            if facts is None:
                # A folder that was moved in or out tells of itself alone.
                self._all = self._all or "." not in PurePosixPath(name).name
                self._memory.gone(name)
            else:
                self._memory.look([(name, facts)], clock.monotonic_ms(), whole=False)

    async def _take(self) -> bool:
        """Whether there is more to do at once."""
        now_ms = clock.monotonic_ms()
        settled = self._memory.settled(now_ms, 1_000 * self._filters.settle_s)
        progress = False
        for name, facts in settled[:TURN_FILES]:
            # The last look may be older than a slow copy's next byte.
            now = await asyncio.to_thread(self._folder.facts_of, name)
            if now != facts:
                self._changed.add(name)
                progress = True
                continue
            progress = await self._take_file(name, facts) or progress
        return progress and len(settled) > TURN_FILES

    async def _take_file(self, name: str, facts: Facts) -> bool:
        path = f"{self._watch.folder.rstrip('/')}/{name}"
        request = self._request_for(name, path)
        try:
            why = await self._watcher.judge(request, path, facts)
            if isinstance(why, Job):
                return False  # once that job is over it is known what this file is
            if why:
                self._memory.end(name, facts, "known")
                _log.debug("watched file needs no job", file=path, reason=why)
                return True
            result = await self._watcher.submit(request)
            if result.faults and result.faults[0].code == "conflict":
                result = await self._again(request, result)
        except (NoCoordinatorError, QuotaError):
            raise
        except OSError:
            self._changed.add(name)  # it vanished, or is no more what it was
            return True
        except DarkStreamError as error:
            _log.warning("watched file was not taken", file=path, reason=error.what)
            self._memory.end(name, facts, "refused")
            return True
        became = "submitted" if result.jobs else "refused"
        for fault in result.faults:
            _log.info("watched file was not taken", file=path, reason=fault.what)
        self._memory.end(name, facts, became)  # type: ignore[arg-type]  # one of the two
        return True

    async def _again(self, request: SubmitRequest, result: SubmitResult) -> SubmitResult:
        """The output exists: if it is what we made of this file before, it is replaced."""
        dry = await self._watcher.submit(
            request.model_copy(update={"overwrite": True, "dry_run": True})
        )
        if dry.jobs and await self._watcher.writes_again(request, dry.jobs[0].output):
            return await self._watcher.submit(request.model_copy(update={"overwrite": True}))
        return result

    def _request_for(self, name: str, path: str) -> SubmitRequest:
        output = self._request.output
        if output is not None:
            with suppress(ValueError):
                below = PurePosixPath(name).parent
                output = str(Path(output) / below) if below != PurePosixPath() else output
        return self._request.model_copy(update={"paths": [path], "output": output})
