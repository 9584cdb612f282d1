"""What is said of tenants: shares and quotas, as commands and answers."""

from dataclasses import replace

from ledger.jobs import Tenant
from ledger.orders import NO_LIMIT, PutTenant, RemoveTenant
from ledger.queries import Reader
from mesh.errors import NotFoundError
from node.faces.mesh_view import Parts
from node.gateway.work_models import (
    RemoveTenantRequest,
    TenantInfo,
    TenantRequest,
    Tenants,
)


async def listed(parts: Parts) -> Tenants:
    """All of whom something is said."""

    def read(reader: Reader) -> Tenants:
        waiting = reader.waiting_by_tenant()
        return Tenants(
            tenants=[
                _info(tenant, *waiting.get(tenant.name, (0, 0))) for tenant in reader.tenants()
            ]
        )

    return await parts.replica.read(read)


async def put(parts: Parts, request: TenantRequest, by: str) -> TenantInfo:
    """Changes what the request names, and leaves the rest as it is."""
    known = await _known(parts, request.name)
    before = known or Tenant(
        name=request.name,
        share=1,
        slots=NO_LIMIT,
        queued_jobs=NO_LIMIT,
        queued_bytes=NO_LIMIT,
        updated_at_ms=0,
    )
    command = PutTenant(
        name=request.name,
        share=_or(request.share, before.share),
        slots=_or(request.slots, before.slots),
        queued_jobs=_or(request.queued_jobs, before.queued_jobs),
        queued_bytes=_or(request.queued_bytes, before.queued_bytes),
        by=by,
    )
    await parts.proposer.commit(command, cause="tenants set")
    now = replace(
        before,
        share=command.share,
        slots=command.slots,
        queued_jobs=command.queued_jobs,
        queued_bytes=command.queued_bytes,
    )
    return await _with_waiting(parts, now)


async def remove(parts: Parts, request: RemoveTenantRequest, by: str) -> TenantInfo:
    """What was said of it.  Raises `NotFoundError`."""
    known = await _known(parts, request.name)
    if known is None:
        raise NotFoundError(f"nothing is said of {request.name!r}", "see `mesh-cli tenants list`")
    await parts.proposer.commit(RemoveTenant(name=request.name, by=by), cause="tenants remove")
    return await _with_waiting(parts, known)


async def _known(parts: Parts, name: str) -> Tenant | None:
    found = await parts.replica.read(lambda reader: reader.tenants())
    return next((tenant for tenant in found if tenant.name == name), None)


async def _with_waiting(parts: Parts, tenant: Tenant) -> TenantInfo:
    waiting = await parts.replica.read(lambda reader: reader.waiting_by_tenant())
    return _info(tenant, *waiting.get(tenant.name, (0, 0)))


def _info(tenant: Tenant, jobs: int, size: int) -> TenantInfo:
    return TenantInfo(
        name=tenant.name,
        share=tenant.share,
        slots=_limit(tenant.slots),
        queued_jobs=_limit(tenant.queued_jobs),
        queued_bytes=_limit(tenant.queued_bytes),
        waiting_jobs=jobs,
        waiting_bytes=size,
    )


def _limit(number: int) -> int | None:
    return None if number == NO_LIMIT else number


def _or(wanted: int | None, before: int) -> int:
    return before if wanted is None else wanted
