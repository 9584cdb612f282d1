"""Everything that members say to each other on the control connection.

Consensus messages carry `sender` and `to` as consensus identities, so that a message for an older
data directory of the same node is noticed and dropped.  Joining has a vocabulary of its own
(mesh.joining), because strangers speak it.
"""

from dataclasses import dataclass

from mesh.codec import Vocabulary, value
from mesh.ids import RaftId
from mesh.log import Entry

WIRE = Vocabulary("wire")
PROTOCOL_VERSION = 1


@WIRE.kind("raft.vote_request")
@dataclass(frozen=True, slots=True, kw_only=True)
class VoteRequest:
    """A candidate asks for a vote in `term`; with `pre` it only asks whether it could get one."""

    sender: RaftId
    to: RaftId
    term: int
    last_index: int
    last_term: int
    pre: bool
    transfer: bool = False
    """The leader itself asked for this election: voters need not wait until it is silent."""


@WIRE.kind("raft.vote")
@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """Answer to a vote request of the same kind (`pre` or not)."""

    sender: RaftId
    to: RaftId
    term: int
    granted: bool
    pre: bool


@WIRE.kind("raft.append")
@dataclass(frozen=True, slots=True, kw_only=True)
class Append:
    """The leader's entries after (`prev_index`, `prev_term`), and its commit index."""

    sender: RaftId
    to: RaftId
    term: int
    prev_index: int
    prev_term: int
    entries: tuple[Entry, ...]
    commit: int


@WIRE.kind("raft.append_ack")
@dataclass(frozen=True, slots=True, kw_only=True)
class AppendAck:
    """`ok`: everything up to `index` matches and is durable.

    Otherwise `index` is the refused prev_index, and the leader may probe at
    (`hint_index`, `hint_term`), the follower's last entry that can match.
    """

    sender: RaftId
    to: RaftId
    term: int
    ok: bool
    index: int
    hint_index: int = 0
    hint_term: int = 0


@WIRE.kind("raft.heartbeat")
@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """The leader lives; `commit` never exceeds what the receiver is known to hold.

    `round` counts the leader's rounds of confirmation for reads; 0 asks for none.
    """

    sender: RaftId
    to: RaftId
    term: int
    commit: int
    round: int = 0


@WIRE.kind("raft.heartbeat_ack")
@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatAck:
    """A follower lives and follows, as of the heartbeat of this `round`."""

    sender: RaftId
    to: RaftId
    term: int
    round: int = 0


@WIRE.kind("raft.snapshot")
@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotOffer:
    """What the receiver lacks is compacted: it may fetch the snapshot `handle` over the bulk port.

    The snapshot holds everything up to (`base_index`, `base_term`) with the configuration in force
    there; `size` (bytes) and `digest` (hexadecimal) are those of the file.
    """

    sender: RaftId
    to: RaftId
    term: int
    base_index: int
    base_term: int
    configuration: bytes
    size: int
    digest: str
    handle: str


@WIRE.kind("raft.timeout_now")
@dataclass(frozen=True, slots=True, kw_only=True)
class TimeoutNow:
    """The leader hands over: the receiver starts an election at once (dissertation, 3.10)."""

    sender: RaftId
    to: RaftId
    term: int


ConsensusMessage = (
    VoteRequest | Vote | Append | AppendAck | Heartbeat | HeartbeatAck | SnapshotOffer | TimeoutNow
)


@value
@dataclass(frozen=True, slots=True, kw_only=True)
class PeerAddress:
    """Where a member was reached last: members tell each other, so one good address heals a network."""

    node: str
    hosts: tuple[str, ...]
    control_port: int
    bulk_port: int
    join_port: int


@WIRE.kind("request")
@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A call of `method` with a deadline; repeated with the same id until answered."""

    id: str
    method: str
    cause: str
    deadline_ms: int
    body: bytes


@WIRE.kind("response")
@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """Answer to the request of this id: `body`, or `error` with its stable code."""

    id: str
    ok: bool
    body: bytes
    error: str = ""
    what: str = ""
    todo: str = ""


@WIRE.kind("notice")
@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One-way, lossy news (progress): `topic` and MessagePack `body`."""

    topic: str
    body: bytes


@WIRE.kind("hello")
@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """First and then regular word of a member: where it can be reached and how it is.

    Sent to every member every `HELLO_INTERVAL_MS`; silence is what decides over life and death.
    `status` is the sender's public state for the faces (node.status), MessagePack, bounded.
    `members_epoch` lets the older of two replicas notice that it is behind; a higher `epoch` tells
    that others went on without this node after a recovery by force.
    """

    raft_id: RaftId
    mesh: str
    protocol: int
    incarnation: str
    name: str
    hosts: tuple[str, ...]
    control_port: int
    bulk_port: int
    join_port: int
    members_epoch: int
    known: tuple[PeerAddress, ...]
    status: bytes
    epoch: int = 0


HELLO_INTERVAL_MS = 2_000
HELLO_STATUS_BYTES_MAX = 16 << 10
KNOWN_PEERS_MAX = 256

Message = ConsensusMessage | Hello | Request | Response | Notice
