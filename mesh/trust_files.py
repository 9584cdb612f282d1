"""What trust keeps on disk: this node's key pair, and its promise not to form a mesh."""

import contextlib
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from mesh.codec import Vocabulary
from mesh.errors import IdentityError, StorageError, WireError
from mesh.forming import PromiseRecord
from mesh.ids import is_node_id
from mesh.transport import KEY_BYTES
from mesh.trust import Identity, identity_of

IDENTITY_FOLDER: Final = "identity"
SECRET_FILE: Final = "node.key"  # noqa: S105 - the name of a file, no secret
PUBLIC_FILE: Final = "node.pub"
PROMISE_FILE: Final = "promise"
_PROMISE_BYTES_MAX: Final = 4_096

_PROMISES: Final = Vocabulary("promise")
_PROMISES.kind("promise")(PromiseRecord)

_CHECKS_MODES: Final = os.name == "posix"
"""Windows has no mode bits: there the user's profile folder and its access lists keep others out."""


def load_or_create_identity(home: Path) -> Identity:
    """This node's identity, made at the first start.

    The folder `identity` has mode 0700, the secret half 0600.  Raises `IdentityError` when others
    may read it, a half is missing or damaged, or the halves do not belong together; `StorageError`
    when it cannot be written.
    """
    folder = home / IDENTITY_FOLDER
    secret_file, public_file = folder / SECRET_FILE, folder / PUBLIC_FILE
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder} cannot be made: {error.strerror}", _mend_home()) from None
    _check_private(folder, folder=True)
    if not os.path.lexists(secret_file):
        if os.path.lexists(public_file):
            raise IdentityError(
                f"the secret half of the node's key, {secret_file}, is missing",
                f"restore it, or remove {folder} to become a new node that has to join again",
            )
        _create(folder, secret_file)
    _check_private(secret_file, folder=False)
    identity = identity_of(_read_key(secret_file))
    if not os.path.lexists(public_file):
        # The process ended between the two halves; the public one follows from the secret one.
        _write_new(public_file, _line(identity.public_key), 0o644)
        _sync_folder(folder)
    elif _read_key(public_file) != identity.public_key:
        raise IdentityError(
            f"{public_file} does not belong to {secret_file}",
            f"restore both, or remove {folder} to become a new node that has to join again",
        )
    return identity


class PromiseFile:
    """`PromiseStore` in a file of the home."""

    def __init__(self, home: Path) -> None:
        self._path = home / PROMISE_FILE

    def load(self) -> PromiseRecord | None:
        """The promise that was saved last; None without one.  Raises `StorageError`."""
        try:
            with self._path.open("rb") as stream:
                text = stream.read(_PROMISE_BYTES_MAX)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{self._path} cannot be read: {error.strerror}") from None
        try:
            record: object = _PROMISES.decode(text)
        except WireError:
            record = None
        if not isinstance(record, PromiseRecord) or not is_node_id(record.to):
            raise StorageError(
                f"{self._path} is damaged",
                "remove it when no other node was started for the first time just now",
            )
        return record

    def save(self, record: PromiseRecord) -> None:
        """Replaces the promise; synced when this returns.  Raises `StorageError`."""
        made = self._path.with_name(f".{PROMISE_FILE}-{secrets.token_hex(4)}")
        try:
            _write_new(made, _PROMISES.encode(record), 0o600)
            made.replace(self._path)
            _sync_folder(self._path.parent)
        except OSError as error:
            raise StorageError(f"{self._path} cannot be written: {error.strerror}") from None
        finally:
            with contextlib.suppress(OSError):
                made.unlink()


def _create(folder: Path, secret_file: Path) -> None:
    # A link makes the key appear whole and never replaces one that another process made meanwhile.
    made = folder / f".{SECRET_FILE}-{secrets.token_hex(4)}"
    try:
        _write_new(made, _line(secrets.token_bytes(KEY_BYTES)), 0o600)
        _place(made, secret_file)
        _sync_folder(folder)
    except FileExistsError:
        raise IdentityError(
            f"{secret_file} appeared while it was made: another node uses this home",
            "start one node on a home at a time",
        ) from None
    except OSError as error:
        what = f"the node's key cannot be written to {folder}: {error.strerror}"
        raise StorageError(what, _mend_home()) from None
    finally:
        with contextlib.suppress(OSError):
            made.unlink()


def _place(made: Path, final: Path) -> None:
    if os.name == "nt":
        made.rename(final)  # Windows refuses to rename over a file
        return
    try:
        os.link(made, final)
    except (PermissionError, NotImplementedError):
        # File systems without hard links: the exclusive lock on the home is what is left.
        if final.exists():
            raise FileExistsError(final) from None
        made.rename(final)


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """A new file, its content synced; never follows a link, never replaces a file."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    handle = os.open(path, flags, mode)
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _line(key: bytes) -> bytes:
    return f"{key.hex()}\n".encode("ascii")


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # Windows cannot open folders; its renames are journalled
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_private(path: Path, *, folder: bool) -> None:
    try:
        found = path.lstat()
    except OSError as error:
        raise IdentityError(f"{path} cannot be read: {error.strerror}", _mend_home()) from None
    if not (stat.S_ISDIR(found.st_mode) if folder else stat.S_ISREG(found.st_mode)):
        kind = "folder" if folder else "file"
        raise IdentityError(f"{path} is no {kind} of its own", "restore it; links are not followed")
    if not _CHECKS_MODES:
        return
    if found.st_uid != os.geteuid():
        raise IdentityError(f"{path} belongs to another user", "start the node as its owner")
    if found.st_mode & 0o077:
        mode = "0700" if folder else "0600"
        raise IdentityError(
            f"others may read {path} (mode {stat.S_IMODE(found.st_mode):04o})",
            f"if nobody did: chmod {mode} {path}; else remove it and join again with a new key",
        )


def _read_key(path: Path) -> bytes:
    try:
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)
        with os.fdopen(os.open(path, flags), "rb") as stream:
            key = bytes.fromhex(stream.read(1_024).decode("ascii").strip())
    except OSError as error:
        raise IdentityError(f"{path} cannot be read: {error.strerror}", _mend_home()) from None
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise IdentityError(
            f"{path} is damaged", "restore it from a backup, or remove the folder and join again"
        )
    return key


def _mend_home() -> str:
    return "mend the permissions of the home, or name another one with DARKSTREAM_HOME"
