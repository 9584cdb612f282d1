"""What FFmpeg says on stderr, bounded: the end of it, and counts of the complaints that matter.

FFmpeg runs with `-loglevel level+warning`, so that every line carries its level.  The exit code does
not tell of damage (a half-truncated MKV transcodes with exit 0), these lines do.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal

from node.media.formats import BEGUN

# `cut`: the film ends before it should. `damaged`: something in it cannot be decoded.
# `later`: damaged, behind the film's beginning.
Complaint = Literal[
    "cut", "damaged", "later", "begun", "disk_full", "memory", "encoder", "file_limit"
]
TAIL_BYTES_MAX: Final = 8 << 10
"""What the ledger keeps of it (ledger.commands.TEXT_BYTES_MAX)."""
LINE_BYTES_MAX: Final = 4 << 10
"""Longer lines are judged by their beginning."""

_PATTERNS: Final[tuple[tuple[Complaint, str], ...]] = (
    ("begun", BEGUN),
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
    # Demuxers that find their place again after a loss, and lose frames without another word.
    ("damaged", "invalid as first byte of an EBML number"),
    ("damaged", "EBML number's first byte"),
    ("damaged", "exceeds containing master element"),
    ("damaged", "CRC mismatch"),
    ("damaged", "Packet mismatch"),
    ("damaged", "freeing incomplete packet"),
    ("damaged", "Invalid packet"),
    ("damaged", "Skipping invalid undecodable NALU"),
)
_WRITERS: Final = re.compile(
    r"\[(?:[vas]ost#|out#|enc:|vf#|af#|fc#|Parsed_|lib|mp4 @|mov @|matroska @|nut @|null @|error\]|fatal\])"
)
"""Who speaks at the beginning of lines that are not about what is read."""
_MILD: Final = (
    "mmco: unref short failure",
    "number of reference frames",
    "Missing key frame while searching for timestamp",
    "Multiple frames in a packet",
    "overread, skip",
    "A non-intra slice in an IDR NAL unit",
)
"""Decoders say so of sound films, and show every frame."""
_LEADING: Final = (
    "co located POCs unavailable",
    "Missing reference picture",
    "eference picture missing",
    "illegal short term buffer state",
    "Frame num gap",
    "Could not find ref with POC",
)
"""Said of pictures whose references stand before the first packet: a slice has them in front of its chunk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StderrSummary:
    """`errors` counts lines of level error and worse; `first` holds the first line of each complaint."""

    tail: str = ""
    errors: int = 0
    first: tuple[tuple[Complaint, str], ...] = ()
    first_error: str = ""
    source_error: str = ""
    """The first line of level error about what is read, unless only of references: `reference_error`."""
    reference_error: str = ""
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
        self._first_error = self._source_error = self._reference_error = ""

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
            source_error=self._source_error,
            reference_error=self._reference_error,
            bytes_seen=self._seen,
        )

    def _judge(self, raw: bytes) -> None:
        line = raw.decode("utf-8", "replace").strip()
        if "[error]" in line or "[fatal]" in line or "[panic]" in line:
            self._errors += 1
            self._first_error = self._first_error or line
            self._judge_source(line)
        for complaint, pattern in _PATTERNS:
            if pattern in line:
                self._first.setdefault(complaint, line)
                if complaint == "damaged" and "begun" in self._first:
                    self._first.setdefault("later", line)

    def _judge_source(self, line: str) -> None:
        if _WRITERS.match(line) or any(mild in line for mild in _MILD):
            return
        if any(leading in line for leading in _LEADING):
            self._reference_error = self._reference_error or line
        else:
            self._source_error = self._source_error or line


_PREFIXES: Final = re.compile(r"^(?:\[[^\]]*\]\s*)+")
_STREAM: Final = re.compile(r"\[[a-z]ist#\d+:(\d+)/(\w+) @")
_SPEAKER: Final = re.compile(r"\[([^\]@]+?) @")


def plain(line: str) -> str:
    """A line for people: without addresses and levels, with the stream or the part that it is about.

    `[aist#0:1/aac @ 0x5] [dec:aac @ 0x6] [error] Bad` becomes `stream 1 (aac): Bad`.
    """
    said = _PREFIXES.sub("", line)
    stream, speaker = _STREAM.match(line), _SPEAKER.match(line)
    if stream is not None:
        return f"stream {stream[1]} ({stream[2]}): {said}"
    return said if speaker is None else f"{speaker[1]}: {said}"


def _clip(raw: bytes) -> str:
    # Replacement characters take three bytes: clip what was decoded, so that the ledger takes it.
    text = raw.decode("utf-8", "replace")
    encoded = text.encode("utf-8")
    if len(encoded) <= TAIL_BYTES_MAX:
        return text
    return encoded[-TAIL_BYTES_MAX:].decode("utf-8", "ignore")
