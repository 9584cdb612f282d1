"""Every encoder that a profile can be made with: its family, and the same intent in its own options.

Pure.  A profile says what a person wants (quality on the scale of the codec's software encoder, speed
by x264's names); each encoder's form of it stands here and nowhere else, so that a proof by picture
(`node.media.proofs`) tries exactly what conversions use.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from node.media.profiles import Family, Profile, VideoCodec, VideoPolicy

SUFFIXES: Final[tuple[tuple[str, Family], ...]] = (
    ("_nvenc", "NVENC"),
    ("_qsv", "QSV"),
    ("_vaapi", "VAAPI"),
    ("_amf", "AMF"),
    ("_videotoolbox", "VideoToolbox"),
    ("_vulkan", "Vulkan"),
    ("_v4l2m2m", "V4L2"),
)
"""FFmpeg names an encoder of a family by its codec and one of these."""
SOFTWARE: Final[dict[VideoCodec, str]] = {
    "h264": "libx264",
    "hevc": "libx265",
    "av1": "libsvtav1",
    "ffv1": "ffv1",
    "prores": "prores_ks",
}
_HARDWARE_NAME: Final[dict[VideoCodec, str]] = {"prores": "prores_ks"}
_MADE_BY: Final[dict[Family, tuple[VideoCodec, ...]]] = {
    "NVENC": ("h264", "hevc", "av1"),
    "QSV": ("h264", "hevc", "av1"),
    "VAAPI": ("h264", "hevc", "av1"),
    "AMF": ("h264", "hevc", "av1"),
    "VideoToolbox": ("h264", "hevc", "prores"),
    "Vulkan": ("h264", "hevc", "av1", "ffv1", "prores"),
    # It knows bit rates alone, and no profile asks for one.
    "V4L2": ("h264", "hevc"),
}
SVTAV1_PRESET: Final = {
    "ultrafast": 12, "veryfast": 10, "fast": 8, "medium": 6, "slow": 4, "veryslow": 3,
}  # fmt: skip
NVENC_PRESET: Final = {
    "ultrafast": "p1", "veryfast": "p2", "fast": "p4", "medium": "p5", "slow": "p6", "veryslow": "p7",
}  # fmt: skip
AV1_INDEX: Final = 4
"""AV1's quantizer index runs to 255 where its software encoders' scale ends at 63."""
TEN_BITS: Final = 10
BIT_RATE_ONLY: Final = frozenset[Family]({"V4L2"})
UPLOADED: Final[dict[Family, str]] = {"VAAPI": "vaapi", "Vulkan": "vulkan"}
"""Families that take pictures only from their device's memory, by FFmpeg's name of the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One encoder for one codec."""

    encoder: str
    codec: VideoCodec
    family: Family


FORMS: Final[dict[str, Form]] = {
    form.encoder: form
    for form in (
        *(Form(encoder=name, codec=codec, family="CPU") for codec, name in SOFTWARE.items()),
        *(
            Form(encoder=_HARDWARE_NAME.get(codec, codec) + suffix, codec=codec, family=family)
            for suffix, family in SUFFIXES
            for codec in _MADE_BY[family]
            if (family, codec) != ("VideoToolbox", "prores")
        ),
        Form(encoder="prores_videotoolbox", codec="prores", family="VideoToolbox"),
    )
}
"""By FFmpeg's name."""


def needs(profile: Profile) -> tuple[str, ...]:
    """FFmpeg encoder names, any one of which lets a node do this work, best first."""
    return tuple(
        form.encoder
        for family in profile.video.encoders
        if family not in BIT_RATE_ONLY
        for form in FORMS.values()
        if form.family == family and form.codec == profile.video.codec
    )


def forms_of(family: Family) -> tuple[Form, ...]:
    """The encoders of a family, the one that all its devices have first."""
    return tuple(form for form in FORMS.values() if form.family == family)


def input_format(encoder: str, pixel_format: str) -> str:
    """What the encoder is given so that its result has this pixel format; hardware wants chroma interleaved."""
    family = FORMS[encoder].family
    if family == "CPU" or FORMS[encoder].codec in ("ffv1", "prores"):
        return pixel_format
    return {"yuv420p": "nv12", "yuv420p10le": "p010le"}.get(pixel_format, pixel_format)


def holds(encoder: str, pixel_format: str) -> bool:
    """Whether an encoder can make this pixel format at all: the chips know 4:2:0 alone."""
    form = FORMS[encoder]
    if form.family == "CPU" or form.codec in ("ffv1", "prores"):
        return True
    return pixel_format in ("yuv420p", "yuv420p10le")


def device_words(encoder: str, device: str) -> tuple[str, ...]:
    """FFmpeg's global options that open the device; none for encoders that open their own."""
    kind = UPLOADED.get(FORMS[encoder].family) if encoder in FORMS else None
    if kind is None:
        return ()
    return ("-init_hw_device", f"{kind}=dev:{device}", "-filter_hw_device", "dev")


def device_options(encoder: str, device: str) -> tuple[tuple[str, str], ...]:
    """The encoder's own option that picks one of several devices."""
    known = FORMS.get(encoder)
    return (("gpu", device),) if device and known and known.family == "NVENC" else ()


def encoder_options(
    encoder: str, profile: Profile, level: str | None
) -> tuple[tuple[str, str], ...]:
    """The profile's intent in the options of this encoder."""
    form, video = FORMS[encoder], profile.video
    options = _software(encoder, video) if form.family == "CPU" else _hardware(form, video)
    if level is not None and form.codec == "h264" and form.family not in ("V4L2", "Vulkan"):
        options["level"] = level
    if form.codec == "hevc" and profile.container == "mp4":
        options["tag"] = "hvc1"  # Apple's players know no other name
    return tuple(options.items())


def _software(encoder: str, video: VideoPolicy) -> dict[str, str]:
    quality = {"crf": str(video.crf)}
    match encoder:
        case "libx264":
            return {**quality, "preset": video.speed}
        case "libx265":
            return {**quality, "preset": video.speed, "x265-params": "log-level=warning"}
        case "libsvtav1":
            return {**quality, "preset": str(SVTAV1_PRESET[video.speed])}
        case "ffv1":
            return {"level": "3", "slicecrc": "1", "g": "1"}
        case "prores_ks":
            return {"profile": "hq", "vendor": "apl0"}
        case _:
            raise ValueError(f"no options are known for {encoder}")


def _hardware(form: Form, video: VideoPolicy) -> dict[str, str]:
    """Quality on the same scale: an index of quantization, which each interface names otherwise."""
    if form.codec in ("prores", "ffv1"):
        return {"profile": "hq"} if form.codec == "prores" else _software("ffv1", video)
    index = str(video.crf * (AV1_INDEX if form.codec == "av1" else 1))
    quick = video.speed in ("ultrafast", "veryfast")
    options: dict[Family, dict[str, str]] = {
        "NVENC": {"rc": "vbr", "cq": str(video.crf), "b": "0", "preset": NVENC_PRESET[video.speed]},
        "QSV": {
            "global_quality": str(max(1, video.crf)),
            "preset": "veryfast" if quick else video.speed,
        },
        "VAAPI": {"rc_mode": "CQP", "global_quality" if form.codec == "av1" else "qp": index},
        "AMF": {
            "rc": "cqp",
            "qp_i": index,
            "qp_p": index,
            "quality": "speed" if quick else "quality",
        },
        # Its scale runs from 1 to 100, better upwards.
        "VideoToolbox": {"q": str(min(100, max(1, 110 - round(2.2 * video.crf)))), "allow_sw": "0"},
        "Vulkan": {"qp": index},
        "V4L2": {"b": "4M"},
    }
    return options[form.family]


def chosen(profile: Profile, pixel_format: str, encoders: Iterable[str]) -> str | None:
    """The best of the usable encoders for this profile and pixel format; None where none will do."""
    usable = frozenset(encoders)
    return next((e for e in needs(profile) if e in usable and holds(e, pixel_format)), None)
