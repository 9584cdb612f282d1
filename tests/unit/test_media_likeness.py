"""Tiny pictures laid beside each other: what is told apart, and what is left alone."""

import random

import pytest

from node.media.likeness import (
    FLAT,
    HEIGHT,
    PLACES_MAX,
    POINTS,
    WIDTH,
    Thumb,
    differs,
    moves_otherwise,
    places,
    spread,
    tells,
)


def picture(at: int, *, seed: int = 1, noise: int = 0) -> Thumb:
    """A bright square that moves over something uneven; `noise` is what an encoder does to it."""
    dice = random.Random(seed)
    ground = [dice.randrange(60, 120) for _ in range(POINTS)]
    for row in range(6):
        for column in range(6):
            ground[(row + 8) * WIDTH + (at + column) % WIDTH] = 220
    shaken = random.Random(at)
    luma = bytes(max(0, min(255, v + shaken.randint(-noise, noise))) for v in ground)
    return Thumb(luma, bytes([90] * POINTS), bytes([170] * POINTS))


FILM = [picture(at) for at in range(8)]


def painted(one: Thumb, part: slice) -> Thumb:
    luma = bytearray(one.luma)
    luma[part] = bytes([128]) * len(luma[part])
    return Thumb(bytes(luma), one.blue, one.red)


def test_the_same_with_noise_other_brightness_or_contrast_is_the_same() -> None:
    for noise in (0, 5, 20):
        assert not differs(picture(3, noise=noise), FILM[1:6], 2)
    paler = Thumb(bytes(v // 2 + 60 for v in FILM[3].luma), FILM[3].blue, FILM[3].red)
    assert not differs(paler, FILM[1:6], 2)


@pytest.mark.parametrize(
    ("made", "what"),
    [
        (picture(19, seed=9), "another picture"),
        (picture(2), "beside"),
        (picture(5, noise=5), "beside"),
        (painted(FILM[3], slice(POINTS // 2, POINTS)), "lower half"),
        (Thumb(FILM[3].luma, FILM[3].red, FILM[3].blue), "exchanged"),
        (Thumb(FILM[3].luma, bytes([128] * POINTS), bytes([128] * POINTS)), "gone"),
    ],
)
def test_what_is_something_else_is_told(made: Thumb, what: str) -> None:
    assert what in differs(made, FILM[1:6], 2)


def test_each_side_is_looked_at() -> None:
    right = bytearray(FILM[3].luma)
    for row in range(HEIGHT):
        right[row * WIDTH + WIDTH // 2 : (row + 1) * WIDTH] = bytes([90]) * (WIDTH // 2)
    assert "right half" in differs(Thumb(bytes(right), FILM[3].blue, FILM[3].red), FILM, 3)


def test_black_and_what_stands_still_tell_nothing() -> None:
    black = Thumb(bytes([16] * POINTS), bytes([128] * POINTS), bytes([128] * POINTS))
    assert spread(black.luma) < FLAT
    assert not differs(FILM[0], [black, black], 0)
    assert not differs(FILM[3], [FILM[3]] * 5, 2)


def test_what_stands_still_where_the_film_moves_or_moves_elsewhere_is_told() -> None:
    film = (FILM[0], FILM[7])
    assert not moves_otherwise((picture(0, noise=5), picture(7, noise=5)), film)
    assert moves_otherwise((FILM[0], FILM[0]), film)
    assert moves_otherwise((picture(16), picture(23)), film)
    assert not moves_otherwise((FILM[0], FILM[7]), (FILM[0], FILM[0])), "the film does not move"


def test_places_lie_in_each_part_of_the_film_and_nobody_knows_them_before() -> None:
    minute = 60_000_000
    assert places(4_000_000, "a")[0] == 0
    assert len(places(4_000_000, "a")) == 2
    found = places(10 * minute, "a")
    assert [at // minute for at in found[1:]] == list(range(10))
    assert found != places(10 * minute, "b")
    assert len(places(1_000 * minute, "a")) == 1 + PLACES_MAX


def test_what_is_far_from_its_film_by_intent_is_not_looked_at() -> None:
    assert tells("h264", 35)
    assert not tells("hevc", 36)
    assert tells("av1", 50)
    assert not tells("av1", 51)
    assert tells("ffv1", 63)
