"""What a person must know when nothing can be decided: who is missing, what that means, what to do."""

from collections.abc import Sequence
from dataclasses import dataclass

from mesh.membership import quorum_of


@dataclass(frozen=True, slots=True, kw_only=True)
class VoterSeen:
    """A voter as this node sees it; `alive`: heard lately, or this node itself."""

    name: str
    alive: bool


def why_undecided(voters: Sequence[VoterSeen]) -> tuple[str, str]:
    """What is lost, and what to do, while no coordinator is known."""
    missing = sorted(voter.name for voter in voters if not voter.alive)
    if not voters:
        return (
            "this node has not heard yet who votes",
            "start the other nodes, or wait some seconds",
        )
    alive, needed = len(voters) - len(missing), quorum_of(len(voters))
    if alive >= needed:
        return "no coordinator yet: an election runs", "wait some seconds"
    names = ", ".join(missing)
    who = (
        f"the only voter, {names}, cannot be reached"
        if len(voters) == 1
        else f"{alive} of {len(voters)} voters can be reached, {needed} are needed: {names} missing"
    )
    what = (
        f"no coordinator: {who}; nothing new is decided (no job, no result, no member is taken), "
        "running work is finished and kept, the ledger can be read"
    )
    todo = (
        f"start {names} again; only if that is impossible for good, stop this node and run "
        "`mesh-cli ledger recover --force` on its machine: it goes on alone, and what only the "
        "missing ones knew is lost"
    )
    return what, todo
