"""What this machine could encode with, and what it really can.

FFmpeg's list names what was compiled in, not what works (FACTS.md, "A hardware encoder is proven by its
picture").  Encoders on the processor are proven here by a real, tiny encode; hardware ones are candidates
only and get no work before a picture has proven them.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from node.media.child import ChildRunner, Limits
from node.media.command import GLOBAL
from node.media.ffmpeg_binary import FFmpegBinary, list_encoders

Family = Literal["CPU", "NVENC", "QSV", "VAAPI", "AMF", "VideoToolbox", "Vulkan", "V4L2"]
DeviceType = Literal["discrete GPU", "integrated GPU", "virtual GPU", "CPU", "other"]

CPU_ENCODERS: Final = ("libx264", "libx265", "libsvtav1", "ffv1", "aac", "flac")
"""Those that profiles can ask for."""
SUFFIXES: Final[tuple[tuple[str, Family], ...]] = (
    ("_nvenc", "NVENC"),
    ("_qsv", "QSV"),
    ("_vaapi", "VAAPI"),
    ("_amf", "AMF"),
    ("_videotoolbox", "VideoToolbox"),
    ("_vulkan", "Vulkan"),
    ("_v4l2m2m", "V4L2"),
)
HARDWARE_CODECS: Final = ("h264", "hevc", "av1", "ffv1", "prores_ks")
NOT_PROVEN: Final = "candidate: proof by picture not yet run by this version, so it gets no work"
PROOF_LIMITS: Final = Limits(time_ms=20_000, output_bytes=1 << 20)
DEVICES_LIMITS: Final = Limits(time_ms=15_000, output_bytes=0, stdout_bytes=64 << 10)
"""A broken driver crashes or hangs only the child."""
DEVICES_MAX: Final = 64


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
    """One encoder of this FFmpeg; `why` says why it is not usable."""

    name: str
    family: Family
    usable: bool
    why: str = ""


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
        """Encoders that really encoded here."""
        return frozenset(encoder.name for encoder in self.encoders if encoder.usable)

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


def family_of(name: str) -> Family | None:
    """Hardware family by FFmpeg's suffixes, CPU for the encoders that profiles use, else None: of no interest."""
    for suffix, family in SUFFIXES:
        if name.endswith(suffix) and name.removesuffix(suffix) in HARDWARE_CODECS:
            return family
    return "CPU" if name in CPU_ENCODERS else None


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
        words += [] if sound else ["-pix_fmt", "yuv420p"]
        words += {"libx264": ["-preset", "ultrafast"], "libx265": ["-preset", "ultrafast"],
                  "libsvtav1": ["-preset", "12"]}.get(name, [])  # fmt: skip
        words += ["-f", "null", "-"]
    return tuple(words)


async def prove_cpu_encoders(
    runner: ChildRunner, ffmpeg: FFmpegBinary, compiled: Mapping[str, str]
) -> dict[str, str]:
    """Name to "" when it encoded, else why not."""
    names = tuple(name for name in CPU_ENCODERS if name in compiled)
    proofs = {
        name: "not compiled into this FFmpeg" for name in CPU_ENCODERS if name not in compiled
    }
    together = await runner.run(
        proof_command(ffmpeg, names), limits=PROOF_LIMITS, on_progress=_ignore
    )
    if together.ok:
        return proofs | dict.fromkeys(names, "")
    for name in names:  # one of them fails: find out which
        alone = await runner.run(
            proof_command(ffmpeg, (name,)), limits=PROOF_LIMITS, on_progress=_ignore
        )
        first = alone.stderr.first_error or f"its test encode ended with code {alone.exit_code}"
        proofs[name] = "" if alone.ok else first
    return proofs


async def detect_encoders(
    runner: ChildRunner, ffmpeg: FFmpegBinary, cache: ProofCache
) -> tuple[Encoder, ...]:
    """All encoders of interest, best known first; proofs come from the cache when the FFmpeg is the same."""
    compiled = await list_encoders(runner, ffmpeg)
    key = proof_key(ffmpeg)
    proofs = _proofs_of(await cache.load(key))
    if proofs is None:
        proofs = await prove_cpu_encoders(runner, ffmpeg, compiled)
        # A node that was too busy to encode must not remember itself as unable.
        if not any(proofs.get(name) for name in compiled):
            await cache.store(key, _PROOFS.dump_json(proofs).decode())
    found = [
        Encoder(name=name, family="CPU", usable=not why, why=why) for name, why in proofs.items()
    ]
    for name in compiled:
        family = family_of(name)
        if family is not None and family != "CPU":
            found.append(Encoder(name=name, family=family, usable=False, why=NOT_PROVEN))
    return tuple(found)


def _proofs_of(text: str | None) -> dict[str, str] | None:
    if text is None:
        return None
    try:
        proofs = _PROOFS.validate_json(text, strict=True)
    except ValidationError:
        return None
    return proofs if set(proofs) == set(CPU_ENCODERS) else None


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
    runner: ChildRunner, ffmpeg: FFmpegBinary, cache: ProofCache, python: str
) -> Detection:
    """Devices and encoders of this machine."""
    devices, note = await detect_devices(runner, python)
    encoders = await detect_encoders(runner, ffmpeg, cache)
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
