"""Members that have fetched a film before, or fetch it now, bring parts of it to who fetches it next.

So the owner's uplink is not the limit of all.  What is right is said by the owner's table of digests
alone; a helper that is gone, slow, or wrong costs what it was asked for last, which the owner is
asked for then.
"""

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import structlog

from mesh import clock
from mesh.bulk_lane_zmq import Lane, ShouldStop
from mesh.download import Download
from mesh.errors import DarkStreamError, StoppedError, TransferError
from mesh.ids import NodeId
from mesh.shares import Helper, Helpers, HelpersShare, Pool
from mesh.transfer import HaveAnswer, HaveRequest, Manifest, Spans, Target

HELPERS_MAX: Final = 4
"""Members asked at once: more fill no link."""
LOOK_S: Final = 1.0
"""How often it is looked who may help, and helpers are asked what they have by now."""
SHARED_BYTES_MIN: Final = 16 << 20
"""Less is there before a helper was asked."""

_log = structlog.get_logger("transfer")


MakeLane = Callable[[Helper, ShouldStop], Lane]


@dataclass(frozen=True, slots=True, kw_only=True)
class Film:
    """What is brought, what judges it, and where it goes."""

    manifest: Manifest
    spans: Spans
    have: bytearray
    table: bytes
    target: Target
    told: Callable[[], None]


class Helping:
    """Helpers at work while the block runs; leaving it stops them and waits for them."""

    def __init__(
        self,
        helpers: Helpers,
        pool: Pool,
        film: Film,
        make_lane: MakeLane,
        should_stop: ShouldStop,
    ) -> None:
        self._helpers = helpers
        self._pool = pool
        self._film = film
        self._make_lane = make_lane
        self._should_stop = should_stop
        self._over = threading.Event()
        self._busy: set[NodeId] = set()
        self._refused: set[NodeId] = set()
        self._thread = threading.Thread(target=self._look, name="helpers")

    def __enter__(self) -> "Helping":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _stops(self) -> bool:
        return self._over.is_set() or self._should_stop()

    def _look(self) -> None:
        asked: list[Future[None]] = []
        with ThreadPoolExecutor(HELPERS_MAX, thread_name_prefix="helper") as threads:
            while not self._stops():
                for helper in self._helpers.look():
                    taken = helper.peer in self._busy or helper.peer in self._refused
                    if not taken and len(self._busy) < HELPERS_MAX:
                        self._busy.add(helper.peer)
                        asked = [one for one in asked if not one.done() or one.exception()]
                        asked.append(threads.submit(self._help, helper))
                self._over.wait(LOOK_S)
        for one in asked:
            one.result()  # a fault of ours is threading's hook's to report

    def _help(self, helper: Helper) -> None:
        """Takes from one helper what it has, until all is there or it does not help any more."""
        try:
            with contextlib.closing(self._make_lane(helper, self._stops)) as lane:
                self._take_from(lane)
        except StoppedError:
            pass
        except TransferError as error:
            # Silent, or damaged again and again: not for this film any more.
            self._refused.add(helper.peer)
            _log.info("helper left out", peer=helper.peer, reason=error.what)
        except DarkStreamError as error:
            _log.debug("helper has nothing", peer=helper.peer, reason=error.what)
        finally:
            self._busy.discard(helper.peer)

    def _take_from(self, lane: Lane) -> None:
        film = self._film
        while not self._stops():
            _, offered = lane.exchange(HaveRequest(handle=lane.handle), HaveAnswer)
            while taken := self._pool.take(offered, clock.monotonic_ms()):
                try:
                    share = HelpersShare(self._pool, taken)
                    now_ms = clock.monotonic_ms()
                    download = Download(film.manifest, film.spans, film.have, now_ms, share)
                    lane.bring(download, film.target, film.table, film.told)
                finally:
                    self._pool.give_back(taken)
            self._over.wait(LOOK_S)
