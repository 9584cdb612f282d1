"""Tables and lines for people: rich in a terminal, plain aligned columns when piped."""

import sys
from collections.abc import Sequence

from mesh.limits import rate_text
from node.cli.faults import Json, safe

STATE_STYLES = {
    "done": "green",
    "running": "cyan",
    "verifying": "cyan",
    "publishing": "cyan",
    "failed": "red",
    "cancelled": "yellow",
    "waiting": "yellow",
    "paused": "yellow",
}


COLUMN_CHARS_MIN = 7
"""With its gap; in narrower ones a word is a letter a line, and the terminal's own wrapping reads better."""
NODES_NAMED_MAX = 8
"""More names than this make no line that a person reads."""


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Rows under their headings; what does not fit a terminal is folded, what is piped is never cut."""
    texts = [[safe("" if cell is None else cell) for cell in row] for row in rows]
    if sys.stdout.isatty() and terminal_table(columns, texts):
        return
    widths = [max([len(name), *(len(row[at]) for row in texts)]) for at, name in enumerate(columns)]
    for row in [list(columns), *texts]:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def terminal_table(columns: Sequence[str], texts: Sequence[Sequence[str]]) -> bool:
    """Whether the terminal is wide enough for it."""
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415 - start-up time
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(columns):
        # The first one is what other commands are told: it is copied, so it stays in one piece.
        table.add_column(name, overflow="fold", no_wrap=number == 0)
    for row in texts:
        table.add_row(*(Text(cell, style=STATE_STYLES.get(cell, "")) for cell in row))
    console = Console()
    first = max([len(columns[0]), *(len(row[0]) for row in texts)])
    if console.width < first + COLUMN_CHARS_MIN * (len(columns) - 1):
        return False
    console.print(table)
    return True


def print_pairs(pairs: Sequence[tuple[str, object]]) -> None:
    """Name and value, one a line; empty values are left out."""
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        if value not in (None, "", [], {}):
            print(f"{name.ljust(width)}  {safe(value)}")


def print_block(name: str, lines: Sequence[str]) -> None:
    """A name with several lines behind it, below each other."""
    for number, line in enumerate(lines):
        print(f"{'' if number else name:<13}  {safe(line)}")


def counted(count: int, noun: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def size(count: int) -> str:
    """Bytes as a person reads them."""
    value = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1_000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1_000
    return f"{value:.1f} TB"


def duration(milliseconds: int | float) -> str:
    """A duration as a person reads it."""
    seconds = milliseconds / 1_000
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < 3_600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3_600}:{whole // 60 % 60:02d}:{whole % 60:02d} h"


def moment(milliseconds: int | None) -> str:
    """A moment in the person's time zone."""
    if milliseconds is None:
        return ""
    from datetime import UTC, datetime  # noqa: PLC0415 - start-up time

    return datetime.fromtimestamp(milliseconds / 1_000, UTC).astimezone().strftime("%m-%d %H:%M:%S")


def share_of(progress: Json) -> float | None:
    """How much of the phase is done, 0.0 to 1.0."""
    total = progress.get("total") or 0
    return min(1.0, progress["done"] / total) if total > 0 else None


def progress_text(progress: Json | None) -> str:
    """`encoding 42 %, 118 fps` or `fetching 42 %, 110 MB/s`."""
    if not progress:
        return ""
    share = share_of(progress)
    text = str(progress["phase"]) + (
        f" {share:.0%}".replace("%", " %") if share is not None else ""
    )
    if progress.get("bytes_s"):
        return f"{text}, {rate_text(progress['bytes_s'])}"
    return f"{text}, {progress['fps']:.0f} fps" if progress.get("fps") else text


def fault_text(fault: Json) -> str:
    """`what (on node); todo` of a fault of a job or a path."""
    where = f" (node {fault['node']})" if fault.get("node") else ""
    todo = f"; {fault['todo']}" if fault.get("todo") else ""
    return f"error[{fault['code']}]: {fault['what']}{where}{todo}"


def result_lines(job: Json) -> list[str]:
    """What a person wants to know of a finished film."""
    result = job["result"]
    seconds = result["duration_ms"] / 1_000
    counted = f"frames in {result['frames_in']}, out {result['frames_out']}"
    looks = f"; VMAF {result['vmaf']:.1f} and more" if result.get("vmaf") is not None else ""
    return [
        f"{job['source']} -> {result['output']}",
        f"  {counted}; plays {seconds:.3f} s; {size(result['bytes'])}{looks}",
        f"  {_encoded(job)}; {duration(result['total_ms'])} in all",
    ]


def _encoded(job: Json) -> str:
    """By whom and how; of a film in pieces the result's own attempt only put them together."""
    result = job["result"]
    encoder = f" with {result['encoder']}" if result.get("encoder") else ""
    chunks = [task for task in job.get("tasks", ()) if task["kind"] == "chunk"]
    if not chunks:
        return f"encoded by {result['node']}{encoder} in {duration(result['encode_ms'])}"
    sound = [[a for a in task["attempts"] if not a["fault"]] for task in chunks]
    nodes = sorted({attempts[-1]["node"] for attempts in sound if attempts})
    named = ", ".join(nodes[:NODES_NAMED_MAX])
    more = len(nodes) - NODES_NAMED_MAX
    return (
        f"{len(chunks)} chunks encoded by {named}{f' and {more} more' if more > 0 else ''}{encoder}"
    )
