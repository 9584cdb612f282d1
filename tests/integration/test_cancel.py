"""A cancelled film on real nodes, whole and in pieces: within two seconds no child works on it, and no file is left."""

import http.client
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.clock import monotonic_ms
from tests.cluster import Node, cluster, form, wait_for
from tests.media_clips import make
from tests.working import children, files_of_work

pytestmark = pytest.mark.media
Record = Callable[[str, object], None]
SOON_MS = 2_000
SECONDS = 40


def film(path: Path) -> Path:
    """Long enough for several chunks, and slow to encode."""
    return make(path, "-f", "lavfi", "-i", f"testsrc2=s=640x360:r=25:d={SECONDS}", "-f", "lavfi",
                "-i", f"sine=frequency=440:sample_rate=48000:d={SECONDS}", "-c:v", "libx264",
                "-preset", "ultrafast", "-g", "25", "-pix_fmt", "yuv420p", "-c:a", "aac")  # fmt: skip


def cancel(node: Node, job: str) -> None:
    """As every face does it, without the second that a command of Python takes to start."""
    address = (node.home / "api.address").read_text("ascii").strip().removeprefix("http://")
    token = (node.home / "api.token").read_text("ascii").strip()
    link = http.client.HTTPConnection(address, timeout=20)
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    body = json.dumps({"action": "cancel", "jobs": [job]})
    link.request("POST", "/api/v1/jobs/change", body=body, headers=headers)
    answer = link.getresponse()
    said = json.loads(answer.read())
    link.close()
    assert answer.status == 200, said
    assert said["changed"] == [job]


def at_work(nodes: list[Node], words: str) -> bool:
    return any(words in line for line in children(nodes))


MOMENTS = {
    "encodes": lambda nodes: at_work(nodes, "libx265"),
    "verifies": lambda nodes: at_work(nodes, "-f null -"),
    "starts": lambda nodes: bool(children(nodes)),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", ["whole", "split"])
def test_cancelled_films_are_gone_within_two_seconds(
    tmp_path: Path, record_property: Record, way: str
) -> None:
    with cluster(tmp_path, ["one", "two"]) as nodes:
        form(nodes, "--slots", "1")
        wait_for(
            "all can work", lambda: all(n["slots"] for n in nodes[0].cli("nodes")["nodes"]), 60
        )
        owner = nodes[1]
        source = film(owner.films / "film.mp4")
        before = (source.stat().st_size, source.stat().st_mtime_ns)
        late: list[str] = []
        for moment, comes in MOMENTS.items():
            profile = "archive" if moment == "encodes" else "web"
            options = [] if way == "split" else ["--no-split"]
            (job,) = owner.cli("submit", str(source), "--profile", profile, *options)["jobs"]
            wait_for(moment, lambda comes=comes: comes(nodes), 120)  # type: ignore[misc]  # mypy infers no lambda with a default
            begun_ms = monotonic_ms()
            cancel(owner, job["id"])
            wait_for("no child", lambda: not children(nodes), 20)
            gone_ms = monotonic_ms() - begun_ms
            wait_for("no file", lambda: not [x for n in nodes for x in files_of_work(n)], 60)
            clean_ms = monotonic_ms() - begun_ms
            shown = owner.cli("job", "show", job["id"])
            assert shown["state"] == "cancelled", shown["fault"]
            assert not Path(shown["output"]).exists()
            line = {"film": way, "while it": moment, "no child after ms": str(gone_ms)}
            record_property(
                "table", json.dumps({"cancel": line | {"no file after ms": str(clean_ms)}})
            )
            if max(gone_ms, clean_ms) > SOON_MS:
                late.append(f"{moment}: {gone_ms} ms, {clean_ms} ms")
        assert not late
        assert (source.stat().st_size, source.stat().st_mtime_ns) == before
        assert sorted(path.name for path in owner.films.iterdir()) == ["film.mp4"]
