"""Encoders of this very machine: what `mesh-node detect` says, and the Vulkan path on Mesa's software device.

Whether llvmpipe's pictures are right depends on its version (Mesa 22.3's are not); the tests hold that
the verdict is that of the pictures.
"""

import asyncio
import sys
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ledger.jobs import Attempt, Job, Task
from node.media.child import AnyPath
from node.media.command import Parts, command_line
from node.media.convert import Media
from node.media.ffmpeg_binary import FFmpegBinary, choose
from node.media.hardware import Detection, Encoder, detect
from node.media.locate_ffmpeg import ffmpeg_candidates
from node.media.plan import plan_whole
from node.media.profiles import BUILT_IN, Family, Profile, VideoPolicy
from node.media.proofs import PSNR_DB_MIN
from node.media.proofs_files import ProofFiles
from node.media.run_ffmpeg import FFmpegRunner
from node.media.surroundings_files import surroundings
from node.work.attempts import AttemptError, Conversion, Turn
from node.work.conversion import MediaConverter
from node.work.order import Order
from tests.media_clips import Clips, ffmpeg

T = TypeVar("T")
PRORES = "prores_ks_vulkan"


def now(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


@pytest.fixture(scope="module")
def binary() -> FFmpegBinary:
    return now(choose(FFmpegRunner(), ffmpeg_candidates(ffmpeg())))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    return Clips(tmp_path_factory.mktemp("clips"))


def found_by(binary: FFmpegBinary, cache: Path, *, software: bool) -> Detection:
    with surroundings(software_vulkan=software) as around:
        return now(detect(FFmpegRunner(), binary, ProofFiles(cache), sys.executable, around))


def by_name(found: Detection) -> dict[str, Encoder]:
    return {encoder.name: encoder for encoder in found.encoders}


def vulkan_only(*, fallback: bool) -> Profile:
    video = VideoPolicy(
        codec="prores", crf=0, encoders=("Vulkan", "CPU") if fallback else ("Vulkan",)
    )
    return BUILT_IN["archive"].model_copy(update={"name": "edit", "video": video})


def nothing(_: object) -> None:
    return


def test_detection_is_honest_and_remembered(binary: FFmpegBinary, tmp_path: Path) -> None:
    first = found_by(binary, tmp_path / "proofs", software=False)
    software = {"libx264", "libx265", "libsvtav1", "ffv1", "prores_ks", "aac", "flac"}
    assert software <= first.usable
    hardware = [encoder for encoder in first.encoders if encoder.family != "CPU"]
    assert {e.family for e in hardware} == {
        "NVENC", "QSV", "VAAPI", "AMF", "VideoToolbox", "Vulkan", "V4L2",
    }  # fmt: skip
    assert all(encoder.why for encoder in hardware if not encoder.usable)
    assert found_by(binary, tmp_path / "proofs", software=False) == first
    if not any(device.is_gpu for device in first.devices):
        assert not any(encoder.usable for encoder in hardware if encoder.family == "Vulkan")


def test_the_software_device_is_judged_by_its_pictures(
    binary: FFmpegBinary, tmp_path: Path
) -> None:
    found = found_by(binary, tmp_path, software=True)
    if not any(device.type == "CPU" for device in found.devices):
        pytest.skip("no software Vulkan device is installed (mesa-vulkan-drivers)")
    for name in (PRORES, "scale_vulkan"):
        one = by_name(found)[name]
        assert one.usable == (one.psnr_db >= PSNR_DB_MIN), one
        # It was really tried: a picture was made and measured, wherever FFmpeg has the encoder.
        assert one.psnr_db > 0, one.why


def test_the_vulkan_path_runs_and_its_attempt_says_so(
    binary: FFmpegBinary, clips: Clips, tmp_path: Path
) -> None:
    """Upload, encode and judgement on the software device, as if its pictures had been proven."""
    found = found_by(binary, tmp_path, software=True)
    if not by_name(found)[PRORES].psnr_db:
        pytest.skip("prores_ks_vulkan makes no picture here")
    media = Media(
        runner=FFmpegRunner(),
        ffmpeg=binary,
        encoders=frozenset({PRORES}),
        devices={PRORES: ("0",)},
        python=sys.executable,
    )
    source, output = clips.get("plain.mp4"), tmp_path / "out.mkv"
    probe = now(media.probe(source))
    made = now(
        media.convert(source, output, probe, vulkan_only(fallback=False), on_progress=nothing)
    )
    assert made.report.encoder == PRORES
    assert "vulkan=dev:0" in made.report.command_line
    assert any("hwupload" in word for word in made.report.command_line)
    assert made.facts.frames == probe.frames
    assert made.facts.streams[0] == "video:prores"
    plan = plan_whole(probe, vulkan_only(fallback=False), {PRORES})
    assert command_line(plan, binary.path, source, output, device="0") == made.report.command_line


def order_of(source: Path, probe_json: str, profile: Profile, output: Path) -> Order:
    job = Job(
        id="j1", seq=1, state="running", planned=1, owner="anna", source=str(source), source_bytes=1,
        source_mtime_ns=1, source_inode=1, output=str(output), overwrite=0, profile=profile.name,
        profile_json=profile.to_json(), priority=0, tenant="", split=0, probe_json=probe_json,
        created_at_ms=1, updated_at_ms=1,
    )  # fmt: skip
    task = Task(
        id="j1-0", job="j1", seq=1, kind="whole", state="leased", owner="anna", needs=(), cost=1,
        priority=0,
    )  # fmt: skip
    attempt = Attempt(
        id="a1", task="j1-0", job="j1", node="anna", number=1, state="leased", token=1,
        granted_at_ms=1,
    )  # fmt: skip
    return Order(job=job, task=task, attempt=attempt)


def convert(media: Media, order: Order, source: Path, result: Path) -> Conversion:
    async def the_media() -> Media:
        return media

    class Shelf:
        @asynccontextmanager
        async def opened(self, order: Order, source: Path) -> AsyncGenerator[AnyPath]:
            yield source

        @asynccontextmanager
        async def film(self, order: Order, folder: Path) -> AsyncGenerator[AnyPath]:
            yield source

        async def parts(self, order: Order, folder: Path, source: AnyPath) -> Parts:
            raise AssertionError("a whole film has no parts")

    async def told() -> Conversion:
        turn = Turn(lambda: None)
        turn.give()
        return await MediaConverter(the_media, Shelf()).convert(
            order, source, result, turn=turn, on_frames=lambda *_: None, on_verifying=lambda _: None
        )

    return now(told())


def test_a_chip_that_fails_is_followed_by_the_processor_and_the_attempt_tells(
    binary: FFmpegBinary, clips: Clips, tmp_path: Path
) -> None:
    """An encoder that this FFmpeg does not know stands for a driver that broke after its proof."""
    broken = "h264_videotoolbox"
    media = Media(
        runner=FFmpegRunner(),
        ffmpeg=binary,
        encoders=frozenset({broken, "libx264"}),
        python=sys.executable,
    )
    if sys.platform == "darwin":
        pytest.skip("VideoToolbox works here")
    source, result = clips.get("plain.mp4"), tmp_path / "out.mp4"
    probe_json = now(media.probe(source)).to_json()
    web = BUILT_IN["web"]

    def by(*families: Family) -> Order:
        video = web.video.model_copy(update={"encoders": families})
        wanted = web.model_copy(update={"video": video})
        return order_of(source, probe_json, wanted, result)

    made = convert(media, by("VideoToolbox", "CPU"), source, result)
    assert made.encoder == "libx264"
    assert made.stderr_tail.startswith(f"fell back from {broken}: ")
    assert result.is_file()
    with pytest.raises(AttemptError) as refused:
        convert(media, by("VideoToolbox"), source, tmp_path / "other.mp4")
    assert refused.value.failure == "encoder"
    assert refused.value.cause_code == "encoder_unavailable"
