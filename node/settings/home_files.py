"""A node's home folder on this machine: where it is, that it can be written, what the faces find in it."""

import errno
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from mesh.errors import (
    ConfigurationError,
    DarkStreamError,
    DiskFullError,
    NotAllowedError,
    StorageError,
)
from node.settings.home_paths import API_ADDRESS_FILE, API_TOKEN_FILE, APPLICATION, HOME_VARIABLE

_TOKEN_BYTES = 32


def expanded(text: str) -> Path:
    """A path as a person writes it, from the root on.  Raises `ConfigurationError` for a `~` of nobody."""
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise ConfigurationError(
            f"{text}: no home directory of that user is known here", "write it from the root on"
        ) from None


def default_home(environment: Mapping[str, str]) -> Path:
    """`DARKSTREAM_HOME`, else the user's data folder of this system.

    Raises `ConfigurationError` where neither is known: in a container of a user that is only a number.
    """
    if given := environment.get(HOME_VARIABLE, ""):
        return expanded(given)
    import platformdirs  # noqa: PLC0415 - start-up time

    try:
        return Path(platformdirs.user_data_dir(APPLICATION, appauthor=False))
    except RuntimeError:
        raise ConfigurationError(
            "this user has no home directory", f"name one with --home or {HOME_VARIABLE}"
        ) from None


def prepare_home(home: str) -> Path:
    """Makes the home folder (0700) and proves that it can be written.

    Raises `NotAllowedError` (no permission), `ConfigurationError` (its path is no folder),
    `DiskFullError`, `StorageError`.
    """
    path = Path(home)
    try:
        home.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(
            f"the data directory {home!a} has a name that is no UTF-8", "choose another with --home"
        ) from None
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = path / f".write-{secrets.token_hex(4)}"
        try:
            with probe.open("xb") as stream:
                stream.write(b"1")
        finally:
            probe.unlink(
                missing_ok=True
            )  # also where the disk is full: a service starts again and again
    except OSError as error:
        raise _home_error(path, error) from None
    return path


def write_api_files(home: Path, address: str) -> str:
    """Leaves `api.token` (0600, kept when it is there) and `api.address` in the home; returns the token."""
    token_file = home / API_TOKEN_FILE
    try:
        token = _kept_token(token_file)
        if token is None:
            token = secrets.token_urlsafe(_TOKEN_BYTES)
            _write(token_file, token)
        _write(home / API_ADDRESS_FILE, address)
    except OSError as error:
        raise _home_error(home, error) from None
    return token


def _kept_token(path: Path) -> str | None:
    try:
        if os.name == "posix" and path.stat().st_mode & 0o077:
            return None  # others may have read it: it is drawn anew
        token = path.read_text("ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    return token if len(token) >= _TOKEN_BYTES else None


def _write(path: Path, text: str) -> None:
    """Replaces the file at once, readable by its owner alone from the first moment."""
    made = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    handle = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as stream:
            stream.write(text + "\n")
        made.replace(path)
    except OSError:
        made.unlink(missing_ok=True)
        raise


def _home_error(path: Path, error: OSError) -> DarkStreamError:
    what = f"the data directory {path} cannot be used: {error.strerror}"
    todo = "name another one with --home or DARKSTREAM_HOME, or mend its permissions"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return NotAllowedError(what, todo)
    if error.errno == errno.ENOSPC:
        return DiskFullError(what, "free some space, or name another directory with --home")
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP):
        return ConfigurationError(what, todo)
    return StorageError(what, todo)
