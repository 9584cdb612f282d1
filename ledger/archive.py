"""An archive of the ledger in a folder: snapshots, and the decided entries between and behind them.

From it the ledger of any moment since the oldest snapshot can be made again.  One folder for each
mesh and epoch below the given one, because a restored mesh decides other entries at the same
indexes.  I/O is all this module is.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

from ledger.commands import unseal
from ledger.jobs import Mesh
from ledger.log_sqlite import read_entries
from ledger.queries import open_replica
from ledger.snapshot_sqlite import os_error, sync_folder, verify_snapshot, write_snapshot
from ledger.store_sqlite import LedgerStore, SqliteRows
from mesh.codec import pack, unpack
from mesh.errors import ConflictError, DamagedError, NotFoundError, StorageError, WireError
from mesh.log import Entry

SNAPSHOT_ENTRIES: Final = 100_000
"""Entries behind the last snapshot after which another one is taken: half a minute of replay."""
SNAPSHOTS_KEPT: Final = 4
SEGMENT_ENTRIES_MAX: Final = 10_000
SEGMENT_BYTES_MAX: Final = 16 << 20
"""Of one file; it is read whole."""
_VERSION: Final = 1
_DIGEST_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Archived:
    """What one round brought into the archive."""

    folder: Path
    index: int
    """Up to here the archive holds everything since its oldest snapshot."""
    snapshot: bool
    entries: int


def archive(ledger_path: str, log_path: str, folder: Path) -> Archived:
    """Brings the archive up to what a node has decided, whether it runs or not.

    Takes a snapshot where there is none, where the log forgot entries that the archive has not, and
    every `SNAPSHOT_ENTRIES`; each is read back and checked.  Raises `ConflictError` before a mesh is
    formed, `DamagedError` when the ledger is not sound, `StorageError`.
    """
    with closing(open_replica(ledger_path)) as connection:
        mesh: Any = connection.execute("SELECT id, epoch FROM mesh").get
        applied = int(connection.execute("SELECT applied_index FROM state").get)
    if mesh is None:
        raise ConflictError(f"{ledger_path} holds no mesh yet", "archive it later")
    place = folder / f"{mesh[0]}-{mesh[1]}"
    snapshots, segments = _snapshots(place), _segments(place)
    newest = snapshots[-1][0] if snapshots else None
    covered = max([newest or 0, *(last for _, last, _ in segments)])
    begins = read_entries(log_path, covered + 1, covered + 2, 1)
    lost = covered < applied and not begins
    taken = newest is None or lost or applied - newest >= SNAPSHOT_ENTRIES
    if taken:
        made = write_snapshot(ledger_path, place)
        verify_snapshot(made.path, thorough=True)
        if newest is None or lost:  # nothing to replay before it
            covered = max(covered, made.applied_index)
        _prune(place)
    count = 0
    while covered < applied:
        entries = read_entries(
            log_path,
            covered + 1,
            min(applied, covered + SEGMENT_ENTRIES_MAX) + 1,
            SEGMENT_BYTES_MAX,
        )
        if not entries or entries[0].index != covered + 1:
            break  # forgotten meanwhile: the next round takes a snapshot
        _write_segment(place, entries)
        covered, count = entries[-1].index, count + len(entries)
    return Archived(folder=place, index=covered, snapshot=taken, entries=count)


def ledger_at(place: Path, ledger_path: Path, *, until_ms: int) -> int:
    """Makes the ledger as it was at a moment, by the clocks of the nodes that proposed; its index.

    `place` is the folder of one mesh and epoch.  Replays the entries behind the last snapshot of
    before.  Raises `NotFoundError` when the archive does not go back so far, `DamagedError` when it
    has a gap before that moment or a file of it is damaged, `StorageError`.
    """
    index, ended = _from_snapshot(place, ledger_path, until_ms), False
    with closing(LedgerStore(str(ledger_path))) as store:
        for first, last, path in _segments(place):
            if last <= index:
                continue
            if ended or first > index + 1:
                break
            entries, ended = _before(_read_segment(path), until_ms)
            try:
                store.apply(entries)
            except WireError as error:
                raise DamagedError(f"{path}: {error.what}", "restore a backup") from None
            index = store.applied_index
        store.make_durable()
    if not ended and any(at > index for at, _ in _snapshots(place)):
        raise DamagedError(
            f"the archive {place} lacks entries behind {index}, of before that moment",
            "name an earlier or a later one",
        )
    return index


def _from_snapshot(place: Path, ledger_path: Path, until_ms: int) -> int:
    """The last snapshot whose history ends before the moment, as a ledger."""
    for index, path in reversed(_snapshots(place)):
        verify_snapshot(path, thorough=True)
        if _last_ms(path) <= until_ms:
            with closing(LedgerStore(str(ledger_path))) as store:
                store.replace_by(str(path))
                if not SqliteRows(store.connection).where(Mesh):
                    raise DamagedError(f"{path} holds no mesh", "restore a backup")
            return index
    raise NotFoundError(
        f"the archive {place} does not go back so far", "name a later moment, or another folder"
    )


def _last_ms(path: Path) -> int:
    with closing(open_replica(str(path))) as connection:
        return int(connection.execute("SELECT max(at_ms) FROM events").get or 0)


def _before(entries: Sequence[Entry], until_ms: int) -> tuple[list[Entry], bool]:
    """The entries before the first that was proposed later, and whether there is one."""
    taken: list[Entry] = []
    for entry in entries:
        if entry.kind == "command" and unseal(entry.data)[0].proposed_at_ms > until_ms:
            return taken, True
        taken.append(entry)
    return taken, False


def place_in(folder: Path) -> Path:
    """The one mesh and epoch in an archive, or the folder itself when it is one.

    Raises `NotFoundError`, `ConflictError` when there are several.
    """
    if _snapshots(folder):
        return folder
    found = sorted(path for path in folder.iterdir() if path.is_dir() and _snapshots(path))
    if not found:
        raise NotFoundError(f"{folder} is no archive", "name one that mesh-cli ledger archive made")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ConflictError(f"{folder} holds several archives: {names}", "name one of them")
    return found[0]


# --- files ----------------------------------------------------------------------------------------


def _snapshots(place: Path) -> list[tuple[int, Path]]:
    found = [(_number(path, 1), path) for path in place.glob("snapshot-*-*.db")]
    return sorted((index, path) for index, path in found if index is not None)


def _segments(place: Path) -> list[tuple[int, int, Path]]:
    found = [(_number(path, 1), _number(path, 2), path) for path in place.glob("segment-*-*.log")]
    return sorted(
        (first, last, path) for first, last, path in found if first is not None and last is not None
    )


def _number(path: Path, part: int) -> int | None:
    text = path.stem.split("-")[part]
    return int(text) if text.isascii() and text.isdigit() else None


def _prune(place: Path) -> None:
    """Keeps the newest snapshots, and the segments that something can be replayed on."""
    snapshots = _snapshots(place)
    for _, path in snapshots[:-SNAPSHOTS_KEPT]:
        path.unlink(missing_ok=True)
    oldest = snapshots[-SNAPSHOTS_KEPT:][0][0]
    for _, last, path in _segments(place):
        if last <= oldest:
            path.unlink(missing_ok=True)


def _write_segment(place: Path, entries: Sequence[Entry]) -> None:
    body = pack((_VERSION, tuple((e.index, e.term, e.kind, e.data) for e in entries)))
    final = place / f"segment-{entries[0].index:016}-{entries[-1].index:016}.log"
    try:
        handle, name = tempfile.mkstemp(prefix=".segment-", dir=place)
        with os.fdopen(handle, "wb") as stream:
            stream.write(blake3(body).digest() + body)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(final)
        sync_folder(place)
    except OSError as error:
        raise os_error(error, final) from None


def _read_segment(path: Path) -> tuple[Entry, ...]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise os_error(error, path) from None
    digest, body = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if blake3(body).digest() != digest:
        raise DamagedError(f"{path} is damaged or cut off", "name an earlier moment")
    version, rows = unpack(body)
    if version > _VERSION:
        raise StorageError(f"{path} was written by a newer version", "update DarkStream")
    return tuple(_entries(rows))


def _entries(rows: Sequence[Any]) -> Iterator[Entry]:
    for index, term, kind, data in rows:
        yield Entry(index=index, term=term, kind=kind, data=data)
