"""`mesh-node` without a node: settings, what this machine can do, and how it refuses to start."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from ledger.store_sqlite import LedgerStore
from mesh.errors import DiskFullError
from node.cli.faults import run
from node.cli.mesh_cli import cli as mesh_cli
from node.cli.mesh_node import cli
from node.settings.home_files import prepare_home
from tests.small_disk import fill, mounted


class Typed:
    """One command in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *words: str) -> None:
        capsys.readouterr()
        self.code = run(mesh_cli if words[0] == "ledger" else cli, words)
        captured = capsys.readouterr()
        self.out, self.err = captured.out, captured.err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in [name for name in os.environ if name.startswith("DARKSTREAM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DARKSTREAM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_check_config(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    none = Typed(capsys, "check-config")
    assert (none.code, "does not exist: the defaults" in none.out) == (0, True)
    home.mkdir()
    file = home / "node.toml"
    file.write_text('slots = 2\njoin = "secret"\n')
    assert Typed(capsys, "check-config").out == f"{file}: no faults\n"
    good = Typed(capsys, "check-config", "--json")
    assert (good.json["ok"], good.json["settings"]["slots"]) == (True, 2)
    assert "secret" not in good.out
    file.write_text("slots = 'x'\nsed = 1\n[timings]\nlook-ms = -1\n")
    bad = Typed(capsys, "check-config", str(file))
    assert (bad.code, len(bad.err.splitlines())) == (2, 3)
    assert f"error[config]: {file}:2: sed: unknown key; did you mean" in bad.err
    told = Typed(capsys, "check-config", "--json").json
    assert [fault["line"] for fault in told["error"]["faults"]] == [1, 2, 4]
    absent = Typed(capsys, "check-config", str(tmp_path / "absent.toml"))
    assert (absent.code, "error[config]" in absent.err) == (2, True)
    assert not (home / "identity").exists()


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (["--slots", "many"], 2, "error[usage]: Invalid value for '--slots'"),
        (["--role", "boss"], 2, "error[config]: --role: Input should be 'full' or 'witness'"),
        (["--bogus"], 2, "error[usage]: No such option"),
        (["--api", "0.0.0.0:7450"], 2, "error[config]: --api: 0.0.0.0 is no loopback address"),
        (
            ["--home", "{file}/home"],
            2,
            "error[config]: the data directory {file}/home cannot be used",
        ),
        (
            ["--home", "/proc/home"],
            2,
            "error[config]: the data directory /proc/home cannot be used",
        ),
        (["--join", ""], 2, "error[config]: --join: it is empty; give it a value"),
        (["--allow", ""], 2, "error[config]: --allow: '' is not absolute"),
        (
            ["--home", "{file}" + os.fsdecode(b"\xff")],
            2,
            "error[config]: the data directory '{file}\\udcff' has a name that is no UTF-8",
        ),
        (["--home", ""], 2, "error[usage]: Invalid value for '--home': it is empty"),
        (["--config", ""], 2, "error[config]: --config names no file"),
        (["--config", "{file}/x"], 2, "error[config]: {file}/x cannot be read"),
    ],
)
def test_a_node_that_cannot_start_says_why_in_one_line(
    words: list[str], code: int, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    done = Typed(capsys, "start", *(word.format(file=file) for word in words))
    assert done.err.startswith(what.format(file=file)), done.err
    assert (done.code, len(done.err.splitlines())) == (code, 1)


def test_a_home_on_a_full_disk_is_left_as_it_was(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", 64) as disk:
        fill(disk)
        before = sorted(disk.iterdir())
        with pytest.raises(DiskFullError):
            prepare_home(str(disk))
        assert sorted(disk.iterdir()) == before, "a service starts again and again"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_home_without_permission_is_not_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o500)
    try:
        done = Typed(capsys, "start", "--home", str(tmp_path / "home"))
    finally:
        tmp_path.chmod(0o700)
    assert (done.code, done.err.startswith("error[not_allowed]")) == (4, True)


def test_detect_tells_what_encodes_here(capsys: pytest.CaptureFixture[str]) -> None:
    found = Typed(capsys, "detect", "--json")
    assert found.code == 0, found.err
    works = {one["name"]: one["works"] for one in found.json["encoders"]}
    assert works["libx264"] is True
    missing = Typed(capsys, "detect", "--ffmpeg", "/no/ffmpeg")
    assert (missing.code, "error[ffmpeg_missing]" in missing.err) == (1, True)


def test_doctor_looks_at_everything(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKSTREAM_SEEDS", "127.0.0.1:9")
    found = Typed(capsys, "doctor", "--json").json["findings"]
    names = [one["name"] for one in found]
    for name in ("configuration", "home", "disk", "clock", "port", "ffmpeg", "interface", "seed"):
        assert name in names
    (seed,) = [one for one in found if one["name"] == "seed"]
    assert (seed["ok"], "does not answer" in seed["what"]) == (False, True)
    assert "FAIL seed: 127.0.0.1:9" in Typed(capsys, "doctor").out
    (home / "node.toml").write_text("bogus = 1")
    assert Typed(capsys, "doctor").code == 1


def test_doctor_takes_its_own_node_for_no_fault(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        address = f"127.0.0.1:{busy.getsockname()[1]}"
        monkeypatch.setenv("DARKSTREAM_API", address)

        def port() -> Any:
            findings = Typed(capsys, "doctor", "--json").json["findings"]
            return next(one for one in findings if one["name"] == "port" and address in one["what"])

        assert port()["ok"] is False
        home.mkdir(exist_ok=True)
        (home / "api.address").write_text(f"{address}\n")
        assert port()["ok"] is True


def test_ledger_query_without_a_ledger(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = Typed(capsys, "ledger", "query", "SELECT 1")
    assert (done.code, f"there is no ledger at {home}/ledger.db" in done.err) == (2, True)


def test_ledger_query_reads_without_a_node_and_never_writes(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home.mkdir()
    LedgerStore(str(home / "ledger.db")).close()
    query = "SELECT count(*) AS n, 'x' AS letter FROM jobs"
    assert Typed(capsys, "ledger", "query", query).out.split() == ["n", "letter", "0", "x"]
    answer = Typed(capsys, "ledger", "query", query, "--json")
    assert answer.json == {"columns": ["n", "letter"], "rows": [[0, "x"]]}
    vast = Typed(capsys, "ledger", "query", "SELECT 1e999", "--json").out
    assert "Infinity" not in vast  # JSON has no such number
    by_state = "SELECT state, count(*) FROM jobs GROUP BY state"
    assert Typed(capsys, "ledger", "query", by_state, "--json").json["rows"] == []
    refused = Typed(capsys, "ledger", "query", "DELETE FROM jobs")
    assert (refused.code, refused.err.startswith("error[not_allowed]: ")) == (4, True)
    faulty = Typed(capsys, "ledger", "query", "SELEKT")
    assert (faulty.code, faulty.err.startswith("error[usage]: ")) == (2, True)
