"""What the faces need of a node's work: a part of the gateway's port, apart for its size."""

from typing import Protocol

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


class WorkService(Protocol):
    """Orders about jobs and nodes; errors as of `NodeService`."""

    async def change(self, request: ChangeRequest) -> Changed:
        """Does one thing to many jobs.  Raises `NotFoundError`, `ConflictError` (an id that is ambiguous)."""
        ...

    async def order(self, order: str) -> OrderInfo:
        """How far an order about many jobs is.  Raises `NotFoundError`."""
        ...

    async def history(self, job: str) -> JobHistory:
        """Everything that happened to a job.  Raises `NotFoundError`."""
        ...

    async def stats(self, since_ms: int) -> Stats:
        """What was done since then, by node, profile and day; up to five seconds old."""
        ...

    async def add_watch(self, request: WatchRequest) -> WatchInfo:
        """Watches a folder of this machine.  Raises `PathError`, `ConflictError`, `UsageError`."""
        ...

    async def watches(self) -> Watches:
        """All watched folders."""
        ...

    async def remove_watch(self, watch: str) -> WatchInfo:
        """Watches no more.  Raises `NotFoundError`."""
        ...

    async def set_work(self, name: str, request: WorkRequest) -> NodeWork:
        """Changes when and how a node works, at once and over its restarts.

        Raises `NotFoundError`, `UnreachableError` (it has to hear it), `UsageError`.
        """
        ...

    async def release(self, name: str, by: str) -> Released:
        """Gives a quarantined node work again.  Raises `NotFoundError`."""
        ...

    async def tenants(self) -> Tenants:
        """Tenants of whom something is said."""
        ...

    async def put_tenant(self, request: TenantRequest) -> TenantInfo:
        """A tenant's share and quota from now on."""
        ...

    async def remove_tenant(self, request: RemoveTenantRequest) -> TenantInfo:
        """Nothing is said of it any more; what was.  Raises `NotFoundError`."""
        ...
