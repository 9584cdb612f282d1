"""One film, three profiles, three workers, a slow owner: its link carries the film about once."""

import re
import urllib.request
from pathlib import Path

import pytest

from mesh.clock import monotonic_ms
from tests.cluster import Node, cluster, form, wait_for
from tests.films import make_noise_film

BYTES = 200_000_000
UP = "12.5MB/s"
"""A link of 100 Mbit/s: 16 seconds for the film once, 48 for it thrice."""


def moved(node: Node, direction: str) -> int:
    """Bytes of films that a node sent or received so far."""
    address = (node.home / "api.address").read_text("ascii").strip()
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    rows = re.findall(r"^darkstream_transfer_bytes_total\{(.*)\} (\S+)$", text, re.MULTILINE)
    return sum(int(float(value)) for labels, value in rows if f'direction="{direction}"' in labels)


@pytest.mark.acceptance
def test_three_workers_fetch_one_film_over_a_slow_link_of_its_owner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with cluster(tmp_path, ("anna", "bert", "cleo", "dora")) as nodes:
        anna, *workers = nodes
        form(nodes, "--slots", "0")
        anna.cli("nodes", "limit", "anna", "--up", UP)
        for worker in workers:
            anna.cli("nodes", "limit", worker.name, "--slots", "1")
        film = make_noise_film(anna.films / "film.mkv", BYTES)
        size = film.stat().st_size
        before = moved(anna, "sent")
        for profile in ("web", "mobile", "small"):
            anna.cli("submit", str(film), "--profile", profile, "--no-split")
        wait_for("it travels", lambda: moved(anna, "sent") > before, 60)
        begun_ms = monotonic_ms()
        wait_for(
            "each worker has it",
            lambda: all(moved(worker, "received") >= size for worker in workers),
            120,
        )
        took_s = (monotonic_ms() - begun_ms) / 1_000
        sent = moved(anna, "sent") - before
        given = [moved(worker, "sent") / size for worker in workers]
        anna.cli("cancel", "--all")
    with capsys.disabled():
        print(
            f"\nthe owner sent {sent / size:.2f} films in {took_s:.1f} s, the workers gave each other "
            + ", ".join(f"{part:.2f}" for part in given)
        )
    assert sent < 1.7 * size
