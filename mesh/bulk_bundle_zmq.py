"""Small files over one connection: several in one answer, several answers on their way.

A file of its own exchange costs more than its bytes: a thread that is woken, a message each way, a
sync of the folder.  A bundle is asked and answered as a chunk is, and its files are made durable
together.  Whatever goes wrong with one file of it is left to an exchange of its own, which tells why.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Final

import zmq

from mesh import clock
from mesh.bulk_lane_zmq import LOOK_MS, Lane, Line, Lost
from mesh.digests import chunk_digest, file_digest
from mesh.download import ASK_AGAIN_MIN_MS, GIVE_UP_MS
from mesh.errors import DarkStreamError, TransferError
from mesh.transfer import (
    BUNDLE_FILES_MAX,
    BUNDLE_HANDLE_CHARS_MAX,
    Brought,
    BundleAnswer,
    BundleRequest,
    NextFile,
    Waiting,
    Wanted,
)
from mesh.transport import CHUNK_BYTES, WINDOW_BYTES_MIN

FLYING_MAX: Final = WINDOW_BYTES_MIN // CHUNK_BYTES
"""Bundles on their way: what a transfer of chunks begins with."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """What a bundle came to; `alone` has to be asked for again, each by itself."""

    brought: tuple[Brought, ...] = ()
    alone: tuple[Wanted, ...] = ()


class Bundles:
    """Brings small files over a lane until no more are wanted; one thread's."""

    def __init__(self, lane: Lane, next_file: NextFile) -> None:
        self._lane = lane
        self._next_file = next_file
        self._held: Wanted | None = None
        self._dry = False
        self._number = 0
        self._flying: dict[int, list[Wanted]] = {}
        self._heard = False
        self._arrived_ms = self._progress_ms = clock.monotonic_ms()

    def run(self) -> Generator[Arrived]:
        """What arrived, bundle by bundle.  Raises `TransferError`, `UnreachableError`, `StoppedError`."""
        while True:
            with self._lane.connected() as line:
                for number in self._flying:
                    self._ask_for(line, number)
                while True:
                    self._lane.check_stop()
                    wait_ms, large = self._ask(line)
                    if large:
                        yield Arrived(alone=tuple(large))
                    if not self._flying and self._dry:
                        return
                    arrived = self._take(line, line.wait(wait_ms))
                    if arrived is not None:
                        yield arrived

    # --- asking -----------------------------------------------------------------------------------

    def _ask(self, line: Line) -> tuple[int, list[Wanted]]:
        """Fills the window; how long to wait then, and what is too large for a bundle."""
        large: list[Wanted] = []
        while len(self._flying) < FLYING_MAX:
            if delay_ms := self._lane.delay_ms():
                if not self._flying:
                    self._alive()
                return min(delay_ms, LOOK_MS), large
            files = self._bundle(large)
            if not files:
                break
            if not self._flying:
                self._alive()  # nothing was owed, so nothing was late
            self._number += 1
            self._flying[self._number] = files
            self._ask_for(line, self._number)
        return LOOK_MS, large

    def _ask_for(self, line: Line, number: int) -> None:
        files = self._flying[number]
        self._lane.spend(sum(one.expected.size for one in files))
        handles = tuple(one.handle for one in files)
        self._lane.say(line, BundleRequest(number=number, handles=handles))

    def _bundle(self, large: list[Wanted]) -> list[Wanted]:
        files: list[Wanted] = []
        room, chars = CHUNK_BYTES, BUNDLE_HANDLE_CHARS_MAX
        while len(files) < BUNDLE_FILES_MAX:
            one = self._held = self._held or self._next_file()
            self._dry = one is None
            if one is None:
                break
            if one.expected.size > CHUNK_BYTES or len(one.handle) > BUNDLE_HANDLE_CHARS_MAX:
                large.append(one)
            elif one.expected.size > room or len(one.handle) > chars:
                break
            else:
                files.append(one)
                room -= one.expected.size
                chars -= len(one.handle)
            self._held = None
        return files

    # --- what comes -------------------------------------------------------------------------------

    def _take(self, line: Line, frames: list[zmq.Frame] | None) -> Arrived | None:
        if frames is None:
            return self._silent()
        match self._lane.answer(line, frames):
            case BundleAnswer() as answer if answer.number in self._flying:
                self._heard = True
                self._alive()
                return self._unpacked(self._flying.pop(answer.number), answer, frames[1].buffer)
            case Waiting():
                self._alive()
            case _:
                pass  # late: it was asked for again over another connection
        return None

    def _silent(self) -> Arrived | None:
        now_ms = clock.monotonic_ms()
        if now_ms - self._progress_ms > GIVE_UP_MS:
            raise TransferError(f"no file arrived for {GIVE_UP_MS // 1_000} s", "check the link")
        if not self._flying or now_ms - self._arrived_ms <= ASK_AGAIN_MIN_MS:
            return None
        if self._heard:
            self._arrived_ms = now_ms
            raise Lost
        # It may be an older node, which knows no bundles.
        alone = tuple(one for files in self._flying.values() for one in files)
        self._flying.clear()
        return Arrived(alone=alone)

    def _alive(self) -> None:
        self._arrived_ms = self._progress_ms = clock.monotonic_ms()

    def _unpacked(self, files: list[Wanted], answer: BundleAnswer, data: memoryview) -> Arrived:
        """Judges and writes what came; what is not there or not right is asked for alone."""
        lengths = answer.lengths
        self._lane.received(len(data))
        if len(lengths) != len(files) or sum(max(0, size) for size in lengths) != len(data):
            self._lane.refused("malformed")
            return Arrived(alone=tuple(files))
        alone: list[Wanted] = []
        brought: list[Brought] = []
        start = 0
        for one, length in zip(files, lengths, strict=True):
            if length < 0:
                alone.append(one)
                continue
            piece, start = data[start : start + length], start + length
            digest = chunk_digest(piece)
            if length != one.expected.size or file_digest((digest,)) != one.expected.digest:
                self._lane.refused("bad_digest")
                alone.append(one)
            elif one.claim():
                brought.append(Brought(one, _written(one, piece, digest)))
        return Arrived(tuple(_settled(brought)), tuple(alone))


def _written(one: Wanted, data: memoryview, digest: bytes) -> DarkStreamError | None:
    try:
        one.target.begin(one.expected, one.expected.whole)
        if data:
            one.target.write(0, data, digest)
        one.target.finish(name_later=True)
    except DarkStreamError as error:
        return error
    finally:
        one.target.close()
    return None


def _settled(brought: list[Brought]) -> Generator[Brought]:
    """Each with its name durable as well: a sync for each folder, not for each file."""
    faults: dict[object, DarkStreamError | None] = {}
    for done in brought:
        if done.error is not None:
            yield done
            continue
        place = done.wanted.target.place
        if place not in faults:
            try:
                done.wanted.target.settle()
                faults[place] = None
            except DarkStreamError as error:
                faults[place] = error
        yield Brought(done.wanted, faults[place])
