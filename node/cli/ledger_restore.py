"""A home whose node goes on from a file: identity, settings and clock of this machine for `ledger.restore`."""

import asyncio
import os
import secrets
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from ledger.restore import Begin, Carrier, Place, Restored, import_rows, restore, restore_moment
from mesh import clock
from mesh.errors import UsageError
from mesh.ids import INCARNATION_CHARS
from mesh.recovery import carried_on_alone
from mesh.trust_files import load_or_create_identity
from node.backup.destination import Destination, parse_destination
from node.backup.fetch import fetch, places_in
from node.backup.litestream import SftpKeys
from node.consensus.recovery import EPOCH_STEP_MAX
from node.settings.config import Config
from node.settings.config_files import load_config
from node.settings.home_files import prepare_home
from node.settings.home_paths import CONFIG_FILE, LEDGER_FILE, RAFT_FILE


def restore_home(
    home: Path, source: str, name: str | None, until_ms: int | None = None
) -> tuple[Restored, Sequence[str]]:
    """Restores a backup, a moment of an archive, or what litestream sent, into a home.

    The home is made where there is none.  Also what a person should know of it.
    """
    if "://" in source:
        return _from_litestream(home, _destination(source), name, until_ms)
    path = Path(source)
    if not path.is_dir():
        if until_ms is not None:
            raise UsageError(f"{source} is a backup of one moment", "name the folder of an archive")
        return _into(home, path, name, restore), ()
    if places_in(path):
        return _from_litestream(home, Destination("folder", str(path.absolute())), name, until_ms)

    def way(file: Path, place: Place, /, *, carrier: Carrier, begin: Begin, stamp: str) -> Restored:
        moment = clock.wall_ms() if until_ms is None else until_ms
        return restore_moment(file, moment, place, carrier=carrier, begin=begin, stamp=stamp)

    return _into(home, path, name, way), ()


def _destination(text: str) -> Destination:
    try:
        return parse_destination(text)
    except ValueError as error:
        raise UsageError(str(error), "see docs/backup.md") from None


def _from_litestream(
    home: Path, destination: Destination, name: str | None, until_ms: int | None
) -> tuple[Restored, Sequence[str]]:
    backup = _settings(home, name).backup
    keys = SftpKeys(key=backup.sftp_key, host_key=backup.sftp_host_key)
    if destination.kind == "sftp" and (keys.key is None or keys.host_key is None):
        raise UsageError(
            "sftp needs the keys of both sides",
            f"write [backup] sftp_key and sftp_host_key into {home / CONFIG_FILE}",
        )
    prepare_home(str(home))
    # In the home, whose disk has to hold it anyway.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=home) as scratch:
        program = backup.litestream_program
        fetched = asyncio.run(
            fetch(destination, keys, Path(scratch), until_ms=until_ms, program=program)
        )
        restored = _into(home, fetched.file, name, restore)
    notes = [f"restored from {fetched.source}"]
    return restored, (*notes, *(f"left out, damaged: {text}" for text in fetched.left_out))


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
    settings = _settings(home, name)
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


def _settings(home: Path, name: str | None) -> Config:
    flags = {"home": str(home), **({"name": name} if name else {})}
    return load_config(flags, os.environ, default_home=home)


def place_of(home: Path) -> Place:
    """Where a home keeps ledger and log."""
    return Place(ledger=home / LEDGER_FILE, log=home / RAFT_FILE)
