"""What a node advertises, how adverts are read and age, and which interfaces carry them.

An advert is a hint where to dial and nothing more: whoever answers there must prove its key.
Everything that comes in may be hostile; reading refuses with `WireError` and never raises more.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, Literal, get_args

from mesh.errors import WireError
from mesh.ids import INCARNATION_CHARS, NodeId, node_id_of
from mesh.messages import PROTOCOL_VERSION
from mesh.transport import HOSTS_MAX, KEY_BYTES, is_address
from mesh.trust import TAG_BYTES

SERVICE_TYPE: Final = "_darkstream._tcp.local."
INSTANCE_PREFIX: Final = "ds-"
TXT_BYTES_MAX: Final = 400
"""A TXT record that fits one packet with everything else (RFC 6763, 6.2); ours has about 180."""
TXT_VALUE_BYTES_MAX: Final = 253
ADVERTS_MAX: Final = 256
"""Adverts remembered: the largest mesh several times over; a flood displaces only the oldest."""
ADVERT_TTL_MS: Final = 75 * 60_000
"""DNS-SD's own lifetime of a service record: who was not heard for that long is forgotten."""
PORT_MAX: Final = 65_535

NodeState = Literal["forming", "waiting", "member"]
"""forming: looks for a mesh and may form one; waiting: will join, never form; member: has a mesh."""
AdmissionMode = Literal["open", "ask", "closed"]
"""open: everyone on the network is admitted; ask: by token or a person's approval; closed: by token,
while an invitation is open."""

_STATES: Final[tuple[str, ...]] = get_args(NodeState)
_ADMISSIONS: Final[tuple[str, ...]] = get_args(AdmissionMode)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advert:
    """One node as it describes itself to everybody."""

    node: NodeId
    incarnation: str
    """8 hexadecimal digits drawn at each start: an identical record after a crash would fire no event."""
    public_key: bytes
    mesh_tag: str | None
    state: NodeState
    admission: AdmissionMode
    control_port: int
    bulk_port: int
    join_port: int
    hosts: tuple[str, ...] = ()

    @property
    def instance(self) -> str:
        """The service instance's whole name; from the node id, never from the host's name."""
        return f"{INSTANCE_PREFIX}{self.node}.{SERVICE_TYPE}"

    @property
    def server(self) -> str:
        """The name that the addresses belong to."""
        return f"{INSTANCE_PREFIX}{self.node}.local."

    def to_txt(self) -> dict[str, str]:
        """The TXT record: no host or user name, path, GPU, software version or secret."""
        txt = {
            "v": str(PROTOCOL_VERSION),
            "n": self.node,
            "i": self.incarnation,
            "k": urlsafe_b64encode(self.public_key).decode("ascii").rstrip("="),
            "s": self.state,
            "a": self.admission,
            "b": str(self.bulk_port),
            "j": str(self.join_port),
        }
        if self.mesh_tag is not None:
            txt["m"] = self.mesh_tag
        return txt


def advert_from_txt(
    instance: str,
    properties: Mapping[bytes, bytes | None],
    control_port: int | None,
    addresses: Sequence[str],
) -> Advert:
    """The advert in a service record.  Raises `WireError` for anything that we would not say ourselves."""
    txt = _bounded(properties)
    if _text(txt, "v", 4) != str(PROTOCOL_VERSION):
        raise WireError("an advert of another protocol version")
    key = _key(_text(txt, "k", 64))
    node = node_id_of(key)
    if _text(txt, "n", 64) != node:
        raise WireError("an advert whose node id is not the digest of its key")
    if instance.lower() != f"{INSTANCE_PREFIX}{node}.{SERVICE_TYPE}":
        raise WireError("an advert under the name of another node")
    tag = _hex(_text(txt, "m", 64), 2 * TAG_BYTES) if b"m" in txt else None
    state, admission = _text(txt, "s", 16), _text(txt, "a", 16)
    if state not in _STATES or admission not in _ADMISSIONS:
        raise WireError("an advert with an unknown state")
    if (state == "member") != (tag is not None):
        raise WireError("an advert whose state and mesh contradict each other")
    return Advert(
        node=node,
        incarnation=_hex(_text(txt, "i", 64), INCARNATION_CHARS),
        public_key=key,
        mesh_tag=tag,
        state=state,  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # one of _STATES
        admission=admission,  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # one of _ADMISSIONS
        control_port=_port(str(control_port)),
        bulk_port=_port(_text(txt, "b", 8)),
        join_port=_port(_text(txt, "j", 8)),
        hosts=usable_hosts(addresses),
    )


def usable_hosts(addresses: Sequence[str]) -> tuple[str, ...]:
    """The unicast addresses among these, without repetition, IPv4 first, at most `HOSTS_MAX`."""
    good: dict[str, int] = {}
    for text in addresses[: 8 * HOSTS_MAX]:
        if not is_address(text):
            continue
        address = ip_address(text)
        if address.is_multicast or address.is_unspecified or address == _BROADCAST:
            continue
        good.setdefault(text, address.version)
    return tuple(sorted(good, key=lambda text: good[text]))[:HOSTS_MAX]


_BROADCAST: Final = IPv4Address("255.255.255.255")


def _bounded(properties: Mapping[bytes, bytes | None]) -> dict[bytes, bytes]:
    total = 0
    for key, value in properties.items():
        size = len(value) if value is not None else 0
        total += 2 + len(key) + size
        if size > TXT_VALUE_BYTES_MAX or total > TXT_BYTES_MAX:
            raise WireError("an advert that is too large")
    return {key: value for key, value in properties.items() if value is not None}


def _text(txt: Mapping[bytes, bytes], name: str, chars_max: int) -> str:
    raw = txt.get(name.encode())
    if raw is None:
        raise WireError(f"an advert without {name!r}")
    if not 0 < len(raw) <= chars_max or not raw.isascii():
        raise WireError(f"an advert with a bad {name!r}")
    return raw.decode("ascii")


def _key(text: str) -> bytes:
    try:
        key = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        raise WireError("an advert with a bad key") from None
    if len(key) != KEY_BYTES or urlsafe_b64encode(key).decode().rstrip("=") != text:
        raise WireError("an advert with a bad key")
    return key


def _hex(text: str, chars: int) -> str:
    if len(text) != chars or any(char not in "0123456789abcdef" for char in text):
        raise WireError("an advert with a bad tag")
    return text


def _port(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) <= PORT_MAX:
        raise WireError("an advert with a bad port")
    return int(text)


# --- aging ------------------------------------------------------------------------------------------


class AdvertTable:
    """The adverts heard, newest first to ask; bounded.  What goes away is kept as the worst hint.

    A goodbye may be a spoofer's and a silent cache says nothing, so neither removes an address at once.
    """

    def __init__(self, own: NodeId, *, adverts_max: int = ADVERTS_MAX) -> None:
        self._own = own
        self._max = adverts_max
        self._heard: dict[NodeId, tuple[Advert, int]] = {}
        self._gone: set[NodeId] = set()

    def heard(self, advert: Advert, now_ms: int) -> bool:
        """Takes an advert; True when it says anything new."""
        if advert.node == self._own:
            return False
        known = self._heard.pop(advert.node, None)
        news = known is None or known[0] != advert or advert.node in self._gone
        self._gone.discard(advert.node)
        self._heard[advert.node] = (advert, now_ms)
        if len(self._heard) > self._max:
            worst = next((node for node in self._heard if node in self._gone), None)
            self._forget(worst if worst is not None else next(iter(self._heard)))
        return news

    def gone(self, node: NodeId) -> None:
        """Somebody says goodbye for this node."""
        if node in self._heard:
            self._gone.add(node)

    def current(self, now_ms: int) -> tuple[Advert, ...]:
        """Adverts worth dialling: newest first, those that said goodbye last; forgets the old."""
        for node in [n for n, (_, at) in self._heard.items() if now_ms - at > ADVERT_TTL_MS]:
            self._forget(node)
        newest = [advert for advert, _ in reversed(self._heard.values())]
        return tuple(sorted(newest, key=lambda advert: advert.node in self._gone))

    def get(self, node: NodeId) -> Advert | None:
        """The last advert of this node."""
        known = self._heard.get(node)
        return known[0] if known else None

    def _forget(self, node: NodeId) -> None:
        del self._heard[node]
        self._gone.discard(node)


# --- interfaces -------------------------------------------------------------------------------------

_VIRTUAL: Final = (
    *("docker", "br-", "veth", "virbr", "vnet", "lxc", "lxd", "cni", "flannel", "cali", "cbr"),
    *("podman", "kube", "weave", "tun", "tap", "wg", "tailscale", "zt", "ppp", "utun"),
    *("ipsec", "gif", "stf", "awdl", "llw", "anpi", "bridge1", "vmnet", "vboxnet", "dummy"),
    *("nordlynx", "proton", "sit", "ip6tnl", "gre", "erspan", "teql", "ifb"),
    *("vethernet (wsl", "vethernet (default switch", "vmware", "virtualbox"),
)
"""How container bridges and tunnels are called on Linux, macOS and Windows (lower case)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """A network interface as the system names it, and its addresses (IPv6 link-local with `%index`)."""

    name: str
    index: int
    addresses: tuple[str, ...]
    title: str = ""
    """What Windows shows to people; elsewhere the name."""

    @property
    def is_loopback(self) -> bool:
        """Whether every address is a loopback address."""
        return bool(self.addresses) and all(ip_address(a).is_loopback for a in self.addresses)


def choose_interfaces(
    present: Sequence[Interface], named: Sequence[str] = (), listen_host: str = ""
) -> tuple[Interface, ...]:
    """The interfaces to advertise on, each with the addresses worth telling.

    Named ones (by name, title or address) exactly as given; else those that carry `listen_host` when
    it is one address; else what looks physical; else loopback alone.  Empty when nothing has an address.
    With `listen_host` 0.0.0.0 nobody listens on IPv6, so only IPv4 counts.
    """
    usable = [_listened(interface, listen_host) for interface in present]
    usable = [interface for interface in usable if interface.addresses]
    if named:
        wanted = [(i, _named_addresses(i, named)) for i in usable]
        return tuple(_with(i, addresses) for i, addresses in wanted if addresses)
    if listen_host and is_address(listen_host) and not ip_address(listen_host).is_unspecified:
        return tuple(_with(i, (listen_host,)) for i in usable if listen_host in i.addresses)
    physical = [i for i in usable if not i.is_loopback and not _is_virtual(i)]
    chosen = physical or [i for i in usable if i.is_loopback]
    return tuple(_with(i, _worth_telling(i)) for i in chosen)


def why_unheard(
    present: Sequence[Interface], named: Sequence[str] = (), listen_host: str = ""
) -> str:
    """Why `choose_interfaces` finds none that others are behind, for a person; empty when it does."""
    chosen = choose_interfaces(present, named, listen_host)
    others = [i for i in present if i.addresses and not i.is_loopback and not _is_virtual(i)]
    if named and not chosen:
        there = ", ".join(i.name for i in present if _listened(i, listen_host).addresses)
        return f"no interface is {' or '.join(named)} and has an address that --listen covers; there are {there}"
    if not chosen:
        return "no interface has an address"
    if others and not named and listen_host == "0.0.0.0" and all(i.is_loopback for i in chosen):  # noqa: S104 - compared, not bound
        return "this machine has IPv6 alone, and nobody listens on it; start it with --listen [::]:7440"
    return ""


def _listened(interface: Interface, listen_host: str) -> Interface:
    if listen_host != "0.0.0.0":  # noqa: S104 - compared, not bound
        return interface
    return _with(interface, tuple(a for a in interface.addresses if ":" not in a))


def _with(interface: Interface, addresses: tuple[str, ...]) -> Interface:
    return Interface(
        name=interface.name, index=interface.index, addresses=addresses, title=interface.title
    )


def _named_addresses(interface: Interface, named: Sequence[str]) -> tuple[str, ...]:
    if interface.name in named or (interface.title and interface.title in named):
        return _worth_telling(interface)
    return tuple(address for address in interface.addresses if address in named)


def _is_virtual(interface: Interface) -> bool:
    return any(
        name.lower().startswith(_VIRTUAL) for name in (interface.name, interface.title) if name
    )


def _worth_telling(interface: Interface) -> tuple[str, ...]:
    """IPv4 first, then IPv6 that others can use; link-local IPv6 only when nothing else is there."""
    good = usable_hosts(interface.addresses)
    routed = tuple(host for host in good if not _is_link_local_v6(host))
    return routed or good


def _is_link_local_v6(host: str) -> bool:
    address = ip_address(host)
    return isinstance(address, IPv6Address) and address.is_link_local
