"""Room for a film is reserved where that is quick, and not where the disk fills it in."""

import errno
import os
import sys

import pytest

from mesh import clock
from mesh.allocate_files import allocate

PIECE = 16 << 20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux reserves so")


def reserved(monkeypatch: pytest.MonkeyPatch, took_ms: list[int]) -> list[int]:
    """The pieces that are reserved, when each takes so long."""
    now_ms, pieces = 0, list[int]()

    def fallocate(_: int, at: int, size: int) -> None:
        nonlocal now_ms
        assert size <= PIECE
        now_ms += took_ms[len(pieces)]
        pieces.append(at // PIECE)

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    monkeypatch.setattr(clock, "monotonic_ms", lambda: now_ms)
    allocate(0, 0, len(took_ms) * PIECE - 5)
    return pieces


def test_a_disk_that_notes_it_reserves_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reserved(monkeypatch, [0, 1, 0, 1, 1, 1]) == [0, 1, 2, 3, 4, 5]


def test_one_stall_is_no_reason_to_give_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reserved(monkeypatch, [0, 400, 0, 0, 90, 0]) == [0, 1, 2, 3, 4, 5]


def test_a_disk_that_fills_it_is_left_alone_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reserved(monkeypatch, [4, 4, 4, 4, 4, 4]) == [0, 1]


def test_a_file_system_that_cannot_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fallocate(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    allocate(0, 0, 3 * PIECE)


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fallocate(*_: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    with pytest.raises(OSError, match="space"):
        allocate(0, 0, PIECE)
