"""Where a film is split, why it is not, and what one chunk of it is.

Pure: the same probe, cut table and profile give the same plan.  The recipe is FACTS.md, "Splitting one
film, exact to the frame": half-open ranges of presentation times that begin at keyframes, each decoded
from the keyframe before (from its own where the group is closed), trimmed by time and counted.
"""

from collections.abc import Sequence
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from node.media.index import Cut, CutTable, Ratio
from node.media.plan import EncodePlan, PlannedFilter, PlannedStream
from node.media.probe import Probe, StreamInfo

CHUNK_MS_MIN: Final = 10_000
"""Shorter ones cost bytes: 3.5 to 5.7 % at 5 s against 1 to 2.4 % at 10 s (FACTS.md)."""
CHUNK_MS_MAX: Final = 60_000
"""Longer ones gain no bytes worth it and make the end of a film wait for its slowest worker."""
CHUNKS_MAX: Final = 512
"""A plan must fit a log entry: 50 KiB of chunks. Films over eight hours get longer chunks."""
CHUNKS_PER_WORKER: Final = 4
"""With fewer, a worker that is slower than measured keeps all others waiting at the end."""
END_SHARE: Final = 2
"""Towards the end each worker gets a half of its part of what is left, as in factoring (Hummel, Schonberg, Flynn,
1992): of eight equal chunks for two nodes, one of which made the sound first, the last was waited for a tenth of the film."""
END_SHRINKS: Final = 6
"""Times shorter than the others chunks become at most: 60 s to 10."""
END_WORKERS_MAX: Final = CHUNKS_MAX // 8
"""More do not shrink chunks any earlier: 64 workers make 490 of the longest film."""
SEAM_FRAMES: Final = 5
SEAM_BITS: Final = "1.4"
"""x264 and x265 give the last frames of a chunk less, because they see nothing that refers to them.  The
worst of nineteen seams, in VMAF below the film made whole, without more bits, with 1.3 times and with 1.4:
web (x264) 1.37, 0.67; small (x265) 1.39, 0.64; mobile (x264, CRF 25) 1.03 with 1.3, 0.68 with 1.4 times.
0.2 % more bytes in all for each tenth."""
SPLIT_JSON_BYTES_MAX: Final = 256 << 10
SPLIT_CODECS: Final = frozenset({"h264", "hevc", "av1", "vp9", "mpeg2video", "ffv1", "mjpeg"})
"""Their packets are pictures in the containers of FRAMES_ARE_PACKETS, and NUT holds them. VP8 hides
pictures, MPEG-4 packs some, ProRes and DNxHD have no place in NUT."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Chunk(_Strict):
    """The frames presented in [start, end), and the packets that a worker needs to make them.

    Times in the film's time base; positions count the packets of the main stream in decode order.
    """

    number: Annotated[int, Field(ge=0, lt=CHUNKS_MAX)]
    start: int
    end: int | None
    """None: to the film's end."""
    frames: Annotated[int, Field(ge=1)]
    span: Annotated[int, Field(ge=0)]
    """From its first frame to its last."""
    first: Annotated[int, Field(ge=0)]
    stop: Annotated[int, Field(ge=1)]
    base: int
    """What is subtracted of all times in the slice, so that its clock begins at 0."""
    bytes: Annotated[int, Field(ge=0)]
    """Of the packets that travel."""


class SplitPlan(_Strict):
    """A film in chunks; what the ledger keeps of it."""

    version: Literal[1] = 1
    time_base: Ratio
    frames: int
    contract: str
    """Root digest of the presentation times (`node.media.index.contract_digest`)."""
    depth: int
    zero_us: int
    start_us: int
    """When the first frame is shown, from the start of the film with all its streams."""
    chunks: Annotated[tuple[Chunk, ...], Field(min_length=2, max_length=CHUNKS_MAX)]

    def to_json(self) -> str:
        """What the ledger keeps."""
        return self.model_dump_json(exclude_defaults=True)


_PLAN = TypeAdapter(SplitPlan)


def split_from_json(text: str) -> SplitPlan:
    """Reads what `to_json` wrote.  Raises `ValueError` for anything else."""
    if len(text) > SPLIT_JSON_BYTES_MAX:
        raise ValueError("a split plan of this size is none")
    return _PLAN.validate_json(text)


def why_whole(probe: Probe, plan: EncodePlan) -> str:
    """Why this film is converted in one piece with this plan; "" when it may be split.

    Asked before the film is indexed; the index may bring another reason (`CutTable.fault`).
    """
    video = probe.video
    reasons = (
        (
            probe.frames_by != "packets",
            f"in {probe.container} with {video.codec}, packets are not frames",
        ),
        (video.codec not in SPLIT_CODECS, f"films in {video.codec} are not split"),
        (probe.undecodable > 0, "it begins between two keyframes"),
        (_temporal(plan), "its pictures are deinterlaced over time"),
        (video.dynamic_hdr, "its HDR metadata change from frame to frame"),
        (
            video.mastering_display or video.content_light,
            "its HDR mastering data may stand at its beginning only",
        ),
        (video.mirrored, "its picture is mirrored by the container"),
        (
            sum(s.kind == "video" and s.encoder != "copy" for s in plan.streams) > 1,
            "several of its pictures are encoded",
        ),
        (
            video.duration_us < 2 * CHUNK_MS_MIN * 1000,
            f"it is shorter than two chunks of {CHUNK_MS_MIN // 1000} seconds",
        ),
    )
    return next((reason for applies, reason in reasons if applies), "")


def _temporal(plan: EncodePlan) -> bool:
    return any(step.name == "bwdif" for step in plan.filters)


def chunk_ms(film_ms: int, speeds: Sequence[float]) -> int:
    """How long a chunk should be, in milliseconds, for workers of these relative speeds.

    Several chunks for each worker, counted in workers as fast as the fastest; and the slowest one
    should not need longer for one chunk than half of what all together need for the film.
    """
    fast = [speed for speed in speeds if speed > 0] or [1.0]
    together = sum(fast)
    share = film_ms * max(fast) / (CHUNKS_PER_WORKER * together)
    tail = film_ms * min(fast) / (2 * together)
    wanted = min(max(min(share, tail), CHUNK_MS_MIN), CHUNK_MS_MAX)
    return max(int(wanted), -(-film_ms // (CHUNKS_MAX // 2)))


def workers_of(speeds: Sequence[float]) -> float:
    """How many workers as fast as the fastest these are."""
    fast = [speed for speed in speeds if speed > 0] or [1.0]
    return sum(fast) / max(fast)


def next_ms(left_ms: float, length_ms: float, workers: float) -> float:
    """How long the next chunk should be when so much of the film is left: shorter ones at its end, so that all end together."""
    share = left_ms / (END_SHARE * max(1.0, min(workers, END_WORKERS_MAX)))
    shortest = max(CHUNK_MS_MIN, length_ms / END_SHRINKS)
    return min(length_ms, max(share, shortest))


def plan_split(table: CutTable, *, length_ms: int, workers: float | None = None) -> SplitPlan | str:
    """Chunks of about `length_ms`, for so many workers shorter ones at the end; or why the film has no place to be cut."""
    if table.fault:
        return table.fault
    numerator, denominator = table.time_base
    cuts = _chosen(table, length_ms, workers)
    if len(cuts) < 2:
        return "its keyframes lie too far apart"
    ends: list[Cut | None] = [*cuts[1:], None]
    chunks = tuple(
        _chunk(table, number, begin, end)
        for number, (begin, end) in enumerate(zip(cuts, ends, strict=True))
    )
    ticks_us = 1_000_000 * numerator / denominator
    return SplitPlan(
        time_base=table.time_base,
        frames=table.frames,
        contract=table.contract,
        depth=table.depth,
        zero_us=table.zero_us,
        start_us=round(table.start_pts * ticks_us) - table.zero_us,
        chunks=chunks,
    )


def _chosen(table: CutTable, length_ms: int, workers: float | None) -> list[Cut]:
    """The first cut at or behind each wanted length; the rest of the film is no shorter than half of one."""
    numerator, denominator = table.time_base
    tick_ms = 1000 * numerator / denominator
    last = table.start_pts + table.span_pts
    chosen: list[Cut] = []
    length = 0
    for cut in table.cuts:
        behind = not chosen or cut.pts - chosen[-1].pts >= length
        if behind and (not chosen or last - cut.pts >= length // 2):
            chosen.append(cut)
            left_ms = (last - cut.pts) * tick_ms
            wanted = length_ms if workers is None else next_ms(left_ms, length_ms, workers)
            length = max(1, int(wanted / tick_ms))
    return chosen[:CHUNKS_MAX]


def _chunk(table: CutTable, number: int, begin: Cut, end: Cut | None) -> Chunk:
    stop = table.packets if end is None else end.end
    last = table.start_pts + table.span_pts if end is None else end.last
    return Chunk(
        number=number,
        start=begin.pts,
        end=None if end is None else end.pts,
        frames=(table.frames if end is None else end.frames) - begin.frames,
        span=last - begin.pts,
        first=begin.first,
        stop=stop,
        base=begin.base,
        bytes=(table.bytes if end is None else end.end_bytes) - begin.first_bytes,
    )


def chunk_plan(
    whole: EncodePlan, split: SplitPlan, chunk: Chunk, probe: Probe, *, from_film: bool = False
) -> EncodePlan:
    """What the worker makes of a slice: the main picture alone, as a Matroska file without sound.

    What slices do not carry of the container (pixel shape, colour, rotation) is said by filters; rate
    and headers are fixed, so that every node's encoder writes the same parameter sets.
    `from_film`: the same chunk of the film itself, decoded from its beginning.
    """
    numerator, denominator = split.time_base
    ticks_us = 1_000_000 * numerator / denominator
    picture = whole.streams[0]
    span_us = round(chunk.span * ticks_us)
    return whole.model_copy(
        update={
            "container": "matroska",
            "faststart": False,
            "streams": (
                picture.model_copy(
                    update={
                        "source": picture.source if from_film else 0,
                        "options": _joinable(picture, probe.video, chunk),
                        "duration_us": span_us,
                        "disposition": "",
                    }
                ),
            ),
            "filters": (
                *_trim(split, chunk, 0 if from_film else chunk.base),
                *_as_container_says(probe.video),
                *whole.filters,
            ),
            "frames": chunk.frames,
            "span_us": span_us,
            "source_bytes": whole.source_bytes if from_film else chunk.bytes,
            "source_ms": whole.source_ms if from_film else round(chunk.span * ticks_us) // 1000,
            "notes": (),
            "smaller": False,  # of the film as a whole
        }
    )


def _trim(split: SplitPlan, chunk: Chunk, base: int) -> tuple[PlannedFilter, ...]:
    numerator, denominator = split.time_base
    bounds = [("start_pts", str(chunk.start - base))]
    if chunk.end is not None:
        bounds.append(("end_pts", str(chunk.end - base)))
    return (
        # The slice's container may count finer than the film; the bounds are the film's ticks.
        PlannedFilter(name="settb", options=(("expr", f"{numerator}/{denominator}"),)),
        PlannedFilter(name="trim", options=tuple(bounds)),
    )


def _as_container_says(video: StreamInfo) -> tuple[PlannedFilter, ...]:
    named = (
        ("range", video.colour_range),
        ("color_primaries", video.colour_primaries),
        ("color_trc", video.colour_transfer),
        ("colorspace", video.colour_space),
    )
    colour = tuple((key, value) for key, value in named if value)
    filters = [PlannedFilter(name="setparams", options=colour)] if colour else []
    numerator, denominator = video.sample_aspect
    filters.append(PlannedFilter(name="setsar", arguments=(f"{numerator}/{denominator}",)))
    turns = {90: ("cclock",), -90: ("clock",), 180: ("clock", "clock"), -180: ("clock", "clock")}
    filters += [
        PlannedFilter(name="transpose", arguments=(way,)) for way in turns.get(video.rotation, ())
    ]
    if video.rotation:
        filters.append(PlannedFilter(name="sidedata", arguments=("delete", "DISPLAYMATRIX")))
    return tuple(filters)


def _joinable(
    picture: PlannedStream, video: StreamInfo, chunk: Chunk
) -> tuple[tuple[str, str], ...]:
    """The plan's options, with what makes the chunks of all nodes one stream: rate fixed, groups closed, ends as good."""
    options = dict(picture.options)
    options.pop("tag", None)  # MP4's name of HEVC; intermediates are Matroska
    numerator, denominator = video.frame_rate if all(video.frame_rate) else (25, 1)
    match picture.encoder:
        case "libx264":
            more = f"fps={numerator}/{denominator}:open-gop=0"
            options["x264-params"] = more + _zone(chunk)
        case "libx265":
            # info=0: its SEI in the headers names the number of threads, which differs between nodes.
            given = options.get("x265-params", "")
            more = f"fps={numerator}/{denominator}:open-gop=0:info=0{_zone(chunk)}"
            options["x265-params"] = f"{given}:{more}".lstrip(":")
        case "libsvtav1":
            options["svtav1-params"] = f"fps-num={numerator}:fps-denom={denominator}"
        case _:
            pass
    return tuple(options.items())


def _zone(chunk: Chunk) -> str:
    """More bits for the last frames, in the words of x264 and x265; none for the film's own end."""
    if chunk.end is None or chunk.frames <= SEAM_FRAMES:
        return ""
    return f":zones={chunk.frames - SEAM_FRAMES},{chunk.frames - 1},b={SEAM_BITS}"
