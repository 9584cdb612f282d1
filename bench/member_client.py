"""A member of a mesh that only proposes: loads the coordinator through the mesh's own sockets.

    member_client.py HOME LEDGER LEADER IN_FLIGHT SECONDS [--jobs N] [--commands N]

HOME is the home of a stopped node that belongs to the mesh: its key is used, its log is not.
LEDGER is the file of a running node (who belongs), LEADER the coordinator's node id.  The coordinator authenticates this
process like every node (CURVE, member table, authority of each command).  Prints one line of JSON.
"""

import argparse
import asyncio
import itertools
import json
import os
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ledger.commands import Command, ReportNode, seal
from ledger.jobs import Member
from ledger.queries import Reader
from ledger.submissions import SubmitFilms
from mesh import clock
from mesh.control_zmq import ZmqControl
from mesh.errors import DarkStreamError
from mesh.ids import NodeId, RaftId, sortable_id
from mesh.messages import PROTOCOL_VERSION, Hello, Request, Response
from mesh.trust_files import load_or_create_identity
from node.consensus.batches import Batches
from node.media.profiles import BUILT_IN
from node.membership.address_book_files import AddressFile
from node.requests import Requests

TRY_S: Final = 5.0
WARM_UP: Final = 0.2
"""This part of the time comes before the measured one."""
PROFILE: Final = BUILT_IN["web"]
PROFILE_JSON: Final = PROFILE.to_json()


@dataclass(slots=True)
class Load:
    """What a run found: latencies in microseconds of every acknowledged call."""

    latencies_us: list[int] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)


class MemberClient:
    """The sockets and calls of a member, without consensus and without a ledger."""

    def __init__(self, home: Path, ledger: Path) -> None:
        identity = load_or_create_identity(home)
        self.node = identity.node_id
        self._control = ZmqControl(identity.keys, host="127.0.0.1")
        self._requests = Requests(self._control.send)
        self._batches = Batches(self._requests, TRY_S)
        reader = Reader(str(ledger))
        self._members = reader.members(active_only=True)
        mesh = reader.mesh()
        assert mesh is not None
        self._mesh = mesh.id
        reader.close()
        self._places = {NodeId(p.node): p for p in AddressFile(home / "peers.json").load()}
        self.others = [NodeId(m.node) for m in self._members if m.node in self._places]

    async def __aenter__(self) -> "MemberClient":
        await self._control.start()
        self._control.set_trust({m.public_key: NodeId(m.node) for m in self._members})
        for member in self._members:
            place = self._places.get(NodeId(member.node))
            if place is not None and member.node != self.node:
                node = NodeId(member.node)
                self._control.connect(node, member.public_key, place.hosts, place.control_port)
        self._tasks = [asyncio.create_task(self._pump()), asyncio.create_task(self._greet())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._requests.close()
        await self._control.stop()

    async def _pump(self) -> None:
        while True:
            received = await self._control.receive()
            if isinstance(received.message, Request | Response):
                self._requests.receive(received.node, received.message)

    async def _greet(self) -> None:
        own = next(m for m in self._members if m.node == self.node)
        while True:
            for node in self.others:
                self._control.send(node, self._hello(own))
            await asyncio.sleep(0.5)

    def _hello(self, own: Member) -> Hello:
        return Hello(
            raft_id=RaftId(own.raft_id),
            mesh=self._mesh,
            protocol=PROTOCOL_VERSION,
            incarnation="bench",
            name=own.name,
            hosts=("127.0.0.1",),
            control_port=self._control.port,
            bulk_port=self._control.port,
            join_port=self._control.port,
            members_epoch=0,
            known=(),
            status=b"\x80",
        )

    async def propose(self, leader: NodeId, data: bytes) -> None:
        """Until the coordinator says that it is committed and applied.  Raises what it meets."""
        outcome = await self._batches.propose(leader, data)
        if not outcome.ok:
            raise DarkStreamError(f"{outcome.code}: {outcome.what}")


def submission(owner: str, jobs: int) -> bytes:
    """A sealed submission of so many new jobs, as a node would propose it."""
    now_ms = clock.wall_ms()
    ids = tuple(sortable_id("j", now_ms, secrets.token_bytes(5)) for _ in range(jobs))
    films = SubmitFilms(
        owner=owner,
        profile=PROFILE.name,
        profile_json=PROFILE_JSON,
        overwrite=False,
        priority=0,
        tenant="",
        split=False,
        ids=ids,
        sources=tuple(f"/home/bench/films/{one}.mkv" for one in ids),
        source_bytes=(1 << 30,) * jobs,
        source_mtimes_ns=(1,) * jobs,
        source_inodes=(1,) * jobs,
        outputs=tuple(f"/home/bench/films/{one}.web.mp4" for one in ids),
    )
    return _sealed(films, owner)


def report(owner: str) -> bytes:
    """A sealed report of what a node can do: the smallest command, one row."""
    said = ReportNode(
        node=owner,
        ffmpeg="7.1",
        encoders=("libsvtav1", "libx264", "libx265"),
        slots=2,
        cpus=8,
        platform="Linux",
        version="bench",
        devices=secrets.token_hex(8),
    )
    return _sealed(said, owner)


def _sealed(command: Command, owner: str) -> bytes:
    return seal(
        command,
        command_id=secrets.token_hex(12),
        proposer=owner,
        proposed_at_ms=clock.wall_ms(),
        cause="bench",
    )


async def load(
    client: MemberClient,
    leader: NodeId,
    *,
    in_flight: int,
    seconds: float,
    jobs: int,
    commands: int | None = None,
) -> Load:
    """So many callers, each with one call out at a time, for a time or until all commands are out."""
    found = Load()
    numbers = itertools.count()
    now = time.perf_counter_ns()
    warm = now + int(seconds * WARM_UP * 1e9) if commands is None else now
    end = now + int(seconds * (1 + WARM_UP) * 1e9)

    def more(begin: int) -> bool:
        return begin < end if commands is None else next(numbers) < commands

    async def tried(data: bytes) -> bool:
        try:
            await client.propose(leader, data)
        except DarkStreamError as error:
            name = f"{error.code}: {error.what[:60]}"
            found.failures[name] = found.failures.get(name, 0) + 1
            return False
        return True

    async def caller() -> None:
        while more(begin := time.perf_counter_ns()):
            data = submission(client.node, jobs) if jobs else report(client.node)
            done = await tried(data)
            while not done and commands is not None:  # the same id again: it is never done twice
                await asyncio.sleep(0.1)
                done = await tried(data)
            if done and begin >= warm:
                found.latencies_us.append((time.perf_counter_ns() - begin) // 1_000)

    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return found


async def measure(given: argparse.Namespace) -> dict[str, object]:
    async with MemberClient(given.home, given.ledger) as client:
        leader = NodeId(given.leader)
        async with asyncio.timeout(20):
            while True:  # until both directions stand
                try:
                    await client.propose(leader, submission(client.node, 1))
                    break
                except DarkStreamError:
                    await asyncio.sleep(0.05)
        cpu, begin = os.times(), time.perf_counter_ns()
        found = await load(
            client,
            leader,
            in_flight=given.in_flight,
            seconds=given.seconds,
            jobs=given.jobs,
            commands=given.commands,
        )
        used, passed = os.times(), (time.perf_counter_ns() - begin) / 1e9
    ordered = sorted(found.latencies_us)
    return {
        "commands": len(ordered),
        "per_s": len(ordered) / (given.seconds if given.commands is None else passed),
        "p50_ms": ordered[len(ordered) // 2] / 1e3 if ordered else None,
        "p99_ms": ordered[int(len(ordered) * 0.99)] / 1e3 if ordered else None,
        "max_ms": ordered[-1] / 1e3 if ordered else None,
        "client_cpu": (used.user + used.system - cpu.user - cpu.system) / passed,
        "failures": found.failures,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("home", type=Path)
    parser.add_argument("ledger", type=Path)
    parser.add_argument("leader")
    parser.add_argument("in_flight", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument(
        "--jobs", type=int, default=1, help="in one command; 0: a node reports itself"
    )
    parser.add_argument("--commands", type=int, help="so many instead of SECONDS")
    print(json.dumps(asyncio.run(measure(parser.parse_args()))))


if __name__ == "__main__":
    main()
