"""A LAN of one's own: hosts in network namespaces on one bridge, so that nothing leaks out or in.

One namespace is the switch, one more for each host; a host has `eth0` with 10.77.0.K/24 (K from 1)
and `lo`.  Every name carries the process id of its maker and a random part; everything that runs
inside is ended and every namespace deleted when the context ends, also when building it failed.

    with Lan(3) as lan:
        node = lan.run(1, [sys.executable, "-m", "node.cli.mesh_node", "start"], env=...)

Needs Linux, iproute2 and the right to make namespaces: root, or `unshare -Urnm` with a tmpfs on
/run.  `available()` says why not.
"""

import contextlib
import functools
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from mesh.clock import monotonic_ms

PREFIX = "dslan"
HOSTS_MAX = 32
"""One bridge port and one namespace each; more would only slow the test machine."""
_END_MS = 5_000
"""How long a process inside may take to end after SIGTERM before it is killed."""

# Writes every frame that any port of the switch sees to a file, each with a four-byte length.
_RECORDER = """
import signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
tap.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE: bursts must not be lost
with open(sys.argv[1], "wb", buffering=1 << 20) as out:
    print("ready", flush=True)
    while True:
        frame = tap.recv(1 << 18)
        out.write(len(frame).to_bytes(4, "big") + frame)
"""


def ip(*words: str) -> None:
    """Runs `ip` with these words.  Raises `OSError` with what it said."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=20, check=False)
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip() or done.returncode}")


@functools.cache
def available() -> str | None:
    """None where a `Lan` can be made, else the reason to skip a test with."""
    if sys.platform != "linux":
        return "network namespaces exist on Linux only"
    for tool in ("ip", "bridge", "tc"):
        if shutil.which(tool) is None:
            return f"no `{tool}` here (Debian: apt install iproute2)"
    try:
        with Lan(1):
            return None
    except OSError as error:
        return f"no right to make network namespaces ({error})"


class Lan:
    """`hosts` machines on one switch; host numbers count from 1."""

    def __init__(self, hosts: int) -> None:
        if not 1 <= hosts <= HOSTS_MAX:
            raise ValueError(f"1 to {HOSTS_MAX} hosts, not {hosts}")
        self.hosts = range(1, hosts + 1)
        self._prefix = f"{PREFIX}-{os.getpid()}-{secrets.token_hex(3)}"
        self._switch = f"{self._prefix}-sw"
        self._made: list[str] = []
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        _delete_orphans()
        try:
            self._build()
        except BaseException:
            self._delete()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._delete()

    def address(self, host: int) -> str:
        """The IPv4 address of a host's eth0."""
        return f"10.77.0.{host}"

    def namespace(self, host: int) -> str:
        """The name of a host's namespace, for `ip netns exec`."""
        return f"{self._prefix}-h{host}"

    def run(
        self,
        host: int,
        argv: Sequence[str | Path],
        env: Mapping[str, str] | None = None,
        *,
        stdout: int | IO[bytes] | None = subprocess.PIPE,
        stderr: int | IO[bytes] | None = subprocess.PIPE,
        cwd: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Starts a program on a host; the process id is the program's own (`ip netns exec` becomes it).

        `env` is added to this process's environment.  Give files for the output of anything that
        talks much: a full pipe stops it.
        """
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace(host), *map(str, argv)],
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            start_new_session=True,
        )
        self._processes.append(process)
        return process

    def call(
        self,
        host: int,
        argv: Sequence[str | Path],
        env: Mapping[str, str] | None = None,
        *,
        timeout_s: float = 30,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program on a host to its end."""
        return subprocess.run(
            ["ip", "netns", "exec", self.namespace(host), *map(str, argv)],
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def cut(self, host: int) -> None:
        """Pulls a host's cable, as the host sees it: its interface goes down."""
        ip("-n", self.namespace(host), "link", "set", "eth0", "down")

    def heal(self, host: int) -> None:
        """Plugs the cable in again."""
        ip("-n", self.namespace(host), "link", "set", "eth0", "up")
        # The kernel forgot the route with the interface; multicast needs one.
        self._default_route(host)

    def unplug(self, host: int) -> None:
        """Takes the link away at the switch: the host loses its carrier, its interface stays up."""
        ip("-n", self._switch, "link", "set", f"p{host}", "down")

    def plug(self, host: int) -> None:
        """Undoes `unplug`."""
        ip("-n", self._switch, "link", "set", f"p{host}", "up")

    def mute(self, host: int, *to: int) -> None:
        """What a host sends to these others (or to any) gets lost on the wire; what they send arrives."""
        for other in to or (each for each in self.hosts if each != host):
            # Frames to an address of hardware that nobody has: the sender notices nothing.
            entry = [self.address(other), "lladdr", "02:00:00:00:00:01", "nud", "permanent"]
            ip("-n", self.namespace(host), "neigh", "replace", *entry, "dev", "eth0")

    def unmute(self, host: int) -> None:
        """Undoes `mute`."""
        ip("-n", self.namespace(host), "neigh", "flush", "dev", "eth0", "nud", "permanent")

    def isolate(self, *hosts: int) -> None:
        """The switch hands nothing from one of these hosts to another of them; to the rest it does."""
        for host in hosts:
            self._port(host, "isolated", "on")

    def join(self, *hosts: int) -> None:
        """Undoes `isolate`."""
        for host in hosts:
            self._port(host, "isolated", "off")

    def block_multicast(self, *hosts: int) -> None:
        """The switch hands no multicast (hence no mDNS) to these hosts, or to any; broadcast and unicast go on."""
        for host in hosts or self.hosts:
            self._port(host, "mcast_flood", "off")

    def allow_multicast(self, *hosts: int) -> None:
        """Undoes `block_multicast`."""
        for host in hosts or self.hosts:
            self._port(host, "mcast_flood", "on")

    def limit(self, host: int, rate: str) -> None:
        """Bounds what the switch sends to a host and the host to the switch, for example `100mbit`."""
        shape = ["root", "tbf", "rate", rate, "burst", "1mb", "latency", "20ms"]
        for space, device in ((self._switch, f"p{host}"), (self.namespace(host), "eth0")):
            argv = ["tc", "-n", space, "qdisc", "replace", "dev", device, *shape]
            done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
            if done.returncode != 0:
                raise OSError(f"{' '.join(argv)}: {done.stderr.strip()}")

    @contextlib.contextmanager
    def capture(self, path: Path) -> Generator[None]:
        """Writes every frame that passes the switch to `path` while the context is open (see `frames`).

        A frame between two hosts is there twice: once for each port it passes.
        """
        recorder = subprocess.Popen(
            ["ip", "netns", "exec", self._switch, sys.executable, "-c", _RECORDER, str(path)],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._processes.append(recorder)
        assert recorder.stdout is not None
        if recorder.stdout.readline() != b"ready\n":
            raise OSError("the recorder did not start")
        try:
            yield
        finally:
            recorder.terminate()
            recorder.wait(timeout=_END_MS / 1_000)
            recorder.stdout.close()

    # --- making and deleting ------------------------------------------------------------------

    def _build(self) -> None:
        self._namespace(self._switch)
        ip("-n", self._switch, "link", "set", "lo", "up")
        self._build_switch()
        for host in self.hosts:
            self._host(host)

    def _build_switch(self) -> None:
        """What joins the hosts, in the namespace of the switch."""
        bridge = ["type", "bridge", "stp_state", "0", "forward_delay", "0"]
        ip("-n", self._switch, "link", "add", "br0", *bridge)
        ip("-n", self._switch, "link", "set", "br0", "up")

    def _host(self, host: int) -> None:
        name = self.namespace(host)
        self._namespace(name)
        self._connect(host)
        ip("-n", name, "link", "set", "lo", "up")
        # Without this the link-local address is tentative for a second and mDNS over IPv6 is deaf.
        dad = "test ! -e {0} || echo 0 > {0}".format("/proc/sys/net/ipv6/conf/eth0/accept_dad")
        self.call(host, ["sh", "-c", dad])
        address = f"{self.address(host)}/24"
        ip("-n", name, "address", "add", address, "broadcast", "10.77.0.255", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        self._default_route(host)

    def _connect(self, host: int) -> None:
        """Gives a host an `eth0` whose other end is at the switch."""
        name, port = self.namespace(host), f"p{host}"
        peer = ["type", "veth", "peer", "name", port, "netns", self._switch]
        ip("-n", name, "link", "add", "eth0", *peer)
        ip("-n", self._switch, "link", "set", port, "master", "br0", "up")

    def _default_route(self, host: int) -> None:
        route = ["default", "via", "10.77.0.254", "dev", "eth0", "onlink"]
        ip("-n", self.namespace(host), "route", "replace", *route)

    def _namespace(self, name: str) -> None:
        ip("netns", "add", name)
        self._made.append(name)

    def _port(self, host: int, *setting: str) -> None:
        argv = ["bridge", "-n", self._switch, "link", "set", "dev", f"p{host}", *setting]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
        if done.returncode != 0:
            raise OSError(f"{' '.join(argv)}: {done.stderr.strip()}")

    def _delete(self) -> None:
        deadline = monotonic_ms() + _END_MS
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.01, (deadline - monotonic_ms()) / 1_000))
        for name in reversed(self._made):
            _kill_inside(name)
        for process in self._processes:
            process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        for name in reversed(self._made):
            with contextlib.suppress(OSError):
                ip("netns", "delete", name)
        self._processes.clear()
        self._made.clear()


def frames(path: Path) -> Iterator[bytes]:
    """The frames that `Lan.capture` wrote, from the Ethernet header on."""
    with path.open("rb") as recording:
        while head := recording.read(4):
            yield recording.read(int.from_bytes(head, "big"))


def _kill_inside(namespace: str) -> None:
    """Ends what still runs in a namespace of ours, grandchildren included."""
    listed = subprocess.run(
        ["ip", "netns", "pids", namespace], capture_output=True, text=True, timeout=20, check=False
    )
    for pid in listed.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def _delete_orphans() -> None:
    """Deletes what a killed test process left: namespaces of ours whose maker is gone."""
    for entry in Path("/run/netns").glob(f"{PREFIX}-*"):
        maker = entry.name.split("-")[1]
        if maker.isdigit() and not Path(f"/proc/{maker}").exists():
            _kill_inside(entry.name)
            with contextlib.suppress(OSError):
                ip("netns", "delete", entry.name)
