"""A node that belongs to a mesh: its parts put together, the message pump, and who is trusted."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol

import structlog

from ledger.commands import EPOCH_MAX, SINCE, FormMesh, MemberRole, MemberSpec, ReportNode
from ledger.device_slots import ReportSlots, to_text
from ledger.jobs import Member
from ledger.schema import SCHEMA_VERSION
from mesh import clock
from mesh.codec import pack, unpack
from mesh.errors import (
    DarkStreamError,
    NoCoordinatorError,
    NotAllowedError,
    OvertakenError,
    RemovedError,
    UnreachableError,
    WireError,
)
from mesh.ids import MeshId, NodeId, RaftId, node_of
from mesh.joining import JOIN, JoinGrant
from mesh.log import LogStorage
from mesh.messages import Hello, Message, Notice, PeerAddress, Request, Response
from mesh.protocol import Raft, RandomSource, Timing
from mesh.soundness import check_sound
from mesh.transport import ControlTransport, Received
from node.consensus.compaction import Keep
from node.consensus.driver import Driver
from node.consensus.ledger_port import Ledger
from node.consensus.proposer import Proposer
from node.consensus.quarantine import Quarantine
from node.consensus.read_index import ReadIndex
from node.consensus.replica import Replica
from node.consensus.snapshot_duty import Shelf
from node.membership.neighbours import AddressBook, Neighbours, OwnFacts
from node.membership.voters import LEAVE_S, Voters
from node.requests import Requests
from node.settings.sections import HistoryConfig
from node.work.coordinator import Coordinator
from node.work.leases import LeaseTiming
from node.work.migration import Migration
from node.work.progress import TOPIC, ProgressBoard
from node.work.sharing import Contact
from node.work.standing import Standing, standing_of
from node.work.sweeps import Sweeps

REPORT_RETRY_S: Final = 5.0
EPOCH: Final = "mesh.epoch"
EPOCH_S: Final = 5.0
"""For a member that speaks of a later epoch to say so again when it is asked."""
FAREWELL_MS: Final = 12_000
"""How long a removed member may still speak: until it knows, and has handed over what it had."""

_log = structlog.get_logger("mesh")


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """Who this node is in its mesh; `granted` are the members it was told when it joined."""

    raft_id: RaftId
    name: str
    role: MemberRole
    public_key: bytes
    mesh: MeshId
    founder: bool
    epoch: int = 0
    """Of the mesh when this node was admitted or recovered; the ledger may know a later one."""
    granted: tuple[Member, ...] = ()
    places: tuple[PeerAddress, ...] = ()


class TrustUser(Protocol):
    """Whatever must know at once who may speak."""

    def __call__(self, members: Mapping[bytes, NodeId]) -> None:
        """Exactly these keys may speak from now on."""
        ...


def grant_of(text: str) -> JoinGrant:
    """What a node was told when it was admitted, as its log keeps it."""
    grant = JOIN.decode(bytes.fromhex(text))
    assert isinstance(grant, JoinGrant), "what was kept of the admission"
    return grant


def granted_members(grant: JoinGrant) -> tuple[tuple[Member, ...], tuple[PeerAddress, ...]]:
    """Whom a newcomer trusts until its own replica says it, and where they are."""
    members = tuple(
        Member(
            node=m.node,
            raft_id=m.raft_id,
            public_key=m.public_key,
            name=m.name,
            role=m.role,
            state="active",
            since_ms=0,
        )
        for m in grant.members
    )
    places = tuple(
        PeerAddress(
            node=m.node,
            hosts=m.hosts,
            control_port=m.control_port,
            bulk_port=m.bulk_port,
            join_port=m.join_port,
        )
        for m in grant.members
        if m.hosts
    )
    return members, places


class MemberNode:
    """Consensus, calls, neighbours and the coordinator of one node."""

    def __init__(
        self,
        *,
        membership: Membership,
        facts: OwnFacts,
        log: LogStorage,
        ledger: Ledger,
        applied_index: int,
        replica: Replica,
        shelf: Shelf,
        keep: Keep,
        control: ControlTransport,
        trust_users: Sequence[TrustUser],
        book: AddressBook,
        timing: Timing,
        leases: LeaseTiming,
        voter_silent_ms: int,
        history: HistoryConfig,
        status: Callable[[], dict[str, object]],
        random: RandomSource,
    ) -> None:
        self.membership = membership
        self.own = node_of(membership.raft_id)
        self.replica = replica
        self.requests = Requests(self.send)
        raft = Raft(
            raft_id=membership.raft_id,
            storage=log,
            timing=timing,
            random=random,
            applied_index=applied_index,
            now_ms=clock.monotonic_ms(),
        )
        self.driver = Driver(raft, log, ledger, self.send, shelf=shelf, keep=keep, timing=timing)
        self.proposer = Proposer(self.own, self.driver, self.requests, replica)
        self.read_index = ReadIndex(self.driver, self.requests)
        self.neighbours = Neighbours(
            facts, control, book, partial(self._told, status), lost=self.driver.link_lost
        )
        for place in membership.places:
            self.neighbours.hint(place)
        self.quarantine = Quarantine(
            own=self.own,
            driver=self.driver,
            requests=self.requests,
            neighbours=self.neighbours,
            shelf=shelf,
            name_of=self._name_of,
        )
        self.board = ProgressBoard(self.own, self._tell_all, clock.monotonic_ms)
        self._status = status
        self.coordinator = self._coordinator(leases, voter_silent_ms, history)
        self.refused: dict[str, int] = {}
        self._control = control
        self._trust_users = tuple(trust_users)
        self._trusted: tuple[Member, ...] = ()
        self._running = False
        self._group: asyncio.TaskGroup | None = None
        self._asked: set[NodeId] = set()
        """Members that are asked for their epoch now."""
        self.requests.register(EPOCH, self._tell_epoch)
        self._farewell_until_ms: dict[str, int] = {}

    def _coordinator(
        self, leases: LeaseTiming, voter_silent_ms: int, history: HistoryConfig
    ) -> Coordinator:
        return Coordinator(
            driver=self.driver,
            proposer=self.proposer,
            requests=self.requests,
            replica=self.replica,
            timing=leases,
            voters=Voters(
                driver=self.driver,
                requests=self.requests,
                replica=self.replica,
                is_heard=lambda node: self.neighbours.peers.is_alive(node, clock.monotonic_ms()),
                replace_ms=voter_silent_ms,
            ),
            migration=Migration(
                driver=self.driver,
                proposer=self.proposer,
                replica=self.replica,
                known=self.neighbours.schema_of,
            ),
            sweeps=Sweeps(
                driver=self.driver,
                proposer=self.proposer,
                replica=self.replica,
                kept=history,
            ),
            standing=self.standing_of,
            progress=self.board.of,
        )

    def standing_of(self, node: NodeId) -> Standing:
        """How a member stands to work, as it says itself."""
        return standing_of(self._status() if node == self.own else self.neighbours.status_of(node))

    @property
    def leader(self) -> NodeId | None:
        """The node that coordinates, as far as this one knows."""
        leader = self.driver.leader
        return None if leader is None else node_of(leader)

    def _told(self, status: Callable[[], dict[str, object]]) -> dict[str, object]:
        return {**status(), **self.quarantine.told()}

    def _name_of(self, node: NodeId) -> str:
        return next((member.name for member in self._trusted if member.node == node), node)

    def send(self, node: NodeId, message: Message) -> bool:
        """To another node, or to this one itself."""
        if node == self.own:
            if isinstance(message, Request | Response):
                asyncio.get_running_loop().call_soon(self.requests.receive, node, message)
            return True
        return self._control.send(node, message)

    def _tell_all(self, notice: Notice) -> None:
        for peer in self.neighbours.peers.all():
            self._control.send(peer.node, notice)

    # --- running ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled, or until storage fails."""
        await self._read_members()
        self._running = True
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self.driver.run(), name="driver")
                group.create_task(self._pump(), name="pump")
                group.create_task(self._follow_members(), name="members")
                group.create_task(self.neighbours.run(), name="neighbours")
                group.create_task(self.coordinator.run(), name="coordinator")
                group.create_task(self.quarantine.run(), name="quarantine")
                if self.membership.founder:
                    group.create_task(self._found(), name="found")
        finally:
            await self.requests.close()

    async def _pump(self) -> None:
        while True:
            received = await self._control.receive()
            try:
                self._take(received)
            except WireError as error:
                self.refused[error.code] = self.refused.get(error.code, 0) + 1
                _log.warning("message dropped", node=received.node, reason=error.what)

    def _take(self, received: Received) -> None:
        message, sender = received.message, received.node
        match message:
            case Hello():
                self.neighbours.receive(sender, message)
                if message.epoch > self.neighbours.mesh_epoch > 0:
                    self._ask_epoch(sender)
            case Request() | Response():
                self.requests.receive(sender, message)
            case Notice(topic=topic):
                if topic == TOPIC:
                    self.board.receive(sender, message)
            case _:
                if node_of(message.sender) != sender:
                    raise WireError(f"node {sender} spoke in the name of {message.sender}")
                check_sound(message, self.driver.raft.term)
                self.driver.receive(message)

    # --- who went on without this node ------------------------------------------------------------

    def _ask_epoch(self, claimant: NodeId) -> None:
        """A hello alone is believed by nobody: giving way to it means to begin anew."""
        if self._group is not None and claimant not in self._asked:
            self._asked.add(claimant)
            self._group.create_task(self._judge_epoch(claimant), name="epoch")

    async def _judge_epoch(self, claimant: NodeId) -> None:
        try:
            told = unpack(await self.requests.call(claimant, EPOCH, b"", timeout_s=EPOCH_S))
            epoch = told if isinstance(told, int) else 0
        except WireError:
            epoch = EPOCH_MAX  # an older version, which is not asked such things
        except DarkStreamError:
            epoch = 0
        finally:
            self._asked.discard(claimant)
        if epoch > self.neighbours.mesh_epoch:
            raise OvertakenError(
                f"node {claimant} and others went on without this node (epoch {epoch}, "
                f"here {self.neighbours.mesh_epoch})"
            )
        _log.warning("a member speaks of a later epoch and does not stand by it", node=claimant)

    async def _tell_epoch(self, _: NodeId, __: bytes) -> bytes:
        return pack(self.neighbours.mesh_epoch)

    # --- who belongs ------------------------------------------------------------------------------

    async def _follow_members(self) -> None:
        while True:
            seen = self.driver.news.members.count
            await self._read_members()
            farewells = FAREWELL_MS / 1000 if self._farewell_until_ms else None
            await self.driver.news.members.wait(seen, farewells)

    async def _read_members(self) -> None:
        members, mesh = await self.replica.read(lambda reader: (reader.members(), reader.mesh()))
        mine = next((member for member in members if member.node == self.own), None)
        former = mine is not None and mine.raft_id != self.membership.raft_id
        if mine is None or (former and mine.state == "removed"):
            # The replica has not come as far as this node's own admission: the grant still counts.
            active = tuple(member for member in members if member.state == "active")
            known = {m.node for m in members if m.state in ("active", "revoked")}
            members = active + tuple(m for m in self.membership.granted if m.node not in known)
        elif mine.state == "revoked":
            raise NotAllowedError(
                "this node was revoked from its mesh",
                "to let it join anew, stop it, remove its home, and start it with a new token",
            )
        elif mine.state == "removed":
            if self._running:
                _log.warning("this node was removed: it hands over, then stops")
                await self.leave()
            raise RemovedError(
                "this node was removed from its mesh",
                "to let it join anew, start it with a new token: mesh-node start --join TOKEN",
            )
        elif mine.name != self.neighbours.facts.name:
            # Another member had the name first; the ledger's is the one that people see.
            self.neighbours.facts = replace(self.neighbours.facts, name=mine.name)
        members = self._with_farewells(members)
        ledger_epoch = mesh.epoch if mesh is not None else 0
        self.neighbours.mesh_epoch = max(ledger_epoch, self.membership.epoch)
        if members == self._trusted:
            return
        self._trusted = members
        self.neighbours.members_are(members, mesh.members_epoch if mesh is not None else 0)
        table = {m.public_key: NodeId(m.node) for m in members if m.state == "active"}
        for use in self._trust_users:
            use(table)

    def _with_farewells(self, members: tuple[Member, ...]) -> tuple[Member, ...]:
        """Who was removed just now is trusted for a moment more: nobody distrusts it."""
        now_ms = clock.monotonic_ms()
        before = {member.node for member in self._trusted if member.state == "active"}
        removed = {m.node for m in members if m.state == "removed"} & before
        self._farewell_until_ms = {
            node: until
            for node in removed
            if (until := self._farewell_until_ms.get(node, now_ms + FAREWELL_MS)) > now_ms
        }
        return tuple(
            replace(member, state="active") if member.node in self._farewell_until_ms else member
            for member in members
        )

    def trusted(self) -> tuple[Member, ...]:
        """The members as they are trusted now."""
        return self._trusted

    def contact(self, node: NodeId) -> Contact:
        """How to reach a member's bulk port.  Raises `UnreachableError`."""
        peer = self.neighbours.peers.get(node)
        known = next((m for m in self._trusted if m.node == node), None)
        if peer is None or peer.address is None or known is None or known.state != "active":
            raise UnreachableError(f"no address of node {node} is known", "see `mesh-cli nodes`")
        return Contact(
            public_key=known.public_key, hosts=peer.address.hosts, port=peer.address.bulk_port
        )

    async def leave(self, limit_s: float = LEAVE_S) -> bool:
        """Hands over what others must have to go on without this node; whether that worked in time."""
        return await self.coordinator.voters.leave(limit_s)

    async def _found(self) -> None:
        """Writes the first command of a new mesh; after a crash in between, once more."""
        membership = self.membership
        command = FormMesh(
            mesh=membership.mesh,
            schema=SCHEMA_VERSION,
            founder=MemberSpec(
                node=self.own,
                raft_id=membership.raft_id,
                public_key=membership.public_key,
                name=membership.name,
                role=membership.role,
            ),
        )
        while await self.replica.read(lambda reader: reader.mesh()) is None:
            try:
                await self.proposer.propose(command, cause="form")
            except NoCoordinatorError:
                _log.info("the mesh waits for its first coordinator")

    async def returned(self) -> None:
        """Waits until this node's own ledger holds its admission with this data directory."""
        while True:
            seen = self.driver.news.members.count
            mine = await self.replica.read(lambda reader: reader.member(self.own))
            if mine is not None and mine.raft_id == self.membership.raft_id:
                return
            await self.driver.news.members.wait(seen)

    async def report(self, report: ReportNode, slots: ReportSlots) -> bool:
        """Tells the mesh what this node can do, unless it knows already; whether it can hold all of that."""
        known, schema = await self.replica.read(
            lambda reader: (reader.node(self.own), reader.schema())
        )
        if known is None or not _same(report, known):
            await self._tell(report)
        if schema < SINCE[ReportSlots]:
            return False
        if known is None or known.device_slots != to_text(slots.devices):
            await self._tell(slots)
        return True

    async def _tell(self, report: ReportNode | ReportSlots) -> None:
        while True:
            try:
                await self.proposer.commit(report, cause="report")
            except DarkStreamError as error:
                # Not a member yet in its own replica, or no coordinator: it is tried again.  Counted
                # from here: a refusal is an entry of the log too, and would wake its own retry.
                _log.debug("report not taken yet", reason=error.what)
                seen = self.driver.ledger_changed.count
                await self.driver.ledger_changed.wait(seen, REPORT_RETRY_S)
            else:
                return


def _same(report: ReportNode, known: object) -> bool:
    return all(
        getattr(known, name) == getattr(report, name)
        for name in ("ffmpeg", "encoders", "slots", "cpus", "platform", "version", "devices")
    )
