"""Fetches files from members over ZeroMQ: a DEALER for each transfer, in its caller's thread.

Blocking sockets in threads and a context of its own: an event loop costs a third of the speed, and
a ping beside a transfer on the same connection waits for its chunks.  Connections rest for a while
after a transfer: the next file from the same peer needs no handshake.
"""

import contextlib
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final

from mesh import clock
from mesh.bulk_bundle_zmq import Bundles
from mesh.bulk_helpers_zmq import SHARED_BYTES_MIN, Film, Helping, MakeLane
from mesh.bulk_lane_zmq import Lane, Lines, OnBytes, ShouldStop
from mesh.bulk_server_zmq import io_threads
from mesh.curve_zmq import Tally
from mesh.digests import DIGEST_BYTES, file_digest
from mesh.download import Download
from mesh.errors import (
    DarkStreamError,
    NotFoundError,
    SourceChangedError,
    StoppedError,
    TransferError,
    UnreachableError,
)
from mesh.ids import NodeId
from mesh.limits import LinkRates
from mesh.shares import Helper, Helpers, OwnersShare, Pool
from mesh.transfer import (
    Brought,
    ByteRange,
    DigestsAnswer,
    DigestsRequest,
    Manifest,
    ManifestAnswer,
    ManifestRequest,
    NextFile,
    Target,
    Wanted,
    bytes_of,
    spans_of,
)
from mesh.transport import Counters, KeyPair

TABLES_BYTES_MAX: Final = 32 << 20
"""Tables of digests kept for the next range of the same file: one of a TiB, ten of 100 GiB."""
LANE_BYTES_MIN: Final = 128 << 20
"""Less than this is not worth a connection more."""
ZSTD_BYTES_S_MAX: Final = 250_000_000
"""A link on which films came faster gains nothing: compressing takes as long."""
SPEED_BYTES_MIN: Final = 8 << 20
"""Shorter transfers measure the start, not the link."""


class ZmqBulkClient:
    """Fetches files from members; `fetch` blocks and runs in a thread, several at once."""

    def __init__(self, identity: KeyPair, *, compress: bool = True) -> None:
        """`compress`: chunks that shrink may come compressed over links that are not too fast for it."""
        self._compress = compress
        self._tally = Tally("bulk-client")
        self._lines = Lines(identity, self._tally, io_threads())
        self._lock = threading.Lock()
        self._closing = False
        self._running = 0
        self._tables: OrderedDict[str, bytes] = OrderedDict()
        self._speeds: dict[NodeId, int] = {}

    def close(self) -> None:
        """Makes running transfers raise `StoppedError`, and frees everything once they have."""
        with self._lock:
            self._closing = True
            idle = self._running == 0
        if idle:
            self._lines.close()

    def tidy(self) -> None:
        """Closes connections that rested for a while."""
        self._lines.tidy(clock.monotonic_ms())

    def set_rates(self, rates: LinkRates) -> None:
        """How fast to ask from now on, also in running transfers; from any thread."""
        self._lines.gate.change(rates)

    def counters(self) -> Counters:
        """Chunk bytes in by peer, and what was refused."""
        return self._tally.snapshot()

    def speeds(self) -> dict[NodeId, int]:
        """Bytes a second that transfers from each peer came to lately."""
        with self._lock:
            return dict(self._speeds)

    def fetch(
        self,
        *,
        peer: NodeId,
        public_key: bytes,
        hosts: Sequence[str],
        port: int,
        handle: str,
        target: Target,
        expected: Manifest | None = None,
        ranges: Sequence[ByteRange] | None = None,
        helpers: Helpers | None = None,
        on_progress: OnBytes = lambda done, size: None,
        should_stop: ShouldStop = lambda: False,
    ) -> Manifest:
        """Brings the file behind a handle into `target`, verified whole.

        Goes on with what `target` has, over lost connections, at whichever address answers.
        `expected`: its content must be this one's.  `ranges`: only the chunks that hold these
        bytes, each verified by the file's digest all the same; the rest of `target` stays a hole.
        `helpers`: other members that may have some of it already.

        Raises `UnreachableError`, `NotAllowedError`, `SourceChangedError`, `TransferError`,
        `DiskFullError`, `StorageError`, `UsageError` for a range outside the file, and
        `StoppedError` when asked to stop; but for a digest that is wrong, what is there stays for
        another try.
        """
        source = Helper(
            peer=peer, public_key=public_key, hosts=tuple(hosts), port=port, handle=handle
        )
        fetch = _Fetch(
            self._lines,
            make_lane=lambda should_stop: self._lane(source, should_stop),
            target=target,
            expected=expected,
            ranges=ranges,
            on_progress=on_progress,
            should_stop=lambda: self._closing or should_stop(),
            tables=self._tables,
            helpers=helpers,
            make_helper=self._lane,
        )
        with self._counted(), contextlib.closing(target):
            begun_ms = clock.monotonic_ms()
            manifest = fetch.run()
            self._note_speed(peer, fetch.bytes_brought, clock.monotonic_ms() - begun_ms)
            return manifest

    def fetch_many(
        self,
        *,
        peer: NodeId,
        public_key: bytes,
        hosts: Sequence[str],
        port: int,
        next_file: NextFile,
        should_stop: ShouldStop = lambda: False,
    ) -> Generator[Brought]:
        """Brings files until `next_file` gives none; small ones (a chunk at most) many at once.

        What became of each, as soon as it is known, in any order.  Raises `UnreachableError`,
        `TransferError` and `StoppedError`, which end it: files not told of are not there.
        """

        def stops() -> bool:
            return self._closing or should_stop()

        source = Helper(peer=peer, public_key=public_key, hosts=tuple(hosts), port=port, handle="")
        lane = self._lane(source, stops)

        def alone(one: Wanted) -> Brought:
            if not one.claim():
                return Brought(one, StoppedError("the transfer was stopped"))
            try:
                self.fetch(
                    peer=peer,
                    public_key=public_key,
                    hosts=hosts,
                    port=port,
                    handle=one.handle,
                    target=one.target,
                    expected=one.expected,
                    should_stop=lambda: stops() or one.should_stop(),
                )
            except UnreachableError:
                raise
            except DarkStreamError as error:
                if stops():
                    raise
                return Brought(one, error)
            return Brought(one)

        with self._counted(), contextlib.closing(lane):
            for arrived in Bundles(lane, next_file).run():
                yield from arrived.brought
                yield from map(alone, arrived.alone)

    def _lane(self, source: Helper, should_stop: ShouldStop) -> Lane:
        return Lane(
            self._lines,
            peer=source.peer,
            public_key=source.public_key,
            hosts=source.hosts,
            port=source.port,
            handle=source.handle,
            zstd=self._compress and self.speeds().get(source.peer, 0) < ZSTD_BYTES_S_MAX,
            should_stop=should_stop,
        )

    @contextlib.contextmanager
    def _counted(self) -> Generator[None]:
        with self._lock:
            if self._closing:
                raise StoppedError("the node is stopping")
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                last = self._running == 0 and self._is_closing()
            if last:
                self._lines.close()

    def _is_closing(self) -> bool:
        return self._closing

    def _note_speed(self, peer: NodeId, brought: int, took_ms: int) -> None:
        if brought >= SPEED_BYTES_MIN:
            speed = brought * 1_000 // max(1, took_ms)
            with self._lock:
                self._speeds[peer] = (self._speeds.get(peer, speed) + speed) // 2


class _Fetch:
    """One file: what it is, what is missing of it, and the lanes that bring that."""

    def __init__(
        self,
        lines: Lines,
        *,
        make_lane: Callable[[ShouldStop], Lane],
        target: Target,
        expected: Manifest | None,
        ranges: Sequence[ByteRange] | None,
        on_progress: OnBytes,
        should_stop: ShouldStop,
        tables: OrderedDict[str, bytes],
        helpers: Helpers | None,
        make_helper: MakeLane,
    ) -> None:
        self._lines = lines
        self._helpers = helpers
        self._make_helper = make_helper
        self._may_share = False
        self._make_lane = make_lane
        self._target = target
        self._expected = expected
        self._ranges = ranges
        self._on_progress = on_progress
        self._should_stop = should_stop
        self._tables = tables
        self._lock = threading.Lock()
        self._failed = threading.Event()
        self.bytes_brought = 0
        """Over the link to the owner, once it is done."""

    def run(self) -> Manifest:
        with contextlib.closing(self._make_lane(self._stops)) as lane:
            manifest = self._expected
            if manifest is None or manifest.chunks > 1:
                manifest = self._ask_manifest(lane)
            spans = manifest.whole if self._ranges is None else spans_of(manifest, self._ranges)
            self._may_share = self._helpers is not None and (
                sys.platform != "win32" and bytes_of(manifest, spans) >= SHARED_BYTES_MIN
            )
            # Chunks of a part are judged by the table, and those of other nodes than the owner;
            # those of the whole also together at the end.
            film = Film(
                manifest=manifest,
                spans=spans,
                table=self._needed_table(lane, manifest, is_part=spans != manifest.whole),
                have=self._target.begin(manifest, spans),
                target=self._target,
                told=lambda: None,
            )
            self._bring(lane, film)
        try:
            self._target.finish()
        except TransferError:
            if manifest is self._expected:
                # One chunk, taken without asking what it belongs to: is it another file's?
                with contextlib.closing(self._make_lane(self._should_stop)) as lane:
                    self._ask_manifest(lane)
            raise
        return manifest

    def _stops(self) -> bool:
        return self._failed.is_set() or self._should_stop()

    def _ask_manifest(self, lane: Lane) -> Manifest:
        answer, _ = lane.exchange(ManifestRequest(handle=lane.handle), ManifestAnswer)
        manifest = answer.manifest
        if self._expected is not None and not manifest.same_content(self._expected):
            raise SourceChangedError(
                f"node {lane.peer} has another file than the one expected", "retry the job"
            )
        return manifest

    def _needed_table(self, lane: Lane, manifest: Manifest, *, is_part: bool) -> bytes:
        if is_part:
            return self._table(lane, manifest)
        if self._may_share:
            with contextlib.suppress(NotFoundError):  # then the owner sends all
                return self._table(lane, manifest)
        return b""

    def _table(self, lane: Lane, manifest: Manifest) -> bytes:
        with self._lines.lock:
            kept = self._tables.get(manifest.digest)
        if kept is not None:
            return kept
        table = bytearray()
        while len(table) < manifest.chunks * DIGEST_BYTES:
            first = len(table) // DIGEST_BYTES
            request = DigestsRequest(handle=lane.handle, first=first)
            answer, piece = lane.exchange(request, DigestsAnswer)
            if answer.first != first or not piece or len(piece) % DIGEST_BYTES:
                raise TransferError(f"node {lane.peer} sent digests that nobody asked for")
            table += piece
        made = bytes(table)
        if file_digest((made,)) != manifest.digest:
            raise TransferError(
                f"the digests of node {lane.peer} are not the file's", "retry the job"
            )
        with self._lines.lock:
            self._tables[manifest.digest] = made
            while sum(map(len, self._tables.values())) > TABLES_BYTES_MAX and len(self._tables) > 1:
                self._tables.popitem(last=False)
        return made

    # --- lanes ------------------------------------------------------------------------------------

    def _bring(self, lane: Lane, film: Film) -> None:
        size = bytes_of(film.manifest, film.spans)
        count = self._lanes(size)
        helpers = self._helpers if self._may_share and film.table else None
        pool: Pool | None = None
        if count > 1 or helpers is not None:
            start = helpers.start if helpers is not None else 0.0
            pool = Pool(film.manifest, film.spans, film.have, start, threading.Lock())
        now_ms = clock.monotonic_ms()
        downloads = [
            Download(
                film.manifest,
                film.spans,
                film.have,
                now_ms,
                None if pool is None else OwnersShare(pool),
            )
            for _ in range(count)
        ]

        def told() -> None:
            with self._lock:
                self._on_progress(downloads[0].bytes_done, size)

        told()
        film = replace(film, told=told)
        with contextlib.ExitStack() as stack:
            if helpers is not None and pool is not None:
                helping = Helping(helpers, pool, film, self._make_helper, self._should_stop)
                stack.enter_context(helping)
            if count == 1:
                lane.bring(downloads[0], film.target, film.table, told)
                self.bytes_brought = downloads[0].bytes_brought - lane.bytes_saved
            else:
                self._bring_side_by_side(lane, downloads, film)

    def _bring_side_by_side(self, lane: Lane, downloads: list[Download], film: Film) -> None:
        def one(lane: Lane, download: Download) -> None:
            with contextlib.closing(lane):
                try:
                    lane.bring(download, film.target, film.table, film.told)
                except BaseException:
                    self._failed.set()
                    raise

        lanes = [lane, *(self._make_lane(self._stops) for _ in downloads[1:])]
        with ThreadPoolExecutor(len(lanes), thread_name_prefix="lane") as threads:
            running = [threads.submit(one, *pair) for pair in zip(lanes, downloads, strict=True)]
        brought = sum(download.bytes_brought for download in downloads)
        self.bytes_brought = brought - sum(lane.bytes_saved for lane in lanes)
        errors = [error for each in running if (error := each.exception()) is not None]
        # The first that failed made the others stop.
        for error in sorted(errors, key=lambda error: isinstance(error, StoppedError)):
            raise error

    @staticmethod
    def _lanes(size: int) -> int:
        # Windows writes at a place in two steps: there two threads would write into each other.
        if sys.platform == "win32":
            return 1
        return max(1, min(io_threads(), size // LANE_BYTES_MIN))
