"""How this process's allocator keeps the memory of chunks."""

import ctypes
import sys
from typing import Final

MMAP_THRESHOLD_BYTES: Final = 32 << 20
"""Chunks (1 MiB and a cipher's copies of it) come from the heap, not from a mapping each; glibc allows no more."""
TRIM_THRESHOLD_BYTES: Final = 64 << 20
"""What a transfer freed stays for its next chunks: about two windows and their copies."""
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def keep_freed_memory() -> bool:
    """Makes glibc reuse freed chunks instead of giving them back; whether it could.

    By default each chunk is mapped, faulted in page by page and unmapped again: a fifth of the
    processor time of a transfer (measured).  Elsewhere than on glibc nothing happens.
    """
    if sys.platform != "linux":
        return False
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is None:
        return False
    return bool(tune(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)) and bool(
        tune(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
    )
