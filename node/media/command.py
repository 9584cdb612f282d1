"""From a plan to FFmpeg's exact command line; ffmpeg-python builds the graph."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from node.media.child import AnyPath, text_of
from node.media.encoders import FORMS, device_options, device_words
from node.media.formats import FORMATS, PLACE_TAGS, PROTOCOLS
from node.media.plan import EncodePlan, PlannedStream
from node.media.split import SplitPlan

GLOBAL: Final = (
    "-hide_banner",
    "-nostdin",
    "-nostats",
    "-loglevel",
    "level+warning",  # every line with its level, so that errors can be told from chatter
    "-progress",
    "pipe:1",
    "-stats_period",
    "0.5",
    "-n",  # never over a file that is there
)
MUXING_QUEUE_PACKETS: Final = 4_096
"""A sparse stream holds the others up in the muxer; FFmpeg's 128 breaks films whose sound starts late."""
MUXERS: Final = {"mp4": "mp4", "matroska": "matroska"}


def input_options(threads: int) -> dict[str, Any]:
    """What each of our inputs is opened with: local files and whitelisted demuxers only."""
    return {
        "protocol_whitelist": ",".join(PROTOCOLS),
        "format_whitelist": ",".join(FORMATS),
        "threads": threads,
    }


def command_line(
    plan: EncodePlan,
    ffmpeg: str,
    source: AnyPath,
    output: AnyPath,
    *,
    threads: int = 0,
    exact: bool = False,
    device: str = "",
) -> tuple[str, ...]:
    """The whole command; `threads` 0 lets FFmpeg take every core, `device` is the encoder's.

    `exact` keeps the source's clock and turns nothing by itself: filters of the plan count in ticks.
    """
    import ffmpeg as graph  # noqa: PLC0415 - 9 MB and 80 ms that an idle node does not need

    opened = input_options(threads)
    if exact:
        opened |= {"copyts": None, "noautorotate": None}
    film = graph.input("file:" + text_of(source), **opened)
    picture = film[str(plan.streams[0].source)]
    for step in plan.filters:
        picture = picture.filter(step.name, *step.arguments, **dict(step.options))
    others = [film[str(stream.source)] for stream in plan.streams[1:]]
    options = _output_options(plan, threads)
    options |= {f"{key}:0": value for key, value in device_options(plan.encoder, device)}
    made = graph.output(picture, *others, "file:" + text_of(output), **options)
    *words, last = (str(word) for word in graph.get_args(made))
    return (
        ffmpeg, *GLOBAL, *device_words(plan.encoder, device), *words, *_metadata(plan, 0), last,
    )  # fmt: skip


UNSMOOTHED: Final = ("-skip_loop_filter:v", "all")
"""Of pictures that nobody sees: smoothing the edges of blocks is a quarter of decoding H.264, reads nothing of the
film and cannot fail.  Of 60 results of H.264 and 60 of HEVC with bits turned over, both ways refused the same 26 and 2."""


def decode_command(ffmpeg: str, path: AnyPath, *, threads: int = 0) -> tuple[str, ...]:
    """Decodes every picture and all sound of a file and writes nothing."""
    return (
        ffmpeg, *GLOBAL, *UNSMOOTHED, *_opened(threads), "-i", "file:" + text_of(path),
        # In units of a guessed rate, frames of a varying one would fall on the same time.
        "-map", "0:v:0", "-map", "0:a?", "-fps_mode", "passthrough", "-enc_time_base:v", "1:1000000",
        # Copied sound may overlap itself by a tick, of which the muxer that writes nothing complains.
        "-filter:a", "asetpts=N/SR/TB",
        "-f", "null", "-",
    )  # fmt: skip


def decode_parts_command(
    ffmpeg: str, path: AnyPath, begins_us: Sequence[int], *, length_us: int
) -> tuple[str, ...]:
    """Decodes short parts of the picture, each by a thread, and writes nothing."""
    inputs: list[str] = []
    for begin_us in begins_us:
        inputs += ["-ss", f"{begin_us}us", "-t", f"{length_us}us", *UNSMOOTHED, *_opened(1)]
        inputs += ["-i", "file:" + text_of(path)]
    maps = [word for number in range(len(begins_us)) for word in ("-map", f"{number}:v:0")]
    return (
        ffmpeg, *GLOBAL, *inputs, *maps, "-fps_mode", "passthrough",
        "-enc_time_base:v", "1:1000000", "-f", "null", "-",
    )  # fmt: skip


def decode_sounds_command(ffmpeg: str, path: AnyPath, numbers: Sequence[int]) -> tuple[str, ...]:
    """Decodes the sounds of these numbers and writes nothing."""
    maps = [word for number in numbers for word in ("-map", f"0:a:{number}")]
    return (ffmpeg, *GLOBAL, *_opened(0), "-i", "file:" + text_of(path), *maps, "-f", "null", "-")


def sound_command(
    plan: EncodePlan, ffmpeg: str, source: AnyPath, output: AnyPath, *, zero_us: int
) -> tuple[str, ...]:
    """Encodes every sound of the plan that is not copied, once and whole, into an MP4 without picture.

    MP4 keeps the sample clock and the encoder's priming exactly; Matroska would round to milliseconds.
    """
    words = [ffmpeg, *GLOBAL, "-copyts", *_shifted(-zero_us), *_input(source)]
    for position, stream in enumerate(encoded_sound(plan)):
        words += ["-map", f"0:{stream.source}", f"-c:{position}", stream.encoder]
        words += [word for key, value in stream.options for word in (f"-{key}:{position}", value)]
    return (*words, "-max_muxing_queue_size", str(MUXING_QUEUE_PACKETS), "-f", "mp4", "file:" + text_of(output))  # fmt: skip


def encoded_sound(plan: EncodePlan) -> tuple[PlannedStream, ...]:
    """The sound streams that are encoded and not copied."""
    return tuple(s for s in plan.streams if s.kind == "audio" and s.encoder != "copy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The files that an assembled film is made of; `sound` None where none is encoded."""

    source: AnyPath
    index: AnyPath
    chunks: tuple[AnyPath, ...]
    sound: AnyPath | None
    picture: AnyPath
    """Where the joined chunks are written to."""
    sound_is_proven: bool = False
    """Its maker decoded it."""


def sounds_of(plan: EncodePlan, *, encoded: bool) -> list[int]:
    """The numbers of a result's sounds that are encoded, or copied."""
    sounds = [stream for stream in plan.streams if stream.kind == "audio"]
    return [n for n, stream in enumerate(sounds) if (stream.encoder != "copy") == encoded]


def assembly_command(
    plan: EncodePlan, split: SplitPlan, parts: Parts, *, ffmpeg: str, output: AnyPath
) -> tuple[str, ...]:
    """The one mux: the joined picture, the sound, and everything else from the source.

    All inputs are put on one clock by hand (`-copyts`), so that nothing depends on what a version of
    FFmpeg takes for the start of a file.
    """
    sound = 0 if parts.sound is None else 1
    last = 1 + sound
    words = [ffmpeg, *GLOBAL, "-copyts", *_shifted(split.start_us), *_input(parts.picture)]
    if parts.sound is not None:
        words += _input(parts.sound)
    words += [*_shifted(-split.zero_us), *_input(parts.source)]
    sounds = 0
    for position, stream in enumerate(plan.streams):
        codec = stream.encoder
        origin = f"{last}:{stream.source}"
        if position == 0 or stream in encoded_sound(plan):
            codec = "copy"
            origin = "0:v:0" if position == 0 else f"1:a:{sounds}"
            sounds += position > 0
            words += [f"-disposition:{position}", stream.disposition or "0"]
        else:
            words += [w for key, value in stream.options for w in (f"-{key}:{position}", value)]
        words += ["-map", origin, f"-c:{position}", codec]
        words += [f"-map_metadata:s:{position}", f"{last}:s:{stream.source}"]
    tag = dict(plan.streams[0].options).get("tag")
    words += ["-tag:0", tag] if tag else []
    words += [*_metadata(plan, last), "-map_chapters", str(last)]
    words += ["-max_muxing_queue_size", str(MUXING_QUEUE_PACKETS)]
    if plan.container == "mp4" and plan.faststart:
        words += ["-movflags", "+faststart"]
    return (*words, "-f", MUXERS[plan.container], "file:" + text_of(output))


def _opened(threads: int) -> list[str]:
    options = input_options(threads).items()
    return [word for key, value in options for word in (f"-{key}", str(value))]


def _input(path: AnyPath) -> list[str]:
    return [*_opened(0), "-i", "file:" + text_of(path)]


def _shifted(by_us: int) -> list[str]:
    return ["-itsoffset", f"{by_us}us"] if by_us else []


def _output_options(plan: EncodePlan, threads: int) -> dict[str, Any]:
    options: dict[str, Any] = {
        "format": MUXERS[plan.container],
        "fps_mode": "passthrough",  # each frame once, at its own time
        "enc_time_base:0": "{}:{}".format(
            *plan.time_base
        ),  # independent of each version's default; 9.0 refuses -1
        "max_muxing_queue_size": MUXING_QUEUE_PACKETS,
        "map_chapters": "0",
    }
    if plan.container == "mp4" and plan.faststart:
        options["movflags"] = "+faststart"
    # What passed a filter has lost its origin: its title, language and flags are named by hand, and
    # naming one stream's means naming all.
    options["disposition:0"] = plan.streams[0].disposition or "0"
    for position, stream in enumerate(plan.streams):
        options[f"map_metadata:s:{position}"] = f"0:s:{stream.source}"
        options[f"c:{position}"] = stream.encoder
        options |= {f"{key}:{position}": value for key, value in stream.options}
    if threads:
        options |= _threads(plan.streams[0], threads)
    return options


def _metadata(plan: EncodePlan, source: int) -> tuple[str, ...]:
    """What is kept of what the film says of itself as a whole."""
    if plan.metadata == "none":
        return ("-map_metadata:g", "-1")
    left_out = PLACE_TAGS if plan.metadata == "no-location" else ()
    emptied = (word for tag in left_out for word in ("-metadata:g", f"{tag}="))
    return ("-map_metadata:g", f"{source}:g", *emptied)


def _threads(video: PlannedStream, threads: int) -> dict[str, Any]:
    match video.encoder:
        case "libx265":
            given = dict(video.options).get("x265-params", "")
            return {"x265-params:0": f"{given}:pools={threads}".lstrip(":")}
        case "libsvtav1":
            given = dict(video.options).get("svtav1-params", "")
            return {"svtav1-params:0": f"{given}:lp={threads}".lstrip(":")}
        case name if name in FORMS and FORMS[name].family != "CPU":
            return {}
        case _:
            return {"threads:0": threads}
