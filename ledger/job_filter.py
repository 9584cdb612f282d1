"""Which jobs a list shows, as SQL."""

from ledger.jobs import JOB_STATES, JobState
from ledger.rows import SqlValue


def job_filters(
    *,
    state: JobState | None,
    node: str | None,
    since_ms: int | None,
    first_seq: int | None,
    tenant: str | None,
    before_seq: int | None,
    until_ms: int | None = None,
    profile: str | None = None,
    folder: str | None = None,
) -> list[tuple[str, list[SqlValue]]]:
    """The ends of queries (LIMIT comes last) with their values: the list is the union of what they give.

    `first_seq` is the least seq of the jobs since `since_ms`, where it is known.  A node's jobs are
    what it owns, state by state (by an index in that order), and what it worked on: as one condition
    they would be sorted whole for each page.
    """
    conditions: list[str] = []
    values: list[SqlValue] = []

    def add(condition: str, *value: SqlValue) -> None:
        conditions.append(condition)
        values.extend(value)

    if since_ms is not None:
        # Not by its index: pages are in the order of seq, and most of what is asked for is new.
        add("+created_at_ms >= ?", since_ms)
    if first_seq is not None:
        add("seq >= ?", first_seq)
    if tenant is not None:
        add("tenant = ?", tenant)
    if until_ms is not None:
        add("+created_at_ms < ?", until_ms)
    if profile is not None:
        add("profile = ?", profile)
    if folder is not None:
        add(*below(folder))
    if before_seq is not None:
        add("seq < ?", before_seq)
    if node is None:
        if state is not None:
            add("state = ?", state)
        return [(f"{_where(conditions)}ORDER BY seq DESC LIMIT ?", values)]
    owned = ["owner = ? AND state = ?", *conditions]
    states = JOB_STATES if state is None else (state,)
    own: list[tuple[str, list[SqlValue]]] = [
        (f"{_where(owned)}ORDER BY seq DESC LIMIT ?", [node, one, *values]) for one in states
    ]
    if state is not None:
        add("state = ?", state)
    # A plus keeps SQLite from walking the whole list in its order for the few that a node did.
    done = ["id IN (SELECT job FROM attempt WHERE node = ?)", *(f"+{one}" for one in conditions)]
    return [*own, (f"{_where(done)}ORDER BY +seq DESC LIMIT ?", [node, *values])]


def _where(conditions: list[str]) -> str:
    return f"WHERE {' AND '.join(conditions)} " if conditions else ""


def below(folder: str) -> tuple[str, str, int, str, str]:
    """The condition that a source is this file or lies below this folder, with its values."""
    bare = folder.rstrip("/\\")
    condition = "(source = ? OR substr(source, 1, ?) IN (? || '/', ? || '\\'))"
    return condition, folder, len(bare) + 1, bare, bare
