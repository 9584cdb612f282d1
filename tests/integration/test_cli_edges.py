"""Where output goes that nobody takes, and words that a shell hands over by mistake."""

import json
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from ledger.store_sqlite import LedgerStore
from tests.cluster import MESH_CLI
from tests.fake_node import Served, served
from tests.integration.test_cli import Typed

NO_TEXT = os.fsdecode(b"\xff.mp4")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("DARKSTREAM_", "PYTHON"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DARKSTREAM_HOME", str(tmp_path / "home"))


@pytest.fixture
def one(tmp_path: Path) -> Generator[Served]:
    with served(tmp_path / "home") as node:
        yield node


def shell(script: str, **environment: str) -> tuple[int, str, str]:
    """Exit code, output, errors; `$CLI` is the command, `pipefail` tells its code before a pipe."""
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {script}"],
        env={**os.environ, "CLI": " ".join(MESH_CLI), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("words", ["status", "status --json"])
def test_a_reader_that_leaves_is_no_failed_job(one: Served, words: str) -> None:
    assert shell(f"$CLI {words} | true") == (141, "", "")
    assert shell(f"$CLI {words} | true", PYTHONUNBUFFERED="1") == (141, "", "")


def test_an_error_keeps_its_exit_code_when_nobody_reads(one: Served) -> None:
    code, _, told = shell("$CLI job show nope --json | true")
    assert (code, told.count("error[not_found]")) == (2, 1)
    assert shell("$CLI job show nope 2>/dev/full") == (2, "", "")
    code, out, _ = shell("$CLI job show nope --json 2>&-")
    assert (code, json.loads(out)["error"]["code"]) == (2, "not_found")


OPENS = "from node.cli import streams; streams.ready(); import socket; exit(socket.socket().fileno() < 3)"
"""As a node does later: its loop closes sockets, and libuv aborts when that is one of the first three numbers."""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_what_was_closed_is_no_place_for_sockets(closed: str) -> None:
    assert shell(f'{sys.executable} -c "{OPENS}" {closed}')[0] == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_told_in_one_line(one: Served, unbuffered: str) -> None:
    code, _, told = shell("$CLI status >/dev/full", PYTHONUNBUFFERED=unbuffered)
    assert (code, len(told.splitlines())) == (1, 1)
    assert told.startswith("error[disk_full]: what was to be printed cannot be written")


def test_a_terminal_without_utf_8(one: Served) -> None:
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    one.node.pending[0] = one.node.pending[0].model_copy(update={"name": "n\u00fc"})
    code, out, told = shell("$CLI nodes", **ascii_only)
    assert (code, told) == (0, "")
    assert "n\\xfc" in out
    code, out, told = shell("$CLI nodes --json", **ascii_only)
    assert (code, told, json.loads(out)["pending"][0]["name"]) == (0, "", "n\u00fc")


@pytest.mark.parametrize("words", [["--json", "status"], ["--json", "nodes"], ["nodes", "--json"]])
def test_json_may_stand_before_the_command(
    one: Served, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert isinstance(Typed(capsys, *words).json, dict)


EMPTY = [
    ["cancel", "--folder", "", "--status", "queued"],
    ["cancel", "--tenant", "", "--status", "queued"],
    ["retry", "--node", "", "--failed"],
    ["nodes", "approve", "new", "--code", ""],
    ["submit", "/film", "-p", "web", "--output", ""],
    ["--home", "", "status"],
    ["status", "--api", ""],
    ["job", "show", ""],
    ["submit", "/film", "", "-p", "web"],
    ["convert", "", "-p", "web"],
    ["watch", "add", "", "-p", "web"],
    ["ledger", "restore", ""],
    ["nodes", "revoke", ""],
]


@pytest.mark.parametrize("words", EMPTY, ids=" ".join)
def test_an_empty_word_is_no_wish(
    one: Served, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    done = Typed(capsys, *words)
    assert (done.code, done.out) == (2, "")
    assert "is empty" in done.err
    assert [call for call in one.node.calls if "nodes" not in call] == []


@pytest.mark.parametrize("name", [".", "..", NO_TEXT, "a b", "%2E"])
def test_odd_names_of_jobs_are_names(
    one: Served, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    done = Typed(capsys, "job", "show", name)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error[not_found]: no job ")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["submit", f"/films/{NO_TEXT}", "-p", "web"], "path"),
        (["jobs", "--folder", NO_TEXT], "usage"),
        (["jobs", "--node", "x" * 70_000], "usage"),
        (["ledger", "backup", NO_TEXT], "usage"),
    ],
    ids=["submit", "no text", "long", "backup"],
)
def test_what_no_request_can_carry_is_told(
    one: Served, capsys: pytest.CaptureFixture[str], words: list[str], code: str
) -> None:
    LedgerStore(str(one.home / "ledger.db")).close()
    done = Typed(capsys, *words, "--json")
    assert done.json["error"]["code"] == code
    assert len(done.err.splitlines()) == 1


def test_a_key_may_end_with_a_newline(
    one: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    token = (one.home / "api.token").read_text("ascii").strip()
    monkeypatch.setenv("DARKSTREAM_API_KEY", f" {token}\n")
    assert Typed(capsys, "status").code == 0
    monkeypatch.setenv("DARKSTREAM_API_KEY", "a\nb")
    assert Typed(capsys, "status").code == 4
