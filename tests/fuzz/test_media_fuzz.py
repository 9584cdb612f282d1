"""Garbage of every kind: refused by name or read, never an exception of another kind, never a lie."""

import asyncio
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.commands import TEXT_BYTES_MAX
from mesh.errors import UsageError
from node.media.errors import MediaError
from node.media.ffmpeg_binary import parse_encoders, parse_version
from node.media.probe import Probe, RawProbe, judge_probe, probe_file, probe_from_json
from node.media.profiles import BUILT_IN, Profile, profile_from_json
from node.media.progress import FFmpegProgress, ProgressParser
from node.media.run_ffmpeg import FFmpegRunner
from node.media.stderr_log import StderrLog
from tests.media_clips import Clips

FEW = settings(max_examples=60, deadline=None)
KEYS = ["frame", "fps", "out_time_us", "total_size", "dup_frames", "speed", "progress", "x"]
LINES = st.one_of(
    st.binary(max_size=40),
    st.tuples(st.sampled_from(KEYS), st.text(max_size=12)).map(
        lambda kv: f"{kv[0]}={kv[1]}".encode()
    ),
    st.sampled_from([b"progress=continue", b"progress=end", b"frame=12", b"speed=N/A"]),
)


@FEW
@given(st.lists(LINES, max_size=30), st.data())
def test_progress_in_any_pieces_is_the_same(lines: list[bytes], data: st.DataObject) -> None:
    text = b"\n".join(lines) + b"\n"
    whole = ProgressParser().feed(text)
    parser, pieces, at = ProgressParser(), list[FFmpegProgress](), 0
    while at < len(text):
        size = data.draw(st.integers(1, 20))
        pieces += parser.feed(text[at : at + size])
        at += size
    assert pieces == whole


@FEW
@given(st.lists(st.binary(max_size=9_000), max_size=8))
def test_stderr_stays_small(pieces: list[bytes]) -> None:
    log = StderrLog()
    for piece in pieces:
        log.feed(piece)
    summary = log.summary()
    assert len(summary.tail.encode()) <= TEXT_BYTES_MAX
    assert summary.bytes_seen == sum(map(len, pieces))


@FEW
@given(st.one_of(st.text(max_size=300), st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
).map(str)))  # fmt: skip
def test_texts_that_are_no_profile_and_no_probe(text: str) -> None:
    with pytest.raises(UsageError):
        profile_from_json(text)
    with pytest.raises(ValueError, match=r".*"):
        probe_from_json(text)
    parse_encoders(text)
    try:
        parse_version(text)
    except ValueError:
        return


@FEW
@given(st.builds(Profile, name=st.from_regex(r"[a-z0-9][a-z0-9_-]{0,31}", fullmatch=True),
                 container=st.sampled_from(["mp4", "matroska"]),
                 video=st.just(BUILT_IN["web"].video), audio=st.just(BUILT_IN["archive"].audio),
                 title=st.text(max_size=200)))  # fmt: skip
def test_every_profile_survives_the_ledger(profile: Profile) -> None:
    assert profile_from_json(profile.to_json()) == profile


@FEW
@given(st.builds(RawProbe, fault=st.text(max_size=20), declared_ms=st.none() | st.integers(),
                 frames=st.integers(), duration_ms=st.integers()))  # fmt: skip
def test_a_reader_that_talks_nonsense_gives_no_film(raw: RawProbe) -> None:
    with pytest.raises(MediaError):
        judge_probe(raw)


def spoiled(data: bytes, draw: random.Random) -> bytes:
    """Cut, overwritten, shuffled or repeated: what disks, links and people do to files."""
    out = bytearray(data)
    match draw.randrange(4):
        case 0:
            del out[draw.randrange(1, len(out)) :]
        case 1:
            for _ in range(draw.randrange(1, 200)):
                out[draw.randrange(len(out))] = draw.randrange(256)
        case 2:
            at, size = draw.randrange(len(out)), draw.randrange(1, 5_000)
            out[at : at + size] = out[: min(size, len(out))]
        case _:
            at = draw.randrange(min(400, len(out)))
            out[at : at + 8] = draw.randbytes(8)
    return bytes(out)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    return Clips(tmp_path_factory.mktemp("clips"))


@pytest.mark.parametrize("name", ["plain.mkv", "faststart.mp4", "plain.ts", "xvid.avi"])
def test_spoiled_films_are_refused_or_read_and_harm_only_their_reader(
    clips: Clips, tmp_path: Path, name: str
) -> None:
    draw = random.Random(name)
    whole = clips.get(name).read_bytes()

    async def probe_all() -> list[Probe | BaseException]:
        runner = FFmpegRunner()
        found: list[Probe | BaseException] = []
        for number in range(5):
            path = tmp_path / f"{number}-{name}"
            path.write_bytes(spoiled(whole, draw))
            found += await asyncio.gather(
                probe_file(runner, sys.executable, path), return_exceptions=True
            )
        return found

    for result in asyncio.run(probe_all()):
        if isinstance(result, BaseException):
            assert isinstance(result, MediaError), result
            assert result.failure == "input"
        else:
            assert 0 < result.frames <= 60
            assert probe_from_json(result.to_json()) == result
