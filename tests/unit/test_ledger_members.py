"""Members, invitations and what nodes report."""

from ledger import commands as c
from tests.ledger_helper import Ledger, entry, grant, invitation, job_spec, node_report, spec


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


def test_an_id_is_never_taken_for_a_name() -> None:
    ledger = Ledger().formed()
    ledger.must(c.AddMember(member=spec("aged", name="bert"), invitation=None))
    ledger.must(c.AddMember(member=spec("bert", name="den"), invitation=None))
    found = ledger.reader.member_by_name("bert")
    assert found is not None
    assert found.node == "bert", "whoever calls itself as another's id is revoked in its place"


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


def test_who_was_removed_may_join_anew_with_a_token() -> None:
    ledger = Ledger().formed("bert").planned("j")
    ledger.must(invitation("i"))
    ledger.leased("j", "a", "bert")
    ledger.must(c.RemoveMember(node="bert", by="anna"))
    assert ledger.reader.invitation("i") is not None
    assert ledger.reader.active_attempts() == ()
    assert [m.name for m in ledger.reader.members(active_only=True)] == ["anna"]
    before = ledger.store.checksum
    ledger.must(c.RemoveMember(node="bert", by="anna"))
    assert ledger.store.checksum == before
    # It is a stranger now: its invitation is looked at and used up.
    back = spec("bert", raft_id="bert.00000002")
    assert ledger.refused(c.AddMember(member=back, invitation="never")) == "join_refused"
    ledger.must(c.AddMember(member=back, invitation="i"))
    assert ledger.reader.invitation("i") is None
    member = ledger.reader.member("bert")
    assert member is not None
    assert (member.state, member.raft_id, member.name) == ("active", "bert.00000002", "bert")


def test_revoking_is_stronger_than_removing() -> None:
    ledger = Ledger().formed("bert")
    ledger.must(c.RemoveMember(node="bert", by="anna"))
    ledger.must(c.RevokeMember(node="bert", by="anna"))
    back = c.AddMember(member=spec("bert", raft_id="bert.00000002"), invitation=None)
    assert ledger.refused(back) == "revoked"
    ledger.must(c.RemoveMember(node="bert", by="anna"))
    assert ledger.refused(back) == "revoked"


def test_jobs_of_a_removed_owner_are_found() -> None:
    ledger = Ledger().formed("bert").planned("j")
    ledger.must(c.SubmitJobs(jobs=(job_spec("k", owner="bert"),)))
    assert ledger.reader.jobs_without_owner(9) == ()
    ledger.must(c.RemoveMember(node="bert", by="anna"))
    assert [job.id for job in ledger.reader.jobs_without_owner(9)] == ["k"]


def test_a_recovery_raises_the_epoch_and_leaves_one_data_directory() -> None:
    ledger = Ledger()
    assert ledger.refused(c.RecoverMesh(node="anna", epoch=2)) == "no_mesh"
    ledger.formed("bert").planned("j", "k")
    before = ledger.leased("j", "a", "anna")
    ledger.must(invitation("i", uses=9))
    assert ledger.refused(c.RecoverMesh(node="anna", epoch=1)) == "conflict"
    assert ledger.refused(c.RecoverMesh(node="anna", epoch=c.EPOCH_MAX + 1)) == "conflict"
    ledger.must(c.RecoverMesh(node="anna", epoch=700))
    assert ledger.reader.invitation("i") is None
    mesh = ledger.reader.mesh()
    assert mesh is not None
    assert mesh.epoch == 700
    members = ledger.reader.members(active_only=True)
    assert [(m.name, m.raft_id) for m in members] == [("anna", "anna.00000001"), ("bert", "")]
    ledger.must(grant(("k-t", "b", "anna")))
    attempt = ledger.reader.attempt("b")
    assert attempt is not None
    assert attempt.token > before
    assert attempt.token >= c.fencing_token(700, 1)
    assert c.fencing_token(c.EPOCH_MAX, (1 << 40) - 1) < 1 << 63
    ledger.must(c.AddMember(member=spec("bert", raft_id="bert.00000002"), invitation=None))
    back = ledger.reader.member("bert")
    assert back is not None
    assert back.raft_id == "bert.00000002"


def test_the_last_member_stays() -> None:
    ledger = Ledger().formed("bert")
    assert ledger.refused(c.RevokeMember(node="nobody", by="anna")) == "not_found"
    ledger.must(c.RevokeMember(node="anna", by="bert"))
    assert ledger.refused(c.RevokeMember(node="bert", by="anna")) == "conflict"
    assert ledger.refused(c.RemoveMember(node="bert", by="anna")) == "conflict"
    assert ledger.refused(c.RemoveMember(node="nobody", by="anna")) == "not_found"


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
