"""The checker against histories known to be good or bad, and against trying every order."""

import itertools
import random
from collections.abc import Hashable, Sequence

import pytest

from ledger.jobs import JOB_TRANSITIONS
from tests import linearizability
from tests.linearizability import (
    UNKNOWN,
    Accepted,
    Call,
    CompareAndSet,
    Conflict,
    Jobs,
    Model,
    Read,
    Register,
    Seen,
    Submit,
    UndecidedError,
    Write,
    violations,
)

JOBS = Jobs((before, after) for (before, _), after in JOB_TRANSITIONS.items())
Line = tuple[int, int | None, object, object]
"""Begin, end (None: no answer came), operation, answer."""


def history(lines: Sequence[Line], key: Hashable = "k") -> list[Call]:
    return [
        Call(
            key=key,
            operation=operation,
            answer=UNKNOWN if end is None else answer,
            begin=begin,
            end=begin if end is None else end,
            client=f"c{number}",
        )
        for number, (begin, end, operation, answer) in enumerate(lines)
    ]


def w(value: object) -> Write:
    return Write(value)


READ = Read()
SUBMIT = Submit()

GOOD_REGISTERS: dict[str, list[Line]] = {
    "nothing happened": [],
    "nothing written reads as nothing": [(0, 1, READ, None)],
    "one after the other": [
        (0, 1, w(1), None),
        (2, 3, READ, 1),
        (4, 5, w(2), None),
        (6, 7, READ, 2),
    ],
    "a read during a write sees the new value": [(0, 9, w(1), None), (1, 2, READ, 1)],
    "a read during a write sees the old value": [(0, 9, w(1), None), (1, 2, READ, None)],
    "concurrent writes in either order": [
        (0, 9, w(1), None),
        (0, 9, w(2), None),
        (10, 11, READ, 1),
        (12, 13, READ, 1),
    ],
    "old, then new, during one write": [
        (0, 9, w(1), None),
        (1, 2, READ, None),
        (3, 4, READ, 1),
    ],
    "a write without an answer took effect much later": [
        (0, None, w(1), None),
        (1, 2, w(2), None),
        (3, 4, READ, 2),
        (50, 51, READ, 1),
    ],
    "a write without an answer never took effect": [
        (0, None, w(1), None),
        (1, 2, w(2), None),
        (90, 91, READ, 2),
    ],
    "a read without an answer says nothing": [(0, 1, w(1), None), (2, None, READ, None)],
    "compare and set": [
        (0, 1, w(1), None),
        (2, 9, CompareAndSet(1, 2), True),
        (2, 9, CompareAndSet(1, 3), False),
        (10, 11, READ, 2),
    ],
    "calls that touch count as concurrent": [(0, 5, w(1), None), (5, 6, READ, None)],
    # Herlihy and Wing (1990), figure 2: the first of its registers' histories.
    "overlapping writes seen by overlapping reads": [
        (0, 10, w(0), None),
        (5, 30, w(1), None),
        (12, 20, READ, 0),
        (35, 40, READ, 1),
    ],
}
BAD_REGISTERS: dict[str, list[Line]] = {
    "a value that nobody wrote": [(0, 1, READ, 7)],
    "a lost write": [(0, 1, w(1), None), (2, 3, READ, None)],
    "a stale read": [(0, 1, w(1), None), (2, 3, w(2), None), (4, 5, READ, 1)],
    "new, then old": [(0, 9, w(1), None), (1, 2, READ, 1), (3, 4, READ, None)],
    "two readers disagree about the order": [
        (0, 9, w(1), None),
        (0, 9, w(2), None),
        (10, 11, READ, 1),
        (12, 13, READ, 2),
        (14, 15, READ, 1),
    ],
    "a write without an answer took effect twice": [
        (0, None, w(1), None),
        (1, 2, w(2), None),
        (3, 4, READ, 1),
        (5, 6, w(2), None),
        (7, 8, READ, 1),
    ],
    "a write without an answer was seen before it began": [(5, None, w(1), None), (0, 1, READ, 1)],
    "both of two sets of one expected value": [
        (0, 1, w(1), None),
        (2, 9, CompareAndSet(1, 2), True),
        (2, 9, CompareAndSet(1, 3), True),
    ],
    "seen, then gone, of a write without an answer": [
        (0, None, w(1), None),
        (1, 2, READ, 1),
        (3, 4, READ, None),
    ],
    # Herlihy and Wing (1990): H4, where the read of 0 lies behind the answered write of 1.
    "an old value behind the end of an overlapping write": [
        (0, 10, w(0), None),
        (5, 30, w(1), None),
        (12, 20, READ, 1),
        (35, 40, READ, 0),
    ],
}
A, B = Accepted("a"), Accepted("b")
GOOD_JOBS: dict[str, list[Line]] = {
    "submitted, seen, submitted again": [
        (0, 1, READ, None),
        (2, 3, SUBMIT, A),
        (4, 5, READ, Seen("a", "queued")),
        (6, 7, SUBMIT, Conflict()),
    ],
    "a lost answer, then a conflict": [
        (0, None, SUBMIT, None),
        (2, 3, SUBMIT, Conflict()),
        (4, 5, READ, Seen("a", "queued")),
    ],
    "a lost answer that did nothing, then a job": [
        (0, None, SUBMIT, None),
        (2, 3, READ, None),
        (4, 5, SUBMIT, A),
        (6, 7, READ, Seen("a", "queued")),
    ],
    "a lost answer that shows late": [
        (0, None, SUBMIT, None),
        (2, 3, READ, None),
        (80, 81, READ, Seen("a", "queued")),
    ],
    "the job goes on by itself": [
        (0, 1, SUBMIT, A),
        (2, 3, READ, Seen("a", "planning")),
        (4, 5, READ, Seen("a", "queued")),
        (6, 7, READ, Seen("a", "done")),
    ],
    "one of two at once is refused": [(0, 9, SUBMIT, A), (0, 9, SUBMIT, Conflict())],
}
BAD_JOBS: dict[str, list[Line]] = {
    "an acknowledged job is lost": [(0, 1, SUBMIT, A), (2, 3, READ, None)],
    "two jobs of one output": [(0, 9, SUBMIT, A), (0, 9, SUBMIT, B)],
    "doubled after a lost answer": [
        (0, None, SUBMIT, None),
        (2, 3, READ, Seen("a", "queued")),
        (4, 5, SUBMIT, B),
    ],
    "the job is another one": [
        (0, None, SUBMIT, None),
        (2, 3, READ, Seen("a", "queued")),
        (4, 5, READ, Seen("b", "queued")),
    ],
    "a conflict with nothing": [(0, 1, SUBMIT, Conflict()), (2, 3, SUBMIT, A)],
    "back from the end": [
        (0, 1, SUBMIT, A),
        (2, 3, READ, Seen("a", "done")),
        (4, 5, READ, Seen("a", "queued")),
    ],
    "gone again": [
        (0, None, SUBMIT, None),
        (2, 3, READ, Seen("a", "queued")),
        (4, 5, READ, None),
    ],
}


@pytest.mark.parametrize("name", GOOD_REGISTERS)
def test_good_histories_of_a_register(name: str) -> None:
    assert violations(Register(), history(GOOD_REGISTERS[name])) == ()


@pytest.mark.parametrize("name", BAD_REGISTERS)
def test_bad_histories_of_a_register(name: str) -> None:
    (found,) = violations(Register(), history(BAD_REGISTERS[name]))
    assert found.stuck
    assert "no call fits" in str(found)


@pytest.mark.parametrize("name", GOOD_JOBS)
def test_good_histories_of_jobs(name: str) -> None:
    assert violations(JOBS, history(GOOD_JOBS[name])) == ()


@pytest.mark.parametrize("name", BAD_JOBS)
def test_bad_histories_of_jobs(name: str) -> None:
    assert len(violations(JOBS, history(BAD_JOBS[name]))) == 1


def test_keys_are_searched_by_themselves() -> None:
    good, bad = GOOD_JOBS["the job goes on by itself"], BAD_JOBS["an acknowledged job is lost"]
    calls = [*history(good, "good"), *history(bad, "bad"), *history(good, "fine")]
    assert [v.key for v in violations(JOBS, calls)] == ["bad"]


def _by_trying_all(model: Model[Hashable], calls: Sequence[Call]) -> bool:
    """Every subset of the calls without an answer, in every order that time allows."""
    answered = [call for call in calls if call.answered]
    rest = [call for call in calls if not call.answered]
    return any(
        _fits(model, order)
        for size in range(len(rest) + 1)
        for some in itertools.combinations(rest, size)
        for order in itertools.permutations([*answered, *some])
    )


def _fits(model: Model[Hashable], order: Sequence[Call]) -> bool:
    for earlier, later in itertools.combinations(order, 2):
        if later.answered and later.end < earlier.begin:
            return False
    state: Hashable | None = model.initial()
    for call in order:
        state = model.step(state, call.operation, call.answer)
        if state is None:
            return False
    return True


def test_agrees_with_trying_every_order() -> None:
    draw = random.Random(7)
    verdicts = [0, 0]
    for _ in range(1_500):
        lines: list[Line] = []
        for _ in range(draw.randint(2, 5)):
            begin = draw.randrange(12)
            end = None if draw.random() < 0.25 else begin + draw.randrange(6)
            value = draw.choice([None, 1, 2])
            operation, answer = draw.choice(
                [
                    (w(draw.choice([1, 2])), None),
                    (READ, value),
                    (CompareAndSet(value, draw.choice([1, 2])), draw.random() < 0.5),
                ]
            )
            lines.append((begin, end, operation, answer))
        calls = history(lines)
        expected = _by_trying_all(Register(), calls)
        assert (violations(Register(), calls) == ()) is expected, lines
        verdicts[expected] += 1
    assert min(verdicts) > 300, verdicts


def test_long_histories_of_one_key_are_quick_and_too_wide_ones_are_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines: list[Line] = [(0, 1, SUBMIT, A)]
    lines += [(2 + n, 4 + n, READ, Seen("a", "queued")) for n in range(2_000)]
    lines += [(n, None, SUBMIT, None) for n in range(100)]
    assert violations(JOBS, history(lines)) == ()
    # Sixteen writes at once, and a read that none explains: every subset is a configuration.
    monkeypatch.setattr(linearizability, "CONFIGURATIONS_MAX", 2_000)
    wide: list[Line] = [(0, 9, w(n), None) for n in range(16)]
    with pytest.raises(UndecidedError):
        violations(Register(), history([*wide, (10, 11, READ, 99)]))
