"""The packet index of a film's main picture: the contract of a split, and where the film may be cut.

The index is written beside the owner's other work on the job and never leaves it: two hours hold
173,000 packets.  What travels is `CutTable`, the keyframes at which a chunk may begin.
"""

import hashlib
from array import array
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Annotated, Any, Final, Literal

import msgpack
from pydantic import BaseModel, ConfigDict, Field

from node.media.retime import dts_of, reorder_depth

MISSING: Final = -(1 << 63)
"""Stands for a time that the container does not tell."""
KEY: Final = 1
DISCARD: Final = 2
FRESH: Final = 4
"""A keyframe behind which nothing refers to what is stored before it."""
PACKETS_MAX: Final = 8_000_000
"""Thirty-seven hours at 60 frames a second; 200 MB of index. Longer films are done whole."""
CUTS_MAX: Final = 20_000
"""Cuts a second apart of a film of more than five hours; of more keyframes the nearest are left out."""
CUT_GAP_MS: Final = 1_000
"""Intra-only films have a keyframe each frame: nobody cuts finer than this."""
NEAREST_US: Final = 1_000
"""Intermediates are Matroska, whose clock is a millisecond: nearer frames would change places."""
CLOCK_JUMP_S: Final = 10
"""FFmpeg mends larger jumps of a recording's clock (dts_delta_threshold), a contract cannot."""
Ratio = tuple[int, int]


@dataclass(slots=True)
class PacketIndex:
    """All packets of one stream in decode order, as columns; times in `time_base`."""

    time_base: Ratio
    zero_us: int = 0
    """Start of the whole film on its own clock, all streams counted: what FFmpeg calls its start time."""
    pts: "array[int]" = field(default_factory=lambda: array("q"))
    dts: "array[int]" = field(default_factory=lambda: array("q"))
    pos: "array[int]" = field(default_factory=lambda: array("q"))
    """Byte position in the file; -1 where the demuxer does not tell."""
    size: "array[int]" = field(default_factory=lambda: array("q"))
    flags: bytearray = field(default_factory=bytearray)

    def add(
        self,
        *,
        pts: int | None,
        dts: int | None,
        pos: int,
        size: int,
        key: bool,
        discard: bool,
        fresh: bool = False,
    ) -> None:
        """The next packet in decode order."""
        self.pts.append(MISSING if pts is None else pts)
        self.dts.append(MISSING if dts is None else dts)
        self.pos.append(pos)
        self.size.append(size)
        self.flags.append(KEY * key | DISCARD * discard | FRESH * fresh)

    def __len__(self) -> int:
        return len(self.flags)

    def keys(self) -> list[int]:
        """Decode positions of the keyframes."""
        return [at for at, flags in enumerate(self.flags) if flags & KEY]

    def contract(self) -> "array[int]":
        """When each frame is presented: the sorted times of all packets that are not discarded."""
        shown = (
            pts for pts, flags in zip(self.pts, self.flags, strict=True) if not flags & DISCARD
        )
        return array("q", sorted(shown))

    def to_bytes(self) -> bytes:
        """What lies in the index file."""
        document = {
            "version": 1,
            "time_base": list(self.time_base),
            "zero_us": self.zero_us,
            "flags": bytes(self.flags),
            **{name: _column(getattr(self, name)) for name in _COLUMNS},
        }
        packed: bytes | None = msgpack.packb(document)
        assert packed is not None
        return packed


_COLUMNS: Final = ("pts", "dts", "pos", "size")


def index_from_bytes(data: bytes) -> PacketIndex:
    """Reads what `to_bytes` wrote.  Raises `ValueError` for anything else."""
    document: Any = msgpack.unpackb(data)
    if not isinstance(document, dict) or document.get("version") != 1:
        raise ValueError("no packet index")
    index = PacketIndex(
        time_base=(int(document["time_base"][0]), int(document["time_base"][1])),
        zero_us=int(document["zero_us"]),
        flags=bytearray(document["flags"]),
    )
    for name in _COLUMNS:
        column = array("q")
        column.frombytes(document[name])
        if len(column) != len(index):
            raise ValueError("columns of different lengths")
        setattr(index, name, column)
    return index


def _column(values: "array[int]") -> bytes:
    return values.tobytes()


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Cut(_Strict):
    """A keyframe at which a chunk may begin."""

    pts: int
    frames: int
    """Presented before it."""
    last: int
    """When the last of those is presented; for the film's beginning its own time."""
    first: int
    """Decode position from which its chunk is decoded: the keyframe itself where its group is closed, else the one before it."""
    base: int
    """Time of the slice's zero, when a slice begins at `first`; in the film's time base."""
    end: int
    """Decode position behind all that a chunk which ends here needs: the keyframe itself where its group is closed, else the one after it."""
    first_bytes: int
    """Bytes of all packets before `first`."""
    end_bytes: int
    """Bytes of all packets before `end`."""


class CutTable(_Strict):
    """What splitting a film needs to know of its index; `fault` says why it has no use."""

    version: Literal[1] = 1
    fault: str = ""
    time_base: Ratio = (0, 1)
    frames: int = 0
    packets: int = 0
    bytes: int = 0
    start_pts: int = 0
    span_pts: int = 0
    """From the first to the last frame."""
    zero_us: int = 0
    depth: int = 0
    """How far the film's packets are reordered."""
    contract: str = ""
    """BLAKE2b of the time base and all presentation times: the root digest of the contract."""
    cuts: Annotated[tuple[Cut, ...], Field(max_length=CUTS_MAX)] = ()
    """In order; the first is the film's beginning."""


def contract_digest(time_base: Ratio, contract: "array[int]") -> str:
    """The name of a contract: `blake2b:` and 32 hex digits."""
    said = hashlib.blake2b(b"%d/%d" % time_base, digest_size=16)
    said.update(contract.tobytes())
    return f"blake2b:{said.hexdigest()}"


def table_of(index: PacketIndex) -> CutTable:
    """Where the film may be cut, or why nowhere."""
    contract = index.contract()
    fault = _fault_of(index, contract)
    if fault:
        return CutTable(fault=fault)
    depth = reorder_depth(index.pts)
    cuts = _cuts(index, contract, depth)
    return CutTable(
        time_base=index.time_base,
        frames=len(contract),
        packets=len(index),
        bytes=sum(index.size),
        start_pts=contract[0],
        span_pts=contract[-1] - contract[0],
        zero_us=index.zero_us,
        depth=depth,
        contract=contract_digest(index.time_base, contract),
        cuts=tuple(cuts),
    )


def _fault_of(index: PacketIndex, contract: "array[int]") -> str:
    return _shape_fault(index, contract) or _time_fault(index, contract)


def _shape_fault(index: PacketIndex, contract: "array[int]") -> str:
    if not 0 < len(index) <= PACKETS_MAX or len(contract) < 2:
        return f"{len(index)} packets cannot be split"
    if min(index.time_base) <= 0:
        return "its clock has no unit"
    if MISSING in index.pts:
        return "some of its frames tell no time"
    if not index.flags[0] & KEY:
        return "it does not begin with a keyframe"
    return ""


def _time_fault(index: PacketIndex, contract: "array[int]") -> str:
    numerator, denominator = index.time_base
    if any(a == b for a, b in pairwise(sorted(index.pts))):
        return "some of its frames have the same time"
    gaps = [b - a for a, b in pairwise(contract)]
    if min(gaps) * numerator * 1_000_000 < NEAREST_US * denominator:
        return "some of its frames are less than a millisecond apart"
    if max(gaps) * numerator > CLOCK_JUMP_S * denominator:
        return f"its clock jumps by more than {CLOCK_JUMP_S} seconds"
    for pts, flags in zip(index.pts, index.flags, strict=True):
        if flags & DISCARD and contract[0] <= pts <= contract[-1]:
            return "its edit list leaves out something in the middle"
    return ""


def _cuts(index: PacketIndex, contract: "array[int]", depth: int) -> list[Cut]:
    keys = index.keys()
    sums = array("q", accumulate(index.size, initial=0))
    lowest = _lowest_behind(index)
    numerator, denominator = index.time_base
    span_ms = (contract[-1] - contract[0]) * numerator * 1000 // denominator
    gap = max(CUT_GAP_MS, span_ms // (CUTS_MAX // 2)) * denominator // (numerator * 1000)
    cuts: list[Cut] = []
    for number, at in enumerate(keys):
        pts = contract[0] if number == 0 else index.pts[at]
        rank = bisect_left(contract, pts)
        shown = rank < len(contract) and contract[rank] == pts
        if not shown or (cuts and pts - cuts[-1].pts < gap):
            continue
        # A closed group: nothing behind its keyframe refers to or is shown before what lies before it.
        closed = bool(index.flags[at] & FRESH) and lowest[at] >= pts
        end = at if closed else keys[number + 1] if number + 1 < len(keys) else len(index)
        # Every frame that is shown before the cut must lie before `end`, or the chunk would lack it.
        if lowest[end] < pts:
            continue
        first = at if closed else keys[max(0, number - 1)]
        # The two earliest pictures of a slice lie no deeper in it than the reordering reaches.
        early = sorted(index.pts[first : first + depth + 2])
        cuts.append(
            Cut(
                pts=pts,
                frames=rank,
                last=contract[max(0, rank - 1)],
                first=first,
                base=dts_of(early, depth)[0],
                end=end,
                first_bytes=sums[first],
                end_bytes=sums[end],
            )
        )
    return cuts


def _lowest_behind(index: PacketIndex) -> "array[int]":
    """At each decode position, the earliest time of all packets from there on."""
    lowest = array("q", bytes(8 * (len(index) + 1)))
    lowest[-1] = (1 << 63) - 1
    for at in range(len(index) - 1, -1, -1):
        lowest[at] = min(lowest[at + 1], index.pts[at])
    return lowest
