"""Turns changes of the ledger, of progress and of the mesh into the faces' events."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

import structlog

from ledger.queries import Reader
from mesh import clock
from node.consensus.driver import Driver
from node.consensus.replica import Replica
from node.faces.views import Names, job_summary, live_of, progress_view
from node.gateway.events import EventRing
from node.gateway.models import Event, JobSummary, Status
from node.membership.neighbours import Neighbours
from node.work.progress import Progress as Live
from node.work.progress import ProgressBoard

ROUND_S: Final = 0.25
UNDECIDED_ROUNDS: Final = 28
"""Without a coordinator for so many rounds (7 s: several elections, and who is silent is known) the log says what is lost."""
JOBS_A_ROUND: Final = 500
"""More changes in one round are told as a gap: a face then reads again what it shows."""


_log = structlog.get_logger("node")


class Feed:
    """Publishes into the ring until cancelled."""

    def __init__(
        self,
        *,
        ring: EventRing,
        driver: Driver,
        replica: Replica,
        board: ProgressBoard,
        neighbours: Neighbours,
        status: Callable[[], Awaitable[Status]],
    ) -> None:
        self._ring = ring
        self._driver = driver
        self._replica = replica
        self._board = board
        self._neighbours = neighbours
        self._status = status
        self._told_index = driver.applied_index
        self._unread = False
        """Jobs changed while nobody listened: who resumes reads the state anew."""
        self._mesh_seen: tuple[int, int] = (0, 0)
        self._undecided = 0

    async def run(self) -> None:
        """Looks four times a second; says nothing while nothing changes."""
        while True:
            await asyncio.sleep(ROUND_S)
            names: Names = {}
            news = self._board.take_news()
            if not self._ring.has_listeners:
                news = []  # the next listener sees the next report, at most half a second later
            changed = self._driver.applied_index > self._told_index
            if changed and not self._ring.has_listeners:
                self._told_index, self._unread = self._driver.applied_index, True
                changed = False
            elif self._unread and self._ring.has_listeners:
                self._publish(Event(id=0, kind="gap", at_ms=clock.wall_ms()))
                self._unread = False
            shown: list[Live] = []
            if changed or news:
                names, shown = await self._replica.read(partial(self._look, news))
            if changed:
                await self._tell_jobs(names)
            for live in shown:
                told = progress_view(live, names)
                self._publish(Event(id=0, kind="progress", at_ms=clock.wall_ms(), progress=told))
            seen = (self._driver.leader_changed.count, self._neighbours.changed.count)
            if seen[0] != self._mesh_seen[0]:
                status = await self._status()
                self._publish(Event(id=0, kind="mesh", at_ms=clock.wall_ms(), mesh=status))
            self._mesh_seen = seen
            self._undecided = self._undecided + 1 if self._driver.leader is None else 0
            if self._undecided == UNDECIDED_ROUNDS:
                _log.error("nothing is decided", notes=(await self._status()).notes)

    def _look(self, news: Sequence[str], reader: Reader) -> tuple[Names, list[Live]]:
        found = (live_of(reader, self._board, job) for job in news)
        return names_of(reader), [live for live in found if live is not None]

    async def _tell_jobs(self, names: Names) -> None:
        index, after = self._driver.applied_index, self._told_index

        def read(reader: Reader) -> list[JobSummary]:
            return [
                job_summary(
                    job, reader.attempts(job.id), live_of(reader, self._board, job.id), names
                )
                for job in reader.changed_jobs(after, JOBS_A_ROUND)
            ]

        jobs = await self._replica.read(read)
        self._told_index = index
        for job in jobs:
            self._publish(Event(id=0, kind="job", at_ms=clock.wall_ms(), job=job))
        if len(jobs) >= JOBS_A_ROUND:
            self._publish(Event(id=0, kind="gap", at_ms=clock.wall_ms()))

    def _publish(self, event: Event) -> None:
        self._ring.publish(event)


def names_of(reader: Reader) -> Names:
    """Node ids to names, of former members too."""
    return {member.node: member.name for member in reader.members()}
