"""The owner of a machine is its master: pause, drain, hours and priority of a node that works."""

import os
from pathlib import Path

import pytest

from tests.cluster import Node, cluster, form, wait_for
from tests.integration.test_orders import encoders_of, film


def states_of(pids: list[int]) -> set[str]:
    """The kernel's letter for each process: T stands still."""
    found: set[str] = set()
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            continue
        found.add(text.rpartition(")")[2].split()[0])
    return found


def why(node: Node, job: str) -> str:
    return str(node.cli("job", "show", job)["why_waiting"])


@pytest.mark.slow
def test_pause_drain_hours_and_priority_from_here_and_through_the_mesh(tmp_path: Path) -> None:
    with cluster(tmp_path, ["anna", "bert"]) as (anna, bert):
        form([anna, bert], "--slots", "1")
        anna.cli("nodes", "limit", "anna", "--slots", "0")
        long = film(anna, "long.mkv", 60, "1280x720")
        words = ("submit", str(long), "--no-split", "--profile", "archive")
        (job,) = anna.cli(*words)["jobs"]
        wait_for("FFmpeg runs on bert", lambda: encoders_of(bert), 90)
        # Through the mesh: it stands still where it is, for longer than any stall or lease may take.
        held = anna.cli("nodes", "pause", "bert")
        assert (held["paused"], held["running"]) == (True, 1)
        wait_for("it stands still", lambda: states_of(encoders_of(bert)) == {"T"}, 10)
        (other,) = anna.cli("submit", str(film(anna, "b.mkv")), "--profile", "web")["jobs"]
        wait_for("why it waits", lambda: "is paused by a person" in why(anna, other["id"]), 20)
        assert "has no slots" in why(anna, other["id"])
        # Also by a node that does not coordinate and hears no worker's heartbeats.
        wait_for(
            "bert says so", lambda: "bert: is paused by a person" in why(bert, other["id"]), 20
        )
        shown = anna.call("nodes").stdout
        assert "bert is paused by a person" in shown
        # From the node itself.
        held = bert.cli("nodes", "resume", "bert")
        assert held["closed"] == ""
        wait_for("it goes on", lambda: states_of(encoders_of(bert)) & {"R", "S", "D"}, 10)
        assert anna.cli("job", "show", job["id"])["state"] == "running"
        assert len(anna.cli("job", "show", job["id"])["tasks"][0]["attempts"]) == 1
        anna.cli("nodes", "work", "bert", "--nice", "17", "--threads", "1")
        wait_for(
            "it has that priority",
            lambda: {os.getpriority(os.PRIO_PROCESS, pid) for pid in encoders_of(bert)} == {17},
            10,
        )
        # A drain with a finish time: what still runs is given back and waits, no try is counted.
        anna.cli("nodes", "drain", "bert", "--within", "1s")
        wait_for("it is given back", lambda: not encoders_of(bert), 20)
        wait_for("it waits", lambda: "drains" in why(anna, job["id"]), 20)
        (attempt,) = anna.cli("job", "show", job["id"])["tasks"][0]["attempts"]
        assert attempt["state"] == "released"
        # What was set holds over a restart; hours open and close by themselves.
        bert.stop()
        bert.start("--slots", "1").ready()
        assert bert.cli("nodes", "work", "bert")["draining"] is True
        never = ("mon 00:00-00:01", "mon 00:02-00:03")
        bert.cli("nodes", "work", "bert", "--hours", never[0], "--hours", never[1])
        bert.cli("nodes", "resume", "bert")
        wait_for("outside its hours", lambda: "outside its hours" in why(anna, job["id"]), 20)
        anna.cli("cancel", job["id"])
        bert.cli("nodes", "work", "bert", "--hours", "always")
        wait_for("b is done", lambda: anna.cli("job", "show", other["id"])["state"] == "done", 90)
        assert anna.call("nodes", "work", "bert", "--hours", "sometimes").returncode == 2
        labels_and_tenants(anna, bert)


def queue_is_bounded(anna: Node, bert: Node, waiting_bytes: int) -> None:
    """What a tenant may have waiting: a folder beyond it is refused whole, and says how many would fit."""
    asked = ("--profile", "web", "--tenant", "guests")
    anna.cli("tenants", "set", "guests", "--queued-jobs", "3", "--queued-bytes", "1GB")
    (seen,) = bert.cli("tenants", "list")["tenants"]
    assert (seen["queued_jobs"], seen["queued_bytes"]) == (3, 10**9)
    assert (seen["waiting_jobs"], seen["waiting_bytes"]) == (1, waiting_bytes)
    assert "1/3" in anna.call("tenants", "list").stdout
    folder = anna.films / "many"
    folder.mkdir()
    for name in ("e.mkv", "f.mkv", "g.mkv"):
        film(anna, f"many/{name}")
    before = anna.status()["jobs"]["queued"]
    for words in (asked, (*asked, "--dry-run")):
        refused = anna.call("submit", str(folder), *words)
        assert refused.returncode == 4
        assert "error[quota]: tenant guests may have 3 films (1 wait)" in refused.stderr
        assert "2 of these 3 films fit, nothing was taken" in refused.stderr
    assert anna.status()["jobs"]["queued"] == before
    taken = anna.cli("submit", *(str(folder / f"{n}.mkv") for n in "ef"), *asked)["jobs"]
    assert len(taken) == 2
    full = anna.call("submit", str(folder / "g.mkv"), *asked, "--json")
    assert "this film does not fit" in full.stdout
    # Others, and the films of those who ask for no tenant, are not meant.
    (free,) = anna.cli("submit", str(folder / "g.mkv"), "--profile", "web", "--tenant", "b")["jobs"]
    anna.cli("cancel", *(job["id"] for job in (*taken, free)))


def labels_and_tenants(anna: Node, bert: Node) -> None:
    """A job goes where its person wants it, and who may have how much is said, shown and taken back."""
    asked = ("--profile", "web", "--needs", "attic", "--on", "bert")
    (job,) = anna.cli("submit", str(film(anna, "c.mkv")), *asked)["jobs"]
    wait_for("why it waits", lambda: "bert: lacks the label attic" in why(bert, job["id"]), 20)
    assert bert.cli("nodes", "work", "bert", "--label", "attic")["labels"] == ["attic"]
    shown = wait_for(
        "it is done",
        lambda: (j := anna.cli("job", "show", job["id"]))["state"] == "done" and j,
        60,
    )
    assert (shown["needs"], shown["on"]) == (["attic"], ["bert"])
    assert "bert has the labels attic" in anna.call("nodes").stdout
    unknown = anna.call("submit", str(anna.films / "c.mkv"), *asked[:-1], "nobody")
    assert "error[not_found]: no node nobody" in unknown.stderr
    said = {
        "name": "guests", "share": 3, "slots": 0, "queued_jobs": None, "queued_bytes": None,
        "waiting_jobs": 0, "waiting_bytes": 0,
    }  # fmt: skip
    assert anna.cli("tenants", "set", "guests", "--slots", "0", "--share", "3") == said
    assert bert.cli("tenants", "list")["tenants"] == [said]
    (theirs,) = anna.cli(
        *("submit", str(film(anna, "d.mkv")), "--profile", "web", "--tenant", "guests")
    )["jobs"]
    wait_for("why it waits", lambda: "quota allows, 0" in why(anna, theirs["id"]), 20)
    queue_is_bounded(anna, bert, theirs["source_bytes"])
    anna.cli("tenants", "remove", "guests")
    assert "error[not_found]" in anna.call("tenants", "remove", "guests").stderr
    wait_for("it is done", lambda: anna.cli("job", "show", theirs["id"])["state"] == "done", 60)
