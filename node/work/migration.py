"""Moves the ledger to the newest form that every member knows, while this node leads.

A member says in each hello which form it knows.  One that was not heard since this node leads is
taken at nothing: what it cannot read would stop it.
"""

from collections.abc import Callable, Sequence
from typing import Final

import structlog

from ledger.commands import MigrateLedger
from ledger.jobs import Member
from ledger.schema import SCHEMA_VERSION
from mesh.errors import DarkStreamError, StorageError
from mesh.ids import NodeId
from node.consensus.driver import Driver
from node.consensus.proposer import Proposer
from node.consensus.replica import Replica

LOOK_S: Final = 2.0
"""As often as members say hello."""

_log = structlog.get_logger("node")

Known = Callable[[NodeId], int | None]
"""The newest form that a member says it knows; None: it was not heard yet."""


def held_back_by(members: Sequence[Member], known: Known, schema: int) -> tuple[Member, ...]:
    """The active members that do not know this form, as far as was heard."""
    return tuple(
        member
        for member in members
        if member.state == "active" and (known(NodeId(member.node)) or 0) < schema
    )


class Migration:
    """Proposes one form after the other, each once every member knows it."""

    def __init__(
        self, *, driver: Driver, proposer: Proposer, replica: Replica, known: Known
    ) -> None:
        self._driver = driver
        self._proposer = proposer
        self._replica = replica
        self._known = known

    async def keep(self) -> None:
        """Until the lead is lost or the ledger has the newest form that this node knows."""
        told: tuple[Member, ...] = ()
        while self._driver.is_leader:
            seen = self._driver.ledger_changed.count
            present, members = await self._replica.read(
                lambda reader: (reader.schema(), reader.members(active_only=True))
            )
            if present >= SCHEMA_VERSION:
                return
            behind = held_back_by(members, self._known, present + 1)
            if members and not behind and await self._moved_to(present + 1):
                continue
            if behind != told:
                names = [member.name for member in behind]
                _log.info("the ledger keeps its form", schema=present, until_updated=names)
                told = behind
            await self._driver.ledger_changed.wait(seen, LOOK_S)

    async def _moved_to(self, schema: int) -> bool:
        try:
            outcome = await self._proposer.propose(
                MigrateLedger(schema=schema), cause="coordinator"
            )
        except StorageError:
            raise
        except DarkStreamError as error:
            _log.warning("the ledger was not migrated yet", schema=schema, reason=error.what)
            return False
        _log.info("the ledger has a new form", schema=schema, by_this=outcome.ok)
        return outcome.ok


def waiting_notes(members: Sequence[Member], known: Known, present: int) -> list[str]:
    """What a person should know and do while the ledger keeps an older form."""
    behind = held_back_by(members, known, present + 1)
    if present >= SCHEMA_VERSION or not behind:
        return []
    names = ", ".join(member.name for member in behind)
    what = f"the ledger keeps schema {present} until {names} can read schema {present + 1}"
    todo = "update DarkStream there, start it, or remove it from the mesh; until then all works as before"
    return [f"{what}: {todo}"]
