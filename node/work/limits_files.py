"""The limits that a person set, in a small file of the home."""

import os
from pathlib import Path
from typing import Final

import structlog

from mesh.errors import StorageError, WireError
from node.work.limiting import LIMITS, NodeLimits

BYTES_MAX: Final = 256 << 10

_log = structlog.get_logger("node")


class LimitsFile:
    """`LimitStore` in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> NodeLimits:
        """What was kept last; nothing when there is no file, or a damaged one."""
        try:
            with self._path.open("rb") as file:
                found = LIMITS.decode(file.read(BYTES_MAX))
        except FileNotFoundError:
            return NodeLimits()
        except (OSError, WireError) as error:
            _log.warning("limits cannot be read", file=str(self._path), reason=str(error))
            return NodeLimits()
        return found if isinstance(found, NodeLimits) else NodeLimits()

    def save(self, limits: NodeLimits) -> None:
        """Replaces the file, durably.  Raises `StorageError`."""
        made = self._path.with_name(f".{self._path.name}.new")
        try:
            with made.open("wb") as file:
                file.write(LIMITS.encode(limits))
                file.flush()
                os.fsync(file.fileno())
            made.replace(self._path)
        except OSError as error:
            raise StorageError(
                f"cannot write {self._path}: {error.strerror}", "check disk and permissions"
            ) from error
