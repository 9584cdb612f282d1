"""From one node to two, three, five, nine and back to one, while every node writes all the time.

    .venv/bin/python bench/growth.py [--quick] [--silent-s S]

Three ways back: `nodes remove` of one after the other (the coordinator and another voter in turn),
SIGTERM until too few voters are left to decide, and kill -9 until one node is left.  The table says
after each step who votes and the longest time in which no write was acknowledged by any node, and
by the one that waited longest.  `ratio` is the longest such time after a coordinator was killed by
etcd's 1.3 s on this kind of machine.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Final

from mesh.membership import REPLACE_MS, target_voters
from tests.cluster import cluster
from tests.growing import HEAD, Growth, Step, errors_in, line

NODES: Final = 9
SIZES: Final = (2, 3, 5, 9)
QUICK_SILENT_S: Final = 6
ETCD_MS: Final = 1_300


def grow(mesh: Growth, sizes: tuple[int, ...]) -> None:
    """One step a size, or as many as are missing."""
    for size in sizes:
        mesh.grow(size, voters=target_voters(size))


def remove_all_but_one(mesh: Growth) -> None:
    """The coordinator and another node in turn, asked for by one that stays."""
    while len(mesh.alive) > 1:
        chosen = mesh.coordinator() if len(mesh.alive) % 2 else mesh.other()
        by = next(node for node in mesh.alive if node is not chosen)
        mesh.remove(chosen, by, voters=target_voters(len(mesh.alive) - 1))


def go_until_undecided(mesh: Growth) -> str:
    """Nobody is missing for good, so the target stays: learners stand in while there are any.

    Of five voters three must be there.
    """
    voters = target_voters(len(mesh.alive))
    while len(mesh.alive) > voters // 2 + 1:
        mesh.go(mesh.coordinator() if len(mesh.alive) % 2 else mesh.follower(), voters=voters)
    said = mesh.undecided(mesh.alive[-1])
    mesh.return_all(voters=voters)
    return said


def kill_all_but_one(mesh: Growth) -> None:
    """Learners stand in for the dead; when there are none, the dead must be removed for good."""
    while len(mesh.alive) > 1:
        voters = target_voters(mesh.members)
        if len(mesh.alive) == 2:
            mesh.kill(mesh.other(), voters=voters)
            return
        mesh.kill(mesh.coordinator() if len(mesh.alive) % 2 else mesh.follower(), voters=voters)
        if len(mesh.alive) < voters:
            mesh.bury(voters=target_voters(len(mesh.alive)))


def run(mesh: Growth) -> dict[str, Any]:
    """All of it, counted."""
    mesh.found()
    grow(mesh, SIZES)
    remove_all_but_one(mesh)
    grow(mesh, (NODES,))
    said = go_until_undecided(mesh)
    print(f"too few voters, and every node says: {said}", flush=True)
    kill_all_but_one(mesh)
    mesh.finish()
    coordinator = longest(mesh, "(coordinator) is killed")
    return {
        "bench": "growth",
        "ratio": round(coordinator / ETCD_MS, 3),
        "steps": len(mesh.steps),
        "acknowledged": len(mesh.written.acks),
        "jobs": len(mesh.written.jobs),
        "lost": len(mesh.lost()),
        "joining_max_ms": longest(mesh, "join"),
        "removed_max_ms": longest(mesh, "is removed"),
        "going_max_ms": longest(mesh, "goes"),
        "coordinator_killed_max_ms": coordinator,
        "other_killed_max_ms": max(longest(mesh, "(voter) is k"), longest(mesh, "(learner) is k")),
    }


def longest(mesh: Growth, what: str) -> int:
    """Of all such steps."""
    return max((step.gap_ms for step in mesh.steps if what in step.what), default=0)


def told(step: Step) -> None:
    print(line(step), flush=True)


def main() -> int:
    """1 when something acknowledged is lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="voters are replaced after 6 s")
    parser.add_argument("--silent-s", type=int, help="after how many seconds voters are replaced")
    given = parser.parse_args()
    silent_s = given.silent_s or (QUICK_SILENT_S if given.quick else REPLACE_MS // 1_000)
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="darkstream-bench-")))
        settings = root / "node.toml"
        settings.write_text(f"slots = 0\n[timings]\nvoter-silent-ms = {silent_s * 1_000}\n")
        nodes = stack.enter_context(cluster(root, [f"n{n}" for n in range(1, NODES + 1)]))
        print(HEAD, flush=True)
        mesh = Growth(nodes, ["--config", str(settings)], told)
        found = run(mesh)
        errors = [f"{node.name}: {error}" for node in nodes for error in errors_in(node)]
        errors = [error for error in errors if "nothing is decided" not in error]  # as it must be
        answers = Counter[str]()
        for (_, answer), count in mesh.written.refused.items():
            answers[answer] += count
    for error in errors:
        print(error)
    for name, value in {**found, "not acknowledged": dict(answers)}.items():
        print(f"{name:28}{value}")
    print(json.dumps({**found, "errors": len(errors), "silent_s": silent_s, "quick": given.quick}))
    return 1 if found["lost"] else 0


if __name__ == "__main__":
    sys.exit(main())
