"""The acceptance matrix of films: every source, by every profile, in one piece and in pieces.

What the results hold is measured by decoding them and their sources (`tests.film_judge`); the table is
printed at the end of `make test-media`.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node.media.child import HELD, AnyPath, HeldFile
from node.media.convert import Media
from node.media.plan import EncodePlan, plan_whole
from tests.film_apart import ENCODERS, Apart, MayNotBeSplitError, media_of, now, quick, whole
from tests.film_judge import Comparison, Seen, compare, see
from tests.matrix_clips import CUTTABLE, OTHERS, PACKAGED, SHARED, WHOLE, film
from tests.media_clips import Clips, ffmpeg

pytestmark = pytest.mark.media
CHUNK_MS = {"web": 1_000, "mobile": 3_000, "archive": 2_000}
TICK_S = 0.0011
"""Matroska's clock, and room for rounding: texts and chapters keep their times within it."""
Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    return Clips(tmp_path_factory.mktemp("clips"))


@functools.cache
def media() -> Media:
    return media_of(ffmpeg())


@functools.lru_cache(maxsize=2)
def seen(source: Path) -> Seen:
    return see(source)


def outline(found: Seen, source: Seen, plan: EncodePlan) -> list[str]:
    """What is wrong with the streams beside picture and sound: by the plan, and by the source itself."""
    faults: list[str] = []
    # MP4 tells chapters by a track of texts of its own.
    kinds = [kind for kind in found.kinds if kind != "data" or not found.chapters]
    if kinds != [stream.kind for stream in plan.streams]:
        faults.append(f"streams {found.kinds}")
    if found.languages != source.languages:
        faults.append(f"languages {found.languages}")
    if [title for title, _ in found.chapters] != [title for title, _ in source.chapters]:
        faults.append(f"chapters {found.chapters}")
    for (language, times), (wanted, origin) in zip(found.words, source.words, strict=True):
        if language != wanted or len(times) != len(origin):
            faults.append(f"texts {language} {len(times)}")
        elif max((abs(a - b) for a, b in zip(times, origin, strict=True)), default=0.0) > TICK_S:
            faults.append(f"texts at {times}, not {origin}")
    return faults


def row(way: str, made: Comparison, streams: int) -> dict[str, str]:
    """One line of the table."""
    return {
        "way": way,
        "in": str(made.frames_in),
        "out": str(made.frames_out),
        "wrong": str(made.wrong),
        "off ms": f"{made.off_ms:.3f}",
        "tick": f"{made.tick_ms:.3f}",
        "longer ms": f"{made.sound_longer_ms:+.1f}",
        "frame": f"{made.sound_frame_ms:.1f}",
        "starts ms": f"{made.sound_starts_ms:+.2f}",
        "lag ms": f"{made.sound_lag_ms:+.2f}",
        "streams": str(streams),
    }


@contextlib.contextmanager
def as_nodes_open(source: Path) -> Iterator[AnyPath]:
    """A film by its number where that is possible: no demuxer may depend on its name."""
    with source.open("rb") as file:
        yield HeldFile(file.fileno()) if Path(HELD).is_dir() else source


@pytest.mark.parametrize("profile", list(CHUNK_MS))
@pytest.mark.parametrize("name", [*CUTTABLE, *WHOLE, *OTHERS, *PACKAGED, *SHARED])
def test_every_film_by_every_profile_whole_and_split(
    clips: Clips, tmp_path: Path, record_property: Record, name: str, profile: str
) -> None:
    source, wanted = film(clips, name), quick(profile)
    origin = seen(source)
    results: dict[str, Path] = {}
    why = ""
    with as_nodes_open(source) as opened:
        probe = now(media().probe(opened))
        try:
            apart = Apart(media(), opened, wanted, tmp_path, CHUNK_MS[profile]).encode_all()
            results[f"split in {len(apart.chunks)}"] = apart.assemble()
        except MayNotBeSplitError as reason:
            why = f"whole: {reason}"
        results["whole"] = whole(media(), probe, opened, wanted, tmp_path)
    faults: dict[str, list[str]] = {}
    for way, path in results.items():
        found = see(path)
        made = compare(found, origin)
        line = {"film": name, "profile": profile, **row(way, made, len(found.kinds)), "note": why}
        record_property("table", json.dumps({"films": line}))
        wrong = [*made.faults(), *outline(found, origin, plan_whole(probe, wanted, ENCODERS))]
        if wrong:
            faults[way] = wrong
    assert not faults
    assert (name in WHOLE) <= bool(why), "it was split"
    assert (name in CUTTABLE) <= (not why), why
