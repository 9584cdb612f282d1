"""SQL of people: the views and nothing else, whatever they type."""

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from ledger import commands as c
from ledger import queries
from ledger.queries import VIEWS, run_query
from mesh.errors import DarkStreamError, NotAllowedError, StorageError, UsageError
from tests.ledger_helper import Ledger, entry, invitation, job_spec, node_report

SECRET = b"\x5e\xc2\xe7" * 10 + b"!!"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "ledger.db"
    made = Ledger(str(path)).formed("bert").planned("j", "k")
    made.must(invitation("i", key=SECRET, uses=5))
    token = made.leased("j", "a", "bert")
    made.must(made.finish("a"))
    made.must(made.accept("j", "a"))
    made.must(c.FinishJob(job="j", token=token, finished_at_ms=9))
    made.store.close()
    return path


@pytest.fixture
def ledger(template: Path, tmp_path: Path) -> Iterator[Ledger]:
    shutil.copy(template, tmp_path / "ledger.db")
    made = Ledger(str(tmp_path / "ledger.db"))
    yield made
    made.store.close()


def test_people_count_jobs(ledger: Ledger) -> None:
    columns, rows = run_query(
        ledger.store.path, "SELECT state, count(*) FROM jobs GROUP BY state ORDER BY state"
    )
    assert columns == ("state", "count(*)")
    assert rows == [("done", 1), ("queued", 1)]


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_answers(ledger: Ledger, view: str) -> None:
    columns, rows = run_query(ledger.store.path, f"SELECT * FROM {view}")
    assert columns
    assert len(rows) == run_query(ledger.store.path, f"SELECT count(*) FROM {view}")[1][0][0]
    assert not any(SECRET in map(_bytes, row) for row in rows)


def _bytes(value: object) -> object:
    return value.encode() if isinstance(value, str) else value


def test_what_the_jobs_view_says(ledger: Ledger) -> None:
    columns, rows = run_query(ledger.store.path, "SELECT * FROM jobs WHERE id = 'j'")
    row = dict(zip(columns, rows[0], strict=True))
    assert (row["frames"], row["duration_ms"], row["encoded_by"], row["owner"]) == (
        24,
        1000,
        "bert",
        "anna",
    )
    assert row["error"] is None


def test_a_result_that_is_no_json_spoils_no_view(ledger: Ledger) -> None:
    ledger.leased("k", "b", "bert")
    ledger.must(ledger.finish("b", result_json="{not json"))
    ledger.must(ledger.accept("k", "b"))
    _, rows = run_query(ledger.store.path, "SELECT id, frames, encoded_by FROM jobs ORDER BY id")
    assert rows == [("j", 24, "bert"), ("k", None, "bert")]


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO job VALUES (1)",
        "UPDATE job SET state = 'done'",
        "DELETE FROM jobs",
        "DELETE FROM job",
        "DROP TABLE job",
        "DROP VIEW jobs",
        "CREATE TABLE x (a)",
        "CREATE TEMP TABLE x (a)",
        "CREATE TEMP VIEW jobs AS SELECT * FROM invitation",
        "ALTER TABLE job RENAME TO x",
        "REINDEX",
        "ANALYZE",
        "PRAGMA user_version = 7",
        "PRAGMA table_info(invitation)",
        "PRAGMA journal_mode = DELETE",
        "SELECT * FROM pragma_table_info('invitation')",
        "ATTACH ':memory:' AS x",
        "DETACH main",
        "BEGIN",
        "SAVEPOINT x",
        "SELECT * FROM invitation",
        "SELECT count(*) FROM invitation",
        "SELECT key FROM invitation",
        "SELECT rowid FROM invitation",
        "SELECT (SELECT hex(key) FROM invitation) FROM jobs",
        "SELECT * FROM jobs WHERE id IN (SELECT id FROM invitation)",
        "SELECT 1 UNION SELECT key FROM invitation",
        "SELECT EXISTS (SELECT 1 FROM invitation WHERE key > x'50')",
        "SELECT * FROM jobs JOIN invitation",
        "WITH jobs AS (SELECT * FROM invitation) SELECT * FROM jobs",
        "WITH members AS (SELECT key FROM invitation) SELECT * FROM members",
        "WITH invitation AS (SELECT 1), jobs AS (SELECT * FROM main.invitation) SELECT * FROM jobs",
        "SELECT * FROM command",
        "SELECT * FROM state",
        "SELECT * FROM mesh",
        "SELECT state FROM job",
        "SELECT raft_id FROM member",
        "SELECT * FROM sqlite_master",
        "SELECT sql FROM sqlite_schema",
        "SELECT * FROM sqlite_dbpage",
        "SELECT load_extension('x')",
        "SELECT LOAD_EXTENSION('x', 'y')",
        "SELECT 1; DELETE FROM job",
        "SELECT 1; SELECT key FROM invitation",
        "EXPLAIN SELECT * FROM invitation",
    ],
)
def test_anything_else_is_not_allowed(ledger: Ledger, sql: str) -> None:
    before = ledger.dump()
    # A few are refused as faulty SQL, because this build knows no such thing; none is answered.
    with pytest.raises((NotAllowedError, UsageError)):
        run_query(ledger.store.path, sql)
    assert ledger.dump() == before


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM invitation",
        "DELETE FROM jobs",
        "DROP TABLE job",
        "PRAGMA user_version = 7",
        "ATTACH ':memory:' AS x",
        "WITH jobs AS (SELECT * FROM invitation) SELECT * FROM jobs",
        "SELECT load_extension('x')",
        "SELECT 1; DELETE FROM job",
    ],
)
def test_the_refusal_has_its_own_code(ledger: Ledger, sql: str) -> None:
    with pytest.raises(NotAllowedError) as error:
        run_query(ledger.store.path, sql)
    assert error.value.todo


@pytest.mark.parametrize(
    "sql",
    [
        "",
        "   ",
        "-- nothing",
        ";",
        "SELEC 1",
        "SELECT nothing FROM jobs",
        "SELECT * FROM no_such",
        "SELECT ?",
        "SELECT :a",
        "SELECT 1; SELECT 2",
        "SELECT 1\0 FROM jobs",
        "SELECT '",
        "SELECT zeroblob(900000000)",
        "SELECT hex(zeroblob(16000000))",
        "SELECT abs(-9223372036854775808)",
        "(" * 5_000,
    ],
)
def test_faulty_sql_is_the_callers(ledger: Ledger, sql: str) -> None:
    with pytest.raises(UsageError):
        run_query(ledger.store.path, sql)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1",
        "VALUES (1), (2)",
        "SELECT 1;",
        "SELECT 1; -- and a comment",
        "WITH x AS (SELECT id FROM jobs) SELECT count(*) FROM x",
        "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 5) SELECT * FROM n",
        "SELECT j.id, e.kind FROM jobs j JOIN events e ON e.job = j.id",
        "SELECT count(*) OVER () FROM jobs",
    ],
)
def test_what_people_do_ask(ledger: Ledger, sql: str) -> None:
    columns, rows = run_query(ledger.store.path, sql)
    assert rows
    assert len(columns) == len(rows[0])


def test_rows_are_bounded(ledger: Ledger) -> None:
    sql = "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n) SELECT i FROM n LIMIT "
    assert len(run_query(ledger.store.path, sql + "10", 10)[1]) == 10
    with pytest.raises(UsageError, match="more than 10 rows"):
        run_query(ledger.store.path, sql + "11", 10)
    with pytest.raises(UsageError, match="more than 10 rows"):
        run_query(ledger.store.path, sql + "11; SELECT 1", 10)


def test_endless_recursion_is_stopped(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "QUERY_MS", 300)
    endless = "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n)"
    with pytest.raises(UsageError, match="longer"):
        run_query(ledger.store.path, f"{endless} SELECT max(i) FROM n")
    assert not any(isinstance(t, threading.Timer) and t.is_alive() for t in threading.enumerate())


def test_no_timer_outlives_its_query(ledger: Ledger) -> None:
    run_query(ledger.store.path, "SELECT 1")
    timers = [t for t in threading.enumerate() if isinstance(t, threading.Timer)]
    for timer in timers:
        timer.join(5)
    assert not any(timer.is_alive() for timer in timers)


def test_without_wal_beside_it(ledger: Ledger, tmp_path: Path) -> None:
    ledger.store.close()
    alone = tmp_path / "alone" / "ledger.db"
    alone.parent.mkdir()
    shutil.copy(tmp_path / "ledger.db", alone)
    assert [p.name for p in alone.parent.iterdir()] == ["ledger.db"]
    assert run_query(str(alone), "SELECT count(*) FROM jobs")[1] == [(2,)]


@pytest.fixture
def read_only(template: Path) -> Iterator[Path]:
    """A replica in a folder that nobody here may write, not even root: root becomes somebody else."""
    with tempfile.TemporaryDirectory() as outside:
        Path(outside).chmod(0o755)  # pytest's own folders are closed to somebody else
        folder = Path(outside) / "read only"
        folder.mkdir()
        copy = folder / "ledger # 100%.db"
        shutil.copy(template, copy)
        copy.chmod(0o444)
        folder.chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield copy
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o755)


def test_in_a_folder_that_cannot_be_written(read_only: Path) -> None:
    assert not os.access(read_only.parent, os.W_OK, effective_ids=True)
    assert run_query(str(read_only), "SELECT count(*) FROM jobs")[1] == [(2,)]
    with pytest.raises(NotAllowedError):
        run_query(str(read_only), "SELECT * FROM invitation")


def test_while_a_writer_writes(ledger: Ledger) -> None:
    path = ledger.store.path
    errors: list[Exception] = []
    counts: list[int] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                counts.append(run_query(path, "SELECT count(*) FROM jobs")[1][0][0])
        except DarkStreamError as error:
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        first = ledger.store.applied_index + 1
        for n in range(200):
            ledger.store.apply([entry(first + n, c.SubmitJobs(jobs=(job_spec(f"w{n}"),)))])
        done.set()
        reader.join(10)
        # A transaction that is open hides its rows and blocks nobody.
        ledger.store.connection.execute("BEGIN IMMEDIATE; DELETE FROM job")
        assert run_query(path, "SELECT count(*) FROM jobs")[1] == [(202,)]
        ledger.store.connection.execute("ROLLBACK")
    finally:
        done.set()
        reader.join(10)
    assert not reader.is_alive()
    assert errors == []
    assert counts == sorted(counts)
    assert counts


def test_no_ledger_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no ledger"):
        run_query(str(tmp_path / "none.db"), "SELECT 1")
    (tmp_path / "text.db").write_text("not a database " * 100)
    with pytest.raises(StorageError):
        run_query(str(tmp_path / "text.db"), "SELECT 1")
    apsw.Connection(str(tmp_path / "empty.db")).close()
    with pytest.raises(StorageError):
        run_query(str(tmp_path / "empty.db"), "SELECT 1")


def test_reports_are_seen(ledger: Ledger) -> None:
    ledger.must(node_report("bert", slots=7))
    assert run_query(ledger.store.path, "SELECT slots FROM nodes WHERE name = 'bert'")[1] == [(7,)]
