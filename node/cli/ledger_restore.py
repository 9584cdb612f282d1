"""A home whose node goes on from a file: identity, settings and clock of this machine for `ledger.restore`."""

import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from ledger.restore import Begin, Carrier, Place, Restored, import_rows, restore, restore_moment
from mesh import clock
from mesh.errors import UsageError
from mesh.ids import INCARNATION_CHARS
from mesh.recovery import carried_on_alone
from mesh.trust_files import load_or_create_identity
from node.config_files import load_config
from node.home_files import default_home, prepare_home
from node.home_paths import LEDGER_FILE, RAFT_FILE
from node.recovery import EPOCH_STEP_MAX


def restore_home(
    home: Path, source: Path, name: str | None, until_ms: int | None = None
) -> Restored:
    """Restores a backup, or a moment of an archive, into a home, which is made where there is none."""
    if not source.is_dir():
        if until_ms is not None:
            raise UsageError(f"{source} is a backup of one moment", "name the folder of an archive")
        return _into(home, source, name, restore)

    def way(file: Path, place: Place, /, *, carrier: Carrier, begin: Begin, stamp: str) -> Restored:
        moment = clock.wall_ms() if until_ms is None else until_ms
        return restore_moment(file, moment, place, carrier=carrier, begin=begin, stamp=stamp)

    return _into(home, source, name, way)


def import_home(home: Path, export: Path, name: str | None) -> Restored:
    """Imports an export into a home that holds no mesh."""
    return _into(home, export, name, import_rows)


class _Way(Protocol):
    def __call__(
        self,
        file: Path,
        place: Place,
        /,
        *,
        carrier: Carrier,
        begin: Begin,
        stamp: str,
    ) -> Restored: ...


def _into(home: Path, file: Path, name: str | None, way: _Way) -> Restored:
    flags = {"home": str(home), **({"name": name} if name else {})}
    settings = load_config(flags, os.environ, default_home=default_home(os.environ))
    identity = load_or_create_identity(prepare_home(str(home)))
    now_ms = clock.wall_ms()
    return way(
        file.absolute(),
        place_of(home),
        carrier=Carrier(
            node=identity.node_id,
            public_key=identity.public_key,
            name=settings.name,
            role=settings.role,
            incarnation=secrets.token_hex(INCARNATION_CHARS // 2),
            epoch_step=1 + secrets.randbelow(EPOCH_STEP_MAX),
            at_ms=now_ms,
        ),
        begin=carried_on_alone,
        stamp=datetime.fromtimestamp(now_ms / 1_000, UTC).strftime("%Y%m%d-%H%M%S"),
    )


def place_of(home: Path) -> Place:
    """Where a home keeps ledger and log."""
    return Place(ledger=home / LEDGER_FILE, log=home / RAFT_FILE)
