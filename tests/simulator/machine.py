"""The replicated state machine of a simulated node: a port, and its plainest form."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from zlib import crc32

from mesh.codec import pack, unpack
from mesh.ids import RaftId, node_of
from mesh.log import Entry
from mesh.membership import MemberView


class Machine(Protocol):
    """What the simulator needs of a ledger."""

    @property
    def applied_index(self) -> int: ...

    def apply(self, entries: Sequence[Entry]) -> list[tuple[str, int]]:
        """Applies committed entries; returns the ids that took effect now, and at which index."""
        ...

    def members(self) -> tuple[MemberView, ...]: ...

    def checksum(self) -> str:
        """Equal on all replicas at equal applied index."""
        ...

    def image(self) -> Any:
        """The durable state, as a crash would leave it."""
        ...

    def done(self, command_id: str) -> bool:
        """Whether the command of this id took effect here."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class _Image:
    applied: int
    members: tuple[tuple[str, str], ...]
    ids: tuple[str, ...]
    digest: int


class MemoryMachine:
    """Members and a list of command ids with a rolling digest."""

    def __init__(self, image: _Image | None = None) -> None:
        image = image or _Image(0, (), (), 0)
        self.applied_index = image.applied
        self._members: dict[str, str] = dict(image.members)
        self._ids: dict[str, None] = dict.fromkeys(image.ids)
        self._digest = image.digest

    def apply(self, entries: Sequence[Entry]) -> list[tuple[str, int]]:
        effective: list[tuple[str, int]] = []
        for entry in entries:
            assert entry.index == self.applied_index + 1, "applied once, in order"
            self.applied_index = entry.index
            if entry.kind != "command":
                continue
            command_id, verb, argument = unpack(entry.data)
            if command_id in self._ids:
                continue
            self._ids[command_id] = None
            effective.append((command_id, entry.index))
            self._digest = crc32(entry.data, self._digest)
            if verb == "join":
                self._members[node_of(RaftId(argument))] = argument
            # Late, it must not take out who came back with a new data directory.
            elif verb == "leave" and self._members.get(node_of(RaftId(argument))) == argument:
                del self._members[node_of(RaftId(argument))]
        return effective

    def members(self) -> tuple[MemberView, ...]:
        return tuple(
            MemberView(raft_id=RaftId(raft), role="full")
            for _, raft in sorted(self._members.items())
        )

    def checksum(self) -> str:
        return f"{self._digest:x}/{len(self._ids)}"

    def image(self) -> _Image:
        return _Image(
            self.applied_index, tuple(self._members.items()), tuple(self._ids), self._digest
        )

    def done(self, command_id: str) -> bool:
        return command_id in self._ids

    def close(self) -> None:
        pass


def plain_command(command_id: str, verb: str, argument: str) -> bytes:
    """A command of `MemoryMachine`."""
    return pack((command_id, verb, argument))
