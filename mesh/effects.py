"""What the consensus core asks its driver to do, in order.

The driver's loop, for one batch of inputs (the contract of etcd's Ready, as duties):

1. send every `Send` with `before_sync=True` (append requests of a leader: they may leave early);
2. persist every `Persist` of the batch in one durable write (group commit);
3. send the remaining `Send`s (votes and acknowledgements promise what was persisted);
4. apply every `Commit` in order;
5. tell the core `persisted(index, term)` and `applied(index)`, which may give further effects.

A crash between any two steps is safe.  A failed step 2 or 4 stops the node.
"""

from dataclasses import dataclass

from mesh.ids import RaftId
from mesh.log import Entry, HardState
from mesh.messages import ConsensusMessage, SnapshotOffer


@dataclass(frozen=True, slots=True)
class Persist:
    """Make hard state (None: unchanged) and entries durable; entries replace all from the first one's index."""

    hard_state: HardState | None
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Send:
    """Send a consensus message to `message.to`; it may be lost."""

    message: ConsensusMessage
    before_sync: bool = False


@dataclass(frozen=True, slots=True)
class Commit:
    """These entries are committed: apply them, in order, each exactly once."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class LeaderChanged:
    """This node's view of who leads: None while nobody is known to."""

    term: int
    leader: RaftId | None


@dataclass(frozen=True, slots=True)
class SnapshotNeeded:
    """Leader: what `to` lacks is compacted.

    Make or reuse a snapshot and call `offer_snapshot`, or else `snapshot_unavailable`.
    """

    to: RaftId


@dataclass(frozen=True, slots=True)
class InstallSnapshot:
    """Follower: fetch and verify this snapshot, replace the ledger by it, `restart_from` the log.

    Then call `installed(base)`, or else `install_failed`; until then nothing is appended here.
    """

    offer: SnapshotOffer


@dataclass(frozen=True, slots=True)
class ReadReady:
    """These reads may be served from a ledger that has applied `index`."""

    read_ids: tuple[int, ...]
    index: int


Effect = Persist | Send | Commit | LeaderChanged | SnapshotNeeded | InstallSnapshot | ReadReady
