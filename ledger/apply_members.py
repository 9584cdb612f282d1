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
    RecoverMesh,
    ReportNode,
    RevokeMember,
)
from ledger.jobs import Invitation, Member, Mesh, Node


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


def recover_mesh(change: Change, command: RecoverMesh) -> None:
    """Goes on in a new epoch with one node, which may be new to this ledger."""
    mesh, spec = change.mesh(), command.member
    if not mesh.epoch < command.epoch <= EPOCH_MAX:
        raise RefusedError("conflict", f"the mesh is in epoch {mesh.epoch} already")
    known = change.rows.get(Member, spec.node)
    if known is not None and known.state == "revoked":
        raise RefusedError(
            "revoked", f"node {spec.node} was revoked", "recover the mesh on another node"
        )
    name = _free_name(change, spec)
    change.rows.put(_member(change, spec, name))
    change.rows.put(replace(mesh, epoch=command.epoch, members_epoch=mesh.members_epoch + 1))
    for invitation in change.rows.where(Invitation):
        change.rows.delete(Invitation, invitation.id)
    change.tell("mesh.recovered", node=spec.node, what=command.reason)


def add_member(change: Change, command: AddMember) -> None:
    """Admits a node; uses up an invitation where one was shown."""
    mesh, spec = change.mesh(), command.member
    known = change.rows.get(Member, spec.node)
    if known is not None and known.state == "revoked":
        raise RefusedError(
            "revoked", f"node {spec.node} was revoked", "give it a new key: remove its identity"
        )
    # A member that lost its grant or its data directory is trusted already.
    if command.invitation is not None and known is None:
        _use(change, command.invitation)
    name = _free_name(change, spec)
    change.rows.put(_member(change, spec, name))
    change.rows.put(replace(mesh, members_epoch=mesh.members_epoch + 1))
    change.tell("member.active", node=spec.node, what=name)


def revoke_member(change: Change, command: RevokeMember) -> None:
    """Distrusts a key for good; every open invitation may be known to it and is void."""
    mesh = change.mesh()
    member = change.rows.get(Member, command.node)
    if member is None:
        raise RefusedError("not_found", f"no member {command.node}")
    if member.state == "revoked":
        return
    if len(change.rows.where(Member, state="active")) == 1:
        raise RefusedError("conflict", "the last member cannot be revoked")
    change.rows.put(replace(member, state="revoked", since_ms=change.at_ms))
    change.rows.put(replace(mesh, members_epoch=mesh.members_epoch + 1))
    for invitation in change.rows.where(Invitation):
        change.rows.delete(Invitation, invitation.id)
    end_attempts_of(change, command.node, f"node {member.name} was revoked")
    change.tell("member.revoked", node=command.node, what=f"by {command.by}")


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
        )
    )


def _free_name(change: Change, spec: MemberSpec) -> str:
    taken = {m.name for m in change.rows.where(Member) if m.node != spec.node}
    name, number = spec.name, 2
    while name in taken:
        name, number = f"{spec.name}-{number}", number + 1
    return name


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
