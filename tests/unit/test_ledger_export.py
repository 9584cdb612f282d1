"""A ledger as lines of JSON, out and in again, and everything that may be wrong with such a file."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ledger import export_sqlite
from ledger.backup import export_to, verify_replica
from ledger.commands import FinishJob
from ledger.export_sqlite import read_rows
from ledger.jobs import ROW_CLASSES
from ledger.orders import AddWatch, Chosen, ForgetJobs, PutProfile, PutTenant, StartSweep
from ledger.rows import table_of
from ledger.schema import SCHEMA_VERSION
from ledger.snapshot_sqlite import verify_snapshot
from ledger.store_sqlite import LedgerStore
from mesh.errors import ConflictError, DamagedError, StorageError
from node.cli.faults import run
from node.cli.mesh_cli import cli
from tests.home_helper import Home
from tests.ledger_helper import Ledger, dump, invitation

SECRET = b"the verifier of a token, 32 byte"


def rich(path: Path) -> Ledger:
    """Every kind of row."""
    ledger = Ledger(str(path)).formed("bert").planned("j", "k", "é\n'")
    ledger.must(invitation("i", key=SECRET))
    ledger.leased("j", "a", "anna")
    ledger.must(ledger.finish("a"))
    ledger.leased("k", "b", "bert")
    ledger.must(ledger.fail("b"))
    ledger.must(PutProfile(name="tiny", definition="{}", by="me"))
    ledger.must(PutTenant(name="guests", share=2, slots=3, by="me"))
    ledger.must(AddWatch(id="w", node="anna", folder="/in", profile="web", settings="{}"))
    order = StartSweep(id="o", action="retry", priority=0, chosen=Chosen(states=("failed",)), by="")
    ledger.must(order)
    ledger.planned("over")
    ledger.leased("over", "c", "anna")
    ledger.must(ledger.finish("c"))
    ledger.must(ledger.accept("over", "c"))
    ledger.must(FinishJob(job="over", token=ledger.token("c"), finished_at_ms=7))
    ledger.must(ForgetJobs(jobs=("over",)))
    return ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return rich(tmp_path / "ledger.db")


@pytest.fixture
def export(ledger: Ledger, tmp_path: Path) -> Path:
    path = tmp_path / "e.jsonl"
    export_to(ledger.store.path, str(path))
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("at_once", [10_000, 1, 3])
def test_out_and_in_again_is_the_same(
    ledger: Ledger, export: Path, tmp_path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_sqlite, "ROWS_AT_ONCE", at_once)
    header, *rows, end = rows_of(export)
    assert (header["format"], header["schema"]) == (1, SCHEMA_VERSION)
    assert header["mesh"] == "m" * 32
    assert header["checksum"] == ledger.store.checksum.hex()
    assert end == {"end": True, "rows": len(rows)}
    tables = {row["table"] for row in rows}
    assert tables == {table_of(cls) for cls in ROW_CLASSES} - {"invitation"}
    assert SECRET.hex() not in export.read_text()
    read_rows(export, tmp_path / "new.db")
    new = LedgerStore(str(tmp_path / "new.db"))
    assert new.applied_index == ledger.store.applied_index
    expected = {table: rows for table, rows in ledger.dump().items() if table != "invitation"}
    assert {t: rows for t, rows in dump(new).items() if t != "invitation"} == expected
    new.close()
    verify_snapshot(tmp_path / "new.db", thorough=True)
    assert not list(tmp_path.glob("*-wal"))[1:], "only the open ledger has one"


def test_an_export_is_new_private_and_sound(ledger: Ledger, export: Path, tmp_path: Path) -> None:
    assert export.stat().st_mode & 0o077 == 0
    with pytest.raises(ConflictError):
        export_to(ledger.store.path, str(export))
    ledger.store.connection.execute("UPDATE job SET state = 'done' WHERE id = 'k'")
    with pytest.raises(DamagedError):
        export_to(ledger.store.path, str(tmp_path / "x"))
    LedgerStore(str(tmp_path / "empty.db")).close()
    with pytest.raises(ConflictError):
        export_to(str(tmp_path / "empty.db"), str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


Change = Callable[[list[dict[str, Any]]], list[Any]]


def row(table: str, **values: Any) -> Change:
    def change(lines: list[dict[str, Any]]) -> list[Any]:
        found = next(line for line in lines if line.get("table") == table)
        for name, value in values.items():
            if value is None:
                del found["row"][name]
            else:
                found["row"][name] = value
        return lines

    return change


def header(**values: Any) -> Change:
    return lambda lines: [lines[0] | values, *lines[1:]]


FAULTS: dict[str, Change] = {
    "cut off": lambda lines: lines[:-1],
    "a row is lost": lambda lines: [*lines[:3], *lines[4:]],
    "a row twice": lambda lines: [*lines[:3], lines[2], *lines[3:]],
    "no header": lambda lines: lines[1:],
    "empty": lambda _: [],
    "another kind": header(kind="x"),
    "no format": header(format="1"),
    "no schema": header(schema=0),
    "no index": header(applied_index=0),
    "no term": header(applied_term=None),
    "odd table": lambda lines: [lines[0], {"table": "invitation", "row": {}}, *lines[1:]],
    "no row": lambda lines: [lines[0], {"table": "job"}, *lines[1:]],
    "a list": lambda lines: [lines[0], [], *lines[1:]],
    "odd state": row("job", state="melted"),
    "number as text": row("job", seq="1"),
    "number as bool": row("job", planned=True),
    "big number": row("job", seq=1 << 63),
    "text as number": row("job", owner=1),
    "unknown column": row("job", colour="red"),
    "lost column": row("job", owner=None),
    "odd bytes": row("member", public_key="xyz"),
    "odd list": row("task", needs="av1"),
    "odd items": row("task", needs=[1]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_file_is_refused_with_its_line(export: Path, tmp_path: Path, name: str) -> None:
    lines = FAULTS[name](rows_of(export))
    export.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    with pytest.raises(DamagedError, match="line") as error:
        read_rows(export, tmp_path / "new.db")
    assert error.value.todo


def test_what_is_no_export_at_all(tmp_path: Path, export: Path, ledger: Ledger) -> None:
    for data in (b"\xff\xfe\x00", b"no json\n", b"{\n", Path(ledger.store.path).read_bytes()):
        export.write_bytes(data)
        with pytest.raises(DamagedError):
            read_rows(export, tmp_path / "new.db")
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(StorageError):
            read_rows(path, tmp_path / "new.db")


@pytest.mark.parametrize("name", ["format", "schema"])
def test_a_newer_version_is_said(export: Path, tmp_path: Path, name: str) -> None:
    lines = header(**{name: 99})(rows_of(export))
    export.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(StorageError, match="99") as error:
        read_rows(export, tmp_path / "new.db")
    assert "update" in error.value.todo


def test_as_typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("DARKSTREAM_")]:
        monkeypatch.delenv(name)
    home = Home(tmp_path / "home")

    def typed(command: str, file: Path, at: Path, *words: str) -> tuple[int, Any, str]:
        capsys.readouterr()
        code = run(cli, ["ledger", command, str(file), "--home", str(at), *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    export, new = tmp_path / "e.jsonl", tmp_path / "new"
    code, out, err = typed("export", export, home.path)
    assert (code, err) == (0, "")
    assert "rows" in out
    code, out, _ = typed("export", export, home.path, "--json")
    assert (code, json.loads(out)["error"]["code"]) == (2, "conflict")
    code, out, _ = typed("import", export, home.path, "--json")
    assert (code, json.loads(out)["error"]["code"]) == (6, "in_use")
    home.stop()
    code, out, _ = typed("import", export, home.path, "--json")
    assert (code, json.loads(out)["error"]["code"]) == (2, "conflict")
    code, out, _ = typed("import", export, new, "--json", "--name", "zoe")
    assert code == 0
    assert json.loads(out)["jobs"] == 3
    assert sorted(path.name for path in new.iterdir() if not path.name.startswith(".")) == [
        "identity",
        "ledger.db",
        "raft.db",
    ]
    assert verify_replica(str(new / "ledger.db"), str(new / "raft.db")).faults == ()
    code, out, _ = typed("import", export, new)
    assert code == 2, "it holds a mesh now"
