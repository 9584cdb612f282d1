"""Clients that submit and read without pause, and write down what they asked and were told.

A key is a film, hence its output: the ledger takes one live job for each.  The nodes must have no
slots, so that jobs are planned and never end while the history is written.
"""

import contextlib
import http.client
import json
import os
import random
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from ledger.jobs import JOB_TRANSITIONS
from mesh import clock
from tests.cluster import Node
from tests.linearizability import (
    UNKNOWN,
    Accepted,
    Call,
    Conflict,
    Jobs,
    Read,
    Seen,
    Submit,
    violations,
)

JOBS: Final = Jobs((before, after) for (before, _), after in JOB_TRANSITIONS.items())
TIMEOUT_S: Final = 6.0
"""Longer than an election; a client that waits longer learns no more."""
RECENT_KEYS: Final = 40
"""Reads look at the newest keys: their pages stay small."""
PAGE: Final = 1_000


class RefusedError(Exception):
    """Nobody listened: the request had no effect."""


class NoAnswerError(Exception):
    """The request may have had its effect, or have it later."""


class Api:
    """The HTTP API of a node over one connection that is made anew when it breaks.

    Not for two threads.  On a host of a LAN, use it from a thread that belongs to the host.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._connection: http.client.HTTPConnection | None = None
        self._token = ""

    def ask(self, path: str, body: object = None) -> tuple[int, Any]:
        """Status and JSON of the answer.  Raises `RefusedError`, `NoAnswerError`."""
        connection = self._connected()
        headers = {
            "authorization": f"Bearer {self._token}",
            "content-type": "application/json",
        }
        text = None if body is None else json.dumps(body)
        try:
            connection.request("GET" if body is None else "POST", path, text, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            self.close()
            raise NoAnswerError(repr(error)) from None

    def _connected(self) -> http.client.HTTPConnection:
        if self._connection is None:
            try:
                host, _, port = (self._home / "api.address").read_text("ascii").rpartition(":")
                self._token = (self._home / "api.token").read_text("ascii").strip()
                connection = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT_S)
                connection.connect()
            except (OSError, ValueError) as error:
                raise RefusedError(repr(error)) from None
            self._connection = connection
        return self._connection

    def close(self) -> None:
        """Ends the connection; the next question makes a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@dataclass(frozen=True, slots=True)
class Said:
    """A call, the node that was asked, and whether a read asked for the mesh's own latest state."""

    call: Call
    node: str
    consistent: bool = False


@dataclass(slots=True)
class History:
    """What all clients of a run know together."""

    said: list[Said] = field(default_factory=list)
    first_ms: dict[str, int] = field(default_factory=dict)
    """Wall clock before the first submission of each key."""
    strange: list[str] = field(default_factory=list)
    """Answers that no client should ever get."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, key: str) -> None:
        with self._lock:
            self.first_ms.setdefault(key, clock.wall_ms())

    def recent(self) -> list[str]:
        with self._lock:
            return list(self.first_ms)[-RECENT_KEYS:]

    def accepted(self) -> dict[str, list[str]]:
        """Ids of acknowledged jobs by key."""
        found: dict[str, list[str]] = {}
        for said in self.said:
            if isinstance(said.call.answer, Accepted):
                found.setdefault(str(said.call.key), []).append(said.call.answer.id)
        return found

    def faults(self) -> list[str]:
        """Everything that the history contradicts of what is promised."""
        linear = [s.call for s in self.said if s.consistent or isinstance(s.call.operation, Submit)]
        found = [f"not linearizable: {v}" for v in violations(JOBS, linear)]
        for node in sorted({said.node for said in self.said}):
            here = violations(JOBS, self._as_seen_by(node))
            found += [f"{node} contradicts itself: {violation}" for violation in here]
        return found + self.strange

    def _as_seen_by(self, node: str) -> list[Call]:
        """A replica is behind, never wrong: what others submitted reaches it some time, or never did."""
        calls: list[Call] = []
        for said in self.said:
            if said.node == node:
                calls.append(said.call)
            elif isinstance(said.call.operation, Submit):
                calls.append(replace(said.call, answer=UNKNOWN))
        return calls


class Client(threading.Thread):
    """Submits films of its node and reads every key, one call after the other, until told to stop."""

    def __init__(
        self,
        name: str,
        node: Node,
        film: Path,
        history: History,
        stop: threading.Event,
        *,
        consistent: bool,
        enter: Callable[[], None] = lambda: None,
        pause_s: float = 0.0,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.calls = 0
        self._node = node
        self._film = film
        self._history = history
        self._stopping = stop
        self._consistent = consistent
        self._enter = enter
        self._pause_s = pause_s
        """Between two calls: many clients on one machine would leave no core to the nodes."""
        self._random = random.Random(name)
        self._open: list[str] = []
        """Keys of which this client does not know whether there is a job."""
        self._made = 0

    def run(self) -> None:
        self._enter()
        api = Api(self._node.home)
        while not self._stopping.is_set():
            try:
                self._one(api)
                self.calls += 1
                self._stopping.wait(self._pause_s)
            except RefusedError:
                self._stopping.wait(0.05)
        api.close()

    def _one(self, api: Api) -> None:
        draw = self._random.random()
        keys = self._history.recent()
        if draw < 0.3 or not keys:
            self.submit(api, self._new_film())
        elif draw < 0.4 and self._open:
            self.submit(api, self._open.pop(0))
        elif draw < 0.45 and self._made:
            self.submit(api, str(self._node.films / f"{self.name}-1{self._film.suffix}"))
        else:
            self.read(api, self._random.choice(keys))

    def _new_film(self) -> str:
        self._made += 1
        path = self._node.films / f"{self.name}-{self._made}{self._film.suffix}"
        os.link(self._film, path)
        return str(path)

    def submit(self, api: Api, key: str) -> None:
        """One submission of one film."""
        self._history.begin(key)
        begin = clock.monotonic_ms()
        answer: object = UNKNOWN
        with contextlib.suppress(NoAnswerError):
            status, body = api.ask("/api/v1/jobs", {"paths": [key], "profile": "web"})
            if status == 200 and len(body["jobs"]) == 1:
                answer = Accepted(body["jobs"][0]["id"])
            elif status == 409 or (status == 200 and _codes(body) == ["conflict"]):
                answer = Conflict()
            elif status < 500:
                self._history.strange.append(f"submit {key}: {status} {body}")
        if answer == UNKNOWN:
            self._open.append(key)
        self._note(key, Submit(), answer, begin)

    def read(self, api: Api, key: str) -> None:
        """Asks this node for the job of a film, of any node."""
        begin = clock.monotonic_ms()
        with contextlib.suppress(NoAnswerError):
            wanted = f"since_ms={self._history.first_ms[key]}&limit={PAGE}"
            if self._consistent:
                wanted += "&consistent=true"
            status, body = api.ask(f"/api/v1/jobs?{wanted}")
            if status == 200 and body["next"] is None:
                self._note(key, Read(), _seen(key, body["jobs"]), begin)
            elif status < 500:
                self._history.strange.append(f"read {key}: {status} {str(body)[:500]}")

    def _note(self, key: str, operation: object, answer: object, begin: int) -> None:
        call = Call(
            key=key,
            operation=operation,
            answer=answer,
            begin=begin,
            end=clock.monotonic_ms(),
            client=self.name,
        )
        consistent = self._consistent and isinstance(operation, Read)
        self._history.said.append(Said(call, self._node.name, consistent))


def _seen(key: str, jobs: Iterable[Any]) -> Seen | None:
    found = [job for job in jobs if job["source"] == key]
    if not found:
        return None
    # Two jobs of one film are an id that no state of the model has.
    return Seen("+".join(sorted(job["id"] for job in found)), found[0]["state"])


def _codes(body: Any) -> list[str]:
    return [fault["code"] for fault in body["faults"]]


def reads_can_be_consistent(api: Api) -> bool:
    """Whether this version of the API offers reads through the coordinator."""
    status, document = api.ask("/api/v1/openapi.json")
    assert status == 200, document
    parameters = document["paths"]["/api/v1/jobs"]["get"].get("parameters", [])
    return any(parameter["name"] == "consistent" for parameter in parameters)


def end(clients: Sequence[Client], stop: threading.Event) -> None:
    """Lets every client finish its call."""
    stop.set()
    for client in clients:
        client.join(timeout=4 * TIMEOUT_S)
        assert not client.is_alive(), f"{client.name} hangs"
