"""The judges of the media tests: they must notice what they are there for."""

from fractions import Fraction

import numpy as np
import pytest

from tests.film_judge import Heard, Seen, compare, lag_s
from tests.fingerprint import Shown, farthest, numbers_of

RATE = 8_000
_random = np.random.default_rng(7)


def film(frames: int = 12) -> list[Shown]:
    """Neighbours are alike, as in films: each frame is its predecessor and a little more."""
    walk = np.cumsum(_random.normal(size=(frames, 768)).astype(np.float32), axis=0)
    return [(Fraction(n, 25), p / np.linalg.norm(p)) for n, p in enumerate(walk)]


def noisy(shown: list[Shown], noise: float) -> list[Shown]:
    return [
        (at, p + (noise * _random.normal(size=p.shape) / np.sqrt(p.size)).astype(np.float32))
        for at, p in shown
    ]


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.3])
def test_each_frame_is_known_again_through_noise(noise: float) -> None:
    source = film()
    assert numbers_of(noisy(source, noise), source) == list(range(12))


def test_doubled_lost_and_exchanged_frames_show() -> None:
    source = film()
    doubled = noisy([*source[:6], source[5], *source[7:]], 0.05)
    assert numbers_of(doubled, source)[5:8] == [5, 5, 7]
    assert numbers_of([*source[:6], *source[7:]], source)[5:8] == [5, 7, 8]
    exchanged = [*source[:5], source[6], source[5], *source[7:]]
    assert numbers_of(exchanged, source)[4:8] == [4, 6, 5, 7]


def test_frames_that_are_the_same_picture_prove_nothing_against_a_film() -> None:
    source = film()
    still = [*source[:6], (source[6][0], source[5][1]), *source[7:]]
    assert numbers_of(noisy(still, 0.05), still) == list(range(12))


def test_times_are_compared_one_by_one() -> None:
    source = film()
    late = [(at + Fraction(n == 7, 100), p) for n, (at, p) in enumerate(source)]
    assert farthest(late, source) == Fraction(1, 100)


def sound(start_s: float = 0.0, *, later: int = 0, gap: int = 0) -> Heard:
    at = np.arange(3 * RATE) / RATE
    samples = np.sin(2 * np.pi * (300 + 90 * at) * at).astype(np.float32)
    samples = np.concatenate([np.zeros(later, np.float32), samples])[: 3 * RATE]
    middle = len(samples) // 2
    parts = [samples[:middle], np.zeros(gap, np.float32), samples[middle:]]
    return Heard(start_s, RATE, 160, np.concatenate(parts))


def test_a_sound_that_comes_late_is_heard_to_be_late() -> None:
    assert lag_s(sound(), sound(), (0.0, 1.0)) == 0.0
    assert lag_s(sound(later=80), sound(), (0.0, 1.0)) == pytest.approx(0.010)
    assert lag_s(sound(0.02), sound(), (0.0, 1.0)) == pytest.approx(0.020)
    assert lag_s(sound(gap=800), sound(), (0.7, 1.0)) == pytest.approx(0.100)
    silent = Heard(0.0, RATE, 160, np.zeros(3 * RATE, np.float32))
    assert lag_s(silent, silent, (0.0, 1.0)) is None
    with pytest.raises(AssertionError, match="another sound"):
        lag_s(Heard(0.0, RATE, 160, sound().samples[::-1].copy()), sound(), (0.0, 0.3))


def test_the_comparison_names_what_is_wrong() -> None:
    source = film()

    def seen(frames: list[Shown], heard: Heard) -> Seen:
        return Seen(frames, Fraction(1, 1000), [heard], [], [""], [], ["video", "audio"])

    def faults(frames: list[Shown], heard: Heard) -> list[str]:
        return compare(seen(frames, heard), seen(source, sound())).faults()

    assert faults(source, sound()) == []
    assert faults(source[:-1], sound())[0] == "frames"
    assert faults(source, sound(0.006)) == ["the sound's start", "the sound's place"]
    assert faults(source, sound(gap=400)) == ["the sound's length", "the sound's place"]
