"""What comes at a port from outside: no CURVE, garbage, half a handshake, frames of members gone bad."""

import contextlib
import secrets
import socket
from collections.abc import Iterator

import zmq

from mesh.transport import KeyPair

LOOPBACK = "127.0.0.1"

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01"
GARBAGE = [
    b"",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    bytes(64),
    b"\xff" * 64,
    secrets.token_bytes(4_096),
    GREETING,
    GREETING + b"NULL" + bytes(48),
    GREETING + b"CURVE" + bytes(47),
    GREETING + b"CURVE" + bytes(47) + b"\x04\xc8\x05HELLO" + secrets.token_bytes(194),
    GREETING + b"CURVE" + bytes(47) + b"\x06" + b"\xff" * 8,
    GREETING + b"PLAIN" + bytes(47) + b"\x04\x0d\x05HELLO\x01a\x01b",
]


def poke(port: int, data: bytes, host: str = LOOPBACK) -> bytes:
    """Sends raw bytes, half-closes, and reads to the end: what a port says to garbage."""
    with socket.create_connection((host, port), timeout=10) as raw:
        heard = b""
        with contextlib.suppress(OSError):
            raw.sendall(data)
            raw.shutdown(socket.SHUT_WR)
            while piece := raw.recv(4_096):
                heard += piece
        return heard


@contextlib.contextmanager
def client(
    port: int,
    keys: KeyPair | None,
    server_key: bytes,
    receives_max: int = 1_000,
    host: str = LOOPBACK,
) -> Iterator[zmq.Socket[bytes]]:
    """A plain DEALER, with CURVE when it has keys."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 0)
    dealer.setsockopt(zmq.RCVHWM, receives_max)
    if keys is not None:
        dealer.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
        dealer.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
        dealer.setsockopt(zmq.CURVE_SERVERKEY, server_key)
    dealer.connect(f"tcp://{host}:{port}")
    try:
        yield dealer
    finally:
        dealer.close()
        context.term()


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    """A port of loopback that something else listens on."""
    with socket.create_server((LOOPBACK, 0)) as server:
        yield server.getsockname()[1]
