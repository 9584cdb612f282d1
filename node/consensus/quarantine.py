"""A replica that is not what the others are: noticed by checksums in hellos, isolated, rebuilt.

While it is wrong the node takes no work, gives no vote and hands over the lead; every face says so.
It fetches the ledger of a member that is right and applies the rest of the log again: the log is
the same everywhere, only what was made of it differs.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from mesh import clock
from mesh.codec import pack, unpack
from mesh.errors import (
    BusyError,
    ConflictError,
    DarkStreamError,
    DivergenceError,
    NotLeaderError,
    WireError,
)
from mesh.ids import NodeId, node_of
from node.consensus.divergence import Divergence, own_divergence, read_marks
from node.consensus.driver import Driver
from node.consensus.snapshot_duty import Shelf, Snapshot
from node.membership.neighbours import Neighbours
from node.requests import Requests

ASK: Final = "ledger.snapshot"
TOLD: Final = "sums"
"""Key of the checksums in a hello's status."""
COMPARE_S: Final = 2.0
"""As often as members say hello."""
REBUILDS_MAX: Final = 3
"""A replica that goes wrong again and again is on bad memory or a bad disk, or meets a bug: the node stops."""
RETRY_S: Final = 5.0
ASK_TIMEOUT_S: Final = 120.0
"""Making a snapshot of a large ledger on a slow disk."""
CATCH_UP_S: Final = 20.0
"""Another snapshot cannot come here meanwhile, should this be what the node needs."""
ASKED_MS: Final = 5_000
"""A snapshot is made for members that ask at most so often; in between they get the newest there is."""

_log = structlog.get_logger("ledger")


class Quarantine:
    """Compares this replica with the others', and mends it."""

    def __init__(
        self,
        *,
        own: NodeId,
        driver: Driver,
        requests: Requests,
        neighbours: Neighbours,
        shelf: Shelf,
        name_of: Callable[[NodeId], str],
        compare_s: float = COMPARE_S,
        retry_s: float = RETRY_S,
    ) -> None:
        self.divergences = 0
        """How often this replica was found to be wrong since the start."""
        self._fault = ""
        self._own = own
        self._driver = driver
        self._requests = requests
        self._neighbours = neighbours
        self._shelf = shelf
        self._name_of = name_of
        self._compare_s = compare_s
        self._retry_s = retry_s
        self._made_ms = -ASKED_MS
        self._made_index = 0
        requests.register(ASK, self._serve)

    @property
    def fault(self) -> str:
        """Why this node is in quarantine, for people; empty while all is well."""
        return self._fault

    def told(self) -> dict[str, object]:
        """What this node's hellos say of its checksums; nothing while they are known to be wrong."""
        return {} if self._fault else {TOLD: self._driver.marks.told()}

    async def run(self) -> None:
        """Compares until cancelled.  Raises `DivergenceError` when rebuilding does not help."""
        while True:
            await asyncio.sleep(self._compare_s)
            found = self._compare()
            if found is not None:
                await self._mend(found)

    def _compare(self) -> Divergence | None:
        neighbours = self._neighbours
        told = {
            peer.node: read_marks(neighbours.status_of(peer.node).get(TOLD))
            for peer in neighbours.peers.all()
        }
        leader = self._driver.leader
        return own_divergence(
            self._driver.marks.lookup,
            told,
            coordinator=None if leader is None else node_of(leader),
            this=self._own,
        )

    async def _mend(self, found: Divergence) -> None:
        self.divergences += 1
        others = ", ".join(self._name_of(node) for node in found.others)
        what = f"this replica differs from that of {others} at entry {found.index} of the log"
        if self.divergences > REBUILDS_MAX:
            raise DivergenceError(
                f"{what}, for the {self.divergences}th time",
                "check memory and disk of this machine; keep its data directory for an analysis",
            )
        self._fault = f"{what}; it takes no work and gives no vote until it is rebuilt"
        _log.error("divergence", what=what, entry=found.index)
        self._driver.abstains = True
        while self._fault:
            await self._hand_over()
            try:
                await self._rebuild_from(found)
            except DarkStreamError as error:
                _log.warning("the ledger is not rebuilt yet", reason=error.line())
                await asyncio.sleep(self._retry_s)
            else:
                self._fault = ""
        self._driver.abstains = False

    async def _hand_over(self) -> None:
        if not self._driver.is_leader:
            return
        try:
            await self._driver.transfer_leadership(None, self._retry_s)
        except (ConflictError, NotLeaderError, BusyError, TimeoutError) as error:
            # Who votes alone goes on leading: nobody else may.
            _log.warning("the lead stays here", reason=str(error))

    async def _rebuild_from(self, found: Divergence) -> None:
        leader = self._driver.leader
        right = node_of(leader) if leader is not None else None
        source = right if right in found.others and right is not None else found.others[0]
        wanted = self._driver.log_base().index
        body = await self._requests.call(source, ASK, pack(wanted), timeout_s=ASK_TIMEOUT_S)
        await self._driver.snapshots.rebuild(source, _snapshot(body), CATCH_UP_S)

    async def _serve(self, caller: NodeId, body: bytes) -> bytes:
        match unpack(body):
            case int() as index_min:
                pass
            case _:
                raise WireError("not an index")
        if self._fault:
            raise ConflictError("this replica is being rebuilt itself", "ask another node")
        now_ms = clock.monotonic_ms()
        if now_ms - self._made_ms >= ASKED_MS:
            self._made_ms = now_ms
            self._made_index = self._driver.applied_index
        made = await self._shelf.newest(min(index_min, self._made_index))
        self._made_index = made.index
        _log.info("snapshot for a member that asked", member=caller, index=made.index)
        return pack((made.index, made.term, made.size, made.digest, made.handle))


def _snapshot(body: bytes) -> Snapshot:
    match unpack(body):
        case (int() as index, int() as term, int() as size, str() as digest, str() as handle):
            return Snapshot(index=index, term=term, size=size, digest=digest, handle=handle)
        case _:
            raise WireError("not a snapshot")
