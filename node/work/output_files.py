"""Room on disks, and whether a result will have a place: looked at before its film is read, not when it is made hours later."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

from mesh.errors import OutputDiskFullError, OutputError

UNKNOWN_SHARE: Final = 0.05
"""Of a film, of a profile that made none yet: few results are smaller."""
SURELY: Final = 0.5
"""Of what results of a profile take: nobody waits for room that is not needed, and what turns out larger fails at its end."""


def least_bytes(source_bytes: int, share: float | None) -> int:
    """What a result takes at least, most likely; `share` is what those of its profile took of their films."""
    return int(source_bytes * (UNKNOWN_SHARE if share is None else SURELY * share))


def room_at(folder: Path) -> int:
    """What an ordinary user may still write to the disk of this folder, or where it would be made."""
    for place in (folder, *folder.parents):
        with suppress(FileNotFoundError):  # a person may have cleaned up
            return shutil.disk_usage(place).free
    return 0


def check_output(path: Path, result_bytes: int) -> None:
    """Whether a file of this size may be made here.  Raises `OutputError`, `OutputDiskFullError`."""
    folder = next(place for place in path.parents if place.exists())
    if not folder.is_dir():
        raise OutputError(f"{folder} is no folder", "choose another --output")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(
            f"this node may not write to {folder}",
            "mend its permissions, or choose another --output",
        )
    free = room_at(folder)
    if free < result_bytes:
        raise OutputDiskFullError(
            f"{folder} has {free >> 20} MiB free, a result needs {max(1, result_bytes >> 20)} or more",
            "free some there; it goes on by itself",
        )
