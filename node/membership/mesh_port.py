"""What joining needs of the mesh: who belongs, which invitations are open, and how to admit."""

from collections.abc import Callable, Mapping

from ledger.commands import AddMember, MemberSpec
from ledger.jobs import Member
from ledger.queries import Reader
from mesh import clock
from mesh.errors import NoCoordinatorError, OutdatedError
from mesh.ids import MeshId, NodeId
from mesh.join_host import Invitation
from mesh.joining import GrantedMember, JoinGrant, fitted
from node.consensus.proposer import Proposer
from node.membership.neighbours import Neighbours


class LedgerMesh:
    """`MeshPort` over this node's replica; empty until the node belongs to a mesh.

    The reads are single rows by key on the loop's own connection: microseconds.
    """

    def __init__(self, reader: Reader, own: NodeId) -> None:
        self._reader = reader
        self._own = own
        self._proposer: Proposer | None = None
        self._neighbours: Neighbours | None = None
        self._leader: Callable[[], NodeId | None] = lambda: None
        self._keys: frozenset[bytes] = frozenset()

    def begin(
        self, proposer: Proposer, neighbours: Neighbours, leader: Callable[[], NodeId | None]
    ) -> None:
        """From now on this node is a member and can admit others."""
        self._proposer, self._neighbours, self._leader = proposer, neighbours, leader

    def members_are(self, members: Mapping[bytes, NodeId]) -> None:
        """The active members changed."""
        self._keys = frozenset(members)

    def mesh(self) -> tuple[MeshId, bytes] | None:
        """Mesh id and founder's public key, once the replica has them."""
        mesh = self._reader.mesh()
        return None if mesh is None else (MeshId(mesh.id), mesh.founder_key)

    def invitation(self, invitation: str) -> Invitation | None:
        """An invitation by its id."""
        found = self._reader.invitation(invitation)
        if found is None:
            return None
        return Invitation(
            key=found.key, uses_left=found.uses_left, expires_at_ms=found.expires_at_ms
        )

    def invitations_open(self) -> bool:
        """Whether any invitation can still be used."""
        return self._reader.has_open_invitation(clock.wall_ms())

    def is_member(self, public_key: bytes) -> bool:
        """Whether this key is an active member's."""
        return public_key in self._keys

    async def admit(
        self, member: MemberSpec, invitation: str | None, ledger_schema: int
    ) -> JoinGrant:
        """Commits the new member and says whom it may trust, the coordinator first.

        Raises `OutdatedError` for one that could not read the ledger.
        """
        if self._proposer is None or self._neighbours is None:
            raise NoCoordinatorError("this node is no member yet", "ask again in a moment")
        if ledger_schema < (present := self._reader.schema()):
            raise OutdatedError(
                f"the ledger of the mesh has schema {present}, the new node knows up to {ledger_schema}",
                "update DarkStream on the new node",
            )
        await self._proposer.commit(
            AddMember(member=member, invitation=invitation), cause=f"join {member.node}"
        )
        mesh = self._reader.mesh()
        assert mesh is not None, "a member was added to no mesh"
        leader = self._leader()
        members = sorted(
            # Without a data directory since a recovery: trusted, but there is nothing to say of it.
            (m for m in self._reader.members(active_only=True) if m.raft_id),
            key=lambda m: (m.node != leader, m.node != self._own, m.node),
        )
        return fitted(
            JoinGrant(
                mesh=mesh.id,
                founder_key=mesh.founder_key,
                # Without a data directory since a recovery: its replica will tell the newcomer of it.
                members=tuple(
                    self._granted(m) for m in members if m.node != member.node and m.raft_id
                ),
                members_epoch=mesh.members_epoch,
                epoch=mesh.epoch,
            )
        )

    def _granted(self, member: Member) -> GrantedMember:
        assert self._neighbours is not None
        facts = self._neighbours.facts
        peer = self._neighbours.peers.get(NodeId(member.node))
        place = peer.address if peer is not None else None
        if member.node == self._own:
            hosts, control, bulk, join = (
                facts.hosts(),
                facts.control_port,
                facts.bulk_port,
                facts.join_port,
            )
        elif place is not None:
            hosts, control, bulk, join = (
                place.hosts,
                place.control_port,
                place.bulk_port,
                place.join_port,
            )
        else:
            hosts, control, bulk, join = (), 0, 0, 0
        return GrantedMember(
            node=member.node,
            raft_id=member.raft_id,
            public_key=member.public_key,
            name=member.name,
            role=member.role,
            hosts=hosts,
            control_port=control,
            bulk_port=bulk,
            join_port=join,
        )
