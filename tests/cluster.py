"""Real nodes for integration tests: `mesh-node` processes and `mesh-cli` calls, nothing else.

A `Node` runs on this machine over loopback, or on a host of a `Lan`.  Everything goes through the
commands that a person types.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

from mesh.clock import monotonic_ms
from tests.netns import Lan

T = TypeVar("T")
MESH_NODE = (sys.executable, "-m", "node.cli.mesh_node")
MESH_CLI = (sys.executable, "-m", "node.cli.mesh_cli")
_NEVER = Event()


START_S = 60.0
"""A node is ready within a second or two; on a busy machine nothing else is worth failing for."""


def wait_for(what: str, check: Callable[[], T | None], timeout_s: float) -> T:
    """The first truthy answer of `check`; fails with `what` when the time is over."""
    deadline = monotonic_ms() + int(timeout_s * 1000)
    last: object = None
    while monotonic_ms() < deadline:
        try:
            last = check()
        except (CliError, json.JSONDecodeError) as error:
            last = error
        else:
            if last:
                return last  # type: ignore[return-value]  # truthy: the T that check promises
        _NEVER.wait(0.05)
    raise AssertionError(f"not within {timeout_s} s: {what}; last: {last!r}")


class CliError(AssertionError):
    """A command ended with another exit code than 0."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        super().__init__(f"exit {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
        self.exit_code = done.returncode


class Node:
    """One node: a home, a process while it runs, and commands to it."""

    def __init__(self, root: Path, name: str, lan: Lan | None = None, host: int = 0) -> None:
        self.name = name
        self.user_home = root / name
        self.home = self.user_home / "ds"
        self.films = self.user_home / "films"
        self.films.mkdir(parents=True)
        self.errors = root / f"{name}.log"
        self._lan, self._host = lan, host
        self.code: Path | None = None
        """The tree of another version, which runs instead of this one."""
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        made = {"HOME": str(self.user_home), "DARKSTREAM_HOME": str(self.home)}
        if self.code is not None:
            # Not from the working directory, which holds this version.
            made |= {"PYTHONPATH": str(self.code), "PYTHONSAFEPATH": "1"}
        return made

    def start(self, *options: str) -> "Node":
        """Starts the node; on loopback with free ports, on a LAN with the default ones."""
        assert self.process is None or self.process.poll() is not None
        words: list[str | Path] = [*MESH_NODE, "start", "--name", self.name]
        if self._lan is None:
            words += ["--listen", "127.0.0.1:0", "--interface", "lo", "--api", "127.0.0.1:0"]
        words += options
        with self.errors.open("ab") as log:
            if self._lan is not None:
                self.process = self._lan.run(
                    self._host, words, self.environment, stdout=log, stderr=log
                )
            else:
                self.process = subprocess.Popen(
                    [str(w) for w in words],
                    env={**os.environ, **self.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        return self

    def call(self, *words: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Runs `mesh-cli` on this node's machine."""
        argv = [*MESH_CLI, *words]
        if self._lan is not None:
            return self._lan.call(self._host, argv, self.environment, timeout_s=timeout_s)
        return subprocess.run(
            argv,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def cli(self, *words: str, timeout_s: float = 60) -> Any:
        """The JSON answer of a command that must succeed."""
        done = self.call(*words, "--json", timeout_s=timeout_s)
        if done.returncode != 0:
            raise CliError(done)
        return json.loads(done.stdout)

    def token(self, uses: int = 1) -> str:
        done = self.call("token", "create", "--uses", str(uses))
        if done.returncode != 0:
            raise CliError(done)
        return done.stdout.strip()

    def status(self) -> Any:
        return self.cli("status")

    def ready(self, timeout_s: float = START_S) -> "Node":
        """Waits until the node is a member and a coordinator is known."""
        wait_for(
            f"{self.name} is ready (log: {self.log_tail()})",
            lambda: (s := self.status())["state"] == "member" and s["coordinator"],
            timeout_s,
        )
        return self

    def sees(self, count: int, timeout_s: float = START_S) -> "Node":
        """Waits until this node counts so many living members."""
        wait_for(
            f"{self.name} sees {count} nodes",
            lambda: self.status()["nodes_alive"] == count,
            timeout_s,
        )
        return self

    def stop(self, timeout_s: float = 40) -> int:
        """SIGTERM, and the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=timeout_s)

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def log_tail(self) -> str:
        return self.errors.read_text(errors="replace")[-3_000:] if self.errors.exists() else ""


@contextlib.contextmanager
def cluster(root: Path, names: Sequence[str], lan: Lan | None = None) -> Generator[list[Node]]:
    """Nodes that are killed at the end, whatever happens."""
    nodes = [Node(root, name, lan, host) for host, name in enumerate(names, start=1)]
    try:
        yield nodes
    except BaseException:
        for node in nodes:
            print(f"--- {node.name}\n{node.log_tail()}", file=sys.stderr)
        raise
    finally:
        for node in nodes:
            node.kill()


def form(nodes: Sequence[Node], *options: str) -> None:
    """The first forms a mesh, the others join it with a token; waits until all see all."""
    nodes[0].start("--new-mesh", *options).ready()
    if len(nodes) > 1:
        token = wait_for("a token", lambda: nodes[0].token(len(nodes) - 1), START_S)
        for node in nodes[1:]:
            node.start("--join", token, *options)
        for node in nodes:
            node.ready().sees(len(nodes))
