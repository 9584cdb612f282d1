"""A bound socket as every server here has it: CURVE, admission (ZAP) from memory, one owner.

The owner is a thread of its own (`Listener`), which a slow loop does not hold up, or the event loop
itself (`LoopListener`), where a message must be quick.
"""

import asyncio
import errno
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog
import zmq

from mesh import clock
from mesh.callers_zmq import Callers, hang_up
from mesh.curve_zmq import (
    HANDSHAKE_FAILED,
    Tally,
    Wake,
    Watch,
    curve_context,
    is_ready,
    limit,
    monitor_events,
)
from mesh.errors import ConfigurationError, InUseError
from mesh.transport import BACKLOG_MAX, KEY_BYTES, STRANGERS_LOOK_MS, KeyPair, endpoint

Frames = Sequence[bytes | memoryview]
Admit = Callable[[bytes], bool]
"""Whether the holder of this public key (32 bytes) may complete a handshake; answers from memory."""
OUTBOX_MAX: Final = 256
"""Answers handed to a listener's thread and not yet sent; more are dropped."""
RECEIVES_MAX: Final = 64
"""Messages that a thread takes at once, some from each connection that has any: enough that everybody's
are there when the next to be served is chosen."""
MESSAGES_A_TURN_MAX: Final = 64
"""Messages taken in one turn of the loop: a flood shares it with everything else."""
REBIND_RETRY_MS: Final = 5
"""libzmq closes a listener a moment after `unbind` returns."""
REBIND_LOG_MS: Final = 2_000
_ZAP_ENDPOINT: Final = "inproc://zeromq.zap.01"

_log = structlog.get_logger("transport")


class ZapHandler:
    """Answers every handshake of one context from memory, in a thread that no error ends.

    Without a handler libzmq admits every key; each context needs its own.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], domain: bytes, admit: Admit, tally: Tally
    ) -> None:
        self._context = context
        self._domain = domain
        self._admit = admit
        self._tally = tally
        self._wake = Wake(context)
        self._stopping = False
        # A ROUTER has no lockstep as a REP has: after an error the next request is simply the next.
        self._socket = context.socket(zmq.ROUTER)
        self._socket.bind(_ZAP_ENDPOINT)
        self._thread = self._new_thread()

    def start(self) -> None:
        """Starts answering; the handler is bound since it was made, so none slips by."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread and closes its sockets."""
        self._stopping = True
        self._wake.set()
        while self._thread.is_alive():
            self._thread.join()  # an error may have put a successor into its place meanwhile
        self._socket.close(linger=0)
        self._wake.close()

    def _run(self) -> None:
        try:
            self._serve()
        finally:
            # The error itself goes on to threading's hook, which reports it: nothing is swallowed.
            # Without a successor nobody could ever connect again.
            if not self._stopping:
                successor = self._new_thread()
                successor.start()
                self._thread = successor  # only when it lives: `stop` waits while one does

    def _new_thread(self) -> threading.Thread:
        return threading.Thread(target=self._run, name="zap", daemon=True)

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake.inner, zmq.POLLIN)
        while not self._stopping:
            if self._socket in dict(poller.poll()):
                routing, empty, *request = self._socket.recv_multipart()
                self._socket.send_multipart([routing, empty, *self._answer(request)])

    def _answer(self, request: list[bytes]) -> list[bytes]:
        version, sequence, domain, address, _, mechanism, *credentials = request
        key = credentials[0] if len(credentials) == 1 else b""
        known = mechanism == b"CURVE" and domain == self._domain and len(key) == KEY_BYTES
        if known and self._admit(key):
            return [version, sequence, b"200", b"OK", key.hex().encode("ascii"), b""]
        self._tally.refused("not_member", plain_address(address.decode("ascii", "replace")))
        return [version, sequence, b"400", b"no", b"", b""]


def plain_address(address: str) -> str:
    """An address as people write it: IPv4 in its own form also on a dual-stack socket."""
    return address.removeprefix("::ffff:")


@dataclass(frozen=True, slots=True)
class Sender:
    """Where a frame came from: the way back, and the key that was proven."""

    routing: bytes
    key: bytes
    address: str


class _Bound:
    """A bound ROUTER with CURVE and its admission; whoever owns it reads it."""

    def __init__(
        self,
        *,
        name: str,
        identity: KeyPair,
        admit: Admit,
        on_frames: Callable[[Sender, list[zmq.Frame]], None],
        tally: Tally,
        frame_bytes_max: int,
        send_queue_max: int,
        receive_queue_max: int,
        tend: Callable[[], int | None] = lambda: None,
        io_threads: int = 1,
        open_to_all: bool = False,
    ) -> None:
        """`tend` is called in a listener's thread before each wait and says how long, in ms.

        `open_to_all`: who speaks has proven nothing by that, and stays a stranger.
        """
        # A ROUTER whose receive queue holds one message delivers none: the client's routing id fills it.
        assert receive_queue_max > 1, receive_queue_max
        self._name = name
        self._identity = identity
        self._admit = admit
        self._on_frames = on_frames
        self._tally = tally
        self._frame_bytes_max = frame_bytes_max
        self._send_queue_max = send_queue_max
        self._receive_queue_max = receive_queue_max
        self._tend = tend
        self._io_threads = io_threads
        self._open_to_all = open_to_all
        self._callers = Callers()
        self._hung_up: set[int] = set()
        self._failed = self._looked_ms = 0
        self.port = 0
        self._endpoint = ""

    def _open(self, host: str, port: int) -> None:
        """Binds.  Raises `InUseError`, `ConfigurationError`."""
        self.context = curve_context(self._io_threads)
        try:
            self._zap = ZapHandler(
                self.context, self._name.encode("ascii"), self._admit, self._tally
            )
            self._prepare()
            self._socket = self._router()
            self._bind(host, port)
        except BaseException:
            self.context.destroy(linger=0)
            raise
        self._monitor = self._socket.get_monitor_socket(
            HANDSHAKE_FAILED | zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
        )
        self._zap.start()

    def _prepare(self) -> None:
        """What else must be there before the socket is bound."""

    def _close_sockets(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)

    def _router(self) -> zmq.Socket[bytes]:
        socket = self.context.socket(zmq.ROUTER)
        limit(socket, self._frame_bytes_max)
        socket.setsockopt(zmq.BACKLOG, BACKLOG_MAX)
        # Without it a ROUTER drops in silence what a peer does not take.
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.SNDHWM, self._send_queue_max)
        socket.setsockopt(zmq.RCVHWM, self._receive_queue_max)
        # The domain and its enforcement come before bind, or CURVE admits whoever knocks first.
        socket.setsockopt(zmq.ZAP_DOMAIN, self._name.encode("ascii"))
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._identity.secret)
        return socket

    def _bind(self, host: str, port: int) -> None:
        where = f"{host} port {port}"
        try:
            address = f"tcp://*:{port}" if host in {"*", "::", ""} else _bind_endpoint(host, port)
            self._socket.bind(address)
        except ValueError as error:
            raise ConfigurationError(f"cannot listen: {error}", "correct the address") from None
        except zmq.ZMQError as error:
            if error.errno == errno.EADDRINUSE:
                raise InUseError(
                    f"port {port} ({self._name}, on {host}) is in use by another process",
                    "stop that process, or choose another port with --listen ADDR:PORT",
                ) from None
            raise ConfigurationError(
                f"cannot listen on {where} ({self._name}): {error.strerror}",
                "give an address of this machine and a port above 1023",
            ) from None
        bound = self._socket.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(bound, bytes)
        self._endpoint = bound.rstrip(b"\0").decode("ascii")
        self.port = int(self._endpoint.rpartition(":")[2])

    def _look_at_callers(self) -> None:
        """Counts the handshakes that failed, and hangs up on strangers when there are too many."""
        for event, number in monitor_events(self._monitor):
            if event == zmq.EVENT_ACCEPTED:
                self._callers.came(number, self.port)
            elif event == zmq.EVENT_DISCONNECTED:
                host = self._callers.left(number)
                # The failure comes right before, and does not say whose it was.
                failed, self._failed = self._failed > 0, max(0, self._failed - 1)
                if failed and number not in self._hung_up:
                    self._tally.refused("handshake", plain_address(host))
                self._hung_up.discard(number)
            else:
                self._failed += 1
        while (surplus := self._callers.surplus()) is not None:
            self._hang_up(*surplus)

    def _look_at_what_they_send(self) -> None:
        """Hangs up on strangers who send more than all of them may; looks now and then."""
        if self._callers and clock.monotonic_ms() - self._looked_ms >= STRANGERS_LOOK_MS:
            self._looked_ms = clock.monotonic_ms()
            for descriptor, host in self._callers.greedy(self.port):
                self._hang_up(descriptor, host)

    def _hang_up(self, descriptor: int, host: str) -> None:
        hang_up(descriptor, self.port)
        self._hung_up.add(descriptor)
        self._tally.refused("busy", plain_address(host))

    def _receive(self) -> None:
        """Takes one message.  Raises zmq.Again when there is none."""
        frames: list[zmq.Frame] = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
        routing, *payload = frames
        if not payload:
            self._tally.refused("malformed")
            return
        try:
            key = bytes.fromhex(str(payload[-1].get("User-Id")))
            address = plain_address(str(payload[-1].get("Peer-Address")))
            if self._callers and not self._open_to_all:
                self._callers.left(int(payload[-1].get(zmq.SRCFD)))
        except (zmq.ZMQError, ValueError):
            # Cannot be while admission names every client; without a name there is no peer.
            self._tally.refused("not_member")
            return
        self._on_frames(Sender(routing.bytes, key, address), payload)

    def _may_bind_again(self, waited_ms: int) -> bool:
        """Whether the old place is free again and taken; says so when it takes long."""
        try:
            self._socket.bind(self._endpoint)
        except zmq.ZMQError as error:
            if waited_ms % REBIND_LOG_MS == 0 and waited_ms:
                _log.error("cannot listen again", socket=self._name, error=error.strerror)
            return False
        return True


class LoopListener(_Bound):
    """A bound socket that the event loop owns: all methods but `end` are for its thread.

    No thread stands between a message and the loop, which saves two switches of threads and the
    wait for the interpreter's lock with each.  `on_frames` is called on the loop; what it raises
    costs that frame.
    """

    def open(self, host: str, port: int) -> None:
        """Binds and listens.  Raises `InUseError`, `ConfigurationError`."""
        self._loop = asyncio.get_running_loop()
        self._is_closed = False
        self._is_binding = False
        self._looks_again = False
        self._open(host, port)
        self._watches = (
            Watch(self._socket, self._turn),
            Watch(self._monitor, self._look),
        )

    def _look(self, *, again: bool = False) -> None:
        if self._is_closed:
            return
        self._looks_again &= not again
        self._look_at_callers()
        self._look_at_what_they_send()
        if self._callers and not self._looks_again:
            self._looks_again = True
            self._loop.call_later(STRANGERS_LOOK_MS / 1000, partial(self._look, again=True))

    def close(self) -> None:
        """Closes the socket; `end` does the rest."""
        self._is_closed = True
        for watch in self._watches:
            watch.close()
        self._close_sockets()

    def end(self) -> None:
        """After `close`, from any thread: returns when the port is free."""
        self._zap.stop()
        self.context.term()

    def rebind(self) -> None:
        """Cuts every open connection: the admitted come back, the others do not."""
        if not self._is_binding:  # else nobody is connected yet
            self._is_binding = True
            self._socket.unbind(self._endpoint)
            self._bind_again(0)

    def _bind_again(self, waited_ms: int) -> None:
        if self._is_closed:
            return
        # Looking at the socket lets libzmq finish closing the old listener.
        self._turn()
        if self._may_bind_again(waited_ms):
            self._is_binding = False
        else:
            after_ms = waited_ms + REBIND_RETRY_MS
            self._loop.call_later(REBIND_RETRY_MS / 1000, self._bind_again, after_ms)

    def _turn(self) -> None:
        if self._is_closed:
            return
        more = True
        try:
            for _ in range(MESSAGES_A_TURN_MAX):
                if not is_ready(self._socket, zmq.POLLIN):
                    more = False
                    return
                self._receive()
        finally:
            if more:
                # The descriptor tells of news alone: what is left, also after a fault, is fetched.
                self._loop.call_soon(self._turn)


class Listener(_Bound):
    """A bound socket with the one thread that owns it.

    `on_frames` is called in that thread with everything that arrives; it must not raise, and may
    answer with `reply`.  Other threads answer with `post`.
    """

    def open(self, host: str, port: int) -> None:
        """Binds and starts the thread.  Raises `InUseError`, `ConfigurationError`."""
        self._outbox: deque[tuple[bytes, Frames]] = deque()
        self._rebinds = 0
        self._rebound = 0
        self._stopping = False
        self._open(host, port)
        self._start()

    def _prepare(self) -> None:
        self._wake = Wake(self.context)

    def close(self) -> None:
        """Ends the thread and frees the port."""
        self._stopping = True
        self._wake.set()
        while self._thread.is_alive():
            self._thread.join()  # an error may have put a successor into its place meanwhile
        self._zap.stop()
        self._wake.close()
        self.context.term()

    def rebind(self) -> None:
        """Cuts every open connection: the admitted come back, the others do not."""
        self._rebinds += 1
        self._wake.set()

    def wake(self) -> None:
        """Makes the thread call `tend` again."""
        self._wake.set()

    def post(self, to: Sender, frames: Frames) -> bool:
        """Answers from another thread; False when too much waits already."""
        if len(self._outbox) >= OUTBOX_MAX:
            return False
        self._outbox.append((to.routing, frames))
        self._wake.set()
        return True

    def reply(self, to: Sender, frames: Frames) -> bool:
        """Answers from the thread itself; False when the peer is gone or takes nothing any more."""
        return self._send(to.routing, frames) is not None

    def reply_tracked(self, to: Sender, frames: Frames) -> zmq.MessageTracker | None:
        """The same, and what tells when the last frame has left this process; None for False."""
        return self._send(to.routing, frames, track=True)

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        thread.start()
        self._thread = thread  # only when it lives: `close` waits while one does

    def _run(self) -> None:
        try:
            self._loop()
        finally:
            if self._stopping:
                self._close_sockets()
            else:
                # One frame's fault costs that frame; threading's hook reports it.
                self._start()

    def _loop(self) -> None:
        poller = zmq.Poller()
        for socket in (self._socket, self._monitor, self._wake.inner):
            poller.register(socket, zmq.POLLIN)
        while not self._stopping:
            ready = dict(poller.poll(self._wait_ms()))
            self._look_at_what_they_send()
            if self._wake.inner in ready:
                self._wake.clear()
                while self._outbox:
                    self._send(*self._outbox.popleft())
            if self._monitor in ready:
                self._look_at_callers()
            if self._socket in ready:
                self._receive_some()
            if self._rebinds != self._rebound:
                self._rebound = self._rebinds
                self._bind_again()

    def _wait_ms(self) -> int | None:
        wait_ms = self._tend()
        if not self._callers:
            return wait_ms
        return STRANGERS_LOOK_MS if wait_ms is None else min(wait_ms, STRANGERS_LOOK_MS)

    def _receive_some(self) -> None:
        # A few messages a round of polling: answers and rebinding never wait behind a flood.
        for _ in range(RECEIVES_MAX):
            try:
                self._receive()
            except zmq.Again:
                return
            if self._stopping or self._rebinds != self._rebound:
                return

    def _send(
        self, routing: bytes, frames: Frames, *, track: bool = False
    ) -> zmq.MessageTracker | None:
        parts = [routing, *frames]
        try:
            sent = self._socket.send_multipart(parts, zmq.NOBLOCK, copy=False, track=track)
        except zmq.ZMQError:
            self._tally.refused("send_queue_full")
            return None
        return sent if sent is not None else _SENT

    def _bind_again(self) -> None:
        self._socket.unbind(self._endpoint)
        waited_ms = 0
        while not self._stopping and not self._may_bind_again(waited_ms):
            # Polling the socket itself lets libzmq finish closing the old listener.
            self._socket.poll(REBIND_RETRY_MS, zmq.POLLERR)
            waited_ms += REBIND_RETRY_MS


_SENT: Final = zmq.MessageTracker()


def _bind_endpoint(host: str, port: int) -> str:
    # Port 0 means any free one, which is no address to connect to: hence its own case.
    return endpoint(host, port) if port else endpoint(host, 1)[:-1] + "0"
