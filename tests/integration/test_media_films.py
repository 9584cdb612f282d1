"""Real films through real FFmpeg: what is kept frame for frame, and what is refused."""

import asyncio
import os
import struct
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import av
import pytest

from node.media.convert import ConversionError, Converted, Media
from node.media.errors import MediaError
from node.media.ffmpeg_binary import FFmpegBinary, choose
from node.media.formats import is_place
from node.media.locate_ffmpeg import ffmpeg_candidates
from node.media.probe import Probe
from node.media.profiles import BUILT_IN, Profile, PublishPolicy, QualityPolicy, profile_from_json
from node.media.progress import FFmpegProgress
from node.media.proofs_files import ProofFiles
from node.media.run_ffmpeg import FFmpegRunner
from tests.matrix_clips import RECIPES
from tests.media_clips import Clips, ffmpeg, make, packaged_clip, shared_clip

T = TypeVar("T")
assert "asp.avi" in RECIPES  # the films of the matrix are known to `Clips` as well
ENCODERS = frozenset({"libx264", "libx265", "libsvtav1", "ffv1"})


def now(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    return Clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def binary() -> FFmpegBinary:
    """The embedded one, also where the machine has another."""
    return now(choose(FFmpegRunner(), ffmpeg_candidates(ffmpeg())))


@pytest.fixture
def media(binary: FFmpegBinary) -> Media:
    return Media(runner=FFmpegRunner(), ffmpeg=binary, encoders=ENCODERS, python=sys.executable)


def quick(name: str) -> Profile:
    """The profile, with the encoder's fastest preset: what is tested is not compression."""
    profile = BUILT_IN[name]
    return profile.model_copy(
        update={"video": profile.video.model_copy(update={"speed": "ultrafast"})}
    )


def times(path: Path) -> list[float]:
    """Presentation times of the moving picture, in seconds from the first."""
    with av.open(str(path)) as opened:
        stream = next(v for v in opened.streams.video if not v.disposition.value & 0x400)
        base = stream.time_base
        assert base is not None
        found = sorted(
            float(p.pts * base)
            for p in opened.demux(stream)
            if p.pts is not None and not p.is_discard
        )
    return [at - found[0] for at in found]


class Outcome:
    def __init__(self, media: Media, source: Path, output: Path, profile: Profile) -> None:
        self.output = output
        self.seen: list[FFmpegProgress] = []
        self.probe: Probe = now(media.probe(source))
        self.made: Converted = now(
            media.convert(source, output, self.probe, profile, on_progress=self.seen.append)
        )
        self.result: Probe = now(media.probe(output))


FRAMES = {
    "plain.mp4": 50,
    "plain.ts": 50,
    "vfr.mkv": 36,
    "vfr.mp4": 36,
    "one_frame.mp4": 1,
    "open_gop.ts": 50,
    "vp9.webm": 50,
    "xvid.avi": 50,
    "late_sound.mkv": 50,
}


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("profile", ["web", "archive"])
def test_every_frame_keeps_its_time(
    media: Media, clips: Clips, tmp_path: Path, name: str, profile: str
) -> None:
    frames = FRAMES[name]
    outcome = Outcome(media, clips.get(name), tmp_path / "out", quick(profile))
    assert outcome.made.facts.frames == frames == outcome.probe.frames
    before, after = times(clips.get(name)), times(outcome.output)
    # A millisecond is what Matroska can tell (FACTS.md: the coarser of both time bases).
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) < 0.0011
    assert outcome.seen[-1].end
    assert outcome.seen[-1].frame == frames


def test_packets_that_are_no_frames_are_counted_by_decoding(
    media: Media, clips: Clips, tmp_path: Path
) -> None:
    outcome = Outcome(media, clips.get("field_coded.ts"), tmp_path / "out", quick("web"))
    assert (outcome.probe.frames, outcome.probe.frames_by) == (25, "decoding")
    assert outcome.probe.video.interlaced
    assert not outcome.result.video.interlaced
    assert now(media.probe(clips.get("plain.mp4"))).frames_by == "packets"


def test_a_recording_that_begins_between_keyframes_is_kept_from_the_first_picture_on(
    media: Media, clips: Clips, tmp_path: Path
) -> None:
    outcome = Outcome(media, clips.get("mid_gop.ts"), tmp_path / "out", quick("web"))
    assert outcome.probe.undecodable > 0
    assert 0 < outcome.probe.frames < 50
    assert any("nothing can decode" in note for note in outcome.made.report.notes)


def test_a_phones_portrait_film_stands_upright(media: Media, clips: Clips, tmp_path: Path) -> None:
    outcome = Outcome(media, clips.get("portrait.mp4"), tmp_path / "out", quick("web"))
    assert outcome.probe.video.rotation == 90
    facts = outcome.result.video
    assert (facts.width, facts.height, facts.rotation) == (120, 160, 0)


def test_the_owner_judges_what_it_was_handed(media: Media, clips: Clips, tmp_path: Path) -> None:
    source, profile = clips.get("plain.mp4"), quick("web")
    outcome = Outcome(media, source, tmp_path / "out", profile)
    facts, encoder = outcome.made.facts, outcome.made.report.encoder

    def delivered(path: Path) -> str:
        judged = media.check_delivered(path, outcome.probe, profile, facts, encoder=encoder)
        return now(judged).code

    assert delivered(outcome.output) == ""
    half = outcome.output.read_bytes()[: facts.bytes // 2]
    assert delivered(write(tmp_path / "half", half)) == "result_damaged"
    assert delivered(source) != ""


def test_odd_sizes_wide_pixels_and_large_pictures(
    media: Media, clips: Clips, tmp_path: Path
) -> None:
    odd = Outcome(media, clips.get("odd.mkv"), tmp_path / "1", quick("web")).result.video
    assert (odd.width, odd.height, odd.sample_aspect) == (160, 120, (1, 1))
    wide = Outcome(media, clips.get("wide_pixels.mp4"), tmp_path / "2", quick("web")).result.video
    assert (wide.width, wide.sample_aspect) == (160, (16, 15))
    large = Outcome(media, clips.get("large.mp4"), tmp_path / "3", quick("web")).result.video
    assert (large.width, large.height) == (1920, 810)


def test_hdr_is_kept_by_the_archive_and_mapped_for_the_web(
    media: Media, clips: Clips, tmp_path: Path
) -> None:
    kept = Outcome(media, clips.get("hdr.mkv"), tmp_path / "1", quick("archive")).result.video
    assert (kept.colour_transfer, kept.colour_primaries) == ("smpte2084", "bt2020")
    assert kept.mastering_display
    assert kept.pixel_format == "yuv420p10le"
    mapped = Outcome(media, clips.get("hdr.mkv"), tmp_path / "2", quick("web")).result.video
    assert (mapped.colour_transfer, mapped.colour_primaries) == ("bt709", "bt709")
    assert (mapped.pixel_format, mapped.mastering_display) == ("yuv420p", False)


def test_the_archive_keeps_every_stream_and_the_web_says_what_it_drops(
    media: Media, clips: Clips, tmp_path: Path
) -> None:
    source = clips.get("many.mkv")
    kept = Outcome(media, source, tmp_path / "1", quick("archive"))
    assert kept.made.facts.streams == (
        "video:hevc", "audio:aac", "audio:flac", "subtitle:subrip", "attachment:",
    )  # fmt: skip
    assert [s.language for s in kept.result.streams[1:4]] == ["eng", "deu", "fra"]
    assert kept.made.report.notes == ()
    web = Outcome(media, source, tmp_path / "2", quick("web"))
    assert web.made.facts.streams == ("video:h264", "audio:aac", "audio:aac", "subtitle:mov_text")
    assert "attachment" in web.made.report.notes[0]


def test_what_an_edit_list_hides_is_no_damage_and_stays_hidden(
    media: Media, clips: Clips, tmp_path: Path
) -> None:
    outcome = Outcome(media, clips.get("split_edited.mp4"), tmp_path / "1", quick("archive"))
    assert (outcome.probe.frames_by, outcome.probe.undecodable) == ("packets", 0)
    assert [stream.codec for stream in outcome.result.streams] == ["hevc", "flac"]
    assert outcome.made.report.notes == (
        "audio stream 1 becomes FLAC: its edit list hides a part of it",
    )


@pytest.mark.parametrize("profile", ["web", "archive"])
def test_red_stays_red(media: Media, tmp_path: Path, profile: str) -> None:
    picture = ["-f", "lavfi", "-i", "color=red:s=160x120:r=25:d=0.4,format=gbrp"]
    source = make(tmp_path / "red.mkv", *picture, "-c:v", "ffv1")
    outcome = Outcome(media, source, tmp_path / "out", quick(profile))
    assert outcome.result.video.colour_space == "bt709"
    with av.open(str(outcome.output)) as opened:
        frame = next(opened.decode(video=0)).reformat(format="yuv444p")
    luma, _, red = (bytes(plane)[0] for plane in frame.planes)
    # ITU-R BT.709, limited range: 16 + 219 * 0.2126, and as red as can be.
    assert (abs(luma - 63) <= 2, abs(red - 240) <= 2) == (True, True)


def test_places_without_a_picture_in_avi_are_not_missing(
    media: Media, clips: Clips, tmp_path: Path
) -> None:
    whole = clips.get("asp.avi")
    outcome = Outcome(media, whole, tmp_path / "out", quick("web"))
    assert outcome.made.facts.frames == outcome.probe.frames
    short = write(tmp_path / "short.avi", whole.read_bytes()[:-5_000])
    assert refused(media, short) == "damaged_source"


def test_covers_are_no_films(media: Media, clips: Clips, tmp_path: Path) -> None:
    outcome = Outcome(media, clips.get("film_with_cover.mp4"), tmp_path / "1", quick("archive"))
    assert outcome.made.facts.frames == 50
    assert [stream.codec for stream in outcome.result.of_kind("video")] == ["hevc", "png"]
    assert "cover picture" in outcome.made.report.notes[0]


@pytest.mark.parametrize("profile", ["web", "mobile"])
@pytest.mark.parametrize(
    ("name", "frames"), [("bigbuckbunny.mp4", 132), ("VID_20191220_170832.mp4", 41)]
)
def test_real_clips(media: Media, tmp_path: Path, name: str, frames: int, profile: str) -> None:
    outcome = Outcome(media, shared_clip(name), tmp_path / "out", quick(profile))
    assert outcome.made.facts.frames == frames
    assert outcome.result.video.width == (1280 if profile == "mobile" or frames == 132 else 1920)


def test_the_demos_clip(media: Media, tmp_path: Path) -> None:
    outcome = Outcome(media, packaged_clip("bikes.mp4"), tmp_path / "out", quick("web"))
    assert outcome.made.facts.frames == outcome.probe.frames > 100


def asked(name: str, **changes: object) -> Profile:
    return profile_from_json(quick(name).model_copy(update=changes).to_json())


@pytest.mark.parametrize("policy", ["keep", "no-location", "none"])
def test_a_phones_film_tells_where_it_was_taken_only_where_that_is_wanted(
    media: Media, tmp_path: Path, policy: str
) -> None:
    source = shared_clip("VID_20191220_170832.mp4")
    Outcome(media, source, tmp_path / "out.mp4", asked("web", metadata=policy))
    with av.open(str(tmp_path / "out.mp4")) as opened:
        told = opened.metadata
    assert any(is_place(tag) for tag in told) == (policy == "keep")
    assert ("creation_time" in told) == (policy != "none")
    assert now(media.probe(source)).places == ("location", "location-eng")


def test_a_result_that_is_no_smaller_is_thrown_away_if_asked(
    media: Media, clips: Clips, tmp_path: Path
) -> None:
    discard = asked("web", publish=PublishPolicy(larger="discard"))
    small = make(tmp_path / "small.mkv", "-i", str(clips.get("plain.mp4")), "-crf", "45")
    with pytest.raises(ConversionError) as refused:
        Outcome(media, small, tmp_path / "out.mp4", discard)
    assert (refused.value.error.code, refused.value.error.failure) == ("not_smaller", "input")
    large = make(tmp_path / "large.mkv", "-i", str(clips.get("plain.mp4")), "-crf", "1")
    Outcome(media, large, tmp_path / "large.mp4", discard)
    assert (tmp_path / "large.mp4").stat().st_size < large.stat().st_size


@pytest.mark.parametrize("floor", [70.0, 99.9])
def test_a_result_that_looks_too_little_like_its_film_is_refused(
    media: Media, clips: Clips, tmp_path: Path, floor: float
) -> None:
    asked_for = asked("web", quality=QualityPolicy(vmaf_min=floor))
    source = clips.get("vfr.mkv")
    if floor < 90:
        made = Outcome(media, source, tmp_path / "out.mp4", asked_for).made
        assert made.facts.vmaf is not None
        assert made.facts.vmaf > floor
        assert made.report.stderr_tail.startswith(f"VMAF of the samples: {made.facts.vmaf:.1f} ")
        return
    with pytest.raises(ConversionError) as refused:
        Outcome(media, source, tmp_path / "out.mp4", asked_for)
    assert (refused.value.error.code, refused.value.error.failure) == ("poor_picture", "input")


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def refused(media: Media, path: Path) -> str:
    with pytest.raises(MediaError) as caught:
        now(media.probe(path))
    assert caught.value.failure == "input"
    assert caught.value.todo
    assert str(path) not in caught.value.line()
    return caught.value.code


@pytest.mark.parametrize("name", ["cut.mkv", "cut.mp4", "cut.ts", "cut.avi", "holed.mkv"])
def test_damaged_films_are_refused_before_anything_is_made(
    media: Media, clips: Clips, name: str
) -> None:
    assert refused(media, clips.get(name)) == "damaged_source"


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_a_damaged_table_of_times_is_no_sound_film(
    media: Media, tmp_path: Path, codec: str
) -> None:
    """One frame is moved by four: span, number and every picture are right, and FFmpeg says nothing."""
    source = make(
        tmp_path / "film.mp4", "-f", "lavfi", "-i", "testsrc2=s=160x120:r=25:d=4", "-c:v", codec,
        "-bf", "2", "-g", "25", "-pix_fmt", "yuv420p",
    )  # fmt: skip
    Outcome(media, source, tmp_path / "sound", quick("web"))
    data = bytearray(source.read_bytes())
    table = data.index(b"ctts") + 12
    (count,) = struct.unpack_from(">I", data, table - 4)
    entry = table + 8 * (count // 3)
    runs, offset = struct.unpack_from(">II", data, entry)
    struct.pack_into(">II", data, entry, runs, offset + 4 * 512)
    source.write_bytes(data)
    with pytest.raises(ConversionError) as refused:
        Outcome(media, source, tmp_path / "out", quick("web"))
    assert refused.value.error.code == "damaged_source"
    assert "ms away from its time" in refused.value.error.what


def test_what_is_no_film_is_refused_by_name(media: Media, clips: Clips, tmp_path: Path) -> None:
    assert refused(media, clips.get("sound.mp3")) == "no_video_stream"
    assert refused(media, clips.get("cover.mp3")) == "no_video_stream"
    assert refused(media, clips.get("cut_end.mp4")) == "not_a_video"
    assert refused(media, write(tmp_path / "a.mp4", b"")) == "empty_source"
    assert refused(media, write(tmp_path / "b.mp4", b"just some text\n" * 100)) == "not_a_video"
    assert refused(media, write(tmp_path / "c.mkv", os.urandom(100_000))) == "not_a_video"
    assert refused(media, tmp_path / "missing.mp4") == "unreadable_source"
    assert refused(media, tmp_path) == "unreadable_source"


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs there")
def test_a_pipe_is_not_waited_for(media: Media, tmp_path: Path) -> None:
    path = tmp_path / "pipe.mkv"
    os.mkfifo(path)
    assert refused(media, path) == "unreadable_source"


def test_files_that_point_elsewhere_are_never_followed(
    media: Media, clips: Clips, tmp_path: Path
) -> None:
    film = clips.get("plain.ts")
    lists = {
        "a.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2,\n{film}\n#EXT-X-ENDLIST\n",
        "b.mp4": f"#EXTM3U\n#EXTINF:2,\n{film}\n#EXT-X-ENDLIST\n",
        "c.ffconcat": f"ffconcat version 1.0\nfile {film}\n",
        "d.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
        "e.mpd": "<?xml version='1.0'?>\n<MPD xmlns='urn:mpeg:dash:schema:mpd:2011'></MPD>",
    }
    for name, text in lists.items():
        assert refused(media, write(tmp_path / name, text.encode())) == "refused_format"
    hidden = write(tmp_path / "f.txt", b"\n" * 5000 + lists["a.m3u8"].encode())
    assert refused(media, hidden) in ("refused_format", "not_a_video")


def failed(
    media: Media, source: Path, probe: Probe, output: Path, profile: str = "web"
) -> ConversionError:
    with pytest.raises(ConversionError) as caught:
        now(media.convert(source, output, probe, quick(profile), on_progress=lambda _: None))
    assert caught.value.report.command_line
    return caught.value


@pytest.mark.parametrize("kind", ["mkv", "ts", "mp4"])
def test_half_a_film_is_no_film_whatever_the_exit_code(
    media: Media, clips: Clips, tmp_path: Path, kind: str
) -> None:
    """The owner's probe tells the truth: what arrived is half of it, and FFmpeg says 0."""
    whole = clips.get("faststart.mp4" if kind == "mp4" else f"plain.{kind}")
    probe = now(media.probe(whole))
    half = write(tmp_path / f"half.{kind}", whole.read_bytes()[: whole.stat().st_size // 2])
    error = failed(media, half, probe, tmp_path / "out").error
    assert error.code in ("damaged_source", "frame_count")


def test_a_clean_but_shorter_film_is_refused_by_its_frames(
    media: Media, clips: Clips, tmp_path: Path
) -> None:
    probe = now(media.probe(clips.get("plain.mp4")))
    shorter = clips.get("vfr.mp4")
    assert failed(media, shorter, probe, tmp_path / "out").error.code == "frame_count"


def test_an_output_that_is_there_is_never_written_over(
    media: Media, clips: Clips, tmp_path: Path
) -> None:
    source = clips.get("plain.mp4")
    there = write(tmp_path / "out", b"precious")
    error = failed(media, source, now(media.probe(source)), there)
    assert error.error.code == "encode_failed"
    assert "already exists" in error.report.stderr_tail
    assert there.read_bytes() == b"precious"


def test_an_unwritable_place_and_a_missing_source(
    media: Media, clips: Clips, tmp_path: Path
) -> None:
    source = clips.get("plain.mp4")
    probe = now(media.probe(source))
    assert failed(media, source, probe, tmp_path / "no" / "out").error.code == "encode_failed"
    missing = failed(media, tmp_path / "gone.mp4", probe, tmp_path / "out")
    assert missing.error.failure in ("transient", "input")


def test_names_that_look_like_options_or_protocols(
    media: Media, clips: Clips, tmp_path: Path
) -> None:
    for name in ("-y.mp4", "http:a|b %03d.mp4", "a'b\\c [0] ü\n.mp4"):
        source = write(tmp_path / name, clips.get("one_frame.mp4").read_bytes())
        output = tmp_path / f"{name}.out"
        Outcome(media, source, output, quick("web"))
        assert output.is_file()


def test_a_folder_that_cannot_be_written_costs_only_the_memory(tmp_path: Path) -> None:
    blocked = ProofFiles(write(tmp_path / "file", b"") / "below")
    now(blocked.store("key", "{}"))
    assert now(blocked.load("key")) is None


def test_a_configured_program_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKSTREAM_FFMPEG", str(write(tmp_path / "ffmpeg", b"#!")))
    (candidate,) = ffmpeg_candidates()
    assert candidate.origin == "configured"
    with pytest.raises(MediaError) as caught:
        now(choose(FFmpegRunner(), (candidate,)))
    assert caught.value.code == "ffmpeg_missing"
    monkeypatch.delenv("DARKSTREAM_FFMPEG")
    assert ffmpeg_candidates()[-1].origin == "imageio-ffmpeg"
