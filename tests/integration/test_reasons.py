"""`job show` names the true reason of every wait, on real nodes, whichever node is asked."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cluster import Node, cluster, wait_for
from tests.integration.test_bad_node import of, wrapped
from tests.integration.test_device_slots import profile, with_vulkan
from tests.integration.test_orders import film
from tests.media_clips import make
from tests.small_disk import mounted

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]

NEVER = ("--hours", "mon 00:00-00:01", "--hours", "mon 00:02-00:03")
DISK_KIB = 400 << 10


class Told:
    """Asks every node, and remembers what was said for the table."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = list(nodes)
        self.table: list[tuple[str, str]] = []

    def wait(self, what: str, job: str, *parts: str) -> None:
        """All nodes say all of this."""
        said = ""
        for node in self.nodes:

            def all_said(node: Node = node) -> bool:
                nonlocal said
                said = str(node.cli("job", "show", job)["why_waiting"])
                return all(part in said for part in parts)

            try:
                wait_for(f"{node.name} says {parts}", all_said, 30)
            except AssertionError:
                print(f"{node.name} said: {said}")
                raise
        self.table.append((what, said))


def submitted(node: Node, source: Path, *words: str) -> str:
    (job,) = node.cli("submit", str(source), "--no-split", *words)["jobs"]
    return str(job["id"])


def test_each_wait_names_its_true_reason(tmp_path: Path) -> None:
    with (
        mounted(tmp_path / "bert", DISK_KIB),
        cluster(tmp_path, ["anna", "bert", "cleo"]) as nodes,
    ):
        anna, bert, cleo = nodes
        program, broken = wrapped(tmp_path)
        no_vulkan = asyncio.run(with_vulkan(cleo))
        anna.start("--new-mesh", "--slots", "0").ready()
        token = anna.token(2)
        bert.start("--join", token, "--slots", "1", "--ffmpeg", str(program)).ready()
        cleo.start("--join", token, "--slots", "0").ready()
        for node in nodes:
            node.sees(3)
        wait_for("bert's encoders are known", lambda: of(anna, "bert")["encoders"], 60)
        wait_for("three voters", lambda: len(anna.status()["voters"]) == 3, 30)
        told = Told(nodes)
        short = film(anna, "short.mkv")

        job = submitted(anna, short, "--profile", "web", "--hardware", "amf")
        told.wait("an encoder that no node has", job, "has none of the encoders h264_amf")
        job = submitted(anna, short, "--profile", "small", "--needs", "attic", "--on", "bert")
        told.wait(
            "a label", job, "bert: lacks the label attic", "none of the nodes that were asked for"
        )

        bert.cli("nodes", "work", "bert", *NEVER)
        job = submitted(anna, short, "--profile", "mobile")
        told.wait("a node outside its hours", job, "bert: is outside its hours, which begin in")
        bert.cli("nodes", "work", "bert", "--hours", "always")
        wait_for("it is done", lambda: anna.cli("job", "show", job)["state"] == "done", 60)

        options = ("-f", "lavfi", "-i", "testsrc2=s=1280x720:d=20,noise=alls=80:allf=t")
        large = make(anna.films / "large.mkv", *options, "-c:v", "mpeg4", "-b:v", "60M")
        job = submitted(anna, large, "--profile", "web")
        told.wait("disk", job, "bert: has too little disk", "MiB needed")

        anna.cli("tenants", "set", "guests", "--slots", "0")
        job = submitted(anna, film(anna, "guest.mkv"), "--profile", "web", "--tenant", "guests")
        told.wait("quota", job, "its tenant guests has as many slots as its quota allows, 0")
        anna.cli("tenants", "set", "guests", "--queued-jobs", "1")
        for node in nodes:
            source = film(node, "more.mkv")
            refused = node.call("submit", str(source), "--profile", "web", "--tenant", "guests")
            assert "tenant guests may have 1 films (1 wait) waiting" in refused.stderr
        told.table.append(("quota of what waits (refused)", refused.stderr.strip()))

        if not no_vulkan:
            anna.cli("nodes", "limit", "cleo", "--device", "gpu0=1")
            chips = [
                submitted(anna, film(anna, f"chip{n}.mkv", 40, "320x180"), "--profile", edit)
                for n, edit in enumerate([profile(anna, "edit", '["Vulkan"]')] * 2)
            ]
            taken = "cleo: all slots of gpu0 are taken (1 of 1)"
            told.wait("slots of a chip", chips[1], taken, "bert: has none of the encoders prores")
            anna.cli("cancel", *chips)

        anna.cli("nodes", "pause", "bert")
        ready = [submitted(anna, film(anna, f"{n}.mkv"), "--profile", "web") for n in range(3)]
        lowly = submitted(anna, film(anna, "low.mkv"), "--profile", "web", "--priority", "-9")
        told.wait(
            "a lower priority than all others", lowly, "its priority -9 is lower than that of all"
        )
        anna.cli("cancel", *ready, lowly)

        broken.touch()
        broken.with_suffix(".proof").touch()
        anna.cli("nodes", "resume", "bert")
        bad = [
            submitted(anna, film(anna, f"bad{n}.mkv", 1, f"{64 + 2 * n}x64"), "--profile", "web")
            for n in range(3)
        ]
        told.wait("a quarantined node", bad[-1], "bert: is quarantined: it failed 3 jobs in a row")

        bert.kill()
        cleo.kill()
        told.nodes = [anna]
        told.wait("no coordinator", bad[-1], "no coordinator: too few voters can be reached")
        print(json.dumps(told.table, indent=1))
