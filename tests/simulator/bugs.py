"""Bugs planted on purpose: a simulator that cannot find these proves nothing.

Each replaces one method while `planted` is open; nothing in the product knows of them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mesh import protocol
from mesh.leadership import Leadership
from mesh.log import Entry, HardState
from mesh.membership import quorum_of
from mesh.messages import ConsensusMessage
from mesh.raftlog import RaftLog
from mesh.replication import Replication
from tests.simulator.node import Node


class _VoteNotPersisted(Node):
    def persist(self, hard_state: HardState | None, entries: tuple[Entry, ...]) -> None:
        if hard_state is not None:
            hard_state = HardState(term=hard_state.term, vote=None, commit=hard_state.commit)
        self.disk.persist(hard_state, entries)


class _AcknowledgedBeforeSync(Node):
    def before_sync(self, late: list[ConsensusMessage]) -> None:
        for message in late:
            self.world.network.send(message)
        late.clear()


def _commit_of_old_term(lead: Any, now_ms: int) -> None:
    del now_ms
    log = lead._log
    configuration = log.configuration
    index = lead._replication.majority_index(configuration)
    if index > log.commit_index:
        log.commit_to(index)
        lead._broadcast()
        if not log.is_configuration_pending and lead.raft_id not in configuration.voters:
            lead.is_over = True


def _learner_counted(replication: Any, configuration: Any) -> int:
    matched: list[int] = [replication._matched(raft) for raft in configuration.ids]
    held = sorted(matched, reverse=True)
    return held[quorum_of(len(configuration.voters)) - 1]


def _truncation_without_conflict(
    log: Any, prev_index: int, prev_term: int, entries: Sequence[Entry]
) -> int | None:
    if log.term(prev_index) != prev_term:
        return None
    if entries and entries[0].index > log.commit_index:
        log.append(entries)
    return prev_index + len(entries)


def _vote_for_a_shorter_log(request: Any, *, term: int, vote: Any, leader: Any, log: Any) -> bool:
    return vote == request.sender or (vote is None and leader is None) or request.pre


_Patch = tuple[Any, str, Callable[..., Any]]
BUGS: dict[str, type[Node] | _Patch] = {
    "vote-not-persisted": _VoteNotPersisted,
    "acknowledged-before-sync": _AcknowledgedBeforeSync,
    "commit-of-old-term": (Leadership, "_advance_commit", _commit_of_old_term),
    "learner-counted": (Replication, "majority_index", _learner_counted),
    "truncation-without-conflict": (RaftLog, "match_and_append", _truncation_without_conflict),
    "vote-for-a-shorter-log": (protocol, "may_grant", _vote_for_a_shorter_log),
}


@contextmanager
def planted(name: str | None) -> Iterator[type[Node]]:
    """The bug of this name is in force inside; gives the class of nodes to use."""
    bug = BUGS[name] if name is not None else Node
    if isinstance(bug, type):
        yield bug
        return
    owner, attribute, replacement = bug
    genuine = vars(owner)[attribute]
    setattr(owner, attribute, replacement)
    try:
        yield Node
    finally:
        setattr(owner, attribute, genuine)
