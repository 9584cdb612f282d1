"""What every ZeroMQ adapter here stands on: socket options, dialling, waking, counting.

With mesh.listener_zmq the only files of this suffix that others of it may import; they know no
message.
"""

import asyncio
import selectors
import socket as sockets
import struct
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

import structlog
import zmq

from mesh import clock
from mesh.ids import NodeId
from mesh.transport import (
    CONNECT_TIMEOUT_MS,
    DIAL_STAGGER_MS,
    DIAL_TIMEOUT_MS,
    HANDSHAKE_INTERVAL_MS,
    HEARTBEAT_INTERVAL_MS,
    HEARTBEAT_TIMEOUT_MS,
    KEEPALIVE_S,
    KEEPALIVES_MAX,
    Counters,
    KeyPair,
    Traffic,
    endpoint,
    is_host,
    is_port,
    wire_limit,
)

LOG_INTERVAL_MS: Final = 60_000
"""A refusal is logged once per reason, source and minute; the counters hold the rest."""
SOURCES_MAX: Final = 1_024
"""Sources remembered for that; the oldest goes first."""

_EVENT_FORMAT: Final = "=Hi"
HANDSHAKE_FAILED: Final = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
LINK_UP: Final = zmq.EVENT_HANDSHAKE_SUCCEEDED
LINK_DOWN: Final = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | HANDSHAKE_FAILED

_log = structlog.get_logger("transport")


class Tally:
    """Counts traffic and refusals from any thread, and logs refusals sparingly."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._traffic: dict[NodeId, list[int]] = {}
        self._refused: Counter[str] = Counter()
        self._logged: OrderedDict[tuple[str, str], int] = OrderedDict()

    def received(self, node: NodeId, size: int) -> None:
        """Counts a payload frame from a member."""
        self._add(node, 0, size)

    def sent(self, node: NodeId, size: int) -> None:
        """Counts a payload frame to a member."""
        self._add(node, 2, size)

    def _add(self, node: NodeId, at: int, size: int) -> None:
        with self._lock:
            row = self._traffic.setdefault(node, [0, 0, 0, 0])
            row[at] += 1
            row[at + 1] += size

    def refused(self, reason: str, source: str = "") -> None:
        """Counts something refused or dropped; logs the first of a source and minute."""
        now_ms = clock.monotonic_ms()
        with self._lock:
            self._refused[reason] += 1
            last = self._logged.get((reason, source))
            if last is not None and now_ms - last < LOG_INTERVAL_MS:
                return
            self._logged[reason, source] = now_ms
            self._logged.move_to_end((reason, source))
            if len(self._logged) > SOURCES_MAX:
                self._logged.popitem(last=False)
        _log.warning("refused", socket=self._name, reason=reason, source=source)

    def snapshot(self) -> Counters:
        """The counts so far."""
        with self._lock:
            return Counters(
                peers={node: Traffic(*row) for node, row in self._traffic.items()},
                refused=dict(self._refused),
            )


def curve_context(io_threads: int = 1) -> zmq.Context[zmq.Socket[bytes]]:
    """A context whose sockets speak IPv4 and IPv6 and lose what is queued when they close."""
    context = zmq.Context(io_threads)
    context.setsockopt(zmq.IPV6, 1)
    context.setsockopt(zmq.LINGER, 0)
    return context


def limit(socket: zmq.Socket[bytes], frame_bytes_max: int) -> None:
    """The limits that every socket has, client or server."""
    socket.setsockopt(zmq.MAXMSGSIZE, wire_limit(frame_bytes_max))
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_INTERVAL_MS)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, KEEPALIVES_MAX)


def dealer(
    context: zmq.Context[zmq.Socket[bytes]],
    identity: KeyPair,
    server_key: bytes,
    *,
    frame_bytes_max: int,
    send_queue_max: int,
    receive_queue_max: int,
    silence_ms: int | None = None,
) -> zmq.Socket[bytes]:
    """A client socket for one peer that never reconnects by itself.

    After a refusal libzmq would not try again, and after a loss only the same address: dialling is
    the adapter's, the same way for every cause.

    With `silence_ms` the system watches the connection: it is over when nothing was acknowledged for
    so long.  Else ZeroMQ's heartbeats do, from the client alone.  A socket with a full receive queue
    must get and send none: it would end the whole process when its peer goes (libzmq 4364, open).
    """
    socket = context.socket(zmq.DEALER)
    limit(socket, frame_bytes_max)
    if silence_ms is None:
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_INTERVAL_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS)
    else:
        socket.setsockopt(zmq.TCP_MAXRT, silence_ms)
    socket.setsockopt(zmq.RECONNECT_IVL, -1)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS)
    socket.setsockopt(zmq.SNDHWM, send_queue_max)
    socket.setsockopt(zmq.RCVHWM, receive_queue_max)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, identity.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, identity.secret)
    socket.setsockopt(zmq.CURVE_SERVERKEY, server_key)
    return socket


class Dial:
    """One try to reach one address: a client socket and what its monitor says.

    Owned by one thread.  `up` after both keys are proven, `down` for good after any failure.
    """

    def __init__(self, socket: zmq.Socket[bytes], address: str, now_ms: int) -> None:
        self.socket = socket
        self.started_ms = now_ms
        self.up = False
        self.down = False
        self._monitor = socket.get_monitor_socket(LINK_UP | LINK_DOWN)
        try:
            socket.connect(address)
        except zmq.ZMQError:
            self.down = True

    @property
    def monitor(self) -> zmq.Socket[bytes]:
        """For a poller: readable when the state may have changed."""
        return self._monitor

    def look(self) -> None:
        """Takes in what happened meanwhile; never waits."""
        for event, _ in monitor_events(self._monitor):
            if event == LINK_UP:
                self.up = True
            elif event & LINK_DOWN:
                self.down = True

    def close(self) -> None:
        """Closes both sockets."""
        self.socket.disable_monitor()
        self._monitor.close(linger=0)
        self.socket.close(linger=0)


MakeSocket = Callable[[], zmq.Socket[bytes]]


class Dialer:
    """One round of reaching one peer: its addresses in order, each with a head start on the next.

    Owned by one thread.  The first address where the expected key answers wins; so an address that
    belongs to somebody else (a container bridge has the same one everywhere) is passed over.
    """

    def __init__(self, hosts: Sequence[str], port: int, make: MakeSocket, now_ms: int) -> None:
        # Hosts and port come from the peer's own words and may be nonsense.
        self._hosts = [host for host in hosts if is_host(host)] if is_port(port) else []
        self._port = port
        self._make = make
        self._dials: list[tuple[str, Dial]] = []
        self._next_ms = now_ms

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to try."""
        return not self._hosts and not self._dials

    def tend(self, now_ms: int) -> tuple[str, Dial] | None:
        """Looks at the tries and starts those that are due; the winner, once there is one."""
        for entry in tuple(self._dials):
            dial = entry[1]
            dial.look()
            if dial.down or now_ms - dial.started_ms > DIAL_TIMEOUT_MS:
                dial.close()
                self._dials.remove(entry)
                self._next_ms = now_ms
            elif dial.up:
                self._dials.remove(entry)
                self.close()
                return entry
        if self._hosts and now_ms >= self._next_ms:
            host = self._hosts.pop(0)
            self._next_ms = now_ms + DIAL_STAGGER_MS
            try:
                self._dials.append((host, Dial(self._make(), endpoint(host, self._port), now_ms)))
            except zmq.ZMQError as error:
                _log.error("cannot dial", host=host, port=self._port, error=error.strerror)
        return None

    def wait(self, timeout_ms: int) -> None:
        """Returns when a try has news, or after the time: for a thread that has nothing else to do."""
        poller = zmq.Poller()
        for _, dial in self._dials:
            poller.register(dial.monitor, zmq.POLLIN)
        poller.poll(timeout_ms)

    def close(self) -> None:
        """Gives every try up."""
        for _, dial in self._dials:
            dial.close()
        self._dials, self._hosts = [], []


def monitor_events(monitor: zmq.Socket[bytes]) -> list[tuple[int, int]]:
    """The events that wait in a monitor, each with its value: a descriptor, or what went wrong."""
    found: list[tuple[int, int]] = []
    while is_ready(monitor, zmq.POLLIN):
        # The address beside it is a listener's own: it does not tell who is at the other end.
        head, _ = monitor.recv_multipart(zmq.NOBLOCK)
        found.append(struct.unpack(_EVENT_FORMAT, head))
    return found


def is_ready(socket: zmq.Socket[bytes], flag: int) -> bool:
    """Whether the socket can receive (POLLIN) or send (POLLOUT) now."""
    return int(socket.getsockopt(zmq.EVENTS)) & int(flag) != 0


class Watch:
    """Calls back on the event loop when a socket that it owns has news, and once at the beginning.

    A socket's descriptor tells of news, not of what is left: the callback looks at the socket until
    it finds nothing.  Where the loop cannot wait for descriptors (Windows' default), a thread does.
    """

    def __init__(self, socket: zmq.Socket[bytes], callback: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._callback = callback
        self._descriptor = int(socket.getsockopt(zmq.FD))
        self._thread: threading.Thread | None = None
        self._is_closed = False
        try:
            self._loop.add_reader(self._descriptor, callback)
        except NotImplementedError:
            self._looked = threading.Event()
            self._inner, self._outer = sockets.socketpair()
            self._thread = threading.Thread(target=self._wait, name="watch", daemon=True)
            self._thread.start()
        self._loop.call_soon(callback)

    def close(self) -> None:
        """Calls no more; before the socket is closed."""
        self._is_closed = True
        if self._thread is None:
            self._loop.remove_reader(self._descriptor)
            return
        self._looked.set()
        self._outer.close()
        self._thread.join()

    def _wait(self) -> None:
        with self._inner, selectors.DefaultSelector() as selector:
            selector.register(self._descriptor, selectors.EVENT_READ)
            selector.register(self._inner, selectors.EVENT_READ)
            while True:
                selector.select()
                self._looked.clear()
                if self._is_closed:
                    return
                try:
                    self._loop.call_soon_threadsafe(self._look)
                except RuntimeError:  # the loop is closed, and the process ends
                    return
                self._looked.wait()

    def _look(self) -> None:
        try:
            if not self._is_closed:
                self._callback()
        finally:
            self._looked.set()


class Wake:
    """Wakes a thread that polls: any thread may call `set`."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._lock = threading.Lock()
        self._inner = context.socket(zmq.PAIR)
        self._outer = context.socket(zmq.PAIR)
        name = f"inproc://wake-{id(self)}"
        self._inner.bind(name)
        self._outer.connect(name)

    @property
    def inner(self) -> zmq.Socket[bytes]:
        """For the poller of the thread to be woken."""
        return self._inner

    def set(self) -> None:
        """Wakes the thread; from any thread, also after `close`."""
        with self._lock:
            # Full means that the thread has reason enough to wake already.
            if not self._outer.closed and is_ready(self._outer, zmq.POLLOUT):
                self._outer.send(b"", zmq.NOBLOCK)

    def clear(self) -> None:
        """Called by the woken thread before it looks at what is to do."""
        while is_ready(self._inner, zmq.POLLIN):
            self._inner.recv(zmq.NOBLOCK)

    def close(self) -> None:
        """Closes both ends, once the thread is over."""
        with self._lock:
            self._outer.close(linger=0)
            self._inner.close(linger=0)
