"""What a film holds and what becomes of it, in lines for people; `--json` has every field.

The two documents come from the ledger, perhaps written by another version: what is not there is
left out.
"""

from node.cli.faults import Json
from node.cli.show import duration


def probe_lines(probe: Json) -> list[str]:
    """The container, then a line for each stream."""
    head = [str(probe.get("container", ""))]
    if probe.get("duration_ms"):
        head.append(duration(probe["duration_ms"]))
    if probe.get("frames"):
        head.append(f"{probe['frames']} frames")
    return [", ".join(head), *(_stream(one) for one in probe.get("streams", []))]


def plan_lines(plan: Json) -> list[str]:
    """The result's container, a line for each of its streams, and what had to be left out."""
    lines = [str(plan.get("container", ""))]
    for number, stream in enumerate(plan.get("streams", [])):
        encoder = stream.get("encoder", "")
        how = "copied" if encoder == "copy" else f"{encoder}{_options(stream)}"
        shape = f", {_picture(plan)}" if number == 0 and encoder != "copy" else ""
        lines.append(f"{number} {stream.get('kind', '')} from {stream.get('source')}: {how}{shape}")
    filters = [str(one.get("name")) for one in plan.get("filters", [])]
    if filters:
        lines.append(f"filters: {', '.join(filters)}")
    return [*lines, *_pieces(plan), *(f"note: {note}" for note in plan.get("notes", []))]


def _pieces(plan: Json) -> list[str]:
    """In how many chunks the film is made, or why in one piece."""
    if plan.get("why_whole"):
        return [f"in one piece: {plan['why_whole']}"]
    split = plan.get("split") or {}
    chunks = split.get("chunks", [])
    if not chunks:
        return []
    numerator, denominator = split.get("time_base", (0, 1))
    longest = max(chunk.get("span", 0) for chunk in chunks) * numerator / max(1, denominator)
    return [f"in {len(chunks)} chunks of up to {longest:.0f} s, all by FFmpeg {plan.get('ffmpeg')}"]


def _stream(stream: Json) -> str:
    parts = [str(stream.get("codec") or "unknown codec")]
    if stream.get("kind") == "video":
        parts.append(_picture(stream))
        rate, base = stream.get("frame_rate", (0, 1)), stream.get("base_rate", (0, 1))
        if all((*rate, *base)):
            varies = "" if rate == base else " (varies)"
            parts.append(f"{rate[0] / rate[1]:.3f}".rstrip("0").rstrip(".") + f" fps{varies}")
        if stream.get("colour_transfer"):
            parts.append(str(stream["colour_transfer"]))
        if stream.get("rotation"):
            parts.append(f"turned by {stream['rotation']}°")
    if stream.get("kind") == "audio":
        parts.append(f"{stream.get('sample_rate', 0)} Hz")
        parts.append(str(stream.get("channel_layout") or f"{stream.get('channels', 0)} channels"))
    if stream.get("language") not in (None, "", "und"):
        parts.append(str(stream["language"]))
    if stream.get("title"):
        parts.append(f"“{stream['title']}”")
    return f"{stream.get('index')} {stream.get('kind', '')}: {', '.join(filter(None, parts))}"


def _picture(shape: Json) -> str:
    return f"{shape.get('width')}x{shape.get('height')} {shape.get('pixel_format', '')}".strip()


def _options(stream: Json) -> str:
    options = [f"{name} {value}" for name, value in stream.get("options", [])]
    return f" ({', '.join(options)})" if options else ""
