"""Small files of one peer travel together; whoever gives up leaves nothing behind that is written later."""

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from typing import TypeVar

import pytest

from mesh.errors import NotAllowedError, TransferError, UnreachableError
from mesh.ids import NodeId
from mesh.transfer import Brought, Manifest, NextFile, Wanted
from mesh.transfer_files import PartialFile
from mesh.transport import CHUNK_BYTES
from node.work.small_files import SmallFiles
from tests.meshwork import eventually

T = TypeVar("T")
ANNA, BERT = NodeId("anna"), NodeId("bert")
SMALL = Manifest(size=3, digest="0" * 64)


class Peer:
    """Gives what is asked for, in a thread, when it is let."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.runs: list[list[str]] = []
        self.fault: Exception | None = None
        self.refuses = ""
        self.took = threading.Event()

    def several(
        self, peer: NodeId, next_file: NextFile, should_stop: Callable[[], bool]
    ) -> Generator[Brought]:
        names: list[str] = []
        self.runs.append(names)
        taken: list[Wanted] = []
        while (one := next_file()) is not None:
            taken.append(one)
            names.append(one.handle)
        self.took.set()
        assert self.may.wait(10)
        if self.fault is not None:
            raise self.fault
        for one in taken:
            if one.claim():
                refused = one.handle == self.refuses
                yield Brought(one, NotAllowedError("not yours") if refused else None)

    async def run(self, work: Callable[[Callable[[], bool]], T]) -> T:
        return await asyncio.to_thread(work, lambda: False)


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
def files(peer: Peer) -> SmallFiles:
    return SmallFiles(peer.several, peer.run, PartialFile)


Test = Callable[[Peer, SmallFiles], Coroutine[None, None, None]]


def on_a_loop(test: Test) -> Callable[[Peer, SmallFiles], None]:
    @functools.wraps(test)
    def run(peer: Peer, files: SmallFiles) -> None:
        asyncio.run(test(peer, files))

    return run


def wanted(files: SmallFiles, name: str, peer: NodeId = ANNA) -> asyncio.Task[None]:
    return asyncio.create_task(files.bring(peer, name, Path("/nowhere") / name, SMALL))


def test_what_is_small() -> None:
    assert SmallFiles.are(Manifest(size=CHUNK_BYTES, digest=""))
    assert not SmallFiles.are(Manifest(size=CHUNK_BYTES + 1, digest=""))


@on_a_loop
async def test_what_is_wanted_at_the_same_time_goes_together(peer: Peer, files: SmallFiles) -> None:
    tasks = [wanted(files, name) for name in "abc"]
    await eventually(peer.took.is_set)
    later = [wanted(files, name) for name in "de"]
    await asyncio.sleep(0)
    peer.may.set()
    await asyncio.gather(*tasks, *later)
    assert peer.runs == [["a", "b", "c"], ["d", "e"]]
    await wanted(files, "f")
    assert peer.runs[-1] == ["f"]


@on_a_loop
async def test_peers_are_asked_apart(peer: Peer, files: SmallFiles) -> None:
    peer.may.set()
    await asyncio.gather(wanted(files, "a"), wanted(files, "b", BERT))
    assert sorted(peer.runs) == [["a"], ["b"]]


@on_a_loop
async def test_one_that_fails_is_told_alone(peer: Peer, files: SmallFiles) -> None:
    peer.refuses = "b"
    peer.may.set()
    done = await asyncio.gather(*(wanted(files, n) for n in "abc"), return_exceptions=True)
    assert [type(one) for one in done] == [type(None), NotAllowedError, type(None)]


@on_a_loop
async def test_a_peer_that_is_gone_is_told_to_all(peer: Peer, files: SmallFiles) -> None:
    peer.fault = UnreachableError("nobody answers")
    tasks = [wanted(files, name) for name in "ab"]
    await eventually(peer.took.is_set)
    tasks.append(wanted(files, "c"))
    await asyncio.sleep(0)
    peer.may.set()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in done] == [UnreachableError] * 3
    peer.fault = None
    await wanted(files, "d")


@on_a_loop
async def test_a_fault_of_ours_is_no_silence(peer: Peer, files: SmallFiles) -> None:
    peer.fault = ZeroDivisionError()
    peer.may.set()
    with pytest.raises(TransferError):
        await wanted(files, "a")


@on_a_loop
async def test_who_gives_up_before_it_came_waits_for_nothing(peer: Peer, files: SmallFiles) -> None:
    kept, dropped = wanted(files, "a"), wanted(files, "b")
    await eventually(peer.took.is_set)
    dropped.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dropped  # though the peer still holds it back
    queued = wanted(files, "c")
    await asyncio.sleep(0)
    queued.cancel()
    with pytest.raises(asyncio.CancelledError):
        await queued
    peer.may.set()
    await kept
    assert peer.runs == [["a", "b"]]
