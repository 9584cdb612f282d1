"""Films in pieces through real FFmpeg: cut by their owner, encoded apart, put together, frame for frame.

The few films here run with every `make test`; the matrix of all sources, profiles and numbers of
chunks is marked `media` (`make test-media`), and runs on every FFmpeg named in DARKSTREAM_TEST_FFMPEG
(several, separated by colons) beside the embedded one.
"""

import os
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from fractions import Fraction
from pathlib import Path

import av
import pytest

from ledger.jobs import Attempt, Job, Task
from node.media.child import AnyPath, Limits, OnProgress, RunResult
from node.media.command import Parts
from node.media.convert import ConversionError, Media
from node.media.cut_av import CHANGES
from node.media.errors import MediaError
from node.media.join_av import times_apart
from node.media.pieces import Film, Pieces
from node.media.run_ffmpeg import FFmpegRunner
from node.work.attempts import AttemptError, Conversion, Turn
from node.work.conversion import UNCUT, MediaConverter
from node.work.order import Order
from node.work.splitting import JobPlan
from tests.film_apart import Apart, media_of, now, quick, whole
from tests.fingerprint import farthest, frames_of, numbers_of
from tests.media_clips import Clips, ffmpeg, make, packaged_clip

OTHERS = [name for name in os.environ.get("DARKSTREAM_TEST_FFMPEG", "").split(":") if name]
SYNC_US = 5_000
TICK_MS = Fraction(1, 1000)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    return Clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def media() -> Media:
    return media_of(ffmpeg())


def shows_each_frame_once(result: Path, source: Path) -> None:
    """Every frame of the source, once, in order, at its time."""
    before, after = frames_of(source), frames_of(result)
    assert numbers_of(after, before) == list(range(len(before)))
    assert farthest(after, before) <= TICK_MS


def same_but_the_picture(media: Media, split: Path, in_one: Path) -> None:
    """Streams, languages, flags and the place of the sound are those of a conversion in one piece."""
    one, other = now(media.probe(split)), now(media.probe(in_one))
    for a, b in zip(one.streams, other.streams, strict=True):
        assert (a.kind, a.codec, a.language, a.title) == (b.kind, b.codec, b.language, b.title)
        assert a.disposition == b.disposition
        if a.kind == "audio":
            frame_us = 1_000_000 * 1024 // a.sample_rate + 1_000
            assert abs(a.duration_us - b.duration_us) <= frame_us
            shift = (a.start_us - one.video.start_us) - (b.start_us - other.video.start_us)
            assert abs(shift) < SYNC_US


EVERY_TIME = [
    ("split_open.ts", "web"),
    ("split_2997.mp4", "archive"),
    ("split_vfr.mp4", "web"),
]


@pytest.mark.parametrize(("name", "profile"), EVERY_TIME)
def test_a_film_in_pieces_shows_every_frame_once(
    media: Media, clips: Clips, tmp_path: Path, name: str, profile: str
) -> None:
    source, wanted = clips.get(name), quick(profile)
    apart = Apart(media, source, wanted, tmp_path, 2_000).encode_all()
    result = apart.assemble()
    shows_each_frame_once(result, source)
    same_but_the_picture(media, result, whole(media, apart.probe, source, wanted, tmp_path))


def test_sound_subtitles_chapters_and_attachments_come_along(
    media: Media, clips: Clips, tmp_path: Path
) -> None:
    source, wanted = clips.get("split_many.mkv"), quick("archive")
    apart = Apart(media, source, wanted, tmp_path, 2_000).encode_all()
    result = apart.assemble()
    shows_each_frame_once(result, source)
    same_but_the_picture(media, result, whole(media, apart.probe, source, wanted, tmp_path))
    shown = now(media.probe(result)).streams
    assert [s.codec for s in shown] == ["hevc", "aac", "flac", "subrip", ""]
    assert [s.language for s in shown[1:4]] == ["eng", "deu", "fra"]
    assert (shown[0].title, shown[2].disposition) == ("Picture", "comment")
    with av.open(str(result)) as film:
        assert [chapter["metadata"]["title"] for chapter in film.chapters()] == ["One", "Two"]
        assert film.metadata["title"] == "Many"


def test_a_worker_needs_only_the_packets_of_its_range(
    media: Media, clips: Clips, tmp_path: Path
) -> None:
    source = clips.get("split_open.ts")
    apart = Apart(media, source, quick("web"), tmp_path, 1_000)
    split = apart.film.split
    assert len(split.chunks) == 3
    assert sum(chunk.frames for chunk in split.chunks) == apart.probe.frames == split.frames
    for chunk in split.chunks:
        piece = now(apart.cut(chunk.number))
        assert piece.stat().st_size < 1.2 * chunk.bytes + 4096
        with av.open(str(piece)) as film:
            (stream,) = film.streams
            times = [packet.pts for packet in film.demux(stream) if packet.size]
            assert len(times) == chunk.stop - chunk.first
            # The slice's clock tells the film's own times exactly.
            unit = Fraction(*split.time_base) / stream.time_base  # type: ignore[operator]  # NUT always has one
            assert unit.denominator == 1
            assert (chunk.start - chunk.base) * unit in times


@pytest.mark.parametrize("name", ["split_2997.mp4", "split_2997.mkv", "split_2997.ts"])
def test_of_closed_groups_nothing_travels_twice(
    media: Media, clips: Clips, tmp_path: Path, name: str
) -> None:
    apart = Apart(media, clips.get(name), quick("web"), tmp_path, 2_000).encode_all()
    chunks = apart.film.split.chunks
    assert len(chunks) == 3
    assert [chunk.stop - chunk.first for chunk in chunks] == [chunk.frames for chunk in chunks]
    shows_each_frame_once(apart.assemble(), clips.get(name))


def test_where_a_picture_becomes_whole_little_by_little_its_chunk_begins_earlier(
    media: Media, clips: Clips, tmp_path: Path
) -> None:
    source = clips.get("split_refresh.mkv")
    apart = Apart(media, source, quick("web"), tmp_path, 2_000).encode_all()
    chunks = apart.film.split.chunks
    assert len(chunks) > 1
    for chunk in chunks[1:]:
        assert chunk.stop - chunk.first >= chunk.frames + 30
    shows_each_frame_once(apart.assemble(), source)


def test_a_film_that_changed_since_it_was_indexed_is_not_cut(
    media: Media, clips: Clips, tmp_path: Path
) -> None:
    source = tmp_path / "film.mp4"
    source.write_bytes(clips.get("split_open.mp4").read_bytes())
    apart = Apart(media, source, quick("web"), tmp_path, 2_000)
    source.write_bytes(clips.get("split_2997.mp4").read_bytes())
    with pytest.raises(MediaError) as caught:
        now(apart.cut(1))
    assert caught.value.code == "film_changed"


def test_a_chunk_that_lacks_a_frame_is_refused(media: Media, clips: Clips, tmp_path: Path) -> None:
    apart = Apart(media, clips.get("split_open.mp4"), quick("web"), tmp_path, 2_000)
    chunks = apart.film.split.chunks
    short = chunks[1].model_copy(update={"end": (chunks[1].end or 0) - 512})  # one frame earlier
    split = apart.film.split.model_copy(update={"chunks": (chunks[0], short, *chunks[2:])})
    apart.film = Film(probe=apart.probe, profile=apart.film.profile, split=split, encoder="libx264")
    with pytest.raises(ConversionError) as caught:
        now(apart.encode(1))
    assert caught.value.error.code == "frame_count"


class Shelf:
    """The film for who asks, and whether somebody did."""

    def __init__(self, film: Path) -> None:
        self.lent = film
        self.asked = 0

    @asynccontextmanager
    async def opened(self, order: Order, source: Path) -> AsyncGenerator[AnyPath]:
        yield source

    @asynccontextmanager
    async def film(self, order: Order, folder: Path) -> AsyncGenerator[AnyPath]:
        self.asked += 1
        yield self.lent

    async def parts(self, order: Order, folder: Path, source: AnyPath) -> Parts:
        raise AssertionError("nothing is assembled")


def order_of(apart: Apart, number: int) -> Order:
    """The lease of a chunk, as the ledger tells it."""
    film = apart.film
    plan = JobPlan(**dict(film.plan), split=film.split, ffmpeg=apart.media.ffmpeg.group)
    job = Job(
        id="j1", seq=1, state="running", planned=1, owner="anna", source="/film", source_bytes=1,
        source_mtime_ns=1, source_inode=1, output="/out.mp4", overwrite=0, profile=film.profile.name,
        profile_json=film.profile.to_json(), priority=0, tenant="", split=1,
        probe_json=film.probe.to_json(), plan_json=plan.model_dump_json(), created_at_ms=1,
        updated_at_ms=1,
    )  # fmt: skip
    task = Task(
        id=f"j1-{number}", job="j1", seq=1, kind="chunk", state="leased", owner="anna", needs=(),
        cost=1, priority=0,
    )  # fmt: skip
    attempt = Attempt(
        id="a1", task=task.id, job="j1", node="anna", number=1, state="leased", token=1,
        granted_at_ms=1,
    )  # fmt: skip
    return Order(job=job, task=task, attempt=attempt)


def spoil(path: Path) -> None:
    """Zeroes a part of its middle."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(3_000))


@pytest.mark.parametrize("name", ["split_open.ts", "split_2997.mp4", "split_turned.mp4"])
def test_a_chunk_whose_slice_does_not_do_is_made_of_the_film(
    media: Media, clips: Clips, tmp_path: Path, name: str
) -> None:
    source = clips.get(name)
    apart = Apart(media, source, quick("web"), tmp_path, 2_000).encode_all()
    shelf, number = Shelf(source), 1
    turns: list[Turn] = []

    async def converted(piece: Path) -> Conversion:
        apart.chunks[number].unlink(missing_ok=True)
        turn = Turn(lambda: None)
        turn.give()
        turns.append(turn)
        return await MediaConverter(the_media, shelf).convert(
            order_of(apart, number), piece, apart.chunks[number], turn=turn,
            on_frames=lambda *_: None, on_verifying=lambda _: None,
        )  # fmt: skip

    async def the_media() -> Media:
        return media

    assert "whole film" not in now(converted(now(apart.cut(number)))).stderr_tail
    assert shelf.asked == 0, "a slice that does is enough"
    assert turns[0].is_judged, "its slot was free while it was judged"
    piece = now(apart.cut(number))
    spoil(piece)
    told = now(converted(piece))
    assert told.stderr_tail.startswith("made of the whole film, its slice did not do: ")
    assert shelf.asked == 1
    shows_each_frame_once(apart.assemble(), source)
    uncut = tmp_path / UNCUT
    uncut.write_text("cut_av failed: signal 11")
    told = now(converted(uncut))
    assert told.stderr_tail.startswith(
        "made of the whole film, no slice could be cut: cut_av failed: signal 11\n"
    )
    shows_each_frame_once(apart.assemble(), source)
    # A film that is damaged itself: one class, and the attempt tells both.
    shelf.lent = tmp_path / "damaged"
    shelf.lent.write_bytes(source.read_bytes())
    spoil(shelf.lent)
    with pytest.raises(AttemptError) as caught:
        now(converted(piece))
    assert (caught.value.cause_code, caught.value.failure) == ("damaged_source", "input")
    assert caught.value.conversion is not None
    assert "made of the whole film" in caught.value.conversion.stderr_tail


def test_chunks_that_do_not_belong_together_are_refused(
    media: Media, clips: Clips, tmp_path: Path
) -> None:
    source = clips.get("split_open.mp4")
    apart = Apart(media, source, quick("web"), tmp_path, 3_000).encode_all()
    (tmp_path / "other").mkdir()
    other = Apart(media, source, quick("archive"), tmp_path / "other", 3_000)
    now(other.encode(1))

    def refused(chunks: dict[int, Path]) -> str:
        apart.chunks = chunks
        with pytest.raises(MediaError) as caught:
            apart.assemble()
        return caught.value.code

    first, second = apart.chunks[0], apart.chunks[1]
    assert refused({0: first}) == "frame_count"
    assert refused({0: first, 1: second, 2: second}) == "frame_count"
    assert refused({0: first, 1: other.chunks[1]}) == "wrong_picture"


def test_an_encoder_that_the_other_chunks_do_not_use_is_not_taken(
    media: Media, clips: Clips, tmp_path: Path
) -> None:
    apart = Apart(media, clips.get("split_open.mp4"), quick("web"), tmp_path, 2_000)
    apart.pieces = Pieces(
        Media(
            runner=FFmpegRunner(),
            ffmpeg=media.ffmpeg,
            encoders=frozenset({"libx265"}),
            python=sys.executable,
        )
    )
    with pytest.raises(MediaError) as caught:
        now(apart.encode(0))
    assert (caught.value.code, caught.value.failure) == ("encoder_unavailable", "encoder")


@pytest.mark.parametrize("name", ["field_coded.ts", "xvid.avi", "vfr.mp4", "mid_gop.ts", "hdr.mkv"])
def test_what_may_not_be_split_says_why(
    media: Media, clips: Clips, tmp_path: Path, name: str
) -> None:
    source = clips.get(name)
    why = now(
        Pieces(media).plan(
            source, tmp_path / "index", now(media.probe(source)), quick("web"), speeds=(1.0,)
        )
    )
    assert isinstance(why, str)
    assert why.startswith(("in ", "it ", "its ", "packets "))


@pytest.mark.parametrize(("ending", "sizes"), [("mkv", 2), ("ts", 2), ("mkv", 1)])
def test_a_picture_that_changes_its_size_is_noticed_wherever_it_does(
    media: Media, tmp_path: Path, ending: str, sizes: int
) -> None:
    raw = tmp_path / "raw.h264"
    for width in (160, 160) if sizes == 1 else (160, 192):
        words = ("-f", "lavfi", "-i", f"testsrc2=s={width}x120:r=25:d=2", "-bf", "0", "-g", "25")
        part = make(tmp_path / "part.h264", *words)
        with raw.open("ab") as file:
            file.write(part.read_bytes())
    stamps = ("-bsf:v", "setts=pts=N:dts=N:time_base=1/25")
    film = make(tmp_path / f"film.{ending}", "-r", "25", "-i", str(raw), "-c", "copy", *stamps)
    table = now(Pieces(media).index(film, tmp_path / "index", size=film.stat().st_size))
    assert (table.fault == CHANGES) == (sizes == 2), table.fault
    assert sizes == 2 or table.frames == 100


# --- the wide matrix --------------------------------------------------------------------------------

SPLITTABLE = [
    "split_open.mkv", "split_open.mp4", "split_open.ts", "split_2997.mkv", "split_2997.mp4",
    "split_2997.ts", "split_refresh.mkv", "split_vfr.mp4", "split_vfr.mkv", "split_hevc.mkv", "split_hevc.mp4", "split_vp9.webm",
    "split_av1.mp4", "split_mpeg2.mkv", "split_ffv1.mkv",
]  # fmt: skip


@pytest.mark.media
@pytest.mark.parametrize("program", [ffmpeg(), *OTHERS], ids=lambda path: path.split("/")[-1])
@pytest.mark.parametrize("chunks", [("web", 1_000), ("mobile", 3_000), ("archive", 2_000)], ids=str)
@pytest.mark.parametrize("name", SPLITTABLE)
def test_the_matrix(
    clips: Clips, tmp_path: Path, program: str, name: str, chunks: tuple[str, int]
) -> None:
    profile, ms = chunks
    media, source, wanted = media_of(program), clips.get(name), quick(profile)
    apart = Apart(media, source, wanted, tmp_path, ms).encode_all()
    result = apart.assemble()
    shows_each_frame_once(result, source)
    same_but_the_picture(media, result, whole(media, apart.probe, source, wanted, tmp_path))


@pytest.mark.media
@pytest.mark.parametrize("profile", ["web", "mobile"])
def test_an_edit_list_that_begins_in_a_group(
    media: Media, clips: Clips, tmp_path: Path, profile: str
) -> None:
    source = clips.get("split_edited.mp4")
    apart = Apart(media, source, quick(profile), tmp_path, 2_000).encode_all()
    assert apart.probe.of_kind("audio")[0].discarded > 3
    shows_each_frame_once(apart.assemble(), source)


class Recording(FFmpegRunner):
    """The real runner, which remembers what was decoded."""

    def __init__(self) -> None:
        super().__init__()
        self.decoded: list[Sequence[str]] = []
        self.frames: list[int] = []

    async def run(
        self, command: Sequence[str], *, limits: Limits, on_progress: OnProgress | None = None
    ) -> RunResult:
        ended = await super().run(command, limits=limits, on_progress=on_progress)
        if "null" in command:
            self.decoded.append(command)
            self.frames.append(0 if ended.progress is None else ended.progress.frame)
        return ended


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_pictures_that_were_only_copied_are_not_decoded_again(
    media: Media, clips: Clips, tmp_path: Path, codec: str
) -> None:
    base = quick("web")
    picture = base.video.model_copy(update={"codec": codec})
    wanted = base.model_copy(update={"video": picture})
    apart = Apart(media, clips.get("split_open.mp4"), wanted, tmp_path, 1_000).encode_all()
    seams = len(apart.film.split.chunks) - 1
    assert seams > 1
    # The sound's maker decodes it, the assembly what nobody did; seams together.
    for is_proven, maps in ((True, ["0:a:0", "0:v:0"]), (False, ["0:a:0", "0:v:0", "0:a:0"])):
        media.runner = runner = Recording()
        result = apart.assemble(sound_is_proven=is_proven)
        assert [words[list(words).index("-map") + 1] for words in runner.decoded] == maps
        for word in ("-ss", "-map"):
            assert runner.decoded[1].count(word) == seams
        assert runner.frames[1] == 10, "FFmpeg counts those of the first"
    shows_each_frame_once(result, clips.get("split_open.mp4"))


def test_a_sound_that_is_not_its_parts_is_told(media: Media, clips: Clips, tmp_path: Path) -> None:
    source = clips.get("split_open.mp4")
    apart = Apart(media, source, quick("web"), tmp_path, 2_000).encode_all()
    result = apart.assemble()
    sound, other, longer = (tmp_path / name for name in ("sound.mp4", "other.mp4", "longer.mp4"))
    words = ("-c:a", "aac", "-b:a", "160k")
    make(other, "-i", str(sound), "-af", "volume=0.5", *words)
    make(longer, "-stream_loop", "1", "-i", str(sound), "-c", "copy")

    def are_same(*words: str) -> object:
        return times_apart(str(tmp_path / "index"), str(result), [*words])["sounds"]

    assert are_same(str(sound), "0") is True
    assert are_same(str(other), "0") is False
    assert are_same(str(longer), "0") is False
    assert are_same(str(sound), "1") is False, "there is no such sound"
    assert are_same() is False


@pytest.mark.media
@pytest.mark.parametrize("codec", ["hevc", "av1", "ffv1", "h264", "prores"])
def test_every_codec_can_be_joined_in_both_containers(
    media: Media, clips: Clips, tmp_path: Path, codec: str
) -> None:
    for container in ("mp4", "matroska"):
        if container == "mp4" and codec in ("ffv1", "prores"):
            continue
        base = quick("archive")
        picture = base.video.model_copy(update={"codec": codec, "crf": 30, "bits": 8})
        wanted = base.model_copy(
            update={"container": container, "video": picture, "streams": "main"}
        )
        folder = tmp_path / container
        folder.mkdir()
        source = clips.get("split_open.mp4")
        shows_each_frame_once(
            Apart(media, source, wanted, folder, 2_000).encode_all().assemble(), source
        )


@pytest.mark.media
def test_a_turned_film_looks_like_one_converted_whole(
    media: Media, clips: Clips, tmp_path: Path
) -> None:
    source, wanted = clips.get("split_turned.mp4"), quick("web")
    apart = Apart(media, source, wanted, tmp_path, 2_000).encode_all()
    shows_each_frame_once(apart.assemble(), whole(media, apart.probe, source, wanted, tmp_path))


@pytest.mark.media
@pytest.mark.parametrize("profile", ["web", "archive"])
def test_a_real_film(media: Media, tmp_path: Path, profile: str) -> None:
    source = packaged_clip("bikes.mp4")
    apart = Apart(media, source, quick(profile), tmp_path, 1_000).encode_all()
    shows_each_frame_once(apart.assemble(), source)
