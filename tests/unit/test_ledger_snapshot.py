"""Snapshots: consistent beside a writer, checked before use, installed whole or not at all."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from ledger import soundness_sqlite
from ledger.queries import Reader
from ledger.snapshot_sqlite import (
    install_snapshot,
    reading_snapshot,
    remove_snapshots,
    verify_snapshot,
    write_snapshot,
)
from ledger.soundness_sqlite import content_digest, faults_of, row_counts
from ledger.store_sqlite import LedgerStore, SqliteRows
from mesh.errors import DamagedError, StorageError
from mesh.log import Entry
from tests.ledger_helper import Ledger, c, dump, entry, invitation, job_spec
from tests.power_loss import only_synced_survives


def working(path: str = ":memory:", jobs: int = 5) -> Ledger:
    ledger = Ledger(path).formed("bert")
    ledger.planned(*(f"j{n}" for n in range(jobs)))
    ledger.leased("j0", "a0", "anna")
    ledger.must(ledger.finish("a0"))
    ledger.leased("j1", "a1", "bert")
    return ledger


@pytest.fixture
def made(tmp_path: Path) -> Ledger:
    return working(str(tmp_path / "ledger.db"))


def snapshot_of(ledger: Ledger, tmp_path: Path) -> Path:
    return write_snapshot(ledger.store.path, tmp_path / "snapshots").path


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- writing --------------------------------------------------------------------------------------


def test_a_snapshot_is_the_ledger(made: Ledger, tmp_path: Path) -> None:
    found = write_snapshot(made.store.path, tmp_path / "new" / "snapshots")
    assert (found.applied_index, found.applied_term) == (made.store.applied_index, 1)
    assert found.checksum == made.store.checksum
    assert found.path.name == f"{found.handle}.db"
    assert found.handle == f"snapshot-{found.applied_index}-{found.digest[:16]}"
    assert found.size == found.path.stat().st_size
    assert found.path.stat().st_mode & 0o077 == 0
    assert verify_snapshot(found.path, thorough=True) == found
    assert names_in(tmp_path / "new" / "snapshots") == [f"{found.handle}.db"]
    copy = LedgerStore(str(found.path))
    assert dump(copy) == made.dump()
    copy.close()


def test_nothing_that_was_deleted_is_in_it(made: Ledger, tmp_path: Path) -> None:
    secret = b"the verifier of a token, 32 byte"
    made.must(invitation("i", key=secret, expires_at_ms=5_000))
    assert secret in snapshot_of(made, tmp_path).read_bytes()
    made.now_ms = 6_000
    made.must(invitation("j", expires_at_ms=9_000))
    assert secret not in snapshot_of(made, tmp_path).read_bytes()


def test_from_memory_and_of_one_moment_with_writes_beside(tmp_path: Path) -> None:
    ledger = working()
    found = write_snapshot(ledger.store.connection, tmp_path)
    assert found.checksum == ledger.store.checksum

    beside = working(str(tmp_path / "ledger.db")).submitted(*(f"m{n}" for n in range(500)))
    checksums = {beside.store.applied_index: beside.store.checksum}
    snapshots = []
    stop = threading.Event()

    def copy() -> None:
        while not stop.is_set():
            snapshots.append(write_snapshot(beside.store.path, tmp_path / "s"))

    thread = threading.Thread(target=copy)
    thread.start()
    try:
        for n in range(5_000):
            beside.store.apply([next_job(beside.store, f"w{n}")])
            checksums[beside.store.applied_index] = beside.store.checksum
            if n > 150 and len({one.applied_index for one in snapshots}) > 1:
                break
    finally:
        stop.set()
        thread.join()
    assert len({one.applied_index for one in snapshots}) > 1
    for one in snapshots:
        assert one.checksum == checksums[one.applied_index]
        assert verify_snapshot(one.path, thorough=True) == one


def next_job(store: LedgerStore, job: str) -> Entry:
    return entry(store.applied_index + 1, c.SubmitJobs(jobs=(job_spec(job),)))


@pytest.mark.parametrize("durable", [True, False])
def test_only_what_has_to_last_is_synced(
    made: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    found = write_snapshot(made.store.path, tmp_path / "s", durable=durable)
    assert bool(synced) == durable
    assert verify_snapshot(found.path, thorough=True) == found


def test_a_ledger_that_is_not_sound_gives_no_snapshot(made: Ledger, tmp_path: Path) -> None:
    made.store.connection.execute("DROP INDEX job_by_tenant")
    with pytest.raises(DamagedError, match="job_by_tenant"):
        write_snapshot(made.store.path, tmp_path / "s")
    assert names_in(tmp_path / "s") == []
    with pytest.raises(StorageError):
        write_snapshot(str(tmp_path / "none.db"), tmp_path / "s")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        write_snapshot(made.store.path, tmp_path / "file")


def test_old_snapshots_and_leftovers_go(made: Ledger, tmp_path: Path) -> None:
    first = snapshot_of(made, tmp_path)
    made.planned("more")
    second = snapshot_of(made, tmp_path)
    folder = second.parent
    (folder / ".snapshot-xyz").touch()
    (folder / "mine").touch()
    remove_snapshots(folder, keep=[second])
    assert names_in(folder) == sorted(["mine", second.name])
    assert first != second
    remove_snapshots(folder / "none")


# --- checking -------------------------------------------------------------------------------------


def sql(*statements: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        connection = apsw.Connection(str(path))
        for statement in statements:
            connection.execute(statement)
        connection.close()

    return damage


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20_000])


def scribbled(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[8_192:12_288] = b"\x5a" * 4_096
    path.write_bytes(bytes(data))


def no_database(path: Path) -> None:
    path.write_bytes(b"no database at all. " * 300)


def empty(path: Path) -> None:
    path.write_bytes(b"")


QUICK = {
    "cut off": cut_off,
    "scribbled": scribbled,
    "no database": no_database,
    "empty": empty,
    "another's": sql("CREATE TABLE t (x)"),
    "trigger": sql("CREATE TRIGGER t AFTER INSERT ON job BEGIN DELETE FROM job; END"),
    "view": sql("DROP VIEW jobs", "CREATE VIEW jobs AS SELECT * FROM invitation"),
    "no state": sql("DELETE FROM state"),
    "short checksum": sql("UPDATE state SET checksum = x'00'"),
    "two meshes": sql("INSERT INTO mesh SELECT 'other', 'x', x'', 1, 1, 1"),
}
THOROUGH = {
    "behind its rows": sql("UPDATE state SET applied_index = 3"),
    "later events": sql("UPDATE event SET log_index = 99999, id = 99999 << 14 WHERE id IN (SELECT max(id) FROM event)"),
    "odd events": sql("UPDATE event SET id = id + 99999999"),
    "later tokens": sql("UPDATE attempt SET token = token + (1 << 40)"),
    "odd state": sql("UPDATE job SET state = 'melted' WHERE id = 'j4'"),
    "orphan": sql("DELETE FROM job WHERE id = 'j3'"),
    "last orphan": sql("UPDATE task SET job = 'zzz' WHERE id = 'j3-t'"),
    "first orphan": sql("UPDATE task SET job = '' WHERE id = 'j3-t'"),
    "promise": sql("UPDATE job SET state = 'done' WHERE id = 'j3'"),
    "no JSON": sql("UPDATE task SET needs = 'x' WHERE id = 'j3-t'"),
    "index": sql(
        "PRAGMA writable_schema = 1",
        "UPDATE sqlite_schema SET sql = 'CREATE INDEX job_by_tenant ON job (created_at_ms)'"
        " WHERE name = 'job_by_tenant'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*QUICK, *THOROUGH])
def test_what_is_not_sound_is_refused(made: Ledger, tmp_path: Path, name: str) -> None:
    path = snapshot_of(made, tmp_path)
    (QUICK | THOROUGH)[name](path)
    if name in QUICK:
        with pytest.raises(DamagedError):
            verify_snapshot(path)
    before = path.read_bytes()
    with pytest.raises(DamagedError) as error:
        verify_snapshot(path, thorough=True)
    assert error.value.todo
    assert path.read_bytes() == before
    assert names_in(path.parent) == [path.name], "nothing beside it"


def test_promises_are_checked_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = working(jobs=23)
    for at_once in (1, 2, 7, 22, 23, 24):
        monkeypatch.setattr(soundness_sqlite, "JOBS_AT_ONCE", at_once)
        assert faults_of(ledger.store.connection) == []
    broken = {"j0": "done", "j11": "running", "j9": "failed"}
    for job, state in broken.items():
        ledger.store.connection.execute("UPDATE job SET state = ? WHERE id = ?", (state, job))
    expected = sorted(soundness_sqlite.violations(SqliteRows(ledger.store.connection)))
    assert len(expected) >= len(broken)
    for at_once in (1, 2, 7, 22, 23, 24):
        monkeypatch.setattr(soundness_sqlite, "JOBS_AT_ONCE", at_once)
        assert sorted(faults_of(ledger.store.connection)) == expected


def test_a_newer_schema_is_said(made: Ledger, tmp_path: Path) -> None:
    path = snapshot_of(made, tmp_path)
    sql("PRAGMA user_version = 99")(path)
    with pytest.raises(StorageError, match="schema 99"):
        verify_snapshot(path)


def test_contents_are_compared_by_one_digest() -> None:
    one, other = working(), working()
    digest = content_digest(one.store.connection)
    assert content_digest(other.store.connection) == digest
    assert row_counts(one.store.connection)["job"] == 5
    other.store.connection.execute("UPDATE job SET error = 'x' WHERE id = 'j2'")
    assert content_digest(other.store.connection) != digest


# --- installing -----------------------------------------------------------------------------------


def test_a_snapshot_becomes_the_ledger_under_its_readers(made: Ledger, tmp_path: Path) -> None:
    path = snapshot_of(made, tmp_path)
    expected, at = made.dump(), (made.store.applied_index, made.store.checksum)
    follower = LedgerStore(str(tmp_path / "follower.db"))
    reader = Reader(follower.path)
    assert reader.mesh() is None
    follower.replace_by(str(path))
    assert (follower.applied_index, follower.checksum) == at
    assert follower.checksum_at(at[0]) == at[1]
    assert dump(follower) == expected
    found = reader.mesh()
    assert found is not None
    assert found.id == "m" * 32
    assert reader.applied().index == at[0]
    # It goes on from there.
    ((_, _, outcome),) = follower.apply([next_job(follower, "later")])
    assert outcome is not None
    assert outcome.ok
    reader.close()
    follower.close()
    again = LedgerStore(str(tmp_path / "follower.db"))
    assert again.applied_index == at[0] + 1
    assert again.connection.pragma("journal_mode") == "wal"
    again.close()


def test_installing_survives_a_loss_of_power(made: Ledger, tmp_path: Path) -> None:
    path = snapshot_of(made, tmp_path)
    (tmp_path / "f").mkdir()
    with only_synced_survives(tmp_path / "survives") as files:
        follower = working(str(tmp_path / "f" / "follower.db"), jobs=9)
        follower.store.make_durable()
        follower.store.connection.wal_checkpoint()
        # A reader of the old ledger keeps the checkpoint, and its sync, from happening.
        reader = apsw.Connection(follower.store.path, flags=apsw.SQLITE_OPEN_READONLY)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM job").fetchall()
        follower.store.replace_by(str(path))
        reader.close()
        after = LedgerStore(str(files.after() / "follower.db"))
        assert (after.applied_index, dump(after)) == (made.store.applied_index, made.dump())
        after.close()
        follower.store.close()


def test_what_is_damaged_is_not_installed(made: Ledger, tmp_path: Path) -> None:
    path = snapshot_of(made, tmp_path)
    scribbled(path)
    before, checksum = made.dump(), made.store.checksum
    made.store.close()
    with pytest.raises(DamagedError):
        install_snapshot(path, made.store.path)
    again = LedgerStore(made.store.path)
    assert (dump(again), again.checksum) == (before, checksum)
    again.close()


CHILD = """
import sys
from ledger.store_sqlite import LedgerStore
store = LedgerStore(sys.argv[1])
print("go", flush=True)
while True:
    for snapshot in sys.argv[2:]:
        store.replace_by(snapshot)
        print(store.applied_index, flush=True)
"""


@pytest.mark.parametrize("after", [1, 4])
def test_a_kill_leaves_the_old_or_the_new_ledger(tmp_path: Path, after: int) -> None:
    ledgers = [working(str(tmp_path / f"{n}.db")) for n in range(2)]
    for ledger in ledgers:
        ledger.submitted(*(f"more-{n}" for n in range(500)))
    ledgers[1].submitted("one-more")
    paths = [snapshot_of(ledger, tmp_path) for ledger in ledgers]
    path = str(tmp_path / "l.db")
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, path, *map(str, paths)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    try:
        for _ in range(after + 1):
            assert child.stdout.readline()
        os.kill(child.pid, signal.SIGKILL)
    finally:
        child.kill()
        child.wait(10)
        child.stdout.close()
    store = LedgerStore(path)
    expected = {one.store.applied_index: (one.store.checksum, one.dump()) for one in ledgers}
    assert (store.checksum, dump(store)) == expected[store.applied_index]
    assert faults_of(store.connection) == []
    store.close()


def test_reading_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError), reading_snapshot(tmp_path / "none"):
        pass
