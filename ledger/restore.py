"""Puts a whole ledger into the home of a stopped node, which then carries the mesh on alone.

The log of such a node begins behind the ledger, in a data directory that never voted.  What was in
the home is kept aside.  I/O is all this module is.
"""

import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import apsw

from ledger.archive import ledger_at, place_in
from ledger.commands import AddMember, Command, MemberRole, MemberSpec, RecoverMesh, seal
from ledger.export_sqlite import holds_nothing, read_rows
from ledger.jobs import Member, Mesh
from ledger.log_sqlite import RESTORING, LogStore, holding, view_log
from ledger.snapshot_sqlite import install_snapshot, os_error, sync_folder, verify_snapshot
from ledger.store_sqlite import LedgerStore, SqliteRows, storage_error
from mesh.errors import ConflictError, NotAllowedError, StorageError
from mesh.ids import NodeId, RaftId, raft_id
from mesh.log import Base, Entry, HardState

MESH_VALUE: Final = "mesh"
"""Under this name the log remembers the mesh that its node belongs to."""
_BUILDING: Final = ".restore"
_IMPORTING: Final = ".import"
_SIDE_FILES: Final = ("", "-wal", "-shm")
_ASIDE_MAX: Final = 100
"""Restores within one second; more are somebody's loop."""


class Beginning(Protocol):
    """The log of a node that goes on alone: `mesh.recovery.Recovery`."""

    @property
    def base(self) -> Base:
        """What stands before it."""
        ...

    @property
    def hard_state(self) -> HardState:
        """With all entries committed."""
        ...

    @property
    def entries(self) -> Sequence[Entry]:
        """The first entries behind the base."""
        ...


class Begin(Protocol):
    """Makes the log of a node that goes on alone: `mesh.recovery.carried_on_alone`."""

    def __call__(
        self, raft_id: RaftId, *, index: int, term: int, commands: Sequence[bytes]
    ) -> Beginning:
        """Behind a ledger that is applied to `index` of `term`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrier:
    """The node that carries the mesh on, and what was drawn for that.

    `incarnation` is of a data directory that never was; the mesh's epoch grows by `epoch_step`.
    """

    node: NodeId
    public_key: bytes
    name: str
    role: MemberRole
    incarnation: str
    epoch_step: int
    at_ms: int

    @property
    def raft_id(self) -> RaftId:
        """Its consensus identity."""
        return raft_id(self.node, self.incarnation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What a home holds now, and where what it held before is kept (None when it held nothing)."""

    mesh: str
    epoch: int
    applied_index: int
    jobs: int
    aside: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The files of a home that belong together."""

    ledger: Path
    log: Path

    @property
    def home(self) -> Path:
        """The folder of both."""
        return self.log.parent

    @property
    def files(self) -> tuple[Path, ...]:
        """Both, and what SQLite keeps beside them."""
        return tuple(
            path.with_name(path.name + side)
            for path in (self.ledger, self.log)
            for side in _SIDE_FILES
        )


def restore(
    snapshot: Path,
    place: Place,
    *,
    carrier: Carrier,
    begin: Begin,
    stamp: str,
) -> Restored:
    """Makes a snapshot the ledger of a home whose node is stopped, and that node the whole mesh.

    The mesh keeps its id and its members, in a later epoch; the other members come
    back as learners.  `stamp` names the folder `replaced-<stamp>` in which the files of before are kept.  A kill leaves
    the old files, or a home in which no node starts until this was run again.  Raises `InUseError` when the node runs, `DamagedError`, `ConflictError` when
    the snapshot holds no mesh, `NotAllowedError` when it knows this node as revoked, `StorageError`.
    """
    with holding(str(place.log)):
        verify_snapshot(snapshot, thorough=True)
        new = Place(
            ledger=place.home / _BUILDING / place.ledger.name,
            log=place.home / _BUILDING / place.log.name,
        )
        try:
            shutil.rmtree(new.home, ignore_errors=True)
            new.home.mkdir(mode=0o700)
            built = _build(snapshot, new, carrier, begin)
            sync_folder(new.home)
            aside = _exchange(place, new, stamp)
        except apsw.Error as error:
            raise storage_error(error, str(new.home)) from None
        except OSError as error:
            raise os_error(error, place.home) from None
        finally:
            shutil.rmtree(new.home, ignore_errors=True)
    return Restored(
        mesh=built.mesh,
        epoch=built.epoch,
        applied_index=built.applied_index,
        jobs=built.jobs,
        aside=aside,
    )


def import_rows(
    export: Path,
    place: Place,
    *,
    carrier: Carrier,
    begin: Begin,
    stamp: str,
) -> Restored:
    """The same from an export, into a home that never held a mesh.

    An export is no copy: what it leaves out and what a person changed in it is not what members
    know, so it founds a home and replaces none.  Raises as `restore` does, `ConflictError` for a
    home that holds a mesh.
    """
    building = place.home / _IMPORTING
    with holding(str(place.log)):
        if not holds_nothing(place.ledger) or (place.log.exists() and _has_entries(place.log)):
            raise ConflictError(
                f"{place.home} holds a mesh already",
                "name another home with --home, or use mesh-cli ledger restore with a backup",
            )
        try:
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir(mode=0o700)
        except OSError as error:
            raise os_error(error, building) from None
    try:
        read_rows(export, building / place.ledger.name)
        snapshot = building / place.ledger.name
        return restore(snapshot, place, carrier=carrier, begin=begin, stamp=stamp)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def restore_moment(
    folder: Path, until_ms: int, place: Place, *, carrier: Carrier, begin: Begin, stamp: str
) -> Restored:
    """The same from an archive, as the ledger was at a moment.  Raises as `restore` and `ledger_at` do."""
    building = place.home / _IMPORTING
    try:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(mode=0o700)
        snapshot = building / place.ledger.name
        ledger_at(place_in(folder), snapshot, until_ms=until_ms)
        return restore(snapshot, place, carrier=carrier, begin=begin, stamp=stamp)
    except OSError as error:
        raise os_error(error, building) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _has_entries(log_path: Path) -> bool:
    return view_log(str(log_path), 0).last_index > 0


def _build(snapshot: Path, new: Place, carrier: Carrier, begin: Begin) -> Restored:
    """Ledger and log as the node will find them, whole and synced."""
    install_snapshot(snapshot, str(new.ledger))
    with closing(LedgerStore(str(new.ledger))) as ledger:
        rows = SqliteRows(ledger.connection)
        meshes = rows.where(Mesh)
        if not meshes:
            raise ConflictError(f"{snapshot} holds no mesh", "name the backup of a node of a mesh")
        known = rows.get(Member, carrier.node)
        beginning = begin(
            carrier.raft_id,
            index=ledger.applied_index,
            term=ledger.applied_term,
            commands=_commands(meshes[0].epoch + carrier.epoch_step, known, carrier),
        )
        with closing(LogStore(str(new.log), incarnation=carrier.incarnation)) as log:
            base, state = beginning.base, beginning.hard_state
            log.restart_from(base, HardState(term=state.term, vote=state.vote, commit=base.index))
            log.persist(state, beginning.entries)
            log.set_value(MESH_VALUE, meshes[0].id)
        # Applied here already: what is refused must be known before anything is moved.
        for _, _, outcome in ledger.apply(beginning.entries):
            if outcome is not None and not outcome.ok:
                error = NotAllowedError if outcome.code == "revoked" else ConflictError
                raise error(outcome.what, outcome.todo)
        ledger.make_durable()
        (mesh,) = rows.where(Mesh)
        return Restored(
            mesh=mesh.id,
            epoch=mesh.epoch,
            applied_index=ledger.applied_index,
            jobs=int(ledger.connection.execute("SELECT count(*) FROM job").get),
            aside=None,
        )


def _commands(epoch: int, known: Member | None, carrier: Carrier) -> list[bytes]:
    """A new epoch, then this node's place in it: its data directory is new, its key may be."""
    member = MemberSpec(
        node=carrier.node,
        raft_id=carrier.raft_id,
        public_key=carrier.public_key,
        name=known.name if known is not None else carrier.name,
        role=known.role if known is not None else carrier.role,
    )
    commands: tuple[Command, ...] = (
        RecoverMesh(node=carrier.node, epoch=epoch),
        AddMember(member=member, invitation=None),
    )
    return [
        seal(
            command,
            command_id=f"restore-{carrier.incarnation}-{number}",
            proposer=carrier.node,
            proposed_at_ms=carrier.at_ms,
            cause="restore",
        )
        for number, command in enumerate(commands)
    ]


def _exchange(place: Place, new: Place, stamp: str) -> Path | None:
    """Sets aside what is there and puts the new files in its place; no node starts in between."""
    guard = place.home / RESTORING
    guard.mkdir(mode=0o700, exist_ok=True)
    sync_folder(place.home)
    old = [path for path in place.files if path.exists()]
    aside = _folder(place.home, stamp) if old else None
    for path in old:
        assert aside is not None
        path.replace(aside / path.name)
    new.ledger.replace(place.ledger)
    new.log.replace(place.log)
    sync_folder(place.home)
    guard.rmdir()
    sync_folder(place.home)
    return aside


def _folder(home: Path, stamp: str) -> Path:
    for number in range(1, _ASIDE_MAX + 1):
        folder = home / (f"replaced-{stamp}" if number == 1 else f"replaced-{stamp}-{number}")
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return folder
    raise StorageError(f"{home} has {_ASIDE_MAX} folders replaced-{stamp}", "remove some")
