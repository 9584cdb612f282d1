"""Runs a transcript: blocks of commands, `----`, and the effects that they had.

mesh a b c [learners=d]         nodes that share a configuration in entry 1
node a log=1,1,2 voters=a,b ... one node with a log of these terms (term=, vote=, commit=, learners=)
found a | empty a               the first node of a mesh | one that knows nothing yet
campaign a | tick a | wait MS   a long silence, then a's time-out | time goes on to a's next deadline | time passes
lead a                          a is elected and everybody commits: all of it, in one line
propose a x y                   commands
change a voters=.. learners=..  a membership change
deliver [a>b] [rounds=N]        all messages (or those of a link) and the answers they cause
appends_of N                    first of all: entries of one append at most
drop [a>b]                      the same, lost
keep a>b | again                remembers copies of what is under way | they come again
isolate a | rejoin a            everything from and to a is lost | no more
hold a | sync a                 a's syncs do not end | now they do
crash a | restart a
transfer a [b]                  leadership to b, or to whoever fits best
read a                          a linearizable read
stretch a PERCENT               a's election time-outs are wider
compact a INDEX                 a forgets its log up to there
offer a b [index=N]             a's driver has a snapshot for b, of what a applied or of N
unavailable a b                 it has none
install b | fail_install b      b's driver installed what it was offered | it could not
status | log
"""

from mesh.errors import DarkStreamError
from mesh.log import HardState
from mesh.replication import FollowerStatus, Limits
from tests.scenarios.cluster import Cluster, configuration_of, describe, describe_entries

_DIVIDER = "----"


def rerun(text: str) -> str:
    """The transcript with the outputs that its commands give now."""
    cluster = Cluster()
    blocks: list[str] = []
    for block in text.strip().split("\n\n"):
        lines = block.split("\n")
        commands = lines[: lines.index(_DIVIDER)] if _DIVIDER in lines else lines
        active = [line for line in commands if not line.startswith("#")]
        if not active:
            blocks.append(block)
            continue
        cluster.lines = []
        for line in active:
            try:
                _run(cluster, *line.split())
            except DarkStreamError as error:
                cluster.lines.append(error.line())
        blocks.append("\n".join([*commands, _DIVIDER, *(cluster.lines or ["nothing"])]))
    return "\n\n".join(blocks) + "\n"


def _run(cluster: Cluster, verb: str, *arguments: str) -> None:  # noqa: PLR0912 - one case a command
    names = [argument for argument in arguments if "=" not in argument]
    options = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    voters = [name for name in options.get("voters", "").split(",") if name]
    learners = [name for name in options.get("learners", "").split(",") if name]
    sender, _, to = names[0].partition(">") if names and ">" in names[0] else ("", "", "")
    match verb:
        case "mesh":
            cluster.mesh(names, learners)
        case "node":
            terms = [int(term) for term in options["log"].split(",")]
            cluster.node(
                names[0],
                terms,
                configuration_of(voters, learners),
                term=int(options["term"]) if "term" in options else None,
                vote=options.get("vote"),
                commit=int(options.get("commit", "0")),
            )
        case "found" | "empty" | "campaign" | "tick" | "hold" | "sync" | "crash" | "read" | "lead":
            getattr(cluster, verb)(names[0])
        case "transfer" | "unavailable" | "install" | "fail_install":
            getattr(cluster, verb)(*names)
        case "stretch":
            cluster.nodes[names[0]].stretch(int(names[1]))
        case "compact":
            cluster.compact(names[0], int(names[1]))
        case "offer":
            index = int(options["index"]) if "index" in options else None
            cluster.offer(names[0], names[1], index)
        case "appends_of":
            cluster.limits = Limits(append_entries_max=int(names[0]))
        case "restart":
            cluster.start(names[0])
        case "wait":
            cluster.now_ms += int(names[0])
        case "propose":
            cluster.propose(*names)
        case "change":
            cluster.change(names[0], configuration_of(voters, learners))
        case "deliver":
            cluster.deliver(sender or None, to or None, int(options.get("rounds", "0")))
        case "drop":
            dropped = cluster.take(sender or None, to or None)
            cluster.lines += [f"lost: {describe(message)}" for message in dropped]
        case "keep":
            cluster.keep(sender, to)
        case "again":
            cluster.again()
        case "isolate":
            cluster.isolated.add(names[0])
        case "rejoin":
            cluster.isolated.discard(names[0])
        case "status":
            cluster.lines += [_status(cluster, name) for name in cluster.nodes]
        case "log":
            cluster.lines += [_log(cluster, name) for name in cluster.disks]
        case _:
            raise AssertionError(f"unknown command {verb}")


def _status(cluster: Cluster, name: str) -> str:
    raft = cluster.nodes[name]
    found = raft.configuration
    voters = ",".join(found.voters) if found else "-"
    learners = ",".join(found.learners) if found else ""
    followers = " ".join(map(_follower, raft.progress()))
    protected = f" protected={raft.protected_index}"
    return (
        f"{name}: {raft.role} term={raft.term} leader={raft.leader or '-'} "
        f"commit={raft.commit_index} last={raft.last_index} voters={voters} "
        f"learners={learners or '-'}{' match ' + followers if followers else ''}"
        f"{protected if raft.protected_index < raft.commit_index else ''}"
    )


def _follower(peer: FollowerStatus) -> str:
    state = "" if peer.state == "replicate" else f"({peer.state})"
    return f"{peer.raft_id}:{peer.match}{state}{'' if peer.active else '?'}"


def _log(cluster: Cluster, name: str) -> str:
    disk = cluster.disks[name]
    base = disk.base()
    entries = disk.entries(base.index + 1, disk.last_index() + 1, 1 << 30)
    state: HardState = disk.hard_state()
    behind = f"base={base.index}/{base.term} " if base.index else ""
    return f"{name}: term={state.term} vote={state.vote or '-'} {behind}{describe_entries(entries)}"
