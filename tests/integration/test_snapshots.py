"""Whole ledgers between nodes: over real sockets, through every crash point, and in real meshes."""

import asyncio
import contextlib
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import apsw
import httpx
import pytest

from ledger.log_sqlite import LogStore
from ledger.queries import AppliedState, Reader
from ledger.store_sqlite import LedgerStore
from mesh.bulk_client_zmq import ZmqBulkClient
from mesh.bulk_server_zmq import ZmqBulkServer
from mesh.errors import NotFoundError, SourceChangedError, StorageError, TransferError
from mesh.ids import NodeId, RaftId
from mesh.log import Base, Entry, HardState
from mesh.membership import Configuration
from mesh.protocol import Raft, Timing
from node.consensus.compaction import PATIENCE
from node.consensus.snapshot_duty import Snapshot
from node.consensus.snapshots import INCOMING, SNAPSHOTS_MAX, SnapshotShelf, recover_installation
from node.work.sharing import Contact
from tests.cluster import Node, cluster, wait_for
from tests.ledger_helper import Ledger
from tests.meshwork import key_pair, node_of

JOBS = 40
RAFT = RaftId("anna.00000001")
CONFIGURATION = Configuration.of((RAFT,), ())


class Home:
    """One node's log, ledger, snapshots and bulk port, without the rest of the node."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.keys = key_pair()
        self.node = node_of(self.keys)
        self.folder = folder
        self.log = LogStore(str(folder / "raft.db"), incarnation="00000001")
        self.ledger = LedgerStore(str(folder / "ledger.db"))
        self.client = ZmqBulkClient(self.keys)
        self.contacts: dict[NodeId, Contact] = {}
        self.shelf = SnapshotShelf(
            folder=folder / "snapshots",
            log=self.log,
            ledger=self.ledger,
            client=self.client,
            contacts=self.contacts.__getitem__,
        )
        self.server = ZmqBulkServer(self.keys, self.shelf.source_for, host="127.0.0.1")
        self.server.start()

    def knows(self, other: "Home") -> None:
        self.contacts[other.node] = Contact(
            public_key=other.keys.public, hosts=("127.0.0.1",), port=other.server.port
        )

    def close(self) -> None:
        self.client.close()
        self.shelf.close()
        self.server.stop()
        self.ledger.close()
        self.log.close()


@pytest.fixture
def homes(tmp_path: Path) -> Generator[tuple[Home, Home]]:
    filled = Ledger(str(tmp_path / "filled.db")).formed("bert")
    filled.planned(*(f"j{n}" for n in range(JOBS)))
    filled.store.close()
    (tmp_path / "leader").mkdir()
    (tmp_path / "filled.db").rename(tmp_path / "leader" / "ledger.db")
    with contextlib.suppress(FileNotFoundError):
        (tmp_path / "filled.db-wal").rename(tmp_path / "leader" / "ledger.db-wal")
    leader, follower = Home(tmp_path / "leader"), Home(tmp_path / "follower")
    follower.knows(leader)
    leader.server.set_trust({follower.keys.public: follower.node})
    yield leader, follower
    leader.close()
    follower.close()


def silent(_: int, __: int) -> None:
    pass


def base_of(snapshot: Snapshot) -> Base:
    return Base(snapshot.index, snapshot.term, CONFIGURATION.encode())


def applied(home: Home) -> AppliedState:
    reader = Reader(home.ledger.path)
    try:
        return reader.applied()
    finally:
        reader.close()


# --- the shelf --------------------------------------------------------------------------------------


def test_a_snapshot_goes_over_the_wire_and_becomes_the_ledger_of_open_readers(
    homes: tuple[Home, Home],
) -> None:
    leader, follower = homes
    reader = Reader(follower.ledger.path)
    assert reader.applied().index == 0

    async def move() -> Snapshot:
        snapshot = await leader.shelf.newest(1)
        await follower.shelf.fetch(leader.node, snapshot, silent)
        return snapshot

    snapshot = asyncio.run(move())
    follower.shelf.begin(base_of(snapshot))
    follower.shelf.install(snapshot)
    assert reader.applied() == applied(leader), "the same connection, no reopening"
    assert follower.ledger.applied_index == snapshot.index
    follower.shelf.finish()
    assert list((follower.folder / "snapshots").iterdir()) == []
    reader.close()


def test_snapshots_are_made_once_reused_and_bounded(homes: tuple[Home, Home]) -> None:
    leader, _ = homes

    async def make() -> list[Snapshot]:
        made = await asyncio.gather(*(leader.shelf.newest(1) for _ in range(5)))
        for _ in range(4):
            state = leader.ledger.applied_index + 1
            leader.ledger.apply([Entry(state, 1, "empty", b"")])
            made.append(await leader.shelf.newest(state))
        return made

    made = asyncio.run(make())
    assert len(set(made[:5])) == 1
    assert len(set(made)) == 5
    assert len(list((leader.folder / "snapshots").iterdir())) == SNAPSHOTS_MAX
    leader.shelf.source_for(NodeId("x"), made[-1].handle).close()
    with pytest.raises(NotFoundError):
        leader.shelf.source_for(NodeId("x"), made[0].handle)
    with pytest.raises(NotFoundError):
        leader.shelf.source_for(NodeId("x"), "snapshot-../../raft.db")
    with pytest.raises(StorageError):
        asyncio.run(leader.shelf.newest(10_000))


def test_another_snapshot_than_the_one_offered_is_not_installed(homes: tuple[Home, Home]) -> None:
    leader, follower = homes

    async def fetch(**changes: object) -> None:
        told = await leader.shelf.newest(1)
        facts = {name: getattr(told, name) for name in told.__slots__} | changes
        await follower.shelf.fetch(leader.node, Snapshot(**facts), silent)  # type: ignore[arg-type]  # changed on purpose

    with pytest.raises(SourceChangedError):
        asyncio.run(fetch(digest="0" * 64))
    with pytest.raises(TransferError, match="not 7"):
        asyncio.run(fetch(index=7))
    with pytest.raises(NotFoundError):
        asyncio.run(fetch(handle="snapshot-1-0"))
    assert follower.ledger.applied_index == 0


def test_what_was_fetched_whole_is_not_fetched_again(homes: tuple[Home, Home]) -> None:
    leader, follower = homes
    snapshot = asyncio.run(leader.shelf.newest(1))
    asyncio.run(follower.shelf.fetch(leader.node, snapshot, silent))
    leader.server.stop()
    asyncio.run(follower.shelf.fetch(leader.node, snapshot, silent))
    (follower.folder / "snapshots" / INCOMING).write_bytes(b"x" * snapshot.size)
    follower.client.close()
    with pytest.raises(Exception, match="stop"):
        asyncio.run(follower.shelf.fetch(leader.node, snapshot, silent))


# --- crash points -----------------------------------------------------------------------------------

STEPS = ("fetched", "noted", "replaced", "restarted", "forgotten")


@pytest.mark.parametrize("crash", STEPS)
@pytest.mark.parametrize("old_entries", [0, 3])
def test_after_a_crash_log_and_ledger_fit(
    homes: tuple[Home, Home], crash: str, old_entries: int
) -> None:
    """Reopened where the crash was: either still the old state or the new one, never between."""
    leader, follower = homes
    entries = [Entry(n, 1, "empty", b"") for n in range(1, old_entries + 1)]
    follower.log.persist(HardState(term=5, vote=RAFT, commit=old_entries), entries)
    follower.ledger.apply(entries)
    snapshot = asyncio.run(leader.shelf.newest(1))
    base = base_of(snapshot)
    asyncio.run(follower.shelf.fetch(leader.node, snapshot, silent))
    steps: dict[str, Callable[[], None]] = {
        "noted": lambda: follower.shelf.begin(base),
        "replaced": lambda: follower.shelf.install(snapshot),
        "restarted": lambda: follower.log.restart_from(base, HardState(5, RAFT, base.index)),
        "forgotten": follower.shelf.finish,
    }
    for step in STEPS[1 : STEPS.index(crash) + 1]:
        steps[step]()
    follower.log.close()
    follower.ledger.close()

    follower.log = LogStore(str(follower.folder / "raft.db"), incarnation="00000009")
    follower.ledger = LedgerStore(str(follower.folder / "ledger.db"))
    recover_installation(follower.log, follower.ledger)
    done = crash in STEPS[2:]
    assert follower.ledger.applied_index == (snapshot.index if done else old_entries)
    assert follower.log.last_index() == (snapshot.index if done else old_entries)
    assert follower.log.base() == (base if done else Base())
    assert (follower.log.hard_state().term, follower.log.hard_state().vote) == (5, RAFT)
    raft = Raft(
        raft_id=RAFT,
        storage=follower.log,
        timing=Timing(),
        random=Random(1),
        applied_index=follower.ledger.applied_index,
        now_ms=0,
    )
    assert raft.configuration == (CONFIGURATION if done else None)
    recover_installation(follower.log, follower.ledger)
    assert follower.log.get_value("replacing") is None
    if done:
        assert applied(follower) == applied(leader)


def test_a_ledger_that_was_lost_is_told_and_not_guessed(homes: tuple[Home, Home]) -> None:
    _, follower = homes
    follower.log.restart_from(Base(9, 1, b""), HardState(1, None, 9))
    with pytest.raises(StorageError, match="the log begins at 9"):
        recover_installation(follower.log, follower.ledger)


# --- meshes -----------------------------------------------------------------------------------------

KEEP = 64
COMMANDS = 1_500


def configured(node: Node) -> tuple[str, str]:
    file = node.user_home / "small.toml"
    file.write_text(f"[ledger]\nkeep_entries = {KEEP}\n")
    return "--config", str(file)


def many_commands(node: Node, count: int) -> None:
    """Each an acknowledged change: invitations, which need no films."""
    address = (node.home / "api.address").read_text().strip()
    token = (node.home / "api.token").read_text().strip()
    head = {"authorization": f"Bearer {token}"}
    with (
        httpx.Client(base_url=f"http://{address}", headers=head, trust_env=False) as client,
        ThreadPoolExecutor(16) as threads,
    ):
        body = {"uses": 1, "ttl_s": 1}
        asked = [
            threads.submit(client.post, "/api/v1/tokens", json=body, timeout=60)
            for _ in range(count)
        ]
        for one in asked:
            assert one.result().is_success, one.result().text


def metric(node: Node, name: str) -> float:
    address = (node.home / "api.address").read_text().strip()
    text = httpx.get(f"http://{address}/metrics", trust_env=False).text
    return next(
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith(f"darkstream_{name} ")
    )


def state_of(node: Node) -> AppliedState:
    reader = Reader(str(node.home / "ledger.db"))
    try:
        return reader.applied()
    finally:
        reader.close()


def begun(node: Node, times: int, behind: int) -> bool:
    asked = node.errors.read_text().count("snapshot needed")
    return asked >= times or state_of(node).index > behind


def equal(nodes: list[Node]) -> None:
    wait_for(
        "equal checksums at one index",
        lambda: len({(s.index, s.checksum) for s in map(state_of, nodes)}) == 1,
        30,
    )


@pytest.mark.slow
def test_who_was_away_and_who_comes_late_get_a_snapshot(tmp_path: Path) -> None:
    with cluster(tmp_path, ["anna", "bert", "cleo", "dora"]) as nodes:
        anna, _, cleo, dora = nodes
        form_small(nodes[:3])
        wait_for("three voters", lambda: len(anna.status()["voters"]) == 3, 20)
        cleo.kill()
        behind = state_of(cleo).index
        many_commands(anna, COMMANDS)
        wait_for("the log is cut off", lambda: metric(anna, "log_base_index") > behind, 20)
        kept = state_of(anna).index - metric(anna, "log_base_index")
        assert kept < 16 * KEEP
        # Killed as soon as it begins, wherever that is: what is left must start again, and a
        # ledger that was replaced already must be followed by its log.
        for times in range(1, 4):
            cleo.start(*configured(cleo))
            wait_for("it begins, or goes on behind it", lambda: begun(cleo, times, behind), 20)  # noqa: B023 - called here
            cleo.kill()
            if state_of(cleo).index > behind:
                break
            many_commands(anna, 2 * KEEP)
        # More than is held for a snapshot that was offered and never answered.
        many_commands(anna, (PATIENCE + 3) * KEEP)
        wait_for(
            "the log is cut off again",
            lambda: metric(anna, "log_base_index") > state_of(cleo).index,
            20,
        )
        cleo.start(*configured(cleo)).ready()
        equal(nodes[:3])
        # A second one where the log went past the first, whose offer is repeated meanwhile.
        assert metric(cleo, "snapshots_installed_total") in (1, 2)
        assert metric(anna, "snapshots_installed_total") == 0

        dora.start("--join", anna.token(), *configured(dora)).ready().sees(4)
        equal(nodes)
        assert metric(dora, "snapshots_installed_total") == 1
        many_commands(dora, 20)
        equal(nodes)
        # A restart after an installation: nothing but the base and what follows is in the log.
        cleo.kill()
        cleo.start(*configured(cleo)).ready()
        many_commands(cleo, 20)
        equal(nodes)
        # A wiped data directory under the same key: another incarnation, which gets all anew.
        cleo.kill()
        for name in ("raft.db", "ledger.db"):
            for left in cleo.home.glob(f"{name}*"):
                left.unlink()
        cleo.start("--join", anna.token(), *configured(cleo)).ready()
        equal(nodes)
        assert metric(cleo, "snapshots_installed_total") == 1
        for node in nodes:
            assert node.cli("jobs", "--consistent") == {"jobs": [], "next": None}
            assert len(list((node.home / "snapshots").iterdir())) <= SNAPSHOTS_MAX


@pytest.mark.slow
def test_a_wrong_replica_says_so_and_is_rebuilt(tmp_path: Path) -> None:
    with cluster(tmp_path, ["anna", "bert", "cleo"]) as nodes:
        anna, bert, cleo = nodes
        form_small(nodes)
        many_commands(anna, 50)
        equal(nodes)
        bert.kill()
        database = apsw.Connection(str(bert.home / "ledger.db"))
        database.execute("UPDATE state SET checksum = ?", (b"\x07" * 32,))
        database.close()
        bert.start(*configured(bert)).ready()
        wait_for(
            "it is said on its faces",
            lambda: (
                any("error[divergence]" in note for note in bert.status()["notes"])
                or metric(bert, "divergences_total") == 1
            ),
            30,
        )
        wait_for("it is rebuilt", lambda: metric(bert, "snapshots_installed_total") == 1, 60)
        many_commands(cleo, 10)
        equal(nodes)
        assert "divergence" in bert.log_tail()
        told = "\n".join(bert.status()["notes"])
        assert "divergence" not in told, "all is well again"


def form_small(nodes: list[Node]) -> None:
    first, *others = nodes
    first.start("--new-mesh", *configured(first)).ready()
    token = first.token(len(others))
    for node in others:
        node.start("--join", token, *configured(node))
    for node in nodes:
        node.ready().sees(len(nodes))
