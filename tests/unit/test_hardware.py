"""Which encoders a machine has: proven, remembered, or refused with a reason; a runner replays what FFmpeg did."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from node.media.child import Limits, OnProgress, RunResult
from node.media.devices import Devices
from node.media.hardware import (
    CPU_ENCODERS,
    Around,
    Detection,
    Device,
    Prover,
    detect,
    detect_devices,
    detect_hardware,
    detect_software,
    with_speeds,
)
from node.media.proofs import PSNR_DB_MIN, compare_command, encode_command, worst_psnr_db
from tests.unit.test_media_judge import END, FFMPEG, Replay, run

AROUND = Around(scratch="/scratch", drivers="6.1")
GPU = Device(
    name="GPU", type="discrete GPU", vendor_id=0x10DE, device_id=1, api_version="1.3.0",
    driver_version=1,
)  # fmt: skip
LLVMPIPE = GPU.model_copy(update={"name": "llvmpipe", "type": "CPU", "vendor_id": 65541})
LISTED = run(
    stdout=b" V....D libx264   x\n V....D libx265   x\n V....D h264_nvenc  x\n A....D aac   x\n"
)
COMPILED = {"libx264": "V", "libx265": "V", "h264_nvenc": "V", "aac": "A"}
CHIPS = {"h264_nvenc": "V", "hevc_nvenc": "V", "av1_nvenc": "V"}
NO_CUDA = run(code=255, stderr="[h264_nvenc @ 0x5] [error] Cannot load libcuda.so.1")


def measured(*values: str) -> RunResult:
    lines = (f"n:{n} mse_avg:1.00 psnr_avg:{value} psnr_y:9\n" for n, value in enumerate(values, 1))
    return run(stdout="".join(lines).encode())


RIGHT = measured(*["43.10"] * 9, "inf")


class Memory:
    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    async def load(self, key: str) -> str | None:
        return self.kept.get(key)

    async def store(self, key: str, text: str) -> None:
        self.kept[key] = text


class ByEncoder:
    """Answers encodes by the encoder's name, and comparisons by what was encoded last."""

    def __init__(self, **answers: tuple[RunResult, RunResult]) -> None:
        self.answers = answers
        self.tried: list[str] = []

    async def run(
        self, command: Sequence[str], *, limits: Limits, on_progress: OnProgress | None = None
    ) -> RunResult:
        if "-c:v" not in command:
            return self.answers[self.tried[-1]][1]
        self.tried.append(command[list(command).index("-c:v") + 1])
        return self.answers[self.tried[-1]][0]


def prove(
    runner: ByEncoder,
    compiled: dict[str, str],
    *devices: Device,
    cache: Memory | None = None,
    around: Around = AROUND,
) -> dict[str, tuple[bool, str, tuple[str, ...]]]:
    prover = Prover(runner, FFMPEG, devices, around)
    found = asyncio.run(detect_hardware(cache or Memory(), prover, compiled))
    return {e.name: (e.usable, e.why, e.devices) for e in found}


def test_software_is_proven_once_for_each_ffmpeg() -> None:
    cache = Memory()
    found = asyncio.run(detect_software(Replay(run()), FFMPEG, cache, COMPILED))
    by_name = {encoder.name: encoder for encoder in found}
    usable = {name for name, encoder in by_name.items() if encoder.usable}
    assert usable == {"libx264", "libx265", "aac"}
    assert "not compiled" in by_name["libsvtav1"].why
    assert asyncio.run(detect_software(Replay(), FFMPEG, cache, COMPILED)) == found
    newer = replace(FFMPEG, build="def")
    replay = Replay(run())
    asyncio.run(detect_software(replay, newer, cache, COMPILED))
    assert len(replay.commands) == 1


def test_one_encoder_that_fails_does_not_hide_the_others_and_is_not_remembered() -> None:
    cache = Memory()
    replay = Replay(run(code=1), run(), run(code=1, stderr="[error] no"), run())
    made = asyncio.run(detect_software(replay, FFMPEG, cache, COMPILED))
    found = {e.name: e for e in made}
    usable = [found[name].usable for name in ("libx264", "libx265", "aac")]
    assert usable == [True, False, True]
    assert found["libx265"].why == "[error] no"
    assert cache.kept == {}


@pytest.mark.parametrize("text", ["", "[]", '{"libx264": 1}', '{"libx264": ""}', "\x00"])
def test_a_spoiled_memory_is_ignored(text: str) -> None:
    cache = Memory()
    asyncio.run(detect_software(Replay(run()), FFMPEG, cache, COMPILED))
    (key,) = cache.kept
    cache.kept[key] = text
    replay = Replay(run())
    asyncio.run(detect_software(replay, FFMPEG, cache, COMPILED))
    assert len(replay.commands) == 1
    assert set(CPU_ENCODERS) <= set(cache.kept[key].replace('"', " ").split())
    runner = ByEncoder(h264_nvenc=(run(), RIGHT))
    prove(runner, {"h264_nvenc": "V"}, cache=cache)
    for known in cache.kept:
        cache.kept[known] = text
    assert prove(runner, {"h264_nvenc": "V"}, cache=cache)["h264_nvenc"][0]


def test_a_chip_works_when_its_picture_is_right() -> None:
    runner = ByEncoder(
        h264_nvenc=(run(), RIGHT),
        hevc_nvenc=(run(), measured(*["43.10"] * 9, f"{PSNR_DB_MIN - 0.1:.2f}")),
        av1_nvenc=(run(), measured(*["43.10"] * 9)),
    )
    found = prove(runner, CHIPS)
    assert found["h264_nvenc"] == (True, "", ("",))
    assert found["hevc_nvenc"][:2] == (False, "its picture is wrong: 24.9 dB against the source, 25 are needed")  # fmt: skip
    assert found["av1_nvenc"][:2] == (False, "it made 9 pictures of 10")
    assert found["h264_qsv"][:2] == (False, "not compiled into this FFmpeg")


def test_a_device_that_is_not_there_is_asked_once_for_its_family() -> None:
    runner = ByEncoder(h264_nvenc=(NO_CUDA, RIGHT))
    found = prove(runner, CHIPS)
    assert {found[name][1] for name in CHIPS} == {"Cannot load libcuda.so.1"}
    assert runner.tried == ["h264_nvenc"]


def test_an_encoder_that_the_device_lacks_says_nothing_about_the_others() -> None:
    old = run(code=1, stderr="[error] Codec not supported")
    runner = ByEncoder(h264_nvenc=(old, RIGHT), hevc_nvenc=(run(), RIGHT), av1_nvenc=(old, RIGHT))
    found = prove(runner, CHIPS)
    assert [found[name][0] for name in CHIPS] == [False, True, False]


def test_a_driver_that_hangs_or_crashes_is_met_once() -> None:
    for ended, said in (
        (run(code=None, reason="time"), "hung"),
        (run(code=None, signal=11, reason="signal"), "crashed"),
    ):
        runner = ByEncoder(h264_nvenc=(ended, RIGHT))
        assert said in prove(runner, CHIPS)["av1_nvenc"][1]
        assert len(runner.tried) == 1


def test_proofs_are_remembered_by_ffmpeg_driver_and_device_and_failures_are_not() -> None:
    cache = Memory()
    busy = run(code=1, stderr="[error] OpenEncodeSessionEx failed: out of memory")
    runner = ByEncoder(h264_nvenc=(run(), RIGHT), hevc_nvenc=(busy, RIGHT), av1_nvenc=(busy, RIGHT))
    first = prove(runner, CHIPS, GPU, cache=cache)
    runner.tried.clear()
    assert prove(runner, CHIPS, GPU, cache=cache) == first
    assert runner.tried == ["hevc_nvenc", "av1_nvenc"]
    runner.tried.clear()
    prove(runner, CHIPS, GPU, cache=cache, around=replace(AROUND, drivers="6.2"))
    prove(runner, CHIPS, GPU.model_copy(update={"driver_version": 2}), cache=cache)
    assert runner.tried.count("h264_nvenc") == 2


def test_a_run_gets_the_device_with_the_least_to_do() -> None:
    devices = Devices({"h264_nvenc": ("0", "1"), "hevc_nvenc": ("0", "1"), "h264_vaapi": ("/a",)})
    with devices.lent("h264_nvenc") as long:
        for _ in range(3):
            # Encoders of one family share their chips; a long film holds one, short ones pass by.
            with devices.lent("hevc_nvenc") as short:
                assert {long, short} == {"0", "1"}
        with devices.lent("h264_nvenc"), devices.lent("h264_nvenc") as third:
            assert third in ("0", "1")
        with devices.lent("h264_vaapi") as other, devices.lent("libx264") as none:
            assert (other, none) == ("/a", "")
    with pytest.raises(ZeroDivisionError), devices.lent("h264_nvenc"):
        raise ZeroDivisionError
    with devices.lent("h264_nvenc") as first, devices.lent("h264_nvenc") as second:
        assert {first, second} == {"0", "1"}, "what failed gave its device back"


def test_several_devices_are_each_proven() -> None:
    runner = ByEncoder(h264_nvenc=(run(), RIGHT))
    found = prove(runner, {"h264_nvenc": "V"}, GPU, LLVMPIPE, GPU)
    assert found["h264_nvenc"] == (True, "", ("0", "1"))
    assert runner.tried == ["h264_nvenc"] * 2
    nodes = replace(AROUND, render_nodes=("/dev/dri/renderD128", "/dev/dri/renderD129"))
    vaapi = prove(ByEncoder(h264_vaapi=(run(), RIGHT)), {"h264_vaapi": "V"}, around=nodes)
    assert vaapi["h264_vaapi"] == (True, "", nodes.render_nodes)


def test_a_processor_is_no_gpu_unless_it_is_asked_for() -> None:
    runner = ByEncoder(prores_ks_vulkan=(run(), RIGHT))
    compiled = {"prores_ks_vulkan": "V"}
    why = prove(runner, compiled, LLVMPIPE)["prores_ks_vulkan"][1]
    assert "llvmpipe" in why
    assert "software_vulkan" in why
    assert runner.tried == []
    asked = replace(AROUND, software_vulkan=True)
    found = prove(runner, compiled, LLVMPIPE, around=asked)
    assert found["prores_ks_vulkan"] == (True, "", ("0",))
    assert found["scale_vulkan"] == (True, "", ("0",))
    assert "no device" in prove(runner, compiled)["prores_ks_vulkan"][1]
    assert "render node" in prove(runner, {"h264_vaapi": "V"})["h264_vaapi"][1]


def test_every_picture_of_a_proof_is_measured() -> None:
    assert worst_psnr_db(measured("43.1", "5.78", "inf").stdout) == (3, 5.78)
    assert worst_psnr_db(b"nothing") == (0, 0.0)
    words = encode_command("ffmpeg", "h264_vulkan", "1", "testsrc2", "/out.mkv")
    assert words.index("vulkan=dev:1") < words.index("-i")
    assert words[words.index("-vf") + 1] == "format=nv12,hwupload"
    assert "-progress" not in compare_command("ffmpeg", ("-i", "/out.mkv"), "", "yuv420p")


def test_speeds_are_measured_once() -> None:
    cache = Memory()
    encoders = asyncio.run(detect_software(Replay(run()), FFMPEG, cache, COMPILED))
    bare = Detection(
        ffmpeg="9", ffmpeg_path="/f", origin="system", passed_over=(), devices=(GPU,),
        devices_note="", encoders=encoders,
    )  # fmt: skip
    slow = run(code=None, reason="time", progress=replace(END, frame=14, end=False))
    replay = Replay(run(progress=replace(END, frame=50)), slow)
    found = asyncio.run(with_speeds(replay, FFMPEG, cache, bare))
    speeds = {e.name: e.fps for e in found.encoders}
    assert (speeds["libx264"], speeds["libx265"]) == (7142.9, 2000.0)  # 7 ms, as the replay says
    assert speeds["aac"] is None
    assert asyncio.run(with_speeds(Replay(), FFMPEG, cache, bare)) == found


def test_broken_drivers_harm_nobody() -> None:
    device = f"[{GPU.model_dump_json()}]".encode()
    for ended, count, note in (
        (run(stdout=device), 1, ""),
        (run(stdout=b"[]"), 0, "knows no device"),
        (run(stdout=b"no Vulkan loader"), 0, "no Vulkan loader"),
        (run(code=None, signal=11, reason="signal"), 0, "crashed"),
        (run(code=None, reason="time"), 0, "hung"),
    ):
        devices, said = asyncio.run(detect_devices(Replay(ended), "python"))
        assert len(devices) == count
        assert note in said
    scaled = (measured("44.0"), measured("44.0"))  # of two sizes; one picture is too few
    replay = Replay(run(stdout=device), LISTED, run(), NO_CUDA, *scaled)
    detection = asyncio.run(detect(replay, FFMPEG, Memory(), "python", AROUND))
    assert detection.usable == {"libx264", "libx265", "aac"}
    assert detection.devices[0].is_gpu
    assert "libx264" in detection.to_json()
