"""Nodes whose work fails while that of others does not: counted, and given no more (schema 3).

A strike is a job that FFmpeg failed at on this node and on no other.  When a second node fails at it
too, the job is to blame and nobody's strike.  A result takes all strikes of its node back.
"""

from dataclasses import replace

from ledger.change import Change
from ledger.jobs import DISK_FULL, Attempt, Node
from ledger.orders import STRIKES_MAX

_SINCE = 3


def note_success(change: Change, node: str) -> None:
    """A result of this node was handed back."""
    if change.rows.schema < _SINCE:
        return
    row = change.rows.get(Node, node)
    if row is not None and row.strikes:
        change.rows.put(replace(row, strikes=()))


def note_failure(change: Change, failed: Attempt) -> None:
    """An attempt failed, as its own node says."""
    # Without a command line FFmpeg never ran: a transfer or a stop, no fault of its encoder.
    if change.rows.schema < _SINCE or failed.failure == "input" or not failed.command_line:
        return
    if failed.error_code in DISK_FULL:
        return  # the scheduler looks at its disk; a proof of its encoders would say nothing
    others = any(
        attempt.node != failed.node and attempt.state == "failed" and attempt.command_line
        for attempt in change.rows.where(Attempt, job=failed.job)
    )
    if others:
        for node in change.rows.where(Node):
            if failed.job in node.strikes:
                left = tuple(job for job in node.strikes if job != failed.job)
                change.rows.put(replace(node, strikes=left))
        return
    row = change.rows.get(Node, failed.node)
    if row is None or failed.job in row.strikes:
        return
    strikes = (*row.strikes, failed.job)[-STRIKES_MAX:]
    quarantine = row.quarantine
    if len(strikes) >= STRIKES_MAX and not quarantine:
        quarantine = f"failed {len(strikes)} jobs in a row, the last with {failed.error_code}"
        change.tell("node.quarantined", node=row.node, what=quarantine)
    change.rows.put(replace(row, strikes=strikes, quarantine=quarantine))
