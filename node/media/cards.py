"""The devices of one machine, each with all encoders that work on it, and how many films it takes at once.

Pure.  One chip has several interfaces (NVENC and Vulkan, VAAPI and Vulkan) and one engine behind
them, so what bounds it is counted for the chip and not for its interfaces.  Which interface belongs
to which chip is told by the maker: NVENC counts NVIDIA's chips, QSV and VAAPI those of others.  Where
that does not tell (several chips of a maker without numbers), an interface is a device by itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ledger.device_slots import CPU, DEVICES_MAX, LABEL_CHARS_MAX, DeviceSlots
from node.media.encoders import FORMS
from node.media.hardware import NVIDIA, Detection, Device
from node.media.profiles import Family

CHIP_SLOTS: Final = 1
"""One engine makes one film as fast as it can; a second only shares it."""
NVENC_SLOTS: Final = 2
"""While one film is read and scaled by the processor the chip has another to make; not measured on a chip."""
INTEL: Final = 0x8086
AMD: Final = 0x1002
MAKERS: Final[dict[Family, int]] = {"NVENC": NVIDIA, "QSV": INTEL, "AMF": AMD}
SESSIONS: Final = ((551, 8), (531, 5), (0, 3))
"""From this driver on GeForce chips together hold so many NVENC sessions (NVIDIA's support matrix)."""
CONSUMER: Final = "GeForce"


@dataclass(slots=True, kw_only=True)
class Card:
    """A device: its name here (`cpu`, `gpu0`), what people call it, and FFmpeg's name of it by encoder."""

    device: str
    label: str
    places: dict[str, str] = field(default_factory=dict[str, str])
    families: set[Family] = field(default_factory=set[Family])

    @property
    def slots(self) -> int:
        """Films at once where nobody said anything."""
        return NVENC_SLOTS if "NVENC" in self.families else CHIP_SLOTS


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotRules:
    """Who may say how many: a person for each device, the configuration for each device, or for the processor.

    `cpu` 0 is a node that does no work at all, unless its processor is named among `devices`.
    """

    cpu: int
    devices: Mapping[str, int] = field(default_factory=dict[str, int])


def rules_of(
    default: int,
    configured: tuple[int | None, Mapping[str, int]],
    said: tuple[int | None, Mapping[str, int]],
) -> SlotRules:
    """What holds of the processor's slots and those of devices: what a person said goes before what is configured.

    Of the processor as well where the configuration names it as a device; and a node of which a person
    says that it has none does nothing, whatever its chips were configured to do.
    """
    slots, devices = said
    kept = {
        name: number
        for name, number in configured[1].items()
        if slots is None or (slots and name != CPU)
    }
    chosen = configured[0] if slots is None else slots
    return SlotRules(cpu=default if chosen is None else chosen, devices={**kept, **devices})


def cards_of(found: Detection) -> tuple[Card, ...]:
    """The processor first, then each device on which an encoder works, in the order that Vulkan has them."""
    processor = Card(device=CPU, label="processor")
    chips = {
        number: Card(device=f"gpu{number}", label=device.name[:LABEL_CHARS_MAX])
        for number, device in enumerate(found.devices)
    }
    others: dict[tuple[str, str], Card] = {}
    for encoder in found.encoders:
        if not encoder.usable or encoder.name not in FORMS:
            continue
        if encoder.family == "CPU":
            processor.places[encoder.name] = ""
            continue
        for place in encoder.devices or ("",):
            chip = _chip_of(encoder.family, place, found.devices)
            card = chips[chip] if chip is not None else _other(others, encoder.family, place)
            card.places[encoder.name] = place
            card.families.add(encoder.family)
    used = [card for card in (*chips.values(), *others.values()) if card.places]
    return (processor, *used[: DEVICES_MAX - 1])


def _chip_of(family: Family, place: str, devices: Sequence[Device]) -> int | None:
    """The number among Vulkan's devices; None: not to be told."""
    if family == "Vulkan":
        return int(place) if place.isdigit() and int(place) < len(devices) else None
    maker = MAKERS.get(family)
    # VAAPI and V4L2 are everybody's but NVIDIA's, VideoToolbox is the only chip's there.
    chips = [
        number
        for number, device in enumerate(devices)
        if device.is_gpu and (device.vendor_id == maker if maker else device.vendor_id != NVIDIA)
    ]
    if family == "NVENC" and place.isdigit():
        return chips[int(place)] if int(place) < len(chips) else None
    return chips[0] if len(chips) == 1 else None


def _other(others: dict[tuple[str, str], Card], family: Family, place: str) -> Card:
    key = family, place
    if key not in others:
        number = sum(known == family for known, _ in others)
        shown = f"{family} {place}".strip()
        others[key] = Card(device=f"{family.lower()}{number}", label=shown[:LABEL_CHARS_MAX])
    return others[key]


def slots_of(
    cards: Iterable[Card], devices: Sequence[Device], rules: SlotRules
) -> tuple[DeviceSlots, ...]:
    """What a node tells the mesh of its devices."""
    left = _sessions(devices)
    told: list[DeviceSlots] = []
    for card in cards:
        given = rules.cpu if card.device == CPU else card.slots if rules.cpu else 0
        slots = rules.devices.get(card.device, given)
        if left is not None and "NVENC" in card.families and CONSUMER in card.label:
            slots = min(slots, left)
            left -= slots
        told.append(
            DeviceSlots(
                device=card.device,
                label=card.label,
                slots=slots,
                encoders=tuple(sorted(card.places)),
            )
        )
    return tuple(told)


def _sessions(devices: Iterable[Device]) -> int | None:
    """How many sessions the consumer chips of this machine hold together; None: nothing bounds them here."""
    found = [d for d in devices if d.vendor_id == NVIDIA and CONSUMER in d.name]
    if not found:
        return None
    driver = found[0].driver_version >> 22  # NVIDIA's own way of packing it
    return next(sessions for since, sessions in SESSIONS if driver >= since)
