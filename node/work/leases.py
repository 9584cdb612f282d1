"""The clocks of leases, on both sides; pure: every call takes this process's monotonic time.

No two machines' clocks are ever compared.  The worker counts from the moment it *sent* its last
acknowledged heartbeat and stops handing back before the coordinator, which counts from the moment
it *received* it, can take the lease away.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mesh.codec import Vocabulary
from mesh.ids import NodeId

WORK = Vocabulary("work")


@WORK.kind("worker.heartbeat")
@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerHeartbeat:
    """A worker lives and still has these attempts, begun or not; `accepting` is False while it drains."""

    attempts: tuple[str, ...]
    accepting: bool


@WORK.kind("worker.heartbeat_ack")
@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerHeartbeatAck:
    """The coordinator of `term` renewed the worker's leases; it wants `back` of those that wait for a slot."""

    term: int
    back: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTiming:
    """All in milliseconds; `fence` < `expiry` keeps a late worker from handing back an expired lease."""

    heartbeat_ms: int = 2_000
    suspect_ms: int = 6_000
    fence_ms: int = 15_000
    expiry_ms: int = 20_000

    def __post_init__(self) -> None:
        assert 0 < 2 * self.heartbeat_ms <= self.suspect_ms < self.fence_ms < self.expiry_ms


DEFAULT_TIMING: Final = LeaseTiming()


class LeaseClock:
    """The coordinator's side: when each worker was heard; made anew by every new coordinator.

    A new coordinator treats every worker as heard at its election: it waits one lease time, in
    which workers report, before it expires anything.
    """

    def __init__(self, timing: LeaseTiming, elected_ms: int) -> None:
        self._timing = timing
        self._elected_ms = elected_ms
        self._heard: dict[NodeId, tuple[int, bool]] = {}
        self._renewed: dict[str, int] = {}

    def heard(self, node: NodeId, heartbeat: WorkerHeartbeat, now_ms: int) -> None:
        """Renews the leases that the worker says it runs."""
        self._heard[node] = (now_ms, heartbeat.accepting)
        for attempt in heartbeat.attempts:
            self._renewed[attempt] = now_ms

    def is_heard(self, node: NodeId, now_ms: int) -> bool:
        """Whether the worker was heard lately."""
        heard_ms, _ = self._heard.get(node, (None, False))
        return heard_ms is not None and now_ms - heard_ms <= self._timing.suspect_ms

    def takes_work(self, node: NodeId, now_ms: int) -> bool:
        """Whether the worker was heard lately and is not draining."""
        return self.is_heard(node, now_ms) and self._heard[node][1]

    def expired(self, active: Iterable[tuple[str, int]], now_ms: int) -> tuple[str, ...]:
        """Of the active attempts (id, monotonic ms when first seen here), those unrenewed for too long."""
        active = tuple(active)
        known = {attempt for attempt, _ in active}
        self._renewed = {a: ms for a, ms in self._renewed.items() if a in known}
        return tuple(
            attempt
            for attempt, seen_ms in active
            if now_ms - max(self._renewed.get(attempt, 0), seen_ms, self._elected_ms)
            > self._timing.expiry_ms
        )


class Fence:
    """The worker's side: whether it may still hand a result back."""

    def __init__(self, timing: LeaseTiming, now_ms: int) -> None:
        self._timing = timing
        self._sent_ms = now_ms

    def acknowledged(self, sent_ms: int) -> None:
        """A heartbeat that was sent at this time has been answered."""
        self._sent_ms = max(self._sent_ms, sent_ms)

    def may_hand_back(self, now_ms: int) -> bool:
        """False once the coordinator might have given the lease to another."""
        return now_ms - self._sent_ms <= self._timing.fence_ms
