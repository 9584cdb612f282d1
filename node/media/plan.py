"""From a probe and a profile to a plan: what is kept, how it is made, and what the result must be.

Pure: the same probe, profile and encoders give the same plan on every node.  What is left out is never
left out silently: each omission is a note (FFmpeg's own default mapping drops streams with exit 0).
"""

from collections.abc import Collection
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from node.media.encoders import (
    FORMS,
    UPLOADED,
    chosen,
    encoder_options,
    holds,
    input_format,
    needs,
)
from node.media.errors import EncoderUnavailableError, UnsupportedSourceError
from node.media.probe import Probe, Ratio, StreamInfo, StreamKind
from node.media.profiles import MetadataPolicy, Profile

AUDIO_CODEC: Final = {"aac": "aac", "flac": "flac"}
TEXT_SUBTITLES: Final = frozenset(
    {"subrip", "ass", "ssa", "webvtt", "mov_text", "text", "subviewer"}
)
MATROSKA_SUBTITLES: Final = frozenset(
    {
        "subrip",
        "ass",
        "webvtt",
        "hdmv_pgs_subtitle",
        "dvd_subtitle",
        "dvb_subtitle",
        "hdmv_text_subtitle",
    }
)
MATROSKA_AUDIO: Final = frozenset(
    {
        "aac", "ac3", "eac3", "dts", "truehd", "mlp", "mp2", "mp3", "flac", "opus", "vorbis", "alac",
        "pcm_s16le", "pcm_s24le", "pcm_f32le", "wavpack", "tta",
    }
)  # fmt: skip
LEVEL_MACROBLOCKS: Final = (
    ("3.0", 1620, 40_500), ("3.1", 3600, 108_000), ("3.2", 5120, 216_000), ("4.0", 8192, 245_760),
    ("4.2", 8704, 522_240), ("5.0", 22_080, 589_824), ("5.1", 36_864, 983_040), ("5.2", 36_864, 2_073_600),
    ("6.0", 139_264, 4_177_920), ("6.2", 139_264, 16_711_680),
)  # fmt: skip
"""H.264 level, macroblocks a frame, macroblocks a second (ITU-T H.264, table A-1)."""
MACROBLOCK: Final = 16
VULKAN_SCALER: Final = "scale_vulkan"
"""Named among a node's encoders where a picture has proven it."""
RGB_FORMATS: Final = ("gbr", "rgb", "bgr", "argb", "abgr", "0rgb", "0bgr", "pal8")
PRIMING_PACKETS_MAX: Final = 3
"""What an edit list leaves out for an encoder's delay; copies keep it as the film does."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class PlannedStream(_Strict):
    """One stream of the result, in its order; the first is the main picture."""

    source: int
    kind: StreamKind
    encoder: str
    """FFmpeg's encoder, or `copy`."""
    codec: str
    """What the result must hold."""
    options: tuple[tuple[str, str], ...] = ()
    duration_us: int = 0
    start_us: int = 0
    """Relative to the main picture."""
    packets: bool = True
    """Whether the source's stream holds anything."""
    disposition: str = ""
    """The source's flags, as FFmpeg's option takes them."""


class PlannedFilter(_Strict):
    """One FFmpeg filter with its arguments."""

    name: str
    arguments: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()


class EncodePlan(_Strict):
    """How one film is converted whole, and what the result must be."""

    version: Literal[1] = 1
    profile: str
    container: Literal["mp4", "matroska"]
    faststart: bool
    streams: Annotated[tuple[PlannedStream, ...], Field(min_length=1)]
    filters: tuple[PlannedFilter, ...]
    width: int
    height: int
    pixel_format: str
    sample_aspect: Ratio
    colour_transfer: str
    """"" where the source does not say."""
    colour_primaries: str
    mastering_display: bool
    time_base: Ratio
    """The source's own: the encoder counts in it, so that each frame keeps its exact time."""
    frames: int
    span_us: int
    frame_us: int
    """Mean time of one frame: the tolerance of durations."""
    source_bytes: int
    source_ms: int
    source_undecodable: bool
    notes: tuple[str, ...] = ()
    metadata: MetadataPolicy = Field(default="keep", exclude_if=lambda value: value == "keep")
    smaller: bool = Field(default=False, exclude_if=lambda value: not value)
    """A result that is no smaller than its source is thrown away."""

    @property
    def encoder(self) -> str:
        """Of the main picture."""
        return self.streams[0].encoder

    @property
    def cost(self) -> int:
        """Frames times pixels to encode: what a scheduler weighs."""
        return self.frames * self.width * self.height

    def to_json(self) -> str:
        """What the ledger keeps."""
        return self.model_dump_json()


def plan_whole(probe: Probe, profile: Profile, encoders: Collection[str]) -> EncodePlan:
    """Plans the whole film in one piece, with the best of the given (usable) encoders.

    Raises `EncoderUnavailableError` when none of `needs(profile)` is there, `UnsupportedSourceError`
    when the profile cannot show this film.
    """
    video = probe.video
    pixel_format = _pixel_format(video, profile)
    encoder = chosen(profile, pixel_format, encoders)
    if encoder is None:
        raise EncoderUnavailableError(
            f"none of {', '.join(needs(profile))} works on this node",
            "see `mesh-node detect`; install an FFmpeg with it, or leave the work to other nodes",
        )
    notes: list[str] = []
    tonemap = _tonemap(video, profile)
    width, height, aspect = _size(video, profile)
    if video.dynamic_hdr:
        notes.append("dynamic HDR metadata (HDR10+ or Dolby Vision) is not kept")
    if probe.undecodable:
        notes.append(f"the source begins with {probe.undecodable} packets that nothing can decode")
    streams = [
        PlannedStream(
            source=video.index,
            kind="video",
            encoder=encoder,
            codec=profile.video.codec,
            options=encoder_options(
                encoder, profile, _level(profile, (width, height), video, notes)
            ),
            duration_us=video.duration_us,
            disposition=video.disposition,
        ),
        *_other_streams(probe, profile, notes),
    ]
    return EncodePlan(
        profile=profile.name,
        container=profile.container,
        faststart=profile.faststart,
        streams=tuple(streams),
        filters=_for_encoder(
            encoder,
            pixel_format,
            _filters(video, profile, (width, height), aspect, tonemap=tonemap),
            rgb=_is_rgb(video),
            scales=_scales_well(video, (width, height), encoders),
        ),
        width=width,
        height=height,
        pixel_format=pixel_format,
        sample_aspect=aspect,
        colour_transfer="bt709" if tonemap else video.colour_transfer,
        colour_primaries="bt709" if tonemap else video.colour_primaries,
        mastering_display=video.mastering_display and not tonemap,
        time_base=video.time_base,
        frames=probe.frames,
        span_us=video.span_us,
        frame_us=video.span_us // (probe.frames - 1) if probe.frames > 1 else 1_000_000,
        source_bytes=probe.bytes,
        source_ms=probe.duration_ms,
        source_undecodable=probe.undecodable > 0,
        notes=tuple(notes),
        metadata=profile.metadata,
        smaller=profile.publish.larger == "discard",
    )


def _tonemap(video: StreamInfo, profile: Profile) -> bool:
    if not video.hdr or (profile.video.hdr == "keep" and profile.video.bits == 10):
        return False
    if profile.video.hdr == "tonemap":
        return True
    raise UnsupportedSourceError(
        f"an HDR film ({video.colour_transfer}), and profile {profile.name!r} makes 8-bit pictures without tone mapping",
        "choose a 10-bit profile such as archive, or one that maps tones such as web",
    )


def _size(video: StreamInfo, profile: Profile) -> tuple[int, int, Ratio]:
    """Size and pixel shape as they will lie in the file: upright, even, within limits, never enlarged."""
    width, height, aspect = video.width, video.height, video.sample_aspect
    if video.rotation % 180:
        width, height, aspect = height, width, (aspect[1], aspect[0])
    long, short = profile.video.long_side_max, profile.video.short_side_max
    scale_by = [(1, 1)]
    if long is not None and max(width, height) > long:
        scale_by.append((long, max(width, height)))
    if short is not None and min(width, height) > short:
        scale_by.append((short, min(width, height)))
    numerator, denominator = min(scale_by, key=lambda ratio: ratio[0] / ratio[1])
    if profile.video.codec == "ffv1" and numerator == denominator:
        return width, height, aspect
    return (
        _even(width * numerator / denominator),
        _even(height * numerator / denominator),
        aspect,
    )


def _even(size: float) -> int:
    # Chroma of 4:2:0 needs even sizes; rounding down never enlarges.
    return max(2, int(size + 0.5) // 2 * 2)


def able(probe: Probe, profile: Profile) -> tuple[str, ...]:
    """Those of `needs(profile)` that can make this film's picture."""
    pixel_format = _pixel_format(probe.video, profile)
    return tuple(name for name in needs(profile) if holds(name, pixel_format))


def chosen_for(probe: Probe, profile: Profile, encoders: Collection[str]) -> str | None:
    """The encoder that `plan_whole` would take, if any."""
    return chosen(profile, _pixel_format(probe.video, profile), encoders)


def _pixel_format(video: StreamInfo, profile: Profile) -> str:
    if profile.video.codec == "prores":
        return "yuv422p10le"
    if profile.video.bits == 8:
        return "yuv420p"
    name = video.pixel_format
    if "444" in name or _is_rgb(video):
        return "yuv444p10le"
    return "yuv422p10le" if "422" in name else "yuv420p10le"


def _is_rgb(video: StreamInfo) -> bool:
    named = video.pixel_format.startswith(RGB_FORMATS)
    return named or video.colour_space == "gbr"


def _rate(video: StreamInfo) -> float:
    numerator, denominator = video.frame_rate
    return numerator / denominator if numerator and denominator else 0.0


def _filters(
    video: StreamInfo,
    profile: Profile,
    size: tuple[int, int],
    aspect: Ratio,
    *,
    tonemap: bool,
) -> tuple[PlannedFilter, ...]:
    filters: list[PlannedFilter] = []
    if profile.video.deinterlace and video.interlaced:
        # send_frame: one frame out for each in, so that the count stays the source's.
        filters.append(
            PlannedFilter(name="bwdif", options=(("deint", "interlaced"), ("mode", "send_frame")))
        )
    if tonemap:
        filters += [
            PlannedFilter(name="zscale", options=(("t", "linear"), ("npl", "100"))),
            PlannedFilter(name="format", arguments=("gbrpf32le",)),
            PlannedFilter(name="zscale", options=(("p", "bt709"),)),
            PlannedFilter(name="tonemap", options=(("desat", "0"), ("tonemap", "hable"))),
            PlannedFilter(name="zscale", options=(("m", "bt709"), ("r", "tv"), ("t", "bt709"))),
            # They describe the picture as it was; players would map its tones a second time.
            *(
                PlannedFilter(name="sidedata", arguments=("delete", kind))
                for kind in ("MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL")
            ),
        ]
    upright = (video.width, video.height)[:: -1 if video.rotation % 180 else 1]
    rgb = _is_rgb(video)
    if size != upright or rgb:
        matrix = (("out_color_matrix", "bt709"), ("out_range", "tv")) if rgb else ()
        filters.append(
            PlannedFilter(
                name="scale",
                arguments=(str(size[0]), str(size[1])),
                options=(("flags", "bicubic"), *matrix),
            )
        )
        # scale would bend the pixels by the fraction lost in rounding to even sizes.
        filters.append(PlannedFilter(name="setsar", arguments=(f"{aspect[0]}/{aspect[1]}",)))
    return tuple(filters)


def _scales_well(video: StreamInfo, size: tuple[int, int], encoders: Collection[str]) -> bool:
    """Whether this node's Vulkan device may make the picture smaller: proven, and its two taps suffice."""
    long, short = max(size), min(size)
    little = 2 * long >= max(video.width, video.height) and 2 * short >= min(
        video.width, video.height
    )
    return little and VULKAN_SCALER in encoders and not _is_rgb(video)


def _for_encoder(
    encoder: str,
    pixel_format: str,
    filters: tuple[PlannedFilter, ...],
    *,
    rgb: bool,
    scales: bool,
) -> tuple[PlannedFilter, ...]:
    """The filters with what the encoder is given at their end: a pixel format, in its device's memory."""
    given = [PlannedFilter(name="format", arguments=(input_format(encoder, pixel_format),))]
    if rgb:
        # The source's "these are red, green and blue" would stay as a label on what is luma now.
        told = (("colorspace", "bt709"), ("range", "tv"))
        given.append(PlannedFilter(name="setparams", options=told))
    family = FORMS[encoder].family
    if family not in UPLOADED:
        return (*filters, *given)
    moved = ("scale", "setsar") if scales and family == "Vulkan" else ()
    before = (step for step in filters if step.name not in moved)
    after = (_on_device(step) for step in filters if step.name in moved)
    return (*before, *given, PlannedFilter(name="hwupload"), *after)


def _on_device(step: PlannedFilter) -> PlannedFilter:
    if step.name != "scale":
        return step
    width, height = step.arguments
    return PlannedFilter(name=VULKAN_SCALER, options=(("h", height), ("w", width)))


def _level(
    profile: Profile, size: tuple[int, int], video: StreamInfo, notes: list[str]
) -> str | None:
    """The wanted H.264 level, or the lowest that holds this picture: a false claim stalls small players."""
    wanted = profile.video.level
    if wanted is None or profile.video.codec != "h264":
        return None
    rate = _rate(video)
    blocks = -(-size[0] // MACROBLOCK) * -(-size[1] // MACROBLOCK)
    names = [name for name, _, _ in LEVEL_MACROBLOCKS]
    start = names.index(wanted) if wanted in names else 0
    for name, frame_max, second_max in LEVEL_MACROBLOCKS[start:]:
        if blocks <= frame_max and blocks * rate <= second_max:
            if name != wanted:
                notes.append(f"H.264 level {name}, not {wanted}: {size} at {rate:.2f}/s")
            return name
    return names[-1]


def _other_streams(probe: Probe, profile: Profile, notes: list[str]) -> list[PlannedStream]:
    planned: list[PlannedStream] = []
    for stream in probe.streams:
        if stream.index == probe.main:
            continue
        match stream.kind:
            case "audio":
                made = _audio(stream, profile, notes)
            case "subtitle":
                made = _subtitle(stream, profile, notes)
            case "video" | "attachment" if profile.streams == "all":
                made = ("copy", stream.codec, ())
                if stream.attached_picture:
                    notes.append(f"{_named(stream)} becomes a video track of one picture")
            case _:
                made = None
                notes.append(
                    f"{_named(stream)} is left out: profile {profile.name!r} has no place for it"
                )
        if made is None:
            continue
        encoder, codec, options = made
        planned.append(
            PlannedStream(
                source=stream.index,
                kind=stream.kind,
                encoder=encoder,
                codec=codec,
                options=options,
                duration_us=stream.duration_us,
                start_us=stream.start_us - probe.video.start_us,
                packets=stream.packets > 0,
                disposition=stream.disposition,
            )
        )
    return planned


_Made = tuple[str, str, tuple[tuple[str, str], ...]]


def _audio(stream: StreamInfo, profile: Profile, notes: list[str]) -> _Made | None:
    audio = profile.audio
    if not stream.codec:
        notes.append(f"{_named(stream)} is left out: no decoder knows it")
        return None
    wanted = audio.codec
    if wanted == "copy":
        holds = profile.container == "matroska" and stream.codec in MATROSKA_AUDIO
        # A copy would bring back what an edit list hides, before the film and in its middle.
        hides = stream.discarded > PRIMING_PACKETS_MAX
        if holds and not hides:
            return "copy", stream.codec, ()
        why = "its edit list hides a part of it" if holds else f"no {stream.codec} in the container"
        notes.append(f"{_named(stream)} becomes FLAC: {why}")
        wanted = "flac"
    options: list[tuple[str, str]] = []
    if wanted == "aac" and audio.bitrate_kbps is not None:
        options.append(("b", f"{audio.bitrate_kbps}k"))
    if audio.channels_max is not None and stream.channels > audio.channels_max:
        options.append(("ac", str(audio.channels_max)))
        notes.append(
            f"{_named(stream)} is mixed from {stream.channels} to {audio.channels_max} channels"
        )
    return wanted, AUDIO_CODEC[wanted], tuple(options)


def _subtitle(stream: StreamInfo, profile: Profile, notes: list[str]) -> _Made | None:
    if profile.container == "mp4" and stream.codec in TEXT_SUBTITLES:
        if stream.codec in ("ass", "ssa"):
            notes.append(f"{_named(stream)} loses its styling in MP4")
        return "mov_text", "mov_text", ()
    if profile.container == "matroska":
        if stream.codec in MATROSKA_SUBTITLES:
            return "copy", stream.codec, ()
        if stream.codec in TEXT_SUBTITLES:
            return "subrip", "subrip", ()
    notes.append(
        f"{_named(stream)} is left out: {stream.codec or 'its format'} cannot be kept in {profile.container}"
    )
    return None


def _named(stream: StreamInfo) -> str:
    kind = "cover picture" if stream.attached_picture else stream.kind
    language = f" ({stream.language})" if stream.language not in ("", "und") else ""
    return f"{kind} stream {stream.index}{language}"
