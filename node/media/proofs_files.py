"""Proofs of encoders, remembered in one small file per FFmpeg; losing it costs one second at the next start."""

import asyncio
import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

BYTES_MAX: Final = 64 << 10


class ProofFiles:
    """A `ProofCache` in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def load(self, key: str) -> str | None:
        """What was stored under the key, or None."""
        return await asyncio.to_thread(self._load, key)

    async def store(self, key: str, text: str) -> None:
        """Remembers it; a folder that cannot be written only means that it is proven again."""
        with suppress(OSError):
            await asyncio.to_thread(self._store, key, text)

    def _path(self, key: str) -> Path:
        return (
            self._folder
            / f"encoders-{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}.json"
        )

    def _load(self, key: str) -> str | None:
        try:
            with self._path(key).open("rb") as file:
                return file.read(BYTES_MAX).decode("utf-8")
        except (OSError, UnicodeDecodeError):
            return None

    def _store(self, key: str, text: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self._folder)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            Path(name).replace(self._path(key))
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
