"""Which interfaces others are told of, and why nobody is behind any of them."""

import pytest

from mesh.discovery import Interface, choose_interfaces, why_unheard

LOOPBACK = Interface(name="lo", index=1, addresses=("127.0.0.1", "::1"))
CABLE = Interface(name="eth0", index=2, addresses=("10.0.0.2", "fe80::2%2"))
MODERN = Interface(name="eth0", index=2, addresses=("2001:db8::2", "fe80::2%2"))
BRIDGE = Interface(name="docker0", index=3, addresses=("172.17.0.1",))
BARE = Interface(name="wlan0", index=4, addresses=())
EVERY_V4 = "0.0.0.0"


@pytest.mark.parametrize(
    ("present", "named", "listen", "why"),
    [
        ((LOOPBACK, CABLE, BRIDGE), (), EVERY_V4, ""),
        ((LOOPBACK,), (), EVERY_V4, ""),
        ((LOOPBACK, BRIDGE), (), EVERY_V4, ""),
        ((LOOPBACK, MODERN), (), "::", ""),
        ((LOOPBACK, MODERN), (), "127.0.0.1", ""),
        ((LOOPBACK, MODERN), ("lo",), EVERY_V4, ""),
        ((LOOPBACK, MODERN), (), EVERY_V4, "--listen [::]:7440"),
        ((BARE,), (), EVERY_V4, "no interface has an address"),
        (
            (LOOPBACK, CABLE, BARE),
            ("wlan0",),
            EVERY_V4,
            "no interface is wlan0 and has an address that",
        ),
        ((LOOPBACK, CABLE), ("ehto",), EVERY_V4, "there are lo, eth0"),
        ((LOOPBACK, MODERN), ("eth0",), EVERY_V4, "--listen covers; there are lo"),
    ],
)
def test_why_nobody_is_heard(
    present: tuple[Interface, ...], named: tuple[str, ...], listen: str, why: str
) -> None:
    told = why_unheard(present, named, listen)
    assert why in told
    assert bool(told) is bool(why)
    if not told:
        assert choose_interfaces(present, named, listen)
