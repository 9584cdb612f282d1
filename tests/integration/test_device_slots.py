"""A node with a processor and a Vulkan device: each has slots of its own, and holds up nobody but its own.

The device is Mesa's software one, and FFmpeg's real Vulkan path runs on it (upload, `prores_ks_vulkan`).
Its picture is wrong on some versions, so its proof is put where the node remembers proofs.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from node.media.ffmpeg_binary import choose
from node.media.hardware import Encoder, Prover, detect_devices
from node.media.locate_ffmpeg import ffmpeg_candidates
from node.media.proofs_files import ProofFiles
from node.media.run_ffmpeg import FFmpegRunner
from node.media.surroundings_files import surroundings
from tests.cluster import Node, cluster, form, wait_for
from tests.integration.test_orders import film
from tests.media_clips import ffmpeg

PRORES = "prores_ks_vulkan"
PROFILE = """
name = "edit"
container = "matroska"
[video]
codec = "prores"
crf = 0
encoders = {families}
[audio]
codec = "copy"
"""


async def with_vulkan(node: Node) -> str:
    """Lets a node believe in the software device; its FFmpeg, or why it cannot."""
    runner = FFmpegRunner()
    binary = await choose(runner, ffmpeg_candidates(ffmpeg()))
    devices, note = await detect_devices(runner, sys.executable)
    if not any(device.type == "CPU" for device in devices):
        return f"no software Vulkan device (mesa-vulkan-drivers): {note}"
    cache = node.home / "cache"
    cache.mkdir(parents=True)
    node.home.chmod(0o700)
    proven = Encoder(name=PRORES, family="Vulkan", usable=True, devices=("0",), psnr_db=40)
    with surroundings(software_vulkan=True) as around:
        key = Prover(runner, binary, devices, around).key
        text = TypeAdapter(tuple[Encoder, ...]).dump_json((proven,)).decode()
        await ProofFiles(cache).store(key, text)
    (node.home / "node.toml").write_text(
        f'software_vulkan = true\nffmpeg = "{binary.path}"\nslots = 1\n'
    )
    return ""


def profile(node: Node, name: str, families: str) -> str:
    path = node.films / f"{name}.toml"
    path.write_text(PROFILE.replace('"edit"', f'"{name}"').replace("{families}", families))
    return str(path)


def submitted(node: Node, name: str, chosen: str, seconds: int = 3) -> str:
    source = film(node, f"{name}.mkv", seconds, "320x180")
    (job,) = node.cli("submit", "--no-split", "--profile", chosen, str(source))["jobs"]
    return str(job["id"])


def attempts(node: Node, job: str) -> list[dict[str, Any]]:
    (task,) = node.cli("job", "show", job)["tasks"] or [{"attempts": []}]
    found: list[dict[str, Any]] = task["attempts"]
    return found


def busy(node: Node) -> dict[str, tuple[int, int]]:
    (seen,) = node.cli("nodes")["nodes"]
    return {one["device"]: (one["busy"], one["slots"]) for one in seen["devices"]}


@pytest.mark.slow
def test_films_of_the_chip_and_of_the_processor_run_beside_each_other(tmp_path: Path) -> None:
    with cluster(tmp_path, ["anna"]) as (anna,):
        if why := asyncio.run(with_vulkan(anna)):
            pytest.skip(why)
        form([anna])
        wait_for("its devices are told", lambda: busy(anna) == {"cpu": (0, 1), "gpu0": (0, 1)}, 60)
        anna.cli("nodes", "pause", "anna")
        chip, either = (
            profile(anna, "edit", '["Vulkan"]'),
            profile(anna, "any", '["Vulkan", "CPU"]'),
        )
        jobs = {name: submitted(anna, name, chip) for name in ("chip1", "chip2")}
        # Long enough to be met at work: of what is judged the slot is free for the next.
        jobs |= {name: submitted(anna, name, "web", 40) for name in ("cpu1", "cpu2")}
        # What runs stands still, so that both devices can be looked at.
        anna.cli("nodes", "resume", "anna")
        wait_for("both are taken", lambda: busy(anna) == {"cpu": (1, 1), "gpu0": (1, 1)}, 60)
        anna.cli("nodes", "pause", "anna")
        held = {name: [a["device"] for a in attempts(anna, job)] for name, job in jobs.items()}
        assert sorted(map(str, held.values())) == ["['cpu']", "['gpu0']", "[]", "[]"]
        waits = next(
            job for name, job in jobs.items() if name.startswith("chip") and not held[name]
        )
        why = str(anna.cli("job", "show", waits)["why_waiting"])
        assert "all slots of gpu0 are taken (1 of 1)" in why
        anna.cli("nodes", "resume", "anna")
        jobs["either"] = submitted(anna, "either", either)
        wait_for(
            "all are done",
            lambda: all(anna.cli("job", "show", job)["state"] == "done" for job in jobs.values()),
            240,
        )
        made = {name: attempts(anna, job)[-1] for name, job in jobs.items()}
        for name in ("chip1", "chip2"):
            assert (made[name]["device"], made[name]["encoder"]) == ("gpu0", PRORES)
            assert "vulkan=dev:0" in " ".join(made[name]["command_line"])
        for name in ("cpu1", "cpu2"):
            assert (made[name]["device"], made[name]["encoder"]) == ("cpu", "libx264")
        wanted = {"gpu0": PRORES, "cpu": "prores_ks"}
        assert made["either"]["encoder"] == wanted[made["either"]["device"]]
        told = [line["what"] for line in anna.cli("job", "history", jobs["either"])["lines"]]
        fell_back = f"on cpu, which falls back from {PRORES}" in told
        assert fell_back == (made["either"]["device"] == "cpu")
        # No more slots, no more work, and the reason.
        anna.cli("nodes", "limit", "anna", "--device", "gpu0=0")
        wait_for("it is told", lambda: busy(anna)["gpu0"] == (0, 0), 20)
        last = submitted(anna, "last", chip)
        wait_for(
            "the reason",
            lambda: "gpu0 has no slots" in str(anna.cli("job", "show", last)["why_waiting"]),
            20,
        )
        anna.cli("nodes", "limit", "anna", "--device", "gpu0=-1")
        wait_for("it is made", lambda: anna.cli("job", "show", last)["state"] == "done", 60)
