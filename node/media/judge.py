"""Whether a result is what was planned: success is not an exit code (FACTS.md, Media).

A half-truncated film transcodes with exit 0, and `progress=end` follows a SIGTERM; so the result is
probed and decoded from beginning to end, and compared with the plan that was made of the source.
"""

from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from node.media.child import RunResult
from node.media.errors import (
    ERRORS,
    BadResultError,
    DamagedSourceError,
    DecodeFailedError,
    DurationError,
    EncodeFailedError,
    EncoderUnavailableError,
    FailureClass,
    FrameCountError,
    HdrLostError,
    KilledError,
    MediaError,
    MissingStreamError,
    NotSmallerError,
    OutOfMemoryError,
    OutputLimitError,
    PlaceLeftError,
    StalledError,
    TimeLimitError,
    UnlikeError,
    WorkDiskFullError,
    WrongPictureError,
)
from node.media.plan import EncodePlan, PlannedStream
from node.media.probe import Probe, StreamInfo
from node.media.stderr_log import Complaint, plain

DURATION_PERMILLE: Final = 1
"""A thousandth, or one frame, whichever is more."""
SOUND_SLACK_US: Final = 200_000
"""Codecs with long frames pad and prime: AAC up to 64 ms at 8 kHz twice, MP3 and Opus less."""
SOUND_OFF_US: Final = 25_000
"""Between what decoders give first of source and result; honest ones have less than a millisecond, and decoders
of two versions may differ by a short frame."""
SYNC_SLACK_US: Final = 100_000
"""Beyond 45 to 125 ms people see that sound and lips part (ITU-R BT.1359)."""
ASPECT_PERMILLE: Final = 10
TIMES_OFF_TICKS_MAX: Final = 1.001
"""A frame's time may differ by one tick of the coarser clock; the rest is floating point."""
KILL_SIGNALS: Final = frozenset({9, 15, 2})


class ResultFacts(BaseModel):
    """What a judged result holds; kept in the ledger (`result_json`) and judged again by the owner."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    frames: int
    duration_ms: int
    streams: tuple[str, ...]
    """`kind:codec`, in the file's order."""
    bytes: int
    width: int
    height: int
    pixel_format: str
    extradata: str = ""
    """Digest of the picture's parameter sets: chunks of one film must have the same."""
    vmaf: float | None = Field(default=None, exclude_if=lambda value: value is None)
    """Of the worst sample, where the job asked for a floor."""

    def to_json(self) -> str:
        """What the ledger keeps."""
        return self.model_dump_json()


class TimesFound(BaseModel):
    """How far the frames of a result are from their times in the source, as a child measured it."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    timeless: bool = False
    """Frames of the source tell no time: nothing was compared."""
    frames: int = 0
    wanted: int = 0
    off_us: float = 0.0
    at: int = 0
    """The number of the frame that is farthest off."""
    tick_us: float = 0.0
    """Of the coarser clock of both."""
    fault: str = ""
    code: str = ""
    """Of `fault`: why nothing could be compared."""
    contradictions: int = 0
    """Times of the source that cannot be: shown before it is decoded, or two frames at once."""
    sound_off_us: float = 0.0
    """How much later the sound that is farthest off begins, by decoding."""
    sound_frame_us: float = 0.0
    """Of one frame of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`ok`, or a stable code with what is wrong and what to do. `facts` where the result could be read."""

    ok: bool
    code: str = ""
    what: str = ""
    todo: str = ""
    facts: ResultFacts | None = None

    def error(self) -> MediaError:
        """The error to raise for a verdict that is not ok."""
        assert not self.ok
        return ERRORS[self.code](self.what, self.todo)

    @property
    def failure(self) -> FailureClass:
        """Where a retry makes sense."""
        return ERRORS[self.code].failure


def facts_of(result: Probe) -> ResultFacts:
    """The part of a result's probe that the ledger keeps."""
    return ResultFacts(
        frames=result.frames,
        duration_ms=result.duration_ms,
        streams=tuple(f"{stream.kind}:{stream.codec}" for stream in result.streams),
        bytes=result.bytes,
        width=result.video.width,
        height=result.video.height,
        pixel_format=result.video.pixel_format,
        extradata=result.video.extradata,
    )


def judge_run(run: RunResult, plan: EncodePlan, *, sliced: bool = False) -> Verdict:
    """How FFmpeg ended: the first half of the judgement, before the result is looked at.

    `sliced`: what is read begins before the first frame that is wanted, with references cut off.
    """
    verdict = judge_end(run, plan, sliced=sliced)
    return _judge_progress(run, plan) if verdict.ok else verdict


def judge_end(run: RunResult, plan: EncodePlan, *, sliced: bool = False) -> Verdict:
    """How FFmpeg ended and what it said, whatever it counted."""
    said = run.stderr
    if not run.ok:
        grew = run.reason == "output" or said.said("file_limit") is not None
        if plan.smaller and grew:
            what = f"the result grew beyond the film's {plan.source_bytes} bytes and was given up"
            return _no(NotSmallerError, what, _KEEPS)
        return _why_not(run)
    cut, damaged = said.said("cut"), said.said("damaged") or said.source_error or None
    if not sliced:
        damaged = damaged or said.reference_error or None
    if cut is not None:
        return _no(DamagedSourceError, f"the source is cut off: {plain(cut)}", _MEND)
    if damaged is not None and not plan.source_undecodable:
        return _no(DamagedSourceError, f"the source is damaged: {plain(damaged)}", _MEND)
    return Verdict(ok=True)


def _why_not(run: RunResult) -> Verdict:
    """The cause of a run that failed: what FFmpeg said of its surroundings first, then how it ended, then the source."""
    said = run.stderr
    for complaint, error, todo in _SURROUNDINGS:
        line = said.said(complaint)
        if line is not None:
            return _no(error, plain(line), todo)
    stopped = _STOPPED.get(run.reason)
    if stopped is not None:
        return _no(*stopped)
    if run.exit_code is None:
        foreign = run.signal in KILL_SIGNALS
        return _no(
            KilledError if foreign else EncodeFailedError,
            f"FFmpeg was ended by signal {run.signal}",
            "see whether the system ran out of memory" if foreign else _SEE_LOG,
        )
    for complaint, error, todo in _CAUSES:
        line = said.said(complaint)
        if line is not None:
            return _no(error, plain(line), todo)
    what = plain(said.first_error or said.tail.strip().rpartition("\n")[2])
    return _no(EncodeFailedError, f"FFmpeg ended with code {run.exit_code}: {what}", _SEE_LOG)


def _judge_progress(run: RunResult, plan: EncodePlan) -> Verdict:
    last = run.progress
    if last is None or not last.end:
        return _no(EncodeFailedError, "FFmpeg ended without saying so", "retry the job")
    if last.dup_frames or last.drop_frames:
        return _no(
            FrameCountError,
            f"FFmpeg doubled {last.dup_frames} and dropped {last.drop_frames} frames",
            "report this film: its times cannot be kept",
        )
    if last.frame != plan.frames:
        return _frames(last.frame, plan, "encoded")
    return Verdict(ok=True)


def judge_decode(run: RunResult, plan: EncodePlan) -> Verdict:
    """Whether the result decodes from beginning to end, without a word of complaint, to every frame."""
    verdict = judge_decode_end(run)
    if not verdict.ok:
        return verdict
    frames = 0 if run.progress is None else run.progress.frame
    if frames != plan.frames:
        return _frames(frames, plan, "in the result")
    return Verdict(ok=True)


def judge_decode_end(run: RunResult) -> Verdict:
    """Whether a decode came to its end without a word of complaint, whatever it counted."""
    if run.reason != "exited" or run.exit_code != 0:
        stopped = _STOPPED.get(run.reason)
        what = stopped[1] if stopped else f"decoding it ended with code {run.exit_code}"
        return _no(DecodeFailedError, f"the result cannot be decoded: {what}", "retry the job")
    if run.stderr.errors:
        what = f"the result has {run.stderr.errors} faults: {plain(run.stderr.first_error)}"
        return _no(DecodeFailedError, what, "retry the job")
    return Verdict(ok=True)


def judge_result(result: Probe, plan: EncodePlan) -> Verdict:
    """Whether what lies in the file is what was planned: frames, times, streams, picture."""
    facts = facts_of(result)
    checks = (
        _check_frames,
        _check_times,
        _check_streams,
        _check_picture,
        _check_look,
        _check_policy,
    )
    for check in checks:
        fault = check(result, plan)
        if fault is not None:
            return Verdict(ok=False, code=fault.code, what=fault.what, todo=fault.todo, facts=facts)
    return Verdict(ok=True, facts=facts)


def judge_times(found: TimesFound, plan: EncodePlan) -> Verdict:
    """Whether each frame is shown when the source shows it, within a tick of the coarser clock."""
    if found.fault:
        return _no(ERRORS.get(found.code, BadResultError), found.fault, "retry the job")
    if found.timeless:
        return Verdict(ok=True)
    if not found.frames == found.wanted == plan.frames:
        return _frames(found.frames, plan, "in the result")
    if found.off_us <= found.tick_us * TIMES_OFF_TICKS_MAX:
        return Verdict(ok=True)
    what = f"frame {found.at} of the result is {found.off_us / 1000:.2f} ms away from its time"
    if found.contradictions:
        # What a player makes of such a table is its own guess, and FFmpeg's is as good as any.
        told = f"the source is damaged: {found.contradictions} of its frames' times contradict each other; {what}"
        return _no(DamagedSourceError, told, _MEND)
    return _no(DurationError, what, "report this film: its times cannot be kept")


def judge_sounds(found: TimesFound) -> Verdict:
    """Whether each sound begins where the source's does."""
    # MP4 of FFmpeg does not hide an encoder's priming (silence) where sound begins after the picture.
    early = found.sound_frame_us + SOUND_OFF_US
    if -early <= found.sound_off_us <= SOUND_OFF_US:
        return Verdict(ok=True)
    what = f"sound of the result begins {found.sound_off_us / 1000:+.0f} ms from its place"
    return _no(DurationError, what, "report this film")


def judge_packets(delivered: Probe, plan: EncodePlan, claimed: ResultFacts) -> Verdict:
    """The owner's second judgement of a delivered file: the plan again, and the worker's own claim."""
    verdict = judge_result(delivered, plan)
    # How it looks is measured once, by who made it.
    if verdict.ok and verdict.facts != claimed.model_copy(update={"vmaf": None}):
        return Verdict(
            ok=False,
            code=WrongPictureError.code,
            what="the delivered file is not the one that the worker judged",
            todo="watch that node",
            facts=verdict.facts,
        )
    return verdict


def _check_frames(result: Probe, plan: EncodePlan) -> MediaError | None:
    if result.frames == plan.frames:
        return None
    verdict = _frames(result.frames, plan, "in the result")
    return FrameCountError(verdict.what, verdict.todo)


def _check_times(result: Probe, plan: EncodePlan) -> MediaError | None:
    slack = max(plan.frame_us, plan.span_us * DURATION_PERMILLE // 1000)
    off = result.video.span_us - plan.span_us
    if plan.span_us and abs(off) > slack:
        return DurationError(
            f"the result's picture runs {result.video.span_us / 1e6:.3f} s, the source's {plan.span_us / 1e6:.3f} s",
            "report this film",
        )
    for stream, found in _pairs(result, plan):
        if stream.kind != "audio" or found is None:
            continue
        slack = max(SOUND_SLACK_US, stream.duration_us * DURATION_PERMILLE // 1000)
        if abs(found.duration_us - stream.duration_us) > slack:
            return DurationError(
                f"sound {stream.source} runs {found.duration_us / 1e6:.3f} s, in the source {stream.duration_us / 1e6:.3f} s",
                "check the source's sound; it may have gaps",
            )
        part = (found.start_us - result.video.start_us) - stream.start_us
        if abs(part) > SYNC_SLACK_US:
            return DurationError(
                f"sound {stream.source} is {part / 1000:.0f} ms away from its picture",
                "report this film",
            )
    return None


def _check_streams(result: Probe, plan: EncodePlan) -> MediaError | None:
    for stream, found in _pairs(result, plan):
        name = f"{stream.kind} stream {stream.source}"
        if found is None:
            return MissingStreamError(f"{name} is missing from the result", "retry the job")
        if stream.packets and found.packets == 0 and stream.kind in ("video", "audio", "subtitle"):
            return MissingStreamError(f"{name} is empty in the result", "retry the job")
        if stream.kind != "attachment" and found.codec != stream.codec:
            return WrongPictureError(
                f"{name} is {found.codec} instead of {stream.codec}", "retry the job"
            )
    return None


def _check_picture(result: Probe, plan: EncodePlan) -> MediaError | None:
    video = result.video
    found = (video.width, video.height, video.pixel_format.replace("yuvj", "yuv"), video.rotation)
    wanted = (plan.width, plan.height, plan.pixel_format, 0)
    if found != wanted:
        return WrongPictureError(f"the picture is {found}, planned {wanted}", "retry the job")
    (a, b), (c, d) = video.sample_aspect, plan.sample_aspect
    if abs(a * d - c * b) * 1000 > ASPECT_PERMILLE * c * b:
        return WrongPictureError(f"its pixels are {a}:{b}, planned {c}:{d}", "retry the job")
    for name, value, planned in (
        ("transfer", video.colour_transfer, plan.colour_transfer),
        ("primaries", video.colour_primaries, plan.colour_primaries),
    ):
        if planned and value != planned:
            return WrongPictureError(
                f"colour {name} is {value or 'unknown'}, planned {planned}", "retry the job"
            )
    if plan.mastering_display and not video.mastering_display:
        return HdrLostError(
            "the film's HDR mastering data are lost", "use FFmpeg 9 or newer on the nodes that work"
        )
    if video.mastering_display and not plan.mastering_display:
        return WrongPictureError("it carries HDR data of a picture that is none", "retry the job")
    return None


def _check_look(result: Probe, _: EncodePlan) -> MediaError | None:
    if not result.unlike:
        return None
    return UnlikeError(
        f"its picture is not the film's: {result.unlike}", "watch the node that made it"
    )


def _check_policy(result: Probe, plan: EncodePlan) -> MediaError | None:
    """What the person asked for beside the film itself."""
    if plan.metadata != "keep" and result.places:
        return PlaceLeftError(
            f"the result still tells where the film was taken ({result.places[0]})",
            "use --metadata none",
        )
    if plan.smaller and result.bytes >= plan.source_bytes:
        return NotSmallerError(
            f"the result has {result.bytes} bytes, the film {plan.source_bytes}",
            _KEEPS,
        )
    return None


def _pairs(result: Probe, plan: EncodePlan) -> list[tuple[PlannedStream, StreamInfo | None]]:
    """Each planned stream with its place in the result: the n-th of a kind is the n-th of that kind."""
    left = {
        kind: list(result.of_kind(kind)) for kind in ("video", "audio", "subtitle", "attachment")
    }
    pairs: list[tuple[PlannedStream, StreamInfo | None]] = []
    for stream in plan.streams:
        found = left.get(stream.kind, [])
        pairs.append((stream, found.pop(0) if found else None))
    return pairs


def _frames(found: int, plan: EncodePlan, where: str) -> Verdict:
    return _no(
        FrameCountError,
        f"{found} frames {where}, {plan.frames} in the source",
        "the source may be damaged in the middle: play it through",
    )


_KEEPS: Final = "the film stays as it is; `--larger keep` publishes all the same"
_SEE_LOG: Final = "see the end of FFmpeg's log in `mesh-cli job show`"
_MEND: Final = "copy the film again from where it came, or repair it"
_SURROUNDINGS: Final[tuple[tuple[Complaint, type[MediaError], str], ...]] = (
    ("disk_full", WorkDiskFullError, "free space in the node's data directory"),
    ("file_limit", OutputLimitError, "choose a profile with less quality"),
    ("memory", OutOfMemoryError, "give the node fewer slots"),
)
_CAUSES: Final[tuple[tuple[Complaint, type[MediaError], str], ...]] = (
    ("encoder", EncoderUnavailableError, "see `mesh-node detect`"),
    ("cut", DamagedSourceError, _MEND),
    ("damaged", DamagedSourceError, _MEND),
)
_STOPPED: Final[dict[str, tuple[type[MediaError], str, str]]] = {
    "start": (EncoderUnavailableError, "FFmpeg could not be started", "see `mesh-node detect`"),
    "time": (TimeLimitError, "it took longer than its limit", "use a faster profile or node"),
    "stalled": (StalledError, "FFmpeg stood still", "see whether the node's disk or driver hangs"),
    "output": (
        OutputLimitError,
        "the result grew beyond its limit",
        "choose a profile with less quality",
    ),
    "disk": (
        WorkDiskFullError,
        "the disk on which the node works is nearly full",
        "free space in the node's data directory",
    ),
    "stdout": (OutputLimitError, "FFmpeg wrote without end", "see the end of its log"),
    "stderr": (OutputLimitError, "FFmpeg complained without end", "see the end of its log"),
}


def _no(error: type[MediaError], what: str, todo: str) -> Verdict:
    return Verdict(ok=False, code=error.code, what=what, todo=todo)
