"""Chunks that shrink travel compressed, over real sockets; films are left as they are."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.bulk_client_zmq import ZmqBulkClient
from mesh.bulk_lane_zmq import Gate
from mesh.compression import Shrinker
from mesh.ids import NodeId
from mesh.limits import LinkRates, Rates
from mesh.transport import CHUNK_BYTES
from tests.film_owner import Owner
from tests.meshwork import node_of

SIZE = 12 * CHUNK_BYTES + 345
LINE = b"%010d of a ledger, whose pages look like one another; "


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    film = tmp_path / "film.mkv"
    film.write_bytes(b"".join(LINE % number for number in range(SIZE // 50 + 1))[:SIZE])
    made = Owner(film)
    made.server.start()
    yield made
    made.server.stop()


def fetch(owner: Owner, to: Path, *, compress: bool = True, rate: int = 0) -> tuple[int, int]:
    """Bytes over the link, and the speed that was noted."""
    client = ZmqBulkClient(owner.member, compress=compress)
    client.set_rates(LinkRates(node=Rates(down=rate)))
    try:
        owner.fetch(to, client, expected=owner.manifest)
        assert to.read_bytes() == owner.film.read_bytes()
        peer = node_of(owner.keys)
        return client.counters().peers[peer].bytes_in, client.speeds().get(peer, 0)
    finally:
        client.close()


def test_what_shrinks_needs_less_of_the_link(owner: Owner, tmp_path: Path) -> None:
    assert fetch(owner, tmp_path / "plain", compress=False)[0] == SIZE
    brought, _ = fetch(owner, tmp_path / "small")
    assert brought < SIZE / 3
    assert owner.sent.bytes_out < SIZE * 1.4


def test_what_does_not_shrink_comes_as_it_is(owner: Owner, tmp_path: Path) -> None:
    owner.film.write_bytes(os.urandom(SIZE))
    other = Owner(owner.film)
    other.server.start()
    try:
        assert fetch(other, tmp_path / "out")[0] == SIZE
    finally:
        other.server.stop()


def test_a_limit_counts_what_goes_over_the_link(
    owner: Owner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent: list[int] = []
    spend = Gate.spend

    def counted(self: Gate, peer: NodeId, count: int) -> None:
        spent.append(count)
        spend(self, peer, count)

    monkeypatch.setattr(Gate, "spend", counted)
    brought, _ = fetch(owner, tmp_path / "out", rate=4 * CHUNK_BYTES)
    assert sum(spent) == brought < SIZE / 3


@pytest.mark.parametrize("said", [b"", b"nonsense", b"\x28\xb5\x2f\xfd" + bytes(40)])
def test_a_chunk_that_cannot_be_expanded_is_asked_for_again(
    owner: Owner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    answers = iter([said, said])
    right = Shrinker.shrunk

    def wrong(self: Shrinker, data: bytes) -> bytes | None:
        return next(answers, None) or right(self, data)

    monkeypatch.setattr(Shrinker, "shrunk", wrong)
    fetch(owner, tmp_path / "out")
