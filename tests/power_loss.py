"""A file system that keeps, of every file, only what was synced: what a loss of power may leave at worst."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import apsw


class SyncedFiles(apsw.VFS):
    """The system's own VFS; every sync copies the file as it then is into another folder."""

    def __init__(self, survives: Path) -> None:
        self.survives = survives
        self.system = apsw.vfs_names()[0]
        super().__init__("synced-files", base=self.system, makedefault=True)

    def xOpen(  # noqa: N802 - SQLite's name
        self, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> apsw.VFSFile:
        return _SyncedFile(self, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802 - SQLite's name
        super().xDelete(filename, syncdir)
        copy = self.copy_of(Path(filename))
        if copy is not None:
            copy.unlink(missing_ok=True)

    def copy_of(self, path: Path | None) -> Path | None:
        """Where what survives of a file is; files opened from there lose nothing."""
        if path is None or path.is_relative_to(self.survives.parent / "after"):
            return None
        return self.survives / path.name

    def after(self) -> Path:
        """A folder with the files as they are after a loss of power now."""
        folder = (
            self.survives.parent / "after" / str(len(list(self.survives.parent.glob("after/*"))))
        )
        shutil.copytree(self.survives, folder)
        return folder


class _SyncedFile(apsw.VFSFile):
    def __init__(
        self, files: SyncedFiles, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> None:
        super().__init__(files.system, name, flags)
        self._files = files
        text = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._path = None if text is None else Path(text)

    def xSync(self, flags: int) -> None:  # noqa: N802 - SQLite's name
        super().xSync(flags)
        copy = self._files.copy_of(self._path)
        if copy is not None and self._path is not None:
            shutil.copy(self._path, copy)


@contextmanager
def only_synced_survives(folder: Path) -> Generator[SyncedFiles, None, None]:
    """Files that SQLite opens inside leave in `folder` what a loss of power would leave of them."""
    folder.mkdir()
    files = SyncedFiles(folder)
    try:
        yield files
    finally:
        files.unregister()
