"""Reads what FFmpeg writes with `-progress`: blocks of `key=value` lines, each ended by `progress=`.

Names lie: `out_time_ms` carries microseconds, and any value may be `N/A` (FACTS.md, Progress).
"""

from dataclasses import dataclass

LINE_BYTES_MAX = 4 << 10
"""FFmpeg's longest line is under 100 bytes; a longer one is dropped, not kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FFmpegProgress:
    """One block. `speed` is times real time; None where FFmpeg does not know yet."""

    frame: int = 0
    fps: float = 0.0
    out_time_us: int | None = None
    total_size: int | None = None
    dup_frames: int = 0
    drop_frames: int = 0
    speed: float | None = None
    end: bool = False

    @property
    def advance(self) -> tuple[int, int, int]:
        """Grows while FFmpeg works: what stall detection compares."""
        return self.frame, self.out_time_us or 0, self.total_size or 0


class ProgressParser:
    """Feed bytes as they come, in pieces of any size; get the blocks that became complete."""

    def __init__(self) -> None:
        self._rest = b""
        self._fields: dict[str, str] = {}
        self._skipping = False

    def feed(self, data: bytes) -> list[FFmpegProgress]:
        """The blocks that these bytes complete."""
        blocks: list[FFmpegProgress] = []
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if self._skipping:
                self._skipping = False
                continue
            block = self._line(line)
            if block is not None:
                blocks.append(block)
        if len(self._rest) > LINE_BYTES_MAX:
            self._rest, self._skipping = b"", True
        return blocks

    def _line(self, line: bytes) -> FFmpegProgress | None:
        key, separator, value = line.decode("utf-8", "replace").strip().partition("=")
        if not separator or len(line) > LINE_BYTES_MAX:
            return None
        if key != "progress":
            if key in _KEYS:
                self._fields[key] = value.strip()
            return None
        fields, self._fields = self._fields, {}
        return FFmpegProgress(
            frame=_whole(fields.get("frame")) or 0,
            fps=_number(fields.get("fps")) or 0.0,
            out_time_us=_whole(fields.get("out_time_us", fields.get("out_time_ms"))),
            total_size=_whole(fields.get("total_size")),
            dup_frames=_whole(fields.get("dup_frames")) or 0,
            drop_frames=_whole(fields.get("drop_frames")) or 0,
            speed=_number((fields.get("speed") or "").removesuffix("x")),
            end=value.strip() == "end",
        )


_KEYS = frozenset(
    {
        "frame",
        "fps",
        "out_time_us",
        "out_time_ms",
        "total_size",
        "dup_frames",
        "drop_frames",
        "speed",
    }
)
_DIGITS_MAX = 19


def _whole(text: str | None) -> int | None:
    if text is None or len(text) > _DIGITS_MAX:
        return None
    try:
        return int(text)
    except ValueError:
        return None


def _number(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if -1e12 < value < 1e12 else None  # refuses inf and nan, too
