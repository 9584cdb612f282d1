"""How members and strangers reach a node: limits, counters and the ports, no sockets.

Three listening sockets a node: control (members; consensus and requests), bulk (members; chunks of
films, see mesh.transfer) and join (strangers; see mesh.joining).  Every one speaks CURVE; a peer is
what its key proves, never what it says.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final, Protocol

from mesh.ids import NodeId
from mesh.messages import Message

KEY_BYTES: Final = 32

# --- frames (bytes) -----------------------------------------------------------------------------

CONTROL_FRAME_BYTES_MAX: Final = 4 << 20
"""A batch of log entries (1 MiB each at most) with room; larger things travel over bulk."""
CHUNK_BYTES: Final = 1 << 20
"""Chunks of 64 KiB halve the speed, 4 MiB gain nothing (measured on loopback)."""
BULK_HEADER_BYTES_MAX: Final = 64 << 10
BULK_FRAME_BYTES_MAX: Final = CHUNK_BYTES + BULK_HEADER_BYTES_MAX
JOIN_FRAME_BYTES_MAX: Final = 8 << 10
"""What a stranger may make this node hold."""
CURVE_OVERHEAD_BYTES: Final = 64
"""ZMQ_MAXMSGSIZE counts the cipher's overhead: a payload of exactly the limit is not delivered."""


def wire_limit(frame_bytes_max: int) -> int:
    """The ZMQ_MAXMSGSIZE for payloads of `frame_bytes_max`.

    A quarter of slack lets frames that are a little too large arrive, so that they are counted with
    their sender; what is larger still makes libzmq cut the connection before anything is stored.
    """
    return frame_bytes_max + frame_bytes_max // 4 + CURVE_OVERHEAD_BYTES


# --- queues (messages) --------------------------------------------------------------------------

CONTROL_SEND_QUEUE_MAX: Final = 256
"""To one peer; consensus repeats what is dropped, requests are sent again."""
CONTROL_RECEIVE_QUEUE_MAX: Final = 64
"""From one peer inside libzmq, before TCP pushes back: 64 frames of 4 MiB bound its memory."""
INBOX_MAX: Final = 4_096
"""Decoded messages that wait for the node, from all peers."""
INBOX_PER_PEER_MAX: Final = 1_024
"""So that one noisy member cannot crowd out the others."""
JOIN_PENDING_MAX: Final = 10
"""Strangers' frames being answered at once; more are dropped and counted."""
WINDOW_BYTES_MIN: Final = 4 << 20
WINDOW_BYTES_MAX: Final = 16 << 20
"""Chunks on their way in one transfer: below 4 MiB a fast link idles, above 16 nothing is gained."""
ANSWERS_MAX: Final = 2 * WINDOW_BYTES_MAX // CHUNK_BYTES
"""Chunks queued for one transfer: two windows, so that an honest receiver never overflows it."""
REQUESTS_MAX: Final = 64
"""Requests for files of one peer inside libzmq, before TCP pushes back."""
HOSTS_MAX: Final = 8
"""Addresses tried for one peer."""
STRANGERS_MAX: Final = 512
"""Connections of one listener that proved nothing yet.  A handshake takes milliseconds: of a flood of
10,000 a second each has fifty of them before it is hung up on."""
STRANGERS_BYTES_MAX: Final = 64 << 20
"""What all of them together may have sent to one listener: a member's first words and some to spare."""
STRANGERS_LOOK_MS: Final = 100
"""How often that is looked at while there are any: at a gigabit a second they send 12 MB meanwhile."""
BACKLOG_MAX: Final = 512
"""Connections the system holds before they are accepted; libzmq's 100 is small for a flood."""

# --- times (ms) ---------------------------------------------------------------------------------

HANDSHAKE_INTERVAL_MS: Final = 5_000
"""A silent TCP connection is cut after this; libzmq's 30 s hold descriptors six times longer."""
HEARTBEAT_INTERVAL_MS: Final = 1_000
HEARTBEAT_TIMEOUT_MS: Final = 3_000
"""A cut link is noticed after about 4 s (measured); sooner would cut busy machines."""
KEEPALIVE_S: Final = 1
KEEPALIVES_MAX: Final = 3
"""The system asks an idle connection so often, and ends it after so many questions without an answer."""
CONTROL_SILENCE_MS: Final = 2_000
"""The system ends a control connection that acknowledged nothing for so long.  One that was bad waits
for TCP's next try, whose pauses double: after some seconds, longer than a new connection takes."""
CONNECT_TIMEOUT_MS: Final = 1_000
"""For the TCP part of reaching one address: a LAN answers in far less, and a new try sends at once
what the system would repeat after one, three and seven seconds."""
DIAL_TIMEOUT_MS: Final = CONNECT_TIMEOUT_MS + HANDSHAKE_INTERVAL_MS
"""For reaching one address as a whole: connection and proof of both keys."""
DIAL_STAGGER_MS: Final = 200
"""Head start of an address over the next one: order is preference, yet a dead one costs little."""
TEND_INTERVAL_MS: Final = 100
"""How often links look at their connections while one is being dialled."""
TEND_CALM_MS: Final = 500
"""The same while all are up: bounds how late a loss is noticed where nothing is sent."""
REDIAL_MIN_MS: Final = 100
REDIAL_MAX_MS: Final = 1_000
"""Back-off between rounds of dialling: doubles from the first to the second, for ever."""

assert WINDOW_BYTES_MIN % CHUNK_BYTES == WINDOW_BYTES_MAX % CHUNK_BYTES == 0
assert JOIN_FRAME_BYTES_MAX < BULK_HEADER_BYTES_MAX < CHUNK_BYTES < CONTROL_FRAME_BYTES_MAX
assert HEARTBEAT_INTERVAL_MS * 2 < HEARTBEAT_TIMEOUT_MS < HANDSHAKE_INTERVAL_MS
assert TEND_INTERVAL_MS <= REDIAL_MIN_MS < REDIAL_MAX_MS


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A CURVE key pair, raw, 32 bytes each; the secret half never shows in a repr."""

    public: bytes
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.public) != KEY_BYTES or len(self.secret) != KEY_BYTES:
            raise ValueError(f"a CURVE key has {KEY_BYTES} bytes")


@dataclass(frozen=True, slots=True)
class Received:
    """A message and the member whose key proved that it sent it."""

    node: NodeId
    message: Message


@dataclass(frozen=True, slots=True)
class Traffic:
    """Payload frames and bytes of one peer since this node started."""

    frames_in: int = 0
    bytes_in: int = 0
    frames_out: int = 0
    bytes_out: int = 0


@dataclass(frozen=True, slots=True)
class Counters:
    """A snapshot: traffic by peer, and what was refused or dropped, by reason.

    Reasons: `not_member` (a key that is no member's, at the handshake or on an open connection),
    `handshake` (no CURVE, garbage, silence), `malformed`, `oversized`, `unknown_kind`,
    `inbox_full`, `busy` (too many strangers, or too many of their connections), `send_queue_full`, `send_oversized`, `not_allowed`
    (a handle that is not this peer's).
    """

    peers: Mapping[NodeId, Traffic]
    refused: Mapping[str, int]


class ControlTransport(Protocol):
    """Messages between members.  All methods are for the event loop's thread."""

    @property
    def port(self) -> int:
        """The port that is bound, once started; drawn by the system when 0 was asked for."""
        ...

    async def start(self) -> None:
        """Binds and listens.  Raises `InUseError`, or `ConfigurationError` for an address."""
        ...

    async def stop(self) -> None:
        """Closes everything; what was queued is lost."""
        ...

    def set_trust(self, members: Mapping[bytes, NodeId]) -> None:
        """Who may speak: public key (32 bytes) to node id.

        A key that is gone is refused at once, on open connections too; they are then cut, for
        which all peers reconnect within a second.
        """
        ...

    def connect(self, node: NodeId, public_key: bytes, hosts: Sequence[str], port: int) -> None:
        """Keeps a connection to this peer, at the first of these addresses where its key answers.

        Calling again with other addresses moves it only when the present one is not among them, with
        the same ones dials now where it is down: the peer gave a sign of life.
        """
        ...

    def disconnect(self, node: NodeId) -> None:
        """Closes the connection to this peer and forgets its addresses."""
        ...

    def is_connected(self, node: NodeId) -> bool:
        """Whether messages to this peer leave now: its key was proven and the link is up."""
        ...

    def send(self, node: NodeId, message: Message) -> bool:
        """Queues a message without ever waiting; False when it was dropped.

        Dropped is what goes to an unknown or unreachable peer or into a full queue.  True promises
        nothing: a link that breaks loses what was queued.
        """
        ...

    async def receive(self) -> Received:
        """The next message of a member."""
        ...

    def counters(self) -> Counters:
        """A snapshot of what went in and out."""
        ...


JoinHandler = Callable[[bytes, str, bytes], Awaitable[bytes | None]]
"""(public key of the stranger, its address, its frame) → the answer's frame, or None for silence."""


class JoinListener(Protocol):
    """The socket that strangers may speak to."""

    @property
    def port(self) -> int:
        """The port that is bound, once started."""
        ...

    async def start(self) -> None:
        """Binds and listens.  Raises `InUseError` or `ConfigurationError`."""
        ...

    async def stop(self) -> None:
        """Closes the socket."""
        ...

    def counters(self) -> Counters:
        """What was refused, by reason."""
        ...


class JoinCall(Protocol):
    """A stranger's question to a join socket, and its answer."""

    async def __call__(self, host: str, port: int, frame: bytes, timeout_s: float) -> bytes:
        """The answer.  Raises `UnreachableError` when none comes in time."""
        ...


HOST_CHARS_MAX: Final = 253
_HOST_CHARS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")


def is_address(host: str) -> bool:
    """Whether this is a literal IPv4 or IPv6 address (a zone such as `%eth0` included)."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return all(char in _HOST_CHARS for char in host.partition("%")[2])


def is_host(host: str) -> bool:
    """Whether this is an address or a DNS name; addresses come from others and enter URLs."""
    if not 0 < len(host) <= HOST_CHARS_MAX:
        return False
    return is_address(host) or all(char in _HOST_CHARS for char in host)


def is_port(port: int) -> bool:
    """Whether one can connect to this port."""
    return 0 < port < 1 << 16


def endpoint(host: str, port: int) -> str:
    """ZeroMQ's name of a TCP address.  Raises ValueError for what is none."""
    if not is_host(host) or not is_port(port):
        raise ValueError(f"no address: {host[:HOST_CHARS_MAX]!r} port {port}")
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def dial_order(hosts: Sequence[str], last_good: str | None) -> tuple[str, ...]:
    """Addresses worth dialling: the one that answered last, then as given, without repetitions."""
    ordered = [last_good, *hosts] if last_good in hosts and last_good is not None else [*hosts]
    return tuple(host for host in dict.fromkeys(ordered) if is_host(host))[:HOSTS_MAX]
