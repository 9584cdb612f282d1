"""Who votes, with real nodes on loopback: growing, going politely, leaving for good, dying."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mesh.clock import monotonic_ms
from tests.cluster import Node, cluster, form, wait_for


def voters(node: Node) -> list[str]:
    return sorted(node.status()["voters"])


def stands(node: Node, wanted: int, members: int, timeout_s: float = 15) -> list[str]:
    """The voters, once there are as many as they should be and a write is taken."""

    def settled() -> Any:
        status = node.status()
        placed = len(status["voters"]) + len(status["learners"])
        right = len(status["voters"]) == wanted and placed == members
        return status if right and status["coordinator"] else None

    status = wait_for(f"{wanted} voters of {members} at {node.name}", settled, timeout_s)
    node.token()  # a write is taken
    return sorted(status["voters"])


def join(host: Node, guest: Node) -> None:
    guest.start("--join", host.token()).ready()


def leader_of(nodes: Sequence[Node]) -> Node:
    name = nodes[0].ready().status()["coordinator"]
    return next(node for node in nodes if node.name == name)


def test_one_two_three_two_one_by_removing(tmp_path: Path) -> None:
    with cluster(tmp_path, ["one", "two", "three"]) as (one, two, three):
        form([one])
        assert stands(one, 1, 1) == ["one"]
        join(one, two)
        assert stands(two, 1, 2) == ["one"]
        join(two, three)
        assert stands(one, 3, 3) == ["one", "three", "two"]
        # The coordinator itself goes first: it hands over the lead, says why, and stops.
        gone = leader_of([one, two, three])
        left = [node for node in (one, two, three) if node is not gone]
        gone.cli("nodes", "remove", gone.name)
        assert gone.process is not None
        assert gone.process.wait(timeout=15) == 4
        assert "error[removed]" in gone.log_tail()
        (sole,) = stands(left[0], 1, 2)
        last = next(node for node in left if node.name != sole)
        former = next(node for node in left if node.name == sole)
        # Then the only voter, asked for by the other.
        last.cli("nodes", "remove", sole)
        assert former.process is not None
        assert former.process.wait(timeout=15) == 4
        assert stands(last, 1, 1) == [last.name]
        refused = last.call("nodes", "remove", last.name)
        assert (refused.returncode, "error[conflict]" in refused.stderr) == (2, True), refused
        states = {node["name"]: node["state"] for node in last.cli("nodes")["nodes"]}
        assert states == {gone.name: "removed", sole: "removed", last.name: "member"}
        # Started as it is, a removed node says the same again.
        former.start()
        assert former.process.wait(timeout=20) == 4


def test_with_two_nodes_the_vote_moves_to_the_one_that_stays(tmp_path: Path) -> None:
    with cluster(tmp_path, ["one", "two"]) as (one, two):
        form([one, two])
        assert stands(two, 1, 2) == ["one"]
        begun_ms = monotonic_ms()
        assert one.stop() == 0
        assert monotonic_ms() - begun_ms < 5_000
        assert stands(two, 1, 2) == ["two"]
        one.start().ready()
        assert stands(one, 1, 2) == ["two"]
        # The learner goes: nothing changes.
        assert one.stop() == 0
        assert stands(two, 1, 2) == ["two"]


def test_the_coordinator_goes_and_another_leads_at_once(tmp_path: Path) -> None:
    with cluster(tmp_path, ["one", "two", "three", "four"]) as nodes:
        form(nodes)
        before = stands(nodes[0], 3, 4)
        leader = leader_of(nodes)
        left = [node for node in nodes if node is not leader]
        assert leader.stop() == 0
        # The fourth stands in for the one that went.
        after = stands(left[0], 3, 4, timeout_s=3)
        assert set(after) == {node.name for node in left}
        assert set(before) - set(after) == {leader.name}


def test_a_removed_node_joins_anew_with_a_token(tmp_path: Path) -> None:
    with cluster(tmp_path, ["one", "two"]) as (one, two):
        form([one, two])
        one.cli("nodes", "remove", "two")
        assert two.process is not None
        assert two.process.wait(timeout=15) == 4
        assert stands(one, 1, 1) == ["one"]
        two.start("--join", one.token()).ready().sees(2)
        assert stands(two, 1, 2) == ["one"]
        kept = list((two.home / "former").iterdir())
        assert len(kept) == 1
        assert (kept[0] / "raft.db").is_file()


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    with cluster(tmp_path, ["one", "two", "three"]) as nodes:
        form(nodes)
        stands(nodes[0], 3, 3)
        for node in nodes[1:]:
            node.kill()
        # Nobody is left to take over: it would wait for its limit.
        (one, *_) = nodes
        assert one.process is not None
        one.process.terminate()
        wait_for("it goes", lambda: "a second signal stops at once" in one.log_tail(), 5)
        begun_ms = monotonic_ms()
        one.process.terminate()
        assert one.process.wait(timeout=5) == 0
        assert monotonic_ms() - begun_ms < 2_500


PATIENT = """
[timings]
election_min_ms = 7_000
election_max_ms = 14_000
"""


def test_a_killed_coordinator_is_replaced_long_before_its_silence_would_tell(
    tmp_path: Path,
) -> None:
    with cluster(tmp_path, ["one", "two", "three"]) as nodes:
        for node in nodes:
            node.home.mkdir(parents=True, mode=0o700)
            (node.home / "node.toml").write_text(PATIENT)
        form(nodes)
        stands(nodes[0], 3, 3)
        leader = leader_of(nodes)
        others = [node for node in nodes if node is not leader]
        leader.kill()
        begun_ms = monotonic_ms()
        wait_for(
            "another coordinator",
            lambda: others[0].status()["coordinator"] not in (None, leader.name),
            6,
        )
        assert monotonic_ms() - begun_ms < 7_000
        others[1].token()  # a write is taken
