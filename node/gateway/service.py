"""What the faces need of a node: the port that the gateway owns and the daemon fills.

Every method raises subclasses of `DarkStreamError` for what a person can meet: the gateway turns
them into problem documents, the command line into lines and exit codes.  All are called on the
node's own loop and must not block it.
"""

from collections.abc import AsyncIterator
from typing import Protocol

from node.gateway.config_models import Validated, ValidateRequest
from node.gateway.device_models import Detection
from node.gateway.models import (
    Approved,
    Event,
    Health,
    JobDetail,
    JobFilter,
    JobsPage,
    Metric,
    NodesPage,
    Removed,
    Restored,
    Revoked,
    Status,
    SubmitRequest,
    SubmitResult,
    TokenResult,
)
from node.gateway.profile_models import ProfileService
from node.gateway.work_models import Limited, LimitRequest
from node.gateway.work_service import WorkService


class NodeService(Protocol):
    """A node as its faces see it."""

    @property
    def profiles(self) -> ProfileService:
        """What is about profiles."""
        ...

    @property
    def work(self) -> WorkService:
        """What is about work."""
        ...

    async def status(self) -> Status:
        """The mesh in one look; answers in every state of the node, also without a mesh."""
        ...

    async def catch_up(self) -> None:
        """Returns once this node knows everything that was acknowledged anywhere before the call.

        Raises `NoCoordinatorError`, `BusyError`.
        """
        ...

    async def nodes(self) -> NodesPage:
        """All members, sorted by name, and all pending joins (the gateway cuts pages)."""
        ...

    async def jobs(self, wanted: JobFilter) -> JobsPage:
        """One page of jobs, newest first.  Raises `UsageError` for a cursor that is none of ours."""
        ...

    async def job(self, job: str) -> JobDetail:
        """One job by its id or by an unambiguous beginning of it.  Raises `NotFoundError`."""
        ...

    async def submit(self, request: SubmitRequest) -> SubmitResult:
        """Makes jobs of films and folders on this machine; with `dry_run` only says which.

        A path that gives no job is a fault of the result, not an exception.  Raises `UsageError`
        (unknown profile), `NoCoordinatorError`, `BusyError`.
        """
        ...

    async def restore(self, job: str) -> Restored:
        """Brings the original back that the job's result replaced, on the node that has it.

        Raises `NotFoundError`, `ConflictError` (another file has its name), `UnreachableError`.
        """
        ...

    async def create_token(self, uses: int, ttl_s: int) -> TokenResult:
        """A new invitation.  Raises `NoCoordinatorError`."""
        ...

    async def approve(self, name: str, code: str | None) -> Approved:
        """Admits the pending node of that name or id; refuses when its code is not `code`.

        Raises `NotFoundError`, `ConflictError` (several of that name), `NotAllowedError` (code),
        `NoCoordinatorError`.
        """
        ...

    async def revoke(self, name: str) -> Revoked:
        """Distrusts the member of that name or id for good.  Raises `NotFoundError`."""
        ...

    async def remove(self, name: str) -> Removed:
        """Lets the member of that name or id go for good.  Raises `NotFoundError`, `ConflictError`."""
        ...

    async def limit(self, name: str, request: LimitRequest) -> Limited:
        """Changes how much the member of that name or id does, at once and over its restarts.

        Raises `NotFoundError`, `UnreachableError` (it has to hear it), `UsageError`.
        """
        ...

    async def validate(self, request: ValidateRequest) -> Validated:
        """Every fault of a configuration, as this version reads it; nothing is changed or started."""
        ...

    async def detect(self) -> Detection:
        """What this machine can do; may take seconds the first time."""
        ...

    def events(self, after_id: int | None) -> AsyncIterator[Event]:
        """Events from now on, or those after `after_id`; ends when the node stops.

        Normally `EventRing.listen` (node.gateway.events).
        """
        ...

    async def health(self) -> Health:
        """Ledger, quorum, disk, workers: each with its reason."""
        ...

    async def metrics(self) -> list[Metric]:
        """Counters and gauges, those of refusals first of all."""
        ...
