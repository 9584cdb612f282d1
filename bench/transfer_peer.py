"""One side of the product's transfer as a process of its own, driven by lines of JSON.

    transfer_peer.py serve FOLDER KEYS [HOST [PORT]]   every file below FOLDER by an opaque handle
    transfer_peer.py fetch KEYS                        what the lines on its stdin name

What a node runs, nothing beside it: `ZmqBulkServer` with a member table and a table of handles,
`ZmqBulkClient` with `PartialFile`, as `node.work.small_files` and `node.work.films` call it.  A line of
stdin is one task; its answer is one line of stdout.
"""

import json
import sys
from pathlib import Path
from typing import Any

import structlog

from mesh import clock
from mesh.bulk_client_zmq import ZmqBulkClient
from mesh.bulk_server_zmq import ZmqBulkServer
from mesh.errors import NotAllowedError
from mesh.ids import NodeId, node_id_of
from mesh.limits import LinkRates, Rates
from mesh.memory_posix import keep_freed_memory
from mesh.transfer import Manifest, Source, Wanted
from mesh.transfer_files import FileSource, PartialFile, make_manifest
from mesh.transport import KeyPair

LOOPBACK = "127.0.0.1"


def keys_of(path: Path) -> tuple[KeyPair, KeyPair]:
    """The owner's and the member's keys, as `bench_transfer` wrote them."""
    halves = [bytes.fromhex(half) for half in json.loads(path.read_text())]
    return KeyPair(halves[0], halves[1]), KeyPair(halves[2], halves[3])


def answer(**values: object) -> None:
    """One line for the bench."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def serve(folder: Path, keys: Path, host: str = LOOPBACK, port: str = "0") -> None:
    """Serves until stdin ends; tells port and handles first, and what it sent when asked."""
    owner, member = keys_of(keys)
    table: dict[str, tuple[Path, Manifest]] = {}
    tables = keys.parent / "tables"

    def source_for(node: NodeId, handle: str) -> Source:
        found = table.get(handle)
        if found is None or node != node_id_of(member.public):
            raise NotAllowedError("this handle is not yours")
        path, manifest = found
        return FileSource(path, manifest, tables / manifest.digest)

    for number, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        table[f"source/{number}"] = (path, make_manifest(path, tables=tables))
    server = ZmqBulkServer(owner, source_for, host=host, port=int(port))
    server.set_trust({member.public: node_id_of(member.public)})
    server.start()
    files = {str(p.relative_to(folder)): [h, m.size, m.digest] for h, (p, m) in table.items()}
    answer(port=server.port, files=files)
    for line in sys.stdin:
        wanted = json.loads(line)
        if "up" in wanted:
            server.set_rates(LinkRates(node=Rates(up=wanted["up"])))
        answer(sent=sum(peer.bytes_out for peer in server.counters().peers.values()))
    server.stop()


def fetch(keys: Path) -> None:
    """Fetches what each line names: {host, port, folder, files: [[name, handle, size, digest]]}."""
    owner, member = keys_of(keys)
    client = ZmqBulkClient(member)
    peer = node_id_of(owner.public)

    def brought(task: dict[str, Any]) -> int:
        files = iter(task["files"])

        def next_file() -> Wanted | None:
            item = next(files, None)
            if item is None:
                return None
            name, handle, size, digest = item
            target = PartialFile(Path(task["folder"]) / name)
            return Wanted(handle=handle, expected=Manifest(size=size, digest=digest), target=target)

        done = 0
        for one in client.fetch_many(
            peer=peer,
            public_key=owner.public,
            hosts=[task["host"]],
            port=task["port"],
            next_file=next_file,
        ):
            if one.error is not None:
                raise one.error
            done += one.wanted.expected.size
        return done

    for line in sys.stdin:
        task: dict[str, Any] = json.loads(line)
        started_ms = clock.monotonic_ms()
        done = brought(task)
        answer(
            bytes=done,
            seconds=(clock.monotonic_ms() - started_ms) / 1_000,
            received=sum(peer.bytes_in for peer in client.counters().peers.values()),
        )
    client.close()


def main() -> None:
    """Runs the side that the first argument names."""
    # stdout belongs to the answers.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    keep_freed_memory()
    match sys.argv[1:]:
        case ["serve", folder, keys, *where]:
            serve(Path(folder), Path(keys), *where)
        case ["fetch", keys]:
            fetch(Path(keys))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
