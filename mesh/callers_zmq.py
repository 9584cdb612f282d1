"""Who is connected to a listener and has proven nothing: bounded, so that strangers take no more than that.

libzmq accepts whoever connects, without a bound, and holds a descriptor and some KiB for each until the
handshake's time is over.  Its monitor names the descriptors; who takes too many of them is hung up on.
"""

import contextlib
import errno
import socket as sockets
import sys
from collections import Counter
from collections.abc import Generator
from typing import Final

from mesh.transport import STRANGERS_BYTES_MAX, STRANGERS_MAX

_RECEIVED_AT: Final = 128
"""Where `tcpi_bytes_received` (RFC 4898) stands in Linux's `tcp_info`."""


class Callers:
    """Connections in the order of their coming, by descriptor; used by the one owner of a listener."""

    def __init__(self) -> None:
        self._hosts: dict[int, str] = {}
        self._crowd: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._hosts)

    def came(self, descriptor: int, port: int) -> None:
        """A connection was accepted at the listener's own `port`."""
        self.left(descriptor)
        host = _peer_of(descriptor, port)
        if host:
            self._hosts[descriptor] = host
            self._crowd[host] += 1

    def left(self, descriptor: int) -> str:
        """It is gone, or proved who it is; the host it came from, if it was still a stranger."""
        host = self._hosts.pop(descriptor, "")
        if host:
            self._crowd[host] -= 1
            if not self._crowd[host]:
                del self._crowd[host]
        return host

    def surplus(self) -> tuple[int, str] | None:
        """The one to hang up on, where there are too many: the oldest of the host that has most."""
        if len(self._hosts) <= STRANGERS_MAX:
            return None
        ((crowded, _),) = self._crowd.most_common(1)
        descriptor = next(number for number, host in self._hosts.items() if host == crowded)
        return descriptor, self.left(descriptor)

    def greedy(self, port: int) -> list[tuple[int, str]]:
        """Those to hang up on, when all strangers sent too much together: who sent most, first.

        libzmq hands on whole messages alone and puts no bound to their parts: one that never ends is
        seen by nobody else.
        """
        sent = sorted((_received_bytes(number, port), number) for number in self._hosts)
        total = sum(size for size, _ in sent)
        found: list[tuple[int, str]] = []
        while total > STRANGERS_BYTES_MAX:
            size, number = sent.pop()
            total -= size
            found.append((number, self.left(number)))
        return found


def hang_up(descriptor: int, port: int) -> None:
    """Ends a connection of the listener at this port; libzmq notices and closes it."""
    with contextlib.suppress(OSError), _borrowed(descriptor, port) as connection:
        connection.shutdown(sockets.SHUT_RDWR)


def _peer_of(descriptor: int, port: int) -> str:
    """The host at the other end, or nothing when it is no connection of this port any more."""
    host = ""
    with contextlib.suppress(OSError), _borrowed(descriptor, port) as connection:
        host = str(connection.getpeername()[0])
    return host


def _received_bytes(descriptor: int, port: int) -> int:
    """What the system took from the other end in all; 0 where it does not tell (only Linux does)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError), _borrowed(descriptor, port) as connection:
            end = _RECEIVED_AT + 8
            told = connection.getsockopt(sockets.IPPROTO_TCP, sockets.TCP_INFO, end)
            return int.from_bytes(told[_RECEIVED_AT:end], sys.byteorder)
    return 0


@contextlib.contextmanager
def _borrowed(descriptor: int, port: int) -> Generator[sockets.socket]:
    """The socket, which stays libzmq's.  Raises OSError when the number is another thing's by now."""
    connection = sockets.socket(fileno=descriptor)
    try:
        if connection.getsockname()[1:2] != (port,):
            raise OSError(errno.EBADF, "another socket")
        yield connection
    finally:
        connection.detach()
