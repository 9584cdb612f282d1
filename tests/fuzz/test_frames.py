"""A few thousand bent messages for every door; `python -m tests.fuzz --inputs 5000000` gives millions."""

import random

import pytest

from tests.fuzz.__main__ import run
from tests.fuzz.targets import TARGETS

INPUTS = 1_500


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_bent_messages_break_nothing(target: str) -> None:
    batch = run(target, 0, INPUTS)
    assert not batch.finding
    assert batch.inputs == INPUTS


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_inputs_are_those_of_the_seed_and_many_are_read(target: str) -> None:
    """A mutator whose every input is garbage would find nothing."""
    first, second = (TARGETS[target](random.Random(7))[0] for _ in range(2))
    inputs = [first.next() for _ in range(200)]
    assert inputs == [second.next() for _ in range(200)]
    assert len(set(inputs)) > 150
