"""A person limits a running node: `mesh-cli nodes limit`, from another node, over a restart."""

from pathlib import Path

from tests.cluster import Node, cluster, wait_for


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
