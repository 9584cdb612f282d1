"""What this machine can encode with: finds FFmpeg, proves encoders, lists devices, says it in the API's words.

A composition root of its own, because `mesh-node detect` answers without a node.
"""

import os
import platform
import sys
from pathlib import Path

from node.gateway.models import Detection, DeviceInfo, EncoderInfo
from node.media import hardware
from node.media.ffmpeg_binary import choose
from node.media.locate_ffmpeg import ffmpeg_candidates
from node.media.proofs_files import ProofFiles
from node.media.run_ffmpeg import FFmpegRunner


async def detect_here(ffmpeg: str | None, cache: Path) -> Detection:
    """Takes about a second the first time, and as long as listing devices afterwards.

    Raises `FFmpegMissingError`.
    """
    runner = FFmpegRunner()
    binary = await choose(runner, ffmpeg_candidates(ffmpeg))
    return detection_of(await hardware.detect(runner, binary, ProofFiles(cache), sys.executable))


def detection_of(found: hardware.Detection) -> Detection:
    """The API's form of what the media part found on this machine."""
    devices = [
        DeviceInfo(
            name=device.name,
            kind="gpu" if device.is_gpu else "cpu" if device.type == "CPU" else "other",
            detail=f"{device.type}, Vulkan {device.api_version}",
        )
        for device in found.devices
    ]
    return Detection(
        ffmpeg=found.ffmpeg_path,
        ffmpeg_version=found.ffmpeg,
        ffmpeg_note="; ".join(found.passed_over),
        cpus=os.cpu_count() or 1,
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        devices=devices,
        devices_note=found.devices_note,
        encoders=[
            EncoderInfo(
                name=one.name,
                family=one.family,
                works=None if one.why == hardware.NOT_PROVEN else one.usable,
                reason=one.why,
            )
            for one in found.encoders
        ],
    )
