"""Commands by which people order what becomes of many jobs, of nodes, and of watched folders (schema 3)."""

from dataclasses import dataclass
from typing import Final, Literal

from ledger.vocabulary import COMMANDS
from mesh.codec import value

Action = Literal["cancel", "retry", "priority"]
"""cancel: whatever is not over and not being published; retry: what failed or was cancelled, with its
plan; priority: whatever is not over, with what was not leased yet."""

ORDERED_PER_COMMAND_MAX: Final = 512
"""Jobs that one command changes or removes: some 20 ms of the thread that applies."""
NO_LIMIT: Final = -1
"""A number of slots that nobody reaches."""
SHARE_MAX: Final = 1_000
"""Of one tenant: weights beyond it say nothing more."""
STRIKES_MAX: Final = 3
"""Different jobs that fail in a row on a node, and on no other, before it gets no more work."""


@COMMANDS.kind("job.change")
@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeJobs:
    """Does one thing to these jobs; those in whose state it makes no sense stay as they are.

    `priority` counts for that action alone; `by` names who asked, for the history.
    """

    jobs: tuple[str, ...]
    action: Action
    priority: int
    by: str


@value
@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Which jobs: all conditions together, empty ones say nothing.

    `node` owns or worked on them; `folder` is an absolute path on their owner's machine, at or below
    which the source lies; times are those of submission, `until_ms` is outside.
    """

    states: tuple[str, ...] = ()
    folder: str = ""
    node: str = ""
    profile: str = ""
    tenant: str = ""
    since_ms: int = 0
    until_ms: int = 0


@COMMANDS.kind("sweep.start")
@dataclass(frozen=True, slots=True, kw_only=True)
class StartSweep:
    """Does one thing to all chosen jobs that are older than this command, step by step."""

    id: str
    action: Action
    priority: int
    chosen: Chosen
    by: str


@COMMANDS.kind("sweep.step")
@dataclass(frozen=True, slots=True, kw_only=True)
class StepSweep:
    """The coordinator's next step: these jobs, all chosen ones with a seq of at least `down_to`.

    Refused unless the sweep stands where the coordinator saw it (`cursor`), so that none is
    left out and none counted twice.
    """

    sweep: str
    cursor: int
    down_to: int
    jobs: tuple[str, ...]
    last: bool


@COMMANDS.kind("job.forget")
@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetJobs:
    """Removes jobs that are over, with their history; what was converted stays known by its content."""

    jobs: tuple[str, ...]


@COMMANDS.kind("node.release")
@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseNode:
    """A node that failed too often gets work again: its encoder was proven anew, or a person says so."""

    node: str
    by: str


@COMMANDS.kind("watch.add")
@dataclass(frozen=True, slots=True, kw_only=True)
class AddWatch:
    """A folder of a node's machine, whose films are converted as they appear."""

    id: str
    node: str
    folder: str
    profile: str
    settings: str
    """JSON: output, filters, settle time; read by that node alone."""


@COMMANDS.kind("watch.remove")
@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveWatch:
    """The folder is watched no more; jobs that it made go on."""

    id: str
    by: str


@COMMANDS.kind("profile.put")
@dataclass(frozen=True, slots=True, kw_only=True)
class PutProfile:
    """A profile that every node knows from now on, in place of one of that name; no job changes by it."""

    name: str
    definition: str
    """JSON; the proposing node judged it, and whoever uses it judges it again."""
    by: str


@COMMANDS.kind("profile.remove")
@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveProfile:
    """The profile is known no more; jobs that carry it go on."""

    name: str
    by: str


@COMMANDS.kind("tenant.put")
@dataclass(frozen=True, slots=True, kw_only=True)
class PutTenant:
    """How much of the mesh a tenant gets from now on, in place of what was said of it before.

    `share` weighs it beside others (1 where nothing is said), `slots` are leases that it has at once at
    most, `queued_jobs` and `queued_bytes` what it may have waiting; -1: any number.
    """

    name: str
    share: int
    slots: int
    by: str
    queued_jobs: int = NO_LIMIT
    queued_bytes: int = NO_LIMIT


@COMMANDS.kind("tenant.remove")
@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveTenant:
    """Nothing is said of this tenant any more; its jobs go on."""

    name: str
    by: str


Order = (
    ChangeJobs
    | StartSweep
    | StepSweep
    | ForgetJobs
    | ReleaseNode
    | AddWatch
    | RemoveWatch
    | PutProfile
    | RemoveProfile
    | PutTenant
    | RemoveTenant
)
