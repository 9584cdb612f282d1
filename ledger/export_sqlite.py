"""A ledger as text: JSON lines, one row each, for people, other programs and other versions.

The first line is a header, the last says how many rows there are.  Bytes are hexadecimal.  Open
invitations and remembered commands are left out: secrets, and of use for an hour at most.
"""

import json
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal, TextIO, get_args, get_origin

import apsw

from ledger.change import RefusedError
from ledger.jobs import ROW_CLASSES, Invitation, Mesh, Row, row_classes
from ledger.pending import RowChange
from ledger.rows import columns_of, decoded, encoded, table_of
from ledger.schema import SCHEMA_VERSION, is_held
from ledger.store_sqlite import CHECKSUM_BYTES, LedgerStore, SqliteRows, checksum_of, migrate
from ledger.transaction_sqlite import transaction
from mesh.errors import DamagedError, StorageError

KIND: Final = "darkstream ledger"
FORMAT: Final = 1
LINE_CHARS_MAX: Final = 8 << 20
"""A row comes from an entry of at most 1 MiB, whose every byte may become an escape of six signs."""
ROWS_AT_ONCE: Final = 10_000
"""Rows of one transaction and one step of the checksum while a file is read."""
_CLASSES: Final = {table_of(cls): cls for cls in ROW_CLASSES if cls is not Invitation}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What an export holds."""

    rows: int
    applied_index: int
    mesh: str


def write_rows(connection: apsw.Connection, out: TextIO) -> Exported:
    """Writes every row, within one reading transaction of the caller.  Raises `apsw.Error`, OSError."""
    index, term, checksum = connection.execute(
        "SELECT applied_index, applied_term, checksum FROM state"
    ).get
    mesh = connection.execute("SELECT id FROM mesh").get
    schema = int(connection.pragma("user_version"))
    header = {
        "kind": KIND,
        "format": FORMAT,
        "schema": schema,
        "mesh": mesh,
        "applied_index": index,
        "applied_term": term,
        "checksum": checksum.hex(),
    }
    out.write(json.dumps(header) + "\n")
    count = 0
    for cls in row_classes(schema):
        if cls is Invitation:
            continue
        table, names = table_of(cls), columns_of(cls, schema)
        sql = f"SELECT {','.join(names)} FROM {table} ORDER BY 1"  # noqa: S608 - our own names
        for values in connection.execute(sql):
            row = decoded(cls, values, schema)
            shown = {name: _shown(getattr(row, name)) for name in names}
            out.write(json.dumps({"table": table, "row": shown}, ensure_ascii=False) + "\n")
            count += 1
    out.write(json.dumps({"end": True, "rows": count}) + "\n")
    return Exported(rows=count, applied_index=index, mesh=mesh or "")


def _shown(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else value


def read_rows(file: Path, ledger_path: Path) -> None:
    """Makes a new ledger of an export.

    Raises `DamagedError` with the line that is at fault, `StorageError` when it cannot be read or a
    newer version wrote it.
    """
    lines = _lines(file)
    header = next(lines)[1]
    index, term, schema = _check_header(file, header)
    store = LedgerStore(str(ledger_path))
    try:
        with transaction(store.connection):  # the mesh goes on in the form that it had
            migrate(store.connection, schema)
        checksum = _put_all(store, file, lines)
        with transaction(store.connection):
            store.connection.execute(
                "UPDATE state SET applied_index = ?, applied_term = ?, checksum = ?",
                (index, term, checksum),
            )
    except apsw.Error as error:
        raise DamagedError(f"{file}: {error}", "export the ledger anew") from None
    finally:
        store.close()


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with file.open(encoding="utf-8") as stream:
            number = 0
            while line := stream.readline(LINE_CHARS_MAX):
                number += 1
                try:
                    value = json.loads(line)
                except ValueError:
                    raise _damaged(file, number, "is no JSON") from None
                if not isinstance(value, dict):
                    raise _damaged(file, number, "is no object")
                yield number, value
            if number == 0:
                raise _damaged(file, 1, "is missing: the file is empty")
    except UnicodeDecodeError:
        raise DamagedError(f"{file} is no text", "name a file of mesh-cli ledger export") from None
    except OSError as error:
        raise StorageError(f"{file}: {error.strerror}", "name a file that can be read") from None


def _damaged(file: Path, number: int, what: str) -> DamagedError:
    return DamagedError(f"{file}: line {number} {what}", "export the ledger anew")


def _check_header(file: Path, header: dict[str, Any]) -> tuple[int, int, int]:
    if header.get("kind") != KIND:
        raise _damaged(file, 1, "is not the header of an export")
    for name, known in (("format", FORMAT), ("schema", SCHEMA_VERSION)):
        found = header.get(name)
        if not isinstance(found, int) or found < 1:
            raise _damaged(file, 1, f"names no {name}")
        if found > known:
            raise StorageError(
                f"{file} has {name} {found}; this version of DarkStream knows up to {known}",
                "update DarkStream on this node",
            )
    index, term = header.get("applied_index"), header.get("applied_term")
    if not (isinstance(index, int) and isinstance(term, int) and index > 0 and term > 0):
        raise _damaged(file, 1, "does not say which entry was applied last")
    return index, term, int(header["schema"])


def _put_all(store: LedgerStore, file: Path, lines: Iterator[tuple[int, dict[str, Any]]]) -> bytes:
    """Puts every row; the checksum of a ledger that was made so."""
    checksum, count, number = b"\x00" * CHECKSUM_BYTES, 0, 1
    ended: object = None
    while ended is None:
        with transaction(store.connection):
            rows, changes = SqliteRows(store.connection), list[RowChange]()
            for number, line in lines:
                if "end" in line:
                    ended = line.get("rows", False)
                    break
                row = _row_of(file, number, line, rows.schema)
                try:
                    rows.put(row)
                    changes.append((table_of(type(row)), encoded(row, rows.schema)))
                except (RefusedError, apsw.ConstraintError) as error:
                    raise _damaged(file, number, f"does not fit: {error}") from None
                count += 1
                if count % ROWS_AT_ONCE == 0:
                    break
            else:
                raise _damaged(file, number + 1, "is missing: the export was cut off")
            checksum = checksum_of(checksum, changes, rows.schema)
    if ended != count:
        raise _damaged(file, number, f"says {ended} rows, and {count} are there")
    return checksum


def _row_of(file: Path, number: int, line: dict[str, Any], schema: int) -> Row:
    cls = _CLASSES.get(str(line.get("table")))
    given = line.get("row")
    if cls not in row_classes(schema) or not isinstance(given, dict):
        raise _damaged(file, number, "is no row of a known table")
    values: dict[str, Any] = {}
    held = [field for field in fields(cls) if is_held(field.metadata, schema)]
    for field in held:
        if field.name not in given:
            if field.default is MISSING:
                raise _damaged(file, number, f"has no {field.name}")
            continue
        value = _value(field.type, given[field.name])
        if value is None:
            raise _damaged(file, number, f"has no sound {field.name}")
        values[field.name] = value
    if unknown := sorted(given.keys() - {field.name for field in held}):
        raise _damaged(file, number, f"has {unknown[0]}, which this version does not know")
    return cls(**values)


def _value(kind: object, given: object) -> object:
    """The value of a column, None when it is not one."""
    if get_origin(kind) is Literal:
        return given if given in get_args(kind) else None
    if kind is bytes:
        try:
            return bytes.fromhex(given) if isinstance(given, str) else None
        except ValueError:
            return None
    if get_origin(kind) is tuple:
        sound = isinstance(given, list) and all(isinstance(one, str) for one in given)
        return tuple(given) if sound and isinstance(given, list) else None
    assert kind in (int, str), kind
    return given if type(given) is kind else None


def holds_nothing(ledger_path: Path) -> bool:
    """Whether no mesh was ever in this ledger."""
    if not ledger_path.exists():
        return True
    store = LedgerStore(str(ledger_path))
    try:
        return store.applied_index == 0 and not SqliteRows(store.connection).where(Mesh)
    finally:
        store.close()
