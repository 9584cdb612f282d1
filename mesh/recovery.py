"""A mesh that one node carries on alone: from a backup, or when its other voters are lost for good."""

from collections.abc import Sequence
from dataclasses import dataclass

from mesh.ids import RaftId
from mesh.log import Base, Entry, HardState
from mesh.membership import Configuration


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What the log of that node holds before it starts: `restart_from(base, ...)`, then `persist`."""

    base: Base
    hard_state: HardState
    entries: tuple[Entry, ...]


def carried_on_alone(
    raft_id: RaftId, *, index: int, term: int, commands: Sequence[bytes]
) -> Recovery:
    """The log of a node that goes on alone from a ledger that is applied to `index` of `term`.

    It alone votes, in a term above the ledger's; the sealed `commands` (which must tell the ledger
    of its new epoch) are committed already.  `raft_id` must be of a data directory that never voted:
    what this node promised in the old one is not known here.
    """
    configuration = Configuration.of([raft_id]).encode()
    entries = tuple(
        Entry(index=number, term=term + 1, kind="command", data=data)
        for number, data in enumerate(commands, index + 1)
    )
    return Recovery(
        base=Base(index=index, term=term, configuration=configuration),
        hard_state=HardState(term=term + 1, vote=raft_id, commit=index + len(entries)),
        entries=entries,
    )
