"""How long what runs still takes, told by its frames: steady, slower in the middle, in gusts, and not at all."""

import pytest

from ledger.scheduler_view import RunningView
from node.work.paces import GAPS, WHILE_MS, Paces
from node.work.progress import Phase, Progress
from tests.unit.test_scheduler import run

TOTAL = 1_000


def progress(frames: int, phase: Phase = "encoding", total: int = TOTAL) -> Progress:
    return Progress(job="j", attempt="a", node="n", phase=phase, frames=frames, frames_total=total)


class Watched:
    """One attempt, looked at twice a second."""

    def __init__(self) -> None:
        self.paces = Paces()
        self.now_ms = 0
        self.frames = 0.0

    def go(self, seconds: float, fps: float, phase: Phase = "encoding") -> float | None:
        for _ in range(int(2 * seconds)):
            self.now_ms += 500
            self.frames = min(TOTAL, self.frames + fps / 2)
            self.note(phase)
        return self.left_ms

    def note(self, phase: Phase = "encoding") -> None:
        self.paces.note(["a"], [progress(int(self.frames), phase)], self.now_ms)

    @property
    def left_ms(self) -> float | None:
        (found,) = self.paces.told([run("a", "n")], self.now_ms)
        return found.told_ms


def test_a_steady_run_ends_when_its_mean_says() -> None:
    watched = Watched()
    assert watched.go(20, 25) == pytest.approx(20_000, rel=0.05)
    assert watched.go(10, 25) == pytest.approx(10_000, rel=0.05)


def test_who_gets_ten_times_slower_is_noticed_within_the_while() -> None:
    watched = Watched()
    watched.go(20, 25)
    left = watched.go(WHILE_MS / 1_000 + 1, 2.5)
    # 472 frames at two and a half a second.
    assert left == pytest.approx(189_000, rel=0.1)


def test_who_stands_still_is_not_expected_to_end() -> None:
    watched = Watched()
    watched.go(20, 25)
    left = watched.go(5, 0)
    assert left is not None
    assert left > 30_000
    left = watched.go(10, 0)
    assert left is not None
    assert left > 3_600_000


def test_frames_in_gusts_are_no_standstill() -> None:
    watched = Watched()
    for _ in range(4):
        watched.go(20, 0)
        watched.frames += 100
        watched.note()
    left = watched.go(19, 0)
    assert left == pytest.approx(120_000, rel=0.35)
    # Silent for much longer than ever before.
    left = watched.go(20 * GAPS, 0)
    assert left is not None
    assert left > 3_600_000


def test_nothing_is_told_before_it_has_moved_twice() -> None:
    watched = Watched()
    assert watched.left_ms is None
    assert watched.go(60, 0) is None
    watched.frames = 40
    watched.note()
    assert watched.left_ms is None
    assert watched.go(2, 25) is not None


def test_who_is_looked_at_late_is_not_thought_to_be_fast() -> None:
    """A new coordinator meets it in the middle."""
    watched = Watched()
    watched.frames = 500
    watched.note()
    assert watched.go(4, 25) == pytest.approx(16_000, rel=0.15)


def test_judging_is_another_phase_and_the_last() -> None:
    watched = Watched()
    watched.go(40, 25)
    watched.frames = 0
    watched.note("verifying")
    assert watched.left_ms == 0
    assert watched.go(2, 100, "verifying") == pytest.approx(8_000, rel=0.4)
    # Whose frames are all there, and which does not end.
    left = watched.go(38, 100, "verifying")
    assert left is not None
    assert left > 20_000


def test_fetching_and_what_has_no_length_tell_nothing() -> None:
    paces = Paces()
    for frames in range(10):
        paces.note(["a"], [progress(frames, "fetching"), progress(frames, total=0)], 500 * frames)
    told: list[RunningView] = list(paces.told([run("a", "n")], 10_000))
    assert told[0].told_ms is None


def test_what_is_over_is_forgotten_and_what_is_not_asked_for_not_kept() -> None:
    watched = Watched()
    watched.go(20, 25)
    assert watched.left_ms is not None
    watched.paces.note(["b"], [progress(700)], watched.now_ms)
    assert watched.left_ms is None
