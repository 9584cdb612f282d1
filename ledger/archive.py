"""An archive of the ledger in a folder: snapshots, and the decided entries between and behind them.

From it the ledger of any moment since the oldest snapshot can be made again.  One folder for each
mesh and epoch below the given one, because a restored mesh decides other entries at the same
indexes.  Several nodes may share a folder: each adds what is missing, and what two added at the same
time is the same.  I/O is all this module is.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

from ledger.commands import unseal
from ledger.jobs import Mesh
from ledger.log_sqlite import read_entries
from ledger.queries import open_replica
from ledger.snapshot_sqlite import (
    SnapshotFile,
    os_error,
    sync_folder,
    verify_snapshot,
    write_snapshot,
)
from ledger.soundness_sqlite import content_digest
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
SEGMENT_GROWS_BYTES: Final = 1 << 20
"""A segment smaller than this is written anew with what follows it: a quiet mesh makes few files."""
LEFT_BEHIND_NS: Final = 3_600 * 10**9
"""An unfinished file older than this is of a writer that was killed: no round takes an hour."""
_VERSION: Final = 1
_DIGEST_BYTES: Final = 32
_PARTIAL_SEGMENT: Final = ".segment-"
_DRILL: Final = ".drill-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Archived:
    """What one round brought into the archive."""

    folder: Path
    index: int
    """Up to here the archive holds everything since its oldest snapshot."""
    snapshot: bool
    entries: int
    drilled: bool = False
    """The new snapshot was made again from the one before it and the entries between: they are equal."""


def archive(ledger_path: str, log_path: str, folder: Path) -> Archived:
    """Brings the archive up to what a node has decided, whether it runs or not.

    Takes a snapshot where there is none, where the log forgot entries that the archive has not, and
    every `SNAPSHOT_ENTRIES`; each is read back and checked, and where the archive has all entries
    since the one before, it is made again from them (the drill).  Raises `ConflictError` before a
    mesh is formed, `NotFoundError` when there is no such folder, `DamagedError` when the ledger is not sound or a drill fails, `StorageError`.
    """
    with closing(open_replica(ledger_path)) as connection:
        mesh: Any = connection.execute("SELECT id, epoch FROM mesh").get
        applied = int(connection.execute("SELECT applied_index FROM state").get)
    if mesh is None:
        raise ConflictError(f"{ledger_path} holds no mesh yet", "archive it later")
    if not folder.is_dir():  # not made here: what should be mounted there would be missed silently
        raise NotFoundError(
            f"there is no folder {folder}", "make it, or mount the disk that it is on"
        )
    place = folder / f"{mesh[0]}-{mesh[1]}"
    snapshots, segments = _snapshots(place), _segments(place)
    newest = snapshots[-1][0] if snapshots else None
    covered = max([newest or 0, *(last for _, last, _ in segments)])
    begins = read_entries(log_path, covered + 1, covered + 2, 1)
    lost = covered < applied and not begins
    made: SnapshotFile | None = None
    if newest is None or lost or applied - newest >= SNAPSHOT_ENTRIES:
        made = write_snapshot(ledger_path, place)
        verify_snapshot(made.path, thorough=True)
        applied = max(applied, made.applied_index)
        if newest is None or lost:  # nothing to replay before it
            covered = max(covered, made.applied_index)
    covered, count = _add_entries(place, log_path, covered, applied)
    drilled = False
    if made is not None:
        if newest is not None and not lost and covered >= made.applied_index:
            _drill(place, made, Path(ledger_path).parent)
            drilled = True
        _prune(place)
        _sweep(place, made.path)
    return Archived(
        folder=place, index=covered, snapshot=made is not None, entries=count, drilled=drilled
    )


def _add_entries(place: Path, log_path: str, covered: int, until: int) -> tuple[int, int]:
    """Archives what follows `covered`; up to where, and how many."""
    count = 0
    while covered < until:
        high = min(until, covered + SEGMENT_ENTRIES_MAX) + 1
        entries = read_entries(log_path, covered + 1, high, SEGMENT_BYTES_MAX)
        if not entries or entries[0].index != covered + 1:
            break  # forgotten meanwhile: the next round takes a snapshot
        _write_segment(place, entries)
        covered, count = entries[-1].index, count + len(entries)
    return covered, count


def _drill(place: Path, made: SnapshotFile, scratch: Path) -> None:
    """Makes the new snapshot again from the one before it and the entries between.

    A wrong one is removed: whatever is archived next begins with a sound one.
    """
    before = [one for one in _snapshots(place) if one[0] < made.applied_index]
    with tempfile.TemporaryDirectory(prefix=_DRILL, dir=scratch) as folder:
        index, path = before[-1]
        with closing(LedgerStore(str(Path(folder) / "ledger.db"))) as store:
            store.replace_by(str(path))
            _replay(place, store, index, until_index=made.applied_index)
            with closing(open_replica(str(made.path))) as connection:
                same = content_digest(connection) == content_digest(store.connection)
            found = (store.applied_index, store.checksum)
        _sweep_drills(scratch, Path(folder))
    if not same or found != (made.applied_index, made.checksum):
        made.path.unlink(missing_ok=True)
        raise DamagedError(
            f"{made.path.name} is not what {path.name} and the entries behind it lead to",
            f"run mesh-cli ledger verify on this node, and move {place} away: a new archive begins",
        )


def ledger_at(place: Path, ledger_path: Path, *, until_ms: int) -> int:
    """Makes the ledger as it was at a moment, by the clocks of the nodes that proposed; its index.

    `place` is the folder of one mesh and epoch.  Replays the entries behind the last snapshot of
    before.  Raises `NotFoundError` when the archive does not go back so far, `DamagedError` when it
    has a gap before that moment or a file of it is damaged, `StorageError`.
    """
    index = _from_snapshot(place, ledger_path, until_ms)
    with closing(LedgerStore(str(ledger_path))) as store:
        ended = _replay(place, store, index, until_ms=until_ms)
        index = store.applied_index
        store.make_durable()
    if not ended and any(at > index for at, _ in _snapshots(place)):
        raise DamagedError(
            f"the archive {place} lacks entries behind {index}, of before that moment",
            "name an earlier or a later one",
        )
    return index


def _replay(
    place: Path,
    store: LedgerStore,
    index: int,
    *,
    until_ms: int | None = None,
    until_index: int | None = None,
) -> bool:
    """Applies what the segments hold behind `index`, without a gap; whether an entry came too late."""
    for first, last, path in _segments(place):
        if last <= index:
            continue
        if first > index + 1 or (until_index is not None and index >= until_index):
            break
        entries: Sequence[Entry] = _read_segment(path)
        ended = False
        if until_index is not None:
            entries = [entry for entry in entries if entry.index <= until_index]
        if until_ms is not None:
            entries, ended = _before(entries, until_ms)
        try:
            store.apply(entries)
        except WireError as error:
            raise DamagedError(f"{path}: {error.what}", "restore a backup") from None
        index = store.applied_index
        if ended:
            return True
    return False


def _from_snapshot(place: Path, ledger_path: Path, until_ms: int) -> int:
    """The last sound snapshot whose history ends before the moment, as a ledger.

    One that is damaged costs nothing but time: the entries behind the one before it are kept.
    """
    damaged: DamagedError | None = None
    for index, path in reversed(_snapshots(place)):
        try:
            verify_snapshot(path, thorough=True)
        except DamagedError as error:
            damaged = damaged or error
            continue
        if _last_ms(path) <= until_ms:
            with closing(LedgerStore(str(ledger_path))) as store:
                store.replace_by(str(path))
                if not SqliteRows(store.connection).where(Mesh):
                    raise DamagedError(f"{path} holds no mesh", "restore a backup")
            return index
    if damaged is not None:
        raise damaged
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


def _sweep(place: Path, fresh: Path) -> None:
    """Removes what killed writers left unfinished, by the clock of the folder's own machine."""
    with suppress(OSError):
        now_ns = fresh.stat().st_mtime_ns
        for pattern in (f"{_PARTIAL_SEGMENT}*", ".snapshot-*"):
            for path in place.glob(pattern):
                if now_ns - path.stat().st_mtime_ns > LEFT_BEHIND_NS:
                    path.unlink(missing_ok=True)


def _sweep_drills(scratch: Path, fresh: Path) -> None:
    with suppress(OSError):
        now_ns = fresh.stat().st_mtime_ns
        for path in scratch.glob(f"{_DRILL}*"):
            if now_ns - path.stat().st_mtime_ns > LEFT_BEHIND_NS:
                shutil.rmtree(path, ignore_errors=True)


def _write_segment(place: Path, entries: Sequence[Entry]) -> None:
    """A file of these entries, together with those before them where that one is small."""
    grown = _small_before(place, entries[0].index)
    if grown is not None:
        entries = [*_read_segment(grown), *entries]
    body = pack((_VERSION, tuple((e.index, e.term, e.kind, e.data) for e in entries)))
    final = place / f"segment-{entries[0].index:016}-{entries[-1].index:016}.log"
    partial: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=_PARTIAL_SEGMENT, dir=place)
        partial = Path(name)
        with os.fdopen(handle, "wb") as stream:
            stream.write(blake3(body).digest() + body)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(final)
        sync_folder(place)
        if grown is not None:
            grown.unlink(missing_ok=True)
    except OSError as error:
        if partial is not None:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        raise os_error(error, final) from None


def _small_before(place: Path, first: int) -> Path | None:
    """The last segment, where it ends right before this entry and is small and sound.

    None that begins before the last snapshot: it shall go with the snapshot before.
    """
    newest = max((index for index, _ in _snapshots(place)), default=0)
    before = [
        path for begin, last, path in _segments(place) if last == first - 1 and begin > newest
    ]
    try:
        if not before or before[-1].stat().st_size >= SEGMENT_GROWS_BYTES:
            return None
        _read_segment(before[-1])
    except (OSError, StorageError):
        return None  # damaged, or another node has just replaced it: it stays as it is
    return before[-1]


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
