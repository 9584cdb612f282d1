"""Where FFmpegs may lie on this machine: the configured one, else the system's, else the embedded one."""

import os
import shutil
from pathlib import Path

from node.media.ffmpeg_binary import Candidate, Origin

VARIABLE = "DARKSTREAM_FFMPEG"


def ffmpeg_candidates(configured: str | None = None) -> tuple[Candidate, ...]:
    """In order of preference; a configured one (argument, else DARKSTREAM_FFMPEG) stands alone."""
    named = configured or os.environ.get(VARIABLE)
    if named:
        return (_candidate("configured", shutil.which(named) or named),)
    found: list[Candidate] = []
    system = shutil.which("ffmpeg")
    if system is not None:
        found.append(_candidate("system", system))
    embedded = _embedded()
    if embedded is not None:
        found.append(_candidate("imageio-ffmpeg", embedded))
    return tuple(found)


def _candidate(origin: Origin, path: str) -> Candidate:
    try:
        status = Path(path).stat()
    except OSError:
        return Candidate(origin=origin, path=path, size=0, mtime_ns=0)
    return Candidate(origin=origin, path=path, size=status.st_size, mtime_ns=status.st_mtime_ns)


def _embedded() -> str | None:
    import imageio_ffmpeg  # noqa: PLC0415 - it starts a program, only where nothing else is found

    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:
        return None
