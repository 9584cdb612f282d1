"""When and how a node works, set by its owner while it runs: pause, drain, hours, priority, threads, labels.

Told to the node that it concerns, from there or through the mesh, which keeps it in its home; what
a person never set comes from the configuration.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import structlog

from ledger.placing import LABEL_WORDS, LABELS_MAX, is_label
from mesh.codec import Vocabulary
from mesh.errors import UsageError, WireError
from mesh.ids import NodeId
from node.requests import Requests
from node.work.hours import parse_hours
from node.work.rules import WorkRules

METHOD: Final = "node.work"
AS_CONFIGURED: Final = -1
"""Takes back a number that a person set."""
NICE_MAX: Final = 19
THREADS_MAX: Final = 1_024
FINISH_S_MAX: Final = 30 * 86_400
CONFIGURED_HOURS: Final = ("default",)
"""Takes back the hours that a person set."""
ALWAYS: Final = ("always",)
CONFIGURED_LABELS: Final = ("default",)
NO_LABELS: Final = ("none",)
MEMORY_MIB_MAX: Final = 1 << 24

WORKING: Final = Vocabulary("working")

_log = structlog.get_logger("worker")


@WORKING.kind("set")
@dataclass(frozen=True, slots=True, kw_only=True)
class SetWork:
    """What to change; None leaves as it is.  `finish_s`: a drain gives back then what still runs."""

    paused: bool | None = None
    draining: bool | None = None
    finish_s: int | None = None
    hours: tuple[str, ...] | None = None
    busy_percent: int | None = None
    nice: int | None = None
    threads: int | None = None
    gpu_percent: int | None = None
    memory_mib: int | None = None
    labels: tuple[str, ...] | None = None


@WORKING.kind("kept")
@dataclass(frozen=True, slots=True, kw_only=True)
class KeptWork:
    """What a person set; None: as configured."""

    paused: bool = False
    draining: bool = False
    hours: tuple[str, ...] | None = None
    busy_percent: int | None = None
    nice: int | None = None
    threads: int | None = None
    gpu_percent: int | None = None
    memory_mib: int | None = None
    labels: tuple[str, ...] | None = None


@WORKING.kind("held")
@dataclass(frozen=True, slots=True, kw_only=True)
class HeldWork:
    """What holds now; `closed` is why the node takes no new work, `running` its attempts."""

    paused: bool
    draining: bool
    hours: tuple[str, ...]
    busy_percent: int
    nice: int
    threads: int
    closed: str
    running: int
    gpu_percent: int = 0
    memory_mib: int = 0
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfiguredWork:
    """What the configuration says."""

    hours: tuple[str, ...] = ()
    busy_percent: int = 0
    nice: int = 10
    threads: int = 0
    gpu_percent: int = 0
    memory_mib: int = 0
    labels: tuple[str, ...] = ()


class WorkStore(Protocol):
    """Where a node keeps what was set."""

    def load(self) -> KeptWork:
        """What was kept last."""
        ...

    def save(self, kept: KeptWork, /) -> None:
        """Replaces it, durably.  Raises `StorageError`."""
        ...


def changed(kept: KeptWork, wanted: SetWork) -> KeptWork:
    """What is kept after a change.  Raises `UsageError` for values that make no sense."""
    bounds = (
        ("nice", wanted.nice, NICE_MAX),
        ("threads", wanted.threads, THREADS_MAX),
        ("percent of use", wanted.busy_percent, 100),
        ("percent of use of a graphics chip", wanted.gpu_percent, 100),
        ("MiB of memory", wanted.memory_mib, MEMORY_MIB_MAX),
    )
    for name, number, most in bounds:
        if number is not None and not AS_CONFIGURED <= number <= most:
            raise UsageError(f"{number} is no number for {name}", f"give 0 to {most}")
    if wanted.finish_s is not None and not 0 <= wanted.finish_s <= FINISH_S_MAX:
        raise UsageError(f"{wanted.finish_s} s are no time to finish in", "give for example 2h")
    return replace(
        kept,
        paused=kept.paused if wanted.paused is None else wanted.paused,
        draining=kept.draining if wanted.draining is None else wanted.draining,
        hours=_hours(kept.hours, wanted.hours),
        busy_percent=_merged(kept.busy_percent, wanted.busy_percent),
        nice=_merged(kept.nice, wanted.nice),
        threads=_merged(kept.threads, wanted.threads),
        gpu_percent=_merged(kept.gpu_percent, wanted.gpu_percent),
        memory_mib=_merged(kept.memory_mib, wanted.memory_mib),
        labels=_labels(kept.labels, wanted.labels),
    )


def _hours(
    before: tuple[str, ...] | None, wanted: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    if wanted is None:
        return before
    if wanted == CONFIGURED_HOURS:
        return None
    if wanted == ALWAYS:
        return ()
    _parsed(wanted)
    return wanted


def _labels(
    before: tuple[str, ...] | None, wanted: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    if wanted is None:
        return before
    if wanted == CONFIGURED_LABELS:
        return None
    if wanted == NO_LABELS:
        return ()
    if len(wanted) > LABELS_MAX or not all(map(is_label, wanted)):
        raise UsageError(
            f"{', '.join(wanted)[:200]} are no labels",
            f"at most {LABELS_MAX}; {LABEL_WORDS}",
        )
    return tuple(sorted(set(wanted)))


def _parsed(texts: Sequence[str]) -> WorkRules:
    try:
        return WorkRules(hours=parse_hours(texts))
    except ValueError as error:
        raise UsageError(str(error), "for example --hours 'mon-fri 22:00-06:00'") from None


def _merged(before: int | None, wanted: int | None) -> int | None:
    if wanted is None:
        return before
    return None if wanted == AS_CONFIGURED else wanted


class Rules(Protocol):
    """Who keeps to the rules."""

    @property
    def closed(self) -> str:
        """Why the node takes no new work now."""
        ...

    def use(self, rules: WorkRules, finish_s: int | None = None) -> None:
        """These rules from now on."""
        ...


class Working:
    """Holds what was set, hears of changes, and tells who keeps to them."""

    def __init__(
        self,
        *,
        store: WorkStore,
        configured: ConfiguredWork,
        keeper: Rules,
        running: Callable[[], int],
    ) -> None:
        """`running` counts the attempts that run now."""
        self._store = store
        self._configured = configured
        self._keeper = keeper
        self._running = running
        self._kept = store.load()
        keeper.use(self._rules())

    def listen(self, requests: Requests) -> None:
        """Hears changes from now on; only members can speak to it."""
        requests.register(METHOD, self._serve)

    def change(self, wanted: SetWork) -> HeldWork:
        """Holds at once and over a restart.  Raises `UsageError`, `StorageError`."""
        kept = changed(self._kept, wanted)
        if kept != self._kept:
            self._store.save(kept)
        self._kept = kept
        self._keeper.use(self._rules(), wanted.finish_s)
        return self.held()

    def held(self) -> HeldWork:
        """What holds now."""
        rules = self._rules()
        return HeldWork(
            paused=rules.paused,
            draining=rules.draining,
            hours=self._hours_now(),
            busy_percent=rules.busy_percent,
            nice=rules.nice,
            threads=rules.threads,
            closed=self._keeper.closed,
            running=self._running(),
            gpu_percent=rules.gpu_percent,
            memory_mib=rules.memory_mib,
            labels=self.labels,
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """What the owner says of this node, for jobs that ask for it."""
        return self._configured.labels if self._kept.labels is None else self._kept.labels

    def _hours_now(self) -> tuple[str, ...]:
        return self._configured.hours if self._kept.hours is None else self._kept.hours

    def _rules(self) -> WorkRules:
        kept, configured = self._kept, self._configured
        return replace(
            _parsed(self._hours_now()),
            paused=kept.paused,
            draining=kept.draining,
            busy_percent=_or(kept.busy_percent, configured.busy_percent),
            nice=_or(kept.nice, configured.nice),
            threads=_or(kept.threads, configured.threads),
            gpu_percent=_or(kept.gpu_percent, configured.gpu_percent),
            memory_mib=_or(kept.memory_mib, configured.memory_mib),
        )

    async def _serve(self, caller: NodeId, body: bytes) -> bytes:
        wanted = WORKING.decode(body)
        if not isinstance(wanted, SetWork):
            raise WireError("not a change of work")
        held = self.change(wanted)
        if wanted != SetWork():
            _log.info("work changed", member=caller, closed=held.closed)
        return WORKING.encode(held)


def _or(kept: int | None, configured: int) -> int:
    return configured if kept is None else kept
