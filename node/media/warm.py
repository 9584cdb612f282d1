"""What is said between a node and the Python that forks its children: pure.

A Python around PyAV needs 0.07 to 0.15 s to start, a chunk of a film takes three of them.  One that has
imported all of it (`warm_posix`) forks them instead: the same programs, words, limits and descriptors.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from node.media.child import held_in

MODULES: Final = (
    "node.media.probe_av",
    "node.media.cut_av",
    "node.media.join_av",
    "node.media.likeness_av",
    "node.media.times_av",
)
"""What it has imported; each has a `main(words)` that gives an exit code."""
MESSAGE_BYTES_MAX: Final = 64 << 10
"""A film of 512 chunks, each of them a path; a longer message starts its program anew.  A socket takes 200 KiB."""
HELD_MAX: Final = 32
"""Descriptors beside those for words and end; a film has one."""
COLD: Final = ("-P", "-m")
"""How such a program is started without: `python -P -m MODULE WORDS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One child: its program, its words, its bounds as `launch_posix` takes them, and under which numbers it holds files."""

    module: str
    words: tuple[str, ...]
    nice: int
    memory: int
    size: int
    seconds: int
    held: tuple[int, ...]


def asked_of(
    command: Sequence[str], python: str, bounds: tuple[int, int, int, int]
) -> Asked | None:
    """What a command asks for, if it is a program that is warm; `bounds` are nice, memory, size, seconds."""
    if tuple(command[:3]) != (python, *COLD) or command[3] not in MODULES:
        return None
    held = held_in(command)
    if len(held) > HELD_MAX:
        return None
    nice, memory, size, seconds = bounds
    return Asked(
        module=command[3],
        words=tuple(command[4:]),
        nice=nice,
        memory=memory,
        size=size,
        seconds=seconds,
        held=held,
    )


def to_bytes(asked: Asked) -> bytes:
    """As it travels; too long for `MESSAGE_BYTES_MAX` it must not."""
    return json.dumps(asdict(asked)).encode()


def from_bytes(data: bytes) -> Asked:
    """Reads what `to_bytes` wrote: by the node's own software, of the same files."""
    told = json.loads(data)
    told["words"], told["held"] = tuple(told["words"]), tuple(told["held"])
    return Asked(**told)


def end_of(line: bytes) -> int | None:
    """The exit code that the last line tells, negative for a signal; None where there is none."""
    try:
        return int(line)
    except ValueError:
        return None
