"""Rounds of backups, where litestream writes, and what its words mean; no child is started."""

import asyncio
import json
from pathlib import Path
from random import Random

import pytest

from mesh.errors import BackupError, DarkStreamError, NotFoundError, StorageError, errors_by_code
from node.backup import rounds as timing
from node.backup.destination import Destination, parse_destination, place_name
from node.backup.litestream import SftpKeys, configuration, not_restored, not_sent, said
from node.backup.litestream_files import MirrorFolder, reach
from node.backup.rounds import BackupState, Rounds
from node.backup.views import backup_checks, backup_info, backup_metrics
from node.media.child import Reason, RunResult
from node.media.stderr_log import StderrLog
from node.settings.config import Given, read_config
from node.settings.config_text import ConfigFaultsError
from node.signals import Signal

# --- destinations ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "below"),
    [
        ("/mnt/nas", "folder", "/mnt/nas/x"),
        ("~/backup/", "folder", "~/backup/x"),
        ("s3://bucket", "s3", "s3://bucket/x"),
        (
            "s3://b/p?endpoint=http://h:9000&region=r",
            "s3",
            "s3://b/p/x?endpoint=http://h:9000&region=r",
        ),
        ("sftp://bob@nas:2222/srv/mesh", "sftp", "sftp://bob@nas:2222/srv/mesh/x"),
    ],
)
def test_destinations(text: str, kind: str, below: str) -> None:
    found = parse_destination(text)
    assert (found.kind, found.text) == (kind, text)
    assert found.below("x").text == below


@pytest.mark.parametrize(
    "text",
    [
        *("", "relative/folder", "ftp://h/x", "s3://", "s3:///x", "http://h/x", "/a\x00b"),
        *("s3://key:hunter2@b/x", "s3://key@b/x", "sftp://bob:hunter2@h/x", "s3://b/x#hunter2"),
        *("s3://b/x?secret-access-key=hunter2", "sftp://h/x", "sftp://bob@h", "sftp://bob@h:x/y"),
    ],
)
def test_what_is_no_destination_is_said_without_its_secrets(text: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_destination(text)
    assert "hunter2" not in str(caught.value)


def test_places_differ_by_mesh_epoch_and_node() -> None:
    assert len({place_name("m", 1, "n"), place_name("m", 2, "n"), place_name("m", 1, "o")}) == 3


def faulty(text: str) -> str:
    given = Given(flags={}, environment={}, file="node.toml", text=f"[backup]\n{text}\n")
    with pytest.raises(ConfigFaultsError) as caught:
        read_config(given, {"home": "/home", "name": "n"})
    return "\n".join(fault.text() for fault in caught.value.faults)


def test_the_configuration_says_what_is_wrong() -> None:
    assert "node.toml:2: backup.litestream" in faulty('litestream = "ftp://h/x"')
    assert "node.toml:2: backup.archive" in faulty('archive = "relative"')
    assert "sftp_key" in faulty('litestream = "sftp://bob@h/x"')
    assert "did you mean" in faulty('archiv = "/x"')
    assert "hunter2" not in faulty('litestream = "s3://k:hunter2@b/x"')


def test_litestream_is_told_no_secret_and_nothing_is_expanded() -> None:
    keys = SftpKeys(key="/k", host_key="ssh-ed25519 AAAA")
    folder = Destination("folder", '/a "b"/$HOME/ü')
    told = json.loads(configuration("/home/m.db", folder, SftpKeys(), "/s.sock"))
    assert told["dbs"][0]["replica"] == {"type": "file", "path": '/a "b"/$HOME/ü'}
    assert told["socket"] == {"enabled": True, "path": "/s.sock"}
    sftp = json.loads(configuration("/m.db", parse_destination("sftp://b@h/x"), keys))
    assert sftp["dbs"][0]["replica"]["key-path"] == "/k"
    assert "socket" not in sftp


def ended(stderr: str, reason: Reason = "exited", exit_code: int = 1) -> RunResult:
    log = StderrLog()
    log.feed(stderr.encode())
    return RunResult(
        command=("litestream",),
        exit_code=exit_code,
        signal=None,
        reason=reason,
        stdout=b"",
        stderr=log.summary(),
        progress=None,
        duration_ms=1,
    )


def test_what_litestream_says_is_kept() -> None:
    place = Destination("folder", "/d")
    full = ended("time=x level=WARN\nError: sync failed: write: no space left on device\n")
    assert said(full) == "write: no space left on device"
    assert "no space left" in not_sent(place, said(full)).line()
    assert "in time" in said(ended("", reason="time"))
    s3 = "operation error S3: {}NoSuchBucket: The specified bucket does not exist"
    ids = "RequestID: wVQmWFu, HostID: 9Gjjt1m+c/8Rpyfg=, "
    assert said(ended(f"Error: {s3.format(ids)}")) == s3.format("")
    assert "within" in said(ended("Error: Post: context deadline exceeded"))
    assert said(ended("")) == "it ended with 1"
    assert len(said(ended("Error: " + "x" * 3000 + " the end"))) < 500
    assert said(ended("Error: " + "x" * 3000 + " the end")).endswith("the end")
    nothing = not_restored(place, ended("Error: no matching backup files available"))
    assert isinstance(nothing, NotFoundError)
    assert isinstance(not_restored(place, full), BackupError)


# --- files ----------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    gone = Destination("folder", str(tmp_path / "gone" / "place"))
    with pytest.raises(NotFoundError, match="gone"):
        reach(gone)
    place = Destination("folder", str(tmp_path / "place"))
    reach(place)
    reach(place)
    assert (tmp_path / "place").stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises((StorageError, NotFoundError)):
        reach(Destination("folder", str(tmp_path / "file" / "place")))
    reach(Destination("s3", "s3://b/x"))


def test_one_mirror_is_kept(tmp_path: Path) -> None:
    mirrors = MirrorFolder(tmp_path / "mirror")
    mirrors.database("m-1-n").write_bytes(b"x")
    config = mirrors.configure("text")
    assert config.stat().st_mode & 0o777 == 0o600
    mirrors.database("m-2-n").write_bytes(b"y")
    assert not (tmp_path / "mirror" / "m-1-n").exists()
    assert mirrors.database("m-2-n").read_bytes() == b"y"
    assert config.read_text() == "text"
    mirrors.remove()
    assert not (tmp_path / "mirror").exists()


def test_a_home_with_a_long_name_has_its_socket_elsewhere(tmp_path: Path) -> None:
    mirrors = MirrorFolder(tmp_path / ("x" * 100))
    socket = mirrors.socket()
    assert len(str(socket)) < 104
    assert socket.parent.is_dir()
    mirrors.close()
    assert not socket.parent.exists()


# --- rounds ---------------------------------------------------------------------------------------


class Applying:
    def __init__(self) -> None:
        self.applied_index = 1
        self.ledger_changed = Signal()

    def apply(self, index: int) -> None:
        self.applied_index = index
        self.ledger_changed.set()


class Backing:
    """Rounds over a backup that can be told to fail."""

    def __init__(self) -> None:
        self.host = Applying()
        self.error: DarkStreamError | None = None
        self.done = Signal()
        self.count = 0
        self.rounds = Rounds(
            BackupState(kind="archive", target="/a"),
            host=self.host,
            every_s=0,
            first_ms=0,
            run_once=self.round,
            random=Random(1),
        )

    async def round(self) -> int:
        self.count += 1
        self.done.set()
        if self.error is not None:
            raise self.error
        return self.host.applied_index

    async def until(self, count: int) -> None:
        async with asyncio.timeout(10):
            while self.count < count:
                await self.done.wait(self.done.count)
            await asyncio.sleep(0)


def test_a_round_for_what_is_new_and_none_for_nothing() -> None:
    async def body() -> None:
        backing = Backing()
        task = asyncio.create_task(backing.rounds.run())
        await backing.until(1)
        backing.host.ledger_changed.set()  # woken, and nothing is new
        for _ in range(20):
            await asyncio.sleep(0)
        assert backing.count == 1
        backing.host.apply(5)
        await backing.until(2)
        assert backing.rounds.state.index == 5
        task.cancel()

    asyncio.run(body())


def test_what_failed_is_shown_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "RETRY_FIRST_MS", 8)

    async def body() -> None:
        backing = Backing()
        backing.error = StorageError("the disk is gone", "mend it")
        task = asyncio.create_task(backing.rounds.run())
        await backing.until(3)
        state = backing.rounds.state
        assert state.fault is backing.error
        (check,) = backup_checks([state])
        assert (check.ok, check.reason) == (False, "error[storage]: the disk is gone; mend it")
        shown = backup_info(state)
        assert shown.fault is not None
        assert (shown.fault.code, shown.failures >= 2) == ("storage", True)
        values = {one.name: one.value for one in backup_metrics([state])}
        assert values["backup_failing"] == 1.0
        backing.error = None
        await backing.until(backing.count + 1)
        assert (state.fault, state.index) == (None, 1)
        assert {one.name: one.value for one in backup_metrics([state])}["backup_failing"] == 0.0
        task.cancel()

    asyncio.run(body())


def test_pauses_grow_to_a_bound() -> None:
    backing = Backing()
    backing.error = StorageError("no", "")
    pauses: list[int] = []

    async def body() -> None:
        for _ in range(12):
            await backing.rounds._round()
            pauses.append(backing.rounds._pause_ms())

    asyncio.run(body())
    assert timing.RETRY_FIRST_MS <= pauses[0] < 2 * timing.RETRY_FIRST_MS
    assert pauses[3] > 2 * pauses[1]
    assert max(pauses) <= timing.RETRY_MAX_MS * 5 // 4


def test_every_error_can_be_told_by_another_process() -> None:
    assert errors_by_code()["storage"] is StorageError
    assert errors_by_code()["backup"] is BackupError
