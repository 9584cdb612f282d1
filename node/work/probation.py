"""A node that was quarantined for its failures proves its encoders anew before it gets work again."""

from collections.abc import Awaitable, Callable, Collection
from typing import Final

import structlog

from ledger.orders import ReleaseNode
from mesh import clock
from mesh.errors import DarkStreamError, StorageError
from mesh.ids import NodeId
from node.consensus.driver import Driver
from node.consensus.proposer import Proposer
from node.consensus.replica import Replica
from node.signals import Signal

LOOK_S: Final = 5.0
FIRST_S: Final = 10.0
"""A proof takes a second or some; what failed a moment ago deserves a breath."""
LONGEST_S: Final = 600.0
"""A node that passes its proof and fails again waits twice as long each time, at most so long."""
GOOD_MS: Final = 900_000
"""Free of quarantine for so long, its next one begins with a short wait again."""

_log = structlog.get_logger("worker")


class Probation:
    """Looks at this node's own row."""

    def __init__(
        self,
        *,
        own: NodeId,
        name: str,
        driver: Driver,
        proposer: Proposer,
        replica: Replica,
        prove: Callable[[], Awaitable[Collection[str]]],
    ) -> None:
        """`prove` tries every encoder anew and tells those that work."""
        self._own = own
        self._name = name
        self._driver = driver
        self._proposer = proposer
        self._replica = replica
        self._prove = prove
        self._wait_s = FIRST_S
        self._never = Signal()

    async def run(self) -> None:
        """Until cancelled."""
        free_since_ms = clock.monotonic_ms()
        while True:
            seen = self._driver.news.row.count
            row = await self._replica.read(lambda reader: reader.node(self._own))
            if row is None or not row.quarantine:
                if clock.monotonic_ms() - free_since_ms > GOOD_MS:
                    self._wait_s = FIRST_S
                await self._driver.news.row.wait(seen, LOOK_S)
                continue
            _log.warning("quarantined, proves itself", reason=row.quarantine, in_s=self._wait_s)
            await self._never.wait(self._never.count, self._wait_s)
            self._wait_s = min(2 * self._wait_s, LONGEST_S)
            await self._try(row.encoders)
            free_since_ms = clock.monotonic_ms()

    async def _try(self, encoders: Collection[str]) -> None:
        try:
            lacking = sorted(set(encoders) - set(await self._prove()))
            if lacking:
                _log.warning("stays quarantined", encoders_that_fail=lacking)
                return
            command = ReleaseNode(node=self._own, by=f"the proof of {self._name}")
            await self._proposer.commit(command, cause="probation")
        except StorageError:
            raise
        except DarkStreamError as error:
            _log.warning("could not prove itself", reason=error.what)
        else:
            _log.info("proven, gets work again")
