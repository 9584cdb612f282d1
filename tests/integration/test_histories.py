"""Clients against a real mesh whose coordinator is killed: nothing acknowledged is lost or doubled."""

import contextlib
from collections import Counter
from functools import partial
from pathlib import Path
from threading import Event

from ledger.queries import AppliedState, Reader
from tests.cluster import Node, cluster, form, wait_for
from tests.films import make_film
from tests.linearizability import Submit
from tests.mesh_clients import Api, Client, History, RefusedError, end, reads_can_be_consistent

CLIENTS_PER_NODE = 2
NAMES = ("one", "two", "three")
_NEVER = Event()


def jobs_by_film(node: Node) -> dict[str, list[str]]:
    """Ids of all jobs in a node's own ledger, read beside the node."""
    found: dict[str, list[str]] = {}
    with contextlib.closing(Reader(str(node.home / "ledger.db"))) as reader:
        for job in reader.jobs(limit=1_000_000):
            found.setdefault(job.source, []).append(job.id)
    return found


def applied(node: Node) -> AppliedState:
    """How far its ledger is, and the checksum there."""
    with contextlib.closing(Reader(str(node.home / "ledger.db"))) as reader:
        return reader.applied()


def kill_coordinator(nodes: list[Node]) -> Node:
    """SIGKILL to the node that leads, as the others say."""

    def leads() -> Node | None:
        (name,) = {node.status()["coordinator"] for node in nodes}
        return next((node for node in nodes if node.name == name), None)

    leader = wait_for("all name one coordinator", leads, 15)
    leader.kill()
    return leader


def progressed(history: History) -> None:
    """Waits until a submission that begins after this moment is acknowledged."""
    before = len(history.accepted())
    wait_for("a submission is acknowledged", lambda: len(history.accepted()) > before + 3, 15)


def test_the_coordinator_is_killed_twice_while_clients_submit_and_read(tmp_path: Path) -> None:
    with cluster(tmp_path, NAMES) as nodes:
        form(nodes, "--slots", "0")
        wait_for("three voters", lambda: len(nodes[0].status()["voters"]) == 3, 10)
        film = make_film(tmp_path / "film.mp4", seconds=1)
        with contextlib.closing(Api(nodes[0].home)) as api:
            consistent = reads_can_be_consistent(api)
        history, stop = History(), Event()
        clients = [
            Client(f"{node.name}-{n}", node, film, history, stop, consistent=consistent)
            for node in nodes
            for n in range(CLIENTS_PER_NODE)
        ]
        for client in clients:
            client.start()
        progressed(history)
        for _ in range(2):
            dead = kill_coordinator(nodes)
            progressed(history)
            dead.start("--slots", "0")
            wait_for(f"{dead.name} answers", partial(_answers, dead), 15)
            progressed(history)
        end(clients, stop)
        wait_for("all are as far as each other", lambda: len({applied(n) for n in nodes}) == 1, 20)

        asked = Counter(type(said.call.answer).__name__ for said in history.said)
        reads = [s for s in history.said if not isinstance(s.call.operation, Submit)]
        print(f"{len(history.said)} calls, {len(reads)} reads, {dict(asked)}")
        assert history.faults() == []
        accepted = history.accepted()
        assert len(accepted) > 20
        assert len(reads) > 20
        for node in nodes:
            there = jobs_by_film(node)
            lost = {key: ids for key, ids in accepted.items() if there.get(key, []) != ids}
            assert lost == {}, node.name
            assert [key for key, ids in there.items() if len(ids) > 1] == []


def _answers(node: Node) -> bool:
    with contextlib.closing(Api(node.home)) as api:
        try:
            status, _ = api.ask("/api/v1/jobs?limit=1")
        except RefusedError:
            return False
        return status == 200
