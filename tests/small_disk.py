"""Small disks of one's own: a tmpfs of so many KiB, unmounted at the end; skipped without the right to mount."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

_FILL_BYTES = 1 << 20


@contextlib.contextmanager
def mounted(folder: Path, kib: int) -> Generator[Path]:
    """A disk at this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    made = _mount("tmpfs", "-o", f"size={kib}k", "-t", "tmpfs", str(folder))
    if made.returncode != 0:
        pytest.skip(f"cannot mount a small disk: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        # What still runs in there must not keep it: it goes when nobody uses it any more.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def resize(folder: Path, kib: int) -> None:
    """Makes the disk larger or smaller."""
    done = _mount("-o", f"remount,size={kib}k", str(folder))
    assert done.returncode == 0, done.stderr


def make_read_only(folder: Path) -> None:
    """Nobody may write to the disk any more."""
    done = _mount("-o", "remount,ro", str(folder))
    assert done.returncode == 0, done.stderr


def fill(folder: Path, leave_bytes: int = 0) -> Path:
    """Takes everything that is free but so many bytes; the file that does."""
    filler = folder / "filler"
    with filler.open("wb") as file, contextlib.suppress(OSError):
        while (free := shutil.disk_usage(folder).free - leave_bytes) > 0:
            os.write(file.fileno(), bytes(min(_FILL_BYTES, free)))
    return filler


def _mount(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
