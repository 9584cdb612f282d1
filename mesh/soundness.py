"""Whether a consensus message can have been said by any node that keeps to the protocol.

The core trusts its members' words as far as Raft does, and asserts what cannot be: one message of a
member gone bad would end each node that takes it.  Here such a message is refused at the door.
"""

from typing import Final

from mesh.errors import WireError
from mesh.membership import Configuration
from mesh.messages import (
    Append,
    AppendAck,
    ConsensusMessage,
    Heartbeat,
    HeartbeatAck,
    SnapshotOffer,
    VoteRequest,
)

NUMBER_MAX: Final = 1 << 62
"""Of terms and indexes: what the log's storage can hold with room to count on."""


TERMS_AHEAD_MAX: Final = 1 << 28
"""How far another's term may be ahead: an election each second for eight years.  One message could
else bring the mesh to its last term, after which nobody is ever elected."""


def check_sound(message: ConsensusMessage, term: int) -> None:
    """Raises `WireError` for a message that no honest node sends to one that is in `term`."""
    if message.term > term + TERMS_AHEAD_MAX:
        raise WireError("a term that no election has come to")
    if not all(0 <= number < NUMBER_MAX for number in (message.term, *_numbers(message))):
        raise WireError("a term or index that cannot be")
    if isinstance(message, Append):
        _check_entries(message)
    elif isinstance(message, SnapshotOffer):
        if message.base_index < 1 or message.base_term > message.term:
            raise WireError("a snapshot of nothing, or of a later term")
        Configuration.decode(message.configuration)


def _numbers(message: ConsensusMessage) -> tuple[int, ...]:  # noqa: PLR0911 - one for each kind
    match message:
        case VoteRequest():
            return message.last_index, message.last_term
        case Append():
            return message.prev_index, message.prev_term, message.commit
        case AppendAck():
            return message.index, message.hint_index, message.hint_term
        case Heartbeat():
            return message.commit, message.round
        case HeartbeatAck():
            return (message.round,)
        case SnapshotOffer():
            return message.base_index, message.base_term, message.size
        case _:
            return ()


def _check_entries(append: Append) -> None:
    index, term = append.prev_index, append.prev_term
    for entry in append.entries:
        index += 1
        if entry.index != index or not term <= entry.term <= append.term:
            raise WireError("entries with a gap, or of terms that do not follow each other")
        term = entry.term
        if entry.kind == "configuration":
            Configuration.decode(entry.data)
    if term > append.term:
        raise WireError("entries of a later term than their leader's")
