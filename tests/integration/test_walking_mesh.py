"""The main job with real nodes on loopback: find, trust, elect, convert, survive."""

import subprocess
from pathlib import Path

from tests.cluster import Node, cluster, form, wait_for
from tests.films import make_film


def converted(node: Node, film: Path, *options: str) -> dict[str, object]:
    """Converts one film through a node; the finished job's summary."""
    out = film.parent / "out"
    answer = node.cli(
        "convert", str(film), "--profile", "web", "--output", str(out), *options, timeout_s=120
    )
    (job,) = answer["jobs"]
    assert job["state"] == "done", job
    return dict(job)


def test_three_nodes_convert_a_film_and_survive_the_coordinators_death(tmp_path: Path) -> None:
    with cluster(tmp_path, ["one", "two", "three"]) as nodes:
        form(nodes)
        wait_for("three voters", lambda: len(nodes[0].status()["voters"]) == 3, 10)
        film = make_film(nodes[1].films / "film.mp4", seconds=4)
        result = converted(nodes[1], film)["result"]
        assert isinstance(result, dict)
        assert result["frames_in"] == result["frames_out"] == 100
        assert Path(str(result["output"])).stat().st_size == result["bytes"]

        # Death of the coordinator while a job runs on another node.
        coordinator = nodes[0].status()["coordinator"]
        dead = next(n for n in nodes if n.name == coordinator)
        left = [n for n in nodes if n is not dead]
        long_film = make_film(left[0].films / "long.mp4", seconds=20, size="640x360")
        (job,) = left[0].cli("submit", str(long_film), "--profile", "web")["jobs"]
        wait_for("the job runs", lambda: _state(left[0], job["id"]) == "running", 20)
        dead.kill()
        wait_for(
            "a new coordinator",
            lambda: left[0].status()["coordinator"] in {n.name for n in left},
            10,
        )
        left[1].token()  # a write is taken
        wait_for("the job is done", lambda: _state(left[0], job["id"]) == "done", 90)
        detail = left[0].cli("job", "show", job["id"])
        assert detail["result"]["frames_out"] == 500
        published = [p for p in long_film.parent.iterdir() if p.name.startswith("long.")]
        assert len(published) == 2, published


def _state(node: Node, job: str) -> str:
    return str(node.cli("job", "show", job)["state"])


def test_all_off_all_on_and_queued_work_goes_on(tmp_path: Path) -> None:
    with cluster(tmp_path, ["one", "two", "three"]) as nodes:
        form(nodes)
        mesh = nodes[0].status()["mesh"]
        films = [
            make_film(nodes[2].films / f"f{n}.mp4", seconds=10, size="640x360") for n in range(3)
        ]
        answer = nodes[2].cli("submit", *map(str, films), "--profile", "web")
        jobs = [job["id"] for job in answer["jobs"]]
        processes = [node.process for node in nodes]
        for process in processes:
            assert process is not None
            process.terminate()
        for process in processes:
            assert process is not None
            assert process.wait(timeout=60) == 0
        counted = nodes[1].call(
            "ledger", "query", "SELECT state, count(*) FROM jobs GROUP BY state", "--json"
        )
        assert counted.returncode == 0, counted.stderr
        refused = nodes[1].call("ledger", "query", "DELETE FROM jobs")
        assert refused.returncode == 4, refused.stderr
        assert refused.stderr.startswith("error[not_allowed]:")
        for node in nodes:
            node.start()
        for node in nodes:
            node.ready().sees(3)
        assert {node.status()["mesh"] for node in nodes} == {mesh}
        for job in jobs:
            wait_for(f"{job} is done", lambda job=job: _state(nodes[0], job) == "done", 150)


def test_a_fresh_node_waits_for_approval_and_shows_the_same_code(tmp_path: Path) -> None:
    with cluster(tmp_path, ["host", "guest"]) as (host, guest):
        host.start("--new-mesh").ready()
        guest.start()
        pending = wait_for("the guest asks", lambda: host.cli("nodes")["pending"], 20)
        assert pending[0]["name"] == "guest"
        wait_for("the guest waits", lambda: guest.status()["state"] == "waiting", 10)
        assert guest.status()["join_code"] == pending[0]["code"]
        host.cli("nodes", "approve", "guest")
        guest.ready().sees(2)
        film = make_film(guest.films / "long.mp4", seconds=30, size="1280x720")
        job = guest.cli("submit", str(film), "--profile", "archive")["jobs"][0]["id"]
        # Revoked: out at once, while the mesh goes on and says why a job of it ends.
        host.cli("nodes", "revoke", "guest")
        host.sees(1)
        host.token()
        wait_for("its job ends", lambda: _state(host, job) == "failed", 20)
        assert host.cli("job", "show", job)["fault"]["code"] == "owner_revoked"


def test_bad_input_gets_one_line_and_the_right_exit_code(tmp_path: Path) -> None:
    with cluster(tmp_path, ["one"]) as (one,):
        assert one.call("status").returncode == 3
        form([one])
        text = one.films / "text.mp4"
        text.write_text("this is no video")
        empty = one.films / "empty.mkv"
        empty.touch()
        folder = one.films / "folder"
        folder.mkdir()
        for wrong, code in ((text, 1), (empty, 1), (folder, None), (one.films / "none.mp4", None)):
            done = one.call("convert", str(wrong), "--profile", "web")
            assert done.returncode != 0, wrong
            if code is not None:
                assert done.returncode == code, done.stderr
            assert "error[" in done.stderr, (wrong, done)
        unknown = one.call("convert", str(text), "--profile", "nonsense")
        assert unknown.returncode == 2
        assert "error[" in unknown.stderr
        second = Node.__new__(Node)
        second.__dict__.update(one.__dict__)
        second.errors = tmp_path / "second.log"
        second.process = None
        second.start()
        assert second.process is not None
        assert second.process.wait(timeout=20) == 6
        assert "error[in_use]" in second.log_tail()


def test_two_fresh_nodes_at_once_form_exactly_one_mesh(tmp_path: Path) -> None:
    with cluster(tmp_path, ["a", "b"]) as nodes:
        for node in nodes:
            node.start()
        wait_for(
            "one formed, the other waits",
            lambda: sorted(n.status()["state"] for n in nodes) == ["member", "waiting"],
            40,
        )
        member = next(n for n in nodes if n.status()["state"] == "member")
        other = next(n for n in nodes if n is not member)
        pending = wait_for("it asks", lambda: member.cli("nodes")["pending"], 10)
        assert [p["name"] for p in pending] == [other.name]


def test_nothing_is_left_running(tmp_path: Path) -> None:
    with cluster(tmp_path, ["one"]) as (one,):
        form([one])
        film = make_film(one.films / "film.mp4", seconds=30, size="640x360")
        one.cli("submit", str(film), "--profile", "archive")
        # By what it writes: the film itself is handed to it open, without a name.
        wait_for("FFmpeg runs", lambda: _writes_below(one.home), 30)
        one.kill()
        wait_for("FFmpeg ended with its node", lambda: not _writes_below(one.home), 10)


def _writes_below(folder: Path) -> bool:
    found = subprocess.run(
        ["pgrep", "-f", f"ffmpeg.*{folder}"], capture_output=True, text=True, check=False
    )
    return found.returncode == 0
