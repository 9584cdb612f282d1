"""How much a node does for others: slots and rates, set by a person while it runs.

Told to the node that it concerns, which keeps it in its home: a limit is a matter of that node's own
line alone, holds at once, and the person sees that it does.  What the person never set comes from
the configuration.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol

import structlog

from ledger.device_slots import DEVICES_MAX
from mesh.codec import Vocabulary, value
from mesh.errors import UsageError, WireError
from mesh.ids import NodeId
from mesh.limits import RATE_BYTES_S_MAX, LinkRates, Rates
from node.requests import Requests
from node.settings.sections import DEVICE_NAME, SLOTS_MAX

METHOD: Final = "node.limit"
AS_CONFIGURED: Final = -1
"""Takes back what a person set."""
LINKS_MAX: Final = 1_000

LIMITS: Final = Vocabulary("limits")

UseSlots = Callable[[int | None, Mapping[str, int]], None]

_log = structlog.get_logger("transfer")


@value
@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLimit:
    """Films at once on one device (`cpu`, `gpu0`)."""

    device: str
    slots: int


@LIMITS.kind("set")
@dataclass(frozen=True, slots=True, kw_only=True)
class SetLimits:
    """What to change; None leaves as it is.  `up` and `down` in bytes a second, 0 for no limit.

    With `link` they hold for what goes to and comes from that node alone.
    """

    slots: int | None = None
    up: int | None = None
    down: int | None = None
    link: str | None = None
    devices: tuple[DeviceLimit, ...] = ()


@value
@dataclass(frozen=True, slots=True, kw_only=True)
class LinkLimit:
    """What holds for one link."""

    node: str
    up: int = 0
    down: int = 0


@LIMITS.kind("limits")
@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLimits:
    """What a person set; None and absent links: as configured, or no limit."""

    slots: int | None = None
    up: int | None = None
    down: int | None = None
    links: tuple[LinkLimit, ...] = ()
    devices: tuple[DeviceLimit, ...] = ()


@LIMITS.kind("held")
@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What holds now for the node, or for the link that was asked about."""

    slots: int | None
    up: int
    down: int
    devices: tuple[DeviceLimit, ...] = ()


class LimitStore(Protocol):
    """Where a node keeps what was set."""

    def load(self) -> NodeLimits:
        """What was kept last."""
        ...

    def save(self, limits: NodeLimits, /) -> None:
        """Replaces it, durably.  Raises `StorageError`."""
        ...


def changed(limits: NodeLimits, wanted: SetLimits) -> NodeLimits:
    """The limits after a change.  Raises `UsageError` for values that make no sense."""
    for rate in (wanted.up, wanted.down):
        if rate is not None and not AS_CONFIGURED <= rate <= RATE_BYTES_S_MAX:
            raise UsageError(
                f"{rate} bytes a second are no rate", "give for example 20MB/s, or off"
            )
    if wanted.slots is not None and not AS_CONFIGURED <= wanted.slots <= SLOTS_MAX:
        raise UsageError(f"{wanted.slots} slots are too many", f"at most {SLOTS_MAX}")
    if wanted.link is None:
        return replace(
            limits,
            slots=_merged(limits.slots, wanted.slots),
            up=_merged(limits.up, wanted.up),
            down=_merged(limits.down, wanted.down),
            devices=_devices(limits.devices, wanted.devices),
        )
    before = next((one for one in limits.links if one.node == wanted.link), None)
    link = LinkLimit(
        node=wanted.link,
        up=_merged(before.up if before else 0, wanted.up) or 0,
        down=_merged(before.down if before else 0, wanted.down) or 0,
    )
    others = tuple(one for one in limits.links if one.node != wanted.link)
    if len(others) >= LINKS_MAX:
        raise UsageError(f"more than {LINKS_MAX} links have limits", "take some back with off")
    return replace(limits, links=(*others, link) if link.up or link.down else others)


def _devices(
    before: tuple[DeviceLimit, ...], wanted: tuple[DeviceLimit, ...]
) -> tuple[DeviceLimit, ...]:
    found = {one.device: one for one in before}
    for one in wanted:
        if re.fullmatch(DEVICE_NAME, one.device) is None:
            raise UsageError(f"{one.device[:64]!r} is no device", "see `mesh-cli nodes`")
        if not AS_CONFIGURED <= one.slots <= SLOTS_MAX:
            raise UsageError(
                f"{one.slots} slots of {one.device} are too many", f"at most {SLOTS_MAX}"
            )
        found[one.device] = one
    if len(found) > DEVICES_MAX:
        raise UsageError(f"more than {DEVICES_MAX} devices", "see `mesh-cli nodes`")
    return tuple(one for one in found.values() if one.slots != AS_CONFIGURED)


def _merged(before: int | None, wanted: int | None) -> int | None:
    if wanted is None:
        return before
    return None if wanted == AS_CONFIGURED else wanted


def rates_of(limits: NodeLimits, configured: Rates) -> LinkRates:
    """What transfers keep to."""
    return LinkRates(
        node=Rates(
            up=configured.up if limits.up is None else limits.up,
            down=configured.down if limits.down is None else limits.down,
        ),
        links={NodeId(one.node): Rates(up=one.up, down=one.down) for one in limits.links},
    )


class Limiting:
    """Holds this node's limits, hears of changes, and tells those who keep to them."""

    def __init__(
        self,
        *,
        store: LimitStore,
        configured: Rates,
        use_rates: Callable[[LinkRates], None],
        use_slots: UseSlots,
    ) -> None:
        """`use_slots` takes None for as many as are configured, and what was said of devices."""
        self._store = store
        self._configured = configured
        self._use_rates = use_rates
        self._use_slots = use_slots
        self._limits = store.load()
        self._use()

    @property
    def rates(self) -> LinkRates:
        """What transfers keep to now."""
        return rates_of(self._limits, self._configured)

    def listen(self, requests: Requests) -> None:
        """Hears changes from now on; only members can speak to it."""
        requests.register(METHOD, self._serve)

    def change(self, wanted: SetLimits) -> Held:
        """Holds at once and over a restart.  Raises `UsageError`, `StorageError`."""
        limits = changed(self._limits, wanted)
        self._store.save(limits)
        self._limits = limits
        self._use()
        rates = self.rates
        held = rates.node if wanted.link is None else rates.links.get(NodeId(wanted.link), Rates())
        return Held(slots=limits.slots, up=held.up, down=held.down, devices=limits.devices)

    def _use(self) -> None:
        self._use_rates(self.rates)
        said = {one.device: one.slots for one in self._limits.devices}
        self._use_slots(self._limits.slots, said)

    async def _serve(self, caller: NodeId, body: bytes) -> bytes:
        wanted = LIMITS.decode(body)
        if not isinstance(wanted, SetLimits):
            raise WireError("not a change of limits")
        held = self.change(wanted)
        _log.info("limits changed", member=caller, up=held.up, down=held.down, slots=held.slots)
        return LIMITS.encode(held)
