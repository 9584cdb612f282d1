"""Backups beside running nodes, and a mesh that goes on from one after every disk is gone."""

import shutil
from pathlib import Path

from tests.cluster import cluster, form


def test_backed_up_wiped_and_restored(tmp_path: Path) -> None:
    with cluster(tmp_path, ["one", "two"]) as (one, two):
        form([one, two])
        for node in (one, two):
            assert node.cli("ledger", "verify")["sound"] is True
        file = tmp_path / "b.db"
        made = two.cli("ledger", "backup", str(file))
        export = one.cli("ledger", "export", str(tmp_path / "e.jsonl"))
        assert export["rows"] > 3
        # At one index, every replica has the same contents.
        content = {
            (found["applied_index"], found["content"])
            for found in (one.cli("ledger", "verify"), two.cli("ledger", "verify"))
        }
        assert len({index for index, _ in content}) == len(content)
        running = one.call("ledger", "restore", str(file))
        assert (running.returncode, "error[in_use]" in running.stderr) == (6, True), running
        mesh = one.status()["mesh"]
        for node in (one, two):
            assert node.stop() == 0
            shutil.rmtree(node.home)

        restored = one.cli("ledger", "restore", str(file), "--name", "new")
        assert restored["mesh"] == mesh
        assert restored["epoch"] > 1
        assert restored["applied_index"] == made["applied_index"] + 2
        one.start().ready()
        status = one.status()
        assert (status["mesh"], status["coordinator"], status["voters"]) == (mesh, "new", ["new"])
        assert {node["name"] for node in one.cli("nodes")["nodes"]} == {"one", "two", "new"}
        assert one.cli("ledger", "verify")["sound"] is True
        # It decides, and takes in the other machine, whose key is new as well.
        two.start("--join", one.token()).ready()
        one.sees(2)
        assert two.cli("ledger", "verify")["sound"] is True


def test_members_with_their_old_files_come_back_to_a_restored_mesh(tmp_path: Path) -> None:
    with cluster(tmp_path, ["one", "two", "three"]) as (one, two, three):
        form([one, two, three])
        file = tmp_path / "b.db"
        one.cli("ledger", "backup", str(file))
        for node in (one, two, three):
            assert node.stop() == 0
        one.cli("ledger", "restore", str(file))
        one.start().ready()
        assert one.status()["voters"] == ["one"]
        two.start()
        three.start()
        one.sees(3, 40)
        for node in (two, three):
            node.ready(40).sees(3, 20)
        assert len({node.status()["mesh"] for node in (one, two, three)}) == 1


def test_a_node_without_its_log_never_votes_and_comes_back(tmp_path: Path) -> None:
    with cluster(tmp_path, ["one", "two", "three"]) as (one, two, three):
        form([one, two, three])
        three.kill()
        for path in three.home.glob("raft.db*"):
            path.unlink()
        assert "error[damaged]" in three.call("ledger", "verify").stderr
        three.start()
        assert three.process is not None
        assert three.process.wait(30) == 1
        assert "error[storage]" in three.log_tail()
        assert "--join TOKEN" in three.log_tail()
        three.start("--join", one.token()).ready()
        one.sees(3)
        assert three.cli("ledger", "verify")["sound"]
        assert list(three.home.glob("former/*/ledger.db"))

        # The last one of a mesh goes on from its ledger alone.
        for node in (one, two, three):
            node.kill()
        for path in one.home.glob("raft.db*"):
            path.unlink()
        one.cli("ledger", "backup", str(tmp_path / "b.db"))
        one.cli("ledger", "restore", str(tmp_path / "b.db"))
        one.start().ready()
        assert one.status()["voters"] == ["one"]
