"""Any commands in any order: no exception, nothing broken, the same on every replica."""

import dataclasses
import functools
import types
import typing
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger import commands as c
from ledger.invariants import violations
from ledger.schema import SCHEMA_VERSION
from ledger.store_sqlite import LedgerStore, SqliteRows
from ledger.submissions import JobSpec
from mesh.errors import WireError
from mesh.log import Entry
from tests.ledger_helper import dump, films_of, job_spec, node_report, plan_of, spec

FEW = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
MEMBERS = ["anna", "bert", "cleo"]
JOBS = ["j1", "j2", "j3"]
NAMES: dict[str, list[str]] = {
    "node": MEMBERS,
    "owner": MEMBERS,
    "by": MEMBERS,
    "name": ["anna", "bert"],
    "job": JOBS,
    "task": [f"{job}-t" for job in JOBS],
    "attempt": ["a1", "a2", "a3", "a4"],
    "attempts": ["a1", "a2", "a3", "a4"],
    "output": ["/o1", "/o2"],
    "result_digest": ["d" * 64, "e" * 64],
    "needs": ["av1", "x264"],
    "encoders": ["av1", "x264"],
    "invitation": ["i1", "i2"],
    "mesh": ["m"],
}
IDS: dict[type, list[str]] = {
    JobSpec: JOBS,
    c.TaskSpec: NAMES["task"],
    c.CreateInvitation: NAMES["invitation"],
}
TEXT = st.text(max_size=6)
NUMBERS = st.one_of(st.integers(0, 5), st.integers(-(1 << 63), (1 << 64) - 1))


def numbers(name: str) -> st.SearchStrategy[int]:
    if name == "schema":  # a later one is what no replica of this version can go on with
        return st.integers(-1, SCHEMA_VERSION)
    if name == "token":  # real ones are epoch 1 and an index of a short log
        return st.integers(1, 60).map(lambda index: c.fencing_token(1, index)) | NUMBERS
    return st.one_of(*[st.integers(0, 3)] * 9, NUMBERS)


def values(cls: type, name: str, hint: Any) -> st.SearchStrategy[Any]:  # noqa: PLR0911 - one for each kind of type
    """Mostly values that mean something to other commands, sometimes garbage of the right type."""
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return st.sampled_from(typing.get_args(hint))
    if origin is tuple:
        return st.lists(values(cls, name, typing.get_args(hint)[0]), max_size=3).map(tuple)
    if origin is types.UnionType:
        inner = [h for h in typing.get_args(hint) if h is not type(None)]
        return st.none() | values(cls, name, inner[0])
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        return built(hint)
    if hint is int:
        return numbers(name)
    if hint is str:
        known = IDS.get(cls, []) if name == "id" else NAMES.get(name, [])
        sensible = [st.sampled_from(known)] * 9 if known else []
        return st.one_of(*sensible, TEXT)
    return {bool: st.booleans(), bytes: st.just(b"k" * 32) | st.binary(max_size=3)}[hint]


@functools.cache
def built(cls: type) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{name: values(cls, name, hint) for name, hint in hints.items()})


COMMANDS = st.one_of(
    *(built(cls) for cls in typing.get_args(c.Command)),
    st.lists(built(JobSpec), min_size=1, max_size=3).map(films_of),
)
FORM = c.FormMesh(mesh="m", founder=spec("anna"), schema=SCHEMA_VERSION)


def sealed(index: int, command: c.Command, command_id: str) -> Entry:
    data = c.seal(
        command, command_id=command_id, proposer="anna", proposed_at_ms=index, cause="fuzz"
    )
    return Entry(index, 1, "command", data)


def check(entries: list[Entry], batch: int) -> None:
    """One at a time with all invariants, and in batches: the same rows, the same checksum."""
    one, other = LedgerStore(":memory:"), LedgerStore(":memory:")
    try:
        for made in entries:
            before = dump(one), one.checksum
            ((_, _, outcome),) = one.apply([made])
            assert outcome is not None
            if not outcome.ok:
                assert (dump(one), one.checksum) == before
            assert violations(SqliteRows(one.connection)) == []
        for start in range(0, len(entries), batch):
            other.apply(entries[start : start + batch])
        assert one.checksum == other.checksum
        assert dump(one) == dump(other)
    finally:
        one.close()
        other.close()


@FEW
@given(
    commands=st.lists(st.tuples(COMMANDS, st.integers(0, 40)), max_size=20),
    batch=st.integers(2, 9),
)
def test_any_commands_in_any_order(commands: list[tuple[c.Command, int]], batch: int) -> None:
    entries = [sealed(1, FORM, "form")]
    entries += [sealed(n, command, f"c{key}") for n, (command, key) in enumerate(commands, 2)]
    check(entries, batch)


class Likely:
    """Draws a step that fits the present ledger more often than not."""

    def __init__(self, data: st.DataObject, store: LedgerStore) -> None:
        self.data, self.store = data, store

    def one(self, sql: str, default: tuple[Any, ...]) -> tuple[Any, ...]:
        rows = self.store.connection.execute(sql).fetchall()
        return self.data.draw(st.sampled_from([*rows, *rows, *rows, default]))

    def command(self) -> c.Command:
        (job,) = self.one("SELECT job FROM task WHERE state = 'ready'", ("j1",))
        attempt, token, digest, of_job = self.one(
            "SELECT id, token, result_digest, job FROM attempt WHERE state IN ('leased', 'finished', 'accepted')",
            ("a1", 1, "", "j1"),
        )
        new = f"a{self.store.applied_index}"
        steps: list[st.SearchStrategy[Any]] = [
            st.builds(job_spec, st.sampled_from(["j4", "j5"]), owner=st.sampled_from(MEMBERS)).map(
                lambda made: c.SubmitJobs(jobs=(made,))
            ),
            st.just(c.StartPlanning(job=job)),
            st.builds(
                c.PlanPieces,
                job=st.just(job),
                source_digest=TEXT,
                source_bytes=st.just(1),
                probe_json=TEXT,
                plan_json=TEXT,
                tasks=st.just(
                    tuple(
                        c.PieceSpec(id=f"{job}-{name}", kind=kind, needs=(), cost=1)
                        for name, kind in (("t", "chunk"), ("s", "audio"), ("e", "assemble"))
                    )
                ),
            ),
            st.builds(
                c.PlanJob,
                job=st.just(job),
                source_digest=TEXT,
                source_bytes=st.just(1),
                probe_json=TEXT,
                plan_json=TEXT,
                tasks=st.tuples(
                    st.builds(
                        c.TaskSpec,
                        id=st.just(f"{job}-t"),
                        kind=st.just("whole"),
                        needs=st.just(("av1",)),
                        cost=st.just(1),
                    )
                ),
            ),
            st.builds(
                c.GrantLeases,
                leases=st.tuples(
                    st.builds(
                        c.Lease,
                        task=st.just(f"{job}-t"),
                        attempt=st.just(new),
                        node=st.sampled_from(MEMBERS),
                    )
                ),
                granted_at_ms=st.just(1),
            ),
            _with(c.FinishAttempt, attempt=attempt, token=token),
            _with(c.FailAttempt, attempt=attempt, token=token),
            _with(c.AcceptResult, job=of_job, attempt=attempt, token=token, result_digest=digest),
            _with(c.FailAttempt, attempt=attempt, token=token, failure="transient", backoff_ms=5),
            _with(c.RefuseResult, job=of_job, attempt=attempt, token=token),
            st.just(c.FinishJob(job=of_job, token=token, finished_at_ms=1)),
            st.just(c.ExpireLeases(attempts=(attempt,), what="silent")),
            built(c.ReleaseLeases),
            built(c.RevokeMember),
            built(c.AddMember),
            COMMANDS,
        ]
        # Hypothesis favours the first: what leads on comes there, once where nothing is leased yet.
        leading = steps[3:4] if attempt == "a1" else steps[4:8] + steps[8:10]
        return self.data.draw(
            st.one_of(*leading) if self.data.draw(st.booleans()) else st.one_of(*steps)
        )


def _with(cls: type, **fixed: Any) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(cls)
    drawn = {name: values(cls, name, hint) for name, hint in hints.items() if name not in fixed}
    return st.builds(cls, **drawn, **{name: st.just(value) for name, value in fixed.items()})


@settings(FEW, max_examples=12)
@given(data=st.data(), batch=st.integers(2, 9))
def test_likely_lives(data: st.DataObject, batch: int) -> None:
    store = LedgerStore(":memory:")
    start: list[c.Command] = [FORM, node_report("anna", encoders=("av1",))]
    start += [c.AddMember(member=spec(member), invitation=None) for member in MEMBERS[1:]]
    for job in JOBS:
        start += [c.SubmitJobs(jobs=(job_spec(job),)), c.StartPlanning(job=job), plan_of(job)]
    entries = [sealed(index, command, f"s{index}") for index, command in enumerate(start, 1)]
    assert all(outcome is not None and outcome.ok for _, _, outcome in store.apply(entries))
    likely = Likely(data, store)
    first = len(entries) + 1
    for index in range(first, first + data.draw(st.integers(10, 30))):
        entries.append(sealed(index, likely.command(), f"c{index}"))
        store.apply(entries[-1:])
    store.close()
    check(entries, batch)


@settings(FEW, max_examples=300)
@given(data=st.binary(max_size=200))
def test_garbage_is_no_command(data: bytes) -> None:
    with pytest.raises(WireError):
        c.unseal(data)


@FEW
@given(command=COMMANDS, place=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused(command: c.Command, place: int, byte: int) -> None:
    data = bytearray(sealed(1, command, "c").data)
    assert c.unseal(bytes(data))[1] == command
    data[place % len(data)] = byte
    try:
        c.unseal(bytes(data))
    except WireError:
        return


@FEW
@given(command=COMMANDS, cut=st.integers(0, 10_000))
def test_a_cut_command_is_refused(command: c.Command, cut: int) -> None:
    data = sealed(1, command, "c").data
    with pytest.raises(WireError):
        c.unseal(data[: cut % len(data)])
