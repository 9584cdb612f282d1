"""Arbitrary bodies, queries and headers: always an answer of the API's own, never a defect."""

import json
from collections.abc import Generator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from node.gateway.app import API
from tests.fake_node import Served, served

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
JSON = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = [
    "paths",
    "profile",
    "output",
    "overwrite",
    "priority",
    "tenant",
    "split",
    "dry_run",
    "what",
]
NEARLY = st.dictionaries(st.sampled_from(FIELDS), JSON | st.lists(st.text(max_size=8), max_size=3))
ENDPOINTS = ["/jobs", "/tokens", "/nodes/new/approve", "/nodes/two/revoke"]
QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Generator[Served]:
    with served(tmp_path_factory.mktemp("fuzz") / "home") as node:
        yield node


@pytest.fixture(scope="module")
def http(one: Served) -> Generator[httpx.Client]:
    head = {"authorization": f"Bearer {one.token}", "content-type": "application/json"}
    with httpx.Client(base_url=f"http://{one.address}", headers=head, trust_env=False) as client:
        yield client


def judge(answer: httpx.Response) -> None:
    if answer.is_success:
        answer.json()
        return
    assert 400 <= answer.status_code < 500, answer.text
    document = answer.json()
    assert document["status"] == answer.status_code
    assert document["code"]
    assert len(answer.content) < 20_000


@QUICK
@given(path=st.sampled_from(ENDPOINTS), body=JSON | NEARLY)
def test_any_json(http: httpx.Client, path: str, body: Any) -> None:
    judge(http.post(f"{API}{path}", content=json.dumps(body).encode()))


@QUICK
@given(path=st.sampled_from(ENDPOINTS), body=st.binary(max_size=200))
def test_any_bytes(http: httpx.Client, path: str, body: bytes) -> None:
    judge(http.post(f"{API}{path}", content=body))


@QUICK
@given(
    query=st.dictionaries(
        st.sampled_from(["status", "node", "since_ms", "tenant", "limit", "cursor", "after"]),
        st.text(max_size=30) | st.integers().map(str),
    )
)
def test_any_query(http: httpx.Client, query: dict[str, str]) -> None:
    judge(http.get(f"{API}/jobs", params=query))


@QUICK
@given(name=st.text(min_size=1, max_size=80))
@example(name="/")
def test_any_name(http: httpx.Client, name: str) -> None:
    from urllib.parse import quote  # noqa: PLC0415 - used once

    judge(http.post(f"{API}/nodes/{quote(name, safe='')}/approve"))
    judge(http.get(f"{API}/jobs/{quote(name, safe='')}"))


@QUICK
@given(
    token=st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), max_size=60),
    scheme=st.sampled_from(["Bearer", "bearer", "Basic", ""]),
)
def test_no_other_token_opens(one: Served, http: httpx.Client, token: str, scheme: str) -> None:
    head = {"authorization": f"{scheme} {token}".strip()}
    assert http.get(f"{API}/status", headers=head).status_code == 401
