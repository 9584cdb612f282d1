"""From a plan to FFmpeg's exact command line; ffmpeg-python builds the graph."""

from typing import Any, Final

from node.media.child import AnyPath, text_of
from node.media.formats import FORMATS, PROTOCOLS
from node.media.plan import EncodePlan, PlannedStream

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
    plan: EncodePlan, ffmpeg: str, source: AnyPath, output: AnyPath, *, threads: int = 0
) -> tuple[str, ...]:
    """The whole command; `threads` 0 lets FFmpeg take every core."""
    import ffmpeg as graph  # noqa: PLC0415 - 9 MB and 80 ms that an idle node does not need

    film = graph.input("file:" + text_of(source), **input_options(threads))
    picture = film[str(plan.streams[0].source)]
    for step in plan.filters:
        picture = picture.filter(step.name, *step.arguments, **dict(step.options))
    others = [film[str(stream.source)] for stream in plan.streams[1:]]
    options = _output_options(plan, threads)
    made = graph.output(picture, *others, "file:" + text_of(output), **options)
    return (ffmpeg, *GLOBAL, *(str(word) for word in graph.get_args(made)))


def decode_command(ffmpeg: str, path: AnyPath, *, threads: int = 0) -> tuple[str, ...]:
    """Decodes every picture and all sound of a file and writes nothing."""
    opened = [
        word for key, value in input_options(threads).items() for word in (f"-{key}", str(value))
    ]
    return (
        ffmpeg, *GLOBAL, *opened, "-i", "file:" + text_of(path),
        "-map", "0:v:0", "-map", "0:a?", "-fps_mode", "passthrough", "-f", "null", "-",
    )  # fmt: skip


def _output_options(plan: EncodePlan, threads: int) -> dict[str, Any]:
    options: dict[str, Any] = {
        "format": MUXERS[plan.container],
        "fps_mode": "passthrough",  # each frame once, at its own time
        "enc_time_base:0": "{}:{}".format(
            *plan.time_base
        ),  # independent of each version's default; 9.0 refuses -1
        "max_muxing_queue_size": MUXING_QUEUE_PACKETS,
        "map_metadata": "0",
        "map_chapters": "0",
    }
    if plan.container == "mp4" and plan.faststart:
        options["movflags"] = "+faststart"
    for position, stream in enumerate(plan.streams):
        options[f"c:{position}"] = stream.encoder
        options |= {f"{key}:{position}": value for key, value in stream.options}
    if threads:
        options |= _threads(plan.streams[0], threads)
    return options


def _threads(video: PlannedStream, threads: int) -> dict[str, Any]:
    match video.encoder:
        case "libx265":
            given = dict(video.options).get("x265-params", "")
            return {"x265-params:0": f"{given}:pools={threads}".lstrip(":")}
        case "libsvtav1":
            return {"svtav1-params:0": f"lp={threads}"}
        case _:
            return {"threads:0": threads}
