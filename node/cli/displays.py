"""Progress for people: bars in a terminal, a line for each step when piped, nothing for programs."""

import sys
from pathlib import PurePath
from typing import TYPE_CHECKING

from node.cli.faults import Json, safe
from node.cli.follow import FINAL, Display
from node.cli.show import progress_text, result_lines, share_of

if TYPE_CHECKING:
    from rich.progress import TaskID

STEP_PERCENT = 10
"""A piped log gets a line every ten percent of encoding."""
BARS_MAX = 20
"""Bars at a time; more jobs than lines of a terminal cannot be watched."""


def display_for(*, as_json: bool) -> Display:
    """The display that fits where the output goes."""
    if as_json:
        return Silent()
    return Bars() if sys.stdout.isatty() else Lines()


class Silent:
    """For programs: they read the document at the end."""

    def update(self, job: Json) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def film(job: Json) -> str:
    """The film's name without its folder."""
    return safe(PurePath(str(job.get("source", job["id"]))).name)


def _where(job: Json) -> str:
    progress = job.get("progress")
    node = progress["node"] if progress else ", ".join(job.get("nodes", []))
    return f" on {safe(node)}" if node else ""


class Lines:
    """One line for each change of state, each phase and each ten percent of encoding."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}

    def update(self, job: Json) -> None:
        """Prints when there is something new."""
        state, progress = job["state"], job.get("progress")
        text = state if state in (*FINAL, "queued") else f"{state}{_where(job)}"
        if state == "running" and progress:
            phase, share = progress["phase"], share_of(progress)
            step = int((share or 0) * 100) // STEP_PERCENT * STEP_PERCENT
            text = f"{phase}{f' {step} %' if phase == 'encoding' and share else ''}{_where(job)}"
        if self._told.get(job["id"]) == text:
            return
        self._told[job["id"]] = text
        print(f"{film(job)}: {text}", flush=True)

    def close(self) -> None:
        """Nothing is held."""


class Bars:
    """One bar for each film under way: phase, node, share, frames a second, time left."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415 - start-up time

        self._bars = Progress(
            TextColumn("{task.fields[film]}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[text]}", markup=False),
            expand=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._bars.start()

    def update(self, job: Json) -> None:
        """Moves the job's bar; an ended job leaves a line above the bars."""
        if job["state"] in FINAL:
            task = self._tasks.pop(job["id"], None)
            if task is not None:
                self._bars.remove_task(task)
            self._bars.console.print(f"{film(job)}: {job['state']}", markup=False, highlight=False)
            return
        if job["state"] == "queued" and job["id"] not in self._tasks:
            return
        task = self._tasks.get(job["id"])
        if task is None:
            if len(self._tasks) >= BARS_MAX:
                return
            task = self._tasks[job["id"]] = self._bars.add_task("", film=film(job), text="")
        progress = job.get("progress")
        share = share_of(progress) if progress else None
        text = f"{progress_text(progress) or job['state']}{_where(job)}{time_left(progress)}"
        self._bars.update(task, total=1.0, completed=share or 0.0, text=text)

    def close(self) -> None:
        """Gives the terminal back."""
        self._bars.stop()


def time_left(progress: Json | None) -> str:
    """`, 1:20 left` where a speed is known."""
    seconds = (progress or {}).get("left_s")
    return f", {seconds // 60}:{seconds % 60:02d} left" if seconds is not None else ""


def print_results(jobs: list[Json]) -> None:
    """What became of every film that is done."""
    for job in jobs:
        if job["state"] == "done" and job.get("result"):
            for line in result_lines(job):
                print(safe(line))
