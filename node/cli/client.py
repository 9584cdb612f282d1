"""Talks to a node: finds its API, sends the token, turns its problem documents into our errors."""

import json
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from mesh.errors import DarkStreamError, UnreachableError, UsageError
from node.cli.faults import Json, error_from
from node.cli.options import Common
from node.settings.addresses import API_DEFAULT, API_PORT_DEFAULT, LOOPBACK_HOSTS, split_endpoint
from node.settings.home_files import default_home, expanded
from node.settings.home_paths import (
    API_ADDRESS_FILE,
    API_KEY_VARIABLE,
    API_TOKEN_FILE,
    API_VARIABLE,
)

if TYPE_CHECKING:
    import click
    import httpx

CONNECT_S = 3.0
ANSWER_S = 120.0
"""The longest answer: detecting encoders, or proposing thousands of jobs."""
SILENCE_S = 15.0
"""A node sends a ping every 5 s on an event stream; three missed ones mean that it is gone."""
LINE_CHARS_MAX = 4 << 20


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event of the stream; a ping has no kind."""

    id: int
    kind: str
    data: Json


def home_of(common: Common) -> Path:
    """The data directory that the command is about."""
    if common.home:
        return expanded(common.home)
    return default_home(os.environ)


def connect(common: Common) -> "Api":
    """The node by `--api`, an explicit `--home`, `DARKSTREAM_API`, the home's `api.address`, or the default."""
    home = home_of(common)
    left = _read(home / API_ADDRESS_FILE)
    told = os.environ.get(API_VARIABLE, "")
    found = common.api or (left if common.home else "") or told or left or API_DEFAULT
    try:
        host, port = split_endpoint(found, API_PORT_DEFAULT)
    except ValueError as error:
        raise UsageError(str(error), "give --api as 127.0.0.1:7450") from None
    if host not in LOOPBACK_HOSTS:
        raise UsageError(
            f"{host} is not this machine: the API is served on loopback only",
            f"run the command there, or forward the port: ssh -L {port}:127.0.0.1:{port} {host}",
        )
    token = os.environ.get(API_KEY_VARIABLE, "").strip() or _read(home / API_TOKEN_FILE)
    return Api(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", token)


def api_of(ctx: "click.Context") -> "Api":
    """The node that a command talks to; closed with the command."""
    api = connect(ctx.ensure_object(Common))
    ctx.call_on_close(api.close)
    return api


def segment(text: str) -> str:
    """A name or id as one part of a path of the API.  Raises `UsageError` for an empty one."""
    if not text:
        raise UsageError("the name or id is empty", "give one")
    quoted = quote(text, safe="", errors="surrogateescape")
    # `.` and `..` would be resolved on the way, and another question asked.
    return quoted if text.strip(".") else quoted.replace(".", "%2E")


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""  # no node has run here, or it is another user's: the answer will say which


def _sayable(token: str) -> bool:
    return bool(token) and token.isascii() and token.isprintable()


class Api:
    """The API of one node."""

    def __init__(self, address: str, token: str) -> None:
        import httpx  # noqa: PLC0415 - a third of a second that --help need not wait for

        self.address = address
        self._errors = httpx.TransportError
        self._unsaid = (UnicodeEncodeError, httpx.InvalidURL)
        self._client = httpx.Client(
            base_url=f"http://{address}",
            headers={"authorization": f"Bearer {token}"} if _sayable(token) else {},
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
            trust_env=False,  # a proxy must not see loopback
        )

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def get(self, path: str, **parameters: object) -> Json:
        """The JSON answer of a GET; parameters that are None are left out."""
        wanted = {name: str(value) for name, value in parameters.items() if value is not None}
        return self._call("GET", path, parameters=wanted)

    def post(self, path: str, body: Json | None = None) -> Json:
        """The JSON answer of a POST."""
        return self._call("POST", path, body=body)

    def delete(self, path: str) -> Json:
        """The JSON answer of a DELETE."""
        return self._call("DELETE", path)

    def _call(
        self,
        method: str,
        path: str,
        *,
        parameters: dict[str, str] | None = None,
        body: Json | None = None,
    ) -> Json:
        try:
            answer = self._client.request(method, f"/api/v1{path}", params=parameters, json=body)
        except self._unsaid as error:
            bytes_ = isinstance(error, UnicodeEncodeError)
            what = "a value is no UTF-8 text" if bytes_ else "a value is too long for a request"
            raise UsageError(what, "correct it") from None
        except self._errors as error:
            raise self._unreachable(error) from None
        if answer.is_success:
            return self._document(answer)
        raise self._problem(answer)

    def events(self, silence_s: float = SILENCE_S) -> Generator[ServerEvent]:
        """Events from now on, and pings, until the stream ends.  Raises `UnreachableError`, `BusyError`."""
        import httpx  # noqa: PLC0415 - see above

        timeout = httpx.Timeout(silence_s, connect=CONNECT_S)
        try:
            with self._client.stream("GET", "/api/v1/events", timeout=timeout) as answer:
                if not answer.is_success:
                    answer.read()
                    raise self._problem(answer)
                yield from _events(answer.iter_lines())
        except self._errors as error:
            raise self._unreachable(error) from None

    def _document(self, answer: "httpx.Response") -> Json:
        try:
            document: object = answer.json()
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise UnreachableError(
                f"what answers at {self.address} is no DarkStream node", "name the node with --api"
            )
        return document

    def _problem(self, answer: "httpx.Response") -> DarkStreamError:
        problem = self._document(answer)
        code = str(problem.get("code", "internal"))
        what = str(problem.get("detail") or f"the node answered {answer.status_code}")
        return error_from(code, what, str(problem.get("todo", "")), answer.status_code)

    def _unreachable(self, error: Exception) -> UnreachableError:
        why = type(error).__name__.removesuffix("Error").removesuffix("Timeout")
        slow = "does not answer in time" if "Timeout" in type(error).__name__ else "answers"
        what = (
            f"no node {slow} at {self.address}"
            if slow == "answers"
            else f"the node at {self.address} {slow}"
        )
        return UnreachableError(
            f"{what} ({why.lower()})",
            "start one with `mesh-node start`, or name another with --api or --home",
        )


def _events(lines: Iterator[str]) -> Iterator[ServerEvent]:
    event_id, kind, data = 0, "", ""
    for line in lines:
        if len(data) + len(line) > LINE_CHARS_MAX:
            raise UnreachableError("the event stream makes no sense", "update node and command")
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "id":
                event_id = int(value) if value.isdigit() else event_id
            case "event":
                kind = value
            case "data":
                data += value
            case "" if line.startswith(":"):
                yield ServerEvent(event_id, "", {})
            case "" if kind:
                yield ServerEvent(event_id, kind, json.loads(data))
                kind, data = "", ""
            case _:
                pass
