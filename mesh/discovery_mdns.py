"""Discovery over multicast DNS with python-zeroconf: browses, advertises, follows the interfaces.

Nothing that fails here stops a node: it is reported and tried again for ever, while seeds and known
addresses go on working.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final

import ifaddr
import zeroconf
from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from mesh import clock
from mesh.discovery import (
    INSTANCE_PREFIX,
    SERVICE_TYPE,
    Advert,
    Interface,
    advert_from_txt,
    choose_interfaces,
    why_unheard,
)
from mesh.errors import WireError
from mesh.ids import NODE_ID_CHARS, NodeId, is_node_id

ANNOUNCE_S: Final = 45.0
"""Between two announcements of the same advert: a network that healed shows everybody within that."""
LOOK_S: Final = 3.0
"""How often the interfaces are looked at; one look takes well under a millisecond."""
RETRY_MIN_S: Final = 1.0
RETRY_MAX_S: Final = 30.0
REQUEST_MS: Final = 3_000
"""For the records of one service to come in."""
REQUESTS_MAX: Final = 64
"""Services asked for at once; a flood of names beyond it is dropped, its senders announce again."""
CLOSE_S: Final = 2.0

_FAILURES: Final = (OSError, RuntimeError, ValueError, AssertionError, zeroconf.Error)
"""What zeroconf raises when an interface, an address or its event loop's socket goes away."""


def present_interfaces() -> tuple[Interface, ...]:
    """The interfaces of this machine with their addresses, in the system's order."""
    found: list[Interface] = []
    for adapter in ifaddr.get_adapters():
        addresses: list[str] = []
        for ip in adapter.ips:
            if isinstance(ip.ip, str):
                addresses.append(ip.ip)
            else:
                host, _, scope = ip.ip
                addresses.append(f"{host}%{scope}" if scope else host)
        found.append(
            Interface(
                name=adapter.name,
                index=adapter.index or 0,
                addresses=tuple(addresses),
                title=adapter.nice_name,
            )
        )
    return tuple(found)


def local_addresses(named: Sequence[str] = (), listen_host: str = "") -> tuple[str, ...]:
    """The addresses that this node tells others, on the interfaces that `choose_interfaces` picks."""
    chosen = choose_interfaces(present_interfaces(), named, listen_host)
    return tuple(address for interface in chosen for address in interface.addresses)


class MdnsDiscovery:
    """Says who this node is and hears who else is there, while `run` runs.

    `on_heard` and `on_gone` are called on the event loop with hints, nothing more; `report` gets a
    line for people when something does not work, and another when it works again.
    """

    def __init__(
        self,
        *,
        on_heard: Callable[[Advert], None],
        on_gone: Callable[[NodeId], None],
        report: Callable[[str], None],
        interfaces: Sequence[str] = (),
        listen_host: str = "",
        present: Callable[[], Sequence[Interface]] = present_interfaces,
    ) -> None:
        self._on_heard = on_heard
        self._on_gone = on_gone
        self._report = report
        self._named = tuple(interfaces)
        self._listen_host = listen_host
        self._present = present
        self._advert: Advert | None = None
        self._wake = asyncio.Event()
        self._requests: dict[str, asyncio.Task[None]] = {}
        self._reported = ""
        self.refused = 0
        """Adverts that no honest node says, and those beyond what is handled at once."""

    def announce(self, advert: Advert) -> None:
        """Advertises this from now on; the first call makes the node visible."""
        self._advert = advert
        self._wake.set()

    def interfaces(self) -> tuple[Interface, ...]:
        """The interfaces that are used now."""
        return choose_interfaces(self._present(), self._named, self._listen_host)

    def addresses(self) -> tuple[str, ...]:
        """What this node can be reached at, to tell others."""
        return tuple(address for interface in self.interfaces() for address in interface.addresses)

    async def run(self) -> None:
        """Browses and advertises until cancelled, then says goodbye."""
        wait_s = RETRY_MIN_S
        while True:
            started_ms = clock.monotonic_ms()
            try:
                await self._session()
                wait_s = RETRY_MIN_S
            except _FAILURES as error:
                self._tell(f"mDNS does not work: {error or type(error).__name__}; trying again")
                worked = clock.monotonic_ms() - started_ms > 1_000 * RETRY_MAX_S
                wait_s = RETRY_MIN_S if worked else min(2 * wait_s, RETRY_MAX_S)
            await asyncio.sleep(wait_s)

    # --- one use of zeroconf --------------------------------------------------------------------------

    async def _session(self) -> None:
        """Returns when zeroconf has to be made anew: a link went away and came back."""
        chosen = self.interfaces()
        while not chosen:
            self._tell(f"mDNS waits: {self._why_unheard()}")
            await asyncio.sleep(LOOK_S)
            chosen = self.interfaces()
        links = _links(chosen)
        zc = AsyncZeroconf(interfaces=_sockets(chosen), ip_version=_family(chosen))
        try:
            browser = AsyncServiceBrowser(zc.zeroconf, SERVICE_TYPE, handlers=[self._event])
            try:
                await self._advertise(zc, chosen, links)
            finally:
                await browser.async_cancel()
        finally:
            await self._end_requests()
            with contextlib.suppress(TimeoutError, *_FAILURES):
                async with asyncio.timeout(CLOSE_S):
                    await zc.async_close()

    async def _advertise(
        self, zc: AsyncZeroconf, chosen: tuple[Interface, ...], links: frozenset[str]
    ) -> None:
        shown: Advert | None = None
        due_ms = 0
        self._told_well(chosen)
        while True:
            advert, now_ms = self._advert, clock.monotonic_ms()
            if advert is not None and (advert != shown or now_ms >= due_ms):
                await self._show(zc, advert, chosen, first=shown is None)
                shown, due_ms = advert, now_ms + int(1_000 * ANNOUNCE_S)
            self._wake.clear()
            if self._advert is advert:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await self._wake.wait()
            present = self.interfaces()
            if not present or not links <= _links(present) or _family(present) != _family(chosen):
                self._tell("mDNS starts anew: an interface went away")
                return
            if present != chosen or _links(present) != links:
                chosen, links = present, _links(present)
                await zc.async_update_interfaces(_sockets(chosen))
                due_ms = 0
                self._told_well(chosen)

    async def _show(
        self, zc: AsyncZeroconf, advert: Advert, chosen: tuple[Interface, ...], *, first: bool
    ) -> None:
        hosts = advert.hosts or tuple(a for interface in chosen for a in interface.addresses)
        info = AsyncServiceInfo(
            SERVICE_TYPE,
            advert.instance,
            port=advert.control_port,
            properties=advert.to_txt(),
            server=advert.server,
            parsed_addresses=[host.partition("%")[0] for host in hosts],
        )
        if first:
            # The name is a key's digest: nobody else has it, so nothing needs to be probed for.
            sent = await zc.async_register_service(info, cooperating_responders=True)
        else:
            sent = await zc.async_update_service(info)
        await sent

    # --- what is heard --------------------------------------------------------------------------------

    def _event(
        self,
        zeroconf: Zeroconf,
        service_type: str,
        name: str,
        state_change: ServiceStateChange,
    ) -> None:
        node = _node_of(name)
        if node is None:
            self.refused += 1
        elif self._advert is not None and node == self._advert.node:
            pass
        elif state_change is ServiceStateChange.Removed:
            self._on_gone(node)
        elif name not in self._requests:
            if len(self._requests) >= REQUESTS_MAX:
                self.refused += 1
                return
            self._spawn(name, self._request(zeroconf, name))

    async def _request(self, zc: Zeroconf, name: str) -> None:
        info = AsyncServiceInfo(SERVICE_TYPE, name)
        try:
            if not await info.async_request(zc, REQUEST_MS):
                return
            advert = advert_from_txt(
                name, info.properties, info.port, info.parsed_scoped_addresses(IPVersion.All)
            )
        except (WireError, *_FAILURES):
            self.refused += 1
            return
        self._on_heard(advert)

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._requests[name] = task
        task.add_done_callback(lambda _: self._requests.pop(name, None))

    async def _end_requests(self) -> None:
        tasks = tuple(self._requests.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _told_well(self, chosen: tuple[Interface, ...]) -> None:
        why = self._why_unheard()
        names = ", ".join(interface.name for interface in chosen)
        self._tell(f"mDNS on {names}" + (f" alone: {why}" if why else ""))

    def _why_unheard(self) -> str:
        return why_unheard(self._present(), self._named, self._listen_host)

    def _tell(self, line: str) -> None:
        if line != self._reported:
            self._reported = line
            self._report(line)


def _node_of(name: str) -> NodeId | None:
    """The node id in a service's name; None for names that no node of ours has."""
    text = name.lower().removesuffix(f".{SERVICE_TYPE}").removeprefix(INSTANCE_PREFIX)
    return NodeId(text) if len(text) == NODE_ID_CHARS and is_node_id(text) else None


def _sockets(chosen: Sequence[Interface]) -> list[str | int | tuple[tuple[str, int, int], int]]:
    """One socket for each interface and family: its first IPv4 address, else its IPv6 index."""
    wanted: list[str | int | tuple[tuple[str, int, int], int]] = []
    for interface in chosen:
        v4 = [address for address in interface.addresses if ":" not in address]
        wanted += v4[:1] or [interface.index]
    return wanted


def _family(chosen: Sequence[Interface]) -> IPVersion:
    with_v4 = [any(":" not in address for address in i.addresses) for i in chosen]
    if all(with_v4):
        return IPVersion.V4Only
    return IPVersion.All if any(with_v4) else IPVersion.V6Only


def _links(chosen: Sequence[Interface]) -> frozenset[str]:
    """The interfaces whose link is up, where the system tells (Linux), else all."""
    up: set[str] = set()
    for interface in chosen:
        try:
            state = Path(f"/sys/class/net/{interface.name}/operstate").read_text("ascii").strip()
        except (OSError, ValueError):
            state = "unknown"
        if state not in ("down", "lowerlayerdown", "notpresent"):
            up.add(interface.name)
    return frozenset(up)
