"""A person limits a running node: `mesh-cli nodes limit`, from another node, over a restart."""

import re
import threading
import urllib.request
from pathlib import Path

import pytest

from mesh.clock import monotonic_ms
from tests.cluster import Node, cluster, form, wait_for
from tests.films import make_noise_film


def _of(node: Node, name: str) -> dict[str, object]:
    found: dict[str, object] = next(
        one for one in node.cli("nodes")["nodes"] if one["name"] == name
    )
    return found


def test_a_limit_set_anywhere_holds_on_the_node_and_over_its_restart(tmp_path: Path) -> None:
    with cluster(tmp_path, ("anna", "bert")) as (anna, bert):
        anna.start("--new-mesh", "--slots", "1").ready()
        bert.start("--join", anna.token(), "--seed", _seed(anna), "--slots", "1").ready()
        held = anna.cli("nodes", "limit", "bert", "--up", "20MB/s", "--slots", "3")
        assert (held["up"], held["down"], held["slots"]) == (20_000_000, 0, 3)
        wait_for(
            "all know it",
            lambda: _of(anna, "bert")["limit_up"] == 20_000_000 and _of(anna, "bert")["slots"] == 3,
            20,
        )
        bert.stop()
        bert.start().ready()
        assert _of(bert, "bert")["limit_up"] == 20_000_000
        anna.cli("nodes", "limit", "bert", "--up", "default", "--slots", "-1")
        wait_for("as configured again", lambda: _of(anna, "bert")["limit_up"] == 0, 20)


def _seed(node: Node) -> str:
    address = _of(node, node.name)["addresses"]
    assert isinstance(address, list)
    return str(address[0])


def _sent(node: Node) -> int:
    """Bytes of films that this node sent so far."""
    address = (node.home / "api.address").read_text("ascii").strip()
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    rows = re.findall(r"^darkstream_transfer_bytes_total\{(.*)\} (\S+)$", text, re.MULTILINE)
    return sum(int(float(value)) for labels, value in rows if 'direction="sent"' in labels)


@pytest.mark.acceptance
@pytest.mark.parametrize(("who", "way"), [("anna", "--up"), ("bert", "--down")])
def test_a_limit_by_command_is_kept_within_five_percent_while_a_film_travels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], who: str, way: str
) -> None:
    """20 MB/s over ten seconds, then 40, by `nodes limit` alone."""
    measured: dict[int, float] = {}
    with cluster(tmp_path, ("anna", "bert")) as (anna, bert):
        form((anna, bert), "--slots", "0")
        film = make_noise_film(anna.films / "film.mkv", 900_000_000)
        anna.cli("nodes", "limit", who, way, "20MB/s")
        anna.cli("nodes", "limit", "bert", "--slots", "1")
        anna.cli("submit", str(film), "--profile", "web", "--no-split")
        wait_for("it travels", lambda: _sent(anna) > 0, 60)
        pause = threading.Event()
        for rate in (20, 40):
            bert.cli("nodes", "limit", who, way, f"{rate}MB/s")
            pause.wait(1)  # what was asked for before is on its way
            before, begun_ms = _sent(anna), monotonic_ms()
            pause.wait(10)
            measured[rate] = (_sent(anna) - before) / (monotonic_ms() - begun_ms) / 1_000
    with capsys.disabled():
        print(f"\n{who} {way}: " + ", ".join(f"{r}: {m:.2f} MB/s" for r, m in measured.items()))
    for rate, found in measured.items():
        assert abs(found / rate - 1) < 0.05, measured
