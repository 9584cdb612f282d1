"""Bugs planted on purpose: a simulator that cannot find these proves nothing.

Each replaces a few methods while `planted` is open; nothing in the product knows of them.
"""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from ledger import apply_jobs
from ledger.jobs import Attempt
from ledger.store_sqlite import LedgerStore
from mesh import protocol
from mesh.effects import InstallSnapshot
from mesh.election import Ballot
from mesh.following import Following
from mesh.leadership import Leadership
from mesh.log import Entry, HardState
from mesh.membership import Configuration, quorum_of
from mesh.messages import ConsensusMessage
from mesh.protocol import Raft
from mesh.raftlog import RaftLog
from mesh.replication import Replication
from tests.simulator.node import Node

Patch = tuple[Any, str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bug:
    """What is wrong, in the words of the issue; which run looks for it; what to replace."""

    what: str
    kind: Literal["mesh", "work"] = "mesh"
    node_class: type[Node] = Node
    patches: tuple[Patch, ...] = ()


# --- durability --------------------------------------------------------------------------------------


class _VoteNotPersisted(Node):
    def persist(self, hard_state: HardState | None, entries: tuple[Entry, ...]) -> None:
        if hard_state is not None:
            hard_state = replace(hard_state, vote=None)
        super().persist(hard_state, entries)


class _TermNotPersisted(Node):
    def persist(self, hard_state: HardState | None, entries: tuple[Entry, ...]) -> None:
        if hard_state is not None:
            hard_state = replace(hard_state, term=self.disk.hard_state().term)
        super().persist(hard_state, entries)


class _AcknowledgedBeforeSync(Node):
    def before_sync(self, late: list[ConsensusMessage]) -> None:
        for message in late:
            self.send(message)
        late.clear()


# --- elections ---------------------------------------------------------------------------------------


def _vote_for_a_shorter_log(request: Any, *, term: int, vote: Any, leader: Any, log: Any) -> bool:
    return vote == request.sender or (vote is None and leader is None) or request.pre


def _vote_by_index(log: Any, last_index: int, last_term: int) -> bool:
    return bool(last_index >= log.last_index)


_request_votes = Raft._request_votes


def _ask_everybody_who_ever_voted(
    raft: Any, configuration: Configuration, term: int, **how: bool
) -> None:
    log = raft._log
    voters = set(configuration.voters)
    first = log.base.index + 1
    for entry in log.entries(first, log.last_index + 1, bytes_max=1 << 30, entries_max=1 << 30):
        if entry.kind == "configuration":
            voters.update(Configuration.decode(entry.data).voters)
    _request_votes(raft, Configuration.of(voters), term, **how)


def _count_everybody(ballot: Any, configuration: Configuration) -> str:
    granted = sum(1 for vote in ballot._votes.values() if vote)
    return "won" if granted >= configuration.quorum else "open"


# --- the log and what is decided ---------------------------------------------------------------------


def _truncation_without_conflict(
    log: Any, prev_index: int, prev_term: int, entries: Sequence[Entry]
) -> int | None:
    if log.term(prev_index) != prev_term:
        return None
    if entries and entries[0].index > log.commit_index:
        log.append(entries)
    return prev_index + len(entries)


def _commit_of_old_term(lead: Any, now_ms: int) -> None:
    del now_ms
    log = lead._log
    configuration = log.configuration
    index = lead._replication.majority_index(configuration)
    if index > log.commit_index:
        log.commit_to(index)
        lead._release_reads()
        lead._broadcast()
        if not log.is_configuration_pending and lead.raft_id not in configuration.voters:
            lead.is_over = True


_append = Following._append


def _commit_past_the_last_new_entry(following: Any, append: Any) -> None:
    log = following._log
    matches = following.installing is None and log.term(append.prev_index) == append.prev_term
    _append(following, append)
    if matches:
        log.commit_to(append.commit)


def _commit_for_anybody(replication: Any, raft: Any) -> int:
    return int(replication._log.commit_index)


def _learner_counted(replication: Any, configuration: Any) -> int:
    matched: list[int] = [replication._matched(raft) for raft in configuration.ids]
    held = sorted(matched, reverse=True)
    return held[quorum_of(len(configuration.voters)) - 1]


def _offer_over_a_newer_log(following: Any, offer: Any) -> None:
    if following.installing is not None:
        return
    if offer.base_index <= following._log.commit_index:
        following._outbox.acknowledge(offer.sender, offer.term, following._log.commit_index)
        return
    following.installing = offer
    following._outbox.ask(InstallSnapshot(offer))


def _read_at_once(lead: Any) -> None:
    lead._reads.start_round()
    lead._reads.confirm(lead._reads.round)
    lead._release_reads()


# --- the ledger --------------------------------------------------------------------------------------


def _forget(store: Any, command_id: str, index: int, fresh: Any) -> None:
    return None


def _expire_again(change: Any, command: Any) -> None:
    for attempt_id in command.attempts:
        attempt = change.rows.get(Attempt, attempt_id)
        if attempt is not None and attempt.state in ("leased", "expired"):
            leased = replace(attempt, state="leased")
            apply_jobs._end(change, leased, "expire", code="lease_expired", what=command.what)


_finish_attempt = apply_jobs.finish_attempt


def _finish_with_any_token(change: Any, command: Any) -> None:
    attempt = change.rows.get(Attempt, command.attempt)
    if attempt is not None and attempt.state in ("leased", "expired", "released", "failed"):
        # As if nothing told an old lease of the task from the one that runs now.
        change.rows.put(replace(attempt, state="leased"))
        command = replace(command, token=attempt.token)
    _finish_attempt(change, command)


_keep = apply_jobs._keep


def _keep_and_let_the_other_go_on(change: Any, attempt: Any, task: Any, job: Any) -> None:
    others = [a for a in apply_jobs.live_attempts(change, task) if a.id != attempt.id]
    _keep(change, attempt, task, job)
    for other in others:
        change.rows.put(other)


BUGS: dict[str, Bug] = {
    "vote-not-persisted": Bug(what="vote not persisted", node_class=_VoteNotPersisted),
    "term-not-persisted": Bug(what="term not persisted", node_class=_TermNotPersisted),
    "acknowledged-before-sync": Bug(
        what="acknowledged before sync", node_class=_AcknowledgedBeforeSync
    ),
    "truncation-without-conflict": Bug(
        what="truncation without conflict",
        patches=((RaftLog, "match_and_append", _truncation_without_conflict),),
    ),
    "commit-of-old-term": Bug(
        what="entries of an old term committed by counting (figure 8)",
        patches=((Leadership, "_advance_commit", _commit_of_old_term),),
    ),
    "vote-for-a-shorter-log": Bug(
        what="vote without the up-to-date check",
        patches=((protocol, "may_grant", _vote_for_a_shorter_log),),
    ),
    "vote-by-index": Bug(
        what="vote comparing index only", patches=((RaftLog, "is_up_to_date", _vote_by_index),)
    ),
    "commit-past-new": Bug(
        what="commit not bounded by the last new entry",
        patches=((Following, "_append", _commit_past_the_last_new_entry),),
    ),
    "heartbeat-commit": Bug(
        what="heartbeat commit not bounded by match",
        patches=((Replication, "commit_for", _commit_for_anybody),),
    ),
    "learner-counted": Bug(
        what="learner counted in a quorum",
        patches=((Replication, "majority_index", _learner_counted),),
    ),
    "second-change": Bug(
        what="second membership change before the first is committed",
        patches=((RaftLog, "is_configuration_pending", property(lambda _: False)),),
    ),
    "removed-votes": Bug(
        what="removed node still votes",
        patches=(
            (Raft, "_request_votes", _ask_everybody_who_ever_voted),
            (Ballot, "outcome", _count_everybody),
        ),
    ),
    "snapshot-over-newer": Bug(
        what="snapshot over a newer log",
        patches=((Following, "_offer", _offer_over_a_newer_log),),
    ),
    "read-without-quorum": Bug(
        what="read without quorum", patches=((Leadership, "_confirm_reads", _read_at_once),)
    ),
    "applied-twice": Bug(
        what="command applied twice after a lost reply",
        kind="work",
        patches=((LedgerStore, "_remembered", _forget),),
    ),
    "expired-twice": Bug(
        what="lease expired twice",
        kind="work",
        patches=((apply_jobs, "expire_leases", _expire_again),),
    ),
    "old-token": Bug(
        what="result with an old token accepted",
        kind="work",
        patches=((apply_jobs, "finish_attempt", _finish_with_any_token),),
    ),
    "both-kept": Bug(
        what="second attempt goes on when the first one's result is kept",
        kind="work",
        patches=((apply_jobs, "_keep", _keep_and_let_the_other_go_on),),
    ),
}


@contextmanager
def planted(name: str | None) -> Generator[type[Node]]:
    """The bug of this name is in force inside; gives the class of nodes to use."""
    bug = BUGS[name] if name is not None else Bug(what="none")
    with ExitStack() as undo:
        for owner, attribute, replacement in bug.patches:
            undo.callback(setattr, owner, attribute, vars(owner)[attribute])
            setattr(owner, attribute, replacement)
        yield bug.node_class
