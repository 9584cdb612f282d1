from mesh.ids import NodeId
from mesh.messages import KNOWN_PEERS_MAX, Hello, PeerAddress
from mesh.peers import HOSTS_MAX, SUSPECT_AFTER_MS, PeerTable

OWN, A, B = NodeId("own"), NodeId("a"), NodeId("b")


def address(node: str, *hosts: str) -> PeerAddress:
    return PeerAddress(node=node, hosts=hosts, control_port=1, bulk_port=2, join_port=3)


def hello(*hosts: str) -> Hello:
    return Hello(
        raft_id="a.00000000",  # type: ignore[arg-type]  # a plain text stands for the new type
        mesh="m",
        protocol=1,
        incarnation="i",
        name="n",
        hosts=hosts,
        control_port=1,
        bulk_port=2,
        join_port=3,
        members_epoch=0,
        known=(),
        status=b"",
    )


def table() -> PeerTable:
    made = PeerTable(OWN)
    made.members_are([OWN, A, B])
    return made


def test_silence_alone_decides_over_life() -> None:
    peers = table()
    assert not peers.is_alive(A, 0)
    assert peers.heard(A, 1_000)
    assert not peers.heard(A, 2_000), "it was not silent"
    assert peers.is_alive(A, 2_000 + SUSPECT_AFTER_MS)
    assert not peers.is_alive(A, 2_001 + SUSPECT_AFTER_MS)
    assert peers.is_alive(OWN, 10**9), "a node never doubts itself"


def test_strangers_are_not_kept() -> None:
    peers = table()
    assert not peers.heard(NodeId("stranger"), 0, hello("x"))
    assert not peers.hint(address("stranger", "x"), 0)
    assert peers.get(NodeId("stranger")) is None


def test_a_hint_never_overrides_a_node_that_lives() -> None:
    peers = table()
    peers.heard(A, 0, hello("1.1.1.1"))
    assert not peers.hint(address("a", "6.6.6.6"), 1_000)
    assert peers.hint(address("a", "2.2.2.2"), SUSPECT_AFTER_MS + 1)
    peer = peers.get(A)
    assert peer is not None
    assert peer.address is not None
    assert peer.address.hosts == ("2.2.2.2",)
    assert not peers.hint(address("a", "2.2.2.2"), SUSPECT_AFTER_MS + 1), "no news"
    assert not peers.hint(address("b"), 0), "no address in it"


def test_what_members_tell_is_bounded_and_only_of_the_living() -> None:
    peers = PeerTable(OWN)
    nodes = [NodeId(f"n{i}") for i in range(KNOWN_PEERS_MAX + 10)]
    peers.members_are(nodes)
    for node in nodes:
        peers.heard(node, 0, hello(*(f"h{i}" for i in range(HOSTS_MAX + 3))))
    known = peers.known_addresses(0)
    assert len(known) == KNOWN_PEERS_MAX
    assert all(len(a.hosts) == HOSTS_MAX for a in known)
    assert peers.known_addresses(SUSPECT_AFTER_MS + 1) == ()


def test_a_member_that_leaves_is_forgotten_and_others_are_kept() -> None:
    peers = table()
    peers.heard(A, 0, hello("1.1.1.1"))
    peers.members_are([A])
    assert [peer.node for peer in peers.all()] == [A]
    assert peers.is_alive(A, 0)
