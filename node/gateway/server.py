"""Serves the API on the node's own loop: uvicorn without its signal handlers and logs."""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Generator

import uvicorn

from mesh.errors import ConfigurationError, InUseError, NotAllowedError
from node.gateway.app import Faces
from node.gateway.connection import Connection
from node.gateway.guard import REQUESTS_MAX
from node.gateway.service import NodeService

CONNECTIONS_MAX = 2 * REQUESTS_MAX
"""The last line: idle ones are hung up on, and requests beyond `REQUESTS_MAX` refused, long before."""
_STOP_S = 3
_PATIENCE_S = 2.5
"""After so long who still waits is told that the node stops: before uvicorn tears the connection."""
_STREAMS_S = 0.2
"""Event streams end by themselves when they are told to; so long they are given."""
_LAST_WORD_S = 1.0
"""An answer of some hundred bytes to this machine; a client that does not read gets none."""


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stopping = asyncio.Event()
        self.servers = []

    def close_connections(self) -> None:
        """Takes no new request, neither from a new client nor over a connection that is kept."""
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Signals are the daemon's."""
        yield

    async def main_loop(self) -> None:
        """Uvicorn looks ten times a second whether it has to end; here `Gateway.stop` tells it."""
        ticks = 0
        while not await self.on_tick(ticks):
            ticks += 10  # its unit is 0.1 s; at each tenth it renews the Date header
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self.stopping.wait()


def bind_api(host: str, port: int) -> socket.socket:
    """The listening socket of the API; port 0 takes a free one.

    Raises `InUseError` (exit code 6), `NotAllowedError` (a privileged port), `ConfigurationError`.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except PermissionError:
        listener.close()
        raise NotAllowedError(
            f"port {port} of {host} may not be opened", "choose one above 1023 with --api"
        ) from None
    except OSError as error:
        listener.close()
        if isinstance(error, socket.gaierror) or error.errno != errno.EADDRINUSE:
            raise ConfigurationError(
                f"the API cannot listen on {host}:{port}: {error.strerror}",
                "give an address of this machine with --api",
            ) from None
        raise InUseError(
            f"port {port} of {host} is in use by another process",
            "stop it, or choose another address with --api",
        ) from None
    listener.setblocking(False)
    return listener


def address_of(listener: socket.socket) -> str:
    """`host:port` of a bound socket, as the command line reads it from `api.address`."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Gateway:
    """The API of one node: `serve` until `stop`."""

    def __init__(
        self, service: NodeService, listener: socket.socket, *, token: str, version: str
    ) -> None:
        self._listener = listener
        self._faces = Faces(service, token, version)
        config = uvicorn.Config(
            self._faces.app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            http=Connection,
            limit_concurrency=CONNECTIONS_MAX,
            timeout_graceful_shutdown=_STOP_S,
        )
        self._server = _Server(config)
        self._ended = asyncio.Event()

    async def serve(self) -> None:
        """Answers until `stop`; open event streams are ended, other requests get three seconds.

        When the node ends by an error this is cancelled: whoever waits for an answer is told.
        """
        try:
            await self._server.serve([self._listener])
        finally:
            await self._end_requests()
            self._ended.set()

    async def _end_requests(self) -> None:
        self._faces.stopping.set()
        self._server.close_connections()
        if open_requests := set(self._server.server_state.tasks):
            _, waiting = await asyncio.wait(open_requests, timeout=_STREAMS_S)
            for request in waiting:
                request.cancel()
            if waiting:
                await asyncio.wait(waiting, timeout=_LAST_WORD_S)

    async def ended(self) -> None:
        """Waits until `serve` is over."""
        await self._ended.wait()

    def stop(self) -> None:
        """Ends `serve` soon."""
        self._faces.stopping.set()
        self._server.should_exit = True
        self._server.stopping.set()
        asyncio.get_running_loop().call_later(_PATIENCE_S, self._cancel_requests)

    def _cancel_requests(self) -> None:
        for request in self._server.server_state.tasks:
            request.cancel()
