"""Below which folders of this machine films may be read and written."""

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from mesh.errors import NotFoundError, PathError
from mesh.names import PATH_BYTES_MAX, checked_name


class Allowed:
    """The folders below which this node's owner lets films be read and written."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self.folders: Final = tuple(Path(os.path.realpath(folder)) for folder in folders)

    def source(self, text: str) -> tuple[Path, Path]:
        """A source's allowed folder and its path.  Raises `PathError` when it leads outside, through a link or not."""
        try:
            path = Path(os.path.realpath(text))
        except (ValueError, OSError):  # a NUL, no text, or a link that is swapped right now
            raise PathError(f"{_shown(text)} is no path", "name a file") from None
        root = self._root(path)
        if str(path) != text or root is None or root == path:
            raise PathError(
                f"{_shown(text)} is outside the folders that this node may read",
                "start the node with --allow DIR for its folder",
            )
        return root, path

    def folder(self, text: str) -> Path:
        """An allowed folder that is there, links resolved.  Raises `PathError`, `NotFoundError`."""
        try:
            path = Path(os.path.realpath(text, strict=True))
        except FileNotFoundError:
            raise NotFoundError(f"{_shown(text)} does not exist", "check the path") from None
        except (ValueError, OSError):
            raise PathError(f"{_shown(text)} is no folder here", "name one that exists") from None
        if self._root(path) is None or not path.is_dir():
            raise PathError(
                f"{_shown(text)} is no folder that this node may read",
                "start the node with --allow DIR for it",
            )
        return path

    def split(self, text: str) -> tuple[Path, str]:
        """An output's allowed folder and the name below it.  Raises `PathError`."""
        path = Path(text)
        root = self._root(path)
        if root is None or not path.is_absolute():
            raise PathError(
                f"{_shown(text)} is outside the folders that this node may write",
                "choose another --output, or start the node with --allow DIR",
            )
        name = path.relative_to(root).as_posix()
        # Known now, not when the film is converted and finds no place.
        checked_name(name, windows=sys.platform == "win32")
        return root, name

    def _root(self, path: Path) -> Path | None:
        return next((root for root in self.folders if path.is_relative_to(root)), None)


def default_folders(allow: Sequence[str]) -> tuple[Path, ...]:
    """The home directory of the user, if there is one, and every `--allow` folder.

    Users that are only a number (containers, services) have none, or the root of everything.
    """
    try:
        home = Path.home()
    except RuntimeError:
        return tuple(map(Path, allow))
    own = () if home == Path(home.anchor) else (home,)
    return (*own, *map(Path, allow))


def _shown(text: str) -> str:
    # A name that is no text, or steers a terminal, would spoil the line that tells of it.
    return text[:PATH_BYTES_MAX] if text.isprintable() else ascii(text[:PATH_BYTES_MAX])
