"""What travels compressed, and what a compressed chunk may claim."""

import os
import random
import tracemalloc
from itertools import pairwise

import pytest
import zstandard

from mesh.compression import SKIPPED_FIRST, SKIPPED_MAX, Expander, Shrinker
from mesh.errors import WireError
from mesh.transport import CHUNK_BYTES

NOISE = os.urandom(64 << 10)
TEXT = b"a ledger repeats itself, " * 2_000


def test_what_shrinks_comes_back_as_it_was() -> None:
    small = Shrinker().shrunk(TEXT)
    assert small is not None
    assert len(small) < len(TEXT) / 10
    assert Expander().plain(memoryview(small), len(TEXT)) == TEXT


def test_a_film_is_sampled_less_and_less() -> None:
    shrinker = Shrinker()
    looked = []
    for number in range(4_000):
        before = shrinker.tried
        assert shrinker.shrunk(NOISE) is None
        looked += [number] * (shrinker.tried - before)
    gaps = [b - a - 1 for a, b in pairwise(looked)]
    assert gaps[:3] == [SKIPPED_FIRST, 2 * SKIPPED_FIRST + 1, 4 * SKIPPED_FIRST + 3]
    assert max(gaps) <= SKIPPED_MAX
    assert len(looked) < 12


def test_a_source_that_begins_to_shrink_is_found_out() -> None:
    shrinker = Shrinker()
    assert shrinker.shrunk(NOISE) is None
    found = [shrinker.shrunk(TEXT) is not None for _ in range(SKIPPED_FIRST + 3)]
    assert found == [False] * SKIPPED_FIRST + [True] * 3


@pytest.mark.parametrize("seed", range(200))
def test_nonsense_is_refused(seed: int) -> None:
    draw = random.Random(seed)
    data = bytearray(zstandard.ZstdCompressor().compress(TEXT))
    for _ in range(draw.randint(1, 5)):
        data[draw.randrange(len(data))] = draw.randrange(256)
    cut = bytes(data[: draw.randrange(len(data) + 1)])
    try:
        found = Expander().plain(memoryview(cut), len(TEXT))
    except WireError:
        return
    assert len(found) == len(TEXT)  # its digest tells the rest


def test_a_bomb_is_refused_by_what_it_claims() -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(1 << 30))
    assert len(bomb) < 200_000
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 << 20))
    tracemalloc.start()
    try:
        for claim in (bomb, silent, bomb[:40], b""):
            with pytest.raises(WireError):
                Expander().plain(memoryview(claim), CHUNK_BYTES)
        assert tracemalloc.get_traced_memory()[1] < 4 * CHUNK_BYTES
    finally:
        tracemalloc.stop()
