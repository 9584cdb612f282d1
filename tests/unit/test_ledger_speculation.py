"""Two attempts at one part of a film: the first result that is kept counts, whatever becomes of the other."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from ledger import commands as c
from ledger.device_slots import DeviceSlots, ReportSlots
from ledger.invariants import violations
from ledger.jobs import Attempt, Task
from ledger.orders import Action, ChangeJobs
from ledger.store_sqlite import SqliteRows
from tests.ledger_helper import Ledger, grant, node_report, spec
from tests.unit.test_ledger_pieces import pieces, planned, task_states


def second(*leases: tuple[str, str, str, str]) -> c.SpeculateLeases:
    """Leases as (task, attempt, node, beside)."""
    given = (
        c.SpeculativeLease(task=t, attempt=a, node=n, device="", beside=beside)
        for t, a, n, beside in leases
    )
    return c.SpeculateLeases(leases=tuple(given), granted_at_ms=8)


def running_twice() -> Ledger:
    """Of two chunks bert has both, and carl has the first as well."""
    ledger = planned(chunks=2, sound=False)
    ledger.must(grant(("j-0", "a", "bert"), ("j-1", "other", "bert")))
    ledger.must(second(("j-0", "b", "carl", "a")))
    return ledger


def attempt(ledger: Ledger, name: str) -> Attempt:
    found = ledger.reader.attempt(name)
    assert found is not None
    return found


def states(ledger: Ledger) -> tuple[str, str, str]:
    """The part, its first and its second attempt."""
    return task_states(ledger)["j-0"], attempt(ledger, "a").state, attempt(ledger, "b").state


def part(ledger: Ledger) -> Task:
    found = ledger.reader.task("j-0")
    assert found is not None
    return found


def test_the_second_attempt_is_one_of_its_own_and_told() -> None:
    ledger = running_twice()
    assert states(ledger) == ("leased", "leased", "leased")
    first, other = attempt(ledger, "a"), attempt(ledger, "b")
    assert (other.number, part(ledger).attempts) == (2, 2)
    assert other.token > first.token
    assert ledger.job_state("j") == "running"
    last = ledger.reader.events("j")[-1]
    assert (last.kind, last.node) == ("job.running", "carl")
    assert last.what == "j-0 a second time beside bert, which is slow with it"


@pytest.mark.parametrize(("winner", "loser", "who"), [("a", "b", "bert"), ("b", "a", "carl")])
def test_the_first_result_that_is_kept_counts(winner: str, loser: str, who: str) -> None:
    ledger = running_twice()
    late = ledger.finish(loser)
    ledger.must(ledger.finish(winner))
    assert task_states(ledger)["j-0"] == "finished"
    # Until the owner holds a result, the other one may still be needed.
    assert attempt(ledger, loser).state == "leased"
    ledger.must(ledger.accept("j", winner))
    assert task_states(ledger)["j-0"] == "kept"
    lost = attempt(ledger, loser)
    assert (lost.state, lost.error_code) == ("abandoned", "overtaken")
    assert lost.error == f"another machine was faster, {who}"
    assert lost.ended_at_ms
    assert ledger.refused(late) == "stale_token"
    assert ledger.refused(ledger.fail(loser)) == "stale_token"
    assert (part(ledger).tries, part(ledger).excluded) == (0, ())


def test_of_two_results_the_owner_keeps_one() -> None:
    ledger = running_twice()
    for name in "ab":
        ledger.must(ledger.finish(name))
    assert states(ledger) == ("finished", "finished", "finished")
    assert ledger.reader.finished_parts("anna") == [("a", "j"), ("b", "j")]
    ledger.must(ledger.accept("j", "b"))
    assert states(ledger) == ("kept", "abandoned", "kept")
    assert ledger.refused(ledger.accept("j", "a")) == "stale_token"
    assert ledger.refused(ledger.refuse("j", "a")) == "stale_token"


def test_a_result_that_is_refused_leaves_the_part_to_the_other() -> None:
    ledger = running_twice()
    ledger.must(ledger.finish("a"))
    ledger.must(ledger.refuse("j", "a"))
    assert states(ledger) == ("leased", "refused", "leased")
    assert part(ledger).tries == 1
    ledger.must(ledger.finish("b"))
    ledger.must(ledger.accept("j", "b"))
    assert states(ledger) == ("kept", "refused", "kept")


def test_of_two_results_one_may_be_refused() -> None:
    ledger = running_twice()
    for name in "ab":
        ledger.must(ledger.finish(name))
    ledger.must(ledger.refuse("j", "b"))
    assert states(ledger) == ("finished", "finished", "refused")
    ledger.must(ledger.refuse("j", "a"))
    assert states(ledger) == ("ready", "refused", "refused")
    assert part(ledger).tries == 2


ENDS: dict[str, Callable[[Ledger, str], c.Command]] = {
    "failed": lambda ledger, name: ledger.fail(name, node=attempt(ledger, name).node),
    "expired": lambda _, name: c.ExpireLeases(attempts=(name,), what="silent"),
    "released": lambda ledger, name: c.ReleaseLeases(
        node=attempt(ledger, name).node, attempts=(name,), what="stops"
    ),
}


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize(("lost", "left"), [("a", "b"), ("b", "a")])
def test_while_one_goes_on_the_part_is_leased_to_nobody_else(
    ends: str, lost: str, left: str
) -> None:
    ledger = running_twice()
    ledger.must(ENDS[ends](ledger, lost))
    assert attempt(ledger, lost).state == ends
    assert (task_states(ledger)["j-0"], attempt(ledger, left).state) == ("leased", "leased")
    assert part(ledger).tries == (ends != "released")
    ledger.must(grant(("j-0", "c", "anna")))
    assert ledger.reader.attempt("c") is None
    # A third node may take the place of the one that is gone, beside who is left.
    ledger.must(second(("j-0", "c", "anna", left)))
    assert attempt(ledger, "c").number == 3
    ledger.must(ENDS[ends](ledger, left))
    ledger.must(ENDS[ends](ledger, "c"))
    assert task_states(ledger)["j-0"] == "ready"
    assert ledger.job_state("j") == "running"


def test_a_failure_beside_a_result_that_waits_changes_nothing_of_it() -> None:
    ledger = running_twice()
    ledger.must(ledger.finish("b"))
    ledger.must(ledger.fail("a", node="bert", failure="encoder"))
    assert states(ledger) == ("finished", "failed", "finished")
    assert part(ledger).excluded == ("bert",)
    ledger.must(ledger.accept("j", "b"))
    assert states(ledger) == ("kept", "failed", "kept")


def test_a_failure_is_a_strike_and_a_lost_race_is_none() -> None:
    ledger = running_twice()
    ledger.must(ledger.fail("a", node="bert"))
    row = ledger.reader.node("bert")
    assert row is not None
    assert row.strikes == ("j",)
    ledger = running_twice()
    ledger.must(ledger.finish("b"))
    ledger.must(ledger.accept("j", "b"))
    row = ledger.reader.node("bert")
    assert row is not None
    assert (row.strikes, row.quarantine) == ((), "")


def test_the_last_try_of_one_ends_the_film_only_when_the_other_fails_too() -> None:
    ledger = planned(chunks=2, sound=False)
    for number in range(c.ATTEMPTS_MAX - 1):
        ledger.must(grant(("j-0", f"x{number}", "bert")))
        ledger.must(c.ExpireLeases(attempts=(f"x{number}",), what="silent"))
    ledger.must(grant(("j-0", "a", "bert")))
    ledger.must(second(("j-0", "b", "carl", "a")))
    ledger.must(c.ExpireLeases(attempts=("a",), what="silent"))
    assert (ledger.job_state("j"), part(ledger).tries) == ("running", c.ATTEMPTS_MAX)
    ledger.must(c.ExpireLeases(attempts=("b",), what="silent"))
    assert ledger.job_state("j") == "failed"


def test_who_runs_it_counts_as_able_whatever_is_reported_meanwhile() -> None:
    ledger = running_twice()
    for name in ("anna", "carl"):
        ledger.must(node_report(name, encoders=("libx264",)))
    ledger.must(ledger.fail("a", node="bert", failure="encoder"))
    assert (ledger.job_state("j"), task_states(ledger)["j-0"]) == ("running", "leased")


def test_a_film_that_is_to_blame_ends_with_both() -> None:
    ledger = running_twice()
    ledger.must(ledger.fail("b", node="carl", failure="input"))
    assert ledger.job_state("j") == "failed"
    assert states(ledger) == ("failed", "abandoned", "failed")
    # Who is told that the film is damaged is not told that somebody was faster.
    assert attempt(ledger, "a").error_code == ""


def test_cancel_ends_both_and_a_retry_begins_anew() -> None:
    ledger = running_twice()
    orders: tuple[Action, ...] = ("cancel", "retry")
    for action in orders:
        ledger.must(ChangeJobs(jobs=("j",), action=action, priority=0, by="anna"))
    assert states(ledger) == ("ready", "abandoned", "abandoned")
    ledger.must(grant(("j-0", "c", "bert")))
    assert attempt(ledger, "c").number == 3


def test_a_node_that_is_removed_leaves_the_part_to_the_other() -> None:
    ledger = running_twice()
    ledger.must(c.RemoveMember(node="bert", by="anna"))
    assert states(ledger) == ("leased", "expired", "leased")
    assert task_states(ledger)["j-1"] == "ready"


@pytest.mark.parametrize("leaves", [c.RemoveMember, c.RevokeMember])
def test_a_node_leaves_though_a_film_ends_with_its_last_try(
    leaves: type[c.RemoveMember] | type[c.RevokeMember],
) -> None:
    ledger = planned(chunks=3, sound=False)
    for number in range(c.ATTEMPTS_MAX - 1):
        ledger.must(grant(("j-0", f"x{number}", "bert")))
        ledger.must(c.ExpireLeases(attempts=(f"x{number}",), what="silent"))
    ledger.must(grant(("j-0", "a", "bert"), ("j-1", "b", "bert"), ("j-2", "d", "bert")))
    ledger.must(second(("j-1", "e", "carl", "b")))
    ledger.must(leaves(node="bert", by="anna"))
    assert ledger.job_state("j") == "failed"
    found = {name: attempt(ledger, name).state for name in "abde"}
    assert found == {"a": "expired", "b": "abandoned", "d": "abandoned", "e": "abandoned"}


def test_what_the_coordinator_saw_too_late_is_skipped() -> None:
    def skipped(ledger: Ledger, lease: tuple[str, str, str, str]) -> None:
        before = ledger.dump()
        ledger.must(second(lease))
        assert ledger.dump() == before

    ledger = planned(chunks=2)
    skipped(ledger, ("j-0", "b", "carl", "a"))  # it is not leased
    ledger.must(grant(("j-0", "a", "bert"), ("j-1", "x", "carl"), ("j-s", "s", "anna")))
    skipped(ledger, ("j-0", "b", "bert", "a"))  # its own node
    skipped(ledger, ("j-0", "b", "carl", "x"))  # another holds it
    skipped(ledger, ("j-0", "x", "carl", "a"))  # an attempt of this id is known
    skipped(ledger, ("j-0", "b", "dora", "a"))  # no member
    skipped(ledger, ("nothing", "b", "carl", "a"))
    skipped(ledger, ("j-s", "b", "carl", "s"))  # only the owner has all of the film
    ledger.must(second(("j-0", "b", "carl", "a")))
    skipped(ledger, ("j-0", "c", "anna", "a"))  # two are enough
    ledger.must(ledger.finish("b"))
    skipped(ledger, ("j-0", "c", "anna", "a"))
    ledger.must(ledger.accept("j", "b"))
    skipped(ledger, ("j-0", "c", "anna", "b"))
    # A node that failed at it by itself gets it no second time.
    ledger.must(ledger.fail("x", node="carl", failure="encoder"))
    ledger.must(grant(("j-1", "y", "bert")))
    skipped(ledger, ("j-1", "z", "carl", "y"))
    # A whole film has a task that could be done twice and may not: its job knows one lease.
    ledger.planned("whole")
    ledger.leased("whole", "w", "bert")
    skipped(ledger, ("whole-t", "b2", "carl", "w"))


def test_a_second_lease_names_its_device_as_the_first_does() -> None:
    ledger = planned(chunks=2, sound=False)
    cpu = DeviceSlots(device="cpu", label="", slots=2, encoders=("libsvtav1",))
    ledger.must(ReportSlots(node="carl", devices=(cpu,)))
    ledger.must(grant(("j-0", "a", "bert")))
    lease = c.SpeculativeLease(task="j-0", attempt="b", node="carl", device="gpu0", beside="a")
    ledger.must(c.SpeculateLeases(leases=(lease,), granted_at_ms=8))
    assert ledger.reader.attempt("b") is None
    lease = replace(lease, device="cpu")
    ledger.must(c.SpeculateLeases(leases=(lease,), granted_at_ms=8))
    assert attempt(ledger, "b").device == "cpu"


def test_frames_of_a_part_count_once() -> None:
    ledger = Ledger().formed("bert", "carl").submitted("j", split=True)
    ledger.must(c.StartPlanning(job="j"))
    ledger.must(replace(pieces(sound=False), plan_json='{"frames": 12, "split": {}}'))
    ledger.must(grant(("j-0", "a", "bert"), ("j-1", "x", "bert")))
    ledger.must(second(("j-0", "b", "carl", "a")))
    for name in ("a", "b"):
        ledger.must(ledger.finish(name))
    assert ledger.reader.film_frames("j") == (6, 12)
    ledger.must(ledger.finish("x"))
    assert ledger.reader.film_frames("j") == (12, 12)


def test_who_may_be_helped_is_seen_by_the_scheduler() -> None:
    ledger = planned(chunks=2)
    ledger.must(grant(("j-0", "a", "bert"), ("j-1", "x", "bert"), ("j-s", "s", "anna")))

    def alone() -> set[str]:
        return {run.attempt for run in ledger.reader.schedulable().running if run.is_alone}

    assert alone() == {"a", "x"}
    ledger.must(second(("j-0", "b", "carl", "a")))
    assert alone() == {"x"}
    ledger.must(ledger.finish("b"))
    assert alone() == {"x"}
    ledger.must(ledger.refuse("j", "b"))
    assert alone() == {"a", "x"}


def test_a_ledger_of_an_older_form_knows_no_second_attempts() -> None:
    ledger = Ledger()
    ledger.must(c.FormMesh(mesh="m" * 32, founder=spec("anna"), schema=2))
    ledger.must(node_report("anna"))
    ledger.must(c.AddMember(member=spec("bert"), invitation=None))
    ledger.submitted("j", split=True)
    ledger.must(c.StartPlanning(job="j"))
    ledger.must(pieces(sound=False))
    ledger.must(grant(("j-0", "a", "anna")))
    assert [run.is_alone for run in ledger.reader.schedulable().running] == [False]
    assert ledger.refused(second(("j-0", "b", "bert", "a"))) == "conflict"


def test_broken_promises_are_seen() -> None:
    ledger = running_twice()
    rows = SqliteRows(ledger.store.connection)
    good = attempt(ledger, "b")
    for wrong in (
        replace(good, node="bert"),
        replace(good, state="kept"),
        replace(good, state="finished"),
    ):
        rows.put(wrong)
        assert any("j-0 is leased with live attempts" in one for one in violations(rows)), wrong
    rows.put(good)
    rows.put(replace(good, id="c", node="anna", number=3, token=good.token + 1))
    assert any("on 3 nodes" in one for one in violations(rows))
    rows.delete(Attempt, "c")
    assert violations(rows) == []
    rows.put(replace(part(ledger), kind="audio"))
    assert any("j-0 is leased with live attempts" in one for one in violations(rows))


@pytest.mark.parametrize("seed", range(40))
def test_whatever_comes_in_whatever_order_each_part_is_kept_once(seed: int) -> None:
    """Commands drawn at random; `Ledger.do` holds the invariants after each."""
    random = Random(seed)
    ledger = planned(chunks=3, sound=False)
    nodes = ["anna", "bert", "carl"]
    for number in range(150):
        attempts = ledger.reader.attempts("j")
        one = random.choice(attempts).id if attempts else "none"
        task = f"j-{random.choice(['0', '1', '2', 'e'])}"
        fresh, node = f"n{number}", random.choice(nodes)
        if one == "none" or random.random() < 0.3:
            ledger.do(grant((task, fresh, node)))
        elif random.random() < 0.4:
            ledger.do(second((attempt(ledger, one).task, fresh, node, one)))
        elif random.random() < 0.2:
            kinds = list(ENDS.values())
            ledger.do(random.choice(kinds)(ledger, one))
        else:
            steps = (ledger.finish(one), ledger.accept("j", one), ledger.refuse("j", one))
            ledger.do(random.choices(steps, (3, 3, 1))[0])
    kept = [a for a in ledger.reader.attempts("j") if a.state == "kept"]
    assert len({a.task for a in kept}) == len(kept)
