"""A mesh whose nodes are brought to a new version one after the other, while all of them write."""

import contextlib
from pathlib import Path

import pytest

from ledger.queries import open_replica
from ledger.schema import FIRST_SCHEMA, SCHEMA_VERSION
from tests.cluster import Node, cluster, wait_for
from tests.growing import Growth, applied, errors_in, line
from tests.older import SCHEMA_1, missing, version_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing(SCHEMA_1) is not None, reason=missing(SCHEMA_1) or ""),
]
KEEP_ENTRIES = 100_000
"""So many that who comes back needs no snapshot: the bulk transfer got another form on the wire after
the older version, before anything was released; from the next schema on let it be 16."""
GAP_MS = 10_000
"""Who is updated goes politely; the rest is for a machine that does other things."""


def test_node_by_node_under_load(tmp_path: Path) -> None:
    older = version_of(SCHEMA_1, tmp_path / "older")
    with cluster(tmp_path, ["one", "two", "three", "late"]) as (*nodes, late):
        for node in (*nodes, late):
            node.code = older
        settings = tmp_path / "node.toml"
        settings.write_text(f"slots = 0\n[ledger]\nkeep-entries = {KEEP_ENTRIES}\n")
        options = ("--config", str(settings))
        mesh = Growth(nodes, options, lambda step: print(line(step)))
        mesh.found()
        mesh.grow(3, voters=3)
        for chosen in (mesh.follower, mesh.coordinator, lambda: older_of(nodes)):
            assert {schema_of(node) for node in nodes} == {FIRST_SCHEMA}
            node = chosen()
            mesh.go(node, voters=3)
            node.code = None
            mesh.return_all(voters=3)
        moved = "the ledger has the new form everywhere"
        wait_for(moved, lambda: {schema_of(node) for node in nodes} == {SCHEMA_VERSION}, 60)
        with mesh.step("all are new", voters=3):
            pass
        for step in mesh.steps:
            assert step.gap_ms < GAP_MS, line(step)
        token = nodes[0].token()
        mesh.finish()
        assert mesh.written.jobs
        assert mesh.lost() == []
        assert len({applied(node).checksum for node in nodes}) == 1
        at = [migrated_at(node) for node in nodes]
        assert len(at[0]) == SCHEMA_VERSION - FIRST_SCHEMA
        assert at == [at[0]] * len(nodes)
        assert [error for node in nodes for error in errors_in(node)] == []
        # Who goes back, and who comes with the older version, is told and changes nothing.
        assert nodes[2].stop() == 0
        nodes[2].code = older
        for node in (nodes[2].start(*options), late.start("--join", token, *options)):
            assert node.process is not None
            assert node.process.wait(timeout=60) != 0
            (said,) = [x for x in node.log_tail().splitlines() if x.startswith("error[")]
            assert f"schema {SCHEMA_VERSION}" in said
            assert "update DarkStream on" in said
        assert "late" not in {node["name"] for node in nodes[0].cli("nodes")["nodes"]}
        nodes[2].code = None
        nodes[2].start(*options).ready(60)


def older_of(nodes: list[Node]) -> Node:
    """The one that is not updated yet."""
    (node,) = [node for node in nodes if node.code is not None]
    return node


def schema_of(node: Node) -> int:
    """The form of a node's ledger, read beside the node."""
    with contextlib.closing(open_replica(str(node.home / "ledger.db"))) as connection:
        return int(connection.pragma("user_version"))


def migrated_at(node: Node) -> list[int]:
    """The log indexes at which its ledger moved on."""
    with contextlib.closing(open_replica(str(node.home / "ledger.db"))) as connection:
        asked = "SELECT log_index FROM events WHERE kind = 'ledger.migrated' ORDER BY id"
        return [index for (index,) in connection.execute(asked)]
