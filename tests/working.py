"""What real nodes do at this moment, seen from outside: their children, and the files of their work."""

from collections.abc import Iterable
from contextlib import suppress

import psutil

from tests.cluster import Node


def children(nodes: Iterable[Node]) -> list[str]:
    """Command lines of all programs that nodes started and that run now."""
    found: list[str] = []
    for node in nodes:
        assert node.process is not None
        for child in psutil.Process(node.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                found.append(" ".join(child.cmdline()))
    return [line for line in found if line]


def files_of_work(node: Node) -> list[str]:
    """Files that belong to work in a node's home: half made, finished, or on their way."""
    names = ("attempts", "incoming", "results", "pieces")
    work = [node.home / "cache" / name for name in names]
    return [str(path) for folder in work if folder.exists() for path in folder.rglob("*")]
