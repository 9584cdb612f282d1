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
from node.settings.home_paths import CONFIG_FILE, FFMPEG_VARIABLE, HOME_VARIABLE

CONFIG_BYTES_MAX = 1 << 20
"""A configuration written by a person is a few KiB; more is a wrong file."""
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
    path = (
        Path(asked or Path(flags.get("home") or default_home) / CONFIG_FILE).expanduser().absolute()
    )
    try:
        with path.open("rb") as stream:
            raw = stream.read(CONFIG_BYTES_MAX + 1)
        if len(raw) > CONFIG_BYTES_MAX:
            raise ConfigurationError(
                f"{path} is larger than {CONFIG_BYTES_MAX >> 20} MiB", "name a configuration file"
            )
        return path, raw.decode("utf-8")
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
            changed[name] = str(_resolved(value))
        elif key == "allow" and value:
            # Nothing typed is no folder, least of all the working one.
            changed[name] = [str(_resolved(item)) if item else item for item in value]
    return changed


def _expanded(config: Config) -> Config:
    """`~` of the file becomes the user's home directory."""
    changed: dict[str, Any] = {
        name: str(Path(value).expanduser())
        for name in _PATHS
        if (value := getattr(config, name)) is not None
    }
    changed["allow"] = tuple(str(Path(item).expanduser()) for item in config.allow)
    changed["backup"] = config.backup.model_copy(
        update={
            name: str(Path(value).expanduser())
            for name in ("archive", "litestream", "litestream_program", "sftp_key")
            if (value := getattr(config.backup, name)) is not None and value.startswith("~")
        }
    )
    return config.model_copy(update=changed)


def _resolved(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _bare(program: str) -> bool:
    """A name without a folder is looked up in PATH."""
    return os.sep not in program and "/" not in program


def token_of(config: Config) -> Token | None:
    """The invitation that a first start was given, itself or in a file."""
    if config.join_file is not None:
        return parse_token(Path(config.join_file).read_text("ascii").strip())
    return parse_token(config.join) if config.join is not None else None
