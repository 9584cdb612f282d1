import pytest

from mesh import transport
from mesh.transport import KeyPair, dial_order, endpoint, is_address, is_host, wire_limit


@pytest.mark.parametrize(
    "host",
    [
        "10.0.0.1",
        "::1",
        "fe80::1%eth0",
        "nas",
        "nas.local",
        "my-node_2.example.org",
        "::ffff:1.2.3.4",
    ],
)
def test_hosts_that_can_be_dialled(host: str) -> None:
    assert is_host(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "a b",
        "host:1;tcp://evil:2",
        "ipc:///tmp/x",
        "*",
        "[::1]",
        "a/b",
        "fe80::1%eth0:1/",
        "ü.example",
        "x" * 254,
        "a\x00b",
        "1.2.3.4;5.6.7.8:9",
        "@shm",
    ],
)
def test_hosts_of_others_that_are_none(host: str) -> None:
    assert not is_host(host)
    with pytest.raises(ValueError, match="no address"):
        endpoint(host, 1)


def test_endpoints_bracket_version_6() -> None:
    assert endpoint("1.2.3.4", 7440) == "tcp://1.2.3.4:7440"
    assert endpoint("::1", 7440) == "tcp://[::1]:7440"
    assert endpoint("fe80::1%eth0", 7440) == "tcp://[fe80::1%eth0]:7440"


@pytest.mark.parametrize("port", [-1, 0, 1 << 16, 1 << 40])
def test_ports_of_others_that_are_none(port: int) -> None:
    with pytest.raises(ValueError, match="no address"):
        endpoint("1.2.3.4", port)


def test_names_are_no_addresses() -> None:
    assert not is_address("nas.local")
    assert is_address("::1")


def test_dialling_prefers_what_answered_last_and_is_bounded() -> None:
    assert dial_order(["a", "b", "a", "c d", "e"], "b") == ("b", "a", "e")
    assert dial_order(["a"], "gone") == ("a",)
    assert len(dial_order([f"h{n}" for n in range(100)], None)) == transport.HOSTS_MAX


def test_keys_have_their_length_and_the_secret_stays_secret() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        KeyPair(b"short", b"x" * 32)
    assert "sss" not in repr(KeyPair(b"p" * 32, b"s" * 32))


def test_the_limit_on_the_wire_leaves_room_for_the_cipher() -> None:
    for size in (transport.JOIN_FRAME_BYTES_MAX, transport.CONTROL_FRAME_BYTES_MAX):
        assert wire_limit(size) > size + 64
