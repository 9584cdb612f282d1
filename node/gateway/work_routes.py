"""Routes of the HTTP API about work, each a call of the `WorkService`."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query

from node.gateway.models import NAME_CHARS_MAX
from node.gateway.work_models import (
    Changed,
    ChangeRequest,
    JobHistory,
    NodeWork,
    OrderInfo,
    Released,
    RemoveTenantRequest,
    Stats,
    TenantInfo,
    TenantRequest,
    Tenants,
    Watches,
    WatchInfo,
    WatchRequest,
    WorkRequest,
)
from node.gateway.work_service import WorkService

_Id = Annotated[str, Path(min_length=1, max_length=64)]
_Name = Annotated[str, Path(min_length=1, max_length=NAME_CHARS_MAX)]


def add_work_routes(
    app: FastAPI, api: str, work: Callable[[], WorkService], errors: dict[int | str, dict[str, Any]]
) -> None:
    """Adds them; `errors` is how the API documents its problem documents."""

    @app.post(f"{api}/jobs/change", responses=errors)
    async def change(request: ChangeRequest) -> Changed:
        """Cancels, retries or gives another priority: named jobs at once, chosen ones in steps."""
        return await work().change(request)

    @app.get(f"{api}/orders/{{order}}", responses=errors)
    async def order(order: _Id) -> OrderInfo:
        """How far an order about many jobs is."""
        return await work().order(order)

    @app.get(f"{api}/jobs/{{job}}/history", responses=errors)
    async def history(job: _Id) -> JobHistory:
        """Everything that happened to a job, with all its attempts."""
        return await work().history(job)

    @app.get(f"{api}/stats", responses=errors)
    async def stats(since_ms: Annotated[int, Query(ge=0, lt=1 << 53)] = 0) -> Stats:
        """What was done, by node, profile and day."""
        return await work().stats(since_ms)

    @app.post(f"{api}/watches", responses=errors)
    async def add_watch(request: WatchRequest) -> WatchInfo:
        """Converts what appears in a folder of this node's machine."""
        return await work().add_watch(request)

    @app.get(f"{api}/watches", responses=errors)
    async def watches() -> Watches:
        """All watched folders."""
        return await work().watches()

    @app.delete(f"{api}/watches/{{watch}}", responses=errors)
    async def remove_watch(watch: _Id) -> WatchInfo:
        """Watches a folder no more; its jobs go on."""
        return await work().remove_watch(watch)

    @app.post(f"{api}/nodes/{{name}}/work", responses=errors)
    async def set_work(name: _Name, request: WorkRequest) -> NodeWork:
        """When and how a node works: pause, resume, drain, hours, priority, threads; by name or id."""
        return await work().set_work(name, request)

    @app.post(f"{api}/nodes/{{name}}/release", responses=errors)
    async def release(name: _Name) -> Released:
        """Gives a node work again that was quarantined for its failures, by name or id."""
        return await work().release(name, "a person")

    @app.get(f"{api}/tenants", responses=errors)
    async def tenants() -> Tenants:
        """Tenants of whom something is said: shares and quotas."""
        return await work().tenants()

    @app.post(f"{api}/tenants", responses=errors)
    async def put_tenant(request: TenantRequest) -> TenantInfo:
        """Gives a tenant a share and a quota."""
        return await work().put_tenant(request)

    @app.post(f"{api}/tenants/remove", responses=errors)
    async def remove_tenant(request: RemoveTenantRequest) -> TenantInfo:
        """Says nothing of a tenant any more; its jobs go on."""
        return await work().remove_tenant(request)
