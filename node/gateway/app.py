"""The HTTP API: routes, each a call of the `NodeService`, and errors as problem documents."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Body, FastAPI, Header, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from ledger.jobs import JobState
from mesh.errors import BusyError, DarkStreamError, UsageError
from node.gateway.config_models import Validated, ValidateRequest
from node.gateway.device_models import Detection
from node.gateway.guard import Guard
from node.gateway.models import (
    NAME_CHARS_MAX,
    PAGE_DEFAULT,
    PAGE_MAX,
    Approved,
    ApproveRequest,
    Health,
    JobDetail,
    JobFilter,
    JobsPage,
    NodesPage,
    PathText,
    Problem,
    Removed,
    Restored,
    Revoked,
    Status,
    SubmitRequest,
    SubmitResult,
    TokenRequest,
    TokenResult,
)
from node.gateway.problems import faults_of, plain_problem, problem_of, problem_response
from node.gateway.profile_routes import add_profile_routes
from node.gateway.service import NodeService
from node.gateway.streams import exposition, server_sent
from node.gateway.work_models import Limited, LimitRequest
from node.gateway.work_routes import add_work_routes

API = "/api/v1"
LISTENERS_MAX = 64
"""Open event streams of one node: browsers and terminals of a household or a team."""

NodeName = Annotated[str, Path(min_length=1, max_length=NAME_CHARS_MAX)]
Cursor = Annotated[str | None, Query(min_length=1, max_length=128)]
Consistent = Annotated[
    bool,
    Query(description="Wait until this node knows everything acknowledged anywhere before."),
]
_ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "A problem document (RFC 9457)",
        "content": {"application/problem+json": {"schema": Problem.model_json_schema()}},
    }
}


class Faces:
    """The application and what its routes share."""

    def __init__(self, service: NodeService, token: str, version: str) -> None:
        self.stopping = asyncio.Event()
        self._service = service
        self._listeners = 0
        app = FastAPI(
            title="DarkStream",
            version=version,
            openapi_url=f"{API}/openapi.json",
            redirect_slashes=False,  # a redirect would go wherever the Host header says
            docs_url=None,  # both pages load scripts from foreign hosts
            redoc_url=None,
            # Off, whatever the environment says: a film's path is nobody else's business.
            telemetry={
                "tracing": False,
                "metrics": False,
                "logs": False,
                "operation_spans": False,
                "auto_configure": False,
            },
        )
        self._handlers(app)
        self._reading(app)
        self._acting(app)
        self._watching(app)
        add_work_routes(app, API, lambda: service.work, _ERRORS)
        add_profile_routes(app, API, lambda: service.profiles, _ERRORS)
        self.api = app
        self.app: ASGIApp = Guard(app, token=token, stopping=self.stopping)

    def _handlers(self, app: FastAPI) -> None:
        async def ours(_: Request, error: Exception) -> Response:
            assert isinstance(error, DarkStreamError)
            return problem_response(problem_of(error))

        async def invalid(_: Request, error: Exception) -> Response:
            assert isinstance(error, RequestValidationError)
            faults = faults_of(error.errors())
            wrong = UsageError("; ".join(fault.what for fault in faults), "correct the request")
            return problem_response(problem_of(wrong, faults))

        async def http(_: Request, error: Exception) -> Response:
            assert isinstance(error, HTTPException)
            shown = plain_problem(error.status_code, str(error.detail))
            return problem_response(shown, error.headers)

        async def unforeseen(_: Request, error: Exception) -> Response:
            what = f"the node failed to answer: {type(error).__name__}"
            return problem_response(problem_of(DarkStreamError(what, "see the node's log")))

        app.add_exception_handler(DarkStreamError, ours)
        app.add_exception_handler(RequestValidationError, invalid)
        app.add_exception_handler(HTTPException, http)
        app.add_exception_handler(Exception, unforeseen)

    def _reading(self, app: FastAPI) -> None:
        service = self._service

        @app.get(f"{API}/status", responses=_ERRORS)
        async def status(*, consistent: Consistent = False) -> Status:
            """The mesh in one look."""
            if consistent:
                await service.catch_up()
            return await service.status()

        @app.get(f"{API}/nodes", responses=_ERRORS)
        async def nodes(
            limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = PAGE_MAX, cursor: Cursor = None
        ) -> NodesPage:
            """Members by name, and the nodes that ask to become one."""
            return _page(await service.nodes(), limit, cursor)

        @app.get(f"{API}/jobs", responses=_ERRORS)
        async def jobs(
            *,
            status: JobState | None = None,
            node: Annotated[str | None, Query(min_length=1, max_length=NAME_CHARS_MAX)] = None,
            since_ms: Annotated[int | None, Query(ge=0, lt=1 << 53)] = None,
            tenant: Annotated[str | None, Query(min_length=1, max_length=NAME_CHARS_MAX)] = None,
            until_ms: Annotated[int | None, Query(ge=0, lt=1 << 53)] = None,
            profile: Annotated[str | None, Query(min_length=1, max_length=NAME_CHARS_MAX)] = None,
            folder: Annotated[PathText | None, Query()] = None,
            limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = PAGE_DEFAULT,
            cursor: Cursor = None,
            consistent: Consistent = False,
        ) -> JobsPage:
            """Jobs, newest first."""
            if consistent:
                await service.catch_up()
            wanted = JobFilter(
                status=status,
                node=node,
                since_ms=since_ms,
                tenant=tenant,
                until_ms=until_ms,
                profile=profile,
                folder=folder,
                limit=limit,
                cursor=cursor,
            )
            return await service.jobs(wanted)

        @app.get(f"{API}/jobs/{{job}}", responses=_ERRORS)
        async def job(
            *,
            job: Annotated[str, Path(min_length=1, max_length=64)],
            consistent: Consistent = False,
        ) -> JobDetail:
            """One job with its tasks and attempts; an unambiguous beginning of its id will do."""
            if consistent:
                await service.catch_up()
            return await service.job(job)

        @app.get(f"{API}/detect", responses=_ERRORS)
        async def detect() -> Detection:
            """What the node's machine can do."""
            return await service.detect()

    def _acting(self, app: FastAPI) -> None:
        service = self._service

        @app.post(f"{API}/jobs", responses=_ERRORS)
        async def submit(request: SubmitRequest) -> SubmitResult:
            """Makes jobs of films and folders on the node's machine."""
            return await service.submit(request)

        @app.post(f"{API}/jobs/{{job}}/restore", responses=_ERRORS)
        async def restore(job: Annotated[str, Path(min_length=1, max_length=64)]) -> Restored:
            """Brings the original back that the job's result replaced."""
            return await service.restore(job)

        @app.post(f"{API}/tokens", responses=_ERRORS)
        async def create_token(request: TokenRequest) -> TokenResult:
            """A new invitation."""
            return await service.create_token(request.uses, request.ttl_s)

        @app.post(f"{API}/validate", responses=_ERRORS)
        async def validate(request: ValidateRequest) -> Validated:
            """Every fault of a configuration file (`node.toml`), as the node's version reads it."""
            return await service.validate(request)

        @app.post(f"{API}/nodes/{{name}}/approve", responses=_ERRORS)
        async def approve(
            name: NodeName, request: Annotated[ApproveRequest | None, Body()] = None
        ) -> Approved:
            """Admits a pending node, by name or id."""
            return await service.approve(name, request.code if request else None)

        @app.post(f"{API}/nodes/{{name}}/revoke", responses=_ERRORS)
        async def revoke(name: NodeName) -> Revoked:
            """Distrusts a member for good, by name or id."""
            return await service.revoke(name)

        @app.post(f"{API}/nodes/{{name}}/remove", responses=_ERRORS)
        async def remove(name: NodeName) -> Removed:
            """Lets a member go for good, by name or id; it hands over first, and may join anew."""
            return await service.remove(name)

        @app.post(f"{API}/nodes/{{name}}/limit", responses=_ERRORS)
        async def limit(name: NodeName, request: LimitRequest) -> Limited:
            """How much a member does: slots, and rates of its transfers, at once."""
            return await service.limit(name, request)

    def _watching(self, app: FastAPI) -> None:
        service = self._service

        @app.get(
            f"{API}/events",
            response_class=StreamingResponse,
            responses={200: {"content": {"text/event-stream": {}}}, **_ERRORS},
        )
        async def events(
            last_event_id: Annotated[int | None, Header(ge=0, lt=1 << 53)] = None,
            after: Annotated[int | None, Query(ge=0, lt=1 << 53)] = None,
        ) -> StreamingResponse:
            """Live state as server-sent events; resumes after `Last-Event-ID` or `after`."""
            resume = after if last_event_id is None else last_event_id
            return StreamingResponse(
                self._stream(resume),
                media_type="text/event-stream",
                headers={"cache-control": "no-store"},
            )

        @app.get("/livez", include_in_schema=False)
        async def livez() -> dict[str, str]:
            return {"status": "the loop turns"}

        @app.get("/readyz", include_in_schema=False)
        async def readyz() -> JSONResponse:
            health: Health = await service.health()
            return JSONResponse(health.model_dump(), status_code=200 if health.ready else 503)

        @app.get("/metrics", include_in_schema=False)
        async def metrics() -> Response:
            return Response(
                exposition(await service.metrics()), media_type="text/plain; version=0.0.4"
            )

    def _stream(self, after: int | None) -> AsyncIterator[str]:
        """Subscribes now, so that nothing is missed between the answer's head and its first line."""
        if self._listeners >= LISTENERS_MAX:
            raise BusyError(
                f"{LISTENERS_MAX} listeners follow this node's events already",
                "close some, or ask for the state instead",
            )
        events = self._service.events(after)

        async def counted() -> AsyncIterator[str]:
            self._listeners += 1
            try:
                async for text in server_sent(events, self.stopping):
                    yield text
            finally:
                self._listeners -= 1

        return counted()


def _page(all_nodes: NodesPage, limit: int, cursor: str | None) -> NodesPage:
    nodes = all_nodes.nodes
    start = 0
    if cursor is not None:
        ids = [node.id for node in nodes]
        if cursor not in ids:
            raise UsageError("the cursor is none of this list", "start again without a cursor")
        start = ids.index(cursor) + 1
    chosen = nodes[start : start + limit]
    more = start + limit < len(nodes)
    return NodesPage(
        nodes=chosen, pending=all_nodes.pending, next=chosen[-1].id if more and chosen else None
    )
