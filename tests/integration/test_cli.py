"""What a person types, against a node's real API: output, JSON, errors and exit codes."""

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from ledger.jobs import JobState
from mesh.errors import (
    BusyError,
    DarkStreamError,
    InUseError,
    NoCoordinatorError,
    NotAllowedError,
    NotLeaderError,
    UnreachableError,
    UsageError,
)
from node.cli.faults import run
from node.cli.mesh_cli import STATES, cli
from tests.cluster import MESH_CLI, wait_for
from tests.fake_node import Served, served


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("DARKSTREAM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DARKSTREAM_HOME", str(tmp_path / "home"))


@pytest.fixture
def one(tmp_path: Path) -> Generator[Served]:
    with served(tmp_path / "home") as node:
        yield node


@pytest.fixture
def film(tmp_path: Path) -> str:
    path = tmp_path / "film.mp4"
    path.write_bytes(b"film")
    return str(path)


class Typed:
    """One command in this process: exit code, output, JSON."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *words: str) -> None:
        capsys.readouterr()
        self.code = run(cli, words)
        captured = capsys.readouterr()
        self.out, self.err = captured.out, captured.err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def test_consistent_answers_are_asked_for(one: Served, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("status",), ("jobs",)):
        assert Typed(capsys, *words).code == 0
        assert "catch_up" not in one.node.calls
        assert Typed(capsys, *words, "--consistent").code == 0
        assert one.node.calls[-2:] == ["catch_up", words[0]]
        one.node.calls.clear()
    one.node.failure = NoCoordinatorError("nobody decides", "start the missing nodes")
    assert Typed(capsys, "job", "show", "j", "--consistent").code == 5


def test_status_nodes_and_detect(one: Served, capsys: pytest.CaptureFixture[str]) -> None:
    status = Typed(capsys, "status")
    assert (status.code, "coordinator  one" in status.out) == (0, True)
    assert Typed(capsys, "status", "--json").json["voters"] == ["one"]
    nodes = Typed(capsys, "nodes")
    assert "two" in nodes.out
    assert "123456" in nodes.out
    assert len(Typed(capsys, "nodes", "--json").json["nodes"]) == 2
    assert "libx264" in Typed(capsys, "detect").out
    assert Typed(capsys, "detect", "--json").json["cpus"] == 2


def test_a_configuration_is_checked_by_the_node(
    one: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound, faulty = tmp_path / "sound.toml", tmp_path / "faulty.toml"
    sound.write_text('name = "den"\n[transfer]\ncache_gib = 3\n')
    faulty.write_text('nmae = "den"\nslots = "two"\n[timings\n')
    good = Typed(capsys, "validate", str(sound))
    assert (good.code, good.out) == (0, f"{sound}: no faults\n")
    bad = Typed(capsys, "validate", str(faulty))
    assert bad.code == 2
    lines = bad.err.splitlines()
    assert all(line.startswith(f"error[config]: {faulty}:") for line in lines)
    assert any(":3: " in line and "mend this line" in line for line in lines)
    assert any(":1: nmae: unknown key" in line for line in lines)
    answer = Typed(capsys, "validate", str(faulty), "--json")
    assert (answer.code, answer.json["ok"]) == (2, False)
    assert {fault["line"] for fault in answer.json["faults"]} == {1, 2, 3}
    missing = Typed(capsys, "validate", str(tmp_path / "none.toml"))
    assert (missing.code, "cannot be read" in missing.err) == (2, True)


def test_convert_waits_and_says_what_became_of_it(
    one: Served, film: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = Typed(capsys, "convert", film, "--profile", "web", "--output", str(tmp_path / "out"))
    assert done.code == 0, done.err
    out = tmp_path / "out" / "film.web.mp4"
    assert f"{film} -> {out}" in done.out
    assert "frames in 100, out 100; plays 4.000 s" in done.out
    assert "encoded by two with libx264 in 2.5 s; 3.0 s in all" in done.out
    assert "film.mp4: done" in done.out
    answer = Typed(capsys, "convert", film, "-p", "web", "--json").json
    assert answer["jobs"][0]["result"]["frames_out"] == 100


def test_convert_tells_steps_when_piped(
    one: Served, film: str, capsys: pytest.CaptureFixture[str]
) -> None:
    one.node.hold = True

    def later() -> None:  # the command blocks this thread until another lets the job go
        wait_for("it has read the queued job", lambda: "job" in one.node.calls, 10)
        one.on_loop(one.node.release)

    helper = threading.Thread(target=later)
    helper.start()
    lines = Typed(capsys, "convert", film, "-p", "web").out.splitlines()
    helper.join()
    steps = [line for line in lines if ": encoding" in line]
    assert "film.mp4: queued" in lines
    assert 9 <= len(steps) <= 12, lines
    assert "film.mp4: encoding 50 % on two" in steps


def test_convert_fails_with_the_films_own_error(
    one: Served, film: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"x")
    for extra in ([], ["--json"]):
        done = Typed(capsys, "convert", film, str(broken), "-p", "web", *extra)
        assert done.code == 1
        assert f"error[not_a_video]: {broken} is no video (node two); look" in done.err
        if extra:
            assert [job["state"] for job in done.json["jobs"]] == ["done", "failed"]


def test_a_missing_file_is_told_and_the_rest_is_converted(
    one: Served, film: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done = Typed(capsys, "convert", film, "/nowhere.mp4", "-p", "web")
    assert done.code == 2
    assert "error[not_found]: /nowhere.mp4 does not exist; x" in done.err
    assert "frames in 100, out 100" in done.out


def test_submit_and_look(one: Served, film: str, capsys: pytest.CaptureFixture[str]) -> None:
    dry = Typed(capsys, "submit", film, "-p", "web", "--dry-run", "--json").json
    assert dry["jobs"][0]["id"] is None
    made = Typed(capsys, "submit", film, "-p", "web", "--priority", "5", "--tenant", "me")
    assert (made.code, made.out.startswith("j0000  ")) == (0, True)
    assert "j0000" in Typed(capsys, "jobs", "--tenant", "me", "--since", "1h").out
    assert Typed(capsys, "jobs", "--tenant", "you", "--json").json == {"jobs": [], "next": None}
    shown = Typed(capsys, "job", "show", "j0")
    assert "ffmpeg -i 'a b.mp4'" in shown.out
    assert "two \\x1b[31mred" in shown.out
    assert "\x1b" not in shown.out
    assert Typed(capsys, "job", "show", "j0", "--json").json["priority"] == 5
    many = Typed(capsys, "submit", *[film] * 4, "-p", "web", "--json").json
    limited = Typed(capsys, "jobs", "--limit", "3", "--json").json
    assert [job["id"] for job in limited["jobs"]] == [job["id"] for job in many["jobs"]][:0:-1]


def test_token_create_prints_the_token_alone(
    one: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Typed(capsys, "token", "create", "--uses", "2", "--ttl", "30m").out == "ds-token\n"
    answer = Typed(capsys, "token", "create", "--ttl", "2h", "--json").json
    assert (answer["uses"], answer["expires_at_ms"]) == (1, 7_200_000)
    assert Typed(capsys, "token", "create", "--ttl", "soon").code == 2
    assert Typed(capsys, "token", "create", "--ttl", "60d").code == 2


def test_approve_binds_the_code_that_was_shown(
    one: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = Typed(capsys, "nodes", "approve", "new", "--code", "000000")
    assert wrong.code == 4
    assert "error[not_allowed]: the code is another one; compare again" in wrong.err
    done = Typed(capsys, "nodes", "approve", "new")
    assert done.code == 0
    assert "new at 10.0.0.9:7440 shows the code: 123456" in done.out
    assert one.node.calls[-1] == "approve id-new 123456"
    assert Typed(capsys, "nodes", "approve", "new").code == 2
    assert "two is revoked" in Typed(capsys, "nodes", "revoke", "two").out
    limited = Typed(capsys, "nodes", "limit", "two", "--up", "100Mbit/s", "--slots", "2")
    assert limited.out.strip() == "two: up 12.5 MB/s, down off, slots 2"
    assert Typed(
        capsys, "nodes", "limit", "two", "--link", "one", "--down", "off", "--json"
    ).json == {
        "id": "id-two",
        "name": "two",
        "slots": None,
        "up": 0,
        "down": 0,
        "devices": {},
    }
    chip = Typed(capsys, "nodes", "limit", "two", "--device", "gpu0=2", "--device", "cpu=0")
    assert chip.out.strip().endswith("slots as configured, gpu0 2, cpu 0")
    for wrong_device in ("gpu0", "=2", "gpu0=many", "gpu0=-2"):
        assert Typed(capsys, "nodes", "limit", "two", "--device", wrong_device).code == 2
    assert Typed(capsys, "nodes", "limit", "two", "--json").json["error"]["code"] == "usage"
    assert Typed(capsys, "nodes", "limit", "two", "--up", "fast").code == 2
    assert Typed(capsys, "nodes", "revoke", "nobody", "--json").json["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DarkStreamError("it", "do"), 1),
        (UsageError("it", "do"), 2),
        (UnreachableError("it", "do"), 3),
        (NotAllowedError("it", "do"), 4),
        (NoCoordinatorError("it", "do"), 5),
        (NotLeaderError("it", "do"), 5),
        (BusyError("it", "do"), 1),
        (InUseError("it", "do"), 6),
    ],
    ids=lambda value: value.code if isinstance(value, DarkStreamError) else str(value),
)
def test_every_error_of_a_node_keeps_its_code_and_exit_code(
    one: Served, capsys: pytest.CaptureFixture[str], error: DarkStreamError, code: int
) -> None:
    one.node.failure = error
    plain = Typed(capsys, "status")
    assert (plain.code, plain.err, plain.out) == (code, f"error[{error.code}]: it; do\n", "")
    told = Typed(capsys, "status", "--json")
    assert told.json == {"error": {"code": error.code, "what": "it", "todo": "do"}}
    assert told.code == code


def test_a_code_of_a_newer_node_is_kept(one: Served, capsys: pytest.CaptureFixture[str]) -> None:
    class NewerError(DarkStreamError):
        code = "newer"
        http_status = 403

    one.node.failure = NewerError("it", "do")
    done = Typed(capsys, "status")
    assert (done.code, done.err) == (4, "error[newer]: it; do\n")


def test_no_node_is_exit_3(capsys: pytest.CaptureFixture[str]) -> None:
    done = Typed(capsys, "status", "--api", "127.0.0.1:9")
    assert done.code == 3
    assert done.err.startswith(
        "error[unreachable]: no node answers at 127.0.0.1:9 (connect); start"
    )


def test_a_wrong_or_missing_token_is_exit_4(
    one: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for words in (["--home", str(tmp_path / "empty")], []):
        monkeypatch.setenv("DARKSTREAM_API_KEY", "" if words else "wrong")
        done = Typed(capsys, "status", "--api", one.address, *words)
        assert done.code == 4
        assert "error[not_allowed]: the API token is missing or wrong" in done.err


def test_where_the_node_is_found(
    one: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = str(one.home)
    monkeypatch.setenv("DARKSTREAM_API", "127.0.0.1:9")
    assert Typed(capsys, "status").code == 3
    assert Typed(capsys, "status", "--home", home).code == 0
    assert Typed(capsys, "--home", home, "status").code == 0
    assert Typed(capsys, "status", "--api", one.address).code == 0
    assert Typed(capsys, "--api", one.address, "nodes", "--json").json["next"] is None
    for bad in ("10.0.0.1:7450", "a b", "http://x:y"):
        assert Typed(capsys, "status", "--api", bad).code == 2


USAGE = [
    ["convret", "x"],
    ["convert"],
    ["convert", "x"],
    ["submit", "x", "-p", "web", "--priority", "101"],
    ["jobs", "--status", "bogus"],
    ["jobs", "--since", "yesterday"],
    ["job"],
    ["ledger", "query"],
    ["--bogus"],
    [],
]


@pytest.mark.parametrize("words", USAGE, ids=" ".join)
def test_usage_errors(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    done = Typed(capsys, *words)
    assert done.code == 2
    assert done.out == ""
    if words and words != ["job"]:
        assert done.err.startswith("error[usage]: ")
        assert "; see " in done.err
        assert len(done.err.splitlines()) == 1
        assert Typed(capsys, *words, "--json").json["error"]["code"] == "usage"


def test_a_typing_error_gets_a_guess(capsys: pytest.CaptureFixture[str]) -> None:
    assert 'did you mean "convert"?' in Typed(capsys, "convret", "x").err
    assert 'did you mean "approve"?' in Typed(capsys, "nodes", "aprove", "x").err


def test_the_states_of_the_option_are_those_of_the_api() -> None:
    assert set(STATES) == set(JobState.__args__)  # type: ignore[attr-defined]  # a Literal


def test_an_unknown_profile_is_usage(
    one: Served, film: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done = Typed(capsys, "convert", film, "-p", "wbe")
    assert done.code == 2
    assert "error[usage]: unknown profile 'wbe'" in done.err


# Whoever starts us in the background has Ctrl-C ignored, and so would every child.
HEARS_CTRL_C = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def test_ctrl_c_leaves_the_jobs_and_says_so(one: Served, film: str) -> None:
    one.node.hold = True
    environment = {**os.environ, "DARKSTREAM_HOME": str(one.home)}
    with subprocess.Popen(
        [sys.executable, "-c", HEARS_CTRL_C, *MESH_CLI, "convert", film, "-p", "web"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_for("it follows", lambda: one.node.listeners == 1, 15)
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=15)
        finally:
            process.kill()
    assert process.returncode == 130
    assert told.startswith("error[interrupted]: stopped watching; the jobs go on")
    assert "convert" not in told


def test_bars_in_a_terminal(one: Served, film: str) -> None:
    ours, theirs = pty.openpty()
    environment = {
        **os.environ,
        "DARKSTREAM_HOME": str(one.home),
        "TERM": "xterm",
        "COLUMNS": "120",
    }
    with subprocess.Popen(
        [*MESH_CLI, "convert", film, "-p", "web"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while block := os.read(ours, 65_536):
                shown += block
        except OSError:
            pass  # the other end is closed: Linux says so with EIO
        finally:
            os.close(ours)
        assert process.wait(15) == 0, shown
    assert b"film.mp4: done" in shown
    assert b"frames in 100, out 100" in shown


def test_a_terminal_asks_before_it_approves(one: Served) -> None:
    environment = {**os.environ, "DARKSTREAM_HOME": str(one.home)}
    for answer, code, left in ((b"n\n", 130, 1), (b"y\n", 0, 0)):
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            [*MESH_CLI, "nodes", "approve", "new"],
            env=environment,
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            os.write(ours, answer)
            out, _ = process.communicate(timeout=15)
        os.close(ours)
        os.close(theirs)
        assert b"shows the code: 123456" in out
        assert (process.returncode, len(one.node.pending)) == (code, left)


def test_help_is_quick_because_it_loads_little() -> None:
    listing = subprocess.run(
        [sys.executable, "-c", "import sys, node.cli.mesh_cli; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    heavy = {"httpx", "rich", "pydantic", "fastapi", "apsw", "zmq", "structlog"}
    assert heavy.isdisjoint(listing)
