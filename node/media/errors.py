"""Everything that can go wrong with a film, with the class that decides where a retry makes sense.

`failure` is what the ledger records of a failed attempt: `input` (the source is unusable, never
retried), `encoder` (not on this node; another may), `transient` (again here, after a wait).
"""

from typing import ClassVar, Literal, get_args

from mesh.errors import Blame, DarkStreamError, Retry

FailureClass = Literal["input", "encoder", "transient"]
assert get_args(FailureClass) == ("input", "encoder", "transient")


class MediaError(DarkStreamError):
    """A film could not be read, converted or proven whole."""

    code = "media"
    failure: ClassVar[FailureClass] = "transient"
    retry: ClassVar[Retry] = "here"
    blame: ClassVar[Blame] = "local"


class SourceError(MediaError):
    """The source cannot be converted by any node. Nothing is retried, the source stays as it is."""

    code = "source"
    failure = "input"
    retry = "never"
    blame = "user"
    http_status = 422


class NotAVideoError(SourceError):
    """The file is in no container that DarkStream reads: it is not a video, or its beginning is damaged."""

    code = "not_a_video"


class EmptySourceError(SourceError):
    """The file holds no bytes. Copy it again from where it came."""

    code = "empty_source"


class NoVideoStreamError(SourceError):
    """The file can be read but holds no moving picture: only audio, subtitles or a cover."""

    code = "no_video_stream"


class DamagedSourceError(SourceError):
    """The source is cut off or damaged: a conversion would be shorter than the film claims to be. Copy it again, or repair it."""

    code = "damaged_source"


class RefusedFormatError(SourceError):
    """A playlist or another file that only points to other files or to the network. Convert the files that it names."""

    code = "refused_format"


class UnreadableSourceError(SourceError):
    """The source vanished, is a directory, or may not be read by the node. Check its path and permissions."""

    code = "unreadable_source"


class UnsupportedSourceError(SourceError):
    """The film can be read but not converted with this profile: no decoder, or the profile refuses its HDR."""

    code = "unsupported_source"


class FilmChangedError(SourceError):
    """The source is not the film any more that was planned: something wrote it meanwhile. Submit it again."""

    code = "film_changed"


class ProbeLimitError(SourceError):
    """Reading the source took too long, too much memory or crashed the reader. It is refused; the node goes on."""

    code = "probe_limit"


class MixedSoftwareError(MediaError):
    """DarkStream's files on this machine are of another version than the node that runs: it was updated under it. Its jobs wait; restart the node."""

    code = "mixed_software"


class NotSmallerError(SourceError):
    """The result is no smaller than its film, and the job asked to throw such a result away. The film stays as it is."""

    code = "not_smaller"


class PlaceLeftError(SourceError):
    """The job asked for no location, and the film tells it under a name that cannot be taken out alone. Leave out all metadata."""

    code = "place_left"


class EncoderUnavailableError(MediaError):
    """No encoder that the profile allows works on this node. Another node may have one."""

    code = "encoder_unavailable"
    failure = "encoder"
    retry = "elsewhere"


class FFmpegMissingError(EncoderUnavailableError):
    """No FFmpeg of version 5.1 or newer was found. Install one, or name one with DARKSTREAM_FFMPEG."""

    code = "ffmpeg_missing"


class OutOfMemoryError(EncoderUnavailableError):
    """FFmpeg needed more memory than it may use on this node. A node with more memory may succeed."""

    code = "out_of_memory"


class WorkDiskFullError(MediaError):
    """The disk on which the node works is full. Free some space on it; meanwhile a node with more room may take over."""

    code = "work_disk_full"
    failure = (
        "transient"  # the disk may be free tomorrow; until then the scheduler asks for more of it
    )
    retry = "here"


class HdrLostError(EncoderUnavailableError):
    """This node's FFmpeg drops the mastering data of an HDR film (5.1 does, silently). A node with a newer one keeps them."""

    code = "hdr_lost"


class EncodeFailedError(MediaError):
    """FFmpeg ended with an error that says nothing about the source; its last lines are kept with the attempt."""

    code = "encode_failed"


class KilledError(MediaError):
    """FFmpeg was ended from outside (by a person or the system) before it was done."""

    code = "ffmpeg_killed"


class StalledError(MediaError):
    """FFmpeg made no progress for longer than the limit and was stopped."""

    code = "stalled"


class TimeLimitError(MediaError):
    """The conversion took longer than its limit and was stopped."""

    code = "time_limit"


class OutputLimitError(MediaError):
    """The result or FFmpeg's messages grew beyond their limit, and FFmpeg was stopped."""

    code = "output_limit"


class BadResultError(MediaError):
    """FFmpeg reported success but the result is not what was planned. It is thrown away, the source is untouched."""

    code = "bad_result"


class FrameCountError(BadResultError):
    """The result does not hold exactly the source's frames."""

    code = "frame_count"


class DurationError(BadResultError):
    """The result is longer or shorter than the source by more than a frame or a thousandth."""

    code = "duration"


class MissingStreamError(BadResultError):
    """A stream that the plan keeps is missing from the result, or empty."""

    code = "missing_stream"


class DecodeFailedError(BadResultError):
    """The result cannot be decoded from beginning to end without an error."""

    code = "result_damaged"


class WrongPictureError(BadResultError):
    """Codec, size, shape, pixel format, colour or rotation of the result differ from the plan."""

    code = "wrong_picture"


class UnlikeError(BadResultError):
    """Frames of the result do not show what the film shows there: another picture, other colours, or none. It is made again; memory or chip of the node that made it may be bad."""

    code = "unlike"


class PoorPictureError(BadResultError):
    """The result looks less like its film than the job asked for. It is thrown away; another try would make the same."""

    code = "poor_picture"
    failure = "input"
    retry = "never"
    blame = "user"


def _all_of(base: type[MediaError]) -> dict[str, type[MediaError]]:
    found = {base.code: base}
    for cls in base.__subclasses__():
        found |= _all_of(cls)
    return found


ERRORS: dict[str, type[MediaError]] = _all_of(MediaError)
"""Every class by its stable code."""
