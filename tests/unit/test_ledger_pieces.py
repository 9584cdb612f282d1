"""A film in pieces in the ledger: parts that run side by side, and their assembly at the end."""

from dataclasses import replace

import pytest

from ledger import commands as c
from ledger.jobs import can_do
from ledger.scheduler import explain, find, plan
from tests.ledger_helper import Ledger, grant, node_report, spec

ENCODER = ("libsvtav1@7.1",)


def piece(job: str, name: str, kind: c.PieceKind) -> c.PieceSpec:
    needs = ENCODER if kind == "chunk" else ()
    cost = 9 if kind == "chunk" else 1
    return c.PieceSpec(id=f"{job}-{name}", kind=kind, needs=needs, cost=cost)


def pieces(job: str = "j", chunks: int = 2, *, sound: bool = True) -> c.PlanPieces:
    tasks = [piece(job, "s", "audio")] if sound else []
    tasks += [piece(job, str(n), "chunk") for n in range(chunks)]
    return plan_of_pieces(job, *tasks, piece(job, "e", "assemble"))


def plan_of_pieces(job: str, *tasks: c.PieceSpec) -> c.PlanPieces:
    return c.PlanPieces(
        job=job,
        source_digest="d" * 64,
        source_bytes=1_000,
        probe_json="{}",
        plan_json="{}",
        tasks=tasks,
    )


def planned(chunks: int = 2, *, sound: bool = True) -> Ledger:
    ledger = Ledger().formed("bert", "carl").submitted("j", split=True)
    ledger.must(c.StartPlanning(job="j"))
    ledger.must(pieces(chunks=chunks, sound=sound))
    return ledger


def task_states(ledger: Ledger) -> dict[str, str]:
    return {task.id: task.state for task in ledger.reader.tasks("j")}


def kept(ledger: Ledger, task: str, attempt: str, node: str) -> None:
    """Leases a part, finishes it, and lets the owner keep it."""
    ledger.must(grant((task, attempt, node)))
    ledger.must(ledger.finish(attempt))
    ledger.must(ledger.accept("j", attempt))


def test_life_of_a_film_in_pieces() -> None:
    ledger = planned()
    assert ledger.job_state("j") == "queued"
    assert task_states(ledger) == {"j-s": "ready", "j-0": "ready", "j-1": "ready", "j-e": "blocked"}
    ledger.must(grant(("j-0", "a", "bert"), ("j-1", "b", "carl"), ("j-s", "s", "anna")))
    assert ledger.job_state("j") == "running"
    ledger.must(ledger.finish("a"))
    ledger.must(ledger.finish("b"))
    assert ledger.job_state("j") == "running"
    assert [part.id for part in ledger.reader.attempts("j", "finished")] == ["a", "b"]
    ledger.must(ledger.accept("j", "b", output="/elsewhere"))
    ledger.must(ledger.accept("j", "a"))
    assert task_states(ledger)["j-e"] == "blocked"
    ledger.must(ledger.finish("s"))
    assert task_states(ledger)["j-e"] == "blocked"
    ledger.must(ledger.accept("j", "s"))
    assert task_states(ledger) == {"j-s": "kept", "j-0": "kept", "j-1": "kept", "j-e": "ready"}
    ledger.must(grant(("j-e", "e", "anna")))
    assert ledger.job_state("j") == "running"
    ledger.must(ledger.finish("e", result_digest="f" * 64))
    assert ledger.job_state("j") == "verifying"
    ledger.must(ledger.accept("j", "e", result_digest="f" * 64))
    assert ledger.job_state("j") == "publishing"
    part = c.FinishJob(job="j", token=ledger.token("a"), finished_at_ms=4_000)
    assert ledger.refused(part) == "stale_token"
    ledger.must(replace(part, token=ledger.token("e")))
    job = ledger.reader.job("j")
    assert job is not None
    assert (job.state, job.output) == ("done", "/films/j.mp4")
    states = {attempt.id: attempt.state for attempt in ledger.reader.attempts("j")}
    assert states == {"a": "kept", "b": "kept", "s": "kept", "e": "accepted"}


def test_only_the_owner_gets_the_sound_and_the_assembly() -> None:
    ledger = planned(chunks=1)
    ledger.must(grant(("j-s", "s", "bert")))
    assert task_states(ledger)["j-s"] == "ready"
    ledger.must(grant(("j-e", "e", "anna")))
    assert task_states(ledger)["j-e"] == "blocked"
    kept(ledger, "j-0", "a", "bert")
    kept(ledger, "j-s", "s", "anna")
    ledger.must(grant(("j-e", "e", "bert")))
    assert task_states(ledger)["j-e"] == "ready"


def test_how_fast_a_node_is_tell_its_chunks_alone() -> None:
    ledger = planned()
    kept(ledger, "j-0", "a", "anna")
    alone = ledger.reader.speeds()["anna"]
    assert list(alone.values()) == [9_000 // encode_ms(ledger, "a")]
    kept(ledger, "j-s", "s", "anna")
    assert ledger.reader.speeds()["anna"] == alone


def encode_ms(ledger: Ledger, attempt: str) -> int:
    found = ledger.reader.attempt(attempt)
    assert found is not None
    return found.encode_ms


def test_a_part_that_fails_is_tried_again_and_the_others_go_on() -> None:
    ledger = planned()
    ledger.must(grant(("j-0", "a", "bert"), ("j-1", "b", "carl")))
    ledger.must(ledger.fail("a", node="bert", failure="encoder"))
    assert ledger.job_state("j") == "running"
    task = ledger.reader.task("j-0")
    assert task is not None
    assert (task.state, task.excluded, task.tries) == ("ready", ("bert",), 1)
    ledger.must(c.ExpireLeases(attempts=("b",), what="silent"))
    assert ledger.job_state("j") == "running"
    ledger.must(grant(("j-1", "b2", "bert")))
    ledger.must(ledger.fail("b2", node="bert", backoff_ms=4_000))
    job, task = ledger.reader.job("j"), ledger.reader.task("j-1")
    assert job is not None
    assert task is not None
    assert (job.state, job.error, task.backoff_ms) == ("running", "it broke", 4_000)
    ledger.must(grant(("j-1", "b3", "carl")))
    ledger.must(ledger.finish("b3"))
    ledger.must(ledger.refuse("j", "b3"))
    assert (ledger.job_state("j"), task_states(ledger)["j-1"]) == ("running", "ready")
    kept(ledger, "j-0", "a2", "carl")
    kept(ledger, "j-1", "b4", "carl")


def test_a_part_that_cannot_be_done_ends_the_film() -> None:
    ledger = planned()
    ledger.must(grant(("j-0", "a", "bert"), ("j-1", "b", "carl")))
    ledger.must(ledger.finish("b"))
    ledger.must(ledger.accept("j", "b"))
    ledger.must(ledger.fail("a", node="bert", failure="input"))
    assert ledger.job_state("j") == "failed"
    assert set(task_states(ledger).values()) == {"failed"}
    states = {attempt.id: attempt.state for attempt in ledger.reader.attempts("j")}
    assert states == {"a": "failed", "b": "abandoned"}


def test_an_assembly_that_is_refused_is_done_again_of_the_same_parts() -> None:
    ledger = planned(chunks=1, sound=False)
    kept(ledger, "j-0", "a", "bert")
    for attempt in ("e1", "e2"):
        ledger.must(grant(("j-e", attempt, "anna")))
        ledger.must(ledger.finish(attempt))
        ledger.must(ledger.refuse("j", attempt))
        assert (ledger.job_state("j"), task_states(ledger)["j-e"]) == ("running", "ready")
    ledger.must(grant(("j-e", "e3", "anna")))
    ledger.must(ledger.fail("e3", failure="encoder"))
    assert ledger.job_state("j") == "failed"


def test_a_part_that_was_kept_is_kept_for_good() -> None:
    ledger = planned(chunks=1, sound=False)
    kept(ledger, "j-0", "a", "bert")
    assert ledger.refused(ledger.refuse("j", "a")) == "stale_token"
    assert ledger.refused(ledger.accept("j", "a")) == "stale_token"
    said_again = ledger.finish("a")
    assert ledger.do(said_again).ok
    ledger.must(ledger.give_up("j"))
    assert ledger.job_state("j") == "failed"


@pytest.mark.parametrize(
    "tasks",
    [
        [("chunk", "0")],
        [("assemble", "e")],
        [("audio", "s"), ("assemble", "e")],
        [("assemble", "e"), ("chunk", "0")],
        [("chunk", "0"), ("audio", "s"), ("audio", "t"), ("assemble", "e")],
        [("chunk", "0"), ("chunk", "0"), ("assemble", "e")],
        [("chunk", "0"), ("assemble", "e"), ("assemble", "f")],
        [*(("chunk", str(n)) for n in range(c.TASKS_PER_PLAN_MAX)), ("assemble", "e")],
    ],
)
def test_plans_that_are_none(tasks: list[tuple[c.PieceKind, str]]) -> None:
    ledger = Ledger().formed().submitted("j")
    ledger.must(c.StartPlanning(job="j"))
    specs = [piece("j", name, kind) for kind, name in tasks]
    assert ledger.refused(plan_of_pieces("j", *specs)) == "usage"


# --- who does what ----------------------------------------------------------------------------------


def test_needs_may_name_the_build_of_ffmpeg() -> None:
    assert can_do((), (), "")
    assert can_do(("libx264",), ("libx264",), "7.1")
    assert can_do(("libx265", "libx264@7.1"), ("libx264",), "7.1")
    assert not can_do(("libx264@7.1",), ("libx264",), "5.1")
    assert not can_do(("libx264@7.1",), ("libx265",), "7.1")


def test_chunks_of_one_film_go_to_one_build_of_ffmpeg() -> None:
    ledger = planned(chunks=4, sound=False)
    ledger.must(node_report("carl", ffmpeg="5.1"))
    view = ledger.reader.schedulable()
    view = replace(
        view,
        nodes=tuple(replace(node, alive=True) for node in view.nodes),
        new_attempt_id=iter("abcdef").__next__,
    )
    (granted,) = plan(view, 0)
    assert isinstance(granted, c.GrantLeases)
    assert {lease.node for lease in granted.leases} == {"anna", "bert"}
    assert len(granted.leases) == 4
    task = find(view.tasks, "j")
    assert task is not None
    assert "carl: has none of the encoders libsvtav1@7.1" in explain(view, task, 0)


def test_the_assembly_waits_for_the_owner() -> None:
    ledger = planned(chunks=1, sound=False)
    kept(ledger, "j-0", "a", "bert")
    view = ledger.reader.schedulable()
    view = replace(
        view,
        nodes=tuple(replace(node, alive=node.node != "anna") for node in view.nodes),
        new_attempt_id=iter("abcdef").__next__,
    )
    assert plan(view, 0) == []
    task = find(view.tasks, "j")
    assert task is not None
    said = explain(view, task, 0)
    assert "anna: is not heard" in said
    assert "bert, carl: does not have the film, which this needs as a whole" in said
    assert spec("anna").node == task.owner


def test_how_far_a_film_in_pieces_is() -> None:
    ledger = Ledger().formed("bert").submitted("j", "k", split=True)
    for job, text in (("j", '{"frames": 48, "split": {}}'), ("k", "no JSON")):
        ledger.must(c.StartPlanning(job=job))
        ledger.must(replace(pieces(job, chunks=2, sound=False), plan_json=text))
    assert ledger.reader.film_frames("j") == (0, 48)
    ledger.must(grant(("j-0", "a", "bert")))
    assert ledger.reader.film_frames("j") == (0, 48)
    ledger.must(ledger.finish("a"))
    assert ledger.reader.film_frames("j") == (6, 48)
    ledger.must(ledger.accept("j", "a"))
    assert ledger.reader.film_frames("j") == (6, 48)
    assert ledger.reader.film_frames("k") is None
    assert ledger.reader.film_frames("nothing") is None
