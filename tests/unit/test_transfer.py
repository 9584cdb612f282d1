"""The receiver's core, stepped by hand: window, silence, damage, resume."""

import pytest

from mesh import transfer
from mesh.download import ASK_AGAIN_MIN_MS, CHUNK_TRIES_MAX, GIVE_UP_MS, Ask, Download
from mesh.errors import NotAllowedError, TransferError, UsageError, WireError
from mesh.transfer import ByteRange, Manifest, Refusal, bytes_of, checked, error_of, spans_of
from mesh.transport import CHUNK_BYTES, WINDOW_BYTES_MAX, WINDOW_BYTES_MIN

DIGEST = "0" * 64


def manifest(chunks: float) -> Manifest:
    return Manifest(size=int(chunks * CHUNK_BYTES), digest=DIGEST)


def download(chunks: float, have: bytes | None = None) -> Download:
    m = manifest(chunks)
    return Download(m, m.whole, bytearray(have or bytes(m.chunks)), 0)


def asks(d: Download, now_ms: int) -> tuple[Ask, ...]:
    """All that it asks for now."""
    d.tick(now_ms)
    found: list[Ask] = []
    while (ask := d.ask(now_ms)) is not None:
        found.append(ask)
    return tuple(found)


def test_all_chunks_are_asked_for_once_and_then_it_is_done() -> None:
    d = download(2.5)
    asked = asks(d, 0)
    assert [(a.offset, a.length) for a in asked] == [
        (0, CHUNK_BYTES),
        (CHUNK_BYTES, CHUNK_BYTES),
        (2 * CHUNK_BYTES, CHUNK_BYTES // 2),
    ]
    for ask in reversed(asked):
        assert not d.done
        assert d.receive(ask.offset, ask.length, True, 1) == "write"
    assert d.done
    assert d.bytes_done == d.manifest.size
    assert asks(d, 2) == ()


def test_an_empty_file_needs_nothing() -> None:
    d = download(0)
    assert d.done
    assert asks(d, 0) == ()


def test_the_window_bounds_what_is_on_its_way_and_widens() -> None:
    d = download(200)
    slots = WINDOW_BYTES_MIN // CHUNK_BYTES
    waiting = list(asks(d, 0))
    assert len(waiting) == slots
    now = 0
    while waiting:
        now += 1
        ask = waiting.pop(0)
        d.receive(ask.offset, ask.length, True, now)
        waiting += asks(d, now)
        assert d.in_flight * CHUNK_BYTES <= WINDOW_BYTES_MAX
        slots = max(slots, d.in_flight)
    assert d.done
    assert slots * CHUNK_BYTES == WINDOW_BYTES_MAX


def test_a_slow_link_keeps_the_small_window() -> None:
    d = download(40)
    waiting = list(asks(d, 0))
    now = 0
    while waiting:
        now += 1_000
        ask = waiting.pop(0)
        d.receive(ask.offset, ask.length, True, now)
        waiting += asks(d, now)
        assert d.in_flight * CHUNK_BYTES <= WINDOW_BYTES_MIN
    assert d.done
    assert d.asked_again == 0


def test_silence_asks_again_and_then_gives_up() -> None:
    d = download(3)
    first = asks(d, 0)
    assert asks(d, ASK_AGAIN_MIN_MS) == ()
    # One of them, to see whether anybody is there; its answer opens the window again.
    assert asks(d, ASK_AGAIN_MIN_MS + 1) == first[:1]
    assert d.asked_again == 3
    d.receive(first[0].offset, first[0].length, True, ASK_AGAIN_MIN_MS + 2)
    assert asks(d, ASK_AGAIN_MIN_MS + 2) == first[1:]
    with pytest.raises(TransferError, match="no chunk arrived"):
        asks(d, ASK_AGAIN_MIN_MS + GIVE_UP_MS + 3)


def test_a_lost_connection_makes_chunks_missing_in_order() -> None:
    d = download(6)
    first = asks(d, 0)
    d.receive(first[1].offset, first[1].length, True, 1)
    d.lost(2)
    assert d.in_flight == 0
    assert [ask.index for ask in asks(d, 2)] == [0, 2, 3, 4]


def test_a_damaged_chunk_is_asked_for_again_and_then_given_up() -> None:
    d = download(1)
    for _ in range(CHUNK_TRIES_MAX - 1):
        (ask,) = asks(d, 0)
        assert d.receive(ask.offset, ask.length, False, 1) == "bad"
    (ask,) = asks(d, 0)
    with pytest.raises(TransferError, match="damaged"):
        d.receive(ask.offset, ask.length, False, 1)


def test_a_chunk_of_the_wrong_length_is_damaged() -> None:
    d = download(1)
    (ask,) = asks(d, 0)
    assert d.receive(ask.offset, ask.length - 1, True, 1) == "bad"
    assert not d.done


@pytest.mark.parametrize("offset", [-1, 1, CHUNK_BYTES * 5, -CHUNK_BYTES])
def test_chunks_that_nobody_asked_for_are_ignored(offset: int) -> None:
    d = download(2)
    asks(d, 0)
    assert d.receive(offset, CHUNK_BYTES, True, 1) == "ignore"
    assert d.bytes_done == 0


def test_a_chunk_that_comes_twice_counts_once() -> None:
    d = download(2)
    ask, _ = asks(d, 0)
    assert d.receive(ask.offset, ask.length, True, 1) == "write"
    assert d.receive(ask.offset, ask.length, True, 1) == "ignore"
    assert d.bytes_done == CHUNK_BYTES


def test_resuming_asks_only_for_what_is_missing() -> None:
    d = download(3.5, have=bytes([1, 0, 1, 0]))
    assert d.bytes_done == 2 * CHUNK_BYTES
    assert [(a.index, a.length) for a in asks(d, 0)] == [(1, CHUNK_BYTES), (3, CHUNK_BYTES // 2)]


def test_a_part_asks_for_its_chunks_alone_and_is_done_with_them() -> None:
    m = manifest(9.5)
    d = Download(m, (range(1, 3), range(8, 10)), bytearray([0, 0, 1, 0, 0, 0, 0, 0, 0, 0]), 0)
    assert (d.bytes_done, d.bytes_total) == (CHUNK_BYTES, 3 * CHUNK_BYTES + CHUNK_BYTES // 2)
    asked = asks(d, 0)
    assert [ask.index for ask in asked] == [1, 8, 9]
    for ask in asked:
        d.receive(ask.offset, ask.length, True, 1)
    assert d.done
    assert d.bytes_done == d.bytes_total


def test_a_chunk_that_was_given_up_and_comes_after_all_is_taken() -> None:
    d = download(2)
    first, _ = asks(d, 0)
    d.lost(1)
    assert d.receive(first.offset, first.length, True, 2) == "write"
    assert [ask.index for ask in asks(d, 3)] == [1]


def test_a_sender_that_says_that_it_waits_is_waited_for() -> None:
    d = download(1)
    asks(d, 0)
    for now in range(0, 4 * GIVE_UP_MS, 1_000):
        d.alive(now)
        assert asks(d, now) == ()
    assert d.asked_again == 0


@pytest.mark.parametrize(
    ("ranges", "spans"),
    [
        ([], ()),
        ([(0, 0)], ()),
        ([(0, 1)], (range(1),)),
        ([(CHUNK_BYTES, CHUNK_BYTES + 1)], (range(1, 2),)),
        ([(CHUNK_BYTES - 1, CHUNK_BYTES + 1)], (range(2),)),
        ([(3 * CHUNK_BYTES, 3 * CHUNK_BYTES + 7), (5, 9)], (range(1), range(3, 4))),
        ([(0, 2 * CHUNK_BYTES), (CHUNK_BYTES, 3 * CHUNK_BYTES)], (range(3),)),
        ([(0, 3 * CHUNK_BYTES), (CHUNK_BYTES, CHUNK_BYTES + 1)], (range(3),)),
        ([(0, 1), (CHUNK_BYTES, CHUNK_BYTES + 1)], (range(2),)),
        ([(0, 7 * CHUNK_BYTES // 2)], (range(4),)),
    ],
)
def test_bytes_lie_in_chunks(ranges: list[ByteRange], spans: tuple[range, ...]) -> None:
    m = manifest(3.5)
    assert spans_of(m, ranges) == spans
    assert bytes_of(m, spans) == sum(m.length(index) for span in spans for index in span)


@pytest.mark.parametrize("wrong", [(-1, 1), (2, 1), (0, 4 * CHUNK_BYTES)])
def test_bytes_outside_the_file_are_refused(wrong: ByteRange) -> None:
    with pytest.raises(UsageError):
        spans_of(manifest(3.5), [wrong])


@pytest.mark.parametrize(
    "bad",
    [
        Manifest(size=-1, digest=DIGEST),
        Manifest(size=transfer.FILE_BYTES_MAX + 1, digest=DIGEST),
        Manifest(size=1, digest="0" * 63),
        Manifest(size=1, digest="G" * 64),
        Manifest(size=1, digest=DIGEST, chunk_bytes=0),
        Manifest(size=1, digest=DIGEST, chunk_bytes=CHUNK_BYTES + 1),
    ],
)
def test_manifests_that_make_no_sense(bad: Manifest) -> None:
    with pytest.raises(WireError):
        checked(bad)


def test_the_same_content_is_size_and_digest() -> None:
    one = Manifest(size=1, digest=DIGEST, mtime_ns=5, inode=7)
    assert one.same_content(Manifest(size=1, digest=DIGEST))
    assert not one.same_content(Manifest(size=2, digest=DIGEST))


def test_refusals_come_back_by_class() -> None:
    assert isinstance(error_of(Refusal(code="not_allowed", what="no")), NotAllowedError)
    other = error_of(Refusal(code="storage", what="x" * 9_999))
    assert type(other) is TransferError
    assert len(other.what) == 1_024


def asked_at_once(d: Download, now_ms: int) -> list[int]:
    found: list[int] = []
    while (ask := d.ask(now_ms)) is not None:
        found.append(ask.index)
    return found


def test_a_full_window_is_filled_again_when_a_quarter_of_it_came() -> None:
    d = download(200)
    d.window_bytes = 8 * CHUNK_BYTES
    assert asked_at_once(d, 0) == list(range(8))
    came = [d.receive(index * CHUNK_BYTES, CHUNK_BYTES, True, 1) for index in (0,)]
    assert came == ["write"]
    assert asked_at_once(d, 1) == []
    d.receive(CHUNK_BYTES, CHUNK_BYTES, True, 1)
    assert asked_at_once(d, 1) == [8, 9]


@pytest.mark.parametrize("window", [1, 2, 3, 4])
def test_a_small_window_is_filled_with_each_that_came_and_never_more(window: int) -> None:
    d = download(200)
    d.window_bytes = window * CHUNK_BYTES
    assert len(asked_at_once(d, 0)) == window
    for _ in range(3):
        assert asked_at_once(d, 0) == []
        assert d.in_flight == window
