"""The digest of a file: BLAKE3 of the BLAKE3 digests of its chunks, in order.

Two levels, so that whoever knows a file's digest can judge each chunk alone (with the table of
digests, itself judged by the file's), and a receiver that judged every chunk has nothing to read
again to know the whole.
"""

from collections.abc import Iterable
from typing import Final

from blake3 import blake3

DIGEST_BYTES: Final = 32
"""BLAKE3's own length."""
_CONTEXT: Final = "darkstream 2026-11 file: digests of its chunks of 1 MiB"
"""Keeps a file's digest apart from any chunk's: a table that is itself a file is another thing."""


def chunk_digest(data: bytes | bytearray | memoryview) -> bytes:
    """BLAKE3 of a chunk's bytes."""
    return blake3(data).digest()


def file_digest(tables: Iterable[bytes | memoryview]) -> str:
    """The file's digest in hexadecimal, from its chunk digests one after the other, in any pieces."""
    digest = blake3(derive_key_context=_CONTEXT)
    for table in tables:
        digest.update(table)
    return digest.hexdigest()


def digest_of(data: bytes | memoryview, chunk_bytes: int) -> str:
    """The same of a file whose bytes are at hand."""
    starts = range(0, len(data), chunk_bytes)
    return file_digest(chunk_digest(data[start : start + chunk_bytes]) for start in starts)
