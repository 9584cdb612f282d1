"""`mesh-cli ledger`: the replica of this machine, read, checked, backed up; no node needs to run."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mesh.errors import EXIT_JOB_FAILED, ConflictError, NotFoundError
from node.cli import views
from node.cli.client import home_of
from node.cli.faults import Commands, Json, error_from, print_error, print_json, safe
from node.cli.options import Common, Since, common_options, given
from node.cli.show import print_pairs, size
from node.settings.home_paths import LEDGER_FILE, RAFT_FILE

if TYPE_CHECKING:
    from ledger.restore import Restored

QUERY_ROWS_MAX = 10_000
"""Rows of one `ledger query`; a query for more is refused."""
_CHECKSUM_SHOWN = 16


@click.group(cls=Commands)
def ledger() -> None:
    """The replicated ledger, as this machine holds it."""


def _ledger_of(ctx: click.Context) -> Path:
    path = home_of(ctx.ensure_object(Common)) / LEDGER_FILE
    if not path.is_file():
        raise NotFoundError(
            f"there is no ledger at {path}", "start a node first, or name its home with --home"
        )
    return path


@ledger.command("query")
@click.argument("sql")
@common_options
@click.pass_context
def ledger_query(ctx: click.Context, *, sql: str, as_json: bool) -> int:
    """Read the local replica with SQL; answers also when no node runs."""
    from ledger.queries import run_query  # noqa: PLC0415 - SQLite is needed here alone

    columns, rows = run_query(str(_ledger_of(ctx)), sql, QUERY_ROWS_MAX)
    views.print_rows(columns, rows, as_json=as_json)
    return 0


@ledger.command("verify")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@common_options
@click.pass_context
def ledger_verify(ctx: click.Context, *, file: Path | None, as_json: bool) -> int:
    """Check the local replica and its log: every page, every promise, every entry.

    With FILE: check a backup instead, or what litestream restored.
    """
    from ledger.backup import verify_replica  # noqa: PLC0415 - SQLite is needed here alone

    if file is not None:
        return _verify_file(file, as_json=as_json)
    path = _ledger_of(ctx)
    found = verify_replica(str(path), str(path.with_name(RAFT_FILE)))
    log = found.log
    if as_json:
        print_json(
            {
                "sound": not found.faults,
                "path": found.path,
                "schema": found.schema,
                "applied_index": found.applied_index,
                "applied_term": found.applied_term,
                "checksum": found.checksum,
                "content": found.content,
                "rows": found.rows,
                "log": log
                and {
                    "base_index": log.base.index,
                    "base_term": log.base.term,
                    "last_index": log.last_index,
                    "term": log.term,
                },
                "log_unread": found.log_unread or None,
                "faults": list(found.faults),
            }
        )
    else:
        print_pairs(
            [
                ("ledger", found.path),
                ("applied to", f"entry {found.applied_index} of term {found.applied_term}"),
                ("checksum", found.checksum),
                ("content", found.content),
                ("rows", ", ".join(f"{count} {table}" for table, count in found.rows.items())),
                ("log", _log_text(log.base.index, log.last_index) if log else found.log_unread),
                ("verdict", "sound" if not found.faults else f"{len(found.faults)} faults"),
            ]
        )
    for fault in found.faults:
        todo = "keep the home for an analysis; mesh-cli ledger restore, or let the node join anew"
        print_error(error_from("damaged", fault, todo))
    return EXIT_JOB_FAILED if found.faults else 0


def _verify_file(file: Path, *, as_json: bool) -> int:
    from ledger.mirror import verify_file  # noqa: PLC0415 - SQLite is needed here alone

    found = verify_file(file)
    if as_json:
        told: Json = {"sound": True, "path": str(file), "checksum": found.checksum.hex()}
        told |= {"applied_index": found.applied_index, "applied_term": found.applied_term}
        print_json({**told, "bytes": found.size, "digest": found.digest})
    else:
        checksum = found.checksum.hex()[:_CHECKSUM_SHOWN]
        print(safe(f"{file}: sound, up to entry {found.applied_index}, checksum {checksum}"))
    return 0


def _log_text(base: int, last: int) -> str:
    return f"entries {base + 1} to {last}" if last > base else f"empty behind entry {base}"


@ledger.command("backup")
@click.argument("file", type=click.Path(path_type=Path))
@common_options
@click.pass_context
def ledger_backup(ctx: click.Context, *, file: Path, as_json: bool) -> int:
    """Write a checked copy of the local replica to a new file; the node may run."""
    from ledger.backup import back_up  # noqa: PLC0415 - SQLite is needed here alone

    made = back_up(str(_ledger_of(ctx)), str(file.absolute()))
    document: Json = {
        "path": str(made.path),
        "applied_index": made.applied_index,
        "applied_term": made.applied_term,
        "checksum": made.checksum.hex(),
        "bytes": made.size,
        "digest": made.digest,
    }
    if as_json:
        print_json(document)
    else:
        checksum = document["checksum"][:_CHECKSUM_SHOWN]
        print(
            safe(
                f"{file}: {size(made.size)}, up to entry {made.applied_index}, checksum {checksum}"
            )
        )
    return 0


@ledger.command("restore")
@click.argument("source", callback=given)
@click.option("--name", metavar="N", help="Name of this node where the backup does not know it.")
@click.option(
    "--until", type=Since(), metavar="T", help="The moment, of an archive or litestream: 2h."
)
@common_options
@click.pass_context
def ledger_restore(
    ctx: click.Context, *, source: str, name: str | None, until: int | None, as_json: bool
) -> int:
    """Put a backup in the place of the local replica of a stopped node.

    SOURCE is the file of a backup, the folder of an archive, or what litestream wrote: a folder,
    s3://BUCKET/PATH/MESH-EPOCH-NODE or sftp://USER@HOST/PATH/MESH-EPOCH-NODE.  The node then is the
    mesh: it alone votes, in a new epoch, and the other members come back as learners.  What was in
    the home before is kept in its folder replaced-DATE.
    """
    from node.cli.ledger_restore import restore_home  # noqa: PLC0415 - SQLite is needed here alone

    home = home_of(ctx.ensure_object(Common))
    restored, notes = restore_home(home, source, name, until)
    for note in notes:
        print(safe(note), file=sys.stderr)
    return _print_restored(restored, as_json=as_json)


@ledger.command("recover")
@click.option("--force", is_flag=True, help="Do it: what only the other nodes knew is lost.")
@common_options
@click.pass_context
def ledger_recover(ctx: click.Context, *, force: bool, as_json: bool) -> int:
    """Go on alone with this machine's stopped node, when the other voters are lost for good."""
    from node.consensus.recovery import recover  # noqa: PLC0415 - the stores are needed here alone

    home = home_of(ctx.ensure_object(Common))
    done = recover(home, really=force)
    others = ", ".join(done.lost) or "none"
    if not force:
        raise ConflictError(
            f"this node would go on alone from entry {done.last_index} of its log, without {others}: "
            "what only they knew would be lost",
            "start them instead; if that is impossible for good, repeat with --force",
        )
    if as_json:
        print_json({"mesh": done.mesh, "epoch": done.epoch, "last_index": done.last_index})
    else:
        print(f"this node alone is the mesh now (epoch {done.epoch}); start it: mesh-node start")
        print(safe(f"others come back by themselves as learners: {others}"))
    return 0


@ledger.command("archive")
@click.argument("folder", type=click.Path(path_type=Path))
@common_options
@click.pass_context
def ledger_archive(ctx: click.Context, *, folder: Path, as_json: bool) -> int:
    """Bring an archive up to now: snapshots and what was decided since; the node may run.

    A node does it by itself with `[backup] archive`.  `ledger restore FOLDER --until T` goes back to
    any moment that the archive holds everything of.
    """
    from ledger.archive import archive  # noqa: PLC0415 - SQLite is needed here alone

    path = _ledger_of(ctx)
    made = archive(str(path), str(path.with_name(RAFT_FILE)), folder.absolute())
    if as_json:
        told: Json = {"path": str(made.folder), "index": made.index}
        more = {"snapshot": made.snapshot, "drilled": made.drilled, "entries": made.entries}
        print_json({**told, **more})
    else:
        extra = " and a snapshot" if made.snapshot else ""
        extra += ", made again from the one before" if made.drilled else ""
        print(safe(f"{made.folder}: up to entry {made.index}, {made.entries} entries{extra} added"))
    return 0


@ledger.command("mirror")
@click.argument("file", type=click.Path(path_type=Path))
@common_options
@click.pass_context
def ledger_mirror(ctx: click.Context, *, file: Path, as_json: bool) -> int:
    """Bring a second copy of the replica up to now; the node may run.

    For programs that must not touch the ledger itself, such as litestream; a node does it by itself
    with `[backup] litestream`.
    """
    from ledger.mirror import mirror  # noqa: PLC0415 - SQLite is needed here alone

    path = _ledger_of(ctx)
    made = mirror(str(path), str(path.with_name(RAFT_FILE)), file.absolute())
    if as_json:
        told: Json = {"index": made.index, "checksum": made.checksum.hex()}
        print_json({**told, "entries": made.entries, "copied": made.copied})
    else:
        how = "copied whole" if made.copied else f"{made.entries} entries added"
        print(safe(f"{file}: up to entry {made.index}, {how}"))
    return 0


@ledger.command("export")
@click.argument("file", type=click.Path(path_type=Path))
@common_options
@click.pass_context
def ledger_export(ctx: click.Context, *, file: Path, as_json: bool) -> int:
    """Write every row as a line of JSON to a new file; the node may run.

    Without open tokens.  For people and other programs; to come back to this state, make a backup.
    """
    from ledger.backup import export_to  # noqa: PLC0415 - SQLite is needed here alone

    made = export_to(str(_ledger_of(ctx)), str(file.absolute()))
    if as_json:
        told = {"path": str(file.absolute()), "rows": made.rows}
        print_json({**told, "mesh": made.mesh, "applied_index": made.applied_index})
    else:
        print(safe(f"{file}: {made.rows} rows, up to entry {made.applied_index}"))
    return 0


@ledger.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", metavar="N", help="Name of this node where the export does not know it.")
@common_options
@click.pass_context
def ledger_import(ctx: click.Context, *, file: Path, name: str | None, as_json: bool) -> int:
    """Make a home of an export; only where no mesh was before, and no node runs.

    The node then is the mesh, as after a restore.
    """
    from node.cli.ledger_restore import import_home  # noqa: PLC0415 - SQLite is needed here alone

    home = home_of(ctx.ensure_object(Common))
    return _print_restored(import_home(home, file, name), as_json=as_json)


def _print_restored(restored: "Restored", *, as_json: bool) -> int:
    if as_json:
        print_json(
            {
                "mesh": restored.mesh,
                "epoch": restored.epoch,
                "applied_index": restored.applied_index,
                "jobs": restored.jobs,
                "kept": str(restored.aside) if restored.aside else None,
            }
        )
        return 0
    print(
        f"mesh {restored.mesh} in epoch {restored.epoch}: {restored.jobs} jobs,"
        f" up to entry {restored.applied_index}"
    )
    if restored.aside is not None:
        print(safe(f"what was there before is kept in {restored.aside}"))
    print("start this node first; members that were revoked since the backup are trusted again")
    return 0
