"""Errors as RFC 9457 problem documents with our stable codes."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from mesh.errors import DarkStreamError
from node.gateway.models import Fault, Problem

FAULTS_MAX = 20
"""Wrong fields named in one answer; a body can hold thousands."""
TEXT_CHARS_MAX = 300


def problem_of(error: DarkStreamError, faults: Sequence[Fault] = ()) -> Problem:
    """The document for an error; its type is the address of the code in the documentation."""
    return Problem(
        type=f"urn:darkstream:error:{error.code}",
        title=(type(error).__doc__ or error.code).split(". ")[0].strip().rstrip("."),
        status=error.http_status,
        detail=error.what,
        code=error.code,
        todo=error.todo,
        faults=list(faults[:FAULTS_MAX]),
    )


def problem_response(
    problem: Problem, headers: Mapping[str, str] | None = None, *, status: int | None = None
) -> Response:
    """The document as an answer."""
    shown = problem if status is None else problem.model_copy(update={"status": status})
    return Response(
        shown.model_dump_json(),
        status_code=shown.status,
        media_type="application/problem+json",
        headers=dict(headers or {}),
    )


def plain_problem(status: int, detail: str) -> Problem:
    """The document for what HTTP itself refuses: an unknown path, a wrong method."""
    code = {404: "not_found", 401: "not_allowed", 403: "not_allowed"}.get(status, "usage")
    return Problem(
        type=f"urn:darkstream:error:{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        code=code,
        todo="the paths are listed at /api/v1/openapi.json" if status in (404, 405) else "",
    )


def faults_of(errors: Sequence[Mapping[str, Any]]) -> list[Fault]:
    """One fault for each wrong field, bounded, without repeating what was sent."""
    faults: list[Fault] = []
    for error in errors[:FAULTS_MAX]:
        place = [str(part)[:64] for part in error.get("loc", ()) if part not in ("body", "query")]
        what = str(error.get("msg", "")).removeprefix("Value error, ")[:TEXT_CHARS_MAX]
        if error.get("type") == "json_invalid":
            place, what = [], "the body is no JSON"
        faults.append(Fault(code="usage", what=f"{'.'.join(place)}: {what}" if place else what))
    return faults
