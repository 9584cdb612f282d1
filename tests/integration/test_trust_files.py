"""Keys and promises on a real disk, and that ZeroMQ's CURVE takes the keys."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq
from zmq.utils import z85

from mesh import trust_files
from mesh.errors import IdentityError, StorageError
from mesh.forming import PromiseRecord
from mesh.joining import Place
from mesh.trust import identity_of
from mesh.trust_files import (
    IDENTITY_FOLDER,
    PROMISE_FILE,
    PUBLIC_FILE,
    SECRET_FILE,
    PromiseFile,
    load_or_create_identity,
)

posix = pytest.mark.skipif(os.name != "posix", reason="mode bits exist on POSIX systems only")
no_root = pytest.mark.skipif(
    os.name == "posix" and os.geteuid() == 0, reason="root reads and writes what it likes"
)


def test_the_identity_is_made_once_and_kept(tmp_path: Path) -> None:
    made = load_or_create_identity(tmp_path / "home")
    assert load_or_create_identity(tmp_path / "home") == made
    assert load_or_create_identity(tmp_path / "other") != made
    folder = tmp_path / "home" / IDENTITY_FOLDER
    assert sorted(entry.name for entry in folder.iterdir()) == [SECRET_FILE, PUBLIC_FILE]


@posix
def test_nobody_else_can_read_the_key_from_its_first_moment(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        load_or_create_identity(tmp_path)
    finally:
        os.umask(before)
    folder = tmp_path / IDENTITY_FOLDER
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / SECRET_FILE).stat().st_mode & 0o777 == 0o600


@posix
@pytest.mark.parametrize("name", ["", SECRET_FILE])
@pytest.mark.parametrize("mode", [0o040, 0o004, 0o020])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, name: str, mode: int) -> None:
    load_or_create_identity(tmp_path)
    path = tmp_path / IDENTITY_FOLDER / name
    path.chmod(path.stat().st_mode | mode)
    with pytest.raises(IdentityError, match="others may read") as caught:
        load_or_create_identity(tmp_path)
    assert "chmod" in caught.value.todo


def _remove_secret(folder: Path) -> None:
    (folder / SECRET_FILE).unlink()


def _truncate_secret(folder: Path) -> None:
    (folder / SECRET_FILE).write_text("00" * 31)


def _garble_secret(folder: Path) -> None:
    (folder / SECRET_FILE).write_bytes(b"\xff" * 64)


def _empty_public(folder: Path) -> None:
    (folder / PUBLIC_FILE).write_text("")


def _foreign_public(folder: Path) -> None:
    (folder / PUBLIC_FILE).write_text(identity_of(b"x" * 32).public_key.hex())


def _folder_for_secret(folder: Path) -> None:
    (folder / SECRET_FILE).unlink()
    (folder / SECRET_FILE).mkdir(mode=0o700)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (_remove_secret, "missing"),
        (_truncate_secret, "damaged"),
        (_garble_secret, "damaged"),
        (_empty_public, "damaged"),
        (_foreign_public, "does not belong"),
        (_folder_for_secret, "no file"),
    ],
)
def test_a_damaged_or_missing_half_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], what: str
) -> None:
    load_or_create_identity(tmp_path)
    damage(tmp_path / IDENTITY_FOLDER)
    with pytest.raises(IdentityError, match=what) as caught:
        load_or_create_identity(tmp_path)
    assert caught.value.todo


@posix
def test_links_are_not_followed(tmp_path: Path) -> None:
    load_or_create_identity(tmp_path / "real")
    (tmp_path / "linked").mkdir()
    real = tmp_path / "real" / IDENTITY_FOLDER
    (tmp_path / "linked" / IDENTITY_FOLDER).symlink_to(real)
    with pytest.raises(IdentityError, match="no folder"):
        load_or_create_identity(tmp_path / "linked")
    moved = real / "moved"
    (real / SECRET_FILE).rename(moved)
    (real / SECRET_FILE).symlink_to(moved)
    with pytest.raises(IdentityError, match="no file"):
        load_or_create_identity(tmp_path / "real")


def test_a_lost_public_half_follows_from_the_secret_one(tmp_path: Path) -> None:
    made = load_or_create_identity(tmp_path)
    (tmp_path / IDENTITY_FOLDER / PUBLIC_FILE).unlink()
    assert load_or_create_identity(tmp_path) == made
    assert (tmp_path / IDENTITY_FOLDER / PUBLIC_FILE).exists()


def test_a_home_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(StorageError, match="cannot be made"):
        load_or_create_identity(tmp_path / "home")


@no_root
def test_a_home_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError):
        load_or_create_identity(tmp_path)


def test_two_processes_that_start_at_once_get_one_key(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from mesh.trust_files import load_or_create_identity as load\n"
        "try: print(load(pathlib.Path(sys.argv[1])).node_id)\n"
        "except Exception as error: print(type(error).__name__)"
    )
    argv = [sys.executable, "-c", program, str(tmp_path)]
    running = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = {process.communicate(timeout=60)[0].strip() for process in running}
    assert said - {"IdentityError"} == {load_or_create_identity(tmp_path).node_id}


@pytest.mark.parametrize("error", [PermissionError(1, "no"), NotImplementedError()])
def test_file_systems_without_links_get_a_key_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(trust_files.os, "link", refuse)
    made = load_or_create_identity(tmp_path)
    assert load_or_create_identity(tmp_path) == made


# --- CURVE ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", [None, bytes(31) + b"\xff", b"\xff" * 32, b"\x07" * 32])
def test_curve_takes_these_keys(tmp_path: Path, secret: bytes | None) -> None:
    """Clamped or not: libzmq derives the same public half, and the handshake works both ways."""
    server = load_or_create_identity(tmp_path) if secret is None else identity_of(secret)
    client = identity_of(os.urandom(32))
    context = zmq.Context()
    router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    try:
        router.curve_server = True
        router.setsockopt(zmq.CURVE_SECRETKEY, server.secret_key)
        router.rcvtimeo = dealer.rcvtimeo = 10_000
        port = router.bind_to_random_port("tcp://127.0.0.1")
        dealer.setsockopt(zmq.CURVE_PUBLICKEY, client.public_key)
        dealer.setsockopt(zmq.CURVE_SECRETKEY, client.secret_key)
        dealer.setsockopt(zmq.CURVE_SERVERKEY, server.public_key)
        dealer.connect(f"tcp://127.0.0.1:{port}")
        dealer.send(b"hello")
        name, frame = router.recv_multipart()
        router.send_multipart([name, frame + b" back"])
        assert dealer.recv() == b"hello back"
        derived = zmq.curve_public(z85.encode(server.secret_key))
        assert z85.decode(derived) == server.public_key
    finally:
        router.close(linger=0)
        dealer.close(linger=0)
        context.term()


# --- promises ---------------------------------------------------------------------------------------

PROMISE = PromiseRecord(
    to=identity_of(b"a" * 32).node_id, place=Place(hosts=("10.0.0.1",), join_port=7442)
)


def test_a_promise_survives(tmp_path: Path) -> None:
    assert PromiseFile(tmp_path).load() is None
    PromiseFile(tmp_path).save(PROMISE)
    assert PromiseFile(tmp_path).load() == PROMISE
    later = PromiseRecord(to=identity_of(b"b" * 32).node_id, place=None)
    PromiseFile(tmp_path).save(later)
    assert PromiseFile(tmp_path).load() == later
    assert [entry.name for entry in tmp_path.iterdir()] == [PROMISE_FILE]


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x93\x01\xa7promise\x80"])
def test_a_damaged_promise_stops_the_node(tmp_path: Path, content: bytes) -> None:
    (tmp_path / PROMISE_FILE).write_bytes(content)
    with pytest.raises(StorageError, match="damaged") as caught:
        PromiseFile(tmp_path).load()
    assert caught.value.todo


def test_a_promise_that_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        PromiseFile(tmp_path / "missing").save(PROMISE)
    (tmp_path / PROMISE_FILE).mkdir()
    with pytest.raises(StorageError, match="cannot be read"):
        PromiseFile(tmp_path).load()
