"""What this machine can encode with: finds FFmpeg, proves encoders, lists devices, says it in the API's words.

A composition root of its own, because `mesh-node detect` answers without a node.
"""

import os
import platform
import sys
from pathlib import Path

from node.gateway.device_models import Detection, DeviceInfo, EncoderInfo
from node.media import hardware
from node.media.ffmpeg_binary import choose
from node.media.locate_ffmpeg import ffmpeg_candidates
from node.media.proofs_files import ProofFiles
from node.media.run_ffmpeg import FFmpegRunner
from node.media.surroundings_files import surroundings


async def detect_here(
    ffmpeg: str | None, cache: Path, *, software_vulkan: bool = False, speeds: bool = False
) -> Detection:
    """Takes about a second the first time, and as long as listing devices afterwards.

    With `speeds` each usable encoder is measured too, once: some seconds.  Raises `FFmpegMissingError`.
    """
    runner, proofs = FFmpegRunner(), ProofFiles(cache)
    binary = await choose(runner, ffmpeg_candidates(ffmpeg))
    with surroundings(software_vulkan=software_vulkan) as around:
        found = await hardware.detect(runner, binary, proofs, sys.executable, around)
    if speeds:
        found = await hardware.with_speeds(runner, binary, proofs, found)
    return detection_of(found)


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
                works=one.usable,
                reason=one.why,
                devices=list(filter(None, one.devices)),
                psnr_db=one.psnr_db or None,
                fps=one.fps,
            )
            for one in found.encoders
        ],
    )
