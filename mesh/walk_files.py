"""From a name below a folder to what lies there, folder by folder and through no link.

Checking a path and opening it later follows whatever is swapped in between; an open folder stays
the folder that it was.  Where the system opens nothing relative to a folder (Windows), paths are
checked instead, and a swap in between is not excluded.
"""

import contextlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mesh.errors import PathError

BINARY: Final[int] = getattr(os, "O_BINARY", 0)
NOFOLLOW: Final[int] = getattr(os, "O_NOFOLLOW", 0)
CLOEXEC: Final[int] = getattr(os, "O_CLOEXEC", 0)
_DIRECTORY: Final[int] = getattr(os, "O_DIRECTORY", 0)
# A pipe of that name would hold its opener until somebody writes, a terminal would become its own.
_HARMLESS: Final[int] = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_READING: Final[int] = os.O_RDONLY | BINARY | NOFOLLOW | CLOEXEC | _HARMLESS
HAS_DIR_FD: Final = os.open in os.supports_dir_fd and os.link in os.supports_dir_fd


def open_folder(root: Path, folders: Sequence[str], whole: str, *, make: bool = False) -> int:
    """The open folder behind these names; `whole` is what the error calls it.

    Raises `PathError`, OSError where a folder cannot be made.
    """
    fd = _open_root(root)
    try:
        for folder in folders:
            inner = _open_inner(fd, folder, whole, make=make)
            os.close(fd)
            fd = inner
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_folders(root: Path, folders: Sequence[str], *, make: bool = False) -> Path:
    """The same by paths, for systems without the above.  Raises `PathError`."""
    here = root
    for folder in folders:
        here = here / folder
        if make:
            here.mkdir(exist_ok=True)
        if here.is_symlink() or not here.is_dir():
            raise PathError(f"{here} is no folder below {root}", "links are not followed")
    return here


class OpenFile:
    """A file open for reading, reached through no link, and what its name leads to by now.

    Raises OSError, and `PathError` for a folder on the way that is gone or a link.
    """

    def __init__(self, path: Path, below: Path | None = None) -> None:
        """`below`: from this folder on no link is followed, else from the file's own folder on."""
        root, folders = path.parent, list[str]()
        self._name = path.name or "."
        if below is not None or ".." in path.parts:
            root = below or root
            if ".." in path.parts or not path.is_relative_to(root):
                raise PathError(f"{path} does not lie below {root}", "name the real file")
            *folders, self._name = path.relative_to(root).parts or (".",)
        self._path = path
        self._folder = -1
        if HAS_DIR_FD:
            self._folder = open_folder(root, folders, str(path))
        else:
            check_folders(root, folders)
        try:
            self.fd = os.open(self._at, _READING, dir_fd=self._folder_fd)
        except BaseException:
            self._close_folder()
            raise

    def facts(self) -> tuple[os.stat_result, os.stat_result]:
        """Of the open file, and of what has its name now.  Raises OSError."""
        named = os.stat(self._at, dir_fd=self._folder_fd, follow_symlinks=False)
        return os.fstat(self.fd), named

    def close(self) -> None:
        """Closes both."""
        os.close(self.fd)
        self._close_folder()

    @property
    def _folder_fd(self) -> int | None:
        return self._folder if self._folder >= 0 else None

    @property
    def _at(self) -> str:
        return self._name if self._folder >= 0 else str(self._path)

    def _close_folder(self) -> None:
        if self._folder >= 0:
            os.close(self._folder)


def is_file(found: os.stat_result) -> bool:
    """Whether it is a file, and no link, folder, pipe or device."""
    return stat.S_ISREG(found.st_mode)


def _open_root(root: Path) -> int:
    # The root itself may be a link: the owner of this node chose it.
    try:
        return os.open(root, os.O_RDONLY | _DIRECTORY | CLOEXEC)
    except OSError as error:
        raise PathError(
            f"{root} cannot be opened: {error.strerror}", "check the allowed folders"
        ) from error


def _open_inner(above: int, folder: str, whole: str, *, make: bool) -> int:
    flags = os.O_RDONLY | _DIRECTORY | NOFOLLOW | CLOEXEC
    if make:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, dir_fd=above)
    try:
        return os.open(folder, flags, dir_fd=above)
    except OSError as error:
        raise PathError(
            f"the name {whole[:80]!a} is refused: {folder[:80]!a} is no folder below the root",
            "links are not followed; name the real folder",
        ) from error
