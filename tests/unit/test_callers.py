"""Strangers at a listener: who is hung up on, and which descriptor is left alone."""

import contextlib
import socket
from collections.abc import Iterator

import pytest

from mesh import callers_zmq
from mesh.callers_zmq import Callers, hang_up
from tests.strangers import LOOPBACK


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server((LOOPBACK, 0), backlog=64) as made:
        yield made


def test_the_oldest_goes_when_there_are_too_many(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callers_zmq, "STRANGERS_MAX", 3)
    port = listener.getsockname()[1]
    callers = Callers()
    with contextlib.ExitStack() as stack:
        accepted = []
        for _ in range(5):
            stack.enter_context(socket.create_connection((LOOPBACK, port)))
            one = stack.enter_context(listener.accept()[0])
            accepted.append(one.fileno())
            callers.came(one.fileno(), port)
        assert callers.surplus() == (accepted[0], LOOPBACK)
        callers.left(accepted[1])  # proved who it is
        assert callers.surplus() is None
        assert len(callers) == 3


def test_a_crowd_from_one_host_pushes_out_nobody_else(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callers_zmq, "STRANGERS_MAX", 4)
    port = listener.getsockname()[1]
    callers = Callers()
    with contextlib.ExitStack() as stack:
        for host in ("127.0.0.2", *["127.0.0.3"] * 8):
            stack.enter_context(
                socket.create_connection((LOOPBACK, port), source_address=(host, 0))
            )
            callers.came(stack.enter_context(listener.accept()[0]).fileno(), port)
            while (surplus := callers.surplus()) is not None:
                assert surplus[1] == "127.0.0.3"
        assert len(callers) == 4


def test_hanging_up_ends_a_connection_of_the_port_and_nothing_else(
    listener: socket.socket,
) -> None:
    port = listener.getsockname()[1]
    with (
        socket.create_server((LOOPBACK, 0)) as other,
        socket.create_connection((LOOPBACK, port)) as client,
        socket.create_connection(other.getsockname()) as innocent,
        listener.accept()[0] as here,
        other.accept()[0] as there,
    ):
        hang_up(there.fileno(), port)
        hang_up(99_999, port)
        there.sendall(b"still here")
        assert innocent.recv(10) == b"still here"
        hang_up(here.fileno(), port)
        assert client.recv(1) == b""
        assert here.fileno() >= 0  # closing is left to its owner


def test_what_is_no_connection_of_the_port_is_no_caller(listener: socket.socket) -> None:
    callers = Callers()
    with socket.create_connection(listener.getsockname()) as client:
        callers.came(client.fileno(), listener.getsockname()[1])
    callers.came(99_999, listener.getsockname()[1])
    assert len(callers) == 0
    assert callers.left(99_999) == ""


def test_strangers_who_send_too_much_go_the_largest_first(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callers_zmq, "STRANGERS_BYTES_MAX", 50_000)
    port = listener.getsockname()[1]
    callers = Callers()
    with contextlib.ExitStack() as stack:
        accepted: list[int] = []
        for size in (10_000, 45_000, 30_000):
            near = stack.enter_context(socket.create_connection((LOOPBACK, port)))
            far = stack.enter_context(listener.accept()[0])
            near.sendall(bytes(size))
            assert len(far.recv(size, socket.MSG_WAITALL)) == size
            callers.came(far.fileno(), port)
            accepted.append(far.fileno())
        assert callers.greedy(port) == [(accepted[1], LOOPBACK)]
        assert callers.greedy(port) == []
        assert len(callers) == 2
