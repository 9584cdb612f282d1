"""What the HTTP API says of devices and encoders."""

from typing import Literal

from pydantic import Field

from node.gateway.base_models import Answer


class SlotsInfo(Answer):
    """How many films a device of a node takes at once, and how many leases it has."""

    device: str
    """Its name on its node: `cpu`, `gpu0`."""
    label: str
    slots: int
    busy: int
    encoders: list[str]


class DeviceInfo(Answer):
    """A device that can encode or compute."""

    name: str
    kind: Literal["cpu", "gpu", "other"]
    detail: str = ""


class EncoderInfo(Answer):
    """An encoder of this FFmpeg: whether it really encoded here (None: not tried), and why not.

    Hardware is proven by its picture: `psnr_db` is the worst one's distance from the source.
    """

    name: str
    family: str
    works: bool | None
    reason: str = ""
    devices: list[str] = Field(default_factory=list[str])
    """Where it works: indexes of Vulkan or NVENC, or a render node."""
    psnr_db: float | None = None
    fps: float | None = None
    """Frames a second at 1280x720 of a test picture; null while it was not measured."""


class Detection(Answer):
    """What this machine can do."""

    ffmpeg: str
    """Path of the FFmpeg in use; empty when there is none."""
    ffmpeg_version: str
    ffmpeg_note: str = ""
    """Which other FFmpegs were passed over, and why."""
    cpus: int
    platform: str
    devices: list[DeviceInfo]
    devices_note: str = ""
    """Why there are no devices."""
    encoders: list[EncoderInfo]
