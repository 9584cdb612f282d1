"""What the consensus core asks beside the log: whole ledgers made for others, and taken from them.

All of it runs beside the consensus loop; only the last step of an installation, the log's restart,
is the loop's own.  Crash points of an installation, and what a start finds (`recover` of the shelf):

1. while the file is fetched: ledger and log are what they were; the transfer goes on where it was;
2. after the base was noted (`begin`): the same; the note is forgotten;
3. after the ledger was replaced (`install`, in one transaction, durable): the ledger is ahead of the
   log; the noted base is all that is needed to restart the log, which the start does;
4. after the log restarted: done; the note is forgotten.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import structlog

from mesh import clock
from mesh.effects import Effect
from mesh.errors import DarkStreamError, OutdatedError, TransferError
from mesh.ids import NodeId, RaftId, node_of
from mesh.log import Base, LogStorage
from mesh.messages import SnapshotOffer
from mesh.protocol import Raft
from node.consensus.compaction import Keep
from node.consensus.divergence import OwnMarks
from node.consensus.ledger_port import Ledger
from node.signals import Signal

T = TypeVar("T")

HOLD_MS: Final = 10 * 60_000
"""The log behind an offered snapshot is kept so long for who fetches it, within `compaction.PATIENCE`."""
LOOK_S: Final = 1.0
STALLED_MS: Final = 3_000
"""No chunk for so long, of a sender that leads no more: it is dead, or as good as that."""
REPLAY_BYTES: Final = 4 << 20
"""Entries read at once when a rebuilt ledger catches up."""

_log = structlog.get_logger("ledger")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A whole ledger as a file: applied up to (`index`, `term`); `size` in bytes, `digest` BLAKE3 in hexadecimal."""

    index: int
    term: int
    size: int
    digest: str
    handle: str


OnBytes = Callable[[int, int], None]
"""(verified bytes so far, bytes in all); called in the transfer's thread."""


class Shelf(Protocol):
    """Makes, serves, fetches and installs snapshots; what takes long runs in threads of its own."""

    async def newest(self, index_min: int) -> Snapshot:
        """One that holds at least everything up to `index_min`, made now if there is none.

        Raises `StorageError`.
        """
        ...

    async def fetch(self, source: NodeId, snapshot: Snapshot, on_bytes: OnBytes) -> None:
        """Brings a member's snapshot here, resumed and verified.  Raises what transfers raise."""
        ...

    def begin(self, base: Base) -> None:
        """Durably notes what is about to be installed; on the log's thread."""
        ...

    def install(self, snapshot: Snapshot) -> None:
        """Replaces the ledger by what was fetched, whole and durably or not at all; on the ledger's thread.

        Raises `TransferError`, `StorageError`.
        """
        ...

    def finish(self) -> None:
        """Log and ledger fit again: forgets the note and the fetched file; on the log's thread."""
        ...


class Host(Protocol):
    """What snapshots need of the driver."""

    raft: Raft
    applied_index: int
    marks: OwnMarks

    @property
    def leader(self) -> RaftId | None:
        """Who leads, as far as this node knows."""
        ...

    async def ask_core(self, call: Callable[[int], list[Effect]]) -> None:
        """Has the core answer within the loop's order; raises what it raises."""
        ...

    async def on_log_thread(self, work: Callable[[], T]) -> T:
        """Runs between two writes of the log."""
        ...

    async def on_ledger_thread(self, work: Callable[[], T]) -> T:
        """Runs between two batches of applied entries."""
        ...

    async def restart_log(self, base: Base) -> None:
        """The ledger is at `base` now: log and core follow."""
        ...

    async def wait_applied(self, index: int, timeout_s: float) -> bool:
        """Whether this node's ledger holds the entry of this index before the time is over."""
        ...


class SnapshotDuty:
    """Answers `SnapshotNeeded` and `InstallSnapshot`, one of each kind at a time."""

    def __init__(
        self, host: Host, log: LogStorage, ledger: Ledger, shelf: Shelf, keep: Keep
    ) -> None:
        self.installed = 0
        """Snapshots taken over since the start."""
        self._host = host
        self._log = log
        self._ledger = ledger
        self._shelf = shelf
        self._keep = keep
        self._wanted: dict[RaftId, None] = {}
        self._offer: SnapshotOffer | None = None
        self._due = Signal()
        self._taking = asyncio.Lock()
        """One snapshot comes here at a time: there is one place for it, and one ledger."""
        self._offered: dict[RaftId, tuple[int, int]] = {}

    # --- what the core asks -----------------------------------------------------------------------

    def needed(self, to: RaftId) -> None:
        """A follower lacks what the log has no more."""
        self._wanted[to] = None
        self._due.set()

    def install(self, offer: SnapshotOffer) -> None:
        """The leader offers what this node lacks; the core asks for one at a time."""
        self._offer = offer
        self._due.set()

    def held(self, now_ms: int) -> Sequence[int]:
        """Indexes behind which the log should stay, because a snapshot that ends there is on its way."""
        matches = {peer.raft_id: peer.match for peer in self._host.raft.progress()}
        self._offered = {
            to: (index, at_ms)
            for to, (index, at_ms) in self._offered.items()
            if matches.get(to, index) < index and now_ms - at_ms < HOLD_MS
        }
        return [index for index, _ in self._offered.values()]

    # --- performing -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled, or until storage fails."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._run_offers(), name="offers")
            group.create_task(self._run_installs(), name="installs")

    async def _run_offers(self) -> None:
        while True:
            seen = self._due.count
            while self._wanted:
                to = next(iter(self._wanted))
                await self._make_for(to)
                self._wanted.pop(to, None)
            await self._due.wait(seen)

    async def _make_for(self, to: RaftId) -> None:
        raft = self._host.raft
        # Fresh enough that the log still has what follows once it is fetched and installed.
        index_min = max(self._log.base().index, self._host.applied_index - self._keep.entries // 2)
        try:
            snapshot = await self._shelf.newest(index_min)
            base = raft.base_at(snapshot.index)
            if base is None or base.term != snapshot.term:
                raise TransferError("the log has gone past the snapshot", "a newer one is made")
        except DarkStreamError as error:
            _log.warning("no snapshot for a follower", follower=to, reason=error.what)
            await self._tell_core(lambda now_ms: raft.snapshot_unavailable(to, now_ms))
            return
        _log.info("snapshot offered", follower=to, index=base.index, bytes=snapshot.size)
        self._offered[to] = (base.index, clock.monotonic_ms())
        await self._tell_core(
            lambda now_ms: raft.offer_snapshot(
                to, base, snapshot.size, snapshot.digest, snapshot.handle, now_ms
            )
        )

    async def _tell_core(self, call: Callable[[int], list[Effect]]) -> None:
        try:
            await self._host.ask_core(call)
        except DarkStreamError as error:
            _log.debug("the core has no use for it any more", reason=error.what)

    async def _run_installs(self) -> None:
        while True:
            seen = self._due.count
            while (offer := self._offer) is not None:
                self._offer = None
                async with self._taking:
                    await self._install(offer)
            await self._due.wait(seen)

    async def _install(self, offer: SnapshotOffer) -> None:
        base = Base(offer.base_index, offer.base_term, offer.configuration)
        snapshot = Snapshot(
            index=offer.base_index,
            term=offer.base_term,
            size=offer.size,
            digest=offer.digest,
            handle=offer.handle,
        )
        _log.info("snapshot needed", index=base.index, bytes=offer.size, source=offer.sender)
        try:
            await self._fetch(offer.sender, snapshot)
            await self._host.on_log_thread(lambda: self._shelf.begin(base))
            await self._host.on_ledger_thread(lambda: self._shelf.install(snapshot))
        except OutdatedError:
            # No later offer will be older: this node ends, and says why.
            raise
        except DarkStreamError as error:
            # The ledger is what it was; the leader offers again.
            _log.warning("snapshot not installed", index=base.index, reason=error.line())
            await self._tell_core(self._host.raft.install_failed)
            return
        await self._host.restart_log(base)
        await self._host.on_log_thread(self._shelf.finish)
        self.installed += 1
        _log.info("snapshot installed", index=base.index)

    async def _fetch(self, leader: RaftId, snapshot: Snapshot) -> None:
        """Fetches; a transfer that stands still is given up once somebody else leads and can offer."""
        moved_ms = clock.monotonic_ms()

        def moved(_: int, __: int) -> None:
            nonlocal moved_ms
            moved_ms = clock.monotonic_ms()

        fetching = asyncio.ensure_future(self._shelf.fetch(node_of(leader), snapshot, moved))
        try:
            while not fetching.done():
                await asyncio.wait({fetching}, timeout=LOOK_S)
                deposed = self._host.leader not in (None, leader)
                if deposed and clock.monotonic_ms() - moved_ms > STALLED_MS:
                    raise TransferError(f"{leader} went away", "the new coordinator is asked")
            fetching.result()
        finally:
            if not fetching.done():
                fetching.cancel()
                await asyncio.wait({fetching})

    # --- a ledger that is wrong ---------------------------------------------------------------------

    async def rebuild(self, source: NodeId, snapshot: Snapshot, timeout_s: float) -> None:
        """Replaces the ledger by a member's and applies again what follows; the log stays as it is.

        Raises what transfers raise, `StorageError`.
        """
        async with self._taking:
            await self._rebuild(source, snapshot, timeout_s)

    async def _rebuild(self, source: NodeId, snapshot: Snapshot, timeout_s: float) -> None:
        await self._shelf.fetch(source, snapshot, lambda done, size: None)
        # Never ahead of the log: what it does not hold could not be applied again after a crash.
        if not await self._host.wait_applied(snapshot.index, timeout_s):
            raise TransferError("this node is too far behind its coordinator", "it is tried again")
        await self._host.on_ledger_thread(lambda: self._replace_and_replay(snapshot))
        self._host.marks.replaced(self._host.applied_index)
        await self._host.on_log_thread(self._shelf.finish)
        self.installed += 1
        _log.info("ledger rebuilt", index=snapshot.index, source=source)

    def _replace_and_replay(self, snapshot: Snapshot) -> None:
        applied = self._ledger.applied_index
        if self._log.base().index > snapshot.index:
            raise TransferError("the log has gone past the snapshot", "a newer one is asked for")
        self._shelf.install(snapshot)
        while self._ledger.applied_index < applied:
            next_index = self._ledger.applied_index + 1
            self._ledger.apply(self._log.entries(next_index, applied + 1, REPLAY_BYTES))
