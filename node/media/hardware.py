"""What this machine could encode with, and what it really can.

FFmpeg's list names what was compiled in, not what works (FACTS.md, "A hardware encoder is proven by its
picture").  Encoders on the processor are proven by a real, tiny encode, those of chips by their picture
on each device (`node.media.proofs`); none gets work before that.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from node.media import proofs
from node.media.child import ChildRunner, Limits
from node.media.command import GLOBAL
from node.media.encoders import BIT_RATE_ONLY, FORMS, SOFTWARE, SUFFIXES, forms_of
from node.media.ffmpeg_binary import FFmpegBinary, list_encoders
from node.media.plan import VULKAN_SCALER
from node.media.profiles import Family

DeviceType = Literal["discrete GPU", "integrated GPU", "virtual GPU", "CPU", "other"]

CPU_ENCODERS: Final = (*SOFTWARE.values(), "aac", "flac")
"""Those that profiles can ask for."""
HARDWARE: Final[tuple[Family, ...]] = tuple(family for _, family in SUFFIXES)
NOT_COMPILED: Final = "not compiled into this FFmpeg"
PROOF_LIMITS: Final = Limits(time_ms=20_000, output_bytes=1 << 20)
DEVICES_LIMITS: Final = Limits(time_ms=15_000, output_bytes=0, stdout_bytes=64 << 10)
"""A broken driver crashes or hangs only the child."""
DEVICES_MAX: Final = 64
NVIDIA: Final = 0x10DE
"""Its number among makers of PCI devices, which Vulkan uses too."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Device(_Strict):
    """A device that Vulkan names. `is_gpu` is False for software renderers (llvmpipe)."""

    name: Annotated[str, Field(max_length=256)]
    type: DeviceType
    vendor_id: int
    device_id: int
    api_version: str
    driver_version: int

    @property
    def is_gpu(self) -> bool:
        """Whether there is silicon behind it."""
        return self.type not in ("CPU", "other")


class Encoder(_Strict):
    """One encoder of this FFmpeg, or `scale_vulkan`; `why` says why it is not usable.

    `devices` are those whose pictures were right (indexes of Vulkan or NVENC, or a render node; "":
    the only one), `psnr_db` is the worst of these pictures, `fps` pictures a second at 1280x720.
    """

    name: str
    family: Family
    usable: bool
    why: str = ""
    devices: tuple[str, ...] = ()
    psnr_db: float = 0.0
    fps: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What only this machine can tell: a folder for test pictures, its render nodes, versions of its drivers."""

    scratch: str
    render_nodes: tuple[str, ...] = ()
    drivers: str = ""
    system: str = "Linux"
    software_vulkan: bool = False
    """Whether a Vulkan device that is the processor itself may work; it is slow, and no GPU."""


class Detection(_Strict):
    """What `mesh-node detect` prints and the node reports to the mesh."""

    ffmpeg: str
    ffmpeg_path: str
    origin: str
    passed_over: tuple[str, ...]
    devices: tuple[Device, ...]
    devices_note: str
    encoders: tuple[Encoder, ...]

    @property
    def usable(self) -> frozenset[str]:
        """Encoders that really encoded here (and `scale_vulkan`)."""
        return frozenset(encoder.name for encoder in self.encoders if encoder.usable)

    @property
    def places(self) -> dict[str, tuple[str, ...]]:
        """The devices of each usable encoder that has several, or needs its one named."""
        return {e.name: e.devices for e in self.encoders if e.usable and any(e.devices)}

    def to_json(self) -> str:
        """For the ledger and `--json`."""
        return self.model_dump_json()


class ProofCache(Protocol):
    """Remembers proofs per FFmpeg, so that a start need not encode anything."""

    async def load(self, key: str) -> str | None:
        """What was stored under the key, or None."""
        ...

    async def store(self, key: str, text: str) -> None:
        """Remembers it, if it can."""
        ...


_PROOFS = TypeAdapter(dict[str, str])
_DEVICES = TypeAdapter(tuple[Device, ...])
_ENCODERS = TypeAdapter(tuple[Encoder, ...])
_SPEEDS = TypeAdapter(dict[str, float])


def proof_key(ffmpeg: FFmpegBinary) -> str:
    """Changes whenever the program could behave differently."""
    return f"{ffmpeg.path} {ffmpeg.size} {ffmpeg.mtime_ns} {ffmpeg.build}"


def proof_command(ffmpeg: FFmpegBinary, encoders: tuple[str, ...]) -> tuple[str, ...]:
    """Encodes a third of a second of test picture and sound with each encoder, in one program."""
    words: list[str] = [ffmpeg.path, *GLOBAL, "-f", "lavfi", "-i", "testsrc2=s=256x256:d=0.4:r=25"]
    words += ["-f", "lavfi", "-i", "sine=d=0.4"]
    for name in encoders:
        sound = name in ("aac", "flac")
        words += ["-map", "1:a" if sound else "0:v", "-c", name]
        words += [] if sound else ["-pix_fmt", "yuv422p10le" if name == "prores_ks" else "yuv420p"]
        words += {"libx264": ["-preset", "ultrafast"], "libx265": ["-preset", "ultrafast"],
                  "libsvtav1": ["-preset", "12"]}.get(name, [])  # fmt: skip
        words += ["-f", "null", "-"]
    return tuple(words)


async def prove_cpu_encoders(
    runner: ChildRunner, ffmpeg: FFmpegBinary, compiled: Mapping[str, str]
) -> dict[str, str]:
    """Name to "" when it encoded, else why not."""
    names = tuple(name for name in CPU_ENCODERS if name in compiled)
    found = {name: NOT_COMPILED for name in CPU_ENCODERS if name not in compiled}
    together = await runner.run(
        proof_command(ffmpeg, names), limits=PROOF_LIMITS, on_progress=_ignore
    )
    if together.ok:
        return found | dict.fromkeys(names, "")
    for name in names:  # one of them fails: find out which
        alone = await runner.run(
            proof_command(ffmpeg, (name,)), limits=PROOF_LIMITS, on_progress=_ignore
        )
        first = alone.stderr.first_error or f"its test encode ended with code {alone.exit_code}"
        found[name] = "" if alone.ok else first
    return found


async def detect_software(
    runner: ChildRunner, ffmpeg: FFmpegBinary, cache: ProofCache, compiled: Mapping[str, str]
) -> tuple[Encoder, ...]:
    """Encoders on the processor; proofs come from the cache when the FFmpeg is the same."""
    key = proof_key(ffmpeg)
    known = _proofs_of(await cache.load(key))
    if known is None:
        known = await prove_cpu_encoders(runner, ffmpeg, compiled)
        # A node that was too busy to encode must not remember itself as unable.
        if not any(known.get(name) for name in compiled):
            await cache.store(key, _PROOFS.dump_json(known).decode())
    return tuple(
        Encoder(name=name, family="CPU", usable=not why, why=why) for name, why in known.items()
    )


class Prover:
    """Tries the hardware candidates of one machine; what worked is remembered by FFmpeg, drivers and devices."""

    def __init__(
        self, runner: ChildRunner, ffmpeg: FFmpegBinary, devices: tuple[Device, ...], around: Around
    ) -> None:
        self._runner = runner
        self._ffmpeg = ffmpeg
        self._devices = devices
        self._around = around
        self._scratch = 0

    @property
    def key(self) -> str:
        """Changes with the program, a driver or a device."""
        named = " ".join(
            f"{d.name} {d.vendor_id}:{d.device_id} {d.api_version} {d.driver_version}"
            for d in self._devices
        )
        around = self._around
        places = " ".join(around.render_nodes)
        asked = "software" if around.software_vulkan else ""
        return f"hardware {proof_key(self._ffmpeg)} {around.drivers} {named} {places} {asked}"

    async def prove_all(
        self, compiled: Mapping[str, str], known: Mapping[str, Encoder]
    ) -> tuple[Encoder, ...]:
        """Each candidate of each family, tried where it is not known to work."""
        found: list[Encoder] = []
        for family in HARDWARE:
            found += await self._family(family, compiled, known)
            if family == "Vulkan":
                found.append(known.get(VULKAN_SCALER) or await self._scaler())
        return tuple(found)

    async def _family(
        self, family: Family, compiled: Mapping[str, str], known: Mapping[str, Encoder]
    ) -> list[Encoder]:
        devices, gone = self._devices_of(family)
        found: list[Encoder] = []
        for form in forms_of(family):
            name = form.encoder
            if name in known:
                found.append(known[name])
            elif name not in compiled or gone:
                why = gone if name in compiled else NOT_COMPILED
                found.append(Encoder(name=name, family=family, usable=False, why=why))
            else:
                proven = {device: await self._prove(name, device) for device in devices}
                found.append(_encoder(name, family, proven))
                # Where no device answers, the family's other encoders would say the same.
                if all(proof.no_device for proof in proven.values()):
                    gone = found[-1].why
        return found

    def _devices_of(self, family: Family) -> tuple[tuple[str, ...], str]:
        """The devices to try, or why there is none."""
        around = self._around
        match family:
            case "Vulkan":
                wanted = [
                    str(number)
                    for number, device in enumerate(self._devices)
                    if device.is_gpu or (around.software_vulkan and device.type == "CPU")
                ]
                if wanted:
                    return tuple(wanted), ""
                if not self._devices:
                    return (), "Vulkan has no device here"
                return (), (
                    f"{self._devices[0].name} is the processor and no GPU; software_vulkan asks for it"
                )
            case "VAAPI":
                none = "" if around.render_nodes else "this machine has no render node in /dev/dri"
                return around.render_nodes, none
            case "NVENC":
                cards = sum(d.vendor_id == NVIDIA and d.is_gpu for d in self._devices)
                return tuple(map(str, range(cards))) if cards > 1 else ("",), ""
            case _:
                return ("",), ""

    async def _prove(self, name: str, device: str) -> proofs.Proof:
        self._scratch += 1
        scratch = f"{self._around.scratch}/proof-{self._scratch}.mkv"
        return await proofs.prove(self._runner, self._ffmpeg, name, device, scratch)

    async def _scaler(self) -> Encoder:
        devices, gone = self._devices_of("Vulkan")
        if gone:
            return Encoder(name=VULKAN_SCALER, family="Vulkan", usable=False, why=gone)
        proven = {d: await proofs.prove_scaler(self._runner, self._ffmpeg, d) for d in devices}
        # One device that is wrong spoils it for all: which one a conversion gets is not known here.
        bad = next((proof for proof in proven.values() if proof.why), None)
        return _encoder(VULKAN_SCALER, "Vulkan", proven if bad is None else {"": bad})


def _encoder(name: str, family: Family, proven: Mapping[str, proofs.Proof]) -> Encoder:
    works = proofs.proven(proven)
    if not works:
        first = next(iter(proven.values()))
        return Encoder(name=name, family=family, usable=False, why=first.why, psnr_db=first.psnr_db)
    note = "it makes fixed bit rates only, which no profile asks for"
    return Encoder(
        name=name,
        family=family,
        usable=True,
        why=note if family in BIT_RATE_ONLY else "",
        devices=works,
        psnr_db=min(proven[device].psnr_db for device in works),
    )


async def detect_hardware(
    cache: ProofCache, prover: Prover, compiled: Mapping[str, str]
) -> tuple[Encoder, ...]:
    """Hardware encoders: what worked before with this FFmpeg, driver and device is not tried again."""
    known = _encoders_of(await cache.load(prover.key))
    found = await prover.prove_all(compiled, known)
    works = {encoder.name: encoder for encoder in found if encoder.usable}
    if works.keys() - known.keys():
        await cache.store(prover.key, _ENCODERS.dump_json(tuple(works.values())).decode())
    return found


async def with_speeds(
    runner: ChildRunner, ffmpeg: FFmpegBinary, cache: ProofCache, detection: Detection
) -> Detection:
    """The detection with the speed of each usable encoder of pictures, measured once for each FFmpeg and device.

    Takes some seconds the first time, with every core; other work on the machine makes the figures lower.
    """
    devices = " ".join(f"{d.name} {d.driver_version}" for d in detection.devices)
    key = f"speeds {proof_key(ffmpeg)} {devices}"
    known = _speeds_of(await cache.load(key))
    measured = dict(known)
    for one in detection.encoders:
        if one.usable and one.name in FORMS and one.name not in measured:
            device = one.devices[0] if one.devices else ""
            fps = await proofs.measure_fps(runner, ffmpeg, one.name, device)
            if fps is not None:
                measured[one.name] = fps
    if measured != known:
        await cache.store(key, _SPEEDS.dump_json(measured).decode())
    encoders = tuple(
        one.model_copy(update={"fps": measured.get(one.name)}) if one.usable else one
        for one in detection.encoders
    )
    return detection.model_copy(update={"encoders": encoders})


def _encoders_of(text: str | None) -> dict[str, Encoder]:
    try:
        return {one.name: one for one in _ENCODERS.validate_json(text or "[]") if one.usable}
    except ValidationError:
        return {}


def _speeds_of(text: str | None) -> dict[str, float]:
    try:
        return _SPEEDS.validate_json(text or "{}")
    except ValidationError:
        return {}


def _proofs_of(text: str | None) -> dict[str, str] | None:
    if text is None:
        return None
    try:
        known = _PROOFS.validate_json(text, strict=True)
    except ValidationError:
        return None
    return known if set(known) == set(CPU_ENCODERS) else None


async def detect_devices(runner: ChildRunner, python: str) -> tuple[tuple[Device, ...], str]:
    """Vulkan's devices, and a note when there are none or their driver failed."""
    result = await runner.run(
        (python, "-P", "-m", "node.media.hardware_vulkan"), limits=DEVICES_LIMITS
    )
    if not result.ok:
        how = "hung" if result.reason == "time" else "crashed"
        return (), f"a Vulkan driver {how} while its devices were listed; see `vulkaninfo`"
    try:
        devices = _DEVICES.validate_json(result.stdout)
    except ValidationError:
        return (), _clean(result.stdout.decode("utf-8", "replace"))
    return devices[:DEVICES_MAX], "" if devices else "Vulkan knows no device"


def _clean(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()[:200] or "Vulkan gave no answer"


async def detect(
    runner: ChildRunner, ffmpeg: FFmpegBinary, cache: ProofCache, python: str, around: Around
) -> Detection:
    """Devices and encoders of this machine."""
    devices, note = await detect_devices(runner, python)
    compiled = await list_encoders(runner, ffmpeg)
    software = await detect_software(runner, ffmpeg, cache, compiled)
    prover = Prover(runner, ffmpeg, devices, around)
    encoders = (*software, *await detect_hardware(cache, prover, compiled))
    return Detection(
        ffmpeg=ffmpeg.group,
        ffmpeg_path=ffmpeg.path,
        origin=ffmpeg.origin,
        passed_over=ffmpeg.passed_over,
        devices=devices,
        devices_note=note,
        encoders=encoders,
    )


def _ignore(_: object) -> None:
    return
