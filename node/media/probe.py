"""What a film holds, as read by the probe child, and what is wrong with files that are none.

A probe is taken on the owner's node before any transfer and kept in the ledger; everything that is
made of the film is judged against it (FACTS.md, "Success is not an exit code").
"""

from dataclasses import dataclass
from typing import Annotated, Final, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from node.media.child import AnyPath, ChildRunner, Limits, RunResult, text_of
from node.media.errors import (
    ERRORS,
    DamagedSourceError,
    MixedSoftwareError,
    NotAVideoError,
    NoVideoStreamError,
    ProbeLimitError,
    UnsupportedSourceError,
)
from node.media.formats import STREAMS_MAX
from node.media.stderr_log import plain

StreamKind = Literal["video", "audio", "subtitle", "data", "attachment"]
Ratio = tuple[int, int]
"""Numerator and denominator; (0, 1) where unknown."""

PROBE_JSON_BYTES_MAX: Final = 256 << 10
"""64 streams of about 1 KiB, with room; a probe must fit a log entry (1 MiB) several times."""
PROBE_TIME_BASE_MS: Final = 120_000
PROBE_BYTES_PER_MS: Final = 1_000
"""Slowest reading that is waited for, 1 MB/s: counting by decoding on a loaded small machine."""
PROBE_TIME_MAX_MS: Final = 12 * 3_600_000
PROBE_MEMORY_BYTES: Final = 4 << 30
"""Decoding one 8K film with frame threads stays below; a bomb does not."""
DECLARED_TOLERANCE_MS: Final = 1_000
DECLARED_TOLERANCE_PERMILLE: Final = 1
"""Two hours may lack seven seconds; of 2 % a download that broke off near its end was published as whole."""
HDR_TRANSFERS: Final = frozenset({"smpte2084", "arib-std-b67"})


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class StreamInfo(_Strict):
    """One stream. Times in microseconds from the packets themselves; fields that do not apply are 0 or ""."""

    index: Annotated[int, Field(ge=0)]
    kind: StreamKind
    codec: str
    """FFmpeg's name; "" when no decoder knows it."""
    time_base: Ratio = (0, 1)
    language: str = ""
    title: str = ""
    default: bool = False
    forced: bool = False
    attached_picture: bool = False
    disposition: str = ""
    """All its flags as FFmpeg's option takes them: `default+comment`."""
    extradata: str = ""
    """BLAKE2b of the codec's parameter sets, 16 hex digits; "" where it has none."""
    packets: int = 0
    """Without those that the container marks as discarded (edit lists)."""
    discarded: int = 0
    bytes: int = 0
    start_us: int = 0
    span_us: int = 0
    """From the first to the last packet's presentation time."""
    duration_us: int = 0
    """`span_us` and the last packet's duration, which containers often guess."""
    # video
    width: int = 0
    height: int = 0
    pixel_format: str = ""
    frame_rate: Ratio = (0, 1)
    """Average."""
    base_rate: Ratio = (0, 1)
    """Lowest rate in which all times can be told; differs from the average when the rate varies."""
    sample_aspect: Ratio = (1, 1)
    rotation: int = 0
    """Degrees that a player turns the picture counter-clockwise, as FFmpeg gives it: -90, 0, 90, 180."""
    mirrored: bool = False
    interlaced: bool = False
    colour_range: str = ""
    colour_space: str = ""
    colour_transfer: str = ""
    colour_primaries: str = ""
    mastering_display: bool = False
    content_light: bool = False
    dynamic_hdr: bool = False
    # audio
    sample_rate: int = 0
    channels: int = 0
    channel_layout: str = ""

    @property
    def hdr(self) -> bool:
        """PQ or HLG."""
        return self.colour_transfer in HDR_TRANSFERS

    @property
    def variable_rate(self) -> bool:
        """Whether the time between frames varies."""
        (a, b), (c, d) = self.frame_rate, self.base_rate
        return bool(a and c) and abs(a * d - c * b) * 1000 > c * b


class Probe(_Strict):
    """What a film holds: `frames` is the exact number of pictures that its main video stream presents."""

    version: Literal[1] = 1
    container: str
    bytes: Annotated[int, Field(ge=0)]
    duration_ms: Annotated[int, Field(ge=0)]
    """Of everything in it, measured from the packets."""
    declared_ms: int | None = None
    """What the container's header claims."""
    streams: Annotated[tuple[StreamInfo, ...], Field(max_length=STREAMS_MAX)]
    main: int
    """Index of the main video stream."""
    frames: Annotated[int, Field(ge=1)]
    frames_by: Literal["packets", "decoding"]
    """How they were counted: by packets only where a decoded sample showed that packets are frames."""
    undecodable: int = 0
    """Packets at the very start that no decoder can show (a recording that begins between two keyframes)."""
    places: tuple[str, ...] = Field(default=(), exclude=True)
    """Tags that tell where it was taken: looked for in results, and not kept of sources."""
    unlike: str = Field(default="", exclude=True)
    """Of a result that was read beside its film: what is wrong with its picture."""

    @property
    def video(self) -> StreamInfo:
        """The main video stream."""
        return next(stream for stream in self.streams if stream.index == self.main)

    def of_kind(self, kind: StreamKind) -> tuple[StreamInfo, ...]:
        """All streams of a kind, in the file's order."""
        return tuple(stream for stream in self.streams if stream.kind == kind)

    def to_json(self) -> str:
        """What the ledger keeps."""
        return self.model_dump_json(exclude_defaults=True)


class RawProbe(_Strict):
    """What the child read, before it is judged. `fault` names the error class when there is nothing to judge."""

    fault: str = ""
    what: str = ""
    container: str = ""
    bytes: int = 0
    duration_ms: int = 0
    end_ms: int = 0
    """On the file's own clock, which need not begin at 0."""
    declared_ms: int | None = None
    streams: tuple[StreamInfo, ...] = ()
    main: int = -1
    frames: int = 0
    frames_by: Literal["packets", "decoding"] = "packets"
    undecodable: int = 0
    damaged_packets: int = 0
    """Packets after the first picture that no decoder accepts, as far as the film was decoded."""
    misplaced: int = 0
    """Frames on their neighbour's time whose own place is empty."""
    declared_frames: int = 0
    packets_read: int = 0
    """Of the main stream, discarded ones included: what `declared_frames` counts."""
    read_error: str = ""
    places: tuple[str, ...] = ()
    unlike: str = ""
    """Of a result that was read beside its film: what is wrong with its picture."""


_RAW = TypeAdapter(RawProbe)
_PROBE = TypeAdapter(Probe)


def probe_from_json(text: str) -> Probe:
    """Reads what `to_json` wrote.  Raises `ValueError` for anything else."""
    if len(text) > PROBE_JSON_BYTES_MAX:
        raise ValueError("a probe of this size is none")
    return _PROBE.validate_json(text)


def judge_probe(
    raw: RawProbe,
    *,
    cut: str | None = None,
    damaged: str | None = None,
    later: str | None = None,
) -> Probe:
    """The probe of a sound film.  `cut`, `damaged`: lines of the reader's stderr that tell of it.

    A recording that begins between two keyframes lacks references there: only `later` complaints count.

    Raises the `SourceError` that says what is wrong with it.
    """
    if raw.fault:
        error = ERRORS.get(raw.fault, NotAVideoError)
        raise error(raw.what, _TODO.get(error.code, "check the file"))
    if raw.main < 0:
        kinds = ", ".join(sorted({stream.kind for stream in raw.streams}))
        raise NoVideoStreamError(
            f"no moving picture in it ({f'only {kinds}' if kinds else 'nothing at all'})",
            _TODO["no_video_stream"],
        )
    video = next(stream for stream in raw.streams if stream.index == raw.main)
    if not video.codec:
        raise UnsupportedSourceError(
            "no decoder for its video", "convert it once with the program that made it"
        )
    sounds = [stream for stream in raw.streams if stream.kind == "audio"]
    if sounds and not any(stream.codec for stream in sounds):
        # One of several may be left out with a note; a film that falls silent is no film kept.
        raise UnsupportedSourceError(
            "no decoder for its sound", "convert it once with the program that made it"
        )
    _check_whole(raw, cut, later if raw.undecodable else damaged)
    if raw.frames < 1 or video.width < 1 or video.height < 1:
        _damaged("no picture of it can be decoded")
    return Probe(
        container=raw.container,
        bytes=raw.bytes,
        duration_ms=raw.duration_ms,
        declared_ms=raw.declared_ms,
        streams=raw.streams,
        main=raw.main,
        frames=raw.frames,
        frames_by=raw.frames_by,
        undecodable=raw.undecodable,
        places=raw.places,
        unlike=raw.unlike,
    )


def _check_whole(raw: RawProbe, cut: str | None, damaged: str | None) -> None:
    if raw.read_error:
        _damaged(f"reading it broke off: {raw.read_error}")
    if raw.declared_ms is not None:
        missing = raw.declared_ms - max(raw.duration_ms, raw.end_ms)
        slack = max(DECLARED_TOLERANCE_MS, raw.declared_ms * DECLARED_TOLERANCE_PERMILLE // 1000)
        if missing > slack:
            _damaged(
                f"it claims {raw.declared_ms / 1000:.2f} s but holds {raw.duration_ms / 1000:.2f} s"
            )
    if raw.packets_read < raw.declared_frames:
        _damaged(f"its index names {raw.declared_frames} frames, {raw.packets_read} are there")
    if raw.damaged_packets:
        _damaged(f"{raw.damaged_packets} of its packets cannot be decoded")
    if raw.misplaced:
        _damaged(
            f"{raw.misplaced} of its frames lie on the time of another and leave their own empty"
        )
    if cut is not None:
        _damaged(plain(cut))
    if damaged is not None:
        _damaged(plain(damaged))


def _damaged(what: str) -> NoReturn:
    raise DamagedSourceError(f"the source is damaged or cut off: {what}", _TODO["damaged_source"])


_TODO: Final = {
    "not_a_video": "check that it is a video and was copied whole",
    "empty_source": "copy the file again",
    "no_video_stream": "choose a file with video; sound alone is not converted",
    "damaged_source": "copy the file again from where it came, or repair it",
    "refused_format": "convert the files that it names instead",
    "unreadable_source": "check the path and its permissions for the user who runs the node",
    "unsupported_source": "choose another profile",
    "probe_limit": "check the file; it may be made to harm its reader",
    "mixed_software": "restart the node; its jobs go on then",
}


def probe_limits(size: int) -> Limits:
    """Bounds for reading a film of so many bytes."""
    return Limits(
        time_ms=min(PROBE_TIME_BASE_MS + size // PROBE_BYTES_PER_MS, PROBE_TIME_MAX_MS),
        memory_bytes=PROBE_MEMORY_BYTES,
        output_bytes=0,
        stdout_bytes=PROBE_JSON_BYTES_MAX,
    )


def probe_command(python: str, path: AnyPath, *, made: bool = False) -> tuple[str, ...]:
    """The child that reads one film; -P keeps the current folder out of the module search."""
    option = "--made" if made else "--"
    return (python, "-P", "-m", "node.media.probe_av", option, text_of(path))


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """The film that a result was made of, and where the two are looked at."""

    film: AnyPath
    first: int | None
    """When the result's first frame is shown in the film, in its ticks; None: as the film's own first."""
    places: tuple[int, ...]
    """In microseconds from the result's first frame; 0 is its beginning."""


def beside_command(python: str, path: AnyPath, beside: Beside) -> tuple[str, ...]:
    """The child that reads a result, and some of its frames beside its film's."""
    first = "-" if beside.first is None else str(beside.first)
    words = (text_of(beside.film), first, ",".join(map(str, beside.places)), text_of(path))
    return (python, "-P", "-m", "node.media.likeness_av", *words)


async def probe_file(
    runner: ChildRunner,
    python: str,
    path: AnyPath,
    *,
    size: int = 0,
    made: bool = False,
    beside: Beside | None = None,
) -> Probe:
    """Reads a film in a child process.  `size` in bytes widens the time limit for large files.

    `made`: it is a result, which FFmpeg decodes as a whole; few of its pictures are decoded here.
    Raises a `SourceError` when it is not a sound film.
    """
    command = (
        probe_command(python, path, made=made)
        if beside is None
        else beside_command(python, path, beside)
    )
    result = await runner.run(command, limits=probe_limits(size))
    said = result.stderr
    return judge_probe(
        _raw_of(result),
        cut=said.said("cut"),
        damaged=said.said("damaged"),
        later=said.said("later"),
    )


def _raw_of(result: RunResult) -> RawProbe:
    if not result.ok:
        how = {
            "time": "reading it took too long",
            "stdout": "its description is too large",
            "stderr": "reading it printed without end",
        }.get(result.reason, f"its reader ended with {_ending(result)}")
        last = result.stderr.tail.strip().rpartition("\n")[2]
        if last:
            how += f" ({last[:200]})"
        raise ProbeLimitError(how, _TODO["probe_limit"])
    try:
        return _RAW.validate_json(result.stdout)
    except ValidationError as error:
        if error.errors(include_url=False)[0]["type"] == "json_invalid":
            raise ProbeLimitError("its reader gave no description", _TODO["probe_limit"]) from None
        # A whole description in another form comes from other software, never from a film.
        raise MixedSoftwareError(
            "the files of DarkStream were replaced while this node runs", _TODO["mixed_software"]
        ) from None


def _ending(result: RunResult) -> str:
    return f"signal {result.signal}" if result.exit_code is None else f"code {result.exit_code}"
