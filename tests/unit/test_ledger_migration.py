"""A ledger that moves to the next form: at one index, alike on every replica, and nothing is lost."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ledger import commands as c
from ledger import orders as o
from ledger.jobs import OPEN_JOB_STATES, Member
from ledger.queries import VIEWS, Reader
from ledger.schema import FIRST_SCHEMA, SCHEMA_VERSION
from ledger.snapshot_sqlite import verify_snapshot, write_snapshot
from ledger.soundness_sqlite import content_digest
from ledger.store_sqlite import LedgerStore
from mesh.errors import OutdatedError, StorageError
from mesh.ids import NodeId
from mesh.log import Entry
from node.work.migration import Migration, held_back_by, waiting_notes
from tests.ledger_helper import dump, entry, films_of, grant, job_spec, node_report, plan_of, spec
from tests.meshwork import eventually
from tests.unit.test_ledger_store import history as known_history
from tests.work_bench import Mesh

FIRST = c.FormMesh(mesh="m", founder=spec("anna"))
CHECKSUM_OF_FIRST = "781f13d8851190c8a206e1c613daf69379fa18ac7f4531c5022b65291a3d7b1c"
"""What the last version that knew schema 1 alone (f482e56) made of `known_history` with this beginning."""


CHECKSUM_OF_SECOND = "ca9466932b082a6b939cfaf3aedee429e314de95161e3427a94618312186a8a9"
"""What the last version that knew schema 2 alone (1428cb6) made of `history`."""


def work(n: int) -> list[c.Command]:
    job, text = f"j{n}", '{"a": 1}' if n % 2 else '{"b": 2}'
    specs = (job_spec(job, profile_json=text, priority=n % 3), job_spec(f"k{n}", profile_json=text))
    return [
        c.SubmitJobs(jobs=specs),
        c.StartPlanning(job=job),
        plan_of(job),
        c.SubmitJobs(jobs=(job_spec(f"x{n}"), job_spec(job))),  # refused
        grant((f"{job}-t", f"a{n}", "anna")),
        *([c.ReleaseLeases(node="anna", attempts=(f"a{n}",), what="")] if n % 2 else []),
    ]


def entries_of(commands: list[c.Command]) -> list[Entry]:
    return [entry(n, command, at_ms=1_000 + n) for n, command in enumerate(commands, 1)]


def history(*, then: bool = True) -> list[Entry]:
    commands = [FIRST, FIRST, node_report("anna"), *(one for n in range(8) for one in work(n))]
    if then:
        commands += [c.MigrateLedger(schema=2), *(one for n in range(8, 12) for one in work(n))]
        commands.append(films_of([job_spec("f1"), job_spec("f2")]))
    return entries_of(commands)


def applied(entries: list[Entry], batch: int, path: str = ":memory:") -> LedgerStore:
    store = LedgerStore(path)
    for start in range(0, len(entries), batch):
        store.apply(entries[start : start + batch])
    return store


def test_in_the_first_form_this_version_does_what_older_ones_did() -> None:
    # Replicas of both versions compare their checksums until all are updated.
    store = applied([entry(1, FIRST), *known_history()[1:]], 7)
    assert store.schema == FIRST_SCHEMA
    assert store.checksum.hex() == CHECKSUM_OF_FIRST


def test_in_the_second_form_as_well() -> None:
    store = applied(history(), 5)
    assert store.schema == 2
    assert store.checksum.hex() == CHECKSUM_OF_SECOND


def test_the_third_form_takes_orders_and_keeps_everything() -> None:
    store = applied(history(), 4)
    old = seen(store)
    begun, index = len(old["nodes"]), store.applied_index
    late = o.ChangeJobs(jobs=("j0",), action="cancel", priority=0, by="me")
    ((_, _, outcome),) = store.apply([entry(index + 1, late)])
    assert outcome is not None
    assert outcome.code == "conflict", "members of before cannot read it"
    store.apply([entry(index + 2, c.MigrateLedger(schema=3))])
    new = seen(store)
    for view in ("nodes", "watches", "attempts"):  # columns are added, none goes
        new[view] = [row[: len(old[view][0])] for row in new[view]]
    assert len(new["nodes"]) == begun
    new["events"] = [line for line in new["events"] if line[3] != "ledger.migrated"]
    old["events"] = [line for line in old["events"] if line[3] != "ledger.migrated"]
    assert new == old
    ((_, _, outcome),) = store.apply([entry(index + 3, late)])
    assert outcome is not None
    assert outcome.ok
    found = Reader(store.connection).job("j0")
    assert found is not None
    assert found.state == "cancelled"


def test_replicas_migrate_alike_whatever_their_batches() -> None:
    stores = [applied(history(), batch) for batch in (1, 2, 5, 1_000)]
    for store in stores:
        assert store.schema == store.connection.pragma("user_version") == 2
        assert store.checksum == stores[0].checksum
        assert dump(store) == dump(stores[0])
        assert content_digest(store.connection) == content_digest(stores[0].connection)
    assert stores[0].checksum != applied(history(then=False), 1).checksum


def seen(store: LedgerStore) -> dict[str, Any]:
    """What people and the node see."""
    reader = Reader(store.connection)
    found: dict[str, Any] = {
        view: sorted(store.connection.execute(f"SELECT * FROM {view}").fetchall(), key=repr)
        for view in VIEWS
        if view != "tenants"  # came with the third form
    }
    found["jobs by age"] = [(j.id, j.seq, j.state) for j in reader.jobs(limit=1_000)]
    for job, _, _ in found["jobs by age"]:
        found[f"job {job}"] = [
            (e.id, e.log_index, e.at_ms, e.kind, e.node, e.what) for e in reader.events(job)
        ]
        row = reader.job(job)
        assert row is not None
        found[f"profile of {job}"] = row.profile_json
        found[f"since {job}"] = [j.id for j in reader.jobs(since_ms=row.created_at_ms)]
    found["of anna"] = [j.id for j in reader.jobs(node="anna", limit=5)]
    found["open"] = [(j.id, j.profile_json) for j in reader.jobs_of_owner("anna", OPEN_JOB_STATES)]
    found["to plan"] = [(j.id, j.profile_json) for j in reader.jobs_to_plan("anna", 1_000)]
    found["changed"] = [j.id for j in reader.changed_jobs(20, 100)]
    return found


def test_what_people_see_stays() -> None:
    store = applied(history(then=False), 4)
    old = seen(store)
    assert len(old["events"]) > 20
    moved = entry(store.applied_index + 1, c.MigrateLedger(schema=2))
    store.apply([moved])
    new = seen(store)
    (told,) = [line for line in new["events"] if line not in old["events"]]
    assert told[3] == "ledger.migrated"
    new["events"].remove(told)
    assert new == old
    stored = store.connection.execute("SELECT count(*) FROM definition").get
    assert stored == len({text for name, text in old.items() if name.startswith("profile of")})


def test_a_snapshot_of_a_migrated_ledger_is_what_replay_gives(tmp_path: Path) -> None:
    path = str(tmp_path / "l.db")
    store = applied(history(), 3, path)
    snapshot = write_snapshot(path, tmp_path / "s")
    verify_snapshot(snapshot.path, thorough=True)
    other = applied(history(then=False), 3)
    reader = Reader(other.connection)
    assert reader.schema() == 1
    other.replace_by(str(snapshot.path))
    assert other.schema == reader.schema() == 2
    more = entry(store.applied_index + 1, films_of([job_spec("late")]))
    for each in (store, other):
        ((_, _, outcome),) = each.apply([more])
        assert outcome is not None
        assert outcome.ok
    assert content_digest(other.connection) == content_digest(store.connection)
    assert other.checksum == store.checksum


@pytest.mark.parametrize("schema", [-1, 0, 1])
def test_only_the_next_form_is_taken(schema: int) -> None:
    store = applied(history(then=False), 4)
    rows, checksum = dump(store), store.checksum
    ((_, _, outcome),) = store.apply(
        [entry(store.applied_index + 1, c.MigrateLedger(schema=schema))]
    )
    assert outcome is not None
    assert outcome.code == "conflict"
    assert (dump(store), store.checksum, store.schema) == (rows, checksum, 1)


def test_a_form_that_this_version_does_not_know_stops_it() -> None:
    store = applied(history(), 4)
    index, rows = store.applied_index, dump(store)
    later = c.MigrateLedger(schema=SCHEMA_VERSION + 1)
    with pytest.raises(OutdatedError, match="schema"):
        store.apply([entry(index + 1, node_report("anna", slots=7)), entry(index + 2, later)])
    assert (store.applied_index, dump(store)) == (index, rows)
    with pytest.raises(OutdatedError, match="schema"):
        LedgerStore(":memory:").apply([entry(1, c.FormMesh(mesh="m", founder=spec("a"), schema=9))])


def test_commands_of_a_later_form_wait_for_it() -> None:
    store = applied(history(then=False), 4)
    ((_, _, outcome),) = store.apply([entry(store.applied_index + 1, films_of([job_spec("f")]))])
    assert outcome is not None
    assert (outcome.ok, outcome.code) == (False, "conflict")


def test_a_kill_in_the_middle_leaves_the_old_form_whole(tmp_path: Path) -> None:
    path = str(tmp_path / "l.db")
    store = applied(history(then=False), 4, path)
    rows, checksum = dump(store), store.checksum
    pages = store.connection.pragma("page_count")
    store.connection.pragma("max_page_count", pages)
    with pytest.raises(StorageError, match="full"):
        store.apply([entry(store.applied_index + 1, c.MigrateLedger(schema=2))])
    assert (dump(store), store.checksum, store.schema) == (rows, checksum, 1)
    store.connection.pragma("max_page_count", 1 << 30)
    assert store.apply([entry(store.applied_index + 1, c.MigrateLedger(schema=2))])
    assert store.schema == 2
    store.close()


# --- who proposes it, and when -----------------------------------------------------------------------


def members(*names: str) -> tuple[Member, ...]:
    return tuple(
        Member(
            node=name,
            raft_id="",
            public_key=b"",
            name=name.title(),
            role="full",
            state="removed" if name == "gone" else "active",
            since_ms=0,
        )
        for name in names
    )


def test_every_active_member_must_know_the_form() -> None:
    known = {NodeId("anna"): 2, NodeId("bert"): 2, NodeId("cleo"): 1}
    of = members("anna", "bert", "cleo", "dora", "gone")
    assert [m.node for m in held_back_by(of, known.get, 2)] == ["cleo", "dora"]
    assert held_back_by(of[:2], known.get, 2) == ()
    assert held_back_by(of[:2], known.get, 3) == of[:2]
    (note,) = waiting_notes(of, known.get, 1)
    assert "Cleo, Dora" in note
    assert waiting_notes(of[:2], known.get, 1) == []
    assert waiting_notes(of, known.get, SCHEMA_VERSION) == []


def test_the_coordinator_proposes_it_once_all_are_updated() -> None:
    async def run() -> None:
        mesh: Any = Mesh("anna")
        for command in (FIRST, c.AddMember(member=spec("bert"), invitation=None)):
            mesh.do(command)
        known = {NodeId("anna"): SCHEMA_VERSION, NodeId("bert"): 1}
        duty = Migration(driver=mesh, proposer=mesh, replica=mesh.replica, known=known.get)
        keeping = asyncio.ensure_future(duty.keep())
        for _ in range(200):
            await asyncio.sleep(0)
        assert mesh.ledger.store.schema == 1
        known[NodeId("bert")] = SCHEMA_VERSION
        mesh.ledger_changed.set()
        await eventually(keeping.done)
        assert mesh.ledger.store.schema == SCHEMA_VERSION
        keeping.result()

    asyncio.run(run())
