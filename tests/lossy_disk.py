"""A disk that loses its power: what was not synced is dropped, reordered, or torn, as the seed has it.

A killed process keeps its page cache, so killing proves nothing about syncs.  This SQLite VFS writes
through to real files, so that everything works as ever, and keeps for each file what a sync has made
durable and what was only written since.  When the power goes, every file becomes its durable content
and any part of the writes behind it: each may be missing while a later one is there, and each may be
torn at the borders of sectors.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import apsw

SECTOR_BYTES = 512
VFS_NAME = "power_loss"


class PowerLossError(apsw.IOError):
    """The power went during this operation; whatever comes later finds a new disk."""


@dataclass(slots=True)
class _File:
    """`durable` None: not even its name is on the disk yet; `pending`: (offset, data), None data: a cut at offset."""

    durable: bytearray | None
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def sync(self) -> None:
        content = self.durable or bytearray()
        for offset, data in self.pending:
            _put(content, offset, data)
        self.durable = content
        self.pending.clear()


def _put(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
        return
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


class PowerLossDisk:
    """All files below one folder; `cut_after` says when the power goes."""

    def __init__(self, root: Path, random: Random) -> None:
        self.root = root
        self.random = random
        self.syncs = 0
        self.is_off = False
        self._files: dict[str, _File] = {}
        self._left: int | None = None
        self._survived: dict[str, bytes] = {}
        for path in sorted(root.rglob("*")):
            if path.is_file():
                self._files[str(path)] = _File(bytearray(path.read_bytes()))

    # --- what SQLite does -----------------------------------------------------------------------

    def covers(self, name: str) -> bool:
        """Whether the file is one of this disk; locks lie beside the data and hold none."""
        return name.startswith(f"{self.root}/") and not name.endswith((".lock", ".lock-journal"))

    def created(self, name: str) -> None:
        """A file is opened that may be new."""
        if not self.is_off:
            self._files.setdefault(name, _File(None))

    def wrote(self, name: str, offset: int, data: bytes | None) -> None:
        """A write, or a cut, that no sync has followed yet."""
        if not self.is_off:
            self._files.setdefault(name, _File(None)).pending.append((offset, data))
            self._count()

    def synced(self, name: str) -> None:
        """Everything written to the file is durable from now on."""
        if not self.is_off:
            self._count()
            self.syncs += 1
            self._files.setdefault(name, _File(None)).sync()

    def deleted(self, name: str) -> None:
        """The file is gone: SQLite syncs the folder where that matters."""
        if not self.is_off:
            self._files.pop(name, None)

    # --- what the power does --------------------------------------------------------------------

    def cut_after(self, operations: int) -> None:
        """The power goes during the operation of this number from now on, 1 the next."""
        self._left = operations

    def _count(self) -> None:
        if self._left is None:
            return
        self._left -= 1
        if self._left <= 0:
            self.cut()
            raise PowerLossError("the power is gone")

    def cut(self) -> None:
        """The power goes now."""
        self.is_off = True
        for name, file in self._files.items():
            content = self._remains(file)
            if content is not None:
                self._survived[name] = bytes(content)

    def _remains(self, file: _File) -> bytearray | None:
        random = self.random
        if file.durable is None and random.random() < 0.5:
            return None
        content = bytearray(file.durable or b"")
        chance = random.choice([0.0, 0.0, 0.5, 0.9, 1.0])
        tears = random.random() < 0.5
        for offset, data in file.pending:
            if data is None or not tears:
                if random.random() < chance:
                    _put(content, offset, data)
                continue
            for start in range(0, len(data), SECTOR_BYTES):
                if random.random() < chance:
                    _put(content, offset + start, data[start : start + SECTOR_BYTES])
        return content

    def restore(self, root: Path) -> "PowerLossDisk":
        """The power is back: what survived, as a disk of its own in another folder."""
        assert self.is_off
        for name, content in self._survived.items():
            path = root / Path(name).relative_to(self.root)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return PowerLossDisk(root, self.random)


class _LossyFile(apsw.VFSFile):
    def __init__(
        self, vfs: "_LossyVfs", name: apsw.URIFilename | str | None, flags: list[int]
    ) -> None:
        self._vfs = vfs
        self._name = name if isinstance(name, str) else name.filename() if name else ""
        super().__init__(vfs.base, name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 - SQLite's name
        for disk in self._vfs.disks_of(self._name):
            disk.wrote(self._name, offset, bytes(data))
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802 - SQLite's name
        for disk in self._vfs.disks_of(self._name):
            disk.wrote(self._name, newsize, None)
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802 - SQLite's name
        for disk in self._vfs.disks_of(self._name):
            disk.synced(self._name)
        # The host's own disk need not be troubled: it is not the one whose power goes.


class _LossyVfs(apsw.VFS):
    def __init__(self) -> None:
        self.base = apsw.vfs_names()[0]
        self.disks: list[PowerLossDisk] = []
        super().__init__(VFS_NAME, self.base, makedefault=True)

    def disks_of(self, name: str) -> list[PowerLossDisk]:
        return [disk for disk in self.disks if disk.covers(name)]

    def xOpen(  # noqa: N802 - SQLite's name
        self, name: apsw.URIFilename | str | None, flags: list[int]
    ) -> apsw.VFSFile:
        file = _LossyFile(self, name, flags)
        plain = name if isinstance(name, str) else name.filename() if name else ""
        for disk in self.disks_of(plain):
            disk.created(plain)
        return file

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802 - SQLite's signature
        super().xDelete(filename, syncdir)
        for disk in self.disks_of(filename):
            disk.deleted(filename)


class PowerGrid:
    """The disks that are on at the moment; every connection that is opened meanwhile is on one of them."""

    def __init__(self, vfs: _LossyVfs) -> None:
        self._vfs = vfs

    def plug(self, disk: PowerLossDisk) -> PowerLossDisk:
        """From now on files below its folder are on this disk."""
        self._vfs.disks.append(disk)
        return disk


@contextmanager
def power_grid() -> Iterator[PowerGrid]:
    """While it is open, SQLite uses the disks that are plugged in; other files are as ever."""
    vfs = _LossyVfs()
    try:
        yield PowerGrid(vfs)
    finally:
        apsw.set_default_vfs(vfs.base)
        vfs.unregister()
