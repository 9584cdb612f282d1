"""What can be wrong with a log's file, found without the ledger: for `ledger verify`.

Opening a log checks what a start needs in milliseconds; here every page and entry is read.
"""

from collections.abc import Iterator
from typing import Any, Final

import apsw

from ledger.commands import unseal
from ledger.log_sqlite import LOG_VERSION
from mesh.errors import StorageError, UnknownKindError, WireError

FAULTS_MAX: Final = 20
"""Faults that are told of one file: more of them say nothing new."""
_BUSY_MS: Final = 2_000


def faults_of_log(path: str) -> list[str]:
    """Every fault as a sentence, at most `FAULTS_MAX`; empty when the log is sound.

    Works while the node runs.  Raises `StorageError` when it cannot be read for another reason than
    damage: permissions, a lock.
    """
    try:
        connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    except apsw.Error as error:
        raise StorageError(f"{path} cannot be read: {error}", "mend its permissions") from None
    try:
        connection.set_busy_timeout(_BUSY_MS)
        connection.execute("BEGIN")
        found: list[str] = []
        for fault in _faults(connection):
            found.append(fault)
            if len(found) == FAULTS_MAX:
                break
    except (apsw.NotADBError, apsw.CorruptError, apsw.SQLError) as error:
        return [f"the log {path} is damaged: {error}"]
    except apsw.Error as error:
        raise StorageError(f"{path} cannot be read: {error}", "mend its permissions") from None
    else:
        return found
    finally:
        connection.close(True)


def _faults(connection: apsw.Connection) -> Iterator[str]:
    version = int(connection.pragma("user_version"))
    if version > LOG_VERSION:
        yield f"the log has version {version}, and this DarkStream knows up to {LOG_VERSION}"
        return
    pages = [
        line
        for (said,) in connection.execute(f"PRAGMA integrity_check({FAULTS_MAX})")
        for line in str(said).splitlines()
        if said != "ok" and not line.startswith("***")
    ]
    yield from (f"the log's integrity_check: {line}" for line in pages)
    if pages:
        return
    state: Any = connection.execute("SELECT term, commit_index FROM hard_state").fetchone()
    base: Any = (0, 0)
    if version > 1:
        base = connection.execute("SELECT log_index, term FROM base").fetchone()
    if state is None or base is None:
        yield "the log has lost its hard state" if state is None else "the log has lost its base"
        return
    (last_index, last_term), (term, commit) = base, state
    for index, entry_term, kind, data in connection.execute(
        "SELECT log_index, term, kind, data FROM entry WHERE log_index > ? ORDER BY 1", (base[0],)
    ):
        if index != last_index + 1:
            yield f"the log jumps from entry {last_index} to {index}"
        if not last_term <= entry_term <= term:
            yield f"entry {index} of the log is of term {entry_term}, behind {last_term} of {term}"
        if fault := _of_command(data) if kind == "command" else "":
            yield f"entry {index} of the log {fault}"
        last_index, last_term = index, max(entry_term, last_term)
    if commit > last_index:
        yield f"the log ends at {last_index}, and entries up to {commit} were decided"


def _of_command(data: bytes) -> str:
    try:
        unseal(data)
    except UnknownKindError as error:
        return f"is of a newer version: {error.what}"
    except WireError as error:
        return f"cannot be read: {error.what}"
    return ""
