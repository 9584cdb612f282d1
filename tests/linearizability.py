"""Whether a history of concurrent calls could have happened one call after the other.

The search of Wing and Gong ("Testing and verifying concurrent objects", 1993) with Lowe's memory of
configurations ("Testing for linearizability", 2017): each call is put at one moment between its
beginning and its end, and the model must give the answer that the client saw.  Herlihy and Wing's
locality lets every key be searched by itself.

A call without an answer (timed out, its node killed) may take effect at any moment after it began,
also after everything else, or never.
"""

import itertools
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

S = TypeVar("S", bound=Hashable)

CONFIGURATIONS_MAX: Final = 1_000_000
"""Configurations of one key remembered before the search gives up: about a minute and 300 MB."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """No answer came."""


UNKNOWN: Final = Unknown()


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a client on one key.

    Times are of one clock.  Calls that touch at one instant count as concurrent, so a coarse clock
    hides a fault rather than inventing one.  `end` of a call without an answer means nothing.
    """

    key: Hashable
    operation: object
    answer: object
    begin: int
    end: int
    client: str = ""

    @property
    def answered(self) -> bool:
        """Whether the client knows what became of it."""
        return not isinstance(self.answer, Unknown)


class Model(Protocol[S]):
    """One key of the sequential object: deterministic, states can be hashed."""

    def initial(self) -> S:
        """The state before every call."""
        ...

    def step(self, state: S, operation: object, answer: object) -> S | None:
        """The state behind a call with this answer (`UNKNOWN`: any), None when it cannot be given."""
        ...


class UndecidedError(Exception):
    """Too many configurations: nothing was found out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation(Generic[S]):
    """A key whose calls fit no order: the longest order that fits, and what could not follow it."""

    key: Hashable
    state: S
    done: tuple[Call, ...]
    stuck: tuple[Call, ...]

    def __str__(self) -> str:
        lines = [f"key {self.key!r}: after {len(self.done)} calls, in state {self.state!r},"]
        lines += [f"  no call fits of: {_line(call)}" for call in self.stuck[:8]]
        lines += [f"  before them: {_line(call)}" for call in self.done[-8:]]
        return "\n".join(lines)


def violations(model: Model[S], calls: Iterable[Call]) -> tuple[Violation[S], ...]:
    """One for each key that is not linearizable.  Raises `UndecidedError`."""
    by_key: dict[Hashable, list[Call]] = defaultdict(list)
    for call in calls:
        by_key[call.key].append(call)
    found = (_search(model, key, part) for key, part in by_key.items())
    return tuple(violation for violation in found if violation is not None)


def _search(model: Model[S], key: Hashable, calls: Sequence[Call]) -> Violation[S] | None:
    """Depth first over configurations: the set of calls that took effect, and the state behind them.

    The next call to take effect is any that began before the first end among those left.
    """
    calls = sorted(calls, key=lambda call: call.begin)
    answered = sum(1 << n for n, call in enumerate(calls) if call.answered)
    first = (0, model.initial())
    seen: set[tuple[int, S]] = {first}
    path: list[tuple[int, S, list[tuple[int, S]]]] = [(*first, _next(model, calls, *first))]
    best: tuple[int, S] = first
    order: list[int] = []
    while path:
        done, state, choices = path[-1]
        if done & answered == answered:
            return None
        if (done & answered).bit_count() > (best[0] & answered).bit_count():
            best, order = (done, state), _order([step[0] for step in path])
        chosen = next((choice for choice in _taken(choices) if choice not in seen), None)
        if chosen is None:
            path.pop()
            continue
        if len(seen) >= CONFIGURATIONS_MAX:
            raise UndecidedError(f"key {key!r}: more than {CONFIGURATIONS_MAX} configurations")
        seen.add(chosen)
        path.append((*chosen, _next(model, calls, *chosen)))
    return Violation(
        key=key,
        state=best[1],
        done=tuple(calls[n] for n in order),
        stuck=tuple(calls[n] for n in _candidates(calls, best[0])),
    )


def _next(model: Model[S], calls: Sequence[Call], done: int, state: S) -> list[tuple[int, S]]:
    """Configurations one call further.

    A read that fits and changes nothing loses nothing by being next: then there is no other choice.
    (A write that changes nothing does: behind another write it would.)  A call without an answer
    that changes nothing need not be placed here.
    """
    found: list[tuple[int, S]] = []
    for number in _candidates(calls, done):
        call = calls[number]
        after = model.step(state, call.operation, call.answer)
        if after is None:
            continue
        if after != state:
            found.append((done | 1 << number, after))
        elif call.answered and isinstance(call.operation, Read):
            return [(done | 1 << number, after)]
        elif call.answered:
            found.append((done | 1 << number, after))
    return found


def _taken(choices: list[tuple[int, S]]) -> Iterator[tuple[int, S]]:
    while choices:
        yield choices.pop(0)


def _candidates(calls: Sequence[Call], done: int) -> list[int]:
    """Numbers of the calls that may be next: begun no later than the first end among those left."""
    found: list[int] = []
    first_end: int | None = None
    # By beginning: what begins behind the first end comes later.
    for number in range((~done & (done + 1)).bit_length() - 1, len(calls)):
        call = calls[number]
        if done >> number & 1:
            continue
        if first_end is not None and call.begin > first_end:
            break
        found.append(number)
        if call.answered:
            first_end = call.end if first_end is None else min(first_end, call.end)
    return [n for n in found if first_end is None or calls[n].begin <= first_end]


def _order(steps: Sequence[int]) -> list[int]:
    """Which call each step of a path added."""
    return [(after ^ before).bit_length() - 1 for before, after in itertools.pairwise(steps)]


def _line(call: Call) -> str:
    end = call.end if call.answered else "never"
    return f"{call.begin}..{end} {call.client}: {call.operation} -> {call.answer}"


# --- models ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Write:
    """Sets a register; answered by anything."""

    value: object


@dataclass(frozen=True, slots=True)
class CompareAndSet:
    """Sets a register when it holds `expected`; answered by whether it did."""

    expected: object
    value: object


@dataclass(frozen=True, slots=True)
class Read:
    """Answered by a register's value, or by `Seen` of a job, None while there is none."""


class Register:
    """A register that holds None at first (the object on which checkers are tried)."""

    def initial(self) -> Hashable:
        """Nothing written."""
        return (None,)

    def step(self, state: Hashable, operation: object, answer: object) -> Hashable | None:
        """State is the value in a tuple, so that None is a value like others."""
        match operation:
            case Write(value=value):
                return (value,)
            case CompareAndSet(expected=expected, value=value):
                took = state == (expected,)
                if not isinstance(answer, Unknown) and answer is not took:
                    return None
                return (value,) if took else state
            case Read():
                return state if isinstance(answer, Unknown) or state == (answer,) else None
            case _:
                raise TypeError(operation)


@dataclass(frozen=True, slots=True)
class Submit:
    """A job for this key's output; answered by `Accepted`, or by `Conflict` while one is there."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The job got this id."""

    id: str


@dataclass(frozen=True, slots=True)
class Conflict:
    """A job for the same output is live."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A job as a client saw it.  As a state: the id is empty while no client has learnt it."""

    id: str
    state: str


class Jobs:
    """One output of the ledger: at most one job is ever made of it, and its state moves by a table.

    For jobs that do not end while the history is recorded: an output is free again behind the end.
    `transitions` are the pairs of states between which a job may move without a client's doing.
    """

    def __init__(self, transitions: Iterable[tuple[str, str]]) -> None:
        self._reachable = _closure(transitions)

    def initial(self) -> "Held":
        """No job."""
        return ()

    def step(self, state: "Held", operation: object, answer: object) -> "Held | None":
        """A submission makes the job if there is none; a read may see it moved on."""
        match operation:
            case Submit():
                return _submitted(state, answer)
            case Read():
                return state if isinstance(answer, Unknown) else self._read(state, answer)
            case _:
                raise TypeError(operation)

    def _read(self, state: "Held", answer: object) -> "Held | None":
        if answer is None or not isinstance(state, Seen):
            return state if answer is None and not state else None
        assert isinstance(answer, Seen), answer
        moved = answer.state in (state.state, *self._reachable.get(state.state, ()))
        return answer if moved and state.id in ("", answer.id) else None


Held = Seen | tuple[()]
"""A job, or none."""


def _submitted(state: Held, answer: object) -> Held | None:
    match answer:
        case Accepted(id=job):
            return None if state else Seen(job, "queued")
        case Conflict():
            return state or None
        case Unknown():
            return state or Seen("", "queued")
        case _:
            raise TypeError(answer)


def _closure(pairs: Iterable[tuple[str, str]]) -> Mapping[str, frozenset[str]]:
    direct: dict[str, set[str]] = defaultdict(set)
    for before, after in pairs:
        direct[before].add(after)
    found: dict[str, frozenset[str]] = {}
    for start in direct:
        reached: set[str] = set()
        todo = [start]
        while todo:
            for after in direct.get(todo.pop(), ()):
                if after not in reached:
                    reached.add(after)
                    todo.append(after)
        found[start] = frozenset(reached)
    return found
