"""What is accepted, what is refused, and where a retry makes sense: a runner that replays what FFmpeg did."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from node.media.child import Limits, OnProgress, Reason, RunResult
from node.media.convert import ConversionError, Media, RunReport
from node.media.errors import FFmpegMissingError, MixedSoftwareError, ProbeLimitError
from node.media.ffmpeg_binary import Candidate, FFmpegBinary, Origin, choose
from node.media.judge import (
    Verdict,
    facts_of,
    judge_decode,
    judge_packets,
    judge_result,
    judge_run,
)
from node.media.plan import EncodePlan, plan_whole
from node.media.probe import Probe, StreamInfo, probe_file
from node.media.profiles import BUILT_IN
from node.media.progress import FFmpegProgress
from node.media.stderr_log import StderrLog

END = FFmpegProgress(frame=100, out_time_us=4_000_000, total_size=1000, end=True)


def stream(index: int, kind: str, codec: str, **facts: object) -> StreamInfo:
    base = {
        "index": index, "kind": kind, "codec": codec, "packets": 100, "duration_us": 4_000_000,
        "span_us": 3_960_000, "frame_rate": (25, 1), "base_rate": (25, 1), "time_base": (1, 12800),
    }  # fmt: skip
    return StreamInfo.model_validate(base | facts)


def picture(**facts: object) -> StreamInfo:
    base = {"width": 1280, "height": 720, "pixel_format": "yuv420p", "colour_transfer": "bt709"}
    return stream(0, "video", "h264", **(base | facts))


def film(*streams: StreamInfo, **facts: object) -> Probe:
    base = {
        "container": "matroska,webm", "bytes": 1_000_000, "duration_ms": 4_000, "main": 0,
        "frames": 100, "frames_by": "packets",
        "streams": streams or (picture(), stream(1, "audio", "aac"), stream(2, "subtitle", "subrip")),
    }  # fmt: skip
    return Probe.model_validate(base | facts)


def plan() -> EncodePlan:
    return plan_whole(film(), BUILT_IN["web"], {"libx264"})


def result(*streams: StreamInfo, **facts: object) -> Probe:
    made = (picture(), stream(1, "audio", "aac"), stream(2, "subtitle", "mov_text"))
    return film(*(streams or made), **facts)


def run(
    *,
    code: int | None = 0,
    reason: Reason = "exited",
    stderr: str = "",
    progress: FFmpegProgress | None = END,
    stdout: bytes = b"",
    signal: int | None = None,
) -> RunResult:
    log = StderrLog()
    log.feed(stderr.encode())
    return RunResult(
        command=("ffmpeg",), exit_code=code, signal=signal, reason=reason, stdout=stdout,
        stderr=log.summary(), progress=progress, duration_ms=7,
    )  # fmt: skip


def test_a_run_that_did_what_was_planned() -> None:
    assert judge_run(run(stderr="[warning] something harmless"), plan()).ok


@pytest.mark.parametrize(
    ("ended", "code", "failure"),
    [
        (
            run(stderr="[matroska @ 0x1] [warning] File ended prematurely"),
            "damaged_source",
            "input",
        ),
        (run(stderr="[h264] [error] error while decoding MB 1 2"), "damaged_source", "input"),
        (run(code=183, stderr="[error] moov atom not found"), "damaged_source", "input"),
        (run(progress=replace(END, frame=99)), "frame_count", "transient"),
        (run(progress=replace(END, dup_frames=1)), "frame_count", "transient"),
        (run(progress=replace(END, drop_frames=1)), "frame_count", "transient"),
        (run(progress=replace(END, end=False)), "encode_failed", "transient"),
        (run(progress=None), "encode_failed", "transient"),
        (run(code=1, stderr="[error] odd"), "encode_failed", "transient"),
        (run(code=None, signal=9, reason="signal"), "ffmpeg_killed", "transient"),
        (run(code=None, signal=11, reason="signal"), "encode_failed", "transient"),
        (run(code=None, signal=9, reason="stalled"), "stalled", "transient"),
        (run(code=None, signal=9, reason="time"), "time_limit", "transient"),
        (run(code=None, signal=9, reason="output"), "output_limit", "transient"),
        (run(code=None, signal=9, reason="stderr"), "output_limit", "transient"),
        (run(code=None, reason="start"), "encoder_unavailable", "encoder"),
        (run(code=8, stderr="[fatal] Unknown encoder 'libx264'"), "encoder_unavailable", "encoder"),
        (run(code=228, stderr="[error] No space left on device"), "work_disk_full", "transient"),
        (run(code=244, stderr="[error] Cannot allocate memory"), "out_of_memory", "encoder"),
        (run(code=27, stderr="[error] File too large"), "output_limit", "transient"),
    ],
)
def test_runs_that_are_refused(ended: RunResult, code: str, failure: str) -> None:
    verdict = judge_run(ended, plan())
    assert (verdict.ok, verdict.code, verdict.failure) == (False, code, failure)
    assert verdict.todo
    assert verdict.error().code == code


def test_full_disk_is_the_cause_even_when_the_run_was_stopped_for_standing_still() -> None:
    ended = run(code=None, signal=9, reason="stalled", stderr="[error] No space left on device")
    assert judge_run(ended, plan()).code == "work_disk_full"


def test_a_source_that_was_known_to_begin_badly_may_complain_but_not_end_early() -> None:
    known = plan_whole(film(undecodable=3), BUILT_IN["web"], {"libx264"})
    assert judge_run(run(stderr="[h264] [error] error while decoding MB 1 2"), known).ok
    assert judge_run(run(stderr="File ended prematurely"), known).code == "damaged_source"


@pytest.mark.parametrize(
    ("line", "whole", "sliced"),
    [
        ("[mpeg2video @ 0x1] [error] ac-tex damaged at 3 4", False, False),
        ("[h264 @ 0x1] [error] co located POCs unavailable", False, True),
        ("[h264 @ 0x1] [error] mmco: unref short failure", True, True),
        ("[vost#0:0/libx264 @ 0x1] [error] odd", True, True),
        ("[mp4 @ 0x1] [error] odd", True, True),
        ("[mpeg2video @ 0x1] [warning] odd", True, True),
    ],
)
def test_every_error_about_what_is_read_counts(line: str, *, whole: bool, sliced: bool) -> None:
    assert judge_run(run(stderr=line), plan()).ok == whole
    assert judge_run(run(stderr=line), plan(), sliced=True).ok == sliced


def test_a_disk_that_fills_is_the_nodes_fault() -> None:
    verdict = judge_run(run(code=None, signal=9, reason="disk"), plan())
    assert (verdict.code, verdict.failure) == ("work_disk_full", "transient")


def test_decoding_the_result() -> None:
    assert judge_decode(run(stderr="[warning] harmless"), plan()).ok
    for ended, code in (
        (run(stderr="[aac] [error] channel element 3.4 is not allocated"), "result_damaged"),
        (run(code=1), "result_damaged"),
        (run(code=None, reason="time"), "result_damaged"),
        (run(progress=replace(END, frame=101)), "frame_count"),
        (run(progress=None), "frame_count"),
    ):
        assert judge_decode(ended, plan()).code == code


def test_a_result_as_planned() -> None:
    verdict = judge_result(result(), plan())
    assert verdict.ok
    assert verdict.facts == facts_of(result())
    assert verdict.facts.streams == ("video:h264", "audio:aac", "subtitle:mov_text")


SOUND = stream(1, "audio", "aac")
WORDS = stream(2, "subtitle", "mov_text")


@pytest.mark.parametrize(
    ("made", "code"),
    [
        (result(frames=99), "frame_count"),
        (result(frames=101), "frame_count"),
        (result(picture(span_us=3_910_000), SOUND, WORDS), "duration"),
        (result(picture(), stream(1, "audio", "aac", duration_us=3_000_000), WORDS), "duration"),
        (result(picture(), stream(1, "audio", "aac", start_us=150_000), WORDS), "duration"),
        (result(picture(start_us=150_000), SOUND, WORDS), "duration"),
        (result(picture(), WORDS), "missing_stream"),
        (result(picture(), SOUND), "missing_stream"),
        (result(picture(), SOUND, stream(2, "subtitle", "mov_text", packets=0)), "missing_stream"),
        (result(picture(), stream(1, "audio", "mp3"), WORDS), "wrong_picture"),
        (result(picture(width=1278), SOUND, WORDS), "wrong_picture"),
        (result(picture(pixel_format="yuv444p"), SOUND, WORDS), "wrong_picture"),
        (result(picture(rotation=90), SOUND, WORDS), "wrong_picture"),
        (result(picture(sample_aspect=(16, 15)), SOUND, WORDS), "wrong_picture"),
        (result(picture(colour_transfer="smpte2084"), SOUND, WORDS), "wrong_picture"),
    ],
)
def test_results_that_are_refused(made: Probe, code: str) -> None:
    verdict = judge_result(made, plan())
    assert (verdict.ok, verdict.code) == (False, code)
    assert verdict.what


def test_small_differences_of_containers_are_none() -> None:
    made = result(
        picture(pixel_format="yuvj420p", span_us=3_970_000),
        stream(1, "audio", "aac", start_us=-21_000, duration_us=4_085_000),
        WORDS,
        stream(3, "data", "bin_data"),
    )
    assert judge_result(made, plan()).ok


def test_lost_mastering_data_send_the_work_to_another_node() -> None:
    hdr = {"colour_transfer": "smpte2084", "pixel_format": "yuv420p10le"}
    source = film(picture(**hdr, mastering_display=True))
    made = plan_whole(source, BUILT_IN["archive"], {"libx265"})
    lost = film(stream(0, "video", "hevc", width=1280, height=720, **hdr))
    verdict = judge_result(lost, made)
    assert (verdict.code, verdict.failure) == ("hdr_lost", "encoder")


def test_the_owner_believes_its_own_eyes() -> None:
    claimed = facts_of(result())
    assert judge_packets(result(), plan(), claimed).ok
    assert not judge_packets(result(frames=99), plan(), claimed).ok
    assert not judge_packets(result(bytes=2), plan(), claimed).ok


class Replay:
    """A runner that gives back what was recorded; the real one is tested with real children."""

    def __init__(self, *results: RunResult) -> None:
        self.results = list(results)
        self.commands: list[tuple[str, ...]] = []
        self.limits: list[Limits] = []

    async def run(
        self, command: Sequence[str], *, limits: Limits, on_progress: OnProgress | None = None
    ) -> RunResult:
        self.commands.append(tuple(command))
        self.limits.append(limits)
        ended = self.results.pop(0)
        if on_progress is not None and ended.progress is not None:
            on_progress(ended.progress)
        return ended


FFMPEG = FFmpegBinary(
    origin="system", path="/usr/bin/ffmpeg", version="9.0.2", build="abc", size=1, mtime_ns=1
)


def described(probe: Probe) -> RunResult:
    return run(stdout=probe.model_dump_json(exclude={"version"}).encode())


def convert(*results: RunResult) -> tuple[Replay, RunReport | str]:
    replay = Replay(*results)
    media = Media(runner=replay, ffmpeg=FFMPEG, encoders=frozenset({"libx264"}), python="python")
    seen: list[FFmpegProgress] = []
    try:
        made = asyncio.run(
            media.convert("/a.mkv", "/b.mp4", film(), BUILT_IN["web"], on_progress=seen.append)
        )
    except ConversionError as error:
        return replay, error.error.code if error.report.command_line else "no report"
    assert seen == [END]
    assert made.facts.frames == 100
    return replay, made.report


ON_TIME = {"frames": 100, "wanted": 100, "off_us": 78.1, "at": 7, "tick_us": 78.125}


def timed(**facts: object) -> RunResult:
    """The child that compares the times of frames."""
    return run(stdout=json.dumps({**ON_TIME, **facts}).encode())


def test_a_conversion_encodes_decodes_and_probes() -> None:
    replay, report = convert(run(stderr="said"), run(), described(result()), timed())
    assert isinstance(report, RunReport)
    assert (report.stderr_tail, report.encoder, report.ffmpeg) == ("said", "libx264", "9.0.2 abc")
    assert [command[0] for command in replay.commands] == ["/usr/bin/ffmpeg"] * 2 + ["python"] * 2
    assert replay.commands[-1][-4:] == ("/a.mkv", "/b.mp4", "packets", "1"), "its sound too"
    assert replay.limits[0].stall_ms is not None
    assert replay.limits[1].output_bytes == 0


def test_a_conversion_stops_at_the_first_doubt() -> None:
    assert convert(run(code=1))[1] == "encode_failed"
    assert convert(run(), run(stderr="[error] bad"))[1] == "result_damaged"
    assert convert(run(), run(), described(result(frames=99)))[1] == "frame_count"
    assert convert(run(), run(), run(code=1))[1] == "result_damaged"


@pytest.mark.parametrize(
    ("compared", "code"),
    [
        (timed(off_us=78.3), "duration"),
        (timed(off_us=160_000.0), "duration"),
        (timed(off_us=160_000.0, contradictions=1), "damaged_source"),
        (timed(off_us=78.1, contradictions=1), ""),
        (timed(sound_off_us=24_000.0), ""),
        (timed(sound_off_us=26_000.0), "duration"),
        (timed(sound_off_us=-46_000.0, sound_frame_us=21_333.0), ""),
        (timed(sound_off_us=-47_000.0, sound_frame_us=21_333.0), "duration"),
        (timed(frames=99), "frame_count"),
        (timed(wanted=101), "frame_count"),
        (run(stdout=b'{"timeless": true}'), ""),
        (run(stdout=b'{"fault": "it broke off", "code": "damaged_source"}'), "damaged_source"),
        (run(stdout=b'{"fault": "?", "code": "unheard of"}'), "bad_result"),
        (run(stdout=b""), "bad_result"),
        (run(code=None, reason="time", stdout=b"{}"), "bad_result"),
    ],
)
def test_each_frame_keeps_its_time_also_of_a_film_done_whole(
    compared: RunResult, code: str
) -> None:
    found = convert(run(), run(), described(result()), compared)[1]
    assert (found if isinstance(found, str) else "") == code


def check(delivered: RunResult, encoder: str = "libx264") -> Verdict:
    media = Media(runner=Replay(delivered), ffmpeg=FFMPEG, encoders=frozenset(), python="python")
    claimed = facts_of(result())
    return asyncio.run(
        media.check_delivered("/b.mp4", film(), BUILT_IN["web"], claimed, encoder=encoder)
    )


def test_the_owner_needs_no_encoder_to_judge() -> None:
    assert check(described(result())).ok
    assert check(run(stdout=b'{"fault": "not_a_video", "what": "no"}')).code == "result_damaged"
    assert not check(described(result()), encoder="made_up").ok


@pytest.mark.parametrize(
    "ended",
    [
        run(code=None, signal=11, reason="signal"),
        run(code=None, reason="time"),
        run(code=None, reason="stdout"),
        run(code=1, stderr="Traceback\nMemoryError"),
        run(stdout=b"{"),
    ],
)
def test_a_reader_that_dies_is_the_films_fault(ended: RunResult) -> None:
    with pytest.raises(ProbeLimitError):
        asyncio.run(probe_file(Replay(ended), "python", "/a.mkv"))


def test_a_reader_that_says_what_this_version_does_not_know_is_not_the_films_fault() -> None:
    with pytest.raises(MixedSoftwareError):
        asyncio.run(probe_file(Replay(run(stdout=b'{"surprise": 1}')), "python", "/a.mkv"))


def version(text: str) -> RunResult:
    return run(stdout=f"ffmpeg version {text} Copyright\nconfiguration: x\n".encode())


def candidate(origin: Origin = "system", path: str = "/usr/bin/ffmpeg") -> Candidate:
    return Candidate(origin=origin, path=path, size=1, mtime_ns=1)


def test_the_first_ffmpeg_that_is_new_enough_is_taken() -> None:
    replay = Replay(version("4.4.2"), run(code=127), version("9.0.2"))
    chosen = asyncio.run(choose(replay, [candidate(), candidate(), candidate("imageio-ffmpeg")]))
    assert (chosen.version, chosen.origin) == ("9.0.2", "imageio-ffmpeg")
    assert len(chosen.passed_over) == 2
    other = asyncio.run(choose(Replay(version("9.0.2-other")), [candidate()]))
    assert other.group != chosen.group


def test_a_configured_ffmpeg_is_never_quietly_replaced() -> None:
    with pytest.raises(FFmpegMissingError, match="too old"):
        asyncio.run(choose(Replay(version("4.4.2")), [candidate("configured"), candidate()]))
    with pytest.raises(FFmpegMissingError, match="no FFmpeg"):
        asyncio.run(choose(Replay(), []))
