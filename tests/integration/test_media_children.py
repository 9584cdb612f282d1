"""Children of the node: bounded, below normal priority, and gone when the call is over."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from mesh.clock import monotonic_ms
from node.media import run_ffmpeg
from node.media.child import HELD, HeldFile, Limits, OnProgress, RunResult, held_in
from node.media.progress import FFmpegProgress
from node.media.run_ffmpeg import FFmpegRunner
from tests.media_clips import ffmpeg

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="children here are shell commands")
SOON_S = 2.0
"""Cancel reaches FFmpeg within two seconds (DESIGN.md)."""


def run(command: list[str], limits: Limits, on_progress: OnProgress | None = None) -> RunResult:
    return asyncio.run(FFmpegRunner().run(command, limits=limits, on_progress=on_progress))


def shell(script: str, **limits: int) -> RunResult:
    return run(["/bin/sh", "-c", script], replace(Limits(time_ms=20_000), **limits))


def until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = monotonic_ms() + seconds * 1000
    while monotonic_ms() < deadline:
        if condition():
            return True
        os.sched_yield()
    return condition()


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_what_a_child_says_and_how_it_ends() -> None:
    ended = shell("echo out; echo '[error] err' >&2; exit 3")
    assert (ended.exit_code, ended.reason, ended.stdout) == (3, "exited", b"out\n")
    assert ended.stderr.errors == 1
    assert not ended.ok
    assert shell("exit 0").ok


@pytest.mark.skipif(not Path(HELD).is_dir(), reason="files are held by number on Linux alone")
def test_a_held_file_is_opened_whatever_its_name_leads_to_by_now(tmp_path: Path) -> None:
    film, other = tmp_path / "film", tmp_path / "other"
    film.write_bytes(b"the film ")
    other.write_bytes(b"a secret")
    with film.open("rb") as file, other.open("rb") as open_too:
        film.rename(tmp_path / "elsewhere")
        film.symlink_to(other)
        held = HeldFile(file.fileno())
        command = ["/bin/cat", held.__fspath__(), held.__fspath__()]
        ended = run(command, Limits(time_ms=20_000))
        assert ended.stdout == b"the film the film ", "each opening begins at the start"
        # People read a name; what is no held file stays as it is.
        assert ended.command == ("/bin/cat", *[str(tmp_path / "elsewhere")] * 2)
        assert held_in(["-i", f"file:{HELD}7", f"{HELD}7", f"{HELD}x", "7"]) == (7,)
        listed = run(["/bin/ls", HELD, held.__fspath__()], Limits(time_ms=20_000)).stdout.split()
        assert str(file.fileno()).encode() in listed
        assert str(open_too.fileno()).encode() not in listed, "it was not given to this child"


def test_a_child_that_is_killed_by_others() -> None:
    ended = shell("kill -9 $$")
    assert (ended.exit_code, ended.signal, ended.reason) == (None, 9, "signal")


def test_a_program_that_is_not_there() -> None:
    ended = run(["/nowhere/ffmpeg"], Limits(time_ms=1_000))
    assert (ended.reason, ended.exit_code) == ("start", None)
    assert "no such program" in ended.stderr.tail


def test_a_program_that_is_no_program(tmp_path: Path) -> None:
    broken = tmp_path / "ffmpeg"
    broken.write_bytes(b"\x00\x01\x02")
    broken.chmod(0o755)
    ended = run([str(broken)], Limits(time_ms=5_000))
    assert not ended.ok
    assert "cannot start" in ended.stderr.tail


def test_a_child_has_low_priority_no_input_no_core_and_a_session_of_its_own() -> None:
    ended = shell(
        "nice; ulimit -c; cat; ps -o sid= -p $$ 2>/dev/null || cut -d' ' -f6 /proc/$$/stat; echo $$"
    )
    nice, core, session, pid = ended.stdout.split()
    assert int(nice) >= 10
    group = Path("/proc/self/autogroup")
    if group.exists():  # Linux weighs sessions first, and nice within one
        assert shell(f"cat {group}").stdout.split()[-1] == b"10"
        # Empty for a process that was in no session of its own when it started.
        assert group.read_text().split()[-1:] != ["10"]
    assert core == b"0"
    assert session == pid


def test_secrets_stay_with_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKSTREAM_API_KEY", "k7Qx-private")
    monkeypatch.setenv("FFREPORT", "file=/tmp/x")
    said = shell("env").stdout
    assert b"k7Qx-private" not in said
    assert b"FFREPORT" not in said
    assert b"PATH=" in said


@pytest.mark.parametrize(
    ("script", "reason", "limits"),
    [
        ("sleep 60", "time", {"time_ms": 300}),
        ("sleep 60 & sleep 60", "time", {"time_ms": 300}),
        ("trap '' TERM INT HUP; while :; do sleep 1; done", "time", {"time_ms": 300}),
        ("yes", "stdout", {"stdout_bytes": 1 << 20}),
        ("yes >&2", "stderr", {"stderr_bytes": 1 << 20}),
    ],
)
def test_what_never_ends_is_ended(script: str, reason: str, limits: dict[str, int]) -> None:
    ended = shell(script, **limits)
    assert ended.reason == reason
    assert len(ended.stdout) <= 1 << 20
    assert ended.duration_ms < 10_000


def test_grandchildren_that_hold_the_pipes_do_not_hold_the_call() -> None:
    ended = shell("sleep 60 & echo $!; exit 0")
    assert ended.ok
    assert ended.duration_ms < 10_000
    assert until(lambda: not alive(int(ended.stdout)))


def test_a_child_cannot_write_or_take_more_than_its_limits(tmp_path: Path) -> None:
    big = tmp_path / "big"
    written = shell(f"head -c 4000000 /dev/zero > {big}", output_bytes=1_000_000)
    assert written.exit_code != 0
    assert written.stderr.said("file_limit")
    assert big.stat().st_size <= 1_000_000
    if sys.platform == "linux":
        hungry = [sys.executable, "-c", "x = bytearray(900 << 20)"]
        ended = run(hungry, Limits(time_ms=20_000, memory_bytes=200 << 20))
        assert "MemoryError" in ended.stderr.tail


@pytest.mark.skipif(sys.platform != "linux", reason="nothing else limits memory from outside")
def test_the_memory_that_a_person_allows_holds_for_encoders_that_begin_then() -> None:
    runner = FFmpegRunner()

    def said(on_progress: OnProgress | None) -> str:
        hungry = [sys.executable, "-c", "x = bytearray(500 << 20)"]
        limits = Limits(time_ms=20_000, memory_bytes=900 << 20)
        return asyncio.run(runner.run(hungry, limits=limits, on_progress=on_progress)).stderr.tail

    def encoder() -> str:
        return said(lambda _: None)

    assert not encoder()
    runner.use_memory(200)
    assert "MemoryError" in encoder()
    assert not said(None), "probes are short, and others wait for them"
    runner.use_memory(2_000)
    assert not encoder()
    runner.use_memory(0)
    assert not encoder()


def test_progress_without_end_is_ended() -> None:
    ended = run(
        ["/bin/sh", "-c", "yes frame=1"], Limits(time_ms=20_000), on_progress=lambda _: None
    )
    assert ended.reason == "stdout"


def test_a_child_is_ended_before_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all of it must be free, every disk is nearly full."""
    monkeypatch.setattr(run_ffmpeg, "DISK_RESERVE_BYTES", 1 << 62)
    limits = Limits(time_ms=20_000, writes=tmp_path / "out")
    assert run(["/bin/sh", "-c", "exit 0"], replace(limits, writes=None)).ok
    monkeypatch.setattr(run_ffmpeg, "DISK_RESERVE_PART", 1)
    assert run(["/bin/sh", "-c", "sleep 60"], limits).reason == "disk"


def test_no_progress_is_a_stall() -> None:
    script = "while :; do printf 'frame=1\\nout_time_us=5\\nprogress=continue\\n'; sleep 0.05; done"
    seen: list[FFmpegProgress] = []
    ended = run(
        ["/bin/sh", "-c", script], Limits(time_ms=20_000, stall_ms=600), on_progress=seen.append
    )
    assert (ended.reason, ended.progress) == ("stalled", FFmpegProgress(frame=1, out_time_us=5))
    assert len(seen) > 2


TALKS = 'while :; do i=$((i+1)); printf "frame=$i\\nprogress=continue\\n"; sleep 0.05; done'


def test_a_child_that_is_stopped_from_outside_is_noticed_by_its_silence() -> None:
    """As a hung FFmpeg: its frames grew, and nothing is heard any more; no child is left."""
    groups: list[int] = []

    def stop(block: FFmpegProgress) -> None:
        if block.frame == 3:
            groups.extend(child.pid for child in psutil.Process().children())
            os.kill(groups[0], signal.SIGSTOP)

    limits = Limits(time_ms=60_000, stall_ms=60_000)
    begun_ms = monotonic_ms()
    work = FFmpegRunner(silent_ms=700).run(
        ["/bin/sh", "-c", TALKS], limits=limits, on_progress=stop
    )
    ended = asyncio.run(work)
    assert ended.reason == "stalled"
    assert 700 <= monotonic_ms() - begun_ms < 10_000
    assert until(lambda: not alive(groups[0]))


def test_what_its_owner_suspends_goes_on_later_and_loses_no_time() -> None:
    async def main() -> tuple[RunResult, list[int]]:
        runner = FFmpegRunner(silent_ms=400)
        seen: list[int] = []
        script = TALKS.replace("while :", "while [ ${i:-0} -lt 40 ]")
        limits = Limits(time_ms=6_000, stall_ms=400)
        run = runner.run(
            ["/bin/sh", "-c", script], limits=limits, on_progress=lambda b: seen.append(b.frame)
        )
        work = asyncio.ensure_future(run)
        await asyncio.wait((work,), timeout=0.5)
        assert seen
        runner.suspend(still=True)
        await asyncio.wait((work,), timeout=0.2)
        before = len(seen)
        await asyncio.wait((work,), timeout=1.2)
        assert len(seen) == before, "it stands still"
        assert not work.done(), "and no limit ends it"
        runner.suspend(still=False)
        return await work, seen

    ended, seen = asyncio.run(main())
    assert ended.reason == "exited"
    assert seen[-1] == 40


def test_progress_keeps_a_slow_child_alive() -> None:
    script = 'i=0; while [ $i -lt 12 ]; do i=$((i+1)); printf "frame=$i\\nprogress=continue\\n"; sleep 0.1; done'
    ended = run(
        ["/bin/sh", "-c", script],
        Limits(time_ms=20_000, stall_ms=1_000),
        on_progress=lambda _: None,
    )
    assert ended.ok
    assert ended.duration_ms > 1_000


def test_a_reported_size_beyond_the_limit_ends_it() -> None:
    script = "printf 'total_size=5000\\nprogress=continue\\n'; sleep 60"
    limits = Limits(time_ms=20_000, output_bytes=4_000)
    ended = run(["/bin/sh", "-c", script], limits, on_progress=lambda _: None)
    assert ended.reason == "output"


ENDLESS = ["-f", "lavfi", "-i", "testsrc2=s=320x240:r=25", "-c:v", "libx264", "-f", "matroska"]


async def cancelled_once(started: asyncio.Event, work: Awaitable[RunResult]) -> float:
    task = asyncio.ensure_future(work)
    await asyncio.wait_for(started.wait(), 20)
    before = monotonic_ms()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return (monotonic_ms() - before) / 1000


def test_cancelling_kills_a_real_ffmpeg_at_once(tmp_path: Path) -> None:
    output = str(tmp_path / "x.mkv")
    words = [
        ffmpeg(),
        "-v",
        "error",
        "-nostdin",
        "-progress",
        "pipe:1",
        "-stats_period",
        "0.1",
        *ENDLESS,
        output,
    ]

    def running() -> list[psutil.Process]:
        return [p for p in psutil.Process().children(recursive=True) if output in p.cmdline()]

    async def scenario() -> float:
        started = asyncio.Event()
        work = FFmpegRunner().run(
            words, limits=Limits(time_ms=60_000), on_progress=lambda _: started.set()
        )
        task = asyncio.ensure_future(cancelled_once(started, work))
        await started.wait()
        assert running()
        return await task

    assert asyncio.run(scenario()) < SOON_S
    assert not running()


def test_cancelling_twice_while_the_child_starts_leaves_nothing() -> None:
    mark = f"sleep 61.{os.getpid()}"

    async def scenario() -> None:
        for turns in range(12):
            task = asyncio.ensure_future(
                FFmpegRunner().run(["/bin/sh", "-c", mark], limits=Limits(time_ms=60_000))
            )
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(scenario())
    left = [p for p in psutil.Process().children(recursive=True) if mark in " ".join(p.cmdline())]
    assert not left


PARENT = """
import asyncio, sys
from node.media.child import Limits
from node.media.run_ffmpeg import FFmpegRunner
asyncio.run(FFmpegRunner().run(["/bin/sh", "-c", "echo $$ > " + sys.argv[1] + "; exec sleep 60"],
            limits=Limits(time_ms=60_000)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_child_dies_with_a_node_that_is_killed(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(told)])
    try:
        assert until(lambda: told.is_file() and bool(told.read_text().strip()))
        pid = int(told.read_text())
        assert alive(pid)
        parent.send_signal(signal.SIGKILL)
        parent.wait(10)
        assert until(lambda: not alive(pid), SOON_S)
    finally:
        parent.kill()
        parent.wait()
