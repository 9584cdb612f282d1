"""Profiles: what a person wants to get, as data; never raw arguments for FFmpeg.

The JSON form goes into the ledger with each job, so that a later change of a profile does not
change a job.  Values of the built-in ones: FACTS.md, "Profiles people use".
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mesh.errors import UsageError

Container = Literal["mp4", "matroska"]
VideoCodec = Literal["h264", "hevc", "av1", "ffv1", "prores"]
Family = Literal["CPU", "NVENC", "QSV", "VAAPI", "AMF", "VideoToolbox", "Vulkan", "V4L2"]
"""Kinds of encoders: the processor's, and those of chips by the interface that reaches them."""
MetadataPolicy = Literal["keep", "no-location", "none"]
"""Of the film as a whole: all that the container takes, all but where it was taken, or nothing."""
AudioCodec = Literal["aac", "flac", "copy"]
PROFILE_JSON_BYTES_MAX = 16 << 10
EXTENSIONS: dict[Container, str] = {"mp4": "mp4", "matroska": "mkv"}


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class VideoPolicy(_Strict):
    """How the main picture is encoded.

    `crf` is on the scale of the codec's software encoder, `speed` a name of x264's presets (other
    encoders get their equivalent).  `long_side_max` and `short_side_max` bound the picture whichever
    way it lies; it is never enlarged.  `bits` 8 makes 4:2:0, 10 keeps the source's chroma.
    """

    codec: VideoCodec
    crf: Annotated[int, Field(ge=0, le=63)]
    speed: Literal["ultrafast", "veryfast", "fast", "medium", "slow", "veryslow"] = "medium"
    bits: Literal[8, 10] = 8
    long_side_max: Annotated[int, Field(ge=16, le=16384)] | None = None
    short_side_max: Annotated[int, Field(ge=16, le=16384)] | None = None
    level: Annotated[str, Field(pattern=r"^[1-6](\.[0-3])?$")] | None = None
    deinterlace: bool = False
    hdr: Literal["keep", "tonemap", "refuse"] = "keep"
    encoders: Annotated[tuple[Family, ...], Field(min_length=1, max_length=8)] = Field(
        default=("CPU",), exclude_if=lambda value: value == ("CPU",)
    )
    """Which may make the picture, best first: without CPU there is no fallback to software.  Chips are
    faster and their films larger, so they are asked for."""


class AudioPolicy(_Strict):
    """How each audio stream is treated; `copy` falls back to FLAC where the container cannot hold the codec."""

    codec: AudioCodec
    bitrate_kbps: Annotated[int, Field(ge=16, le=1536)] | None = None
    channels_max: Annotated[int, Field(ge=1, le=16)] | None = None


class PublishPolicy(_Strict):
    """How a result comes to its place."""

    replace: bool = False
    """It takes the film's place, and the original goes to a trash from which it can be restored."""
    trash_days: Annotated[int, Field(ge=1, le=3_650)] = 30
    """How long originals are kept there."""
    times: Literal["new", "source"] = "new"
    """Whose times the result has."""
    permissions: Literal["new", "source"] = "new"
    """Whose permissions, and where it may whose owner."""
    larger: Literal["keep", "discard"] = "keep"
    """Whether a result that is no smaller than its source is published at all."""


class QualityPolicy(_Strict):
    """A floor for how much a result looks like its source, measured on samples of it."""

    vmaf_min: Annotated[float, Field(ge=0, le=100)]
    """Of Netflix's VMAF, 0 to 100 (95: hardly to be told apart); below it a result is refused."""
    samples: Annotated[int, Field(ge=1, le=20)] = 3
    """How many parts of some seconds are looked at."""


class Profile(_Strict):
    """One way to convert. `streams` "main" keeps the main picture, all audio and what text subtitles the container holds; "all" keeps every stream."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
    title: Annotated[str, Field(max_length=200)] = ""
    container: Container
    video: VideoPolicy
    audio: AudioPolicy
    streams: Literal["main", "all"] = "main"
    faststart: bool = True
    # Left out of the JSON while they say what always was: older members refuse what they do not know.
    metadata: MetadataPolicy = Field(default="keep", exclude_if=lambda value: value == "keep")
    publish: PublishPolicy = Field(
        default=PublishPolicy(), exclude_if=lambda value: value == PublishPolicy()
    )
    quality: QualityPolicy | None = Field(default=None, exclude_if=lambda value: value is None)

    @property
    def extension(self) -> str:
        """Of the output's name, without the dot."""
        return EXTENSIONS[self.container]

    def to_json(self) -> str:
        """What the ledger keeps."""
        return self.model_dump_json()


def profile_from_json(text: str) -> Profile:
    """Raises `UsageError` for anything that is not exactly a profile."""
    if len(text.encode("utf-8", "replace")) > PROFILE_JSON_BYTES_MAX:
        raise UsageError("the profile is too large", f"at most {PROFILE_JSON_BYTES_MAX} bytes")
    try:
        return Profile.model_validate_json(text)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, fault["loc"])) or "profile"
        raise UsageError(
            f"bad profile: {where}: {fault['msg']}", "compare it with `mesh-cli profiles show web`"
        ) from None


def replacing_name(stem: str, profile: Profile) -> str:
    """The name of a result that takes a film's place: the film's, with the container's ending."""
    return f"{stem}.{profile.extension}"


def output_name(stem: str, profile: Profile) -> str:
    """`<stem>.<profile>.<ext>`."""
    return f"{stem}.{profile.name}.{profile.extension}"


BUILT_IN: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            name="web",
            title="plays in every browser: H.264 and AAC in MP4, at most 1080p",
            container="mp4",
            video=VideoPolicy(
                codec="h264",
                crf=22,
                speed="fast",
                long_side_max=1920,
                short_side_max=1080,
                deinterlace=True,
                hdr="tonemap",
            ),
            audio=AudioPolicy(codec="aac", bitrate_kbps=160, channels_max=2),
        ),
        Profile(
            name="mobile",
            title="small and light to decode: H.264 level 4.0 and AAC in MP4, at most 720p",
            container="mp4",
            video=VideoPolicy(
                codec="h264",
                crf=25,
                speed="fast",
                long_side_max=1280,
                short_side_max=720,
                level="4.0",
                deinterlace=True,
                hdr="tonemap",
            ),
            audio=AudioPolicy(codec="aac", bitrate_kbps=128, channels_max=2),
        ),
        Profile(
            name="archive",
            title="to keep: H.265 10-bit in Matroska, every stream and the sound untouched",
            container="matroska",
            video=VideoPolicy(codec="hevc", crf=18, speed="slow", bits=10),
            audio=AudioPolicy(codec="copy"),
            streams="all",
            faststart=False,
        ),
        Profile(
            name="small",
            title="as small as it may be and still good: H.265 and AAC in MP4, at most 1080p",
            container="mp4",
            video=VideoPolicy(
                codec="hevc",
                crf=26,
                speed="medium",
                long_side_max=1920,
                short_side_max=1080,
                deinterlace=True,
                hdr="tonemap",
            ),
            audio=AudioPolicy(codec="aac", bitrate_kbps=96, channels_max=2),
        ),
    )
}


def built_in(name: str) -> Profile:
    """Raises `UsageError` for a name that no profile has."""
    profile = BUILT_IN.get(name)
    if profile is None:
        raise UsageError(f"unknown profile {name[:64]!r}", f"use one of {', '.join(BUILT_IN)}")
    return profile
