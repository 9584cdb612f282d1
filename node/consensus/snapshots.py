"""Whole ledgers as files: made here for members to fetch, fetched from members, put in the ledger's place.

A composition root like `films`: snapshot files, transfer and ledger together.  What takes long runs
in threads of its own, never on the loop or the log's thread.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from ledger.log_sqlite import LogStore
from ledger.snapshot_sqlite import remove_snapshots, verify_snapshot, write_snapshot
from ledger.store_sqlite import LedgerStore
from mesh.bulk_client_zmq import ZmqBulkClient
from mesh.errors import NotFoundError, StorageError, TransferError
from mesh.ids import NodeId
from mesh.log import Base, HardState
from mesh.transfer import Manifest
from mesh.transfer_files import (
    JOURNAL_SUFFIX,
    PARTIAL_SUFFIX,
    FileSource,
    PartialFile,
    digest_file,
    make_manifest,
    require_space,
)
from node.consensus.snapshot_duty import OnBytes, Snapshot
from node.threads import in_background, run_stoppable
from node.work.sharing import Contacts

HANDLE_PREFIX: Final = "snapshot-"
SNAPSHOTS_MAX: Final = 2
"""Files kept: the newest, and the one before it, which somebody may still be fetching."""
REPLACING: Final = "replacing"
"""Value in the log's file from before the ledger is replaced until the log fits it again."""
INCOMING: Final = f"incoming{PARTIAL_SUFFIX}"
"""What is being fetched; its journal says of which digest, so that another one begins anew."""

_log = structlog.get_logger("ledger")


@dataclass(frozen=True, slots=True)
class _Made:
    snapshot: Snapshot
    path: Path
    manifest: Manifest


class SnapshotShelf:
    """`Shelf` over a folder of this node's home."""

    def __init__(
        self,
        *,
        folder: Path,
        log: LogStore,
        ledger: LedgerStore,
        client: ZmqBulkClient,
        contacts: Contacts,
    ) -> None:
        self._folder = folder
        self._incoming = folder / INCOMING
        self._fetched: Snapshot | None = None
        self._log = log
        self._ledger = ledger
        self._client = client
        self._contacts = contacts
        self._threads = ThreadPoolExecutor(
            2, thread_name_prefix="snapshots", initializer=in_background
        )
        self._making = asyncio.Lock()
        self._made: tuple[_Made, ...] = ()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Those of an earlier process have no handle any more; what was being fetched is gone on with.
        remove_snapshots(folder)

    def close(self) -> None:
        """Waits for what runs; the closed client ends its transfers."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    # --- for others ---------------------------------------------------------------------------------

    def source_for(self, _: NodeId, handle: str) -> FileSource:
        """The file behind a handle, for the bulk server's thread, which lets members in alone.

        Every member holds the whole ledger, so each may have each snapshot.
        """
        for made in self._made:
            if made.snapshot.handle == handle:
                return FileSource(made.path, made.manifest)
        raise NotFoundError("this snapshot is not here any more", "a newer one is offered")

    async def newest(self, index_min: int) -> Snapshot:
        """One that holds at least everything up to `index_min`, made now if there is none."""
        async with self._making:
            if self._made and self._made[-1].snapshot.index >= index_min:
                return self._made[-1].snapshot
            loop = asyncio.get_running_loop()
            made = await loop.run_in_executor(self._threads, self._make)
            if made.snapshot.index < index_min:
                raise StorageError(f"this ledger has not come to {index_min} yet", "wait")
            return made.snapshot

    def _make(self) -> _Made:
        require_space(self._folder, 2 * Path(self._ledger.path).stat().st_size)
        # A start removes it: it need not outlive the power.
        file = write_snapshot(self._ledger.path, self._folder, durable=False)
        path = file.path
        manifest = make_manifest(path)
        made = _Made(
            Snapshot(
                index=file.applied_index,
                term=file.applied_term,
                size=manifest.size,
                digest=manifest.digest,
                handle=file.handle,
            ),
            path,
            manifest,
        )
        others = [one for one in self._made if one.path != path]
        self._made = (*others[-(SNAPSHOTS_MAX - 1) :], made)
        remove_snapshots(self._folder, [one.path for one in self._made])
        _log.info("snapshot made", index=file.applied_index, bytes=file.size)
        return made

    # --- from others --------------------------------------------------------------------------------

    async def fetch(self, source: NodeId, snapshot: Snapshot, on_bytes: OnBytes) -> None:
        """Brings a member's snapshot here, verified by digest and by what it holds."""
        contact = self._contacts(source)
        path = self._incoming
        expected = Manifest(size=snapshot.size, digest=snapshot.digest)

        def work(should_stop: Callable[[], bool]) -> None:
            if not _holds(path, expected, should_stop):
                self._client.fetch(
                    peer=source,
                    public_key=contact.public_key,
                    hosts=contact.hosts,
                    port=contact.port,
                    handle=snapshot.handle,
                    target=PartialFile(path),
                    expected=expected,
                    on_progress=on_bytes,
                    should_stop=should_stop,
                )
            held = verify_snapshot(path)
            if (held.applied_index, held.applied_term) != (snapshot.index, snapshot.term):
                path.unlink()
                raise TransferError(
                    f"the snapshot of {source} is at {held.applied_index}, not {snapshot.index}",
                    "it is asked for again",
                )
            self._fetched = snapshot

        self._fetched = None
        await run_stoppable(self._threads, work)

    # --- installing ---------------------------------------------------------------------------------

    def begin(self, base: Base) -> None:
        """Durably notes the base that the log needs once the ledger is replaced."""
        self._log.set_value(REPLACING, [base.index, base.term, base.configuration.hex()])

    def install(self, snapshot: Snapshot) -> None:
        """Replaces the ledger by what was fetched, whole and durably or not at all."""
        assert self._fetched == snapshot, "another snapshot was fetched"
        self._ledger.replace_by(str(self._incoming))

    def finish(self) -> None:
        """Log and ledger fit again: forgets the note and the fetched file."""
        self._log.set_value(REPLACING, None)
        self._fetched = None
        self._incoming.unlink(missing_ok=True)


def recover_installation(log: LogStore, ledger: LedgerStore) -> None:
    """Ends at start what a crash interrupted: see the crash points in `node.consensus.snapshot_duty`.

    Raises `StorageError` when the ledger is behind the beginning of the log, which no crash brings
    about: then one of the two files was lost or put back from an older copy.
    """
    match log.get_value(REPLACING):
        case [int() as index, int() as term, str() as configuration]:
            _finish_replacing(log, ledger, Base(index, term, bytes.fromhex(configuration)))
            log.set_value(REPLACING, None)
        case _:
            pass
    if ledger.applied_index < log.base().index:
        raise StorageError(
            f"{ledger.path} is at {ledger.applied_index}, and the log begins at {log.base().index}",
            "restore the ledger from a backup, or remove this node's home and let it join anew",
        )


def _finish_replacing(log: LogStore, ledger: LedgerStore, base: Base) -> None:
    """The log follows a ledger that was replaced; one that was not is the old one, whole."""
    replaced = (ledger.applied_index, ledger.applied_term) == (base.index, base.term)
    if replaced and log.term(base.index) != base.term:
        kept = log.hard_state()
        log.restart_from(base, HardState(term=kept.term, vote=kept.vote, commit=base.index))
        _log.info("an interrupted installation of a snapshot was ended", index=base.index)


def _holds(path: Path, expected: Manifest, should_stop: Callable[[], bool]) -> bool:
    """Whether an earlier try fetched all of it; its journal stays until the end."""
    if path.with_name(path.name + JOURNAL_SUFFIX).exists():
        return False
    try:
        if path.stat().st_size != expected.size:
            return False
        return digest_file(path, should_stop=should_stop) == expected.digest
    except FileNotFoundError:
        return False
