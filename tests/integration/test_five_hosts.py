"""Five machines on a LAN of their own: find each other, convert, keep strangers out, survive.

The figures that the tests print (`pytest -s`) are what the limits in them are judged by; the limits
leave room for a machine that does other things as well.
"""

import contextlib
import re
import secrets
import shutil
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from mesh.clock import monotonic_ms
from mesh.trust import JOIN_KEY, new_token, parse_token
from mesh.trust_files import load_or_create_identity
from tests.cluster import MESH_NODE, Node, cluster, wait_for
from tests.films import make_film
from tests.inside import Face, inside
from tests.meshwork import key_pair
from tests.netns import Lan, available, frames
from tests.strangers import GARBAGE, client, poke

REASON = available()
pytestmark = [
    pytest.mark.network,
    pytest.mark.slow,
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
]

NAMES = ("alder-host", "birch-host", "cedar-host", "dogwood-host", "elm-host")
"""Long enough that none stands in random bytes by chance."""
OUTSIDE = 6
"""A sixth host of the LAN, which runs no node."""
SEEN_MS = 3_000
"""From the last start until every node sees all others; the promise for a machine with nothing else to do."""
LOADED = 3
"""How many times slower a machine that runs other tests as well may be."""
CONTROL, BULK, JOIN = 7440, 7441, 7442
_NEVER = Event()


@dataclass(frozen=True, slots=True)
class Mesh:
    """Five nodes on their hosts, and how to ask them."""

    lan: Lan
    nodes: list[Node]
    faces: list[Face]
    seen_ms: dict[str, int]
    """From the last start until each saw all five."""

    def name(self, number: int) -> str:
        return self.nodes[number].name


@contextlib.contextmanager
def five(root: Path, lan: Lan, *options: str) -> Generator[Mesh]:
    """The first host forms a mesh and does no work; four join at the same moment, with a token alone."""
    with cluster(root, NAMES, lan) as nodes:
        faces = [Face(lan, host, node) for host, node in enumerate(nodes, start=1)]
        nodes[0].start("--new-mesh", "--slots", "0").ready()
        token = nodes[0].token(4)
        for node in nodes[1:]:
            node.start("--join", token, *options)
        yield Mesh(lan, nodes, faces, _seen(nodes, faces))


def _seen(nodes: Sequence[Node], faces: Sequence[Face]) -> dict[str, int]:
    started_ms = monotonic_ms()
    seen: dict[str, int] = {}
    while len(seen) < len(nodes):
        for node, face in zip(nodes, faces, strict=True):
            if node.name not in seen:
                status = face.ask("/status")
                if status is not None and status["nodes_alive"] == len(nodes):
                    seen[node.name] = monotonic_ms() - started_ms
        assert monotonic_ms() - started_ms < 30_000, f"in 30 s only {seen}"
        _NEVER.wait(0.02)
    return seen


def _check_formed(mesh: Mesh, capsys: pytest.CaptureFixture[str]) -> None:
    show(capsys, f"all see all, ms after the last start: {mesh.seen_ms}")
    assert max(mesh.seen_ms.values()) < SEEN_MS * LOADED
    for face in mesh.faces:
        page = face.ask("/nodes")
        assert {n["name"] for n in page["nodes"] if n["alive"]} == set(NAMES)
    for face in mesh.faces:

        def three_and_two(face: Face = face) -> bool:
            status = face.ask("/status")
            return (len(status["voters"]), len(status["learners"])) == (3, 2)

        wait_for("three voters and two learners", three_and_two, 10)


def show(capsys: pytest.CaptureFixture[str], line: str) -> None:
    with capsys.disabled():
        print(f"\n  {line}", flush=True)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Generator[Mesh]:
    with Lan(6) as lan, five(tmp_path_factory.mktemp("five"), lan) as made:
        yield made


def traffic(mesh: Mesh) -> dict[str, tuple[int, int]]:
    """What each node sent to others and received from them, by its own `mesh-cli nodes --json`."""
    found = {}
    for node in mesh.nodes:
        own = next(n for n in node.cli("nodes")["nodes"] if n["this"])
        found[node.name] = (own["sent_bytes"], own["received_bytes"])
    return found


def convert(mesh: Mesh, owner: int, film: Path) -> Any:
    (job,) = mesh.nodes[owner].cli("convert", str(film), "--profile", "web", timeout_s=120)["jobs"]
    assert job["state"] == "done", job
    return job["result"]


def _check_direct(mesh: Mesh, film: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A film of host 1 is converted elsewhere; only those two moved bytes.  The result's path."""
    before = traffic(mesh)
    result = convert(mesh, 0, film)
    moved = {
        name: (after[0] - before[name][0], after[1] - before[name][1])
        for name, after in traffic(mesh).items()
    }
    owner, worker = mesh.name(0), result["node"]
    size = film.stat().st_size
    show(
        capsys,
        f"film {size} B, result {result['bytes']} B, encoded on {worker}, {result['total_ms']} ms; (sent, received): {moved}",
    )
    assert worker != owner
    assert result["frames_in"] == result["frames_out"] > 0
    third = {name: counts for name, counts in moved.items() if name not in (owner, worker)}
    assert set(third.values()) == {(0, 0)}, third
    # What is sent counts the answers about the film as well: some hundred bytes.
    assert moved[owner][1] == result["bytes"]
    assert moved[worker][1] == size
    assert 0 <= moved[owner][0] - size < 4_096
    assert 0 <= moved[worker][0] - result["bytes"] < 4_096
    return Path(result["output"])


def test_five_hosts_see_each_other_with_nothing_but_a_token(
    mesh: Mesh, capsys: pytest.CaptureFixture[str]
) -> None:
    _check_formed(mesh, capsys)


def test_a_film_goes_straight_to_the_worker_and_nothing_of_it_in_clear(
    mesh: Mesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film = make_film(mesh.nodes[0].films / "holiday-on-the-coast.mp4", seconds=4, size="640x360")
    recording = tmp_path / "capture"
    with mesh.lan.capture(recording):
        result = _check_direct(mesh, film, capsys)
    wire = b"".join(frames(recording))
    show(capsys, f"captured {len(wire)} B")
    assert len(wire) > 2 * film.stat().st_size  # each frame passes two ports: the transfer is in it
    for path in (film, result):
        data = path.read_bytes()
        step = max(1, (len(data) - 64) // 200)
        for start in range(0, len(data) - 64, step):
            piece = data[start : start + 64]
            if len(set(piece)) > 16:  # runs of zeros are nobody's secret
                assert piece not in wire, (path, start)
    for secret in ("holiday-on-the-coast", "films", *NAMES):
        for text in (secret.encode(), secret.encode("utf-16-le")):
            assert text.lower() not in wire.lower(), secret
    # The capture reads what is there: the service type stands in the clear.
    assert b"_darkstream" in wire


def test_with_multicast_blocked_one_seed_is_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Lan(5) as lan:
        lan.block_multicast()
        with five(tmp_path, lan, "--seed", "10.77.0.1") as made:
            _check_formed(made, capsys)
            film = make_film(made.nodes[0].films / "film.mp4", seconds=2)
            _check_direct(made, film, capsys)


# --- strangers --------------------------------------------------------------------------------------


def refusals(face: Face) -> dict[str, float]:
    series = re.compile(r'darkstream_refused_total\{.*socket="(\w+)".*\}')
    total: dict[str, float] = {}
    for name, value in face.metrics().items():
        if match := series.fullmatch(name):
            total[match[1]] = total.get(match[1], 0) + value
    return total


def _speak(mesh: Mesh, port: int, server_key: bytes) -> tuple[int, list[bytes]]:
    """All that a port says to a stranger: bytes after garbage, and messages to both kinds of DEALER."""
    host = mesh.lan.address(1)
    heard = 0
    for data in GARBAGE:
        answer = poke(port, data, host=host)
        # ZeroMQ's own greeting says version and mechanism; nothing may follow it.
        assert answer[:10] in (b"", b"\xff" + bytes(7) + b"\x01\x7f"), answer
        heard += max(0, len(answer) - 64)
    messages: list[bytes] = []
    with contextlib.ExitStack() as stack:
        dealers = [
            stack.enter_context(client(port, keys, server_key, host=host))
            for keys in (key_pair(), None)
        ]
        for dealer in dealers:
            for frame in (b"", b"hello", secrets.token_bytes(2_000), bytes(10_000)):
                dealer.send(frame)
                dealer.send_multipart([b"", frame, frame])
        for dealer in dealers:
            while dealer.poll(1_000):
                messages += dealer.recv_multipart()
    return heard, messages


def test_strangers_get_nothing_but_the_refusal_to_join(
    mesh: Mesh, capsys: pytest.CaptureFixture[str]
) -> None:
    identity = load_or_create_identity(mesh.nodes[0].home)
    before = refusals(mesh.faces[0])
    for port in (CONTROL, BULK):
        heard, messages = inside(
            mesh.lan, OUTSIDE, lambda port=port: _speak(mesh, port, identity.public_key)
        )
        assert messages == []
        assert heard == 0
    _, messages = inside(mesh.lan, OUTSIDE, lambda: _speak(mesh, JOIN, JOIN_KEY.public))
    assert messages == []  # not even a refusal for what is no question
    after = refusals(mesh.faces[0])
    show(capsys, f"refused before {before}, after {after}")
    for name in ("control", "bulk", "join"):
        assert after.get(name, 0) > before.get(name, 0), name
    assert mesh.nodes[0].token()  # the mesh goes on


def test_a_token_that_nobody_made_is_refused_in_words(
    mesh: Mesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = parse_token(mesh.nodes[0].token())
    identity = load_or_create_identity(mesh.nodes[0].home)
    forged = new_token(made.mesh, identity.public_key, secrets.token_bytes(24))
    wrong_secret = type(made)(
        mesh=made.mesh,
        fingerprint=made.fingerprint,
        invitation=made.invitation,
        secret=secrets.token_bytes(16),
    )
    before = refusals(mesh.faces[0])
    seen: list[str] = []
    for number, token in enumerate((wrong_secret, forged)):
        home = tmp_path / f"stranger{number}"
        done = mesh.lan.call(
            OUTSIDE,
            [*MESH_NODE, "start", "--seed", mesh.lan.address(1), "--join", token.text()],
            {"HOME": str(home), "DARKSTREAM_HOME": str(home)},
            timeout_s=40,
        )
        last = done.stderr.splitlines()[-1]
        seen.append(last)
        assert done.returncode != 0, done.stderr
        assert last.startswith("error["), last
    show(capsys, f"{seen}; {refusals(mesh.faces[0])}")
    assert sum(refusals(mesh.faces[0]).values()) > sum(before.values())
    assert mesh.nodes[1].token()


# --- another implementation of mDNS -------------------------------------------------------------------

AVAHI = ("avahi-daemon", "avahi-browse", "dbus-daemon")
BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>{address}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/>
  </policy>
</busconfig>
"""


@pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in AVAHI),
    reason="no avahi here (Debian: apt install avahi-daemon avahi-utils dbus)",
)
def test_avahi_resolves_every_node(
    mesh: Mesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"unix:path={tmp_path / 'bus'}"
    (tmp_path / "bus.conf").write_text(BUS.format(address=address))
    (tmp_path / "avahi.conf").write_text("[server]\nallow-interfaces=eth0\n")
    env = {"DBUS_SYSTEM_BUS_ADDRESS": address}
    log = tmp_path / "avahi.log"
    with log.open("wb") as out:
        bus = ["dbus-daemon", "--nofork", "--nopidfile", f"--config-file={tmp_path / 'bus.conf'}"]
        mesh.lan.run(OUTSIDE, bus, stdout=out, stderr=out)
        wait_for("a bus of our own", (tmp_path / "bus").exists, 5)
        # Its pid file has a fixed place: a folder that only this process sees.
        script = (
            "mkdir -p /run/avahi-daemon; mount -t tmpfs none /run/avahi-daemon; "
            f"exec avahi-daemon --no-drop-root --no-chroot --no-rlimits -f {tmp_path / 'avahi.conf'}"
        )
        mesh.lan.run(OUTSIDE, ["sh", "-c", script], env, stdout=out, stderr=out)

    def browse() -> dict[str, str]:
        done = mesh.lan.call(
            OUTSIDE, ["avahi-browse", "-rtp", "_darkstream._tcp"], env, timeout_s=20
        )
        lines = [x.split(";") for x in done.stdout.splitlines() if x.startswith("=")]
        return {words[3]: f"{words[7]}:{words[8]}" for words in lines if words[2] == "IPv4"}

    wanted = {
        f"ds-{load_or_create_identity(node.home).node_id}": f"{mesh.lan.address(host)}:{CONTROL}"
        for host, node in enumerate(mesh.nodes, start=1)
    }
    found: dict[str, str] = {}

    def all_of_them() -> bool:
        found.update(browse())
        return found.keys() >= wanted.keys()

    try:
        wait_for("avahi resolves every node", all_of_them, 15)
    except AssertionError as error:
        raise AssertionError(f"{error}: {found}; {log.read_text()}") from None
    show(capsys, f"avahi-browse: {found}")
    assert found == wanted


# --- the coordinator dies ------------------------------------------------------------------------------


def _jobs(face: Face, ids: Sequence[str]) -> list[Any]:
    return [face.ask(f"/jobs/{job}") for job in ids]


def test_the_coordinator_dies_while_a_job_runs_elsewhere(
    mesh: Mesh, capsys: pytest.CaptureFixture[str]
) -> None:
    leader_name = mesh.faces[0].ask("/status")["coordinator"]
    leader = next(n for n in mesh.nodes if n.name == leader_name)
    number = mesh.nodes.index(leader)
    others = [i for i in range(len(mesh.nodes)) if i != number]
    owner = others[0]
    film = make_film(mesh.nodes[owner].films / "long.mp4", seconds=16, size="640x360")
    face = mesh.faces[owner]
    films = [str(film)]
    jobs = [j["id"] for j in mesh.nodes[owner].cli("submit", *films, "--profile", "web")["jobs"]]

    def running_elsewhere() -> Any:
        (job,) = _jobs(face, jobs)
        return job if job["state"] == "running" and job["nodes"] else None

    job = wait_for("the job runs", running_elsewhere, 60)
    assert leader_name not in job["nodes"]
    asked = others[1]
    killed_ms, took_ms = monotonic_ms(), 0
    leader.kill()
    took_ms = _first_write_ms(mesh, asked, killed_ms)
    now = mesh.faces[asked].ask("/status")
    show(
        capsys,
        f"{leader_name} killed while {job['nodes']} worked: first write after {took_ms} ms, now {now['coordinator']} leads",
    )
    assert now["coordinator"] != leader_name
    assert took_ms < 2_000 * LOADED
    wait_for("the job is done", lambda: _jobs(face, jobs)[0]["state"] == "done", 90)
    (done,) = _jobs(face, jobs)
    assert done["result"]["frames_out"] == 400
    assert sorted(p.name for p in film.parent.glob("long.*")) == ["long.mp4", "long.web.mp4"]
    attempts = [a for task in done["tasks"] for a in task["attempts"]]
    assert [a["state"] for a in attempts].count("accepted") == 1
    show(capsys, f"attempts: {[(a['node'], a['state']) for a in attempts]}")
    leader.start()
    leader.ready(30).sees(5)


def _first_write_ms(mesh: Mesh, asked: int, killed_ms: int) -> int:
    """From the kill until a token that was asked for after it is there; one is asked for each 50 ms."""

    def write() -> int:
        taken = mesh.faces[asked].ask("/tokens", {"uses": 1})
        return 0 if taken is None else monotonic_ms()

    with ThreadPoolExecutor(200) as pool:
        asked_for: list[Future[int]] = []
        while monotonic_ms() - killed_ms < 9_000:
            asked_for.append(pool.submit(write))
            _NEVER.wait(0.05)
            taken = [f.result() for f in asked_for if f.done() and f.result()]
            if taken:
                return min(taken) - killed_ms
    raise AssertionError("no coordinator took a write within 9 s")
