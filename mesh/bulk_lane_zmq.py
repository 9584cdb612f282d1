"""One connection of a transfer: dials, asks, checks, writes, and dials again until all is there."""

import contextlib
import socket as sockets
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import structlog
import zmq

from mesh import clock
from mesh.compression import Expander
from mesh.curve_zmq import Dial, Dialer, Tally, curve_context, dealer
from mesh.digests import DIGEST_BYTES, chunk_digest
from mesh.download import ASK_AGAIN_MIN_MS, GIVE_UP_MS, Download
from mesh.errors import StoppedError, TransferError, UnreachableError, WireError
from mesh.ids import NodeId
from mesh.limits import Limits, LinkRates
from mesh.transfer import (
    BULK,
    BulkMessage,
    BundleAnswer,
    ChunkAnswer,
    ChunkRequest,
    DigestsAnswer,
    HaveAnswer,
    ManifestAnswer,
    Refusal,
    Target,
    Waiting,
    checked,
    error_of,
)
from mesh.transport import (
    ANSWERS_MAX,
    BULK_FRAME_BYTES_MAX,
    BULK_HEADER_BYTES_MAX,
    CHUNK_BYTES,
    REQUESTS_MAX,
    KeyPair,
    dial_order,
    is_address,
)

OnBytes = Callable[[int, int], None]
"""(verified bytes so far, bytes in all); called in a transfer's thread after each chunk."""
ShouldStop = Callable[[], bool]
A = TypeVar("A")

LOOK_MS: Final = 100
"""How often a waiting transfer looks whether it should stop or ask again."""
REDIALS_MAX: Final = 8
"""Rounds of dialling a peer that never answered; one that did is dialled until `GIVE_UP_MS` is over."""
REDIAL_PAUSE_MAX_S: Final = 2.0
IDLE_MS: Final = 5
"""The same where nothing is on its way: others bring the rest, and it is over when they are done."""
DIAL_LOOK_MS: Final = 10
"""How often a dial looks at its clock; what its connections say is heard at once."""
REST_MS: Final = 10_000
"""How long an unused connection stays open: from one chunk of a film to the next."""
RESTING_MAX: Final = 16
"""Connections that may rest at once."""

_log = structlog.get_logger("transfer")


class Gate:
    """The node's limits for what comes in, for all its transfers' threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._limits = Limits()
        self._limited = False

    def change(self, rates: LinkRates) -> None:
        """Other rates from now on."""
        with self._lock:
            self._limits.change(rates, clock.monotonic_ms())
            self._limited = rates != LinkRates()

    def delay_ms(self, peer: NodeId, now_ms: int) -> int:
        """How long until something may be asked of this peer; 0: now."""
        if not self._limited:
            return 0
        with self._lock:
            return self._limits.delay_ms(peer, "down", now_ms)

    def spend(self, peer: NodeId, count: int) -> None:
        """So many bytes were asked of this peer."""
        if self._limited:
            with self._lock:
                self._limits.spend(peer, "down", count)


@dataclass(slots=True)
class _Resting:
    key: bytes
    line: "Line"
    since_ms: int


class Line:
    """An open connection; owned by one thread at a time."""

    def __init__(self, dial: Dial) -> None:
        self.dial = dial
        self.socket = dial.socket
        self.owed = 0
        """Answers that may still come: while any may, the connection serves no other file."""
        self._timeout_ms = -1

    def wait(self, timeout_ms: int) -> list[zmq.Frame] | None:
        """The next message, or None after the time.  Raises `Lost` when the connection is gone."""
        if timeout_ms != self._timeout_ms:
            self.socket.setsockopt(zmq.RCVTIMEO, timeout_ms)
            self._timeout_ms = timeout_ms
        try:
            # Polling socket and monitor together took 16 system calls a chunk.
            frames: list[zmq.Frame] = self.socket.recv_multipart(copy=False)
        except zmq.Again:
            if self.is_down():
                raise Lost from None
            return None
        return frames

    def is_down(self) -> bool:
        """Whether the connection is gone."""
        self.dial.look()
        return self.dial.down

    def close(self) -> None:
        """Closes it."""
        self.dial.close()


class Lost(Exception):  # noqa: N818 - a turn of a lane's own loop, never seen outside
    """The connection broke; dial again."""


class Lines:
    """The connections of a node's transfers: made, resting for the next one, closed."""

    def __init__(self, identity: KeyPair, tally: Tally, io_threads: int) -> None:
        self.tally = tally
        self.gate = Gate()
        self.lock = threading.Lock()
        self._identity = identity
        self._io_threads = io_threads
        self._context = curve_context(io_threads)
        self._resting: list[_Resting] = []
        self._made = 0

    def close(self) -> None:
        """Closes what rests, then the context; every lane is over."""
        self.tidy(clock.monotonic_ms() + REST_MS)
        if not self._context.closed:
            self._context.term()

    def tidy(self, now_ms: int) -> None:
        """Closes those that rested long enough."""
        with self.lock:
            old = [one for one in self._resting if now_ms - one.since_ms >= REST_MS]
            self._resting = [one for one in self._resting if now_ms - one.since_ms < REST_MS]
        for one in old:
            one.line.close()

    def rest(self, key: bytes, line: Line) -> None:
        """Keeps a connection on which nothing is on its way."""
        with self.lock:
            if len(self._resting) < RESTING_MAX:
                self._resting.append(_Resting(key, line, clock.monotonic_ms()))
                return
        line.close()

    def resting(self, key: bytes) -> Line | None:
        """One that rested, still open as far as is known."""
        while True:
            with self.lock:
                found = next((one for one in reversed(self._resting) if one.key == key), None)
                if found is None:
                    return None
                self._resting.remove(found)
            if not found.line.is_down():
                return found.line
            found.line.close()

    def dialer(self, key: bytes, hosts: Sequence[str], port: int, now_ms: int) -> Dialer:
        """A round over a peer's addresses."""
        addresses = dial_order([*_resolved(hosts, port)], None)
        return Dialer(addresses, port, lambda: self._socket(key), now_ms)

    def _socket(self, server_key: bytes) -> zmq.Socket[bytes]:
        socket = dealer(
            self._context,
            self._identity,
            server_key,
            frame_bytes_max=BULK_FRAME_BYTES_MAX,
            send_queue_max=REQUESTS_MAX,
            receive_queue_max=ANSWERS_MAX,
        )
        if self._io_threads > 1:
            # Left alone, libzmq puts all client sockets on one thread.
            with self.lock:
                self._made += 1
                socket.setsockopt(zmq.AFFINITY, 1 << (self._made % self._io_threads))
        return socket


def _resolved(hosts: Sequence[str], port: int) -> Iterator[str]:
    for host in hosts:
        if is_address(host):
            yield host
            continue
        with contextlib.suppress(OSError, UnicodeError):
            for answer in sockets.getaddrinfo(host, port, type=sockets.SOCK_STREAM):
                yield str(answer[4][0])


class Lane:
    """Questions and chunks of one file over one connection at a time."""

    def __init__(
        self,
        lines: Lines,
        *,
        peer: NodeId,
        public_key: bytes,
        hosts: Sequence[str],
        port: int,
        handle: str,
        zstd: bool,
        should_stop: ShouldStop,
    ) -> None:
        self.peer = peer
        self._zstd = zstd
        self._expander = Expander()
        self.bytes_saved = 0
        """What compression kept off the link."""
        self.handle = handle
        self._lines = lines
        self._key = public_key
        self._hosts = hosts
        self._port = port
        self._should_stop = should_stop
        self._line: Line | None = None
        self._rounds = 0
        self._heard_ms: int | None = None

    def close(self) -> None:
        """Lets the connection rest, unless something is still on its way on it."""
        line, self._line = self._line, None
        if line is None:
            return
        if line.owed:
            line.close()
        else:
            self._lines.rest(self._key, line)

    def exchange(self, request: BulkMessage, kind: type[A]) -> tuple[A, bytes]:
        """Asks until an answer of this kind comes; with its payload."""
        begun_ms = clock.monotonic_ms()
        while clock.monotonic_ms() - begun_ms < GIVE_UP_MS:
            with self.connected() as line:
                self.say(line, request)
                asked_ms = clock.monotonic_ms()
                while clock.monotonic_ms() - asked_ms < ASK_AGAIN_MIN_MS:
                    self.check_stop()
                    frames = line.wait(LOOK_MS)
                    answer = self.answer(line, frames) if frames is not None else None
                    if frames is not None and isinstance(answer, kind):
                        return answer, frames[1].bytes if len(frames) > 1 else b""
        raise TransferError(f"node {self.peer} does not answer", "try again later")

    def bring(
        self, download: Download, target: Target, table: bytes, told: Callable[[], None]
    ) -> None:
        """Asks for chunks and writes them until none is missing; `table` judges them, if there is one."""
        while not download.done:
            with self.connected() as line:
                self._talk(line, download, target, table, told)
            if not download.done:
                download.lost(clock.monotonic_ms())

    def _talk(
        self,
        line: Line,
        download: Download,
        target: Target,
        table: bytes,
        told: Callable[[], None],
    ) -> None:
        while not download.done:
            self.check_stop()
            wait_ms = self._ask(line, download)
            frames = line.wait(wait_ms)
            if frames is None:
                continue
            match self.answer(line, frames):
                case ChunkAnswer() as answer:
                    self._chunk(answer, frames[1], download, target, table)
                    told()
                case Waiting():
                    download.alive(clock.monotonic_ms())
                case _:
                    pass  # late, of an exchange that was repeated

    def _ask(self, line: Line, download: Download) -> int:
        """Asks for what window and limit allow; how long to wait then, in ms."""
        now_ms = clock.monotonic_ms()
        gate = self._lines.gate
        download.tick(now_ms)
        while download.may_ask:
            delay_ms = gate.delay_ms(self.peer, now_ms)
            if delay_ms:
                # Held back here, not by the peer.
                if not download.in_flight:
                    download.alive(now_ms)
                return min(delay_ms, LOOK_MS)
            ask = download.ask(now_ms)
            if ask is None:
                break
            gate.spend(self.peer, ask.length)
            request = ChunkRequest(
                handle=self.handle,
                offset=ask.offset,
                length=ask.length,
                check=ask.check,
                zstd=self._zstd,
            )
            self.say(line, request)
        return LOOK_MS if download.in_flight else IDLE_MS

    def _chunk(
        self,
        answer: ChunkAnswer,
        frame: zmq.Frame,
        download: Download,
        target: Target,
        table: bytes,
    ) -> None:
        data = frame.buffer
        self._lines.tally.received(self.peer, len(data))
        if answer.length:
            data = self._expanded(data, answer.length)
        index = answer.offset // download.manifest.chunk_bytes
        at = index * DIGEST_BYTES
        digest = chunk_digest(data)
        intact = digest == answer.digest and (not table or table[at : at + DIGEST_BYTES] == digest)
        if not intact:
            self._lines.tally.refused("bad_digest", self.peer)
        now_ms = clock.monotonic_ms()
        verdict = download.receive(answer.offset, len(data), intact, now_ms)
        if verdict == "write":
            self._rounds, self._heard_ms = 0, now_ms
            target.write(index, data, digest)

    def _expanded(self, data: memoryview, length: int) -> memoryview:
        """What a compressed chunk holds; nothing for nonsense, whose digest is wrong then."""
        try:
            if not self._zstd or not 0 < length <= CHUNK_BYTES:
                raise WireError("bulk: a compressed chunk that nobody asked for")
            plain = self._expander.plain(data, length)
        except WireError:
            return memoryview(b"")
        # The whole was taken off the limit when it was asked for.
        self._lines.gate.spend(self.peer, len(data) - length)
        self.bytes_saved += length - len(data)
        return memoryview(plain)

    # --- the connection ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def connected(self) -> Generator[Line]:
        """The connection, dialled if there is none; one that breaks meanwhile ends the block."""
        if self._line is None:
            self._line = self._lines.resting(self._key) or self._dialled()
        try:
            yield self._line
        except Lost:
            _log.info("transfer interrupted", peer=self.peer)
            self._line.close()
            self._line = None

    def _dialled(self) -> Line:
        while True:
            now_ms = clock.monotonic_ms()
            patient = self._heard_ms is not None and now_ms - self._heard_ms < GIVE_UP_MS
            if self._rounds >= REDIALS_MAX and not patient:
                break
            self._rounds += 1
            dialer = self._lines.dialer(self._key, self._hosts, self._port, now_ms)
            try:
                while not dialer.is_over:
                    self.check_stop()
                    won = dialer.tend(clock.monotonic_ms())
                    if won is not None:
                        self._heard_ms = clock.monotonic_ms()
                        return Line(won[1])
                    dialer.wait(DIAL_LOOK_MS)
            finally:
                dialer.close()
            threading.Event().wait(min(REDIAL_PAUSE_MAX_S, LOOK_MS / 1000 * self._rounds))
        raise UnreachableError(
            f"node {self.peer} does not answer on its bulk port", "check that it runs"
        )

    def say(self, line: Line, message: BulkMessage) -> None:
        """Sends a request; its answer is owed from now on."""
        try:
            line.socket.send(BULK.encode(message), zmq.NOBLOCK)
        except zmq.Again:
            raise Lost from None
        line.owed += 1

    def delay_ms(self) -> int:
        """How long the node's limits forbid to ask for more; 0: not at all."""
        return self._lines.gate.delay_ms(self.peer, clock.monotonic_ms())

    def spend(self, count: int) -> None:
        """So many bytes are asked for."""
        self._lines.gate.spend(self.peer, count)

    def received(self, count: int) -> None:
        """Counts what came."""
        self._lines.tally.received(self.peer, count)
        self._rounds, self._heard_ms = 0, clock.monotonic_ms()

    def refused(self, reason: str) -> None:
        """Counts what came and is not right."""
        self._lines.tally.refused(reason, self.peer)

    def check_stop(self) -> None:
        """Raises `StoppedError` when it was asked to."""
        if self._should_stop():
            raise StoppedError("the transfer was stopped")

    def answer(self, line: Line, frames: list[zmq.Frame]) -> Any:  # noqa: ANN401 - the kind decides the class
        """What came, with as many frames as its kind has; None for nonsense, which is counted."""
        head, *payload = frames
        try:
            if len(head) > BULK_HEADER_BYTES_MAX:
                raise WireError("bulk: an oversized head")
            answer = BULK.decode(head.buffer)
            if isinstance(answer, ManifestAnswer):
                checked(answer.manifest)
        except WireError:
            answer = None
        if not isinstance(answer, Waiting):
            line.owed -= 1
        match answer, payload:
            case Refusal(), []:
                raise error_of(answer)
            case ((ChunkAnswer() | DigestsAnswer() | HaveAnswer() | BundleAnswer()), [_]):
                return answer
            case ((ManifestAnswer() | Waiting()), []):
                return answer
            case _:
                self._lines.tally.refused("malformed", self.peer)
                return None
