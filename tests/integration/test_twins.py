"""Two fresh nodes started in the same second: one forms a mesh, the other waits, whatever else is said.

`DARKSTREAM_TWINS=10` starts the pair ten times instead of twice; the times are printed.
"""

import os
import sys
from pathlib import Path

import pytest

from mesh.clock import monotonic_ms
from tests.cluster import cluster, wait_for
from tests.inside import Face
from tests.integration.test_five_hosts import show
from tests.netns import Lan, available

REASON = available()
pytestmark = [
    pytest.mark.network,
    pytest.mark.slow,
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
]

TIMES = int(os.environ.get("DARKSTREAM_TWINS", "2"))
FORMED_MS = 30_000
"""A limit for a loaded machine; 5 to 7 s are usual."""
DELAY_MS = 10_000
"""Nonsense on the LAN may delay forming by so much (FormingTimes.wait_max_ms)."""

# Says something new every 0.3 s: nodes that nobody can reach, nodes that do not exist on a host that
# answers, members of no mesh, ids that are no digest of the key, TXT records of nonsense.
ADVERSARY = """
import itertools, secrets, socket, sys, threading
from dataclasses import replace
from zeroconf import ServiceInfo, Zeroconf
from mesh.discovery import SERVICE_TYPE, Advert
from mesh.trust import identity_of

zc = Zeroconf(interfaces=[sys.argv[1]])
silent = socket.create_server((sys.argv[1], 9999), backlog=1)
wait = threading.Event()
for n in itertools.count():
    one = identity_of(secrets.token_bytes(32))
    advert = Advert(
        node=one.node_id, incarnation=secrets.token_hex(4), public_key=one.public_key,
        mesh_tag=None, state="forming", admission="ask",
        control_port=9997, bulk_port=9998, join_port=9999,
    )
    hosts = ["10.77.0.99"]
    if n % 5 == 1:
        hosts = [sys.argv[1]]
    elif n % 5 == 2:
        advert = replace(advert, mesh_tag=secrets.token_hex(8), state="member", join_port=1)
    txt = dict(advert.to_txt())
    if n % 5 == 3:
        txt["k"] = secrets.token_hex(21)
    elif n % 5 == 4:
        txt = {"v": b"\\xff" * 200, "x": secrets.token_hex(90)}
    zc.register_service(ServiceInfo(
        SERVICE_TYPE, advert.instance, port=9997, properties=txt, server=advert.server,
        parsed_addresses=hosts,
    ), cooperating_responders=True)
    if n == 0:
        print("ready", flush=True)
    if n >= 200:
        break
    wait.wait(0.3)
wait.wait()
"""


def twins(lan: Lan, root: Path) -> tuple[str, int, int]:
    """Starts a pair; who formed, and after how many milliseconds one had formed and the other asked."""
    with cluster(root, ["first", "second"], lan) as nodes:
        faces = [Face(lan, host, node) for host, node in enumerate(nodes, start=1)]
        started_ms = monotonic_ms()
        for node in nodes:
            node.start()
        formed_ms = 0

        def settled() -> list[str] | None:
            nonlocal formed_ms
            answers = [face.ask("/status") for face in faces]
            states = [str(answer["state"]) if answer else "" for answer in answers]
            assert states != ["member", "member"]
            if "member" in states and not formed_ms:
                formed_ms = monotonic_ms() - started_ms
            return states if sorted(states) == ["member", "waiting"] else None

        states = wait_for("one formed, the other waits", settled, FORMED_MS / 1000)
        waits_ms = monotonic_ms() - started_ms
        member = states.index("member")

        def asks() -> bool:
            page = faces[member].ask("/nodes")
            return [p["name"] for p in page["pending"]] == [nodes[1 - member].name]

        wait_for("it asks for approval", asks, 10)
        assert [bool(face.ask("/status")["mesh"]) for face in faces].count(True) == 1
        return nodes[member].name, formed_ms, waits_ms


@pytest.mark.timeout(60 * TIMES)
def test_always_exactly_one_of_two_forms_a_mesh(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Lan(2) as lan:
        for number in range(TIMES):
            name, formed_ms, waits_ms = twins(lan, tmp_path / str(number))
            show(capsys, f"{number}: {name} formed after {formed_ms} ms, settled {waits_ms} ms")


def test_nonsense_on_the_network_delays_forming_by_ten_seconds_at_most(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Lan(3) as lan:
        _, calm_ms, _ = twins(lan, tmp_path / "calm")
        talker = lan.run(3, [sys.executable, "-c", ADVERSARY, lan.address(3)], stderr=None)
        assert talker.stdout is not None
        assert talker.stdout.readline() == b"ready\n"
        _, formed_ms, _ = twins(lan, tmp_path / "nonsense")
        assert talker.poll() is None
        show(capsys, f"formed after {calm_ms} ms, beside nonsense after {formed_ms} ms")
        assert formed_ms - calm_ms <= DELAY_MS
