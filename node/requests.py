"""Calls between nodes over the control connection: every one with an id, a deadline and a retry.

A reconnect loses what was queued, so a call is sent again with the same id until it is answered or
its time is over; the called node answers a repeated id from memory and never runs it twice.
"""

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from mesh import errors
from mesh.errors import BusyError, DarkStreamError, UnreachableError, WireError
from mesh.ids import NodeId
from mesh.messages import Message, Request, Response

Handler = Callable[[NodeId, bytes], Awaitable[bytes]]
Sender = Callable[[NodeId, Message], bool]

RESEND_S: Final = 0.5
"""A lost frame costs at most this; a slow handler sees at most two frames a second."""
UNSENT_S: Final = 0.1
"""No link at the moment: it is dialled about as often."""
RUNNING_MAX: Final = 512
"""Calls being served at once; more are answered `busy`."""
ANSWERS_MAX: Final = 2_048
"""Answers kept for repeated ids: more than all peers can have in flight."""

_log = structlog.get_logger("requests")


def _codes() -> dict[str, type[DarkStreamError]]:
    found: dict[str, type[DarkStreamError]] = {}
    todo = [DarkStreamError]
    while todo:
        cls = todo.pop()
        found.setdefault(cls.code, cls)
        todo.extend(cls.__subclasses__())
    return found


def error_of(code: str, what: str, todo: str) -> DarkStreamError:
    """The error of this stable code; an unknown code (a newer node's) becomes a general error."""
    return _codes().get(code, errors.DarkStreamError)(what, todo)


class Requests:
    """Both ends of calls: `call` asks another node, `register` answers others."""

    def __init__(self, send: Sender) -> None:
        self._send = send
        self._handlers: dict[str, Handler] = {}
        self._waiting: dict[str, asyncio.Future[Response]] = {}
        self._running: dict[tuple[NodeId, str], asyncio.Task[None]] = {}
        self._answers: OrderedDict[tuple[NodeId, str], Response] = OrderedDict()

    def register(self, method: str, handler: Handler) -> None:
        """Serves calls of `method`; the handler gets the caller's proven id and the body."""
        assert method not in self._handlers, method
        self._handlers[method] = handler

    async def call(
        self, node: NodeId, method: str, body: bytes, *, timeout_s: float, cause: str = ""
    ) -> bytes:
        """The other node's answer.  Raises its error, or `UnreachableError` when the time is over."""
        request = Request(
            id=secrets.token_hex(8),
            method=method,
            cause=cause,
            deadline_ms=int(timeout_s * 1000),
            body=body,
        )
        future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._waiting[request.id] = future
        try:
            async with asyncio.timeout(timeout_s):
                while not future.done():
                    left = self._send(node, request)
                    await asyncio.wait([future], timeout=RESEND_S if left else UNSENT_S)
            response = future.result()
        except TimeoutError:
            raise UnreachableError(
                f"node {node} did not answer {method} within {timeout_s:g} s",
                "see `mesh-cli nodes`",
            ) from None
        finally:
            del self._waiting[request.id]
        if not response.ok:
            raise error_of(response.error, response.what, response.todo)
        return response.body

    def receive(self, node: NodeId, message: Request | Response) -> None:
        """Takes a frame that belongs to a call."""
        if isinstance(message, Response):
            future = self._waiting.get(message.id)
            if future is not None and not future.done():
                future.set_result(message)
            return
        key = (node, message.id)
        if (known := self._answers.get(key)) is not None:
            self._send(node, known)
        elif key not in self._running:
            if len(self._running) >= RUNNING_MAX:
                self._send(node, _failure(message.id, BusyError("too many calls at once", "retry")))
                return
            task = asyncio.get_running_loop().create_task(self._serve(node, message))
            self._running[key] = task

    async def _serve(self, node: NodeId, request: Request) -> None:
        key = (node, request.id)
        try:
            handler = self._handlers.get(request.method)
            if handler is None:
                raise WireError(f"unknown method {request.method[:64]!r}", "update this node")
            async with asyncio.timeout(max(1, min(request.deadline_ms, 600_000)) / 1000):
                body = await handler(node, request.body)
            response = Response(id=request.id, ok=True, body=body)
        except DarkStreamError as error:
            response = _failure(request.id, error)
        except TimeoutError:
            response = _failure(request.id, UnreachableError("the call took too long", "retry"))
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - supervisor: one caller's bad request must not end the node
            _log.exception("request failed", method=request.method, caller=node)
            response = _failure(request.id, DarkStreamError(f"internal fault: {error!r}"))
        finally:
            self._running.pop(key, None)
        self._answers[key] = response
        while len(self._answers) > ANSWERS_MAX:
            self._answers.popitem(last=False)
        self._send(node, response)

    async def close(self) -> None:
        """Ends the calls that are being served."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _failure(request_id: str, error: DarkStreamError) -> Response:
    return Response(
        id=request_id,
        ok=False,
        body=b"",
        error=error.code,
        what=error.what[:2_000],
        todo=error.todo[:500],
    )
