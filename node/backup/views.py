"""What faces show of a node's backups."""

from collections.abc import Iterable, Iterator

from node.backup.rounds import BackupState
from node.gateway.models import BackupInfo, Check, Fault, Metric


def backup_info(state: BackupState) -> BackupInfo:
    """For the status."""
    fault = state.fault
    return BackupInfo(
        kind=state.kind,
        target=state.target,
        here=state.here,
        index=state.index,
        done_at_ms=state.done_ms,
        drilled_at_ms=state.drilled_ms,
        failures=state.failures,
        fault=None if fault is None else Fault(code=fault.code, what=fault.what, todo=fault.todo),
    )


def backup_checks(states: Iterable[BackupState]) -> Iterator[Check]:
    """For the health report."""
    for state in states:
        if state.fault is not None:
            reason = state.fault.line()
        elif not state.here:
            reason = "runs where the coordinator is"
        elif state.done_ms is None:
            reason = "the first one is not done yet"
        else:
            reason = f"{state.target} holds everything up to entry {state.index}"
        yield Check(name=state.kind, ok=state.fault is None, reason=reason)


def backup_metrics(states: Iterable[BackupState]) -> Iterator[Metric]:
    """For Prometheus: what to alarm on is `backup_failing`, and `backup_index` far behind the log."""
    for state in states:
        labels: dict[str, str] = {"kind": state.kind}
        yield Metric(
            name="backup_failing",
            kind="gauge",
            help="1 while the last try of this kind of backup failed.",
            value=float(state.fault is not None),
            labels=labels,
        )
        yield Metric(
            name="backup_failures_total",
            kind="counter",
            help="Tries of this kind of backup that failed since the start.",
            value=float(state.failures),
            labels=labels,
        )
        yield Metric(
            name="backup_index",
            kind="gauge",
            help="Log index up to which this kind of backup holds everything.",
            value=float(state.index),
            labels=labels,
        )
        if state.done_ms is not None:
            yield Metric(
                name="backup_last_success_timestamp_seconds",
                kind="gauge",
                help="When this kind of backup was last known to be complete.",
                value=state.done_ms / 1000,
                labels=labels,
            )
