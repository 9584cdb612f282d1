"""What litestream is told, and what its words mean.  Pure.

`litestream replicate` watches the mirror and sends what changed; `sync -wait` over its control socket
says whether all of it has arrived, which its exit status cannot: it tries for ever.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mesh.errors import BackupError, NotFoundError
from node.backup.destination import Destination
from node.media.child import AnyPath, RunResult, text_of

SYNC_S: Final = 60
"""The whole ledger may have to be sent: a hundred MB at two MB/s.  What takes longer goes on meanwhile."""
SNAPSHOT_HOURS: Final = 24
RETENTION_HOURS: Final = 7 * 24
"""A week of moments can be gone back to, each to about half a minute."""
_SAID_CHARS: Final = 400
"""S3's errors are long; the end of them says what is wrong."""
_ONE_TIME: Final = re.compile(r"(RequestID|HostID): [^,]*, ")
"""Differs each time, and would make an error that lasts look like a new one."""
_NOTHING: Final = "no matching backup files available"


@dataclass(frozen=True, slots=True, kw_only=True)
class SftpKeys:
    """Our private key's file and the host's public key, for sftp; both None elsewhere."""

    key: str | None = None
    host_key: str | None = None


def configuration(
    database: AnyPath,
    destination: Destination,
    keys: SftpKeys,
    socket: AnyPath | None = None,
) -> str:
    """The text of litestream's configuration, which is YAML: JSON is part of that.

    It holds no secret: those of S3 are in the environment, that of sftp is a file's name.
    """
    replica: dict[str, object]
    if destination.kind == "folder":
        replica = {"type": "file", "path": destination.base}
    else:
        replica = {"url": destination.text}
    if destination.kind == "sftp":
        replica |= {"key-path": keys.key, "host-key": keys.host_key}
    document: dict[str, object] = {
        "logging": {"level": "warn", "stderr": True},
        "snapshot": {"interval": f"{SNAPSHOT_HOURS}h", "retention": f"{RETENTION_HOURS}h"},
        "dbs": [{"path": text_of(database), "replica": replica}],
    }
    if socket is not None:
        document["socket"] = {"enabled": True, "path": text_of(socket)}
    return json.dumps(document, ensure_ascii=False, indent=1)


def replicate_command(program: str, config: AnyPath) -> Sequence[str]:
    """Runs until it is killed."""
    return (program, "replicate", "-no-expand-env", "-config", text_of(config))


def sync_command(program: str, socket: AnyPath, database: AnyPath) -> Sequence[str]:
    """Ends with 0 when all that the database holds has arrived."""
    words = ("-socket", text_of(socket), "-wait", "-timeout", str(SYNC_S), text_of(database))
    return (program, "sync", *words)


def restore_command(
    program: str, config: AnyPath, database: AnyPath, target: AnyPath, timestamp: str | None
) -> Sequence[str]:
    """Brings back what the destination of `database` holds, checked page by page."""
    moment = () if timestamp is None else ("-timestamp", timestamp)
    check = ("-integrity-check", "full", "-no-expand-env", "-config", text_of(config))
    return (program, "restore", *check, *moment, "-o", text_of(target), text_of(database))


def said(result: RunResult) -> str:
    """What it gave as its reason."""
    if result.reason == "time":
        return "it did not answer in time"
    lines = [line.strip() for line in result.stderr.tail.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("Error: ")]
    text = (told or lines or [f"it ended with {result.exit_code or result.signal}"])[-1]
    text = _ONE_TIME.sub("", text.removeprefix("Error: ").replace("sync failed: ", ""))
    if "context deadline exceeded" in text:
        return f"the destination has not taken everything within {SYNC_S} s"
    return text if len(text) <= _SAID_CHARS else f"… {text[-_SAID_CHARS:]}"


def not_sent(destination: Destination, why: str) -> BackupError:
    """It runs and cannot write."""
    return BackupError(
        f"litestream cannot write to {destination.text}: {why}",
        "check [backup] litestream, its keys in the node's environment, and the space there",
    )


def not_restored(destination: Destination, result: RunResult) -> BackupError | NotFoundError:
    """It found nothing, or could not read it."""
    why = said(result)
    if _NOTHING in why:
        return NotFoundError(
            f"{destination.text} holds no ledger of that time",
            "list what is there, and name one MESH-EPOCH-NODE of it; or a later moment",
        )
    return BackupError(
        f"litestream cannot restore from {destination.text}: {why}",
        "check the address and its keys in the environment, or name another MESH-EPOCH-NODE",
    )
