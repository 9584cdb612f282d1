"""From probe and profile to plan and command line."""

import pytest

from node.media.command import command_line, decode_command
from node.media.encoders import needs
from node.media.errors import (
    DamagedSourceError,
    EncoderUnavailableError,
    NoVideoStreamError,
    SourceError,
    UnsupportedSourceError,
)
from node.media.plan import EncodePlan, able, plan_whole
from node.media.probe import Probe, RawProbe, StreamInfo, judge_probe, probe_from_json
from node.media.profiles import BUILT_IN, Profile, VideoPolicy

ALL = frozenset({"libx264", "libx265", "libsvtav1", "ffv1"})


def video(**facts: object) -> StreamInfo:
    base = {
        "index": 0, "kind": "video", "codec": "h264", "time_base": (1, 12800), "packets": 100,
        "span_us": 3_960_000, "duration_us": 4_000_000, "width": 1280, "height": 720,
        "pixel_format": "yuv420p", "frame_rate": (25, 1), "base_rate": (25, 1), "default": True,
    }  # fmt: skip
    return StreamInfo.model_validate(base | facts)


def sound(index: int, **facts: object) -> StreamInfo:
    base = {
        "index": index, "kind": "audio", "codec": "aac", "packets": 190, "channels": 2,
        "duration_us": 4_000_000, "sample_rate": 48000,
    }  # fmt: skip
    return StreamInfo.model_validate(base | facts)


def other(index: int, kind: str, codec: str, **facts: object) -> StreamInfo:
    return StreamInfo.model_validate(
        {"index": index, "kind": kind, "codec": codec, "packets": 3} | facts
    )


def film(*others: StreamInfo, main: StreamInfo | None = None, **facts: object) -> Probe:
    base = {
        "container": "mov,mp4,m4a,3gp,3g2,mj2", "bytes": 1_000_000, "duration_ms": 4_000,
        "streams": (main or video(), *others), "main": 0, "frames": 100, "frames_by": "packets",
    }  # fmt: skip
    return Probe.model_validate(base | facts)


def plan(probe: Probe, profile: str = "web") -> EncodePlan:
    return plan_whole(probe, BUILT_IN[profile], ALL)


def names(made: EncodePlan) -> list[str]:
    return [step.name for step in made.filters]


@pytest.mark.parametrize(
    ("size", "profile", "expected"),
    [
        ((1280, 720), "web", (1280, 720)),
        ((160, 120), "mobile", (160, 120)),
        ((1920, 1080), "mobile", (1280, 720)),
        ((3840, 2160), "web", (1920, 1080)),
        ((2560, 1080), "web", (1920, 810)),
        ((1080, 1920), "web", (1080, 1920)),
        ((1080, 1920), "mobile", (720, 1280)),
        ((161, 121), "web", (160, 120)),
        ((853, 481), "web", (852, 480)),
        ((4096, 100), "mobile", (1280, 30)),
        ((3840, 2160), "archive", (3840, 2160)),
        ((1, 1), "web", (2, 2)),
    ],
)
def test_sizes_keep_their_shape_are_even_and_never_grow(
    size: tuple[int, int], profile: str, expected: tuple[int, int]
) -> None:
    made = plan(film(main=video(width=size[0], height=size[1])), profile)
    assert (made.width, made.height) == expected
    assert ("scale" in names(made)) == (size != expected)


@pytest.mark.parametrize("rotation", [90, -90, 270])
def test_a_film_that_lies_on_its_side_is_set_upright(rotation: int) -> None:
    main = video(width=1920, height=1080, rotation=rotation, sample_aspect=(4, 3))
    made = plan(film(main=main))
    assert (made.width, made.height, made.sample_aspect) == (1080, 1920, (3, 4))
    assert "scale" not in names(made)


def test_pixel_formats() -> None:
    assert plan(film(main=video(pixel_format="yuv422p10le"))).pixel_format == "yuv420p"
    for source, kept in [
        ("yuv420p", "yuv420p10le"),
        ("yuvj422p", "yuv422p10le"),
        ("yuv444p12le", "yuv444p10le"),
        ("gbrp", "yuv444p10le"),
        ("rgb24", "yuv444p10le"),
        ("gray", "yuv420p10le"),
    ]:
        assert plan(film(main=video(pixel_format=source)), "archive").pixel_format == kept


def test_hdr_is_kept_mapped_or_refused_but_never_just_cut_to_8_bits() -> None:
    hdr = film(
        main=video(colour_transfer="smpte2084", colour_primaries="bt2020", mastering_display=True)
    )
    kept = plan(hdr, "archive")
    assert (kept.colour_transfer, kept.mastering_display) == ("smpte2084", True)
    mapped = plan(hdr, "web")
    assert "tonemap" in names(mapped)
    assert (mapped.colour_transfer, mapped.mastering_display) == ("bt709", False)
    plain = BUILT_IN["web"].model_copy(update={"video": VideoPolicy(codec="h264", crf=20)})
    with pytest.raises(UnsupportedSourceError):
        plan_whole(hdr, plain, ALL)


def test_interlaced_pictures_are_made_whole_for_the_web_and_kept_for_the_archive() -> None:
    woven = film(main=video(interlaced=True))
    assert "bwdif" in names(plan(woven, "web"))
    assert "bwdif" not in names(plan(woven, "archive"))
    assert "bwdif" not in names(plan(film(), "web"))


def test_every_sound_is_kept_and_too_many_channels_are_said() -> None:
    made = plan(film(sound(1), sound(2, channels=6, language="deu")))
    assert [stream.encoder for stream in made.streams] == ["libx264", "aac", "aac"]
    assert made.notes == ("audio stream 2 (deu) is mixed from 6 to 2 channels",)


def test_what_has_no_place_is_left_out_loudly() -> None:
    probe = film(
        other(1, "subtitle", "hdmv_pgs_subtitle", language="fra"),
        other(2, "data", "bin_data"),
        other(3, "attachment", "ttf"),
        other(4, "video", "png", attached_picture=True),
        sound(5, codec=""),
    )
    made = plan(probe)
    assert len(made.streams) == 1
    assert len(made.notes) == 5
    assert any("subtitle stream 1 (fra)" in note for note in made.notes)
    assert any("cover picture" in note for note in made.notes)


def test_the_archive_keeps_every_stream() -> None:
    probe = film(
        sound(1, codec="dts"),
        sound(2, codec="pcm_s16be"),
        other(3, "subtitle", "hdmv_pgs_subtitle"),
        other(4, "subtitle", "mov_text"),
        other(5, "attachment", "ttf"),
        other(6, "video", "png", attached_picture=True),
        other(7, "data", "bin_data"),
    )
    made = plan(probe, "archive")
    assert [(stream.source, stream.encoder) for stream in made.streams[1:]] == [
        (1, "copy"), (2, "flac"), (3, "copy"), (4, "subrip"), (5, "copy"), (6, "copy"),
    ]  # fmt: skip
    assert len(made.notes) == 3


def test_text_subtitles_become_mov_text_in_mp4() -> None:
    made = plan(film(other(1, "subtitle", "subrip"), other(2, "subtitle", "ass")))
    assert [stream.encoder for stream in made.streams[1:]] == ["mov_text", "mov_text"]
    assert made.notes == ("subtitle stream 2 loses its styling in MP4",)


@pytest.mark.parametrize(
    ("rate", "level"), [((25, 1), "4.0"), ((60, 1), "4.0"), ((120, 1), "4.2"), ((240, 1), "5.1")]
)
def test_a_level_is_never_claimed_falsely(rate: tuple[int, int], level: str) -> None:
    made = plan(film(main=video(frame_rate=rate)), "mobile")
    assert dict(made.streams[0].options)["level"] == level
    assert bool(made.notes) == (level != "4.0")


def test_without_the_encoder_the_work_goes_elsewhere() -> None:
    with pytest.raises(EncoderUnavailableError) as caught:
        plan_whole(film(), BUILT_IN["web"], {"libx265", "h264_nvenc"})
    assert caught.value.failure == "encoder"
    assert needs(BUILT_IN["web"]) == ("libx264",)
    assert needs(BUILT_IN["archive"]) == ("libx265",)


def by(profile: str, *families: str, **video: object) -> Profile:
    changed = BUILT_IN[profile].video.model_copy(update={"encoders": families, **video})
    return BUILT_IN[profile].model_copy(update={"video": changed})


def test_chips_get_their_picture_in_their_memory_and_software_is_the_fallback() -> None:
    large = film(main=video(width=3840, height=2160))
    usable = {"h264_vulkan", "h264_nvenc", "libx264"}
    vulkan = plan_whole(large, by("web", "Vulkan", "CPU"), usable)
    assert (vulkan.encoder, vulkan.pixel_format) == ("h264_vulkan", "yuv420p")
    assert names(vulkan)[-3:] == ["setsar", "format", "hwupload"]
    assert vulkan.filters[-2].arguments == ("nv12",)
    words = command_line(vulkan, "ffmpeg", "/a.mkv", "/b.mp4", device="1")
    assert words.index("vulkan=dev:1") < words.index("-i")
    nvenc = plan_whole(large, by("web", "NVENC", "CPU"), usable)
    assert (nvenc.encoder, names(nvenc)[-1]) == ("h264_nvenc", "format")
    assert "-init_hw_device" not in command_line(nvenc, "ffmpeg", "/a.mkv", "/b.mp4", device="1")
    assert plan_whole(large, by("web", "QSV", "CPU"), usable).encoder == "libx264"
    with pytest.raises(EncoderUnavailableError, match="h264_qsv"):
        plan_whole(large, by("web", "QSV"), usable)


def test_vulkan_scales_only_where_a_picture_has_proven_it_and_two_taps_suffice() -> None:
    usable = {"h264_vulkan", "scale_vulkan"}
    half = film(main=video(width=3840, height=2160))
    made = plan_whole(half, by("web", "Vulkan"), usable)
    assert names(made)[-3:] == ["hwupload", "scale_vulkan", "setsar"]
    assert dict(made.filters[-2].options) == {"w": "1920", "h": "1080"}
    third = film(main=video(width=7680, height=4320))
    assert "scale" in names(plan_whole(third, by("web", "Vulkan"), usable))
    assert "scale" in names(plan_whole(half, by("web", "Vulkan"), {"h264_vulkan"}))


def test_chips_know_no_fine_chroma_so_the_processor_keeps_it() -> None:
    fine = film(main=video(pixel_format="yuv422p10le"))
    profile = by("archive", "NVENC", "CPU")
    assert plan_whole(fine, profile, {"hevc_nvenc", "libx265"}).encoder == "libx265"
    assert able(fine, profile) == ("libx265",)
    assert able(film(), profile) == ("hevc_nvenc", "libx265")


def test_plans_and_probes_survive_the_ledger() -> None:
    probe = film(sound(1), other(2, "subtitle", "subrip", title="é\u0000x"))
    assert probe_from_json(probe.to_json()) == probe
    made = plan(probe)
    assert EncodePlan.model_validate_json(made.to_json()) == made
    assert made.cost == 100 * 1280 * 720
    for text in ("", "{}", "[1]", "{" * 10_000, probe.to_json().replace("100", '"100"')):
        with pytest.raises(ValueError, match=r".*"):
            probe_from_json(text)


def words_of(made: EncodePlan, **options: int) -> list[str]:
    return list(command_line(made, "/opt/ffmpeg", "/in/a:b %d.mp4", "/out/x.mp4", **options))


def option(words: list[str], name: str) -> str:
    assert words.count(name) == 1, words
    return words[words.index(name) + 1]


def test_the_command_line() -> None:
    made = plan(
        film(
            sound(1, channels=6),
            other(2, "subtitle", "subrip"),
            main=video(width=3840, height=2160),
        )
    )
    words = words_of(made, threads=3)
    assert words[0] == "/opt/ffmpeg"
    assert words[-1] == "file:/out/x.mp4"
    assert option(words, "-i") == "file:/in/a:b %d.mp4"
    assert option(words, "-fps_mode") == "passthrough"
    assert option(words, "-enc_time_base:0") == "1:12800"
    assert option(words, "-protocol_whitelist") == "file,pipe"
    assert option(words, "-crf:0") == "22"
    assert option(words, "-threads:0") == "3"
    assert option(words, "-b:1") == "160k"
    assert option(words, "-ac:1") == "2"
    assert option(words, "-c:2") == "mov_text"
    assert option(words, "-movflags") == "+faststart"
    assert option(words, "-f") == "mp4"
    maps = [words[at + 1] for at, word in enumerate(words) if word == "-map"]
    assert maps[1:] == ["0:1", "0:2"]
    assert "[0:0]scale=1920:1080" in option(words, "-filter_complex")
    assert {"-nostdin", "-n", "-progress"} <= set(words)
    assert not {"-y", "-t", "-ss", "-r", "-shortest", "-vsync"} & set(words)
    whitelist = option(words, "-format_whitelist").split(",")
    assert not {
        "hls",
        "concat",
        "dash",
        "sdp",
        "rtsp",
        "image2",
        "lavfi",
        "ffmetadata",
        "tty",
    } & set(whitelist)


def test_threads_reach_each_encoder_in_its_own_way() -> None:
    archive = words_of(plan(film(), "archive"), threads=2)
    assert option(archive, "-x265-params:0") == "log-level=warning:pools=2"
    av1 = BUILT_IN["archive"].model_copy(
        update={"video": VideoPolicy(codec="av1", crf=30, bits=10)}
    )
    assert option(words_of(plan_whole(film(), av1, ALL), threads=2), "-svtav1-params:0") == "lp=2"
    lossless: Profile = av1.model_copy(update={"video": VideoPolicy(codec="ffv1", crf=0, bits=10)})
    assert option(words_of(plan_whole(film(), lossless, ALL)), "-c:0") == "ffv1"


def test_hevc_in_mp4_carries_the_tag_that_apple_wants() -> None:
    profile = BUILT_IN["web"].model_copy(update={"video": VideoPolicy(codec="hevc", crf=24)})
    assert option(words_of(plan_whole(film(), profile, ALL)), "-tag:0") == "hvc1"


def test_decoding_writes_nothing() -> None:
    words = decode_command("/opt/ffmpeg", "/out/x.mp4")
    assert words[-3:] == ("-f", "null", "-")


def raw(**facts: object) -> RawProbe:
    base = {
        "container": "matroska,webm", "bytes": 10, "duration_ms": 60_000, "end_ms": 60_000,
        "streams": (video(),), "main": 0, "frames": 100, "packets_read": 100,
    }  # fmt: skip
    return RawProbe.model_validate(base | facts)


def test_a_sound_film_is_taken_as_it_is() -> None:
    assert judge_probe(raw(declared_ms=60_020)).frames == 100
    assert judge_probe(raw(declared_ms=61_000)).frames == 100  # a second
    long = {"duration_ms": 7_200_000, "end_ms": 7_200_000}
    assert judge_probe(raw(**long, declared_ms=7_207_000)).frames == 100
    assert judge_probe(raw(duration_ms=2_000, end_ms=62_000, declared_ms=62_000)).frames == 100


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"declared_ms": 120_000}, "claims 120.00 s but holds 60.00 s"),
        ({"declared_ms": 61_001}, "claims 61.00 s but holds 60.00 s"),
        ({"declared_frames": 101}, "index names 101 frames"),
        ({"damaged_packets": 1}, "cannot be decoded"),
        ({"read_error": "Input/output error"}, "broke off"),
        ({"frames": 0}, "no picture"),
        ({"streams": (video(width=0),)}, "no picture"),
    ],
)
def test_films_that_lie_are_refused(facts: dict[str, object], said: str) -> None:
    with pytest.raises(DamagedSourceError, match=said):
        judge_probe(raw(**facts))


def test_a_film_whose_only_sound_nobody_can_decode_is_refused() -> None:
    with pytest.raises(UnsupportedSourceError, match="its sound"):
        judge_probe(raw(streams=(video(), sound(1, codec=""))))
    assert judge_probe(raw(streams=(video(), sound(1, codec=""), sound(2)))).frames == 100


def test_the_readers_complaints_count() -> None:
    with pytest.raises(DamagedSourceError, match="ended prematurely"):
        judge_probe(raw(), cut="File ended prematurely")
    with pytest.raises(DamagedSourceError, match="error while decoding"):
        judge_probe(raw(), damaged="error while decoding MB")
    # A recording that begins between two keyframes cannot be decoded there, and that is all.
    assert judge_probe(raw(undecodable=3), damaged="error while decoding MB").undecodable == 3
    with pytest.raises(DamagedSourceError):
        judge_probe(raw(undecodable=3), cut="File ended prematurely")
    with pytest.raises(DamagedSourceError, match=r"off: h264: error while"):
        judge_probe(raw(undecodable=3), later="[h264 @ 0x1] error while decoding MB")


def test_films_without_a_picture() -> None:
    with pytest.raises(NoVideoStreamError, match="only audio"):
        judge_probe(raw(streams=(sound(0),), main=-1))
    with pytest.raises(UnsupportedSourceError):
        judge_probe(raw(streams=(video(codec=""),)))


@pytest.mark.parametrize(
    "code", ["not_a_video", "empty_source", "refused_format", "unreadable_source"]
)
def test_faults_of_the_file_keep_their_code_and_say_what_to_do(code: str) -> None:
    with pytest.raises(SourceError) as caught:
        judge_probe(RawProbe(fault=code, what="so it is"))
    assert caught.value.code == code
    assert caught.value.todo


def test_sound_that_an_edit_list_hides_is_not_copied_back() -> None:
    made = plan(film(sound(1, discarded=24), sound(2, discarded=1)), "archive")
    assert [stream.encoder for stream in made.streams] == ["libx265", "flac", "copy"]
    assert any("edit list hides" in note for note in made.notes)


@pytest.mark.parametrize(
    "facts", [{"pixel_format": "bgr0"}, {"pixel_format": "gbrp"}, {"colour_space": "gbr"}]
)
def test_red_green_and_blue_become_luma_that_says_so(facts: dict[str, str]) -> None:
    web = [step.name for step in plan(film(main=video(**facts))).filters]
    assert web == ["scale", "setsar", "format", "setparams"]
    archive = plan(film(main=video(**facts)), "archive")
    assert archive.pixel_format == "yuv444p10le"
    assert dict(archive.filters[0].options)["out_color_matrix"] == "bt709"
    assert dict(archive.filters[-1].options)["colorspace"] == "bt709"
