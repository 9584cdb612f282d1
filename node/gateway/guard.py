"""What every request meets first: the right host, the right token, a body of bounded size.

A page of another site can make a browser send requests to loopback, also under a name that
resolves to it (DNS rebinding); it cannot choose the Host header, and it does not know the token.
"""

import asyncio
import hmac
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mesh.errors import BusyError, NotAllowedError, StoppedError
from node.gateway.models import Problem
from node.gateway.problems import plain_problem, problem_of, problem_response
from node.settings.addresses import LOOPBACK_HOSTS, split_endpoint

BODY_BYTES_MAX = 5 << 20
"""A thousand paths of 4,096 characters, and their quotes."""
BODY_TIMEOUT_S = 30.0
REQUESTS_MAX = 256
"""Open requests at a time, event streams among them; more are `busy`."""
OPEN_PATHS = ("/api/v1/openapi.json",)
"""Says how to ask, and nothing about the mesh."""
_WITH_BODY = ("POST", "PUT", "PATCH", "DELETE")


class Guard:
    """ASGI middleware in front of the whole application."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str,
        stopping: asyncio.Event,
        hosts: Iterable[str] = LOOPBACK_HOSTS,
    ) -> None:
        self._app = app
        self._stopping = stopping
        self._expected = token.encode("ascii")
        self._hosts = frozenset(hosts)
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers refusals itself, passes the rest on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        self._open += 1
        try:
            await self._admit(scope, receive, send)
        finally:
            self._open -= 1

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        refusal = self._refusal(scope["path"], headers)
        is_api = scope["path"].startswith("/api/")
        if scope["method"] == "HEAD" and not is_api:
            scope = {**scope, "method": "GET"}  # the server leaves the body out; monitors ask so
        # What needs no token takes no body either: it would be kept for strangers.
        if refusal is None and is_api and scope["method"] in _WITH_BODY:
            body = await _read_body(headers, receive)
            if isinstance(body, Problem):
                refusal = body
            else:
                receive = _replay(body, receive)
        if refusal is not None:
            extra = {"www-authenticate": "Bearer"} if refusal.status == 401 else {}
            await problem_response(refusal, extra)(scope, receive, send)
            return
        await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application's answer; a request that the end of the node cuts off is told so."""
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except asyncio.CancelledError:
            if begun or not self._stopping.is_set():
                raise
            error = StoppedError(
                "this node stops; whether it still did what was asked is not known",
                "ask another node, and look there before you repeat it",
            )
            await problem_response(problem_of(error))(scope, receive, send)

    def _refusal(self, path: str, headers: list[tuple[bytes, bytes]]) -> Problem | None:
        if self._open > REQUESTS_MAX:
            error = BusyError(
                f"{REQUESTS_MAX} requests are open at this node", "try again in a moment"
            )
            return problem_of(error)
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) != 1 or not self._known(hosts[0]):
            refused = NotAllowedError(
                "the request names a host that is not this machine",
                "use 127.0.0.1 or localhost as host",
            )
            return problem_of(refused).model_copy(update={"status": 421})
        if not path.startswith("/api/") or path in OPEN_PATHS:
            return None
        tokens = [value for name, value in headers if name == b"authorization"]
        scheme, _, told = tokens[0].partition(b" ") if len(tokens) == 1 else (b"", b"", b"")
        if scheme.lower() == b"bearer" and hmac.compare_digest(told, self._expected):
            return None
        unknown = NotAllowedError(
            "the API token is missing or wrong",
            "send the content of api.token in the node's data directory as a bearer token",
        )
        return problem_of(unknown).model_copy(update={"status": 401})

    def _known(self, host: bytes) -> bool:
        try:
            return split_endpoint(host.decode("ascii").lower(), 80)[0] in self._hosts
        except (UnicodeDecodeError, ValueError):
            return False


async def _read_body(headers: list[tuple[bytes, bytes]], receive: Receive) -> bytes | Problem:
    declared = next((value for name, value in headers if name == b"content-length"), b"0")
    if not declared.isdigit() or int(declared[:20]) > BODY_BYTES_MAX:
        return plain_problem(413, f"a request has at most {BODY_BYTES_MAX} bytes")
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            more = True
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    return plain_problem(400, "the request ended before its body")
                part: bytes = message.get("body", b"")
                size += len(part)
                if size > BODY_BYTES_MAX:
                    return plain_problem(413, f"a request has at most {BODY_BYTES_MAX} bytes")
                parts.append(part)
                more = bool(message.get("more_body", False))
    except TimeoutError:
        return plain_problem(408, f"the body did not arrive within {BODY_TIMEOUT_S:.0f} s")
    return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return first.pop() if first else await receive()

    return replayed
