"""The HTTP API of a node on this machine, without the half second that a command takes to start."""

import contextlib
import http.client
import json
from typing import Any

from tests.cluster import Node

TIMEOUT_S = 20


def ask(node: Node, path: str, body: object = None) -> tuple[int, Any]:
    """Status and JSON of an answer; a POST when there is a body."""
    address = (node.home / "api.address").read_text("ascii").strip().removeprefix("http://")
    token = (node.home / "api.token").read_text("ascii").strip()
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    text = None if body is None else json.dumps(body)
    link = http.client.HTTPConnection(address, timeout=TIMEOUT_S)
    with contextlib.closing(link):
        link.request(
            "GET" if body is None else "POST", f"/api/v1{path}", body=text, headers=headers
        )
        answer = link.getresponse()
        return answer.status, json.loads(answer.read())
