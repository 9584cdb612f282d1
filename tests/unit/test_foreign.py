"""What other members say: commands in another's name, unreadable ones, ids and numbers that are none."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ledger import commands as c
from mesh.errors import BusyError, NotAllowedError, WireError
from mesh.ids import NodeId, node_id_of, raft_id
from mesh.messages import Notice
from node.consensus.proposer import METHOD, Proposer
from node.faces.views import attempt_info, job_summary
from node.membership.foreign import check_authority, is_plain_id
from node.work.coordinator import Coordinator
from node.work.leases import LeaseTiming
from node.work.progress import PROGRESS, TOPIC, Progress, ProgressBoard
from node.work.standing import Standing
from tests.ledger_helper import Ledger, films_of, grant, job_spec, node_report, plan_of, spec
from tests.work_bench import Mesh, eventually

KEY = b"k" * 32
NEW = node_id_of(KEY)


def newcomer(**values: Any) -> c.AddMember:
    given: dict[str, Any] = {"public_key": KEY, "raft_id": raft_id(NEW, "00000000")}
    return c.AddMember(member=spec(NEW, **(given | values)), invitation=None)


@pytest.fixture
def ledger() -> Ledger:
    made = Ledger().formed("bert", "carl").planned("j1")
    made.leased("j1", "a1", "bert")
    return made


OWNERS: list[Callable[[Ledger], c.Command]] = [
    lambda _: c.SubmitJobs(jobs=(job_spec("j9"),)),
    lambda _: films_of([job_spec("j9")]),
    lambda _: c.StartPlanning(job="j1"),
    lambda _: plan_of("j1"),
    lambda ledger: ledger.give_up("j1"),
    lambda ledger: ledger.accept("j1", "a1", output="/home/anna/.profile"),
    lambda ledger: ledger.refuse("j1", "a1"),
    lambda _: c.FinishJob(job="j1", token=1, finished_at_ms=1),
    lambda _: node_report("anna"),
]
HOLDERS: list[Callable[[Ledger], c.Command]] = [
    lambda ledger: ledger.finish("a1"),
    lambda ledger: ledger.fail("a1"),
    lambda _: c.ReleaseLeases(node="bert", attempts=("a1",), what=""),
]
NOBODY: list[Callable[[Ledger], c.Command]] = [
    lambda _: grant(("j1-t", "../../films", "anna")),
    lambda _: c.ExpireLeases(attempts=("a1",), what=""),
    lambda _: c.FormMesh(mesh="m", founder=spec("anna")),
    lambda _: c.MigrateLedger(schema=3),
    lambda _: c.SubmitJobs(jobs=(job_spec("../j9"),)),
    lambda _: films_of([job_spec("j9"), job_spec("../j9")]),
    lambda _: newcomer(public_key=b"o" * 32),
    lambda _: newcomer(public_key=b"short"),
    lambda _: newcomer(raft_id="anna.00000000"),
]


@pytest.mark.parametrize(
    ("make", "who"),
    [(make, "anna") for make in OWNERS]
    + [(make, "bert") for make in HOLDERS]
    + [(make, "") for make in NOBODY]
    + [(lambda _: newcomer(), "anna bert carl")],
)
def test_a_member_proposes_in_its_own_name_alone(
    ledger: Ledger, make: Callable[[Ledger], c.Command], who: str
) -> None:
    for caller in ("anna", "bert", "carl"):
        if caller in who.split():
            check_authority(ledger.reader, NodeId(caller), make(ledger))
        else:
            with pytest.raises(NotAllowedError):
                check_authority(ledger.reader, NodeId(caller), make(ledger))


def test_what_this_replica_does_not_know_yet_is_asked_again(ledger: Ledger) -> None:
    for command in (c.StartPlanning(job="j9"), ledger.finish("a9", token=1)):
        with pytest.raises(BusyError):
            check_authority(ledger.reader, NodeId("anna"), command)


class Calls:
    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}

    def register(self, method: str, handler: object) -> None:
        self.handlers[method] = handler


def test_a_command_that_no_replica_could_read_never_enters_the_log() -> None:
    mesh: Any = Mesh("anna")
    calls: Any = Calls()
    Proposer(NodeId("anna"), mesh, calls, mesh.replica)
    garbage = c.ENVELOPES.encode(
        c.Envelope(id="x", proposer="bert", proposed_at_ms=1, cause="", command=b"garbage")
    )
    with pytest.raises(WireError):
        asyncio.run(calls.handlers[METHOD](NodeId("bert"), garbage))


def test_more_leases_than_one_command_holds_expire_and_the_coordinator_lives_on() -> None:
    async def main() -> None:
        mesh: Any = Mesh("anna")
        ledger: Ledger = mesh.ledger.formed()
        count = c.LEASES_PER_COMMAND_MAX + 1
        names = [f"j{n}" for n in range(count)]
        ledger.submitted(*names)
        for name in names:
            ledger.do(c.StartPlanning(job=name))
            ledger.do(plan_of(name))
        leases = [(f"{name}-t", f"a{name}", "anna") for name in names]
        ledger.must(grant(*leases[:200]))
        ledger.must(grant(*leases[200:]))
        taken: list[c.Command] = []

        async def commit(command: c.Command, *, cause: str) -> int:
            taken.append(command)
            return ledger.must(command)

        mesh.commit = commit
        calls: Any = Calls()
        timing = LeaseTiming(heartbeat_ms=1, suspect_ms=2, fence_ms=3, expiry_ms=4)
        coordinator: Any = Coordinator(
            driver=mesh,
            proposer=mesh,
            requests=calls,
            replica=mesh.replica,
            timing=timing,
            voters=mesh,
            migration=mesh,
            sweeps=mesh,
            standing=lambda _: Standing(),
            progress=lambda _: (),
        )
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            task = group.create_task(coordinator._schedule())
            await eventually(lambda: not ledger.reader.active_attempts())
            task.cancel()
        assert [len(one.attempts) for one in taken if isinstance(one, c.ExpireLeases)] == [256, 1]

    asyncio.run(main())


def test_text_of_others_that_is_no_json_is_shown_as_nothing(ledger: Ledger) -> None:
    ledger.must(ledger.finish("a1", result_json="["))
    ledger.must(ledger.accept("j1", "a1"))
    job, attempt = ledger.reader.job("j1"), ledger.reader.attempt("a1")
    assert job is not None
    assert attempt is not None
    done = replace(job, state="done", plan_json='{"frames": [1]}')
    for bad in ("[", "[" * 100_000, '{"frames": "many"}', "7"):
        shown = job_summary(done, [replace(attempt, result_json=bad)], None, {})
        assert shown.result is not None
        assert (shown.result.frames_in, shown.result.frames_out) == (0, 0)
    assert attempt_info(replace(attempt, command_line='mpeg", "-i"]'), {}).command_line == []


@pytest.mark.parametrize(
    "values",
    [{"job": "j" * 65}, {"attempt": "a" * 65}, {"fps": float("inf")}, {"speed": float("nan")}],
)
def test_progress_that_is_endless_is_refused(values: dict[str, Any]) -> None:
    board = ProgressBoard(NodeId("anna"), lambda _: None, lambda: 0)
    good = Progress(job="j1", attempt="a1", node="bert", phase="encoding")
    board.receive(NodeId("bert"), Notice(topic=TOPIC, body=PROGRESS.encode(good)))
    evil = replace(good, **values)
    with pytest.raises(WireError):
        board.receive(NodeId("bert"), Notice(topic=TOPIC, body=PROGRESS.encode(evil)))
    assert [one.job for one in board.running()] == ["j1"]


@pytest.mark.parametrize(
    "text", ["", ".", "..", "a/b", "/a", "a.b", "a\0", "A", "-a", "a" * 65, "ä"]
)
def test_an_id_that_could_be_a_path_is_none(text: str) -> None:
    assert not is_plain_id(text)
    assert is_plain_id("j0gk2s9v1a-0")
