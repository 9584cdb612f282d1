"""What real nodes do at this moment, seen from outside: their children, and the files of their work."""

from collections.abc import Iterable
from contextlib import suppress

import psutil

from tests.cluster import Node

WAITS = "node.media.warm_posix"


def children(nodes: Iterable[Node]) -> list[str]:
    """Command lines of all programs that nodes started and that run now.

    The Python that waits to fork children is none, those that it forked are.
    """
    found: list[str] = []
    for node in nodes:
        assert node.process is not None
        own = node.process.pid
        for child in psutil.Process(own).children(recursive=True):
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                line = " ".join(child.cmdline())
                if not (WAITS in line and child.ppid() == own):
                    found.append(line)
    return [line for line in found if line]


def files_of_work(node: Node) -> list[str]:
    """Files that belong to work in a node's home: half made, finished, or on their way."""
    names = ("attempts", "incoming", "results", "pieces")
    work = [node.home / "cache" / name for name in names]
    return [str(path) for folder in work if folder.exists() for path in folder.rglob("*")]
