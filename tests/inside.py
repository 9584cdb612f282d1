"""Sockets of this process inside a namespace of a `Lan`: strangers and watchers without a program's start."""

import contextlib
import ctypes
import http.client
import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tests.cluster import Node
from tests.netns import Lan

T = TypeVar("T")
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET; os.setns came with Python 3.12
API_PORT = 7450


def enter(lan: Lan, host: int) -> None:
    """Makes this thread, its sockets and the threads that it starts, belong to a host for good."""
    handle = os.open(f"/run/netns/{lan.namespace(host)}", os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(handle, _NEW_NETWORK) != 0:
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(handle)


def inside(lan: Lan, host: int, act: Callable[[], T]) -> T:
    """What `act` returns, run on a thread of a host: its sockets and threads belong there for good."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            enter(lan, host)
            done.append(act())
        except BaseException as error:  # noqa: BLE001 - raised again where it was asked for
            failed.append(error)

    thread = threading.Thread(target=run, name=f"host {host}")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


class Face:
    """The API of a node on a host; each question has a connection of its own."""

    def __init__(self, lan: Lan, host: int, node: Node) -> None:
        self._lan, self._host, self._node = lan, host, node

    def raw(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        """Status and body of an answer.  Raises `OSError`, `HTTPException`."""
        token = Path(self._node.home / "api.token").read_text("ascii").strip()
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", API_PORT)) as connection:
            connection.sock = inside(
                self._lan,
                self._host,
                lambda: socket.create_connection(("127.0.0.1", API_PORT), timeout=20),
            )
            text = None if body is None else json.dumps(body)
            connection.request(method, path, body=text, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def ask(self, path: str, body: object = None) -> Any:
        """The JSON of a good answer (a POST when there is a body), or None while there is none."""
        method = "GET" if body is None else "POST"
        try:
            status, text = self.raw(method, f"/api/v1{path}", body)
        except (OSError, http.client.HTTPException):
            return None
        return json.loads(text) if 200 <= status < 300 else None

    def metrics(self) -> dict[str, float]:
        """What /metrics says now, by series."""
        _, text = self.raw("GET", "/metrics")
        lines = [x for x in text.decode().splitlines() if x and not x.startswith("#")]
        return {name: float(value) for name, _, value in (x.rpartition(" ") for x in lines)}
