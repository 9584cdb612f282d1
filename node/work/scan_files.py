"""Which films a person means by the paths of a submission: files, and folders searched for videos.

Only what lies below a folder that the node's owner allowed is read; inside a folder links are not
followed at all, so nothing outside it can be reached and nothing is found twice.
"""

import os
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from node.work.extensions import VIDEO_EXTENSIONS

FILES_MAX = 10_000
"""Films of one submission: ten commands of the ledger."""
ENTRIES_MAX = 1_000_000
"""Directory entries looked at in one submission: some seconds on a disk."""
DEPTH_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanFault:
    """Why a path gave no film: a stable code, what happened, what to do."""

    path: str
    code: str
    what: str
    todo: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Film:
    """A file to convert; `folder` is the searched folder when it was found there (for mirrored trees)."""

    path: Path
    folder: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanned:
    """Films in the order of the paths, each once, sorted within a folder; and what gave none."""

    films: tuple[Film, ...]
    faults: tuple[ScanFault, ...]


class _Full(Exception):  # noqa: N818 - a signal inside this file
    pass


def scan(
    paths: Iterable[str], allowed: Sequence[Path], profile_names: Collection[str] = ()
) -> Scanned:
    """Finds the films; blocking, so call it in a thread.

    In folders, files that a conversion made (`film.web.mp4` when `web` is in `profile_names`) are
    left out, or every search would convert the results of the one before.
    """
    search = _Search(allowed, frozenset(profile_names))
    for text in paths:
        try:
            search.add(text)
        except _Full:
            limit = f"more than {FILES_MAX} films or {ENTRIES_MAX} files"
            search.fault(text, "usage", f"{text} holds {limit}", "submit parts of it one by one")
            break
    return Scanned(films=tuple(search.films.values()), faults=tuple(search.faults))


class _Search:
    def __init__(self, allowed: Sequence[Path], profile_names: frozenset[str]) -> None:
        self.films: dict[Path, Film] = {}
        self.faults: list[ScanFault] = []
        self._allowed = [Path(os.path.realpath(folder)) for folder in allowed]
        self._profiles = profile_names
        self._entries = 0

    def fault(self, path: str, code: str, what: str, todo: str) -> None:
        self.faults.append(ScanFault(path=_shown(path), code=code, what=_shown(what), todo=todo))

    def add(self, text: str) -> None:
        """One path of the submission."""
        try:
            path = self._resolved(text)
            if path is None:
                return
            kind = path.stat()
            if stat.S_ISDIR(kind.st_mode):
                self._add_folder(text, path)
            elif not stat.S_ISREG(kind.st_mode):
                self.fault(text, "usage", f"{text} is no file and no folder", "name a film")
            elif kind.st_size == 0:
                self.fault(text, "empty_source", f"{text} holds no bytes", "copy it again")
            elif not os.access(path, os.R_OK):
                raise PermissionError
            else:
                self._take(path, None)
        except FileNotFoundError:
            self.fault(text, "not_found", f"{text} does not exist", "check the path")
        except PermissionError:
            todo = "let the user of the node read it"
            self.fault(text, "unreadable_source", f"{text} may not be read by the node", todo)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            self.fault(text, "unreadable_source", f"{text} cannot be read: {why}", "check the path")

    def _resolved(self, text: str) -> Path | None:
        if not Path(text).is_absolute():
            self.fault(text, "usage", f"{text} is no absolute path", "name it from the root on")
            return None
        path = Path(os.path.realpath(text, strict=True))
        if not any(path.is_relative_to(folder) for folder in self._allowed):
            allowed = ", ".join(map(str, self._allowed)) or "no folder"
            self.fault(
                text,
                "path",
                f"{path} is outside the folders that this node may read ({allowed})",
                "start the node with --allow DIR for its folder",
            )
            return None
        if not _is_text(path):
            self.fault(text, "path", f"{text!a} has a name that is no UTF-8", "rename it")
            return None
        return path

    def _add_folder(self, text: str, folder: Path) -> None:
        before, faults = len(self.films), len(self.faults)
        seen = 0
        for found in self._videos(folder, 0):
            seen += 1
            self._take(found, folder)
        if not seen and len(self.faults) == faults and len(self.films) == before:
            todo = "name a folder with films, or the film itself whatever its name"
            self.fault(text, "no_videos", f"no videos are in the folder {text}", todo)

    def _videos(self, folder: Path, depth: int) -> Iterator[Path]:
        try:
            with os.scandir(folder) as entries:
                found = sorted(self._counted(entries), key=lambda entry: entry.name)
        except OSError as error:
            todo = "let the user of the node read it, or leave it out"
            what = f"{folder} cannot be searched: {error.strerror}"
            self.fault(str(folder), "unreadable_source", what, todo)
            return
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                if depth < DEPTH_MAX:
                    yield from self._videos(Path(entry.path), depth + 1)
            elif self._wanted(entry):
                yield Path(entry.path)

    def _counted(self, entries: Iterator[os.DirEntry[str]]) -> Iterator[os.DirEntry[str]]:
        for entry in entries:
            self._entries += 1
            if self._entries > ENTRIES_MAX:
                raise _Full
            if not entry.name.startswith("."):
                yield entry

    def _wanted(self, entry: os.DirEntry[str]) -> bool:
        stem, _, extension = entry.name.rpartition(".")
        if extension.lower() not in VIDEO_EXTENSIONS or not stem:
            return False
        if stem.rpartition(".")[2] in self._profiles and "." in stem:
            return False
        if (
            not entry.is_file(follow_symlinks=False)
            or entry.stat(follow_symlinks=False).st_size == 0
        ):
            return False
        if not _is_text(Path(entry.path)):
            self.fault(entry.path, "path", f"{entry.path!a} is no UTF-8", "rename it")
            return False
        return True

    def _take(self, path: Path, folder: Path | None) -> None:
        if len(self.films) >= FILES_MAX and path not in self.films:
            raise _Full
        self.films.setdefault(path, Film(path=path, folder=folder))


def _shown(text: str) -> str:
    """The same for a message, which carries UTF-8 alone: other bytes of a file's name as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _is_text(path: Path) -> bool:
    """Whether the name can stand in a message: bytes that are no UTF-8 cannot."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
