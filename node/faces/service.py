"""What the faces see and do: the gateway's port, filled from this node's own replica.

Reads never need a coordinator; what changes something becomes a command.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Final

import structlog

from ledger.commands import RemoveMember, RevokeMember
from ledger.jobs import Job, Member
from ledger.queries import Reader
from ledger.scheduler_view import NodeView, SchedulerView
from mesh import clock
from mesh.codec import pack, unpack
from mesh.errors import (
    NoCoordinatorError,
    NotFoundError,
    UsageError,
    WireError,
)
from mesh.ids import MeshId, NodeId
from mesh.trust import INVITATION_ENTROPY_BYTES
from node.backup.views import backup_checks, backup_metrics
from node.faces.feed import names_of
from node.faces.mesh_view import MeshView, Parts, told_pending
from node.faces.profiles import Profiles, is_defined, with_definition
from node.faces.submitting import submit
from node.faces.validation import validated
from node.faces.views import job_detail, job_summary, live_of
from node.faces.waiting import Seen, reasons
from node.faces.work import Work, job_named
from node.gateway.config_models import Validated, ValidateRequest
from node.gateway.device_models import Detection
from node.gateway.events import EventRing
from node.gateway.models import (
    Approved,
    Check,
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
from node.gateway.work_models import Limited, LimitRequest
from node.membership.admission import Admission, create_invitation
from node.work.limiting import LIMITS, DeviceLimit, SetLimits
from node.work.limiting import METHOD as LIMIT

APPROVE: Final = "join.approve"
LIMIT_S: Final = 10.0
"""For a node to hear of a limit and keep it on its disk."""

_log = structlog.get_logger("gateway")


class Service:
    """`NodeService` of this node; `parts` is None until it belongs to a mesh."""

    def __init__(
        self,
        *,
        node: NodeId,
        name: str,
        version: str,
        open_to_all: bool,
        ring: EventRing,
        detection: Callable[[], Awaitable[Detection]],
    ) -> None:
        self.parts: Parts | None = None
        self._view = MeshView(node=node, name=name, version=version, open_to_all=open_to_all)
        self._name = name
        self._ring = ring
        self._detection = detection
        self.work = Work(name, self._member)
        self.profiles = Profiles(name, lambda: self.parts, self._member)

    @property
    def admission(self) -> Admission | None:
        """How others come to belong through this node."""
        return self._view.admission

    def serve(self, admission: Admission) -> None:
        """Joining works from now on."""
        self._view.admission = admission

    def other_mesh(self, tag: str) -> None:
        """Another mesh was heard nearby."""
        self._view.note_mesh(tag)

    def told(self) -> dict[str, object]:
        """This node's public state for hellos."""
        return self._view.told()

    def begin(self, parts: Parts) -> None:
        """From now on this node is a member."""
        self.parts = parts
        parts.requests.register(APPROVE, self._approve_for)

    def _member(self) -> Parts:
        if self.parts is None:
            waits = self.admission.waiting_for if self.admission is not None else ""
            raise NoCoordinatorError(
                "this node belongs to no mesh yet" + (f": {waits}" if waits else ""),
                "wait, approve it on a member (`mesh-cli nodes`), or start it with --join TOKEN",
            )
        return self.parts

    # --- looking ----------------------------------------------------------------------------------

    async def status(self) -> Status:
        """The mesh in one look."""
        return await self._view.status(self.parts)

    async def catch_up(self) -> None:
        """Returns once this replica holds everything acknowledged anywhere before the call."""
        await self._member().read_index.catch_up()

    async def nodes(self) -> NodesPage:
        """All members and all that ask to become one."""
        return await self._view.nodes(self.parts)

    async def jobs(self, wanted: JobFilter) -> JobsPage:
        """One page of jobs, newest first; the cursor is the last one's place in the order."""
        parts = self._member()
        before = None
        if wanted.cursor is not None:
            if not (wanted.cursor.isascii() and wanted.cursor.isdigit()):
                raise UsageError("the cursor is none of ours", "use `next` of the page before")
            before = int(wanted.cursor)
            if before >= 1 << 63:
                raise UsageError("the cursor is none of ours", "use `next` of the page before")

        def read(reader: Reader) -> JobsPage:
            names = names_of(reader)
            node = wanted.node
            if node is not None:
                member = reader.member_by_name(node)
                if member is None:
                    raise NotFoundError(f"no node {node}", "see `mesh-cli nodes`")
                node = member.node
            found = reader.jobs(
                state=wanted.status,
                node=node,
                since_ms=wanted.since_ms,
                tenant=wanted.tenant,
                limit=wanted.limit + 1,
                before_seq=before,
                until_ms=wanted.until_ms,
                profile=wanted.profile,
                folder=wanted.folder,
            )
            page = found[: wanted.limit]
            return JobsPage(
                jobs=[
                    job_summary(
                        job,
                        reader.attempts(job.id),
                        live_of(reader, parts.board, job.id),
                        names,
                    )
                    for job in page
                ],
                next=str(page[-1].seq) if len(found) > wanted.limit else None,
            )

        return await parts.replica.read(read)

    async def job(self, job: str) -> JobDetail:
        """One job by its id or an unambiguous beginning of it."""
        parts = self._member()
        view = await parts.coordinator.view(clock.monotonic_ms())

        def read(reader: Reader) -> JobDetail:
            found = job_named(reader, job)
            return job_detail(
                found,
                reader.tasks(found.id),
                reader.attempts(found.id),
                live=live_of(reader, parts.board, found.id),
                names=names_of(reader),
                waiting=reasons(found, self._seen(parts, reader, found, view)),
            )

        return await parts.replica.read(read)

    def _seen(self, parts: Parts, reader: Reader, job: Job, view: SchedulerView) -> Seen:
        """What this node knows of a job's surroundings; who is heard it knows by itself."""
        now_ms = clock.monotonic_ms()

        def heard(node: str) -> bool:
            return parts.neighbours.peers.is_alive(NodeId(node), now_ms)

        if not parts.driver.is_leader:
            view = replace(view, nodes=tuple(self._told_of(parts, n, now_ms) for n in view.nodes))
        return Seen(
            view=view,
            now_ms=now_ms,
            has_coordinator=parts.driver.leader is not None,
            owner=names_of(reader).get(job.owner, job.owner),
            owner_heard=heard(job.owner),
            first=0 if job.planned else reader.planned_before(job),
            leased=bool(reader.attempts(job.id, "leased")),
            owner_waits=parts.standing_of(NodeId(job.owner)).planning,
        )

    def _told_of(self, parts: Parts, node: NodeView, now_ms: int) -> NodeView:
        # Only the coordinator hears the heartbeats of workers; hellos say the same to all.
        own = NodeId(node.node)
        alive = parts.neighbours.peers.is_alive(own, now_ms)
        return replace(node, alive=alive)

    async def validate(self, request: ValidateRequest) -> Validated:
        """Every fault of a configuration."""
        return validated(request, self._name)

    async def detect(self) -> Detection:
        """What this machine can do."""
        return await self._detection()

    def events(self, after_id: int | None) -> AsyncIterator[Event]:
        """Events from now on, or those after `after_id`."""
        return self._ring.listen(after_id)

    async def health(self) -> Health:
        """Ledger, quorum, disk, workers: each with its reason."""
        parts = self.parts
        if parts is None:
            state = self.admission.state if self.admission is not None else "looking"
            return Health(
                ready=False, checks=[Check(name="mesh", ok=False, reason=f"this node is {state}")]
            )
        free = await asyncio.to_thread(parts.disk_free_bytes)
        leader = parts.driver.leader
        behind = parts.driver.raft.commit_index - parts.driver.applied_index
        checks = [
            Check(
                name="ledger",
                ok=behind < 10_000 and not parts.quarantine.fault,
                reason=parts.quarantine.fault or f"{behind} decided entries not applied yet",
            ),
            Check(
                name="quorum",
                ok=leader is not None,
                reason="a coordinator is known" if leader else "no coordinator is known",
            ),
            Check(name="disk", ok=free > 1 << 30, reason=f"{free >> 20} MiB free"),
            Check(
                name="worker",
                ok=parts.worker.accepting,
                reason="takes work" if parts.worker.accepting else "takes no new work",
            ),
        ]
        ready = all(check.ok for check in checks)
        # A node whose backups fail works all the same: told, and no reason to send it no work.
        return Health(ready=ready, checks=[*checks, *backup_checks(parts.backups())])

    async def metrics(self) -> list[Metric]:
        """Counters of refusals and of the log."""
        parts = self.parts
        metrics: list[Metric] = []
        if self.admission is not None:
            metrics += [
                _refused("join_protocol", code, count)
                for code, count in self.admission.refused.items()
            ]
        if parts is None:
            return metrics
        metrics += [_refused(*one) for one in parts.refusals()]
        metrics.append(
            Metric(
                name="log_applied_index",
                kind="gauge",
                help="Log index up to which this replica is applied.",
                value=float(parts.driver.applied_index),
            )
        )
        names = await parts.replica.read(names_of)
        metrics += parts.traffic.metrics(names)
        backups = backup_metrics(parts.backups())
        return [*metrics, _log_syncs(parts), *_consensus_metrics(parts), *backups]

    # --- acting -----------------------------------------------------------------------------------

    async def submit(self, request: SubmitRequest) -> SubmitResult:
        """Makes jobs of films and folders on this machine."""
        parts = self._member()
        if not is_defined(request):
            asked = request
            request = await parts.replica.read(lambda reader: with_definition(reader, asked))
        return await submit(parts, request, parts.digest_of)

    async def restore(self, job: str) -> Restored:
        """Brings the original that a job's result replaced back to its name, wherever it lies."""
        return await self._member().restoring.restore((await self.job(job)).id)

    async def create_token(self, uses: int, ttl_s: int) -> TokenResult:
        """A new invitation."""
        parts = self._member()
        mesh = await parts.replica.read(lambda reader: reader.mesh())
        if mesh is None:
            raise NoCoordinatorError("the mesh is only just forming", "try again in a moment")
        expires_at_ms = clock.wall_ms() + ttl_s * 1000
        text, command = create_invitation(
            MeshId(mesh.id),
            mesh.founder_key,
            entropy=secrets.token_bytes(INVITATION_ENTROPY_BYTES),
            uses=uses,
            expires_at_ms=expires_at_ms,
        )
        await parts.proposer.commit(command, cause="token create")
        return TokenResult(token=text, uses=uses, expires_at_ms=expires_at_ms)

    async def approve(self, name: str, code: str | None) -> Approved:
        """Admits a pending node, here or at the member that it asked."""
        parts = self._member()
        admission = self.admission
        assert admission is not None, "a member admits"
        try:
            pending = await admission.approve(name, code)
        except NotFoundError:
            for peer in parts.neighbours.peers.all():
                told = told_pending(parts.neighbours, peer.node, 0)
                if any(name in (one.name, one.id) for one in told):
                    answer = await parts.requests.call(
                        peer.node, APPROVE, pack((name, code)), timeout_s=20
                    )
                    node, found, shown = unpack(answer)
                    return Approved(id=node, name=found, code=shown)
            raise
        return Approved(id=pending.node, name=pending.facts.name, code=pending.code)

    async def _approve_for(self, caller: NodeId, body: bytes) -> bytes:
        match unpack(body):
            case (str() as name, (str() | None) as code):
                pass
            case _:
                raise WireError("not an approval")
        assert self.admission is not None, "a member admits"
        _log.info("approval by another member", member=caller, name=name)
        pending = await self.admission.approve(name, code)
        return pack((pending.node, pending.facts.name, pending.code))

    async def revoke(self, name: str) -> Revoked:
        """Distrusts a member for good."""
        parts = self._member()
        member = await self._named(parts, name)
        await parts.proposer.commit(
            RevokeMember(node=member.node, by=self._name), cause=f"revoke {name}"
        )
        return Revoked(id=member.node, name=member.name)

    async def remove(self, name: str) -> Removed:
        """Lets a member go for good; it hands over what it has and stops by itself."""
        parts = self._member()
        member = await self._named(parts, name)
        await parts.proposer.commit(
            RemoveMember(node=member.node, by=self._name), cause=f"remove {name}"
        )
        return Removed(id=member.node, name=member.name)

    async def limit(self, name: str, request: LimitRequest) -> Limited:
        """Tells a member how much to do; it keeps to it at once and over its restarts."""
        parts = self._member()
        member = await self._named(parts, name)
        link = await self._named(parts, request.link) if request.link is not None else None
        wanted = SetLimits(
            slots=request.slots,
            up=request.up,
            down=request.down,
            link=link.node if link is not None else None,
            devices=tuple(DeviceLimit(device=d, slots=n) for d, n in request.devices.items()),
        )
        answer = await parts.requests.call(
            NodeId(member.node), LIMIT, LIMITS.encode(wanted), timeout_s=LIMIT_S
        )
        held = LIMITS.decode(answer)
        return Limited(
            id=member.node,
            name=member.name,
            slots=held.slots,
            up=held.up,
            down=held.down,
            devices={one.device: one.slots for one in held.devices},
        )

    async def _named(self, parts: Parts, name: str) -> Member:
        member = await parts.replica.read(lambda reader: reader.member_by_name(name))
        if member is None:
            raise NotFoundError(f"no node {name}", "see `mesh-cli nodes`")
        return member


def _log_syncs(parts: Parts) -> Metric:
    return Metric(
        name="log_syncs_total",
        kind="counter",
        help="Writes of the log, each with one sync for all that arrived meanwhile.",
        value=float(parts.driver.log_writes),
    )


def _consensus_metrics(parts: Parts) -> list[Metric]:
    driver = parts.driver
    gauges = {
        "log_base_index": (
            "Log index up to which entries were compacted.",
            driver.log_base().index,
        ),
        "loop_lag_seconds": (
            "Worst lateness of this node's loop lately, fading with time.",
            driver.upkeep.lag.worst_ms(clock.monotonic_ms()) / 1000,
        ),
        "election_stretch_ratio": (
            "How much longer elections wait because the loop is late; 1: not at all.",
            driver.upkeep.stretch_percent / 100,
        ),
    }
    counters = {
        "snapshots_installed_total": (
            "Snapshots of other nodes that became this ledger.",
            driver.snapshots.installed,
        ),
        "divergences_total": (
            "Times that this replica was found to differ from the others.",
            parts.quarantine.divergences,
        ),
    }
    return [
        Metric(name=name, kind="gauge", help=text, value=float(value))
        for name, (text, value) in gauges.items()
    ] + [
        Metric(name=name, kind="counter", help=text, value=float(value))
        for name, (text, value) in counters.items()
    ]


def _refused(socket: str, reason: str, count: int) -> Metric:
    return Metric(
        name="refused_total",
        kind="counter",
        help="Frames, connections and requests that were refused or dropped.",
        value=float(count),
        labels={"socket": socket, "reason": reason},
    )
