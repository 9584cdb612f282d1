"""What a tenant may have waiting: judged once for a whole submission, before the first of its films is taken."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from ledger.jobs import Tenant
from ledger.orders import NO_LIMIT
from ledger.queries import Reader
from ledger.submissions import JobSpec
from mesh.errors import QuotaError
from node.faces.mesh_view import Parts


@asynccontextmanager
async def within_quota(
    parts: Parts, said: Tenant | None, jobs: Sequence[JobSpec]
) -> AsyncGenerator[None]:
    """Holds up other submissions of this node with a quota until these are in the ledger; `said` is of `quota_of`.

    Raises `QuotaError` where they do not fit, all of them.
    """
    if said is None or not jobs:
        yield
        return
    async with parts.submitting:
        # What was acknowledged elsewhere counts, too.
        await parts.read_index.catch_up()
        count, size = await parts.replica.read(
            lambda reader: reader.waiting_by_tenant().get(said.name, (0, 0))
        )
        check_quota(said, count, size, [job.source_bytes for job in jobs])
        yield


def quota_of(reader: Reader, tenant: str) -> Tenant | None:
    """What is said of a tenant, where that bounds what it may have waiting."""
    found = next((one for one in reader.tenants() if one.name == tenant), None)
    if found is None or found.queued_jobs == found.queued_bytes == NO_LIMIT:
        return None
    return found


def check_quota(tenant: Tenant, count: int, size: int, films: Sequence[int]) -> None:
    """Whether films of these bytes may wait beside those that do.  Raises `QuotaError`, which says how many fit."""
    jobs_left = len(films) if tenant.queued_jobs == NO_LIMIT else tenant.queued_jobs - count
    bytes_left = sum(films) if tenant.queued_bytes == NO_LIMIT else tenant.queued_bytes - size
    if len(films) <= jobs_left and sum(films) <= bytes_left:
        return
    fit = 0
    for film in films:
        bytes_left -= film
        if fit >= jobs_left or bytes_left < 0:
            break
        fit += 1
    whose = f"tenant {tenant.name}" if tenant.name else "tenant (none)"
    allowed: list[str] = []
    if tenant.queued_jobs != NO_LIMIT:
        allowed.append(f"{tenant.queued_jobs:,} films ({count:,} wait)")
    if tenant.queued_bytes != NO_LIMIT:
        allowed.append(f"{tenant.queued_bytes:,} bytes of films ({size:,} wait)")
    many = (
        f"{fit:,} of these {len(films):,} films fit" if len(films) > 1 else "this film does not fit"
    )
    raise QuotaError(
        f"{whose} may have {' and '.join(allowed)} waiting: {many}, nothing was taken",
        "submit fewer, wait until some are done, or ask for more: mesh-cli tenants set NAME"
        " --queued-jobs N --queued-bytes B",
    )
