"""The replica on disk: batches, crashes, damage, migrations."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from ledger import commands as c
from ledger import store_sqlite
from ledger.invariants import violations
from ledger.jobs import row_classes
from ledger.rows import columns_of, table_of
from ledger.schema import FIRST_SCHEMA, SCHEMA_VERSION
from ledger.store_sqlite import LedgerStore, SqliteRows, migrations
from mesh.errors import OutdatedError, StorageError, WireError
from mesh.log import Entry
from tests.ledger_helper import Ledger, dump, entry, grant, job_spec, node_report, plan_of, spec

FORM = c.FormMesh(mesh="m", founder=spec("anna"), schema=SCHEMA_VERSION)


def history() -> list[Entry]:
    """A mesh with work, refusals, repeated ids and entries that are no commands."""
    commands: list[tuple[c.Command, str]] = [
        (FORM, ""),
        (FORM, ""),
        (node_report("anna"), ""),
    ]
    for n in range(20):
        job = f"j{n}"
        commands += [
            (c.SubmitJobs(jobs=(job_spec(job),)), f"submit-{n}"),
            (c.StartPlanning(job=job), ""),
            (plan_of(job), ""),
            # Said again under one id, with an effect wherever the first was forgotten.
            (node_report("anna", slots=n), "report"),
            (c.SubmitJobs(jobs=(job_spec(job),)), f"submit-{n}"),
            (c.SubmitJobs(jobs=(job_spec(f"x{n}"), job_spec(job))), ""),
            (grant((f"{job}-t", f"a{n}", "anna")), ""),
        ]
    entries: list[Entry] = []
    for command, command_id in commands:
        index = len(entries) + 1
        entries.append(entry(index, command, command_id))
        if index % 7 == 0:
            entries.append(Entry(index + 1, 1, "empty", b""))
    return entries


def applied(batch: int, entries: list[Entry]) -> LedgerStore:
    store = LedgerStore(":memory:")
    for start in range(0, len(entries), batch):
        store.apply(entries[start : start + batch])
    return store


@pytest.mark.parametrize("remembered", [100_000, 3, 1])
def test_batches_of_any_size_give_the_same(
    monkeypatch: pytest.MonkeyPatch, remembered: int
) -> None:
    monkeypatch.setattr(store_sqlite, "REMEMBERED_MAX", remembered)
    entries = history()
    stores = [applied(batch, entries) for batch in (1, 2, 7, 1_000)]
    first = stores[0]
    commands = first.connection.execute("SELECT * FROM command ORDER BY id").fetchall()
    assert len(commands) <= remembered
    for store in stores:
        assert store.checksum == first.checksum
        assert dump(store) == dump(first)
        assert store.applied_index == len(entries)
        got = store.connection.execute("SELECT * FROM command ORDER BY id").fetchall()
        assert got == commands
    for store in stores:
        store.close()


def test_the_checksum_is_over_what_changed() -> None:
    one, other, same = Ledger(), Ledger(), Ledger()
    for ledger in (one, other, same):
        ledger.formed()
    assert one.store.checksum == other.store.checksum
    one.submitted("j")
    same.submitted("j")
    other.submitted("j", priority=1)
    assert one.store.checksum == same.store.checksum != other.store.checksum
    before = one.store.checksum
    one.refused(c.StartPlanning(job="x"))
    assert one.store.checksum == before


def test_checksums_are_known_at_each_entry_whatever_the_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entries = history()
    one, other = applied(1, entries), applied(7, entries)
    for index in range(1, len(entries) + 1):
        assert one.checksum_at(index) == other.checksum_at(index)
        assert one.checksum_at(index) == applied(1_000, entries[:index]).checksum
    assert one.checksum_at(len(entries)) == one.checksum
    assert one.checksum_at(len(entries) + 1) is None
    monkeypatch.setattr(store_sqlite, "CHECKSUMS_KEPT", 10)
    few = applied(7, entries)
    known = [n for n in range(len(entries) + 1) if few.checksum_at(n) is not None]
    assert known == list(range(len(entries) - 9, len(entries) + 1))


def test_applied_entries_are_skipped_and_gaps_refused() -> None:
    entries = history()
    store = applied(1, entries[:10])
    assert store.apply(entries[:10]) == []
    assert store.apply([]) == []
    assert [done[0].index for done in store.apply(entries[5:12])] == [11, 12]
    with pytest.raises(StorageError):
        store.apply(entries[13:15])
    with pytest.raises(StorageError):
        store.apply([entries[12], entries[14]])
    assert store.applied_index == 12
    store.apply(entries[12:])
    assert store.checksum == applied(1_000, entries).checksum


def test_outcomes_come_with_their_command_ids() -> None:
    store = LedgerStore(":memory:")
    done = store.apply([entry(1, FORM, "form"), Entry(2, 1, "empty", b""), entry(3, FORM, "no")])
    (_, first, good), (_, second, nothing), (_, third, bad) = done
    assert (first, second, third) == ("form", None, "no")
    assert good == c.Outcome(ok=True, index=1)
    assert nothing is None
    assert bad is not None
    assert (bad.ok, bad.index, bad.code) == (False, 3, "conflict")


def test_an_unreadable_entry_undoes_its_whole_batch() -> None:
    store = LedgerStore(":memory:")
    store.apply([entry(1, FORM)])
    before, checksum = dump(store), store.checksum
    unknown = c.ENVELOPES.encode(
        c.Envelope(id="c", proposer="p", proposed_at_ms=1, cause="", command=b"\x93\x01\xa1?\x80")
    )
    report = entry(2, node_report("anna"))
    with pytest.raises(OutdatedError, match="entry 3"):
        store.apply([report, Entry(3, 1, "command", unknown)])
    with pytest.raises(WireError):
        store.apply([report, Entry(3, 1, "command", b"\xc1")])
    outcome = c.ENVELOPES.encode(c.Outcome(ok=True, index=1))
    with pytest.raises(WireError):
        store.apply([report, Entry(3, 1, "command", outcome)])
    assert (dump(store), store.checksum, store.applied_index) == (before, checksum, 1)
    store.apply([report])


def test_reopening_goes_on(tmp_path: Path) -> None:
    entries = history()
    store = LedgerStore(str(tmp_path / "l.db"))
    store.apply(entries[:50])
    store.close()
    again = LedgerStore(str(tmp_path / "l.db"))
    assert (again.applied_index, again.applied_term) == (50, 1)
    again.apply(entries)
    whole = applied(1_000, entries)
    assert (again.checksum, dump(again)) == (whole.checksum, dump(whole))
    again.close()


CHILD = """
import sys
from tests.unit.test_ledger_store import history
from ledger.store_sqlite import LedgerStore
entries = history()
store = LedgerStore(sys.argv[1])
for start in range(store.applied_index, len(entries), 2):
    store.apply(entries[start : start + 2])
    print(store.applied_index, flush=True)
"""


@pytest.mark.parametrize("after", [1, 9, 25])
def test_kill_in_the_middle_leaves_a_whole_ledger(tmp_path: Path, after: int) -> None:
    path = str(tmp_path / "l.db")
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, path],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdout is not None
    try:
        for _ in range(after):
            assert child.stdout.readline()
        os.kill(child.pid, signal.SIGKILL)
    finally:
        child.kill()
        child.wait(10)
        child.stdout.close()
    store = LedgerStore(path)
    assert store.applied_index >= 2 * after
    entries = history()
    expected = applied(1_000, entries[: store.applied_index])
    assert (store.checksum, dump(store)) == (expected.checksum, dump(expected))
    assert violations(SqliteRows(store.connection)) == []
    store.close()


# --- files that are not what they should be -----------------------------------------------------


def not_a_database(path: Path) -> None:
    path.write_bytes(b"no database at all. " * 300)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5_000])


def scribbled(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4_096:] = os.urandom(len(data) - 4_096)
    path.write_bytes(bytes(data))


def without_state(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("DELETE FROM state")
    connection.close()


def newer(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.pragma("user_version", 99)
    connection.close()


@pytest.mark.parametrize("damage", [not_a_database, cut_off, scribbled, without_state, newer])
def test_a_damaged_or_newer_file_is_refused(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "l.db"
    store = LedgerStore(str(path))
    store.apply(history())
    store.close()
    damage(path)
    size = path.stat().st_size
    with pytest.raises(StorageError) as error:
        LedgerStore(str(path)).apply([entry(len(history()) + 1, FORM)])
    assert error.value.todo
    assert path.stat().st_size == size


def test_a_folder_is_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        LedgerStore(str(tmp_path))


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    store = LedgerStore(str(tmp_path / "l.db"))
    store.apply(history())
    pages = store.connection.pragma("page_count")
    store.connection.pragma("max_page_count", pages)
    before, checksum, index = dump(store), store.checksum, store.applied_index
    big = tuple(job_spec(f"big{n}") for n in range(1_000))
    with pytest.raises(StorageError, match="full"):
        store.apply([entry(index + 1, c.SubmitJobs(jobs=big))])
    assert (dump(store), store.checksum, store.applied_index) == (before, checksum, index)
    store.close()


def test_migrations_give_the_schema() -> None:
    def schema_of(connection: apsw.Connection) -> list[tuple[str, str, str]]:
        found = connection.execute(
            "SELECT type, name, coalesce(sql, '') FROM sqlite_schema ORDER BY type, name"
        ).fetchall()
        return [
            (str(t), str(n), " ".join(re.sub(r"--[^\n]*", "", str(sql)).split()))
            for t, n, sql in found
        ]

    written = apsw.Connection(":memory:")
    path = Path(store_sqlite.__file__).parent / "sql" / "schema.sql"
    written.execute(path.read_text("utf-8"))
    store = LedgerStore(":memory:")
    store.apply([entry(1, FORM)])
    assert schema_of(store.connection) == schema_of(written)
    assert schema_of(written)
    assert [number for number, _ in migrations()] == list(range(1, SCHEMA_VERSION + 1))
    assert store.connection.pragma("user_version") == SCHEMA_VERSION
    strict = written.execute(
        "SELECT name FROM pragma_table_list WHERE type = 'table' AND strict = 0"
        " AND name NOT LIKE 'sqlite_%'"
    ).fetchall()
    assert strict == []
    written.close()


@pytest.mark.parametrize("schema", range(FIRST_SCHEMA, SCHEMA_VERSION + 1))
def test_rows_are_the_tables_of_every_schema(schema: int) -> None:
    store = LedgerStore(":memory:")
    store.apply([entry(1, c.FormMesh(mesh="m", founder=spec("anna"), schema=schema))])
    assert store.schema == schema
    for cls in row_classes(schema):
        found = store.connection.execute(
            f"SELECT name FROM pragma_table_info('{table_of(cls)}') ORDER BY cid"
        ).fetchall()
        assert tuple(str(name) for (name,) in found) == columns_of(cls, schema)
