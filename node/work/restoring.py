"""Bringing replaced originals back: asked of any node, done by the one that has the film."""

from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from ledger.jobs import Job
from mesh.errors import NotFoundError, WireError
from mesh.ids import NodeId
from node.consensus.replica import Replica
from node.gateway.models import Restored
from node.requests import Requests

RESTORE: Final = "film.restore"
RESTORE_S: Final = 120.0
"""The result may have to be read once, to be sure that it is the result."""
ID_BYTES_MAX: Final = 64

_log = structlog.get_logger("owner")


class Restoring:
    """Both ends of `job restore`."""

    def __init__(
        self,
        own: NodeId,
        replica: Replica,
        requests: Requests,
        restore: Callable[[Job], Awaitable[Restored]],
    ) -> None:
        """`restore` does it for a film of this node."""
        self._own = own
        self._replica = replica
        self._requests = requests
        self._restore = restore
        requests.register(RESTORE, self._on_restore)

    async def restore(self, job_id: str) -> Restored:
        """Raises `NotFoundError`, `ConflictError`, `UnreachableError` when the owner is silent."""
        job = await self._job(job_id)
        if job.owner == self._own:
            return await self._restore(job)
        answer = await self._requests.call(
            NodeId(job.owner), RESTORE, job.id.encode(), timeout_s=RESTORE_S, cause=job.id
        )
        return Restored.model_validate_json(answer)

    async def _on_restore(self, caller: NodeId, body: bytes) -> bytes:
        if len(body) > ID_BYTES_MAX:
            raise WireError("no id of a job")
        job = await self._job(body.decode("ascii", "replace"))
        if job.owner != self._own:
            raise NotFoundError(f"the film of job {job.id} is not on this node", "ask its owner")
        _log.info("restoring for another member", member=caller, job=job.id)
        return (await self._restore(job)).model_dump_json().encode()

    async def _job(self, job_id: str) -> Job:
        job = await self._replica.read(lambda reader: reader.job(job_id))
        if job is None:
            raise NotFoundError(f"no job {job_id}", "see `mesh-cli jobs`")
        return job
