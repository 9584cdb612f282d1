"""Who makes a film in pieces, and of which tasks it consists: pure, from the ledger's rows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter

from ledger.commands import PieceSpec
from ledger.device_slots import from_text
from ledger.jobs import Member, Node, can_do
from node.media.command import encoded_sound
from node.media.encoders import FORMS
from node.media.plan import EncodePlan
from node.media.split import SPLIT_JSON_BYTES_MAX, SplitPlan

PLAN_JSON_BYTES_MAX = SPLIT_JSON_BYTES_MAX + (256 << 10)
"""The chunks, and the plan of the whole film with all its streams."""


class JobPlan(EncodePlan):
    """What the ledger keeps of planning: the plan of the whole film, and its pieces or why it has none."""

    why_whole: str = ""
    split: SplitPlan | None = None
    ffmpeg: str = ""
    """The build of FFmpeg that makes all chunks."""


_PLAN = TypeAdapter(JobPlan)


def job_plan_from_json(text: str) -> JobPlan:
    """Reads what `to_json` wrote.  Raises `ValueError` for anything else."""
    if len(text) > PLAN_JSON_BYTES_MAX:
        raise ValueError("a plan of this size is none")
    return _PLAN.validate_json(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Nodes whose chunks fit together: one encoder of one build of FFmpeg."""

    encoder: str
    ffmpeg: str
    speeds: tuple[float, ...]
    """Of each slot, relative to the others."""

    @property
    def need(self) -> str:
        """As `PieceSpec.needs` names it."""
        return f"{self.encoder}@{self.ffmpeg}"


def choose_group(
    nodes: Iterable[Node],
    members: Iterable[Member],
    needs: Sequence[str],
    measured: Mapping[str, float] | None = None,
) -> Group | None:
    """The strongest group for an encoder of `needs`, whose earlier names are better; None without any.

    `measured` is how fast nodes were lately with this profile.  A slot of a node that made nothing yet
    is as fast as its processors, by what the measured ones did with theirs.
    """
    measured = measured or {}
    working = {m.node for m in members if m.state == "active" and m.role != "witness"}
    able = [node for node in nodes if node.node in working and node.slots > 0 and node.ffmpeg]
    known = [measured[n.node] * n.slots / max(1, n.cpus) for n in able if measured.get(n.node)]
    a_cpu = sum(known) / len(known) if known else 1.0
    for encoder in needs:
        groups: dict[str, list[float]] = {}
        for node in able:
            if can_do((encoder,), node.encoders, node.ffmpeg):
                speed = measured.get(node.node) or a_cpu * max(1, node.cpus) / node.slots
                groups.setdefault(node.ffmpeg, []).extend([speed] * node.slots)
        if groups:
            ffmpeg = max(sorted(groups), key=lambda name: sum(groups[name]))
            return Group(encoder=encoder, ffmpeg=ffmpeg, speeds=tuple(groups[ffmpeg]))
    return None


def chips_of(nodes: Iterable[Node], members: Iterable[Member], needs: Sequence[str]) -> str:
    """The chip that comes before the processor in what the profile wants, where a node has one; else "".

    Only what software encoders make was proven to fit together, so a chip makes its film whole.
    """
    working = {m.node for m in members if m.state == "active" and m.role != "witness"}
    there = {e for node in nodes if node.node in working for e in _encoders_of(node)}
    for name in needs:
        if FORMS[name].family == "CPU":
            return ""
        if name in there:
            return name
    return ""


def _encoders_of(node: Node) -> Iterable[str]:
    """Those that a slot is left for by its person."""
    devices = from_text(node.device_slots)
    if not devices:
        return node.encoders if node.slots > 0 else ()
    return [name for device in devices if device.slots > 0 for name in device.encoders]


def joinable(needs: Sequence[str]) -> tuple[str, ...]:
    """Encoders whose chunks fit together, whichever node made them."""
    return tuple(name for name in needs if FORMS[name].family == "CPU")


def tasks_of(job: str, plan: EncodePlan, split: SplitPlan, group: Group) -> tuple[PieceSpec, ...]:
    """The tasks of a film in pieces: the sound first, because it is one long run, the assembly last."""
    pixels = plan.width * plan.height
    sound = [PieceSpec(id=f"{job}-audio", kind="audio", needs=(), cost=1)]
    chunks = [
        PieceSpec(
            id=f"{job}-{chunk.number}",
            kind="chunk",
            needs=(group.need,),
            cost=chunk.frames * pixels,
        )
        for chunk in split.chunks
    ]
    end = PieceSpec(id=f"{job}-film", kind="assemble", needs=(), cost=1)
    return (*(sound if encoded_sound(plan) else ()), *chunks, end)


def number_of(task: str) -> int:
    """The number of a chunk, from its task's id.  Raises `ValueError` for another's."""
    return int(task.rpartition("-")[2])
