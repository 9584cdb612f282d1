"""Applies what changes the mesh and its members."""

from dataclasses import replace

from ledger.apply_jobs import end_attempts_of
from ledger.change import Change, RefusedError
from ledger.commands import (
    EPOCH_MAX,
    AddMember,
    CreateInvitation,
    FormMesh,
    MemberSpec,
    MigrateLedger,
    RecoverMesh,
    RemoveMember,
    ReportNode,
    RevokeMember,
)
from ledger.device_slots import ReportSlots, fault_of, to_text
from ledger.jobs import Invitation, Member, MemberState, Mesh, Node
from ledger.schema import FIRST_SCHEMA, SCHEMA_VERSION
from mesh.errors import OutdatedError


def form_mesh(change: Change, command: FormMesh) -> None:
    """The first command of a ledger."""
    if change.rows.where(Mesh):
        raise RefusedError("conflict", "the ledger belongs to a mesh already")
    founder = command.founder
    change.rows.put(
        Mesh(
            id=command.mesh,
            founder=founder.node,
            founder_key=founder.public_key,
            epoch=1,
            members_epoch=1,
            formed_at_ms=change.at_ms,
        )
    )
    change.rows.put(_member(change, founder, founder.name))
    change.tell("mesh.formed", node=founder.node)
    _check_known(command.schema)
    if command.schema < FIRST_SCHEMA:
        raise RefusedError("usage", f"there is no schema {command.schema}")


def migrate_ledger(change: Change, command: MigrateLedger) -> None:
    """The next form, of which the store makes the tables once this is applied."""
    _check_known(command.schema)
    if command.schema != change.rows.schema + 1:
        raise RefusedError("conflict", f"the ledger has schema {change.rows.schema}")
    change.tell("ledger.migrated", what=f"schema {command.schema}")


def _check_known(schema: int) -> None:
    # Not refused: those that know it apply it.
    if schema > SCHEMA_VERSION:
        raise OutdatedError(
            f"the ledger goes on in schema {schema}; this version of DarkStream knows up to {SCHEMA_VERSION}",
            "update DarkStream on this node",
        )


def add_member(change: Change, command: AddMember) -> None:
    """Admits a node; uses up an invitation where one was shown."""
    mesh, spec = change.mesh(), command.member
    known = change.rows.get(Member, spec.node)
    if known is not None and known.state == "revoked":
        raise RefusedError(
            "revoked", f"node {spec.node} was revoked", "give it a new key: remove its identity"
        )
    # A member that lost its grant or its data directory is trusted already.
    trusted = known is not None and known.state == "active"
    if command.invitation is not None and not trusted:
        _use(change, command.invitation)
    taken = {m.name for m in change.rows.where(Member) if m.node != spec.node}
    name, number = spec.name, 2
    while name in taken:
        name, number = f"{spec.name}-{number}", number + 1
    change.rows.put(_member(change, spec, name))
    change.rows.put(replace(mesh, members_epoch=mesh.members_epoch + 1))
    change.tell("member.active", node=spec.node, what=name)


def revoke_member(change: Change, command: RevokeMember) -> None:
    """Distrusts a key for good; every open invitation may be known to it and is void."""
    if _end_membership(change, command.node, "revoked", command.by):
        for invitation in change.rows.where(Invitation):
            change.rows.delete(Invitation, invitation.id)


def remove_member(change: Change, command: RemoveMember) -> None:
    """Lets a node go for good; it may join anew.  A revoked one stays revoked."""
    _end_membership(change, command.node, "removed", command.by)


def recover_mesh(change: Change, command: RecoverMesh) -> None:
    """The survivor goes on alone: a later epoch, and no other data directory has a place in it.

    Open invitations are void: what is lost may have used them up.
    """
    mesh = change.mesh()
    if not mesh.epoch < command.epoch <= EPOCH_MAX:
        raise RefusedError("conflict", f"the epoch is {mesh.epoch} already")
    change.rows.put(replace(mesh, epoch=command.epoch, members_epoch=mesh.members_epoch + 1))
    for member in change.rows.where(Member, state="active"):
        if member.node != command.node:
            change.rows.put(replace(member, raft_id=""))
    for invitation in change.rows.where(Invitation):
        change.rows.delete(Invitation, invitation.id)
    change.tell("mesh.recovered", node=command.node, what=f"epoch {command.epoch}")


def _end_membership(change: Change, node: str, state: MemberState, by: str) -> bool:
    """Whether the node belonged until now, or was removed and is revoked now."""
    mesh = change.mesh()
    member = change.rows.get(Member, node)
    if member is None:
        raise RefusedError("not_found", f"no member {node}")
    if member.state in ("revoked", state):
        return False
    if [m.node for m in change.rows.where(Member, state="active")] == [node]:
        raise RefusedError(
            "conflict",
            f"the last member cannot be {state}",
            "to end the mesh, stop the node and remove its home",
        )
    change.rows.put(replace(member, state=state, since_ms=change.at_ms))
    change.rows.put(replace(mesh, members_epoch=mesh.members_epoch + 1))
    end_attempts_of(change, node, f"node {member.name} was {state}")
    change.tell(f"member.{state}", node=node, what=f"by {by}")
    return True


def create_invitation(change: Change, command: CreateInvitation) -> None:
    """Opens a token; tokens that are over are forgotten on the way."""
    change.mesh()
    if command.uses < 1 or len(command.key) != 32:
        raise RefusedError("usage", "an invitation needs a key of 32 bytes and at least one use")
    for old in change.rows.where(Invitation):
        if old.expires_at_ms <= change.at_ms:
            change.rows.delete(Invitation, old.id)
    if change.rows.get(Invitation, command.id) is not None:
        raise RefusedError("conflict", "an invitation of this id is open already")
    change.rows.put(
        Invitation(
            id=command.id,
            key=command.key,
            uses_left=command.uses,
            expires_at_ms=command.expires_at_ms,
        )
    )
    change.tell("invitation.created", what=f"{command.uses} uses")


def report_node(change: Change, command: ReportNode) -> None:
    """Remembers what a member can do."""
    member = change.rows.get(Member, command.node)
    if member is None or member.state != "active":
        raise RefusedError("not_found", f"no member {command.node}")
    known = change.rows.get(Node, command.node)
    change.rows.put(
        Node(
            node=command.node,
            ffmpeg=command.ffmpeg,
            encoders=command.encoders,
            slots=command.slots,
            cpus=command.cpus,
            platform=command.platform,
            version=command.version,
            devices=command.devices,
            reported_at_ms=change.at_ms,
            strikes=known.strikes if known is not None else (),
            quarantine=known.quarantine if known is not None else "",
            device_slots=known.device_slots if known is not None else "[]",
        )
    )


def report_slots(change: Change, command: ReportSlots) -> None:
    """Remembers how many films each device of a member takes at once."""
    known = change.rows.get(Node, command.node)
    if known is None:
        raise RefusedError("not_found", f"node {command.node} has not said what it can do")
    if fault := fault_of(command.devices):
        raise RefusedError("usage", fault)
    change.rows.put(replace(known, device_slots=to_text(command.devices)))


def _use(change: Change, invitation_id: str) -> None:
    invitation = change.rows.get(Invitation, invitation_id)
    if invitation is None:
        raise RefusedError(
            "join_refused", "the token is unknown, used up or void", "create another one"
        )
    if invitation.expires_at_ms <= change.at_ms:
        raise RefusedError("join_refused", "the token has expired", "create another one")
    if invitation.uses_left == 1:
        change.rows.delete(Invitation, invitation_id)
    else:
        change.rows.put(replace(invitation, uses_left=invitation.uses_left - 1))


def _member(change: Change, spec: MemberSpec, name: str) -> Member:
    return Member(
        node=spec.node,
        raft_id=spec.raft_id,
        public_key=spec.public_key,
        name=name,
        role=spec.role,
        state="active",
        since_ms=change.at_ms,
    )
