"""The configuration: precedence, every fault at once with its line, and what a fault says."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import node.cli
from ledger.placing import checked_label
from mesh.errors import ConfigurationError, UsageError
from mesh.ids import MeshId
from mesh.trust import INVITATION_ENTROPY_BYTES, new_token
from node.settings.addresses import split_endpoint
from node.settings.config import Config, Given, read_config
from node.settings.config_files import load_config, token_of
from node.settings.config_text import ConfigFault, ConfigFaultsError, nearest, parse_toml
from node.settings.home_files import default_home
from node.work.allowed_files import default_folders

TOKEN = new_token(MeshId("5" * 32), bytes(32), bytes(INVITATION_ENTROPY_BYTES)).text()
DEFAULTS = {"home": "/home", "name": "host"}


def read(
    text: str = "",
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Config:
    given = Given(flags=flags or {}, environment=environment or {}, file="node.toml", text=text)
    return read_config(given, DEFAULTS)


def faults(text: str = "", **more: Any) -> list[ConfigFault]:
    with pytest.raises(ConfigFaultsError) as caught:
        read(text, **more)
    assert caught.value.exit_code == 2
    return list(caught.value.faults)


def test_nothing_given_is_a_good_configuration() -> None:
    config = read()
    assert (config.home, config.name) == ("/home", "host")
    assert config.ports == (7440, 7441, 7442)
    assert config.api_address == ("127.0.0.1", 7450)
    assert config.seeds == ()
    assert config.log.level == "info"


def test_everything_can_be_said_in_the_file() -> None:
    config = read("""
        name = "den"
        seed = ["10.0.0.1", "host:7500", "[fe80::1]:7600"]
        new-mesh = true
        open = true
        role = "witness"
        interface = ["eth0"]
        listen = "0.0.0.0:0"
        api = "127.0.0.1:0"
        allow = ["/films", "~/Videos"]
        slots = 2
        ffmpeg = "/opt/ffmpeg"
        [log]
        level = "debug"
        format = "json"
        levels = { transport = "warning" }
        [timings]
        heartbeat-ms = 50
    """)
    assert config.seeds == (("10.0.0.1", 7440), ("host", 7500), ("fe80::1", 7600))
    assert config.new_mesh
    assert config.ports == (0, 0, 0)
    assert config.timings.heartbeat_ms == 50
    assert config.log.levels == {"transport": "warning"}


def test_flag_over_environment_over_file() -> None:
    text = (
        'api = "127.0.0.1:1"\nseed = ["file"]\nslots = 1\n[log]\nlevel = "debug"\nformat = "json"'
    )
    environment = {"DARKSTREAM_API": "127.0.0.1:2", "DARKSTREAM_SEEDS": "a:1, b:2"}
    assert read(text).api_address[1] == 1
    told = read(text, environment=environment)
    assert (told.api_address[1], told.seeds) == (2, (("a", 1), ("b", 2)))
    flags = {"api": "127.0.0.1:3", "slots": 0, "log.level": "error", "seed": ["c"]}
    typed = read(text, flags=flags, environment=environment)
    assert (typed.api_address[1], typed.slots, typed.seed) == (3, 0, ("c",))
    assert (typed.log.level, typed.log.format) == ("error", "json")


FAULTY = """\
name = "no good"
sed = ["x"]
slots = "two"
seed = ["host:99999",
        "a b"]
text = '''
api = "in a text, no key"
'''
api = "0.0.0.0:7450"
allow = ["films"]
role = "boss"
listen = "host"

[log]
level = "loud"
lvl = 1
[log.levels]
transfr = "info"
[timings]
heartbeat-ms = 1.5
"""


def test_all_faults_at_once_with_their_lines() -> None:
    found = {(fault.line, fault.key): fault.what for fault in faults(FAULTY)}
    assert [*found] == sorted(found)
    assert [line for line, _ in found] == [1, 2, 3, 4, 6, 9, 10, 11, 12, 15, 16, 17, 20]
    assert found[(2, "sed")] == 'unknown key; did you mean "seed"?'
    assert found[(16, "log.lvl")].startswith("unknown key")
    assert "transfer" in found[(17, "log.levels")]
    assert found[(12, "listen")] == "'host' names no port; write it as host:port"


def test_faults_of_flags_and_environment_are_told_too() -> None:
    told = faults(
        "slots = true", flags={"role": "boss"}, environment={"DARKSTREAM_API": "1.2.3.4:1"}
    )
    assert sorted(fault.text().split(": ")[0] for fault in told) == [
        "--role",
        "DARKSTREAM_API",
        "node.toml:1",
    ]


def test_a_flag_hides_a_fault_of_the_same_key_in_the_file() -> None:
    assert read("slots = 'x'", flags={"slots": 3}).slots == 3


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ('name = "a"\nbogus\nslots = 1', 2, "Expected '='"),
        ('name = "a"\nname = "b"', 2, "Cannot overwrite"),
        ('name = "a', 1, "Illegal character"),
        ("seed = [\n'a',\n", 2, "Invalid value at the end"),
        ("slots = " + "9" * 5_000, 0, "a number is too long"),
        ("allow = " + "[" * 5_000, 0, "a number is too long"),
    ],
)
def test_lines_that_are_no_toml(text: str, line: int, what: str) -> None:
    (fault,) = faults(text)
    assert fault.line == line
    assert what.lower()[:12] in fault.what.lower(), fault


def test_faults_after_a_broken_line_are_told_as_well() -> None:
    assert [fault.line for fault in faults("bogus\nslots = 'x'\nalso bogus\nsed = 1")] == [
        1,
        2,
        3,
        4,
    ]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('open = true\nadmission = "closed"', "contradict"),
        ('new-mesh = true\njoin = "t"', "contradict"),
        ('join = "t"\njoin-file = "/t"', "one of them"),
        ("[timings]\nheartbeat_ms = 300", "3 times"),
        ("[timings]\nelection-max-ms = 550", "one and a half"),
        ("[timings]\nworker-suspect-ms = 3000", "twice"),
        ("[timings]\nvoter-silent-ms = 3999", "4 times"),
        ("[timings]\nhand-back-ms = 20000", "worker_silent_ms"),
        ("[timings]\nheartbeat_ms = 1", "greater than"),
        ('home = "relative"', "absolute"),
        ('ffmpeg = "bin/ffmpeg"', "absolute"),
        ('seed = ["host:0"]', "port"),
        ('listen = "0.0.0.0:65534"', "room"),
        ("log = 3", "valid dictionary"),
    ],
)
def test_values_that_make_no_sense(text: str, word: str) -> None:
    (fault,) = faults(text)
    assert word in fault.what, fault
    assert fault.line > 0 or "contradict" in word or "one of" in word


def test_a_token_never_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert "secret" not in repr(read('join = "secret"'))
    assert all("secret" not in fault.text() for fault in faults('join = "secret"\nnew-mesh = true'))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host:1", ("host", 1)),
        ("host", ("host", 7)),
        ("[::1]:2", ("::1", 2)),
        ("[::1]", ("::1", 7)),
        ("::1", ("::1", 7)),
        ("http://127.0.0.1:3/", ("127.0.0.1", 3)),
    ],
)
def test_endpoints(text: str, expected: tuple[str, int]) -> None:
    assert split_endpoint(text, 7) == expected


@pytest.mark.parametrize(
    "text", ["", ":1", "h:x", "h:-1", "h:65536", "[::1", "u@h:1", "h /:1", "h:²"]
)
def test_no_endpoints(text: str) -> None:
    with pytest.raises(ValueError, match="port"):
        split_endpoint(text, 7)


def test_places_of_dotted_and_quoted_keys() -> None:
    _, places, _ = parse_toml('log.level = "x"\n"na-me" = 1\n[a."b".c]\nd = [ # ]\n1,\n]\ne=2')
    lines = {".".join(path): place.line for path, place in places.items()}
    assert lines == {"log.level": 1, "na_me": 2, "a.b.c": 3, "a.b.c.d": 4, "a.b.c.e": 7}


def test_guesses_are_near_or_none() -> None:
    assert nearest("slot", ["slots", "seed"]) == '; did you mean "slots"?'
    assert nearest("zzz", ["slots", "seed"]) == ""


def test_files_are_found_and_paths_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    (home / "node.toml").write_text('name = "den"\nallow = ["~/Films"]\n')
    config = load_config({"ffmpeg": "./f"}, {}, default_home=home)
    assert (config.name, config.allow) == ("den", ("/home/me/Films",))
    assert config.ffmpeg == str(tmp_path / "f")
    assert load_config({"ffmpeg": "f", "allow": ["x"]}, {}, default_home=home).ffmpeg == "f"
    assert load_config({"home": str(tmp_path)}, {}, default_home=home).home == str(tmp_path)
    other = tmp_path / "other.toml"
    other.write_text('name = "other"')
    environment = {"DARKSTREAM_CONFIG": str(other), "DARKSTREAM_HOME": "there"}
    told = load_config({}, environment, default_home=home)
    assert (told.name, told.home) == ("other", str(tmp_path / "there"))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    huge = tmp_path / "huge.toml"
    huge.write_bytes(b"#" * ((1 << 20) + 1))
    for file in (binary, huge, tmp_path / "absent.toml", tmp_path):
        with pytest.raises(ConfigurationError, match=str(file)):
            load_config({}, {}, str(file), default_home=tmp_path)


def test_editors_of_other_systems_write_configurations_too(tmp_path: Path) -> None:
    marked = tmp_path / "marked.toml"
    marked.write_bytes(b'\xef\xbb\xbfname = "den"\r\n[log]\r\nlevel = "debug"\r\n')
    config = load_config({}, {}, str(marked), default_home=tmp_path)
    assert (config.name, config.log.level) == ("den", "debug")
    assert read('\ufeffname = "den"').name == "den"
    assert read('allow = ["/a\u2028b\u0085c"]').allow == ("/a\u2028b\u0085c",)


@pytest.mark.parametrize("key", ["home", "allow", "backup", "join-file"])
def test_the_home_of_nobody_is_a_fault(tmp_path: Path, key: str) -> None:
    values = {"allow": "['~nobody-here/x']", "backup": "{archive = '~nobody-here/x'}"}
    file = tmp_path / "node.toml"
    file.write_text(f"{key} = {values.get(key, repr('~nobody-here/x'))}")
    with pytest.raises(ConfigurationError, match="no home directory"):
        load_config({}, {}, default_home=tmp_path)
    with pytest.raises(ConfigurationError, match="no home directory"):
        default_home({"DARKSTREAM_HOME": "~nobody-here/x"})


def test_the_root_of_everything_is_no_users_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/")  # what containers and services give to a user that is a number
    assert default_folders(["/films"]) == (Path("/films"),)
    monkeypatch.setenv("HOME", "/home/me")
    assert default_folders(["/films"]) == (Path("/home/me"), Path("/films"))


NOBODY = 1_234_567
ASKS = """
import os
import platformdirs.unix
from mesh.errors import ConfigurationError
from node.settings.home_files import default_home
from node.work.allowed_files import default_folders
os.setuid({uid})  # all is imported: who is nobody may not read it
assert default_folders(()) == ()
try:
    default_home({{}})
except ConfigurationError as error:
    print(error.line())
"""


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="root alone becomes nobody")
def test_a_user_without_a_home_has_to_name_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASKS.format(uid=NOBODY)],
        env={},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.startswith("error[config]: this user has no home directory; name one"), done


def test_the_file_of_a_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    config = load_config({"join_file": str(file)}, {}, default_home=tmp_path)
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        token_of(config)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="no token"):
        token_of(config)
    file.write_bytes(b"\xef\xbb\xbf" + TOKEN.encode() + b"\r\n")
    assert token_of(config) is not None


def test_what_a_label_and_a_device_may_be_is_said_in_words() -> None:
    found = read('[work]\nlabels = ["gpu", "attic-2"]\ndevice_slots = { gpu0 = 2, cpu = 0 }').work
    assert (found.labels, found.device_slots) == (("gpu", "attic-2"), {"gpu0": 2, "cpu": 0})
    label, device = faults('[work]\nlabels = ["Bad One"]\ndevice_slots = { GPU = 1 }')
    assert (label.line, label.key) == (2, "work.labels")
    assert label.what.startswith("'Bad One' is no label: a label has up to 32 small letters")
    assert device.what == "'GPU' is no device: `mesh-cli nodes` shows their names, as gpu0"
    assert faults("[work]\ndevice_slots = { gpu0 = -1 }")[0].line == 2
    with pytest.raises(ValueError, match="is no label"):
        checked_label("gpu\n")


def test_an_interruption_while_modules_load_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    node.cli.on_error(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == "error[interrupted]: interrupted\n"
    node.cli.on_error(ValueError, ValueError("why"), None)
    assert "ValueError: why" in capsys.readouterr().err
    code = "import sys, node.cli; sys.exit(sys.excepthook is not node.cli.on_error)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
