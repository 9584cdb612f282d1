"""What a person set for a node while it ran, in small files of the home."""

import os
from pathlib import Path
from typing import Final, Generic, TypeVar

import structlog

from mesh.codec import Vocabulary
from mesh.errors import StorageError, WireError

T = TypeVar("T")
BYTES_MAX: Final = 256 << 10

_log = structlog.get_logger("node")


class KeptFile(Generic[T]):
    """A store of one value in a file: `LimitStore`, `WorkStore`."""

    def __init__(self, path: Path, vocabulary: Vocabulary, kind: type[T]) -> None:
        """`kind()` is what holds while there is no file."""
        self._path = path
        self._vocabulary = vocabulary
        self._kind = kind

    def load(self) -> T:
        """What was kept last; nothing when there is no file, or a damaged one."""
        try:
            with self._path.open("rb") as file:
                found = self._vocabulary.decode(file.read(BYTES_MAX))
        except FileNotFoundError:
            return self._kind()
        except (OSError, WireError) as error:
            _log.warning("settings cannot be read", file=str(self._path), reason=str(error))
            return self._kind()
        return found if isinstance(found, self._kind) else self._kind()

    def save(self, value: T) -> None:
        """Replaces the file, durably.  Raises `StorageError`."""
        made = self._path.with_name(f".{self._path.name}.new")
        try:
            with made.open("wb") as file:
                file.write(self._vocabulary.encode(value))
                file.flush()
                os.fsync(file.fileno())
            made.replace(self._path)
        except OSError as error:
            raise StorageError(
                f"cannot write {self._path}: {error.strerror}", "check disk and permissions"
            ) from error
