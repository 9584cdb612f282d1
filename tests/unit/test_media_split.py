"""The pure half of splitting: index, cuts, chunks and the times of an assembled film."""

import heapq
import itertools
import random
from array import array
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.media.command import Parts, assembly_command, command_line, sound_command
from node.media.h264 import is_idr, sizes_in, sizes_of
from node.media.index import (
    CUTS_MAX,
    FRESH,
    KEY,
    CutTable,
    PacketIndex,
    contract_digest,
    index_from_bytes,
    table_of,
)
from node.media.plan import EncodePlan, plan_whole
from node.media.probe import Probe, StreamInfo
from node.media.profiles import BUILT_IN
from node.media.retime import (
    REORDERED_MAX,
    compare_times,
    dts_of,
    in_order,
    misplaced,
    ranks_of,
    reorder_depth,
)
from node.media.split import (
    CHUNK_MS_MAX,
    CHUNK_MS_MIN,
    CHUNKS_MAX,
    SplitPlan,
    chunk_ms,
    chunk_plan,
    next_ms,
    plan_split,
    split_from_json,
    why_whole,
    workers_of,
)
from tests.unit.test_media_plan import film, sound, video

CLOCK = (1, 1000)
STEP = 40


def index_of(
    order: list[int], keys: set[int], discard: frozenset[int] = frozenset()
) -> PacketIndex:
    """An index of frames named by their place of presentation, in decode order."""
    index = PacketIndex(time_base=CLOCK)
    for frame in order:
        index.add(
            pts=frame * STEP,
            dts=None,
            pos=-1,
            size=100 + frame,
            key=frame in keys,
            discard=frame in discard,
        )
    return index


def open_groups(groups: int, length: int = 50) -> PacketIndex:
    """Open groups: behind each keyframe but the first, two pictures that are shown before it."""
    order: list[int] = []
    keys: set[int] = set()
    for group in range(groups):
        key = group * length
        leading = [key - 2, key - 1] if group else []
        order += [key, *leading, *range(key + 1, key + length - 2)]
        keys.add(key)
    order += [groups * length - 2, groups * length - 1]
    return index_of(order, keys)


# --- times ------------------------------------------------------------------------------------------


@given(st.permutations(list(range(12))))
def test_no_frame_is_decoded_after_it_is_shown_and_decode_times_grow(order: list[int]) -> None:
    times = [17 * n + n % 3 for n in range(len(order))]
    depth = reorder_depth(order)
    decoded = dts_of(times, depth)
    assert all(a < b for a, b in pairwise(decoded))
    assert all(at <= times[rank] for at, rank in zip(decoded, ranks_of(order), strict=True))
    # No smaller depth would do.
    if depth:
        shallow = dts_of(times, depth - 1)
        assert any(at > times[rank] for at, rank in zip(shallow, ranks_of(order), strict=True))


def test_times_before_the_first_frame_repeat_the_first_distance() -> None:
    assert dts_of([100, 140, 200], 2) == [20, 60, 100]
    assert dts_of([5], 3) == [2]
    assert dts_of([], 3) == []
    assert ranks_of([0, 120, 40, 80]) == [0, 3, 1, 2]


# --- index ------------------------------------------------------------------------------------------


@given(st.permutations(range(40)), st.integers(1, 50))
def test_times_come_in_order_as_far_as_the_window_reaches(order: list[int], window: int) -> None:
    depth = reorder_depth(order)
    assert sorted(in_order(order, window)) == list(range(40))
    if window > depth:
        assert list(in_order(order, window)) == list(range(40))


def test_an_endless_film_is_put_in_order_as_it_comes() -> None:
    pairs = (at for first in itertools.count(0, 2) for at in (first + 1, first))
    assert list(itertools.islice(in_order(pairs), 1_000)) == list(range(1_000))


def test_a_time_that_comes_too_late_is_not_put_where_it_belongs() -> None:
    times = [*range(1, REORDERED_MAX + 2), 0]
    assert next(iter(in_order(times))) == 1


def test_times_of_other_clocks_are_compared_from_the_first_frame() -> None:
    thirds = [at * 30_000 // 29.97 for at in range(1_000)]
    source = [int(at) for at in thirds]
    made = [round(at / 30) + 7 for at in source]
    apart = compare_times(made, Fraction(1, 1_000), source, Fraction(1, 30_000))
    assert (apart.frames, apart.wanted) == (1_000, 1_000)
    assert 0 < apart.off <= Fraction(1, 1_000)
    made[600] += 40
    apart = compare_times(made, Fraction(1, 1_000), source, Fraction(1, 30_000))
    assert apart.at == 600
    assert abs(apart.off - Fraction(40, 1_000)) <= Fraction(1, 1_000)
    apart = compare_times(made[:-1], Fraction(1, 1_000), source, Fraction(1, 30_000))
    assert (apart.frames, apart.wanted) == (999, 1_000)


def test_an_index_comes_back_from_its_file() -> None:
    index = open_groups(3)
    index.zero_us = -21_333
    again = index_from_bytes(index.to_bytes())
    assert (again.time_base, again.zero_us, again.flags) == (CLOCK, -21_333, index.flags)
    assert (again.pts, again.dts, again.pos, again.size) == (
        index.pts, index.dts, index.pos, index.size,
    )  # fmt: skip
    with pytest.raises(ValueError, match="no packet index"):
        index_from_bytes(b"\x80")


def test_the_contract_is_every_shown_frame_in_order() -> None:
    index = index_of([0, 3, 1, 2, 4], {0}, frozenset({4}))
    assert list(index.contract()) == [0, 40, 80, 120]
    digest = contract_digest(CLOCK, index.contract())
    assert digest != contract_digest((1, 1001), index.contract())
    assert digest != contract_digest(CLOCK, array("q", [0, 40, 80, 121]))


def test_cuts_of_open_groups() -> None:
    """What a chunk needs ends behind the pictures that are stored after the next chunk's keyframe."""
    table = table_of(open_groups(4))
    assert not table.fault
    assert [cut.pts for cut in table.cuts] == [0, 2_000, 4_000, 6_000]
    assert [cut.frames for cut in table.cuts] == [0, 50, 100, 150]
    assert [cut.first for cut in table.cuts] == [0, 0, 48, 98]
    assert [cut.end for cut in table.cuts] == [48, 98, 148, 200]
    assert [cut.last for cut in table.cuts] == [0, 1_960, 3_960, 5_960]
    assert (table.frames, table.packets, table.depth) == (200, 200, 1)
    index = open_groups(4)
    assert table.cuts[2].end_bytes - table.cuts[2].first_bytes == sum(index.size[48:148])
    # Every time in a slice, decode times too, lies at or after its zero.
    for cut in table.cuts:
        times = sorted(index.pts[cut.first :])
        assert dts_of(times, table.depth)[0] == cut.base


def test_cuts_of_closed_groups_need_nothing_of_their_neighbours() -> None:
    index = open_groups(4)
    index.flags = bytearray(flags | FRESH * (flags & KEY) for flags in index.flags)
    # Marked fresh, but pictures that are shown before the keyframe are stored behind it.
    assert [(cut.first, cut.end) for cut in table_of(index).cuts[1:]] == [
        (0, 98),
        (48, 148),
        (98, 200),
    ]
    order = [*range(100)]
    index = index_of(order, {0, 25, 50, 75})
    assert [(cut.first, cut.end) for cut in table_of(index).cuts[1:]] == [
        (0, 50),
        (25, 75),
        (50, 100),
    ]
    for at in (25, 75):
        index.flags[at] |= FRESH
    assert [(cut.first, cut.end) for cut in table_of(index).cuts[1:]] == [
        (25, 25),
        (25, 75),
        (75, 75),
    ]


AVCC = bytes.fromhex("0164001fffe1")


@pytest.mark.parametrize(
    ("packet", "headers", "wanted"),
    [
        (b"\0\0\0\x02\x09\xf0" + b"\0\0\0\x03\x65\x88\x84", AVCC, True),
        (b"\0\0\0\x02\x09\xf0" + b"\0\0\0\x03\x61\x88\x84", AVCC, False),
        (b"\0\x03\x06\x06\x01" + b"\0\x02\x25\x88", bytes.fromhex("0164001ffde1"), True),
        (b"\0\0\0\x01\x09\xf0\0\0\x01\x67\x64\0\0\x01\x65\x88", b"\0\0\0\x01\x67", True),
        (b"\0\0\0\x01\x09\xf0\0\0\x01\x06\x06\0\0\x01\x41\x9a", b"", False),
        # A slice that is cut off, lengths that lie, nothing at all.
        (b"\0\0\0\xff\x09", AVCC, False),
        (b"\0\0\0\0\0\0\0\0", AVCC, False),
        (b"\0\0\x01", b"", False),
        (b"", AVCC, False),
        (b"", b"", False),
    ],
)
def test_an_idr_picture_is_told_by_its_first_slice(
    packet: bytes, headers: bytes, wanted: bool
) -> None:
    assert is_idr(packet, headers) is wanted


@given(st.binary(max_size=200), st.binary(max_size=8))
def test_no_packet_makes_telling_fail(packet: bytes, headers: bytes) -> None:
    assert is_idr(packet, headers) in (True, False)
    assert all(sizes_in(packet, headers))
    assert len(sizes_of(packet)) <= 31


SPS, OTHER = b"\x67\x64\0\x1f\xac", b"\x67\x64\0\x28\xad"


def test_what_tells_the_size_of_a_picture_is_found_in_headers_and_packets() -> None:
    counted = (
        bytes.fromhex("0164001fffe2") + b"\0\x05" + SPS + b"\0\x05" + OTHER + b"\x01\0\x02\x68\xee"
    )
    assert sizes_of(counted) == {SPS, OTHER}
    marked = b"\0\0\0\1" + SPS + b"\0\0\0\1\x68\xee\0\0\1\x65\x88"
    assert sizes_of(marked) == sizes_in(marked, b"") == {SPS}
    packet = b"\0\0\0\x05" + OTHER + b"\0\0\0\x02\x68\xee\0\0\0\x03\x65\x88\x84\0\0\0\x05" + SPS
    assert sizes_in(packet, AVCC) == {OTHER}, "what follows the picture is not for it"
    assert sizes_of(b"") == sizes_in(b"\0\0\0\x03\x65\x88\x84", AVCC) == frozenset()


def fault(index: PacketIndex) -> str:
    return table_of(index).fault


def test_indexes_that_are_no_contract() -> None:
    assert not fault(open_groups(2))
    assert "cannot be split" in fault(PacketIndex(time_base=CLOCK))
    timeless = open_groups(2)
    timeless.add(pts=None, dts=0, pos=-1, size=1, key=False, discard=False)
    assert "tell no time" in fault(timeless)
    double = open_groups(2)
    double.add(pts=40, dts=0, pos=-1, size=1, key=False, discard=False)
    assert "same time" in fault(double)
    assert "keyframe" in fault(index_of([0, 1, 2], {1}))
    assert "edit list" in fault(index_of([0, 1, 2, 3], {0}, frozenset({2})))
    assert not fault(index_of([0, 1, 2, 3], {0}, frozenset({0, 3})))
    assert "jumps" in fault(index_of([0, 1, 2, 300], {0}))
    assert "millisecond" in fault(
        PacketIndex(
            time_base=(1, 1_000_000),
            pts=array("q", [0, 999]),
            dts=array("q", [0, 0]),
            pos=array("q", [0, 0]),
            size=array("q", [1, 1]),
            flags=bytearray([1, 0]),
        )
    )
    assert "no unit" in fault(
        PacketIndex(
            time_base=(0, 1),
            pts=array("q", [0, 40]),
            dts=array("q", [0, 0]),
            pos=array("q", [0, 0]),
            size=array("q", [1, 1]),
            flags=bytearray([1, 0]),
        )
    )


def test_a_keyframe_whose_pictures_reach_over_the_next_one_is_no_cut() -> None:
    # Frame 49 is stored behind the keyframe after the one that it precedes.
    order = [*range(49), 50, *range(51, 100), 100, 49, *range(101, 150)]
    table = table_of(index_of(order, {0, 50, 100}))
    assert [cut.frames for cut in table.cuts] == [0, 100]


def test_films_of_keyframes_alone_keep_their_table_small() -> None:
    frames = 25 * 60
    table = table_of(index_of(list(range(frames)), set(range(frames))))
    assert len(table.cuts) == 60
    assert len(table.cuts) < CUTS_MAX


# --- why whole --------------------------------------------------------------------------------------

LONG_US = 100_000_000


def long_film(**facts: object) -> Probe:
    return film(sound(1), main=video(duration_us=LONG_US, span_us=LONG_US, **facts))


def reason(probe: Probe, profile: str = "web") -> str:
    wanted = BUILT_IN[profile]
    return why_whole(probe, plan_whole(probe, wanted, ("libx264", "libx265")))


def test_an_ordinary_film_may_be_split() -> None:
    assert reason(long_film()) == ""


@pytest.mark.parametrize(
    ("probe", "profile", "said"),
    [
        (film(main=video(duration_us=LONG_US), frames_by="decoding"), "web", "not frames"),
        (long_film(codec="vp8"), "web", "films in vp8"),
        (long_film(codec="prores"), "web", "films in prores"),
        (film(main=video(duration_us=LONG_US), undecodable=3), "web", "between two keyframes"),
        (long_film(interlaced=True), "web", "deinterlaced"),
        (long_film(dynamic_hdr=True), "web", "HDR"),
        (long_film(mastering_display=True, colour_transfer="smpte2084"), "archive", "mastering"),
        (long_film(mirrored=True), "web", "mirrored"),
        (film(main=video(duration_us=19_000_000)), "web", "shorter"),
    ],
)
def test_why_a_film_is_done_whole(probe: Probe, profile: str, said: str) -> None:
    assert said in reason(probe, profile)


def test_an_interlaced_film_that_stays_interlaced_may_be_split() -> None:
    assert reason(long_film(interlaced=True), "archive") == ""


def test_sound_that_is_encoded_may_be_cut_and_priming_is_no_cut() -> None:
    main = video(duration_us=LONG_US)
    assert reason(film(sound(1, discarded=9), main=main)) == ""
    assert reason(film(sound(1, discarded=1), main=main), "archive") == ""


# --- chunks -----------------------------------------------------------------------------------------


def test_lengths_of_chunks() -> None:
    minute, hour = 60_000, 3_600_000
    assert chunk_ms(minute, (1.0,)) == 15_000
    assert chunk_ms(minute, (1.0, 1.0, 1.0)) == CHUNK_MS_MIN
    assert chunk_ms(2 * hour, (1.0, 1.0)) == CHUNK_MS_MAX
    assert chunk_ms(10 * minute, (1.0,) * 4) == 37_500
    # One node at a tenth of the others' speed must not hold the end of the film.
    assert chunk_ms(10 * minute, (1.0, 1.0, 0.1)) < chunk_ms(10 * minute, (1.0, 1.0))
    assert chunk_ms(10 * minute, ()) == CHUNK_MS_MAX
    assert 24 * hour / chunk_ms(24 * hour, (1.0,)) <= CHUNKS_MAX


def ideal(film_ms: int, speeds: tuple[float, ...]) -> list[float]:
    """Chunks of a film that can be cut anywhere."""
    length_ms, left_ms, chunks = chunk_ms(film_ms, speeds), float(film_ms), []
    while left_ms > 0:
        chunks.append(min(left_ms, next_ms(left_ms, length_ms, workers_of(speeds))))
        left_ms -= chunks[-1]
    return chunks


def test_towards_the_end_of_a_film_chunks_are_shorter() -> None:
    minute = 60_000
    chunks = ideal(4 * minute, (1.0, 1.0))
    assert [round(chunk / 1000) for chunk in chunks] == [
        30,
        30,
        30,
        30,
        30,
        22,
        17,
        13,
        10,
        10,
        10,
        8,
    ]
    assert workers_of((2.0, 1.0, 1.0)) == 2.0
    assert workers_of(()) == 1.0
    assert set(ideal(minute, (1.0, 1.0))) == {10_000.0}, "shorter ones cost bytes"


@given(st.integers(20_000, 24 * 3_600_000), st.lists(st.floats(0.01, 100.0), max_size=600))
def test_a_plan_of_any_film_for_any_workers_is_bounded(film_ms: int, speeds: list[float]) -> None:
    chunks = ideal(film_ms, tuple(speeds))
    assert len(chunks) <= CHUNKS_MAX
    assert all(chunk >= CHUNK_MS_MIN for chunk in chunks[:-1])
    assert chunks == sorted(chunks, reverse=True)


def ends_apart(chunks: list[float], busy_ms: float) -> float:
    """How long the first of two equal nodes waits for the other, which has something else to do first."""
    free = [0.0, busy_ms]
    for chunk in chunks:
        heapq.heapreplace(free, free[0] + chunk)
    return max(free) - min(free)


def test_workers_end_together() -> None:
    chunks = ideal(240_000, (1.0, 1.0))
    for busy_ms in range(0, 60_000, 5_000):
        assert ends_apart(chunks, busy_ms) <= CHUNK_MS_MIN
    assert max(ends_apart([30_000.0] * 8, busy_ms) for busy_ms in range(0, 60_000, 5_000)) > 25_000


@given(st.integers(2, 12), st.integers(1, 30_000))
def test_chunks_hold_every_frame_once(groups: int, length_ms: int) -> None:
    table = table_of(open_groups(groups))
    split = plan_split(table, length_ms=length_ms)
    if isinstance(split, str):
        assert "keyframes" in split
        return
    assert sum(chunk.frames for chunk in split.chunks) == split.frames == table.frames
    assert [chunk.number for chunk in split.chunks] == list(range(len(split.chunks)))
    for before, after in pairwise(split.chunks):
        assert before.end == after.start
    assert split.chunks[-1].end is None
    assert split.chunks[0].start == table.start_pts
    index = open_groups(groups)
    for chunk in split.chunks:
        end = chunk.end if chunk.end is not None else 1 << 40
        inside = [pts for pts in index.pts[chunk.first : chunk.stop] if chunk.start <= pts < end]
        assert len(inside) == chunk.frames
        assert max(inside) - min(inside) == chunk.span
        assert sum(index.size[chunk.first : chunk.stop]) == chunk.bytes
    assert split_from_json(split.to_json()) == split


def test_a_film_of_a_day_fits_the_ledger() -> None:
    # Keyframes every two seconds for a day.
    cuts = 12 * 3_600
    index = PacketIndex(time_base=CLOCK)
    for at in range(cuts):
        index.add(pts=at * 2_000, dts=None, pos=-1, size=9_000, key=True, discard=False)
    table = table_of(index)
    assert len(table.cuts) <= CUTS_MAX
    split = plan_split(table, length_ms=chunk_ms(cuts * 2_000, (1.0,)))
    assert isinstance(split, SplitPlan)
    assert len(split.chunks) <= CHUNKS_MAX
    assert len(split.to_json()) < 64 << 10


def test_films_without_a_place_to_cut() -> None:
    assert plan_split(CutTable(fault="it is broken"), length_ms=1) == "it is broken"
    one = table_of(open_groups(1))
    assert plan_split(one, length_ms=1) == "its keyframes lie too far apart"


def test_what_is_no_split_plan() -> None:
    with pytest.raises(ValueError, match="validation error"):
        split_from_json("{}")
    with pytest.raises(ValueError, match="of this size"):
        split_from_json("x" * (300 << 10))


def planned(probe: Probe, profile: str = "web") -> tuple[EncodePlan, SplitPlan]:
    split = plan_split(table_of(open_groups(4)), length_ms=2_000)
    assert isinstance(split, SplitPlan)
    return plan_whole(probe, BUILT_IN[profile], ("libx264", "libx265")), split


def test_a_chunk_is_the_picture_alone_trimmed_by_time() -> None:
    probe = long_film(colour_range="tv", colour_primaries="bt709", sample_aspect=(16, 15))
    whole, split = planned(probe)
    plan = chunk_plan(whole, split, split.chunks[1], probe)
    assert (plan.container, plan.frames, plan.span_us) == ("matroska", 50, 1_960_000)
    assert [stream.kind for stream in plan.streams] == ["video"]
    words = " ".join(command_line(plan, "ffmpeg", "slice", "chunk", exact=True))
    base = split.chunks[1].base
    assert "settb=expr=1/1000" in words
    assert f"trim=end_pts={4_000 - base}:start_pts={2_000 - base}" in words
    assert "setparams=color_primaries=bt709:range=tv" in words
    assert "setsar=16/15" in words
    assert "-copyts" in words
    assert "-noautorotate" in words
    assert "-x264-params:0 fps=25/1:open-gop=0:zones=45,49,b=1.4 " in words, "its end is a seam"
    last = chunk_plan(whole, split, split.chunks[-1], probe)
    words = " ".join(command_line(last, "ffmpeg", "slice", "chunk", exact=True))
    assert "end_pts" not in words
    assert "-x264-params:0 fps=25/1:open-gop=0 " in words, "the film's end is none"
    whole, split = planned(probe, "archive")
    ends = [
        " ".join(command_line(chunk_plan(whole, split, chunk, probe), "ffmpeg", "slice", "chunk"))
        for chunk in split.chunks
    ]
    assert [":info=0:zones=45,49,b=1.4 " in words for words in ends] == [True] * (len(ends) - 1) + [
        False
    ]


def test_a_chunk_of_the_film_itself_counts_by_the_films_clock() -> None:
    probe = long_film()
    whole, split = planned(probe)
    chunk = split.chunks[1]
    piece = chunk_plan(whole, split, chunk, probe)
    plan = chunk_plan(whole, split, chunk, probe, from_film=True)
    words = " ".join(command_line(plan, "ffmpeg", "film", "chunk", exact=True))
    assert chunk.base != 0, "a slice has another clock"
    assert f"trim=end_pts={chunk.end}:start_pts={chunk.start}" in words
    assert plan.streams[0].source == probe.main
    assert (plan.frames, plan.span_us, plan.container) == (50, 1_960_000, "matroska")
    assert (plan.source_ms, plan.source_bytes) == (probe.duration_ms, probe.bytes)
    assert plan.streams[0].options == piece.streams[0].options, "it must fit to the others"


@pytest.mark.parametrize(
    ("rotation", "turns"), [(0, []), (90, ["cclock"]), (-90, ["clock"]), (180, ["clock", "clock"])]
)
def test_a_turned_film_is_turned_by_filters(rotation: int, turns: list[str]) -> None:
    probe = long_film(rotation=rotation)
    whole, split = planned(probe)
    steps = chunk_plan(whole, split, split.chunks[0], probe).filters
    assert [step.arguments[0] for step in steps if step.name == "transpose"] == turns
    assert any(step.name == "sidedata" for step in steps) == bool(rotation)


def test_headers_do_not_depend_on_the_node() -> None:
    probe = long_film(frame_rate=(0, 1))
    whole, split = planned(probe, "archive")
    options = dict(chunk_plan(whole, split, split.chunks[-1], probe).streams[0].options)
    assert options["x265-params"] == "log-level=warning:fps=25/1:open-gop=0:info=0"
    threads = " ".join(
        command_line(
            chunk_plan(whole, split, split.chunks[-1], probe), "ffmpeg", "a", "b", threads=2
        )
    )
    assert "info=0:pools=2" in threads


# --- sound and assembly -----------------------------------------------------------------------------


def test_sound_is_encoded_once_from_the_start_of_the_film() -> None:
    whole, _ = planned(long_film())
    words = sound_command(whole, "ffmpeg", "film", "sound.mp4", zero_us=1_000_021_333)
    assert words[words.index("-itsoffset") + 1] == "-1000021333us"
    assert words[words.index("-map") + 1] == "0:1"
    assert words[words.index("-c:0") + 1] == "aac"
    assert "-itsoffset" not in sound_command(whole, "ffmpeg", "film", "s.mp4", zero_us=0)


def subtitle(index: int) -> StreamInfo:
    return StreamInfo(index=index, kind="subtitle", codec="subrip", packets=2, disposition="forced")


def test_the_last_mux_takes_the_rest_from_the_source() -> None:
    main = video(duration_us=LONG_US, disposition="default", index=0)
    probe = film(subtitle(1), sound(2, disposition="comment"), sound(3), main=main)
    whole, split = planned(probe)
    split = split.model_copy(update={"zero_us": 500, "start_us": 40_000})
    parts = Parts(source="film.mkv", index="i", chunks=("a", "b"), sound="s.mp4", picture="p.mov")
    words = assembly_command(whole, split, parts, ffmpeg="ffmpeg", output="out")
    said = " ".join(words)
    maps = [words[at + 1] for at, word in enumerate(words) if word == "-map"]
    assert maps == ["0:v:0", "2:1", "1:a:0", "1:a:1"]
    assert "-itsoffset 40000us" in said
    assert "-itsoffset -500us" in said
    assert "-c:0 copy" in said
    assert "-c:1 mov_text" in said
    assert "-c:2 copy" in said
    assert "-disposition:2 comment" in said
    assert "-disposition:3 0" in said
    assert "-map_metadata:s:3 2:s:3" in said
    assert "-map_chapters 2" in said
    silent = Parts(source="film", index="i", chunks=("a",), sound=None, picture="p.mov")
    only = plan_whole(film(main=main), BUILT_IN["web"], ("libx264",))
    words = assembly_command(only, split, silent, ffmpeg="ffmpeg", output="out")
    assert words.count("-i") == 2
    assert "-map_metadata:g 1:g" in " ".join(words)


EVEN = [n * 40 for n in range(200)]


def moved(at: int, to: int) -> list[int]:
    times = list(EVEN)
    times[at] = times[to]
    return sorted(times)


@pytest.mark.parametrize(("at", "to"), [(70, 71), (70, 69), (1, 2), (198, 197), (100, 101)])
def test_a_frame_on_its_neighbours_time_that_left_its_own_is_noticed(at: int, to: int) -> None:
    assert misplaced(moved(at, to)) == 1


def test_films_without_a_constant_rate_or_with_a_coarse_clock_tell_nothing_of_places() -> None:
    assert misplaced([]) == misplaced([7]) == misplaced(EVEN) == 0
    dice = random.Random(3)
    uneven = sorted(dice.randrange(8_000) for _ in range(200))
    assert misplaced(uneven) == 0
    assert misplaced(sorted([*EVEN, EVEN[50]])) == 0, "no place of it is empty"
    assert misplaced([at for at in EVEN if at != EVEN[50]]) == 0, "dropped, not moved"
    assert misplaced([n // 2 for n in range(200)]) == 0, "a rounded clock"
    assert misplaced(sorted([*EVEN[:20], EVEN[5]])) == 0, "a short one, nothing empty"
    assert misplaced([0, 40, 80, 80, 160, 200]) == 1, "a short one"
    rounded = [round(n * 1001 / 30) for n in range(300)]
    rounded[100] = rounded[101]
    assert misplaced(rounded) == 1
