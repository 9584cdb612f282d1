"""Serves files to members over ZeroMQ: a ROUTER that answers, in a thread and a context of its own."""

import os
from collections import OrderedDict, deque
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import zmq

from mesh import clock
from mesh.compression import Shrinker
from mesh.curve_zmq import Tally
from mesh.errors import DarkStreamError, SourceChangedError, WireError
from mesh.ids import NodeId
from mesh.limits import Limits, LinkRates
from mesh.listener_zmq import Listener, Sender
from mesh.transfer import (
    BULK,
    BUNDLE_FILES_MAX,
    DIGESTS_MAX,
    HANDLE_CHARS_MAX,
    BundleAnswer,
    BundleRequest,
    ChunkAnswer,
    ChunkRequest,
    DigestsAnswer,
    DigestsRequest,
    HaveAnswer,
    HaveRequest,
    ManifestAnswer,
    ManifestRequest,
    Refusal,
    Source,
    SourceFor,
    Waiting,
)
from mesh.transport import (
    ANSWERS_MAX,
    BULK_HEADER_BYTES_MAX,
    CHUNK_BYTES,
    REQUESTS_MAX,
    WINDOW_BYTES_MIN,
    Counters,
    KeyPair,
)

SOURCES_MAX: Final = 64
"""Files held open for peers; the one that rested longest is closed first."""
SOURCE_RECHECK_MS: Final = 5_000
"""How long a permission holds before its owner is asked again."""
WAITING_MAX: Final = 8 * ANSWERS_MAX
"""Requests of one peer that wait for their turn or the limit: the windows of eight transfers."""
UNTAKEN_MAX: Final = 4 * ANSWERS_MAX
"""Chunks that one peer has not taken yet, over all its connections: eight windows.  Its queues inside
libzmq alone would hold two for each of as many connections as it cares to open."""
UNTAKEN_LOOK_MS: Final = 5
"""How soon it is looked whether it took some: it has so many on their way that this costs it nothing."""
BESIDE_OTHERS_MAX: Final = WINDOW_BYTES_MIN // CHUNK_BYTES
"""Chunks on their way to a peer with which another of its connections may begin, when others wait too."""
SERVED_A_TURN_MAX: Final = 4
"""Chunks read before new requests are looked at: what a newcomer waits for."""
WAITING_TOLD_MS: Final = 1_000
"""How often those who wait are told so; a receiver grows impatient after three seconds."""
CORES_PER_IO_THREAD: Final = 4
IO_THREADS_MAX: Final = 4
"""A connection's cipher runs in one I/O thread; more than four fill any link that a node has."""


def io_threads() -> int:
    """How many I/O threads the machine has cores for."""
    return max(1, min(IO_THREADS_MAX, (os.cpu_count() or 1) // CORES_PER_IO_THREAD))


@dataclass(slots=True)
class _Open:
    source: Source
    until_ms: int
    shrinker: Shrinker = field(default_factory=Shrinker)


_Ask = ChunkRequest | BundleRequest
"""What is answered with up to a chunk's bytes, in turn."""


@dataclass(slots=True)
class _Queue:
    """What a peer asked for and has not got, in order; and what it has got and not taken."""

    told_ms: int
    asks: dict[tuple[Sender, _Ask], None] = field(default_factory=dict)
    _untaken: dict[bytes, deque[zmq.MessageTracker]] = field(default_factory=dict)
    _last: bytes = b""

    def sent(self, to: Sender, tracker: zmq.MessageTracker) -> None:
        """An answer left for one of the peer's connections."""
        self._untaken.setdefault(to.routing, deque()).append(tracker)
        self._last = to.routing

    def is_over(self) -> bool:
        """Whether nothing is owed any more; looks at what was taken meanwhile."""
        # Connections take at their own pace, each in order.
        for routing, trackers in tuple(self._untaken.items()):
            while trackers and trackers[0].done:
                trackers.popleft()
            if not trackers:
                del self._untaken[routing]
        return not self.asks and not self._untaken

    def next(self, *, alone: bool) -> tuple[Sender, _Ask] | None:
        """What may be served now; beside other peers only what one connection asks for at a time.

        What this node sends it shares out by connections, not by peers, and so does the network.
        """
        untaken = sum(map(len, self._untaken.values()))
        if untaken >= UNTAKEN_MAX:
            return None
        first = next(iter(self.asks), None)
        if alone or not untaken:
            return first
        same = (ask for ask in self.asks if ask[0].routing == self._last)
        return next(same, first if untaken < BESIDE_OTHERS_MAX else None)


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
        self._limits = Limits()
        self._asked_rates: LinkRates | None = None
        self._queues: dict[NodeId, _Queue] = {}
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
            tend=self._tend,
            io_threads=io_threads(),
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

    def set_rates(self, rates: LinkRates) -> None:
        """How fast to send from now on, also in running transfers; from any thread."""
        self._asked_rates = rates
        if self._running:
            self._listener.wake()

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
        try:
            request = BULK.decode(frames[0].buffer)
        except WireError as error:
            self._refuse_malformed(node, error)
            return
        if isinstance(request, _Ask):
            self._put_by(sender, node, request)
        else:
            self._serve(sender, node, request)

    def _serve(self, sender: Sender, node: NodeId, request: object) -> None:
        try:
            answer = self._answer(node, request)
        except WireError as error:
            self._refuse_malformed(node, error)
            return
        except DarkStreamError as error:
            self._forget(node, getattr(request, "handle", ""))
            self._tally.refused(error.code, node)
            answer = [BULK.encode(Refusal(code=error.code, what=error.what, todo=error.todo))]
        tracker = self._listener.reply_tracked(sender, answer)
        if tracker is not None:
            size = sum(map(len, answer[1:])) or len(answer[0])
            self._tally.sent(node, size)
            self._limits.spend(node, "up", size)
            if node in self._queues:
                self._queues[node].sent(sender, tracker)

    def _refuse_malformed(self, node: NodeId, error: WireError) -> None:
        known = error.code != "unknown_kind"
        self._tally.refused("malformed" if known else "unknown_kind", node)

    def _answer(self, node: NodeId, request: object) -> list[bytes]:
        match request:
            case ChunkRequest():
                return self._chunk(self._opened(node, request.handle), request)
            case HaveRequest(handle=handle):
                return [BULK.encode(HaveAnswer()), self._opened(node, handle).source.there()]
            case BundleRequest():
                return self._bundle(node, request)
            case ManifestRequest(handle=handle):
                source = self._opened(node, handle).source
                return [BULK.encode(ManifestAnswer(manifest=source.manifest))]
            case DigestsRequest(handle=handle, first=first):
                source = self._opened(node, handle).source
                if not 0 <= first < source.manifest.chunks:
                    raise WireError("bulk: digests outside the file")
                table = source.digests(first, DIGESTS_MAX)
                return [BULK.encode(DigestsAnswer(first=first)), table]
            case _:
                raise WireError("bulk: not a request")

    @staticmethod
    def _chunk(held: _Open, request: ChunkRequest) -> list[bytes]:
        offset, length = request.offset, request.length
        if offset < 0 or not 0 < length <= CHUNK_BYTES:
            raise WireError("bulk: a range outside any file")
        size = held.source.manifest.size
        if offset + length > size:
            raise SourceChangedError(f"the file here has {size} bytes", "retry the job")
        data, digest = held.source.read(offset, length, check=request.check)
        small = held.shrinker.shrunk(data) if request.zstd else None
        if small is None:
            return [BULK.encode(ChunkAnswer(offset=offset, digest=digest)), data]
        return [BULK.encode(ChunkAnswer(offset=offset, digest=digest, length=length)), small]

    def _bundle(self, node: NodeId, request: BundleRequest) -> list[bytes]:
        if not 0 < len(request.handles) <= BUNDLE_FILES_MAX:
            raise WireError("bulk: a bundle of no files or of too many")
        files: list[bytes] = []
        lengths: list[int] = []
        room = CHUNK_BYTES
        for handle in request.handles:
            data = self._small(node, handle, room)
            if data is None:
                lengths.append(-1)
                continue
            lengths.append(len(data))
            files.append(data)
            room -= len(data)
        # One frame: copying is cheap, and each frame costs a turn of the thread that frees it.
        head = BundleAnswer(number=request.number, lengths=tuple(lengths))
        return [BULK.encode(head), b"".join(files)]

    def _small(self, node: NodeId, handle: str, room: int) -> bytes | None:
        """A whole file; None for one that has no room or is refused, which is told who asks for it alone."""
        if len(handle) > HANDLE_CHARS_MAX:
            return None
        try:
            with closing(self._source_for(node, handle)) as source:
                size = source.manifest.size
                return source.read(0, size, at_once=True)[0] if size <= room else None
        except DarkStreamError:
            return None

    def _opened(self, node: NodeId, handle: str) -> _Open:
        if len(handle) > HANDLE_CHARS_MAX:
            raise WireError("bulk: a handle that is too long")
        now_ms = clock.monotonic_ms()
        held = self._open.get((node, handle))
        if held is not None and now_ms < held.until_ms:
            self._open.move_to_end((node, handle))
            return held
        self._forget(node, handle)
        while len(self._open) >= SOURCES_MAX:
            self._open.popitem(last=False)[1].source.close()
        made = _Open(self._source_for(node, handle), now_ms + SOURCE_RECHECK_MS)
        self._open[node, handle] = made
        return made

    def _forget(self, node: NodeId, handle: str) -> None:
        held = self._open.pop((node, handle), None)
        if held is not None:
            held.source.close()

    # --- whose turn it is -------------------------------------------------------------------------

    def _put_by(self, sender: Sender, node: NodeId, request: _Ask) -> None:
        queue = self._queues.setdefault(node, _Queue(told_ms=clock.monotonic_ms()))
        if len(queue.asks) >= WAITING_MAX and (sender, request) not in queue.asks:
            self._tally.refused("send_queue_full", node)
            return
        queue.asks[sender, request] = None  # once, though asked again out of impatience

    def _tend(self) -> int | None:
        """Serves waiting peers in turn, a chunk each, whatever the number of their connections.

        Not those whom the limit holds back or who do not take what they got.  The time until that
        may be otherwise.
        """
        now_ms = clock.monotonic_ms()
        if self._asked_rates is not None:
            self._limits.change(self._asked_rates, now_ms)
            self._asked_rates = None
        wait_ms = 0
        for left in reversed(range(SERVED_A_TURN_MAX)):
            for node in [node for node, queue in self._queues.items() if queue.is_over()]:
                del self._queues[node]
            wait_ms, served = self._turn(now_ms)
            if not served or left < served:
                break
        return wait_ms if self._queues else None

    def _turn(self, now_ms: int) -> tuple[int, int]:
        """A chunk for each who may have one; the time until that may be otherwise, and how many got one."""
        served = 0
        wait_ms = WAITING_TOLD_MS
        for node, queue in tuple(self._queues.items()):
            if not queue.asks:
                continue
            chosen = queue.next(alone=len(self._queues) == 1)
            delay_ms = self._limits.delay_ms(node, "up", now_ms)
            if chosen is None:
                delay_ms = max(delay_ms, UNTAKEN_LOOK_MS)
            if chosen is not None and delay_ms == 0 and served < SERVED_A_TURN_MAX:
                served += 1
                self._serve_next(node, queue, chosen)
            elif delay_ms and now_ms - queue.told_ms >= WAITING_TOLD_MS:
                queue.told_ms = now_ms
                for sender in {sender.routing: sender for sender, _ in queue.asks}.values():
                    self._listener.reply(sender, [BULK.encode(Waiting())])
            if queue.asks:
                wait_ms = min(wait_ms, delay_ms)
        return wait_ms, served

    def _serve_next(self, node: NodeId, queue: _Queue, chosen: tuple[Sender, _Ask]) -> None:
        sender, request = chosen
        del queue.asks[chosen]
        # Behind the others: whoever finds tokens first must not be the same each time.
        self._queues[node] = self._queues.pop(node)
        if self._members.get(sender.key) == node:
            self._serve(sender, node, request)
