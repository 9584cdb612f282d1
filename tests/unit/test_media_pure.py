"""Profiles, progress, stderr, versions: values in, values out."""

import json
from typing import get_args

import pytest

from ledger.commands import TEXT_BYTES_MAX
from mesh.errors import UsageError
from node.media.encoders import FORMS, device_words, encoder_options, needs
from node.media.errors import ERRORS, MediaError
from node.media.ffmpeg_binary import parse_encoders, parse_version
from node.media.formats import BEGUN
from node.media.hardware import Device
from node.media.profiles import BUILT_IN, VideoPolicy, built_in, output_name, profile_from_json
from node.media.progress import LINE_BYTES_MAX, FFmpegProgress, ProgressParser
from node.media.stderr_log import Complaint, StderrLog, plain

BLOCK = (
    b"frame=132\nfps=26.40\nstream_0_0_q=28.0\nbitrate=2094.7kbits/s\ntotal_size=1390864\n"
    b"out_time_us=5312000\nout_time_ms=5312000\nout_time=00:00:05.312000\ndup_frames=1\n"
    b"drop_frames=2\nspeed=5.45x\nprogress=continue\n"
)


def test_progress_is_read_the_same_whole_and_byte_by_byte() -> None:
    whole = ProgressParser().feed(BLOCK * 2)
    parser = ProgressParser()
    single = [block for byte in BLOCK * 2 for block in parser.feed(bytes([byte]))]
    assert whole == single
    assert whole[0] == FFmpegProgress(
        frame=132, fps=26.4, out_time_us=5_312_000, total_size=1_390_864,
        dup_frames=1, drop_frames=2, speed=5.45,
    )  # fmt: skip


def test_progress_with_values_that_ffmpeg_does_not_know_yet() -> None:
    text = b"frame=0\nfps=0.00\ntotal_size=N/A\nout_time_us=N/A\nspeed=N/A\nprogress=end\n"
    (block,) = ProgressParser().feed(text)
    assert block == FFmpegProgress(end=True)
    assert block.advance == (0, 0, 0)


def test_out_time_ms_counts_microseconds_where_it_stands_alone() -> None:
    (block,) = ProgressParser().feed(b"out_time_ms=5312000\nprogress=continue\n")
    assert block.out_time_us == 5_312_000


def test_fields_of_one_block_do_not_leak_into_the_next() -> None:
    blocks = ProgressParser().feed(BLOCK + b"frame=133\nprogress=continue\n")
    assert (blocks[1].dup_frames, blocks[1].total_size) == (0, None)


def test_an_endless_line_is_dropped_and_what_follows_is_read() -> None:
    parser = ProgressParser()
    for _ in range(10):
        assert parser.feed(b"x" * LINE_BYTES_MAX) == []
    (block,) = parser.feed(b"\nframe=7\nprogress=end\n")
    assert block.frame == 7


def test_numbers_that_are_none_are_refused() -> None:
    (block,) = ProgressParser().feed(
        b"fps=nan\nspeed=infx\nframe=99999999999999999999\nprogress=end\n"
    )
    assert block == FFmpegProgress(end=True)


def test_stderr_keeps_its_end_and_counts_its_errors() -> None:
    log = StderrLog()
    log.feed(b"[h264 @ 0x1] [error] first\n" + b"y" * 100_000 + b"\n[x] [fatal] second\nlast")
    summary = log.summary()
    assert summary.errors == 2
    assert summary.first_error == "[h264 @ 0x1] [error] first"
    assert summary.tail.endswith("second\nlast")
    assert len(summary.tail.encode()) <= TEXT_BYTES_MAX


def test_stderr_of_broken_text_still_fits_the_ledger() -> None:
    log = StderrLog()
    log.feed(b"\xff" * 100_000)
    assert 0 < len(log.summary().tail.encode()) <= TEXT_BYTES_MAX


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("[matroska,webm @ 0x1] [warning] File ended prematurely at pos. 12", "cut"),
        ("[mov @ 0x1] [error] stream 0, offset 0x1: partial file", "cut"),
        ("[vist#0:0/h264 @ 0x1] [error] Error submitting packet to decoder: Invalid", "damaged"),
        ("av_interleaved_write_frame(): No space left on device", "disk_full"),
        ("[fatal] Unknown encoder 'libx264'", "encoder"),
        ("x265 [error]: malloc of size 123 failed", "memory"),
        ("[error] Error writing trailer: File too large", "file_limit"),
    ],
)
def test_what_ffmpeg_complains_of_is_classed_even_when_it_is_cut_in_pieces(
    line: str, complaint: Complaint
) -> None:
    log = StderrLog()
    for byte in line.encode():
        log.feed(bytes([byte]))
    assert log.summary().said(complaint) == line


def test_complaints_before_and_behind_the_beginning_of_a_film() -> None:
    log = StderrLog()
    log.feed(
        b"error while decoding MB 1\n"
        + BEGUN.encode()
        + b"\nconcealing 2\nerror while decoding MB 3\n"
    )
    assert log.summary().said("damaged") == "error while decoding MB 1"
    assert log.summary().said("later") == "concealing 2"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("[aist#0:1/aac @ 0x5] [dec:aac @ 0x6] [error] Bad", "stream 1 (aac): Bad"),
        ("[mov,mp4 @ 0x5] [error] Bad [here]", "mov,mp4: Bad [here]"),
        ("[fatal] Bad", "Bad"),
        ("Bad", "Bad"),
    ],
)
def test_lines_for_people(line: str, shown: str) -> None:
    assert plain(line) == shown


def test_a_complaint_in_an_endless_line_is_found_once_and_bounded() -> None:
    log = StderrLog()
    log.feed(b"File ended prematurely " + b"z" * 1_000_000 + b"\n")
    said = log.summary().said("cut")
    assert said is not None
    assert len(said) <= 4096


@pytest.mark.parametrize("name", ["web", "mobile", "archive"])
def test_profiles_survive_the_ledger(name: str) -> None:
    assert profile_from_json(BUILT_IN[name].to_json()) == BUILT_IN[name]


def test_the_profiles_and_what_their_outputs_are_called() -> None:
    assert list(BUILT_IN) == ["web", "mobile", "archive", "small"]
    assert output_name("film", built_in("web")) == "film.web.mp4"
    assert output_name("a.b", built_in("archive")) == "a.b.archive.mkv"


@pytest.mark.parametrize(
    "change",
    [
        {"arguments": "-f lavfi"},
        {"container": "hls"},
        {"name": "../x"},
        {"video": {"codec": "h264", "crf": "22"}},
        {"video": {"codec": "h264", "crf": 22, "filter": "movie=/etc/passwd"}},
        {"audio": {"codec": "aac", "bitrate_kbps": 10**9}},
        {"video": {"codec": "h264", "crf": 22, "level": "4.0 -f x"}},
    ],
)
def test_a_profile_is_data_and_nothing_else(change: dict[str, object]) -> None:
    fields = json.loads(BUILT_IN["web"].to_json()) | change
    with pytest.raises(UsageError, match="bad profile"):
        profile_from_json(json.dumps(fields))


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "{", " " * 100_000])
def test_what_is_no_profile_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        profile_from_json(text)


def test_an_unknown_profile_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        built_in("wbe")
    assert "web, mobile, archive" in caught.value.line()


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("ffmpeg version 5.1.9-0+deb12u1 Copyright", ("5.1.9-0+deb12u1", (5, 1))),
        ("ffmpeg version n9.0.2-17-g2a57 Copyright", ("n9.0.2-17-g2a57", (9, 0))),
        ("ffmpeg version N-118000-gabc Copyright", ("N-118000-gabc", None)),
        ("ffmpeg version 4.4.2 Copyright", ("4.4.2", (4, 4))),
    ],
)
def test_versions_of_ffmpeg(text: str, version: tuple[str, tuple[int, int] | None]) -> None:
    assert parse_version(text) == version


def test_a_program_that_is_no_ffmpeg() -> None:
    with pytest.raises(ValueError, match="not an FFmpeg"):
        parse_version("GNU bash, version 5.2")


def test_the_list_of_encoders() -> None:
    text = (
        "Encoders:\n V..... = Video\n ------\n V....D libx264              libx264 H.264\n"
        " V.S..D ffv1                 FFmpeg video codec #1\n A....D aac                  AAC\n"
        " S..... mov_text             3GPP\n"
    )
    assert parse_encoders(text) == {"libx264": "V", "ffv1": "V", "aac": "A", "mov_text": "S"}


def test_encoders_belong_to_families() -> None:
    assert FORMS["h264_nvenc"].family == "NVENC"
    assert FORMS["ffv1_vulkan"].family == "Vulkan"
    assert FORMS["prores_videotoolbox"].codec == "prores"
    assert FORMS["libx265"].family == "CPU"
    assert "h263_v4l2m2m" not in FORMS


@pytest.mark.parametrize("encoder", FORMS)
def test_every_encoder_has_a_form_of_every_speed(encoder: str) -> None:
    web = BUILT_IN["web"]
    for speed in get_args(VideoPolicy.model_fields["speed"].annotation):
        video = VideoPolicy(codec=FORMS[encoder].codec, crf=22, speed=speed)
        assert encoder_options(encoder, web.model_copy(update={"video": video}), None)


def test_the_same_quality_in_the_words_of_each_chip() -> None:
    web = BUILT_IN["web"]
    found = {name: dict(encoder_options(name, web, "4.0")) for name in FORMS}
    assert (
        found["libx264"]["crf"] == found["h264_nvenc"]["cq"] == found["h264_vulkan"]["qp"] == "22"
    )
    assert found["h264_nvenc"]["b"] == "0"  # else FFmpeg's 2 Mbit/s are the limit
    assert found["h264_qsv"]["global_quality"] == "22"
    assert found["av1_amf"]["qp_i"] == "88"
    assert "preset" not in found["h264_vulkan"]
    assert found["hevc_nvenc"]["tag"] == "hvc1"


def test_what_a_profile_needs_in_its_order() -> None:
    web = BUILT_IN["web"]
    assert needs(web) == ("libx264",)
    chips = web.video.model_copy(update={"encoders": ("V4L2", "NVENC", "Vulkan", "CPU")})
    assert needs(web.model_copy(update={"video": chips})) == (
        "h264_nvenc",
        "h264_vulkan",
        "libx264",
    )


def test_devices_are_opened_where_an_encoder_takes_only_their_memory() -> None:
    assert device_words("h264_nvenc", "1") == ()
    assert device_words("h264_vulkan", "1")[:2] == ("-init_hw_device", "vulkan=dev:1")
    assert device_words("hevc_vaapi", "/dev/dri/renderD128")[1] == "vaapi=dev:/dev/dri/renderD128"


def test_older_members_read_profiles_that_ask_for_nothing_new() -> None:
    told = json.loads(BUILT_IN["web"].to_json())
    assert not {"publish", "metadata", "quality"} & told.keys()
    assert "encoders" not in told["video"]
    asked = BUILT_IN["web"].model_copy(update={"metadata": "none"})
    assert json.loads(asked.to_json())["metadata"] == "none"
    assert profile_from_json(asked.to_json()) == asked


def test_a_software_renderer_is_no_gpu() -> None:
    facts = {
        "name": "llvmpipe",
        "vendor_id": 1,
        "device_id": 1,
        "api_version": "1.3.0",
        "driver_version": 1,
    }
    assert not Device(type="CPU", **facts).is_gpu
    assert Device(type="integrated GPU", **facts).is_gpu


def test_every_error_has_a_code_of_its_own_and_says_who_reads_it() -> None:
    def below(cls: type[MediaError]) -> list[type[MediaError]]:
        return [cls] + [found for sub in cls.__subclasses__() for found in below(sub)]

    classes = below(MediaError)
    assert len({cls.code for cls in classes}) == len(classes) == len(ERRORS)
    assert all(cls.__doc__ for cls in classes)
    assert all(cls.retry == "never" for cls in classes if cls.failure == "input")
    assert all(cls.retry == "elsewhere" for cls in classes if cls.failure == "encoder")
    assert all(cls.retry == "here" for cls in classes if cls.failure == "transient")
