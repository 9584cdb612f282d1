"""What FFmpeg says on stderr, bounded: the end of it, and counts of the complaints that matter.

FFmpeg runs with `-loglevel level+warning`, so that every line carries its level.  The exit code does
not tell of damage (a half-truncated MKV transcodes with exit 0), these lines do.
"""

from dataclasses import dataclass
from typing import Final, Literal

# `cut`: the film ends before it should. `damaged`: something in it cannot be decoded.
Complaint = Literal["cut", "damaged", "disk_full", "memory", "encoder", "file_limit"]
TAIL_BYTES_MAX: Final = 8 << 10
"""What the ledger keeps of it (ledger.commands.TEXT_BYTES_MAX)."""
LINE_BYTES_MAX: Final = 4 << 10
"""Longer lines are judged by their beginning."""

_PATTERNS: Final[tuple[tuple[Complaint, str], ...]] = (
    ("disk_full", "No space left on device"),
    ("disk_full", "Disk quota exceeded"),
    ("file_limit", "File too large"),
    ("memory", "Cannot allocate memory"),
    ("memory", "malloc of size"),
    ("memory", "std::bad_alloc"),
    ("encoder", "Unknown encoder"),
    ("encoder", "Encoder not found"),
    ("encoder", "Error while opening encoder"),
    ("encoder", "Could not open encoder"),
    ("encoder", "Unrecognized option"),
    ("encoder", "No such filter"),
    ("encoder", "Device creation failed"),
    ("encoder", "Cannot load libcuda"),
    ("encoder", "OpenEncodeSessionEx failed"),
    ("encoder", "No device available for encoder"),
    ("encoder", "error while loading shared libraries"),
    ("cut", "File ended prematurely"),
    ("cut", "partial file"),
    ("cut", "moov atom not found"),
    ("damaged", "Error submitting packet to decoder"),
    ("damaged", "Error while decoding stream"),
    ("damaged", "error while decoding MB"),
    ("damaged", "Invalid NAL unit size"),
    ("damaged", "Error splitting the input into NAL units"),
    ("damaged", "concealing"),
    ("damaged", "Packet corrupt"),
    ("damaged", "corrupt input packet"),
    ("damaged", "corrupt decoded frame"),
    ("cut", "Truncating packet"),
    ("cut", "Error during demuxing"),
    ("cut", "Error retrieving a packet from demuxer"),
    ("damaged", "Could not find ref with POC"),
    ("damaged", "Invalid data found when processing input"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StderrSummary:
    """`errors` counts lines of level error and worse; `first` holds the first line of each complaint."""

    tail: str = ""
    errors: int = 0
    first: tuple[tuple[Complaint, str], ...] = ()
    first_error: str = ""
    bytes_seen: int = 0

    def said(self, complaint: Complaint) -> str | None:
        """The first line with this complaint."""
        return next((line for kind, line in self.first if kind == complaint), None)


class StderrLog:
    """Feed bytes as they come; memory stays bounded however much the child prints."""

    def __init__(self) -> None:
        self._tail = bytearray()
        self._line = b""
        self._seen = 0
        self._errors = 0
        self._first: dict[Complaint, str] = {}
        self._first_error = ""

    def feed(self, data: bytes) -> None:
        """Takes the next bytes."""
        self._seen += len(data)
        self._tail += data
        del self._tail[:-TAIL_BYTES_MAX]
        lines = (self._line + data).replace(b"\r", b"\n").split(b"\n")
        self._line = lines.pop()[:LINE_BYTES_MAX]
        for line in lines:
            self._judge(line[:LINE_BYTES_MAX])

    @property
    def bytes_seen(self) -> int:
        """All bytes so far."""
        return self._seen

    def summary(self) -> StderrSummary:
        """What is known by now; the unfinished last line counts."""
        if self._line:
            self._judge(self._line)
            self._line = b""
        return StderrSummary(
            tail=_clip(bytes(self._tail)),
            errors=self._errors,
            first=tuple(self._first.items()),
            first_error=self._first_error,
            bytes_seen=self._seen,
        )

    def _judge(self, raw: bytes) -> None:
        line = raw.decode("utf-8", "replace").strip()
        if "[error]" in line or "[fatal]" in line or "[panic]" in line:
            self._errors += 1
            self._first_error = self._first_error or line
        for complaint, pattern in _PATTERNS:
            if complaint not in self._first and pattern in line:
                self._first[complaint] = line


def _clip(raw: bytes) -> str:
    # Replacement characters take three bytes: clip what was decoded, so that the ledger takes it.
    text = raw.decode("utf-8", "replace")
    encoded = text.encode("utf-8")
    if len(encoded) <= TAIL_BYTES_MAX:
        return text
    return encoded[-TAIL_BYTES_MAX:].decode("utf-8", "ignore")
