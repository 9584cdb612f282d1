"""What this machine can encode with: found out once at start, beside everything else."""

import asyncio
import json
import os
import platform
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from ledger.commands import ReportNode
from ledger.device_slots import CPU, ReportSlots
from mesh.errors import DarkStreamError
from node.detection import detection_of
from node.gateway.device_models import Detection
from node.media import hardware
from node.media.cards import SlotRules, cards_of, rules_of, slots_of
from node.media.convert import Media
from node.media.ffmpeg_binary import choose
from node.media.forks_posix import WarmChildren
from node.media.locate_ffmpeg import ffmpeg_candidates
from node.media.plan import VULKAN_SCALER
from node.media.proofs_files import ProofFiles
from node.media.run_ffmpeg import FFmpegRunner
from node.media.surroundings_files import surroundings
from node.member import MemberNode
from node.settings.config import Config

CPUS_A_SLOT: Final = 8
"""x264 and x265 use about eight processors well; more are worth a second film."""

AGAIN_S: Final = 5.0
"""A form of the ledger that knows devices comes when the last member is updated."""

_log = structlog.get_logger("media")


class _NothingRemembered:
    """A `ProofCache` that holds nothing: everything is proven."""

    async def load(self, key: str) -> str | None:
        """Nothing."""
        del key
        return None

    async def store(self, key: str, text: str) -> None:
        """Forgets it."""
        del key, text


class Machine:
    """FFmpeg, encoders and devices of this machine; asking waits until they are known."""

    def __init__(self, config: Config, cache: Path) -> None:
        """`cache` is the folder in which proofs are remembered."""
        self._ffmpeg = config.ffmpeg
        self._software_vulkan = config.software_vulkan
        self._measuring = asyncio.Lock()
        self._cache = cache
        self._configured = config.slots, config.work.device_slots
        self._said: tuple[int | None, Mapping[str, int]] = None, {}
        self._slots_changed = asyncio.Event()
        # The Python that forks keeps the node's priority: each of its children lowers its own.
        self._runner = FFmpegRunner(warm=WarmChildren(FFmpegRunner(nice=0), sys.executable))
        loop = asyncio.get_running_loop()
        self._found: asyncio.Future[tuple[Media, hardware.Detection]] = loop.create_future()
        self._found.add_done_callback(_retrieve)

    async def detect(self) -> None:
        """Looks for FFmpeg and proves its encoders; a machine without them still owns films."""
        try:
            binary = await choose(self._runner, ffmpeg_candidates(self._ffmpeg))
            with surroundings(software_vulkan=self._software_vulkan, below=self._cache) as around:
                found = await hardware.detect(
                    self._runner, binary, ProofFiles(self._cache), sys.executable, around
                )
        except DarkStreamError as error:
            _log.warning("this node cannot encode", reason=error.what, todo=error.todo)
            self._found.set_exception(error)
            return
        media = Media(
            runner=self._runner,
            ffmpeg=binary,
            encoders=found.usable,
            devices=found.places,
            python=sys.executable,
            cards={card.device: card.places for card in cards_of(found)},
        )
        self._found.set_result((media, found))

    async def media(self) -> Media:
        """The means to read and convert films.  Raises what `detect` met."""
        return (await asyncio.shield(self._found))[0]

    async def detection(self) -> Detection:
        """What `mesh-node detect` shows, speeds too: measured when first asked for.  Raises what `detect` met."""
        media, found = await asyncio.shield(self._found)
        async with self._measuring:
            return detection_of(
                await hardware.with_speeds(
                    self._runner, media.ffmpeg, ProofFiles(self._cache), found
                )
            )

    async def prove_anew(self) -> frozenset[str]:
        """Encoders that work now, each tried again, whatever is remembered.  Raises what `detect` met."""
        media, _ = await asyncio.shield(self._found)
        with surroundings(software_vulkan=self._software_vulkan, below=self._cache) as around:
            found = await hardware.detect(
                self._runner, media.ffmpeg, _NothingRemembered(), sys.executable, around
            )
        return frozenset(found.usable)

    @property
    def children(self) -> FFmpegRunner:
        """The programs that work for others."""
        return self._runner

    @property
    def chips_at_work(self) -> bool:
        """Whether a film of ours uses a chip now; one that stands still does not."""
        known = self._found.done() and self._found.exception() is None
        return known and not self._runner.is_still and self._found.result()[0].chips_at_work

    def use_slots(self, slots: int | None, devices: Mapping[str, int]) -> None:
        """So many films at once from now on, on the processor and on devices; None and absent: as configured."""
        self._said = slots, devices
        self._slots_changed.set()

    @property
    def _rules(self) -> SlotRules:
        default = max(1, (os.cpu_count() or 1) // CPUS_A_SLOT)
        return rules_of(default, self._configured, self._said)

    async def report(self, member: MemberNode, version: str) -> None:
        """Tells the mesh what this node can do, and again when that changes."""
        while True:
            self._slots_changed.clear()
            # A mesh that an older member holds back hears of devices once that is updated.
            wait_s = None if await self._report(member, version) else AGAIN_S
            with suppress(TimeoutError):
                await asyncio.wait_for(self._slots_changed.wait(), wait_s)

    async def _report(self, member: MemberNode, version: str) -> bool:
        """Whether nothing is left to be told."""
        with suppress(DarkStreamError):
            media, found = await asyncio.shield(self._found)
            cpus = os.cpu_count() or 1
            slots = slots_of(cards_of(found), found.devices, self._rules)
            return await member.report(
                ReportNode(
                    node=member.own,
                    ffmpeg=media.ffmpeg.group,
                    encoders=tuple(sorted(found.usable - {VULKAN_SCALER})),
                    slots=next(one.slots for one in slots if one.device == CPU),
                    cpus=cpus,
                    platform=f"{platform.system()} {platform.machine()}",
                    version=version,
                    devices=json.dumps([device.model_dump() for device in found.devices]),
                ),
                ReportSlots(node=member.own, devices=slots),
            )
        return True


def _retrieve(future: asyncio.Future[tuple[Media, hardware.Detection]]) -> None:
    # A failure that nobody asked about must not warn when the node ends.
    if not future.cancelled():
        future.exception()
