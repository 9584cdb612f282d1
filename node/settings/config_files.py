"""Reads the configuration from this machine: flags, environment, the file."""

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mesh.errors import ConfigurationError
from mesh.trust import Token, parse_token
from node.settings.config import CONFIG_VARIABLE, Config, Given, read_config
from node.settings.home_files import expanded
from node.settings.home_paths import CONFIG_FILE, FFMPEG_VARIABLE, HOME_VARIABLE

CONFIG_BYTES_MAX = 1 << 20
"""A configuration written by a person is a few KiB; more is a wrong file."""
TOKEN_FILE_BYTES_MAX = 4_096
"""A token has a hundred characters."""
_PATHS = ("home", "join_file", "ffmpeg")


def load_config(
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    file: str | None = None,
    *,
    default_home: Path,
) -> Config:
    """The configuration of this machine: flags, environment, the file, defaults.

    The file is `file`, else `DARKSTREAM_CONFIG`, else `node.toml` in the home, which may be absent;
    `default_home` is that of `node.settings.home_files`.
    Raises `ConfigFaultsError` (every fault), `ConfigurationError` (the file cannot be read).
    """
    path, text = read_config_file(flags, environment, file, default_home=default_home)
    given = Given(
        flags=_here(flags, {name: name for name in (*_PATHS, "allow")}),
        environment=_here(environment, {HOME_VARIABLE: "home", FFMPEG_VARIABLE: "ffmpeg"}),
        file=str(path),
        text=text,
    )
    return _expanded(read_config(given, {"home": str(default_home), "name": _host_name()}))


def read_config_file(
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    file: str | None,
    *,
    default_home: Path,
) -> tuple[Path, str]:
    """Path and text of the configuration file; no text when the default one is absent."""
    if file == "":
        raise ConfigurationError("--config names no file", "name one, or leave the flag out")
    asked = file or environment.get(CONFIG_VARIABLE, "")
    path = expanded(asked or str(Path(flags.get("home") or default_home) / CONFIG_FILE))
    try:
        with path.open("rb") as stream:
            raw = stream.read(CONFIG_BYTES_MAX + 1)
        if len(raw) > CONFIG_BYTES_MAX:
            raise ConfigurationError(
                f"{path} is larger than {CONFIG_BYTES_MAX >> 20} MiB", "name a configuration file"
            )
        return path, raw.decode("utf-8-sig")  # editors of Windows begin a file with a mark
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8 text", "write it as UTF-8") from None
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError) and not asked:
            return path, ""
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}", "name a file that exists and is readable"
        ) from None


def _host_name() -> str:
    """The machine's name as a node name: for people, inside the mesh only."""
    bare = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname().partition(".")[0]).lstrip("._-")
    return bare[:63] or "node"


def _here(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """What was typed in a shell is relative to the working folder; `names` gives the key of each value."""
    changed = dict(values)
    for name, key in names.items():
        value = changed.get(name)
        if isinstance(value, str) and value and not (key == "ffmpeg" and _bare(value)):
            changed[name] = str(expanded(value))
        elif key == "allow" and value:
            # Nothing typed is no folder, least of all the working one.
            changed[name] = [str(expanded(item)) if item else item for item in value]
    return changed


def _expanded(config: Config) -> Config:
    """`~` of the file becomes the user's home directory."""
    changed: dict[str, Any] = {
        name: _expanded_text(value)
        for name in _PATHS
        if (value := getattr(config, name)) is not None
    }
    changed["allow"] = tuple(map(_expanded_text, config.allow))
    changed["backup"] = config.backup.model_copy(
        update={
            name: _expanded_text(value)
            for name in ("archive", "litestream", "litestream_program", "sftp_key")
            if (value := getattr(config.backup, name)) is not None
        }
    )
    return config.model_copy(update=changed)


def _expanded_text(text: str) -> str:
    """The same for what may be a program's bare name, or another system's path."""
    return str(expanded(text)) if text.startswith("~") else text


def _bare(program: str) -> bool:
    """A name without a folder is looked up in PATH."""
    return os.sep not in program and "/" not in program


def token_of(config: Config, returns_to: bytes | None = None) -> Token | None:
    """The invitation that a first start was given, itself or in a file.

    None also for one of the mesh with the fingerprint `returns_to`: this node's key is a member's
    there, and the token of its first start is used up by now.

    Raises `ConfigurationError` (the file cannot be read), `UsageError` (it is no token).
    """
    text = config.join if config.join_file is None else _token_text(config.join_file)
    token = None if text is None else parse_token(text)
    return None if token is not None and token.fingerprint == returns_to else token


def _token_text(path: str) -> str:
    try:
        with Path(path).open("rb") as stream:
            return stream.read(TOKEN_FILE_BYTES_MAX).decode("utf-8-sig", "replace")
    except OSError as error:
        raise ConfigurationError(
            f"the token's file {path} cannot be read: {error.strerror}",
            "name the file that holds what `mesh-cli token create` printed",
        ) from None
