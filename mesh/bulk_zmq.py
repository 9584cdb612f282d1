"""Files between members over ZeroMQ: a ROUTER that answers, a DEALER for each transfer that asks.

Blocking sockets in threads and a context of its own: an event loop costs a third of the speed, and
a ping beside a transfer on the same connection waits for its chunks.
"""

import contextlib
import socket as sockets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import structlog
import zmq
from blake3 import blake3

from mesh import clock
from mesh.curve_zmq import Dial, Dialer, Tally, curve_context, dealer
from mesh.errors import (
    DarkStreamError,
    SourceChangedError,
    StoppedError,
    TransferError,
    UnreachableError,
    WireError,
)
from mesh.ids import NodeId
from mesh.listener_zmq import Listener, Sender
from mesh.transfer import (
    BULK,
    GIVE_UP_MS,
    HANDLE_CHARS_MAX,
    WINDOW_BYTES_MAX,
    BulkMessage,
    ChunkAnswer,
    ChunkRequest,
    Download,
    Manifest,
    ManifestAnswer,
    ManifestRequest,
    Refusal,
    Source,
    SourceFor,
    Target,
    checked,
    error_of,
)
from mesh.transport import (
    BULK_FRAME_BYTES_MAX,
    BULK_HEADER_BYTES_MAX,
    CHUNK_BYTES,
    Counters,
    KeyPair,
    dial_order,
    is_address,
)

OnBytes = Callable[[int, int], None]
"""(verified bytes so far, bytes in all); called in the transfer's thread after each chunk."""
ShouldStop = Callable[[], bool]

ANSWERS_MAX: Final = 2 * WINDOW_BYTES_MAX // CHUNK_BYTES
"""Chunks queued for one peer: two windows, so that an honest one never overflows it."""
REQUESTS_MAX: Final = 64
"""Requests of one peer inside libzmq, before TCP pushes back."""
SOURCES_MAX: Final = 64
"""Files held open for peers; the one that rested longest is closed first."""
SOURCE_RECHECK_MS: Final = 5_000
"""How long a permission holds before its owner is asked again."""
LOOK_MS: Final = 100
"""How often a waiting transfer looks whether it should stop or ask again."""
REDIALS_MAX: Final = 8
"""Rounds of dialling within one transfer without a chunk in between."""

_log = structlog.get_logger("transfer")


# --- the sender ---------------------------------------------------------------------------------


@dataclass(slots=True)
class _Open:
    source: Source
    until_ms: int


class ZmqBulkServer:
    """Serves files by handle to the members whom the owner of the handle lets have them."""

    def __init__(
        self, identity: KeyPair, source_for: SourceFor, *, host: str = "*", port: int = 0
    ) -> None:
        self._source_for = source_for
        self._host = host
        self._asked_port = port
        self._tally = Tally("bulk")
        self._members: Mapping[bytes, NodeId] = MappingProxyType({})
        self._open: OrderedDict[tuple[NodeId, str], _Open] = OrderedDict()
        self._running = False
        self._listener = Listener(
            name="bulk",
            identity=identity,
            admit=lambda key: key in self._members,
            on_frames=self._on_frames,
            tally=self._tally,
            frame_bytes_max=BULK_HEADER_BYTES_MAX,
            send_queue_max=ANSWERS_MAX,
            receive_queue_max=REQUESTS_MAX,
        )

    @property
    def port(self) -> int:
        """The bound port."""
        return self._listener.port

    def start(self) -> None:
        """Binds and serves in a thread.  Raises `InUseError`, `ConfigurationError`."""
        self._listener.open(self._host, self._asked_port)
        self._running = True

    def stop(self) -> None:
        """Ends the thread (waits for the chunk it reads) and closes every file."""
        if not self._running:
            return
        self._running = False
        self._listener.close()
        while self._open:
            self._open.popitem()[1].source.close()

    def set_trust(self, members: Mapping[bytes, NodeId]) -> None:
        """Who may ask; cuts the connections of those who no longer may."""
        revoked = self._members.keys() - members.keys()
        self._members = MappingProxyType(dict(members))
        if revoked and self._running:
            self._listener.rebind()

    def counters(self) -> Counters:
        """Chunk bytes out by peer, and what was refused."""
        return self._tally.snapshot()

    # --- the listener's thread ------------------------------------------------------------------

    def _on_frames(self, sender: Sender, frames: list[zmq.Frame]) -> None:
        node = self._members.get(sender.key)
        if node is None:
            self._tally.refused("not_member", sender.address)
            return
        if len(frames) != 1:
            self._tally.refused("malformed", node)
            return
        if len(frames[0]) > BULK_HEADER_BYTES_MAX:
            self._tally.refused("oversized", node)
            return
        self._tally.received(node, len(frames[0]))
        request: object = None
        try:
            request = BULK.decode(frames[0].buffer)
            answer = self._answer(node, request)
        except WireError as error:
            self._tally.refused(
                "unknown_kind" if error.code == "unknown_kind" else "malformed", node
            )
            return
        except DarkStreamError as error:
            self._forget(node, getattr(request, "handle", ""))
            self._tally.refused(error.code, node)
            answer = [BULK.encode(Refusal(code=error.code, what=error.what, todo=error.todo))]
        if self._listener.reply(sender, answer):
            self._tally.sent(node, len(answer[-1]))

    def _answer(self, node: NodeId, request: object) -> list[bytes]:
        match request:
            case ManifestRequest(handle=handle):
                return [BULK.encode(ManifestAnswer(manifest=self._source(node, handle).manifest))]
            case ChunkRequest(handle=handle, offset=offset, length=length):
                source = self._source(node, handle)
                size = source.manifest.size
                if offset < 0 or not 0 < length <= CHUNK_BYTES or offset + length > size:
                    raise WireError("bulk: a range outside the file")
                data = source.read(offset, length)
                head = ChunkAnswer(offset=offset, digest=blake3(data).digest())
                return [BULK.encode(head), data]
            case _:
                raise WireError("bulk: not a request")

    def _source(self, node: NodeId, handle: str) -> Source:
        if len(handle) > HANDLE_CHARS_MAX:
            raise WireError("bulk: a handle that is too long")
        now_ms = clock.monotonic_ms()
        held = self._open.get((node, handle))
        if held is not None and now_ms < held.until_ms:
            self._open.move_to_end((node, handle))
            return held.source
        self._forget(node, handle)
        while len(self._open) >= SOURCES_MAX:
            self._open.popitem(last=False)[1].source.close()
        source = self._source_for(node, handle)
        self._open[node, handle] = _Open(source, now_ms + SOURCE_RECHECK_MS)
        return source

    def _forget(self, node: NodeId, handle: str) -> None:
        held = self._open.pop((node, handle), None)
        if held is not None:
            held.source.close()


# --- the receiver -------------------------------------------------------------------------------


class ZmqBulkClient:
    """Fetches files from members; `fetch` blocks and runs in a thread, several at once."""

    def __init__(self, identity: KeyPair) -> None:
        self._identity = identity
        self._context = curve_context()
        self._tally = Tally("bulk-client")
        self._lock = threading.Lock()
        self._closing = False
        self._running = 0

    def close(self) -> None:
        """Makes running transfers raise `StoppedError`, and frees everything once they have."""
        with self._lock:
            self._closing = True
            idle = self._running == 0
        if idle and not self._context.closed:
            self._context.term()

    def counters(self) -> Counters:
        """Chunk bytes in by peer, and what was refused."""
        return self._tally.snapshot()

    def fetch(
        self,
        *,
        peer: NodeId,
        public_key: bytes,
        hosts: Sequence[str],
        port: int,
        handle: str,
        target: Target,
        expected: Manifest | None = None,
        on_progress: OnBytes = lambda done, size: None,
        should_stop: ShouldStop = lambda: False,
    ) -> Manifest:
        """Brings the file behind a handle into `target`, verified whole.

        Goes on with what `target` has, over lost connections, at whichever address answers.
        `expected`: its content must be this one's.  Raises `UnreachableError`, `NotAllowedError`,
        `SourceChangedError`, `TransferError`, `DiskFullError`, `StorageError`, and `StoppedError`
        when asked to stop; but for a digest that is wrong, what is there stays for another try.
        """
        with self._lock:
            if self._closing:
                raise StoppedError("the node is stopping")
            self._running += 1
        try:
            transfer = _Transfer(
                dial=lambda now_ms: self._dialer(public_key, hosts, port, now_ms),
                peer=peer,
                handle=handle,
                target=target,
                expected=expected,
                tally=self._tally,
                on_progress=on_progress,
                should_stop=lambda: self._is_closing() or should_stop(),
            )
            with contextlib.closing(target):
                return transfer.run()
        finally:
            with self._lock:
                self._running -= 1
                last = self._running == 0 and self._is_closing()
            if last:
                self._context.term()

    def _is_closing(self) -> bool:
        return self._closing

    def _dialer(self, key: bytes, hosts: Sequence[str], port: int, now_ms: int) -> Dialer:
        addresses = dial_order([*_resolved(hosts, port)], None)
        return Dialer(addresses, port, lambda: self._socket(key), now_ms)

    def _socket(self, server_key: bytes) -> zmq.Socket[bytes]:
        return dealer(
            self._context,
            self._identity,
            server_key,
            frame_bytes_max=BULK_FRAME_BYTES_MAX,
            send_queue_max=REQUESTS_MAX,
            receive_queue_max=ANSWERS_MAX,
        )


def _resolved(hosts: Sequence[str], port: int) -> Iterator[str]:
    for host in hosts:
        if is_address(host):
            yield host
            continue
        with contextlib.suppress(OSError, UnicodeError):
            for answer in sockets.getaddrinfo(host, port, type=sockets.SOCK_STREAM):
                yield str(answer[4][0])


class _Lost(Exception):  # noqa: N818 - a turn of the transfer's own loop, never seen outside
    """The connection broke; dial again."""


class _Transfer:
    """One fetch: dials, asks, checks, writes, and dials again, until all is there."""

    def __init__(
        self,
        *,
        dial: Callable[[int], Dialer],
        peer: NodeId,
        handle: str,
        target: Target,
        expected: Manifest | None,
        tally: Tally,
        on_progress: OnBytes,
        should_stop: ShouldStop,
    ) -> None:
        self._dial = dial
        self._peer = peer
        self._handle = handle
        self._target = target
        self._expected = expected
        self._tally = tally
        self._on_progress = on_progress
        self._should_stop = should_stop
        self._download: Download | None = None
        self._rounds = 0

    def run(self) -> Manifest:
        while self._download is None or not self._download.done:
            connection = self._connect()
            try:
                self._talk(connection)
            except _Lost:
                _log.info("transfer interrupted", peer=self._peer)
            finally:
                connection.close()
            if self._download is not None:
                self._download.lost(clock.monotonic_ms())
        self._target.finish()
        return self._download.manifest

    def _connect(self) -> Dial:
        while self._rounds < REDIALS_MAX:
            self._rounds += 1
            dialer = self._dial(clock.monotonic_ms())
            pause = threading.Event()
            try:
                while not dialer.is_over:
                    self._check_stop()
                    won = dialer.tend(clock.monotonic_ms())
                    if won is not None:
                        return won[1]
                    pause.wait(0.01)
            finally:
                dialer.close()
            pause.wait(LOOK_MS / 1000 * self._rounds)
        raise UnreachableError(
            f"node {self._peer} does not answer on its bulk port", "check that it runs"
        )

    def _talk(self, connection: Dial) -> None:
        poller = zmq.Poller()
        poller.register(connection.socket, zmq.POLLIN)
        poller.register(connection.monitor, zmq.POLLIN)
        if self._download is None:
            self._say(connection, ManifestRequest(handle=self._handle))
        begun_ms = clock.monotonic_ms()
        while self._download is None or not self._download.done:
            self._check_stop()
            now_ms = clock.monotonic_ms()
            if self._download is not None:
                for ask in self._download.tick(now_ms):
                    self._say(
                        connection,
                        ChunkRequest(handle=self._handle, offset=ask.offset, length=ask.length),
                    )
                if self._download.done:
                    return
            elif now_ms - begun_ms > GIVE_UP_MS:
                raise TransferError(f"node {self._peer} does not answer", "try again later")
            ready = dict(poller.poll(LOOK_MS))
            if connection.socket in ready:
                self._take(connection.socket.recv_multipart(copy=False))
            elif connection.monitor in ready:
                connection.look()
                if connection.down:
                    raise _Lost

    def _say(self, connection: Dial, message: BulkMessage) -> None:
        try:
            connection.socket.send(BULK.encode(message), zmq.NOBLOCK)
        except zmq.Again:
            raise _Lost from None

    def _check_stop(self) -> None:
        if self._should_stop():
            raise StoppedError("the transfer was stopped")

    # --- answers --------------------------------------------------------------------------------

    def _take(self, frames: list[zmq.Frame]) -> None:
        head, *payload = frames
        try:
            answer = self._decoded(head)
            match answer, payload:
                case ManifestAnswer(manifest=manifest), []:
                    self._begin(checked(manifest))
                case ChunkAnswer(), [data]:
                    self._chunk(answer, data)
                case Refusal(), []:
                    raise error_of(answer)
                case _:
                    raise WireError("bulk: not an answer")
        except WireError:
            self._tally.refused("malformed", self._peer)

    def _decoded(self, head: zmq.Frame) -> Any:  # noqa: ANN401 - the kind decides the class
        if len(head) > BULK_HEADER_BYTES_MAX:
            raise WireError("bulk: an oversized head")
        return BULK.decode(head.buffer)

    def _begin(self, manifest: Manifest) -> None:
        if self._download is not None:
            return
        if self._expected is not None and not manifest.same_content(self._expected):
            raise SourceChangedError(
                f"node {self._peer} has another file than the one expected", "retry the job"
            )
        have = self._target.begin(manifest)
        self._download = Download(manifest, have, clock.monotonic_ms())
        self._on_progress(self._download.bytes_done, manifest.size)

    def _chunk(self, answer: ChunkAnswer, frame: zmq.Frame) -> None:
        if self._download is None:
            raise WireError("bulk: a chunk before the manifest")
        data = frame.buffer
        self._tally.received(self._peer, len(data))
        intact = blake3(data).digest() == answer.digest
        if not intact:
            self._tally.refused("bad_digest", self._peer)
        verdict = self._download.receive(answer.offset, len(data), intact, clock.monotonic_ms())
        if verdict == "write":
            self._rounds = 0
            index = answer.offset // self._download.manifest.chunk_bytes
            self._target.write(index, data, answer.digest)
            self._on_progress(self._download.bytes_done, self._download.manifest.size)
