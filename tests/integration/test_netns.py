"""The LAN that other tests stand on does what it says."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.clock import monotonic_ms
from tests.netns import PREFIX, Lan, available, frames

REASON = available()
pytestmark = [
    pytest.mark.network,
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
]

LISTEN = """
import socket, struct, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 9999))
group = socket.inet_aton("224.0.0.251") + socket.inet_aton(sys.argv[1])
s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
print("ready", flush=True)
while True:
    print(s.recv(100).decode(), flush=True)
"""
SEND = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.sendto(sys.argv[2].encode(), (sys.argv[1], 9999))
"""


def _listener(lan: Lan, host: int) -> subprocess.Popen[bytes]:
    process = lan.run(host, [sys.executable, "-c", LISTEN, lan.address(host)])
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def _heard(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


def _say(lan: Lan, host: int, to: str, word: str) -> int:
    return lan.call(host, [sys.executable, "-c", SEND, to, word]).returncode


def test_hosts_reach_each_other_and_multicast_passes_until_it_is_blocked() -> None:
    with Lan(2) as lan:
        ear = _listener(lan, 2)
        assert _say(lan, 1, "224.0.0.251", "multicast") == 0
        assert _heard(ear) == "multicast"
        lan.block_multicast(2)
        assert _say(lan, 1, "224.0.0.251", "lost") == 0
        assert _say(lan, 1, lan.address(2), "unicast") == 0
        assert _heard(ear) == "unicast", "unicast goes on, and the blocked word never came"
        lan.allow_multicast()
        assert _say(lan, 1, "224.0.0.251", "again") == 0
        assert _heard(ear) == "again"


def test_a_cut_host_is_unreachable_until_healed() -> None:
    with Lan(2) as lan:
        ear = _listener(lan, 2)
        lan.cut(1)
        assert _say(lan, 1, lan.address(2), "lost") != 0
        lan.heal(1)
        assert _say(lan, 1, lan.address(2), "back") == 0
        assert _heard(ear) == "back"


def test_a_muted_host_hears_and_is_not_heard() -> None:
    with Lan(3) as lan:
        muted, other = _listener(lan, 1), _listener(lan, 2)
        lan.mute(1, 2)
        assert _say(lan, 1, lan.address(2), "lost") == 0
        assert _say(lan, 2, lan.address(1), "heard") == 0
        assert _heard(muted) == "heard"
        assert _say(lan, 3, lan.address(2), "from another") == 0
        assert _heard(other) == "from another"
        lan.unmute(1)
        assert _say(lan, 1, lan.address(2), "back") == 0
        assert _heard(other) == "back", "and the lost word never came"


def test_isolated_hosts_reach_only_the_rest() -> None:
    with Lan(3) as lan:
        ear = _listener(lan, 2)
        # Their addresses are known to each other: without the switch's help they could speak.
        assert _say(lan, 1, lan.address(2), "before") == 0
        assert _heard(ear) == "before"
        lan.isolate(1, 2)
        assert _say(lan, 1, lan.address(2), "lost") == 0
        assert _say(lan, 3, lan.address(2), "from the rest") == 0
        assert _heard(ear) == "from the rest"
        lan.join(1, 2)
        assert _say(lan, 1, lan.address(2), "back") == 0
        assert _heard(ear) == "back"


def test_an_unplugged_host_has_no_carrier_until_it_is_plugged_in() -> None:
    with Lan(2) as lan:
        ear = _listener(lan, 2)
        lan.unplug(1)
        assert "NO-CARRIER" in lan.call(1, ["ip", "link", "show", "eth0"]).stdout
        lan.plug(1)
        assert "NO-CARRIER" not in lan.call(1, ["ip", "link", "show", "eth0"]).stdout
        assert _say(lan, 1, lan.address(2), "back") == 0
        assert _heard(ear) == "back"


def test_no_wire_leads_out() -> None:
    """Both ends of every wire are in namespaces of the LAN; the machine's own interfaces stay as they were."""
    before = socket.if_nameindex()
    with Lan(2) as lan:
        assert socket.if_nameindex() == before
        links = lan.call(1, ["ip", "-o", "link", "show", "type", "veth"]).stdout
        assert [line.split(":")[1].partition("@")[0] for line in links.splitlines()] == [" eth0"]


def test_a_limit_slows_the_link() -> None:
    with Lan(2) as lan:
        lan.limit(2, "8mbit")
        sink = "import socket; s=socket.create_server(('',9998)); print('ready',flush=True); c,_=s.accept()\nwhile c.recv(1<<16): pass\nc.send(b'done')"
        process = lan.run(2, [sys.executable, "-c", sink])
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        source = f"import socket; c=socket.create_connection(('{lan.address(2)}',9998)); c.sendall(bytes(2<<20)); c.shutdown(1); assert c.recv(9)==b'done'"
        started = monotonic_ms()
        assert lan.call(1, [sys.executable, "-c", source]).returncode == 0
        assert monotonic_ms() - started > 700, "1 MiB over the burst at 1 MB/s takes about a second"


def test_a_capture_holds_what_was_said(tmp_path: Path) -> None:
    with Lan(2) as lan:
        ear = _listener(lan, 2)
        with lan.capture(tmp_path / "frames"):
            assert _say(lan, 1, lan.address(2), "in clear") == 0
            assert _heard(ear) == "in clear"
        assert sum(b"in clear" in frame for frame in frames(tmp_path / "frames")) == 2


def test_everything_is_gone_afterwards_also_after_an_error() -> None:
    kept: list[subprocess.Popen[bytes]] = []
    with contextlib.suppress(ZeroDivisionError), Lan(2) as lan:
        stubborn = "import signal; signal.signal(15, signal.SIG_IGN); print('x', flush=True); signal.pause()"
        kept.append(lan.run(1, ["sleep", "1000"]))
        kept.append(lan.run(2, [sys.executable, "-c", f"import os\nos.fork()\n{stubborn}"]))
        assert kept[1].stdout is not None
        kept[1].stdout.readline()
        raise ZeroDivisionError
    assert all(process.returncode is not None for process in kept)
    mine = f"{PREFIX}-{os.getpid()}-"
    assert not list(Path("/run/netns").glob(f"{mine}*"))


def test_a_killed_makers_namespaces_are_deleted_by_the_next() -> None:
    orphan = "import os, signal\nfrom tests.netns import Lan\nwith Lan(1): os.kill(os.getpid(), signal.SIGKILL)"
    maker = subprocess.Popen([sys.executable, "-c", orphan])
    maker.wait(timeout=30)
    assert list(Path("/run/netns").glob(f"{PREFIX}-{maker.pid}-*"))
    with Lan(1):
        assert not list(Path("/run/netns").glob(f"{PREFIX}-{maker.pid}-*"))
