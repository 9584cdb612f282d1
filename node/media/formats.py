"""What may be opened at all; shared by the command line and the reading child."""

from typing import Final

BEGUN: Final = "the beginning of the film is decoded"
"""What the reading child writes among the decoder's complaints: those before it may be of lost references."""
STREAMS_MAX: Final = 64
"""More than any film has; the description of each is about 1 KiB."""
FORMATS: Final = (
    "mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "mpegts", "mpeg", "mpegvideo",
    "m4v", "h264", "hevc", "av1", "obu", "ivf", "flv", "asf", "ogg", "mxf", "mxf_opatom", "gxf", "dv",
    "nut", "rm", "vob", "wtv", "nsv", "vc1", "mjpeg", "gif", "yuv4mpegpipe", "dirac", "swf", "cavsvideo",
    "mp3", "wav", "flac", "aac", "ac3", "aiff",
)  # fmt: skip
"""Demuxers that may be used: each reads one file and nothing else. Playlists, image patterns, devices and
network descriptions (hls, dash, concat, sdp, image2, lavfi, ...) are not among them. Pure audio is, so that
a person reads "no moving picture" instead of "not a video"."""
PROTOCOLS: Final = ("file", "pipe")

PLACE_TAGS: Final = (
    "location",
    *(
        f"location-{language}"
        for language in ("eng", "und", "deu", "fra", "spa", "ita", "por", "jpn", "zho", "kor")
    ),
    "com.apple.quicktime.location.ISO6709",
    "com.apple.quicktime.location.name",
    "com.apple.quicktime.location.body",
    "com.apple.quicktime.location.note",
    "com.apple.quicktime.location.role",
    "com.apple.quicktime.location.date",
    "com.apple.quicktime.location.accuracy.horizontal",
    "xyz",
)
"""Names under which cameras and phones write where they were; `is_place` finds more than can be taken out."""


def is_place(tag: str) -> bool:
    """Whether a tag's name says that it tells of a place."""
    name = tag.lower()
    return any(
        word in name for word in ("location", "iso6709", "gps", "latitude", "longitude")
    ) or name in ("xyz", "©xyz")


# Names of ITU-T H.273 code points as FFmpeg's options spell them; 2 is "unspecified".
RANGES = {1: "tv", 2: "pc"}
SPACES = {0: "gbr", 1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "ycgco",
          9: "bt2020nc", 10: "bt2020c", 14: "ictcp"}  # fmt: skip
TRANSFERS = {1: "bt709", 4: "gamma22", 5: "gamma28", 6: "smpte170m", 7: "smpte240m", 8: "linear",
             11: "iec61966-2-4", 13: "iec61966-2-1", 14: "bt2020-10", 15: "bt2020-12", 16: "smpte2084",
             18: "arib-std-b67"}  # fmt: skip
PRIMARIES = {1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "film",
             9: "bt2020", 11: "smpte431", 12: "smpte432"}  # fmt: skip
