"""What is said of tenants: shares and quotas, as commands and answers."""

from ledger.jobs import Tenant
from ledger.orders import NO_LIMIT, PutTenant, RemoveTenant
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
    found = await parts.replica.read(lambda reader: reader.tenants())
    return Tenants(tenants=[_info(tenant) for tenant in found])


async def put(parts: Parts, request: TenantRequest, by: str) -> TenantInfo:
    """Changes what the request names, and leaves the rest as it is."""
    known = await _known(parts, request.name)
    before = known or Tenant(name=request.name, share=1, slots=NO_LIMIT, updated_at_ms=0)
    command = PutTenant(
        name=request.name,
        share=before.share if request.share is None else request.share,
        slots=before.slots if request.slots is None else request.slots,
        by=by,
    )
    await parts.proposer.commit(command, cause="tenants set")
    return TenantInfo(name=command.name, share=command.share, slots=_slots(command.slots))


async def remove(parts: Parts, request: RemoveTenantRequest, by: str) -> TenantInfo:
    """What was said of it.  Raises `NotFoundError`."""
    known = await _known(parts, request.name)
    if known is None:
        raise NotFoundError(f"nothing is said of {request.name!r}", "see `mesh-cli tenants list`")
    await parts.proposer.commit(RemoveTenant(name=request.name, by=by), cause="tenants remove")
    return _info(known)


async def _known(parts: Parts, name: str) -> Tenant | None:
    found = await parts.replica.read(lambda reader: reader.tenants())
    return next((tenant for tenant in found if tenant.name == name), None)


def _info(tenant: Tenant) -> TenantInfo:
    return TenantInfo(name=tenant.name, share=tenant.share, slots=_slots(tenant.slots))


def _slots(slots: int) -> int | None:
    return None if slots == NO_LIMIT else slots
