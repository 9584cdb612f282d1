"""The HTTP API over a real socket: what it answers, what it refuses, how it streams and stops."""

import contextlib
import json
import socket
import stat
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from mesh import errors
from mesh.errors import DarkStreamError, InUseError
from node.gateway import connection
from node.gateway.app import API, LISTENERS_MAX
from node.gateway.connection import IDLE_MAX
from node.gateway.guard import BODY_BYTES_MAX, REQUESTS_MAX
from node.gateway.server import bind_api
from tests.cluster import wait_for
from tests.fake_node import Served, served
from tests.repository.tree import ROOT


@pytest.fixture
def one(tmp_path: Path) -> Generator[Served]:
    with served(tmp_path / "home") as node:
        yield node


@pytest.fixture
def http(one: Served) -> Generator[httpx.Client]:
    head = {"authorization": f"Bearer {one.token}"}
    with httpx.Client(base_url=f"http://{one.address}", headers=head, trust_env=False) as client:
        yield client


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "film.mp4"
    path.write_bytes(b"film")
    return path


def problem(answer: httpx.Response) -> Any:
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["status"] == answer.status_code
    assert document["type"] == f"urn:darkstream:error:{document['code']}"
    assert document["title"]
    assert document["detail"]
    return document


def test_every_question_has_its_answer(http: httpx.Client, film: Path) -> None:
    body = {"paths": [str(film), "/nowhere"], "profile": "web", "output": None}
    made = http.post(f"{API}/jobs", json=body).json()
    (job,) = made["jobs"]
    assert [fault["code"] for fault in made["faults"]] == ["not_found"]
    assert http.get(f"{API}/status").json()["coordinator"] == "one"
    assert [n["name"] for n in http.get(f"{API}/nodes").json()["nodes"]] == ["one", "two"]
    assert http.get(f"{API}/jobs").json()["jobs"][0]["id"] == job["id"]
    detail = http.get(f"{API}/jobs/{job['id']}").json()
    assert detail["tasks"][0]["attempts"][0]["command_line"] == ["ffmpeg", "-i", "a b.mp4"]
    assert http.get(f"{API}/detect").json()["encoders"][0]["works"] is True
    token = http.post(f"{API}/tokens", json={"uses": 2, "ttl_s": 60}).json()
    assert token == {"token": "ds-token", "uses": 2, "expires_at_ms": 60_000}
    approved = http.post(f"{API}/nodes/new/approve", json={"code": "123456"})
    assert approved.json() == {"id": "id-new", "name": "new", "code": "123456"}
    assert http.post(f"{API}/nodes/two/revoke").json() == {"id": "id-two", "name": "two"}


def test_health_and_metrics_need_no_token(one: Served) -> None:
    base = f"http://{one.address}"
    assert httpx.get(f"{base}/livez", trust_env=False).status_code == 200
    assert httpx.get(f"{base}/readyz", trust_env=False).json()["ready"] is True
    for path in ("/livez", "/readyz", "/metrics"):
        head = httpx.head(f"{base}{path}", trust_env=False)  # as monitors ask
        assert (head.status_code, head.content) == (200, b"")
    one.node.ready = False
    answer = httpx.get(f"{base}/readyz", trust_env=False)
    assert answer.status_code == 503
    assert answer.json()["checks"] == [{"name": "quorum", "ok": False, "reason": "no quorum"}]
    text = httpx.get(f"{base}/metrics", trust_env=False).text
    assert text == (
        "# HELP darkstream_refused_total Refused.\n# TYPE darkstream_refused_total counter\n"
        'darkstream_refused_total{why="a \\"key\\"\\n"} 3\n'
    )


def test_lists_page_by_cursor(http: httpx.Client, film: Path) -> None:
    body = {"paths": [str(film)] * 5, "profile": "web"}
    ids = [job["id"] for job in http.post(f"{API}/jobs", json=body).json()["jobs"]]
    seen: list[str] = []
    cursor: str | None = None
    while True:
        asked = {"limit": "2"} | ({"cursor": cursor} if cursor else {})
        page = http.get(f"{API}/jobs", params=asked).json()
        seen += [job["id"] for job in page["jobs"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == ids[::-1]
    first = http.get(f"{API}/nodes", params={"limit": 1}).json()
    rest = http.get(f"{API}/nodes", params={"limit": 1, "cursor": first["next"]}).json()
    assert [first["nodes"][0]["name"], rest["nodes"][0]["name"]] == ["one", "two"]
    assert rest["next"] is None
    assert problem(http.get(f"{API}/nodes", params={"cursor": "other"}))["code"] == "usage"


@pytest.mark.parametrize("path", ["status", "jobs", "jobs/{job}"])
def test_a_consistent_question_waits_for_the_mesh_first(
    one: Served, http: httpx.Client, film: Path, path: str
) -> None:
    made = http.post(f"{API}/jobs", json={"paths": [str(film)], "profile": "web"}).json()["jobs"]
    url = f"{API}/{path.format(job=made[0]['id'])}"
    one.node.calls.clear()
    assert http.get(url).is_success
    assert "catch_up" not in one.node.calls
    one.node.calls.clear()
    assert http.get(url, params={"consistent": "true"}).is_success
    assert one.node.calls[0] == "catch_up"
    assert len(one.node.calls) == 2


def _all_errors() -> list[type[DarkStreamError]]:
    found = [DarkStreamError]
    for cls in found:
        found += cls.__subclasses__()
    return [cls for cls in found if cls.__module__ == errors.__name__]


def test_every_error_becomes_a_problem_with_its_code(one: Served, http: httpx.Client) -> None:
    for cls in _all_errors():
        one.node.failure = cls("it happened", "do this")
        answer = http.get(f"{API}/status")
        assert answer.status_code == cls.http_status, cls
        told = problem(answer)
        assert (told["code"], told["detail"], told["todo"]) == (cls.code, "it happened", "do this")


def test_a_defect_answers_without_its_inside(one: Served, http: httpx.Client) -> None:
    one.node.failure = ZeroDivisionError("secret detail")
    told = problem(http.get(f"{API}/status"))
    assert told["code"] == "internal"
    assert "secret" not in json.dumps(told)


def test_the_scheme_may_be_written_in_any_case(one: Served) -> None:
    head = {"authorization": f"bearer {one.token}"}  # RFC 9110, 11.1
    answer = httpx.get(f"http://{one.address}{API}/status", headers=head, trust_env=False)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "head", [{}, {"authorization": "Bearer x"}, {"authorization": ""}, {"authorization": "Bearer"}]
)
@pytest.mark.parametrize("path", ["/api/v1/status", "/api/v1/events", "/api/nothing", "/api/"])
def test_without_the_token_nothing_is_told(one: Served, path: str, head: dict[str, str]) -> None:
    answer = httpx.get(f"http://{one.address}{path}", headers=head, trust_env=False)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert problem(answer)["code"] == "not_allowed"
    assert one.node.calls == []


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7450", "10.0.0.1", "127.0.0.1.nip.io"]
)
def test_other_hosts_are_refused_also_with_the_token(http: httpx.Client, host: str) -> None:
    answer = http.get(f"{API}/status", headers={"host": host})
    assert answer.status_code == 421
    assert problem(answer)["code"] == "not_allowed"
    assert http.get("/livez", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "[::1]:7450", "127.0.0.1"])
def test_names_of_this_machine_are_hosts(http: httpx.Client, host: str) -> None:
    assert http.get(f"{API}/status", headers={"host": host}).status_code == 200


def test_two_hosts_are_none(one: Served) -> None:
    name, port = one.address.split(":")
    with socket.create_connection((name, int(port)), 5) as raw:
        raw.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n")
        assert raw.recv(64).split(b" ")[1] in (b"400", b"421")


BAD_BODIES: list[tuple[str, Any]] = [
    ("no JSON", b"{"),
    ("not an object", b"[]"),
    ("empty", b""),
    ("a nesting bomb", b"[" * 100_000),
    ("unknown field", {"paths": ["/a"], "profile": "web", "what": 1}),
    ("no paths", {"paths": [], "profile": "web"}),
    ("too many paths", {"paths": ["/a"] * 1_001, "profile": "web"}),
    ("a long path", {"paths": ["/" + "a" * 4_096], "profile": "web"}),
    ("a NUL", {"paths": ["/a\0b"], "profile": "web"}),
    ("a number as path", {"paths": [1], "profile": "web"}),
    ("a text as number", {"paths": ["/a"], "profile": "web", "priority": "1"}),
    ("a number as truth", {"paths": ["/a"], "profile": "web", "overwrite": 1}),
    ("priority", {"paths": ["/a"], "profile": "web", "priority": 101}),
    ("not a number", b'{"paths": ["/a"], "profile": "web", "priority": NaN}'),
]


@pytest.mark.parametrize(("why", "body"), BAD_BODIES, ids=[why for why, _ in BAD_BODIES])
def test_bad_bodies_get_one_clear_error(
    one: Served, http: httpx.Client, why: str, body: bytes | dict[str, Any]
) -> None:
    head = {"content-type": "application/json"}
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = http.post(f"{API}/jobs", content=raw, headers=head)
    assert answer.status_code == 400, why
    told = problem(answer)
    assert told["code"] == "usage"
    assert len(answer.content) < 20_000
    assert one.node.calls == []


def test_oversized_bodies_are_refused_declared_or_not(one: Served, http: httpx.Client) -> None:
    big = b"x" * (BODY_BYTES_MAX + 1)
    assert http.post(f"{API}/jobs", content=big).status_code == 413
    chunks = (b"x" * 65_536 for _ in range(BODY_BYTES_MAX // 65_536 + 2))
    assert problem(http.post(f"{API}/jobs", content=chunks))["status"] == 413
    assert one.node.calls == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/v1/nothing", 404),
        ("GET", "/nothing", 404),
        ("DELETE", "/api/v1/jobs", 405),
        ("GET", "/api/v1/jobs/unknown", 404),
        ("GET", "/api/v1/jobs?limit=0", 400),
        ("GET", "/api/v1/jobs?status=bogus", 400),
        ("GET", "/api/v1/jobs?cursor=none", 400),
        ("GET", "/api/v1/jobs?folder=%00", 400),
        ("GET", f"/api/v1/jobs?node={'n' * 65_000}", 400),
        ("HEAD", "/api/v1/status", 405),
        ("POST", "/api/v1/nodes/nobody/approve", 404),
        ("POST", f"/api/v1/nodes/{'n' * 65}/revoke", 400),
    ],
)
def test_wrong_requests(http: httpx.Client, method: str, path: str, status: int) -> None:
    answer = http.request(method, path)
    assert answer.status_code == status
    if method != "HEAD":
        assert problem(answer)["code"] in ("usage", "not_found")


def test_a_wrong_code_admits_nobody(one: Served, http: httpx.Client) -> None:
    answer = http.post(f"{API}/nodes/new/approve", json={"code": "000000"})
    assert answer.status_code == 403
    assert [pending.name for pending in one.node.pending] == ["new"]
    assert http.post(f"{API}/nodes/new/approve", json={"code": "12345x"}).status_code == 400


def test_openapi_is_the_page_and_every_path_tells_its_problems(one: Served) -> None:
    document = httpx.get(f"http://{one.address}{API}/openapi.json", trust_env=False).json()
    kept = json.loads((ROOT / "docs" / "openapi.json").read_text("utf-8"))
    # Which paths there are is told by the page that is checked in.
    assert document["paths"] == kept["paths"]
    for operations in document["paths"].values():
        for operation in operations.values():
            assert "application/problem+json" in operation["responses"]["default"]["content"]
            assert operation["description"] or operation["summary"]


def _events(http: httpx.Client, count: int, **head: str) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    with http.stream("GET", f"{API}/events", headers=head) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        current = 0
        for line in answer.iter_lines():
            if line.startswith("id: "):
                current = int(line[4:])
            elif line.startswith("event: "):
                found.append((current, line[7:]))
                if len(found) == count:
                    break
    return found


def test_events_resume_where_a_listener_stopped(
    one: Served, http: httpx.Client, film: Path
) -> None:
    before = one.on_loop(lambda: one.node.ring.last_id)
    http.post(f"{API}/jobs", json={"paths": [str(film)], "profile": "web"})
    first = _events(http, 3, **{"last-event-id": str(before)})
    again = _events(http, 2, **{"last-event-id": str(first[0][0])})
    assert first[0][1] == "job"
    assert [number for number, _ in first] == [before + 1, before + 2, before + 3]
    assert again == first[1:]


@pytest.mark.parametrize("lost", ["0", "9007199254740991"])
def test_what_cannot_be_resumed_is_a_gap(http: httpx.Client, film: Path, lost: str) -> None:
    http.post(f"{API}/jobs", json={"paths": [str(film)], "profile": "web"})
    assert _events(http, 1, **{"last-event-id": lost})[0][1] == "gap"
    assert problem(http.get(f"{API}/events", headers={"last-event-id": "x"}))["code"] == "usage"


def test_a_listener_that_leaves_is_forgotten_and_too_many_are_busy(
    one: Served, http: httpx.Client
) -> None:
    with http.stream("GET", f"{API}/events") as answer:
        opening = answer.iter_lines()
        assert next(opening) == "retry: 1000"
        wait_for("it listens", lambda: one.node.listeners == 1, 5)
    wait_for("it is forgotten", lambda: one.node.listeners == 0, 5)
    with contextlib.ExitStack() as streams:
        lines: list[Iterator[str]] = []  # a generator that is dropped closes its stream
        for _ in range(LISTENERS_MAX):
            lines.append(streams.enter_context(http.stream("GET", f"{API}/events")).iter_lines())
            next(lines[-1])
        refused = http.get(f"{API}/events")
        assert refused.status_code == 503
        assert problem(refused)["code"] == "busy"


def test_stopping_ends_open_streams_at_once(one: Served, http: httpx.Client) -> None:
    ended = threading.Event()

    def listen() -> None:
        with http.stream("GET", f"{API}/events") as answer:
            for _ in answer.iter_lines():
                pass
        ended.set()

    listener = threading.Thread(target=listen)
    listener.start()
    wait_for("it listens", lambda: one.node.listeners == 1, 5)
    one.stop()
    listener.join(5)
    assert ended.is_set()


@pytest.mark.parametrize("end", [Served.fail, Served.stop])
def test_who_waits_when_the_node_ends_is_told(
    one: Served,
    http: httpx.Client,
    caplog: pytest.LogCaptureFixture,
    end: Callable[[Served], None],
) -> None:
    one.on_loop(one.node.caught_up.clear)
    with ThreadPoolExecutor(1) as waiting:
        asked = waiting.submit(http.get, f"{API}/status", params={"consistent": "true"})
        wait_for("it waits", lambda: "catch_up" in one.node.calls, 5)
        end(one)
        answer = asked.result(5)
    assert answer.status_code == 503
    assert problem(answer)["code"] == "stopped"
    assert [r.message for r in caplog.records if r.levelname == "ERROR"] == []


def test_the_port_of_another_is_in_use(one: Served) -> None:
    host, port = one.address.split(":")
    with pytest.raises(InUseError) as caught:
        bind_api(host, int(port))
    assert caught.value.exit_code == 6
    with pytest.raises(errors.ConfigurationError, match="cannot listen"):
        bind_api("203.0.113.7", 0)


def test_the_token_is_for_its_owner_alone_and_stays(one: Served) -> None:
    file = one.home / "api.token"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text().strip() == one.token
    assert (one.home / "api.address").read_text().strip() == one.address


def test_silent_connections_keep_nobody_out_and_do_not_stay(
    one: Served, http: httpx.Client
) -> None:
    host, port = one.address.rsplit(":", 1)
    with contextlib.ExitStack() as stack:
        silent = []
        for number in range(400):
            raw = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
            raw.sendall(
                (b"", b"GET / HT", b"POST /api/v1/jobs HTTP/1.1\r\nHost: x\r\n")[number % 3]
            )
            silent.append(raw)
        for _ in range(3):
            assert http.get(f"{API}/status").status_code == 200
        # The oldest were hung up on, as many as there were too many.
        ended = 0
        for raw in silent[: 400 - IDLE_MAX - 8]:
            with contextlib.suppress(ConnectionResetError):
                assert raw.recv(1) == b""
            ended += 1
        assert ended == 400 - IDLE_MAX - 8


def test_a_head_that_does_not_end_ends_the_connection(
    one: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.2)
    host, port = one.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        # A whole request first: what follows it on the same connection has its time as well.
        raw.sendall(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert raw.recv(4_096).startswith(b"HTTP/1.1 200")
        raw.sendall(b"GET /livez HT")
        with contextlib.suppress(ConnectionResetError):
            while raw.recv(4_096):
                pass


def _asked(one: Served, stack: contextlib.ExitStack, head: str) -> socket.socket:
    host, port = one.address.rsplit(":", 1)
    raw = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
    raw.sendall(f"{head}\r\nHost: localhost\r\n\r\nonly the beginning".encode())
    return raw


def test_too_many_open_requests_are_told_so(one: Served, http: httpx.Client) -> None:
    with contextlib.ExitStack() as stack:
        waiting = f"POST {API}/tokens HTTP/1.1\r\nAuthorization: Bearer {one.token}"
        for number in range(REQUESTS_MAX):
            if number % (IDLE_MAX // 2) == 0:  # those that came too fast would be hung up on
                assert http.get(f"{API}/status").status_code == 200
            _asked(one, stack, f"{waiting}\r\nContent-Length: 99")
        wait_for("all are open", lambda: http.get(f"{API}/status").status_code == 503, 10)
        answer = http.get(f"{API}/status")
        assert (problem(answer)["code"], answer.status_code) == ("busy", 503)
    wait_for("they are gone", lambda: http.get(f"{API}/status").status_code == 200, 10)


def test_what_needs_no_token_takes_no_body(one: Served) -> None:
    with contextlib.ExitStack() as stack:
        raw = _asked(one, stack, "POST /livez HTTP/1.1\r\nContent-Length: 5000000")
        assert raw.recv(4_096).startswith(b"HTTP/1.1 405")
