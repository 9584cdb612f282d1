"""The doors where others' bytes come in, each as the node has it behind the cipher; no socket, no disk.

A target raises when something other than a refusal with its code happens, or when what the node
holds for the sender grows beyond its bound.
"""

import contextlib
import itertools
import random
from collections.abc import Callable
from typing import Any

import zmq

from ledger import commands
from ledger.vocabulary import COMMANDS
from mesh.bulk_lane_zmq import Lane
from mesh.bulk_server_zmq import SOURCES_MAX, WAITING_MAX, ZmqBulkServer
from mesh.codec import Vocabulary, unpack
from mesh.curve_zmq import Tally
from mesh.digests import DIGEST_BYTES
from mesh.download import Download
from mesh.errors import (
    DarkStreamError,
    DivergenceError,
    NotAllowedError,
    TransferError,
    UsageError,
    WireError,
)
from mesh.ids import node_id_of
from mesh.join_host import Host, HostView, Invitation
from mesh.joining import JOIN, question_frame, read_answer
from mesh.listener_zmq import Sender
from mesh.messages import WIRE, ConsensusMessage
from mesh.protocol import Role
from mesh.soundness import check_sound
from mesh.transfer import (
    BULK,
    ChunkAnswer,
    Manifest,
    ManifestAnswer,
    Source,
    checked,
    spans_of,
)
from mesh.transport import CHUNK_BYTES
from mesh.trust import NONCE_BYTES, identity_of
from node.work.film_pieces import SLICES
from node.work.leases import WORK
from node.work.limiting import LIMITS
from node.work.progress import PROGRESS
from tests.fuzz.mutation import Mutator, Names, Target, messages_of
from tests.meshwork import key_pair
from tests.scenarios.cluster import Cluster

NODES = ("anna", "bert", "cleo")
NAMES: Names = {
    "to": NODES,
    "sender": NODES,
    "candidate": NODES,
    "handle": ("film", "source/a1", "result/a1", "../x", ""),
    "offset": (0, CHUNK_BYTES, 3 * CHUNK_BYTES, 1),
    "length": (CHUNK_BYTES, 1, 0, 7),
    "chunk_bytes": (CHUNK_BYTES,),
    "size": (0, 1, CHUNK_BYTES, 40 * CHUNK_BYTES, 1 << 40),
    "digest": ("0" * 64, "f" * 64, bytes(DIGEST_BYTES)),
    "raft_id": tuple(f"{name}.00000001" for name in NODES),
    "kind": ("command", "configuration", "empty"),
    "term": (0, 1, 2, 3),
}
MESSAGES_EACH = 12
MAKE_ANEW = 400
"""Inputs after which a state machine is made anew: what one broke must not hide what follows."""


def encoded(vocabulary: Vocabulary, draw: random.Random) -> list[bytes]:
    found: list[bytes] = []
    for message in messages_of(vocabulary, draw, NAMES, MESSAGES_EACH):
        with contextlib.suppress(OverflowError, ValueError, TypeError):
            found.append(vocabulary.encode(message))
    assert len(found) >= len(vocabulary.kinds()), vocabulary.name
    return found


# --- codec ----------------------------------------------------------------------------------------

VOCABULARIES = (WIRE, BULK, JOIN, COMMANDS, commands.ENVELOPES, WORK, PROGRESS, SLICES, LIMITS)


def codec(draw: random.Random) -> tuple[Mutator, Target]:
    """Every vocabulary reads it as a message that is written the same, or refuses it."""
    corpus = [frame for vocabulary in VOCABULARIES for frame in encoded(vocabulary, draw)]

    def target(data: bytes) -> None:
        with contextlib.suppress(WireError):
            unpack(data)
        for vocabulary in VOCABULARIES:
            try:
                message = vocabulary.decode(data)
            except WireError:
                continue
            again = vocabulary.decode(vocabulary.encode(message))
            assert repr(again) == repr(message), message  # NaN is not itself

    return Mutator(corpus, draw), target


# --- chunks: the server's and the receiver's side ---------------------------------------------------


class _Film:
    """`Source` in memory."""

    manifest = Manifest(size=40 * CHUNK_BYTES - 5, digest="0" * 64)

    def read(
        self, offset: int, length: int, *, check: bool = False, at_once: bool = False
    ) -> tuple[bytes, bytes]:
        assert offset >= 0
        assert 0 < length <= CHUNK_BYTES
        assert offset + length <= self.manifest.size
        return b"chunk", bytes(DIGEST_BYTES)

    def digests(self, first: int, count: int) -> bytes:
        assert 0 <= first < self.manifest.chunks
        return bytes(DIGEST_BYTES)

    def there(self) -> bytes:
        return b"\1" * self.manifest.chunks

    def close(self) -> None:
        pass


class _Unbound(ZmqBulkServer):
    """The server without its socket: answers go nowhere."""

    def __init__(self) -> None:
        super().__init__(key_pair(), self._film)
        self.answers = 0
        listener: Any = self._listener
        listener.reply = self._reply
        listener.reply_tracked = self._reply_tracked
        self.taken = zmq.MessageTracker()

    @staticmethod
    def _film(_: object, handle: str) -> Source:
        if handle.startswith("."):
            raise NotAllowedError("not yours")
        return _Film()

    def _reply(self, _: object, frames: list[bytes]) -> bool:
        BULK.decode(frames[0])
        self.answers += 1
        return True

    def _reply_tracked(self, to: object, frames: list[bytes]) -> zmq.MessageTracker:
        self._reply(to, frames)
        return self.taken


def chunk_server(draw: random.Random) -> tuple[Mutator, Target]:
    """Requests of members to the bulk port."""
    server = _Unbound()
    keys = [bytes([number]) * 32 for number in range(3)]
    server.set_trust({key: node_id_of(key) for key in keys})
    senders = [
        Sender(bytes([n]), key, "10.0.0.1") for n, key in enumerate([*keys, keys[0], b"?" * 32])
    ]
    inside: Any = server

    def target(data: bytes) -> None:
        frames = [zmq.Frame(data)] * draw.choice((1, 1, 1, 1, 2))
        inside._on_frames(draw.choice(senders), frames)
        if draw.random() < 0.7:
            inside._tend()
        assert len(inside._open) <= SOURCES_MAX
        assert sum(len(queue.asks) for queue in inside._queues.values()) <= 3 * WAITING_MAX

    return Mutator(encoded(BULK, draw), draw), target


class _Written:
    """Counts what a download would write."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest, self.indexes = manifest, set[int]()

    def write(self, index: int, data: memoryview, digest: bytes) -> None:
        assert 0 <= index < self.manifest.chunks
        assert index not in self.indexes
        assert len(data) == self.manifest.length(index)
        self.indexes.add(index)


def chunk_receiver(draw: random.Random) -> tuple[Mutator, Target]:
    """Answers of a member to a transfer, and manifests that it tells."""
    lines: Any = type("Counted", (), {"tally": Tally("fuzz")})()
    line: Any = type("Owing", (), {"owed": 0})()
    lane: Any = Lane(
        lines,
        peer=node_id_of(bytes(32)),
        public_key=bytes(32),
        hosts=(),
        port=1,
        handle="film",
        should_stop=lambda: False,
        zstd=True,
    )
    payloads = [b"", b"x", bytes(7), bytes(CHUNK_BYTES)]
    made = itertools.count()
    state: list[Any] = []

    def anew() -> None:
        manifest = Manifest(size=7 * CHUNK_BYTES + 7, digest="0" * 64)
        state[:] = [
            Download(manifest, manifest.whole, bytearray(manifest.chunks), 0),
            _Written(manifest),
        ]

    def target(data: bytes) -> None:
        if next(made) % MAKE_ANEW == 0:
            anew()
        download, written = state
        payload = [zmq.Frame(p) for p in draw.choices(payloads, k=draw.choice((0, 1, 1, 1, 2)))]
        while download.ask(0):
            pass
        try:
            answer = lane.answer(line, [zmq.Frame(data), *payload])
            if isinstance(answer, ManifestAnswer):
                manifest = checked(answer.manifest)
                with contextlib.suppress(UsageError):
                    spans_of(manifest, [(0, 1), (manifest.size // 2, manifest.size)])
            if isinstance(answer, ChunkAnswer):
                lane._chunk(answer, payload[0], download, written, b"")
        except TransferError:
            anew()
        except DarkStreamError:
            pass  # a refusal, told as the error that it is
        assert download.bytes_done <= download.bytes_total

    return Mutator(encoded(BULK, draw), draw), target


# --- joining ----------------------------------------------------------------------------------------


def join_endpoint(draw: random.Random) -> tuple[Mutator, Target]:
    """Questions of strangers to a host, and a host's answers to a guest."""
    own, other = identity_of(b"h" * 32), identity_of(b"o" * 32)
    guests = [identity_of(bytes([number]) * 32) for number in range(4)]
    corpus = encoded(JOIN, draw)
    for message in messages_of(JOIN, draw, NAMES, MESSAGES_EACH):
        with contextlib.suppress(WireError, OverflowError, ValueError, TypeError, KeyError):
            corpus.append(question_frame(message, draw.randbytes(16)))
    invitation = Invitation(key=b"k" * 32, uses_left=1_000, expires_at_ms=1 << 40)
    view = HostView(
        fingerprint=b"f" * 32,
        admission="ask",
        invitation=lambda name: invitation if len(name) % 2 else None,
        is_member=lambda key: key == other.public_key,
    )
    made = itertools.count()
    hosts = [Host(own)]

    def target(data: bytes) -> None:
        number = next(made)
        if number % (10 * MAKE_ANEW) == 0:
            hosts[0] = Host(own)
        guest = draw.choice(guests)
        host: Any = hosts[0]
        with contextlib.suppress(WireError):
            step = host.receive(
                guest.public_key,
                f"10.0.{draw.randrange(256)}.{draw.randrange(256)}",
                data,
                view,
                entropy=draw.randbytes(NONCE_BYTES),
                now_ms=number * 50,
                wall_ms=number * 50,
            )
            assert step is not None
        with contextlib.suppress(DarkStreamError):
            read_answer(guest, draw.choice(corpus), data)
        assert len(host._approvals) <= 32
        assert len(host._challenges) <= 4_096
        host.tick(number * 50)

    return Mutator(corpus, draw), target


# --- consensus --------------------------------------------------------------------------------------


def consensus(draw: random.Random) -> tuple[Mutator, Target]:
    """Messages of members to the core: read, judged, answered; a broken promise is told as one."""
    corpus = [
        WIRE.encode(message)
        for message in messages_of(WIRE, draw, NAMES, MESSAGES_EACH)
        if isinstance(message, ConsensusMessage)
    ]
    recorded: list[bytes] = []
    made = itertools.count()
    state: list[Cluster] = []

    def step(cluster: Cluster) -> None:
        """What honest nodes say meanwhile goes on, and is bent later."""
        for name in NODES:
            if cluster.nodes[name].role is Role.LEADER and draw.random() < 0.3:
                cluster.propose(name, "data", "more")
        for message in cluster.take()[:8]:
            recorded.append(WIRE.encode(message))
            cluster.receive(message)

    def anew() -> None:
        cluster = Cluster()
        cluster.mesh(NODES)
        state[:] = [cluster]
        if draw.random() < 0.8:
            cluster.campaign(draw.choice(NODES))
            for _ in range(draw.randrange(12)):
                step(cluster)
        del recorded[:-300]
        corpus[:] = [*corpus[: 12 * MESSAGES_EACH], *recorded]

    anew()
    mutator = Mutator(corpus, draw)

    def target(data: bytes) -> None:
        if next(made) % MAKE_ANEW == 0:
            anew()
        cluster = state[0]
        try:
            message = WIRE.decode(data)
            if not isinstance(message, ConsensusMessage) or message.to not in NODES:
                return
            check_sound(message, cluster.nodes[message.to].term)
        except WireError:
            return
        if message.sender not in NODES:
            return  # each member speaks in its own name alone
        try:
            cluster.now_ms += draw.choice((0, 0, 10, 100, 1_500))
            cluster.receive(message)
            if draw.random() < 0.1:
                cluster.tick(draw.choice(NODES))
            if draw.random() < 0.3:
                step(cluster)
        except DivergenceError:
            anew()
        cluster.messages = cluster.messages[-50:]
        cluster.lines.clear()

    return mutator, target


TARGETS: dict[str, Callable[[random.Random], tuple[Mutator, Target]]] = {
    "codec": codec,
    "chunk_server": chunk_server,
    "chunk_receiver": chunk_receiver,
    "join_endpoint": join_endpoint,
    "consensus": consensus,
}
