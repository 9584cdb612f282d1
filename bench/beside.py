"""What a transfer at full speed does to consensus: the coordinator serves bulk data and commands at once.

    .venv/bin/python bench/beside.py [--quick]

Three voters and a member from outside (`member_client.py`), on loopback.  The member proposes the
smallest command, one at a time, first alone, then while a second process fetches the coordinator's
snapshot through its bulk port over and over with eight transfers at once.  Aims: p99 under 20 ms
beside the transfer, and no election.  `ratio` is p99 beside it by p99 alone.
"""

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from bench_ledger import mesh, ours
from member_client import MemberClient

from mesh.codec import pack, unpack
from mesh.errors import DarkStreamError
from mesh.ids import NodeId
from mesh.trust_files import load_or_create_identity
from node.address_book_files import AddressFile
from node.quarantine import ASK
from tests.cluster import Node

P99_AIM_MS = 20
PEER = Path(__file__).with_name("transfer_peer.py")
AT_ONCE = 8


async def snapshot_of(client: Node, leader: Node, leader_id: NodeId) -> tuple[str, int, str]:
    """Handle, size and digest of a snapshot that the coordinator makes for whoever asks."""
    async with MemberClient(client.home, leader.home / "ledger.db") as member:
        for _ in range(100):
            with contextlib.suppress(DarkStreamError):
                body = await member._requests.call(leader_id, ASK, pack(0), timeout_s=5)
                _, _, size, digest, handle = unpack(body)
                return handle, size, digest
            await asyncio.sleep(0.1)
    raise SystemExit("error[bench]: the coordinator makes no snapshot")


class Load:
    """Fetches the same snapshot over and over until it is over."""

    def __init__(
        self, folder: Path, client: Node, leader: NodeId, wanted: tuple[str, int, str]
    ) -> None:
        keys = load_or_create_identity(client.home).keys
        place = next(p for p in AddressFile(client.home / "peers.json").load() if p.node == leader)
        members = {one["id"]: one for one in client_members(client)}
        # The owner's secret is not ours to know, and not needed to fetch.
        halves = [bytes.fromhex(members[leader]["public_key"]), bytes(32), keys.public, keys.secret]
        file = folder / "keys.json"
        file.write_text(json.dumps([half.hex() for half in halves]))
        pipe = subprocess.PIPE
        argv = [sys.executable, str(PEER), "fetch", str(file)]
        self._process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True)
        out = folder / "out"
        out.mkdir()
        self._task = {
            "host": place.hosts[0],
            "port": place.bulk_port,
            "folder": str(out),
            "files": [[f"{number}", *wanted] for number in range(4 * AT_ONCE)],
        }
        self._over = threading.Event()
        self.bytes = 0
        self.seconds = 0.0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        while not self._over.is_set():
            self._process.stdin.write(json.dumps(self._task) + "\n")
            self._process.stdin.flush()
            said: dict[str, Any] = json.loads(self._process.stdout.readline())
            self.bytes += said["bytes"]
            self.seconds += said["seconds"]

    def close(self) -> None:
        """Ends after the round that runs."""
        self._over.set()
        self._thread.join()
        self._process.communicate()


def client_members(client: Node) -> list[dict[str, Any]]:
    """Node ids and public keys, as the stopped member's own replica has them."""
    question = "SELECT node AS id, lower(hex(public_key)) AS public_key FROM members"
    found: list[dict[str, Any]] = client.cli("ledger", "query", question)["rows"]
    return found


def term_of(voters: list[Node]) -> int:
    """The highest term that anybody knows."""
    return max(int(node.status()["term"]) for node in voters)


def main() -> int:
    """Measures and prints; always 0: a bench tells, it does not judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 s each instead of 10")
    seconds = 2.0 if parser.parse_args().quick else 10.0
    with tempfile.TemporaryDirectory(prefix="darkstream-bench-", dir="/dev/shm") as name:
        folder = Path(name)
        with mesh(folder) as (voters, client):
            shown = next(n for n in voters[0].cli("nodes")["nodes"] if n["coordinator"])
            leader = next(node for node in voters if node.name == shown["name"])
            ours(voters, client, 16, 3, jobs=500)  # so that there is something to fetch
            wanted = asyncio.run(snapshot_of(client, leader, NodeId(shown["id"])))
            before = term_of(voters)
            alone = ours(voters, client, 1, seconds, jobs=0)
            load = Load(folder, client, NodeId(shown["id"]), wanted)
            try:
                beside = ours(voters, client, 1, seconds, jobs=0)
            finally:
                load.close()
            elections = term_of(voters) - before
    speed = load.bytes / max(0.001, load.seconds) / 1e6
    print(f"{'':24}{'p50':>10}{'p99':>10}")
    for label, figures in (("alone", alone), (f"beside {speed:.0f} MB/s", beside)):
        print(f"{label:24}{figures.p50_ms:>7.2f} ms{figures.p99_ms:>7.2f} ms")
    print(f"{'aim':24}{'':10}{P99_AIM_MS:>7.2f} ms; elections: {elections}, aim 0")
    line = {"bench": "beside", "ratio": round(beside.p99_ms / alone.p99_ms, 3)}
    line |= {"p99_ms": beside.p99_ms, "elections": elections, "mb_s": round(speed, 1)}
    print(json.dumps(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
