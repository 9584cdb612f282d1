"""Members, invitations and what nodes report."""

from ledger import commands as c
from tests.ledger_helper import Ledger, entry, invitation, node_report, spec


def test_forming_happens_once() -> None:
    ledger = Ledger()
    assert ledger.refused(c.AddMember(member=spec("bert"), invitation=None)) == "no_mesh"
    assert ledger.refused(invitation("i")) == "no_mesh"
    assert ledger.refused(c.RevokeMember(node="anna", by="anna")) == "no_mesh"
    ledger.formed()
    assert ledger.refused(c.FormMesh(mesh="n" * 32, founder=spec("bert"))) == "conflict"
    mesh = ledger.reader.mesh()
    assert mesh is not None
    assert (mesh.id, mesh.founder, mesh.epoch, mesh.members_epoch) == ("m" * 32, "anna", 1, 1)


def test_names_get_suffixes() -> None:
    ledger = Ledger().formed()
    for node in ("b", "c", "d"):
        ledger.must(c.AddMember(member=spec(node, name="anna"), invitation=None))
    assert [m.name for m in ledger.reader.members()] == ["anna", "anna-2", "anna-3", "anna-4"]
    ledger.must(c.AddMember(member=spec("e", name="anna-2"), invitation=None))
    found = ledger.reader.member_by_name("anna-2-2")
    assert found is not None
    assert found.node == "e"
    mesh = ledger.reader.mesh()
    assert mesh is not None
    assert mesh.members_epoch == 5


def test_a_new_data_directory_replaces_its_row_and_keeps_its_name() -> None:
    ledger = Ledger().formed("bert")
    again = spec("bert", raft_id="bert.00000002")
    ledger.must(c.AddMember(member=again, invitation=None))
    member = ledger.reader.member("bert")
    assert member is not None
    assert (member.raft_id, member.name) == ("bert.00000002", "bert")
    assert len(ledger.reader.members()) == 2


def test_an_invitation_is_used_up() -> None:
    ledger = Ledger().formed()
    ledger.must(invitation("i", uses=2))
    ledger.must(c.AddMember(member=spec("b"), invitation="i"))
    open_one = ledger.reader.invitation("i")
    assert open_one is not None
    assert open_one.uses_left == 1
    ledger.must(c.AddMember(member=spec("d"), invitation="i"))
    assert ledger.reader.invitation("i") is None
    late = c.AddMember(member=spec("e"), invitation="i")
    assert ledger.refused(late) == "join_refused"
    assert ledger.refused(c.AddMember(member=spec("e"), invitation="never")) == "join_refused"
    assert ledger.reader.member("e") is None


def test_an_invitation_expires_and_is_forgotten() -> None:
    ledger = Ledger().formed()
    ledger.must(invitation("i", expires_at_ms=2_000))
    assert ledger.refused(invitation("i")) == "conflict"
    ledger.now_ms = 2_000
    assert ledger.refused(c.AddMember(member=spec("b"), invitation="i")) == "join_refused"
    assert ledger.reader.invitation("i") is not None
    ledger.must(invitation("j"))
    assert ledger.reader.invitation("i") is None
    assert ledger.reader.invitation("j") is not None


def test_faulty_invitations() -> None:
    ledger = Ledger().formed()
    assert ledger.refused(invitation("i", uses=0)) == "usage"
    assert ledger.refused(invitation("i", key=b"short")) == "usage"


def test_revoking_is_for_good() -> None:
    ledger = Ledger().formed("bert").planned("j", "k")
    ledger.must(invitation("i", uses=9))
    ledger.leased("j", "a", "bert")
    ledger.leased("k", "b", "anna")
    ledger.must(c.RevokeMember(node="bert", by="anna"))
    assert ledger.reader.invitation("i") is None
    assert [a.id for a in ledger.reader.active_attempts()] == ["b"]
    assert ledger.job_state("j") == "queued"
    back = c.AddMember(member=spec("bert", raft_id="bert.00000002"), invitation=None)
    assert ledger.refused(back) == "revoked"
    assert ledger.refused(node_report("bert")) == "not_found"
    before = ledger.store.checksum
    ledger.must(c.RevokeMember(node="bert", by="anna"))
    assert ledger.store.checksum == before
    assert [m.name for m in ledger.reader.members(active_only=True)] == ["anna"]
    # The name of a revoked member stays taken: its history is told by that name.
    ledger.must(c.AddMember(member=spec("new", name="bert"), invitation=None))
    found = ledger.reader.member_by_name("bert-2")
    assert found is not None
    assert found.node == "new"


def test_the_last_member_stays() -> None:
    ledger = Ledger().formed("bert")
    assert ledger.refused(c.RevokeMember(node="nobody", by="anna")) == "not_found"
    ledger.must(c.RevokeMember(node="anna", by="bert"))
    assert ledger.refused(c.RevokeMember(node="bert", by="anna")) == "conflict"


def test_a_mesh_goes_on_with_one_node_in_a_new_epoch() -> None:
    ledger = Ledger().formed("bert").planned("j", "k")
    ledger.must(invitation("i", uses=9))
    before = ledger.leased("j", "a", "bert")
    again = spec("bert", raft_id="bert.00000002")
    for epoch in (0, 1, c.EPOCH_MAX + 1):
        assert ledger.refused(c.RecoverMesh(epoch=epoch, member=again, reason="")) == "conflict"
    ledger.must(c.RecoverMesh(epoch=2, member=again, reason="restored"))
    mesh = ledger.reader.mesh()
    assert mesh is not None
    assert (mesh.epoch, mesh.members_epoch) == (2, 3)
    found = ledger.reader.member("bert")
    assert found is not None
    assert (found.raft_id, found.state) == ("bert.00000002", "active")
    assert ledger.reader.invitation("i") is None
    assert ledger.leased("k", "b", "anna") > before + (1 << 39), (
        "above every token of the old epoch"
    )
    # A node that is new to the ledger, with a name that is taken.
    ledger.must(c.RecoverMesh(epoch=7, member=spec("new", name="anna"), reason=""))
    assert [m.name for m in ledger.reader.members()] == ["anna", "anna-2", "bert"]
    ledger.must(c.RevokeMember(node="bert", by="anna"))
    assert ledger.refused(c.RecoverMesh(epoch=8, member=again, reason="")) == "revoked"


def test_a_ledger_without_a_mesh_cannot_be_recovered() -> None:
    assert Ledger().refused(c.RecoverMesh(epoch=2, member=spec("anna"), reason="")) == "no_mesh"


def test_reports_are_replaced() -> None:
    ledger = Ledger().formed()
    ledger.must(node_report("anna", slots=5, encoders=("hevc_nvenc",)))
    (node,) = ledger.reader.nodes()
    assert (node.slots, node.encoders) == (5, ("hevc_nvenc",))
    assert ledger.reader.node("anna") == node
    assert ledger.reader.node("bert") is None


def test_an_envelope_keeps_who_and_when() -> None:
    made = entry(5, c.StartPlanning(job="j"), "id", at_ms=9)
    envelope, command = c.unseal(made.data)
    assert (envelope.id, envelope.proposer, envelope.proposed_at_ms) == ("id", "anna", 9)
    assert command == c.StartPlanning(job="j")


def test_tokens_grow_with_epoch_before_index() -> None:
    assert c.fencing_token(2, 1) > c.fencing_token(1, (1 << 40) - 1) > c.fencing_token(1, 1)
