"""Live progress of jobs: kept in memory, told to every node, never written to the log."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Final, Literal

from mesh.codec import Vocabulary
from mesh.errors import WireError
from mesh.ids import NodeId
from mesh.messages import Notice
from node.signals import Signal

Phase = Literal["fetching", "encoding", "verifying", "returning"]
TOPIC: Final = "progress"
INTERVAL_MS: Final = 500
"""At most two reports a second and job leave a node."""
JOBS_MAX: Final = 10_000
PARTS_MAX: Final = 256
"""Attempts of one film that are shown together; more nodes than a mesh has slots."""
ID_CHARS_MAX: Final = 64
"""Of a job or attempt in another node's report: what is kept of all jobs must stay small."""
STALE_MS: Final = 15_000

PROGRESS = Vocabulary("progress")


@PROGRESS.kind("progress")
@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where an attempt is; `speed` is times real time, 0 totals are unknown."""

    job: str
    attempt: str
    node: str
    phase: Phase
    frames: int = 0
    frames_total: int = 0
    fps: float = 0.0
    speed: float = 0.0
    bytes_done: int = 0
    bytes_total: int = 0
    bytes_s: int = 0
    """How fast they come, 0 while nobody knows."""


class Pace:
    """How fast bytes come lately, and when that is worth telling; time is an argument.

    What was there already when it began does not count.
    """

    def __init__(self) -> None:
        self._told: tuple[int, int] | None = None
        self._rate = 0

    def note(self, done: int, total: int, now_ms: int) -> int | None:
        """Bytes a second, when it is time to tell: at the beginning, the end, and between at intervals."""
        if self._told is None:
            self._told = (done, now_ms)
            return 0
        before, since_ms = self._told
        passed_ms = now_ms - since_ms
        if passed_ms < INTERVAL_MS and done < total:
            return None
        if passed_ms >= INTERVAL_MS or not self._rate:
            lately = max(0, done - before) * 1_000 // max(1, passed_ms)
            # Half old, half new: steady to look at, and right within two seconds.
            self._rate = (self._rate + lately) // 2 if self._rate else lately
        self._told = (done, now_ms)
        return self._rate


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmProgress:
    """Of a film in pieces, as the ledger knows it: frames of finished parts and of all, and who runs.

    `leased` are the attempts at parts that nobody has finished, each with its part.
    """

    done: int
    total: int
    leased: Mapping[str, str]


def together(parts: Sequence[Progress], film: FilmProgress | None = None) -> Progress | None:
    """One progress of a job whose parts may run on several nodes; the eldest of them gives the name.

    The newest would be another with every report, and each a new line for who prints them. Parts that the ledger counts as finished are left out of what still runs.
    """
    if film is not None:
        parts = [part for part in parts if part.attempt in film.leased]
    if not parts:
        return None
    if film is None or film.done >= film.total:
        return parts[-1]
    # Of a part that runs twice counts who is further.
    of_part: dict[str, int] = {}
    for one in parts:
        frames = one.frames_total if one.phase == "verifying" else one.frames
        part = film.leased[one.attempt]
        of_part[part] = max(of_part.get(part, 0), frames)
    running = sum(of_part.values())
    phases = [part.phase for part in parts]
    busy = [part for part in parts if part.phase == "encoding"]
    return replace(
        min(parts, key=lambda part: part.attempt),
        phase="encoding" if running or busy else phases[-1],
        frames=min(film.done + running, film.total),
        frames_total=film.total,
        fps=sum(part.fps for part in busy),
        speed=sum(part.speed for part in busy),
    )


class ProgressBoard:
    """The newest progress of each attempt of each job, from this node and from others."""

    def __init__(
        self, own: NodeId, tell: Callable[[Notice], None], now_ms: Callable[[], int]
    ) -> None:
        self.changed = Signal()
        self._own = own
        self._tell = tell
        self._now_ms = now_ms
        self._board: OrderedDict[str, dict[str, tuple[int, Progress]]] = OrderedDict()
        self._sent: dict[str, tuple[int, Phase]] = {}
        self._news: set[str] = set()

    def report(self, progress: Progress) -> None:
        """Notes this node's own progress and tells the others, at most twice a second a job."""
        now_ms = self._now_ms()
        self._note(progress, now_ms)
        last_ms, phase = self._sent.get(progress.attempt, (-INTERVAL_MS, progress.phase))
        if now_ms - last_ms >= INTERVAL_MS or phase != progress.phase:
            self._sent.pop(progress.attempt, None)
            self._sent[progress.attempt] = (now_ms, progress.phase)
            while len(self._sent) > JOBS_MAX:
                del self._sent[next(iter(self._sent))]
            self._tell(Notice(topic=TOPIC, body=PROGRESS.encode(progress)))

    def receive(self, sender: NodeId, notice: Notice) -> None:
        """Takes another node's report; a report in the name of a third is refused."""
        progress: Progress = PROGRESS.decode(notice.body)
        if progress.node != sender:
            raise WireError(f"node {sender} reported progress of node {progress.node}")
        if max(len(progress.job), len(progress.attempt)) > ID_CHARS_MAX:
            raise WireError(f"node {sender} reported progress with an endless id")
        if not (isfinite(progress.fps) and isfinite(progress.speed)):
            raise WireError(f"node {sender} reported a speed that is no number")
        self._note(progress, self._now_ms())

    def _note(self, progress: Progress, now_ms: int) -> None:
        parts = self._board.setdefault(progress.job, {})
        parts.pop(progress.attempt, None)
        parts[progress.attempt] = (now_ms, progress)
        for attempt in [a for a, (at_ms, _) in parts.items() if now_ms - at_ms > STALE_MS]:
            del parts[attempt]
        while len(parts) > PARTS_MAX:
            del parts[next(iter(parts))]
        self._board.move_to_end(progress.job)
        self._news.add(progress.job)
        while len(self._board) > JOBS_MAX:
            self._news.discard(self._board.popitem(last=False)[0])
        self.changed.set()

    def of(self, job: str) -> list[Progress]:
        """The newest progress of each attempt of a job, unless it is old; the newest is the last."""
        now_ms = self._now_ms()
        found = self._board.get(job, {}).values()
        return [progress for at_ms, progress in found if now_ms - at_ms <= STALE_MS]

    def take_news(self) -> list[str]:
        """Jobs of which something was reported since this was asked last."""
        news = sorted(job for job in self._news if job in self._board)
        self._news.clear()
        return news

    def running(self) -> list[Progress]:
        """What is not old, by job."""
        return [progress for job in self._board for progress in self.of(job)]

    def over(self, job: str) -> None:
        """Forgets a job that ended."""
        for attempt in self._board.pop(job, {}):
            self._sent.pop(attempt, None)


def from_thread(
    loop: asyncio.AbstractEventLoop, board: ProgressBoard
) -> Callable[[Progress], None]:
    """A reporter that may be called from a transfer's or a hash's thread."""

    def report(progress: Progress) -> None:
        loop.call_soon_threadsafe(board.report, progress)

    return report
