"""Brings a ledger back from where litestream wrote it: `mesh-cli ledger restore` of a destination.

A composition root of its own, because it works where no node is left.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ledger.mirror import epoch_and_index, without_guests
from mesh.errors import DarkStreamError, NotFoundError
from node.backup.destination import Destination
from node.backup.litestream import SftpKeys, configuration, not_restored, restore_command
from node.backup.litestream_files import find_litestream, private_file
from node.media.child import MINUTE_MS, Limits
from node.media.run_ffmpeg import FFmpegRunner

RESTORE_MS: Final = 6 * 60 * MINUTE_MS
"""A ledger of some GB over a slow line."""
PLACES_MAX: Final = 100
"""Places of one folder that are looked at: each is one coordinator's in one epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A ledger's file that went furthest; `left_out` says of other places why they could not be read."""

    file: Path
    source: str
    left_out: tuple[str, ...]


def places_in(folder: Path) -> list[Path]:
    """The places that litestream wrote to: the folder itself, or those in it; none in other folders."""
    if (folder / "ltx").is_dir():
        return [folder]
    return sorted(path for path in folder.iterdir() if (path / "ltx").is_dir())


async def fetch(
    destination: Destination,
    keys: SftpKeys,
    scratch: Path,
    *,
    until_ms: int | None,
    program: str | None,
) -> Fetched:
    """The ledger that litestream sent, or of a folder with several places the one that goes furthest.

    `scratch` is an empty folder; `program` is the litestream that was configured.  Raises `NotFoundError`, `NoLitestreamError`, `BackupError`,
    `DamagedError`, `StorageError`.
    """
    places = [destination]
    if destination.kind == "folder":
        found = places_in(Path(destination.base))
        places = [Destination("folder", str(path)) for path in found[:PLACES_MAX]]
    found_program = find_litestream(program)
    best: tuple[tuple[int, int], Path, Destination] | None = None
    faults: list[tuple[Destination, DarkStreamError]] = []
    for number, place in enumerate(places):
        file = scratch / f"{number}.db"
        try:
            await _restored(found_program, place, keys, file, until_ms)
            reached = epoch_and_index(file)
        except DarkStreamError as error:
            faults.append((place, error))
            continue
        if best is None or reached > best[0]:
            best = (reached, file, place)
    if best is None:
        if faults:
            raise faults[0][1]
        raise NotFoundError(
            f"{destination.text} holds no ledger", "name a destination of litestream"
        )
    return Fetched(
        file=best[1],
        source=best[2].text,
        left_out=tuple(
            f"{place.text}: {error.what}"
            for place, error in faults
            if not isinstance(error, NotFoundError)
        ),
    )


async def _restored(
    program: str, place: Destination, keys: SftpKeys, file: Path, until_ms: int | None
) -> None:
    database = file.with_suffix(".mirror")
    config = private_file(file.with_suffix(".json"), configuration(database, place, keys))
    moment = None
    if until_ms is not None:
        moment = datetime.fromtimestamp(until_ms / 1000, UTC).isoformat(timespec="milliseconds")
    result = await FFmpegRunner().run(
        restore_command(program, config, database, file, moment), limits=Limits(time_ms=RESTORE_MS)
    )
    if not result.ok:
        raise not_restored(place, result)
    without_guests(file)
