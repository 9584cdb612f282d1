"""A cable of one's own between two ports of loopback: it counts, flips bits and breaks."""

import contextlib
import socket
import threading
from collections.abc import Callable, Generator

from tests.strangers import LOOPBACK

Meddle = Callable[[int, bytearray], bytearray | None]
"""(bytes that came from the server before, these bytes) → what arrives; None tears the connection."""
_PIECE_BYTES = 64 << 10


class Relay:
    """Forwards every connection to `port`; what comes from the server passes through `meddle`."""

    def __init__(self, port: int, meddle: Meddle = lambda _, data: data) -> None:
        self._to = port
        self._meddle = meddle
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.passed = 0
        self.connections = 0
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    def cut(self) -> None:
        """Tears every connection; new ones are taken."""
        for one in tuple(self._open):  # those that ended before are closed with the rest
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends everything."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()
        for one in self._open:
            one.close()

    def _start(self, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, name="relay", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                try:
                    server = socket.create_connection((LOOPBACK, self._to))
                except OSError:
                    client.close()
                    continue
                self.connections += 1
                self._open |= {client, server}
                self._start(lambda a=client, b=server: self._pump(a, b, None))  # type: ignore[misc]  # mypy infers no lambda with a default
                self._start(lambda a=server, b=client: self._pump(a, b, self._meddle))  # type: ignore[misc]  # as above

    def _pump(self, source: socket.socket, to: socket.socket, meddle: Meddle | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_PIECE_BYTES):
                passed: bytearray | bytes | None = data
                if meddle is not None:
                    passed = meddle(self.passed, bytearray(data))
                    self.passed += len(data)
                if passed is None:
                    break
                to.sendall(passed)
        for one in (source, to):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def relay(port: int, meddle: Meddle = lambda _, data: data) -> Generator[Relay]:
    made = Relay(port, meddle)
    try:
        yield made
    finally:
        made.close()
