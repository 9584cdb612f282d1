"""Follows jobs to their end: by events, with the state read again where events may be missing."""

from collections.abc import Iterable
from contextlib import closing
from threading import Event as Pause
from typing import Protocol

from mesh import clock
from mesh.errors import BusyError, UnreachableError
from node.cli.client import Api, ServerEvent
from node.cli.faults import Json

FINAL = ("done", "failed", "cancelled")
REFRESH_MS = 5_000
"""State is read again so often even while events come: an event that was never sent costs this much."""
REFRESH_JOBS_MAX = 50
"""Jobs read again at a time, the longest unread first."""
SILENT_MS_MAX = 30_000
"""A node that restarts is back by then; after it the person is told that the jobs go on without us."""
_AGAIN_S = 1.0


class Display(Protocol):
    """Shows how jobs go."""

    def update(self, job: Json) -> None:
        """A job's newest state; called again with every change."""
        ...

    def close(self) -> None:
        """Leaves the terminal as it was."""
        ...


class Follower:
    """Brings jobs to their end, as seen from here."""

    def __init__(self, api: Api, display: Display) -> None:
        self._api = api
        self._display = display
        self._open: dict[str, Json] = {}
        self._ended: dict[str, Json] = {}
        self._read_ms = 0

    def follow(self, jobs: Iterable[str]) -> dict[str, Json]:
        """Every job's last state by id, once all have ended.  Raises `UnreachableError` after 30 s of silence."""
        ids = list(jobs)
        self._open = {job: {} for job in ids}
        heard_ms = clock.monotonic_ms()
        while self._open:
            try:
                with closing(self._api.events()) as events:
                    for event in events:
                        heard_ms = clock.monotonic_ms()
                        self._on(event)
                        if not self._open:
                            break
                    else:
                        self._refresh()
            except BusyError:
                self._refresh()
                heard_ms = clock.monotonic_ms()
                Pause().wait(_AGAIN_S)
            except UnreachableError as error:
                if clock.monotonic_ms() - heard_ms > SILENT_MS_MAX:
                    raise UnreachableError(
                        error.what, "the jobs go on; look with `mesh-cli jobs` at any node"
                    ) from None
                Pause().wait(_AGAIN_S)
        return {job: self._ended[job] for job in ids}

    def _on(self, event: ServerEvent) -> None:
        if event.kind == "job":
            self._note(event.data["job"])
        elif event.kind == "progress":
            self._progress(event.data["progress"])
        stale = clock.monotonic_ms() - self._read_ms > REFRESH_MS
        # The first line of a stream is a comment: what changed before it is read now.
        if event.kind == "gap" or stale or (not event.kind and self._read_ms == 0):
            self._refresh()

    def _note(self, job: Json) -> None:
        known = self._open.get(job["id"])
        if known is None:
            return
        merged = {**known, **job}
        if job["state"] in FINAL:
            del self._open[job["id"]]
            self._ended[job["id"]] = merged
        else:
            self._open[job["id"]] = merged
        self._display.update(merged)

    def _progress(self, progress: Json) -> None:
        known = self._open.get(progress["job"])
        if known:
            known["progress"] = progress
            self._display.update(known)

    def _refresh(self) -> None:
        self._read_ms = clock.monotonic_ms()
        for job in list(self._open)[:REFRESH_JOBS_MAX]:
            self._open[job] = self._open.pop(job)
            self._note(self._api.get(f"/jobs/{job}"))
