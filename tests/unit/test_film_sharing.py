"""Who is asked for a film beside its owner, and who may have what a node has of it."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ledger.jobs import Attempt, Job
from mesh.errors import NotAllowedError, NotFoundError, UnreachableError
from mesh.ids import NodeId
from mesh.transfer import Manifest
from mesh.transfer_files import PartialFile
from node.work.sharing import Contact, Sharers
from tests.ledger_helper import Ledger
from tests.unit.test_films import Stand


def contact(node: NodeId) -> Contact:
    if node == "dora":
        raise UnreachableError("gone")
    return Contact(public_key=node.encode().ljust(32), hosts=("10.0.0.1",), port=7441)


def sharers(own: str, holders: Sequence[str], owner: str = "anna") -> Sharers:
    ledger = Ledger().formed("bert").planned("j1", owner=owner)
    ledger.leased("j1", "a1", "bert")
    job, attempt = ledger.reader.job("j1"), ledger.reader.attempt("a1")
    assert isinstance(job, Job)
    assert isinstance(attempt, Attempt)

    def had_leases(size: int, digest: str, limit: int) -> Sequence[str]:
        assert (size, digest) == (job.source_bytes, job.source_digest)
        return holders[:limit]

    return Sharers(NodeId(own), job, attempt, had_leases, contact)


def test_all_who_had_a_lease_are_asked_but_the_owner_this_node_and_who_is_gone() -> None:
    found = sharers("bert", ("cleo", "dora", "anna", "bert", "emil")).look()
    assert [helper.peer for helper in found] == ["cleo", "emil"]
    assert {helper.handle for helper in found} == {"cached/a1"}


def test_each_begins_at_another_place() -> None:
    nodes = ("bert", "cleo", "emil", "finn")
    assert {sharers(node, nodes).start for node in nodes} == {0.0, 0.25, 0.5, 0.75}
    assert sharers("bert", ()).start == 0.0


def test_holders_are_those_who_worked_on_the_same_content_the_latest_first() -> None:
    ledger = Ledger().formed("bert", "cleo").planned("j1", "j2", "j3", owner="anna")
    for number, (job, node) in enumerate((("j1", "bert"), ("j2", "cleo"), ("j3", "bert"))):
        ledger.now_ms = 1_000 * (number + 1)
        ledger.leased(job, f"a{number}", node)
    job = ledger.reader.job("j1")
    assert job is not None
    assert ledger.reader.holders(job.source_bytes, job.source_digest, 9) == ("bert", "cleo")
    assert ledger.reader.holders(job.source_bytes, job.source_digest, 1) == ("bert",)
    assert ledger.reader.holders(job.source_bytes + 1, job.source_digest, 9) == ()
    assert ledger.reader.holders(job.source_bytes, "f" * 64, 9) == ()
    assert ledger.reader.holders(0, "", 9) == ()


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    made = Stand(tmp_path.resolve())
    yield made
    made.films.close()
    made.client.close()


def test_only_who_holds_a_lease_on_the_film_has_what_is_in_the_cache(stand: Stand) -> None:
    ledger = stand.ledger.planned("j2")
    ledger.leased("j2", "a2", "bert")
    job = ledger.reader.job("j2")
    assert job is not None
    with pytest.raises(NotFoundError):
        stand.films.source_for(NodeId("bert"), "cached/a2")
    manifest = Manifest(size=job.source_bytes, digest=job.source_digest)
    cached = PartialFile(stand.home / "sources" / job.source_digest, stays=True)
    cached.begin(manifest, manifest.whole)
    cached.write(0, memoryview(bytes(manifest.length(0))), b"d" * 32)
    cached.close()
    with contextlib.closing(stand.films.source_for(NodeId("bert"), "cached/a2")) as source:
        assert source.there()[:1] == b"d"
        assert source.read(0, manifest.length(0))[1] == b"d" * 32
    for peer, handle in (("cleo", "cached/a2"), ("bert", "cached/a1"), ("bert", "cached/no")):
        with pytest.raises(NotAllowedError):
            stand.films.source_for(NodeId(peer), handle)
