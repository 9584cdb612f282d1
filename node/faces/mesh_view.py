"""The mesh as one node sees it, for its faces: who belongs, who leads, who lives, who asks to join."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from ledger.jobs import Attempt, Member, Node
from ledger.queries import Reader
from ledger.submissions import SubmitFilms, SubmitJobs
from mesh import clock
from mesh.errors import DivergenceError, TwinIdentityError
from mesh.ids import NodeId, RaftId, node_of
from node.backup.rounds import BackupState
from node.backup.views import backup_info
from node.consensus.driver import Driver
from node.consensus.proposer import Proposer
from node.consensus.quarantine import Quarantine
from node.consensus.read_index import ReadIndex
from node.consensus.replica import Replica
from node.faces.feed import names_of
from node.faces.quorum import VoterSeen, why_undecided
from node.faces.views import Names, device_slots, progress_view
from node.gateway.models import NodeInfo, NodesPage, PendingJoin, Status, SubmitRequest
from node.membership.admission import Admission
from node.membership.neighbours import Neighbours
from node.requests import Requests
from node.work.coordinator import Coordinator
from node.work.migration import waiting_notes
from node.work.progress import ProgressBoard
from node.work.restoring import Restoring
from node.work.standing import Standing
from node.work.submission import Submission
from node.work.traffic import Traffic
from node.work.watcher import Watched
from node.work.worker import Worker

PENDING_TOLD_MAX: Final = 10
"""What a member tells of the nodes that ask it: as many as may wait at one host."""
OTHER_MESHES_MAX: Final = 16

_log = structlog.get_logger("gateway")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a node consists of once it belongs to a mesh."""

    driver: Driver
    proposer: Proposer
    requests: Requests
    replica: Replica
    read_index: ReadIndex
    quarantine: Quarantine
    neighbours: Neighbours
    coordinator: Coordinator
    board: ProgressBoard
    worker: Worker
    prepare: Callable[[SubmitRequest], Awaitable[Submission]]
    submit: Callable[[SubmitJobs | SubmitFilms], Awaitable[int]]
    """Commits new jobs of films of this machine."""
    traffic: Traffic
    refusals: Callable[[], Iterable[tuple[str, str, int]]]
    """(socket, reason, count)"""
    backups: Callable[[], Sequence[BackupState]]
    disk_free_bytes: Callable[[], int]
    standing_of: Callable[[NodeId], Standing]
    digest_of: Callable[[str], Awaitable[str]]
    own: NodeId
    folder_of: Callable[[str, str | None], Path]
    """A folder that may be watched, with an output that may be written."""
    watched: Callable[[], Mapping[str, Watched]]
    """How the watched folders of this machine stand, by id."""
    restoring: Restoring
    submitting: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One submission after the other, where a quota counts what waits."""


class MeshView:
    """Answers about the mesh, in every state of the node."""

    def __init__(self, *, node: NodeId, name: str, version: str, open_to_all: bool) -> None:
        self.admission: Admission | None = None
        self._other_meshes: set[str] = set()
        self._node = node
        self._name = name
        self._version = version
        self._open = open_to_all
        self._counted: tuple[int, dict[str, int]] = (-1, {})

    def _jobs(self, reader: Reader) -> dict[str, int]:
        """Jobs by state; counted anew only when something was applied since: a million take 50 ms."""
        index = reader.applied().index
        if self._counted[0] != index:
            self._counted = index, reader.count_by_state()
        return self._counted[1]

    def note_mesh(self, tag: str) -> None:
        """Another mesh was heard nearby."""
        if len(self._other_meshes) < OTHER_MESHES_MAX:
            self._other_meshes.add(tag)

    async def status(self, parts: Parts | None) -> Status:
        """The mesh in one look."""
        admission = self.admission
        if parts is None:
            waits = admission.waiting_for if admission is not None else ""
            return Status(
                node=self._name,
                node_id=self._node,
                version=self._version,
                mesh=None,
                state=admission.state if admission is not None else "looking",
                join_code=admission.join_code if admission is not None else None,
                open=self._open,
                notes=[waits] if waits else [],
            )

        def read(reader: Reader) -> tuple[str | None, Names, Sequence[Member], dict[str, int], int]:
            mesh = reader.mesh()
            return (
                mesh.id if mesh is not None else None,
                names_of(reader),
                reader.members(active_only=True),
                self._jobs(reader),
                reader.schema(),
            )

        mesh, names, members, jobs, schema = await parts.replica.read(read)
        raft = parts.driver.raft
        configuration = raft.configuration
        voters = configuration.voters if configuration is not None else ()
        learners = configuration.learners if configuration is not None else ()
        leader = parts.driver.leader
        now_ms = clock.monotonic_ms()
        alive = [m for m in members if parts.neighbours.peers.is_alive(NodeId(m.node), now_ms)]
        ids = {m.node for m in alive}
        running = [
            shown
            for live in parts.board.running()
            if (shown := progress_view(live, names)) is not None
        ]
        return Status(
            node=self._name,
            node_id=self._node,
            version=self._version,
            mesh=mesh,
            state="member",
            open=self._open,
            coordinator=_name(names, leader),
            quorum=leader is not None,
            unprotected=len(voters) == 1 and not any(node_of(r) in ids for r in learners),
            term=raft.term,
            commit_index=raft.commit_index,
            applied_index=parts.driver.applied_index,
            voters=[_name(names, voter) or voter for voter in voters],
            learners=[_name(names, learner) or learner for learner in learners],
            nodes_alive=len(alive),
            nodes_total=len(members),
            jobs=jobs,
            running=running,
            backups=[backup_info(state) for state in parts.backups()],
            notes=[
                *self._notes(parts, voters, ids, names),
                *(_twin_note(names.get(twin, twin)) for twin in parts.neighbours.twins()),
                *waiting_notes(members, parts.neighbours.schema_of, schema),
            ],
        )

    def _notes(
        self,
        parts: Parts,
        voters: Sequence[RaftId],
        alive: set[str],
        names: Names,
    ) -> list[str]:
        notes: list[str] = []
        if parts.quarantine.fault:
            notes.append(DivergenceError(parts.quarantine.fault).line())
        if parts.driver.leader is None:
            seen = [
                VoterSeen(name=_name(names, voter) or voter, alive=node_of(voter) in alive)
                for voter in voters
            ]
            notes.append("; ".join(why_undecided(seen)))
        if self._open:
            notes.append("this node admits everyone on its network without asking (--open)")
        if self._other_meshes:
            notes.append(
                "another mesh is nearby; meshes never merge by themselves: to move a node over, stop"
                " it, remove its home, and start it with a token of the other mesh"
            )
        return notes

    async def nodes(self, parts: Parts | None) -> NodesPage:
        """All members and all that ask to become one, at whichever node they ask."""
        pending = self._own_pending()
        if parts is None:
            return NodesPage(nodes=[], pending=pending)
        members, reported, attempts = await parts.replica.read(
            lambda reader: (
                reader.members(),
                {node.node: node for node in reader.nodes()},
                reader.active_attempts(),
            )
        )
        held: dict[str, list[Attempt]] = {}
        for attempt in attempts:
            held.setdefault(attempt.node, []).append(attempt)
        infos: list[NodeInfo] = []
        for member in members:
            info = self._node_info(parts, member)
            if (node := reported.get(member.node)) is not None:
                leases = held.get(member.node, [])
                devices = device_slots(node, leases)
                standing = parts.standing_of(NodeId(node.node))
                info = info.model_copy(
                    update={
                        "ffmpeg": node.ffmpeg,
                        "encoders": list(node.encoders),
                        "slots": sum(one.slots for one in devices) if devices else node.slots,
                        "devices": devices,
                        "closed": _closed(node, standing),
                        "labels": list(standing.labels),
                        "slots_busy": len(leases),
                        "cpus": node.cpus,
                        "platform": node.platform,
                        "version": node.version,
                        "jobs": [attempt.job for attempt in leases],
                    }
                )
            infos.append(info)
            pending += told_pending(parts.neighbours, NodeId(member.node), clock.wall_ms())
        unique = {one.id: one for one in reversed(pending)}
        return NodesPage(nodes=infos, pending=list(reversed(unique.values())))

    def _node_info(self, parts: Parts, member: Member) -> NodeInfo:
        node, raft_id = NodeId(member.node), RaftId(member.raft_id)
        configuration = parts.driver.raft.configuration
        peer = parts.neighbours.peers.get(node)
        facts = parts.neighbours.facts
        now_ms = clock.monotonic_ms()
        hosts: tuple[str, ...] = ()
        port = 0
        if node == self._node:
            hosts, port = facts.hosts(), facts.control_port
        elif peer is not None and peer.address is not None:
            hosts, port = peer.address.hosts, peer.address.control_port
        sent, received = parts.traffic.bytes_of(node)
        up, down = parts.traffic.limits_of(node)
        vote = "none"
        if configuration is not None:
            vote = (
                "voter"
                if raft_id in configuration.voters
                else "learner"
                if raft_id in configuration.learners
                else "none"
            )
        active = member.state == "active"
        return NodeInfo(
            id=node,
            name=member.name,
            role=member.role,
            state="member" if member.state == "active" else member.state,
            alive=active and parts.neighbours.peers.is_alive(node, now_ms),
            coordinator=parts.driver.leader == raft_id,
            vote=vote,  # type: ignore[arg-type]  # one of the three by the lines above
            this=node == self._node,
            last_heard_ms=0
            if node == self._node
            else None
            if peer is None or peer.heard_ms is None
            else now_ms - peer.heard_ms,
            addresses=[f"[{h}]:{port}" if ":" in h else f"{h}:{port}" for h in hosts],
            sent_bytes=sent,
            received_bytes=received,
            limit_up=up,
            limit_down=down,
        )

    def told(self) -> dict[str, object]:
        """This node's public state for hellos: who asks to join here."""
        pending = [
            (one.id, one.name, one.code, one.address, clock.wall_ms() - one.asked_at_ms)
            for one in self._own_pending()[:PENDING_TOLD_MAX]
        ]
        return {"pending": pending} if pending else {}

    def _own_pending(self) -> list[PendingJoin]:
        if self.admission is None:
            return []
        now_ms, wall_ms = clock.monotonic_ms(), clock.wall_ms()
        return [
            PendingJoin(
                id=one.node,
                name=one.facts.name,
                code=one.code,
                address=one.address,
                asked_at_ms=wall_ms - (now_ms - one.asked_ms),
            )
            for one in self.admission.pending()
        ]


def told_pending(neighbours: Neighbours, node: NodeId, wall_ms: int) -> list[PendingJoin]:
    """Who asks another member to join, as that member told it; what cannot be read is left out."""
    told = neighbours.status_of(node).get("pending")
    found: list[PendingJoin] = []
    for one in told if isinstance(told, tuple) else ():
        match one:
            case (str() as id_, str() as name, str() as code, str() as address, int() as age_ms):
                found.append(
                    PendingJoin(
                        id=id_,
                        name=name,
                        code=code,
                        address=address,
                        asked_at_ms=max(0, wall_ms - age_ms),
                    )
                )
            case _:
                _log.debug("pending join that cannot be read", node=node)
    return found[:PENDING_TOLD_MAX]


def _closed(node: Node, standing: Standing) -> str:
    return f"is quarantined: it {node.quarantine}" if node.quarantine else standing.closed


def _twin_note(name: str) -> str:
    return TwinIdentityError(
        f"two running processes speak for node {name}: its data directory was copied",
        "stop one of them and remove its home",
    ).line()


def _name(names: Names, raft: RaftId | None) -> str | None:
    if raft is None:
        return None
    node = node_of(raft)
    return names.get(node, node)
