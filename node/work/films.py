"""A node's hands on films: which files may be touched, who may fetch what, and every move of bytes.

Composes transfer and disk for the worker (sources, results), the owner (planning, intake) and the
bulk server (handles).  A handle names an attempt, never a path: `source/<attempt>` is the owner's
film for the node that holds the lease, `cached/<attempt>` what another node has of that film,
`result/<attempt>` the worker's result for the owner.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import structlog

from ledger.jobs import PARTS, Attempt, Job
from ledger.queries import Reader
from mesh import clock
from mesh.bulk_client_zmq import ZmqBulkClient
from mesh.errors import (
    BusyError,
    NotAllowedError,
    NotFoundError,
    SourceChangedError,
)
from mesh.ids import NodeId
from mesh.shares import Helpers
from mesh.source_cache_files import SourceCache
from mesh.transfer import (
    Brought,
    ByteRange,
    Manifest,
    NextFile,
    Source,
    bytes_of,
    kept_inode,
    spans_of,
)
from mesh.transfer_files import (
    PARTIAL_SUFFIX,
    FileSource,
    PartialFile,
    digest_file,
    make_manifest,
    remove_old_partials,
    require_space,
)
from node.consensus.replica import Replica
from node.gateway.models import Restored
from node.media.child import HELD, AnyPath, HeldFile
from node.media.command import Parts
from node.media.convert import Media
from node.threads import run_stoppable
from node.work.allowed_files import Allowed
from node.work.attempts import ReportBytes
from node.work.conversion import judge_delivered, plan_of, whole_plan
from node.work.film_pieces import FilmPieces, LabelsOf, copy_kept, holds, plain
from node.work.order import Order
from node.work.output_files import check_output, least_bytes
from node.work.owner import Plan
from node.work.publishing import Publishing
from node.work.sharing import CACHED, Contacts, Sharers
from node.work.small_files import SmallFiles

T = TypeVar("T")

THREADS: Final = 8
"""Transfers and digests at once: two a slot of a large machine."""
SWEEP_MS: Final = 500
"""With the second in which the worker looks at the ledger at least: a cancelled job leaves no file after two."""
TIDY_MS: Final = 10_000
"""Old connections, and films in the cache that are older or more than they may be."""
LEFTOVERS_MS: Final = 7 * 24 * 3_600_000
"""Partial files that nobody has written for a week belong to no job that still runs."""
CACHE_BYTES: Final = 32 << 30
CACHE_AGE_MS: Final = 7 * 24 * 3_600_000
_OPENS_HELD: Final = Path(HELD).is_dir()
"""Linux with /proc; elsewhere children open films by their names."""
_HELD: Final = ("finished", "kept", "accepted")
"""States of attempts whose results their owners may still want."""
REPLICA_LAG_TRIES: Final = 20
REPLICA_LAG_S: Final = 0.25
"""A worker may hear of its lease before the owner does: refusals are asked again for five seconds."""

_log = structlog.get_logger("transfer")


class Films:
    """Implements the worker's `Sources` and `Results`, the owner's `Planner` and `Intake`."""

    def __init__(
        self,
        *,
        own: NodeId,
        folder: Path,
        trash: Path,
        allowed: Allowed,
        reader: Reader,
        client: ZmqBulkClient,
        contacts: Contacts,
        media: Callable[[], Awaitable[Media]],
        labels_of: LabelsOf,
        cache_bytes_max: int = CACHE_BYTES,
        cache_age_max_ms: int = CACHE_AGE_MS,
    ) -> None:
        self._own = own
        self._allowed = allowed
        self._reader = reader
        self._client = client
        self._contacts = contacts
        self._media = media
        self._results = folder / "results"
        self._incoming = folder / "incoming"
        self._tables = folder / "tables"
        self._cache = SourceCache(
            folder / "sources", bytes_max=cache_bytes_max, age_max_ms=cache_age_max_ms
        )
        self._fetching: dict[str, asyncio.Lock] = {}
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="films")
        self.pieces = FilmPieces(
            own=own,
            folder=folder / "pieces",
            opened=self._held,
            kept=self._kept,
            reader=reader,
            media=media,
            run=self._run,
            bring=self._bring,
            labels_of=labels_of,
        )
        self._small = SmallFiles(self._several, self._run, PartialFile)
        self._publishing = Publishing(allowed=allowed, records=trash)
        self._swept_ms = self._tidied_ms = -TIDY_MS
        for made in (self._results, self._incoming):
            made.mkdir(parents=True, exist_ok=True)
            remove_old_partials(made, clock.wall_ms() - LEFTOVERS_MS)

    def close(self) -> None:
        """Waits for running transfers, which the closed client ends."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def _run(self, work: Callable[[Callable[[], bool]], T]) -> T:
        return await run_stoppable(self._threads, work)

    # --- handles: what others may fetch -----------------------------------------------------------

    def source_for(self, peer: NodeId, handle: str) -> Source:
        """The file behind a handle, for the bulk server's thread.  Raises `NotAllowedError`."""
        kind, _, attempt_id = handle.partition("/")
        attempt = self._reader.attempt(attempt_id)
        job = self._reader.job(attempt.job) if attempt is not None else None
        if attempt is None or job is None:
            raise NotAllowedError("no such attempt is known here", "wait for the replica")
        leased_to_peer = attempt.node == peer and attempt.state == "leased"
        if kind == "slice" and job.owner == self._own and leased_to_peer:
            return self.pieces.slice_source(attempt)
        if kind == "source" and job.owner == self._own and leased_to_peer:
            table = self._tables / plain(job.source_digest)
            root, path = self._allowed.source(job.source)
            return FileSource(path, _source_manifest(job), table, below=root)
        if kind == CACHED and leased_to_peer:
            return self._cache.source(plain(job.source_digest), _source_manifest(job))
        wanted_by_peer = job.owner == peer and attempt.state in _HELD
        if kind == "result" and attempt.node == self._own and wanted_by_peer:
            return self._result_source(attempt)
        raise NotAllowedError("this handle is not yours", "")

    def _result_source(self, attempt: Attempt) -> FileSource:
        path = self._kept(attempt)
        try:
            found = path.stat()
        except FileNotFoundError:
            raise NotFoundError("the result is not here any more", "convert again") from None
        manifest = Manifest(
            size=attempt.result_bytes,
            digest=attempt.result_digest,
            mtime_ns=found.st_mtime_ns,
            inode=kept_inode(found.st_ino),
        )
        return FileSource(path, manifest)

    # --- the worker's side ------------------------------------------------------------------------

    async def fetch(
        self,
        order: Order,
        folder: Path,
        on_bytes: ReportBytes,
        ranges: Sequence[ByteRange] | None = None,
    ) -> tuple[Path, int]:
        """What the task works on: a slice, the film itself on its owner's node, else the film fetched.

        With `ranges` only the chunks that hold these bytes; the rest of the file is a hole.
        """
        if order.task.kind == "chunk":
            return await self.pieces.fetch(order, folder, on_bytes)
        return await self._all_of_it(order, folder, on_bytes, ranges)

    @asynccontextmanager
    async def opened(self, order: Order, source: Path) -> AsyncGenerator[AnyPath]:
        """What `fetch` brought, for children to open: a film of this node as it was planned."""
        if order.job.owner != self._own or order.task.kind == "chunk":
            yield source  # a file of the attempt's own
            return
        async with self._held(order.job) as film:
            yield film

    @asynccontextmanager
    async def film(self, order: Order, folder: Path) -> AsyncGenerator[AnyPath]:
        """All of a film, for a task that was to do with a part of it."""
        if order.job.owner == self._own:
            async with self._held(order.job) as film:
                yield film
            return
        path, _ = await self._all_of_it(order, folder, lambda _, __: None, None)
        yield path

    async def parts(self, order: Order, folder: Path, source: AnyPath) -> Parts:
        """What a film of this node is assembled of."""
        return await self.pieces.parts(order, folder, source)

    @asynccontextmanager
    async def _held(self, job: Job, manifest: Manifest | None = None) -> AsyncGenerator[AnyPath]:
        """A film of this node while it is open.  Raises `SourceChangedError` when it is another one now.

        Children open what is checked here and no name: between a check and an opening by name
        somebody could put a link in its place.
        """
        root, path = self._allowed.source(job.source)
        wanted = manifest or _source_manifest(job)
        file = await self._run(lambda _: FileSource(path, wanted, below=root))
        try:
            held = HeldFile(file.descriptor)
            yield held if _OPENS_HELD else path
        finally:
            file.close()

    async def _all_of_it(
        self,
        order: Order,
        folder: Path,
        on_bytes: ReportBytes,
        ranges: Sequence[ByteRange] | None,
    ) -> tuple[Path, int]:
        job = order.job
        if job.owner == self._own:
            path = await self._run(lambda _: self._unchanged(job))
            await self._run(lambda _: require_space(folder, job.source_bytes))
            return path, 0
        target = folder / f"source{Path(job.source).suffix}"
        brought = await self._bring_source(order, target, on_bytes, ranges)
        return target, brought

    async def _bring_source(
        self,
        order: Order,
        target: Path,
        on_bytes: ReportBytes,
        ranges: Sequence[ByteRange] | None,
    ) -> int:
        """The film or these parts of it through the cache, under a name of the attempt's own."""
        job = order.job
        expected = Manifest(size=job.source_bytes, digest=job.source_digest)
        wanted = bytes_of(
            expected, expected.whole if ranges is None else spans_of(expected, ranges)
        )
        path = self._cache.path(plain(job.source_digest))
        first_done = -1
        done = 0

        def count(now_done: int, total: int) -> None:
            nonlocal first_done, done
            first_done = now_done if first_done < 0 else first_done
            done = now_done
            on_bytes(now_done, total)

        # Two attempts at one film: the second finds what the first brought.
        lock = self._fetching.setdefault(job.source_digest, asyncio.Lock())
        try:
            async with lock:
                await self._run(lambda _: self._cache.make_room(wanted, path))
                await self._bring(
                    NodeId(job.owner),
                    f"source/{order.attempt.id}",
                    path,
                    expected,
                    count,
                    ranges=ranges,
                    helpers=Sharers(
                        self._own, job, order.attempt, self._reader.holders, self._contacts
                    ),
                    stays=True,
                )
                await self._run(lambda _: self._cache.lend(path, target))
        finally:
            if not lock.locked():
                self._fetching.pop(job.source_digest, None)
        return done - max(first_done, 0)

    def _unchanged(self, job: Job) -> Path:
        """The film of a job of this node.  Raises `SourceChangedError` when it is another one now."""
        root, path = self._allowed.source(job.source)
        FileSource(path, _source_manifest(job), below=root).close()
        return path

    async def keep(self, order: Order, result: Path) -> tuple[int, str]:
        """Digests and syncs a judged result and keeps it for its owner."""

        def work(should_stop: Callable[[], bool]) -> tuple[int, str]:
            digest = digest_file(result, should_stop=should_stop)
            with result.open("rb") as file:
                os.fsync(file.fileno())
            kept = self._kept(order.attempt)
            kept.parent.mkdir(parents=True, exist_ok=True)  # a person may have cleaned the cache
            result.replace(kept)
            return kept.stat().st_size, digest

        return await self._run(work)

    async def sweep(self, replica: Replica) -> None:
        """Deletes results, staging and pieces whose jobs need them no more; looks twice a second at most."""
        now_ms = clock.monotonic_ms()
        if now_ms - self._swept_ms < SWEEP_MS:
            return
        self._swept_ms = now_ms
        try:
            if now_ms - self._tidied_ms >= TIDY_MS:
                self._tidied_ms = now_ms
                self._client.tidy()
                await self._run(lambda _: self._cache.sweep(clock.wall_ms()))
            await replica.read(self._sweep)
        except OSError as error:
            _log.warning("results could not be swept", reason=str(error))

    def _sweep(self, reader: Reader) -> None:
        for path in self._results.iterdir():
            attempt = reader.attempt(path.name)
            job = reader.job(attempt.job) if attempt is not None else None
            wanted = attempt is not None and attempt.state in ("leased", *_HELD)
            if not wanted or job is None or job.is_final:
                path.unlink(missing_ok=True)
        for path in self._incoming.glob(f"*{PARTIAL_SUFFIX}*"):
            job = reader.job(path.name.partition(".")[0])
            if job is None or job.is_final:
                path.unlink(missing_ok=True)
        self.pieces.sweep(reader)
        self._publishing.sweep(lambda job: (known := reader.job(job)) is not None and known.state == "done")  # fmt: skip

    async def _bring(
        self,
        peer: NodeId,
        handle: str,
        path: Path,
        expected: Manifest,
        on_bytes: ReportBytes,
        *,
        ranges: Sequence[ByteRange] | None = None,
        helpers: Helpers | None = None,
        stays: bool = False,
    ) -> None:
        """Brings the file behind a handle of a peer to `path`; `stays`: with its journal, for a cache."""
        for left in reversed(range(REPLICA_LAG_TRIES)):
            contact = self._contacts(peer)
            try:
                if not stays and SmallFiles.are(expected):
                    await self._small.bring(peer, handle, path, expected)
                    on_bytes(expected.size, expected.size)
                    return
                await self._run(
                    lambda should_stop, contact=contact: self._client.fetch(  # type: ignore[misc]  # mypy infers no lambda with a default
                        peer=peer,
                        public_key=contact.public_key,
                        hosts=contact.hosts,
                        port=contact.port,
                        handle=handle,
                        target=PartialFile(path, stays=stays),
                        expected=expected,
                        ranges=ranges,
                        helpers=helpers,
                        on_progress=on_bytes,
                        should_stop=should_stop,
                    )
                )
            except (NotAllowedError, BusyError):
                if not left:
                    raise
                await asyncio.sleep(REPLICA_LAG_S)
            else:
                return

    def _several(
        self, peer: NodeId, next_file: NextFile, should_stop: Callable[[], bool]
    ) -> Generator[Brought]:
        contact = self._contacts(peer)
        return self._client.fetch_many(
            peer=peer,
            public_key=contact.public_key,
            hosts=contact.hosts,
            port=contact.port,
            next_file=next_file,
            should_stop=should_stop,
        )

    # --- the owner's side -------------------------------------------------------------------------

    async def plan(self, job: Job) -> Plan:
        """Digest, probe and plan of a source that is what it was when it was submitted."""
        root, path = self._allowed.source(job.source)
        self._allowed.split(job.output)
        share = await self._run(lambda _: self._reader.result_share(job.profile))
        output, least = Path(job.output), least_bytes(job.source_bytes, share)
        await self._run(lambda _: check_output(output, least))
        manifest = await self._run(
            lambda should_stop: make_manifest(
                path, should_stop=should_stop, tables=self._tables, below=root
            )
        )
        if (manifest.size, manifest.mtime_ns, manifest.inode) != (
            job.source_bytes,
            job.source_mtime_ns,
            job.source_inode,
        ):
            raise SourceChangedError(
                f"{path.name} changed since it was submitted",
                "wait until nothing writes it any more, then submit it again",
            )
        async with self._held(job, manifest) as film:
            probe = await (await self._media()).probe(film, size=manifest.size)
            plan = plan_of(job, probe, manifest.digest)
            return await self.pieces.plan(job, film, probe, plan, whole_plan(job, probe))

    async def digest_of(self, source: str) -> str:
        """The digest of an allowed film's content, as plans tell it.  Raises `PathError` and others."""
        root, path = self._allowed.source(source)
        manifest = await self._run(
            lambda should_stop: make_manifest(
                path, should_stop=should_stop, tables=self._tables, below=root
            )
        )
        return manifest.digest

    async def take(self, job: Job, attempt: Attempt, on_bytes: ReportBytes) -> None:
        """Brings the result into staging and judges it; a part of a film to the other parts."""
        task = await self._run(lambda _: self._reader.task(attempt.task))
        if task is not None and task.kind in PARTS:
            await self.pieces.take(job, task, attempt, on_bytes)
            return
        staging = self._staging(job)
        expected = Manifest(size=attempt.result_bytes, digest=attempt.result_digest)
        if not await self._run(lambda _: holds(staging, expected)):
            if attempt.node == self._own:
                kept = self._kept(attempt)
                await self._run(lambda _: copy_kept(kept, staging, expected))
            else:
                handle = f"result/{attempt.id}"
                await self._bring(NodeId(attempt.node), handle, staging, expected, on_bytes)
        if attempt.node == self._own:
            return  # these very bytes were judged here, by the same rules
        media = await self._media()
        try:
            async with self._held(job) as film:
                await judge_delivered(media, job, attempt, staging, film)
        except SourceChangedError as gone:
            # Who deletes a film early must not lose its result as well; the worker has compared both.
            _log.warning("result judged without its film", job=job.id, reason=gone.what)
            await judge_delivered(media, job, attempt, staging, None)

    async def publish(self, job: Job, attempt: Attempt) -> None:
        """Brings staging to its place; says nothing when exactly this result lies there already."""
        expected = Manifest(size=attempt.result_bytes, digest=attempt.result_digest)
        await self._run(lambda _: self._publishing.publish(job, self._staging(job), expected))

    async def restore(self, job: Job) -> Restored:
        """Brings the original that a result of this job replaced back to its name."""
        return await self._run(lambda _: self._publishing.restore(job))

    async def discard(self, job: Job) -> None:
        """Removes staging; a film that was to be replaced is as it was."""
        await self._run(lambda _: PartialFile(self._staging(job)).discard())
        await self._run(lambda _: self._publishing.undo(job))

    def _staging(self, job: Job) -> Path:
        return self._incoming / f"{plain(job.id)}{PARTIAL_SUFFIX}"

    def _kept(self, attempt: Attempt) -> Path:
        return self._results / plain(attempt.id)


def _source_manifest(job: Job) -> Manifest:
    return Manifest(
        size=job.source_bytes,
        digest=job.source_digest,
        mtime_ns=job.source_mtime_ns,
        inode=job.source_inode,
    )
