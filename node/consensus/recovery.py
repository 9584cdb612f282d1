"""`ledger recover --force`: one survivor goes on without a majority, on the files of a stopped node.

Everything that its log holds counts as decided: as the learner of two it may hold what the lost
voter acknowledged and it was never told to be decided.  Then come, in one durable write, a
configuration in which this node alone votes and a command that raises the epoch.
"""

import secrets
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ledger.commands import EPOCH_MAX, RecoverMesh, seal
from ledger.log_sqlite import LogStore
from ledger.queries import Reader
from ledger.store_sqlite import LedgerStore
from mesh import clock
from mesh.errors import ConflictError, NotFoundError
from mesh.ids import RaftId, raft_id
from mesh.log import Entry, HardState
from mesh.membership import Configuration
from mesh.trust_files import load_or_create_identity
from node.settings.home_paths import LEDGER_FILE, RAFT_FILE

EPOCH_STEP_MAX: Final = 1_024
"""Two survivors that are recovered apart from each other draw different epochs, almost always: the
higher one wins.  There is room for 8,000 recoveries of one mesh."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What a recovery would do, or did."""

    node: str
    mesh: str
    epoch: int
    """The new one."""
    last_index: int
    """What this node knows of the past ends here."""
    lost: tuple[str, ...]
    """Names of the other members: what only they knew is lost."""


def recover(home: Path, *, really: bool) -> Recovery:
    """Looks, and when `really` makes the node of this home the only voter of its mesh.

    Raises `InUseError` while the node runs, `NotFoundError` where there is no mesh, `ConflictError`
    for a node that does not belong any more.
    """
    if not (home / RAFT_FILE).is_file():
        raise NotFoundError(f"there is no node in {home}", "name its home with --home")
    with closing(LogStore(str(home / RAFT_FILE), incarnation=secrets.token_hex(4))) as log:
        own = raft_id(load_or_create_identity(home).node_id, log.incarnation)
        # What is decided already belongs into the ledger first: it says who is a member.
        with closing(LedgerStore(str(home / LEDGER_FILE))) as ledger:
            reader = Reader(ledger.connection)
            plan = _plan(reader, own, log)
        if really:
            _write(log, own, plan)
            # Known before the ledger has applied it: others that say it must not overtake this node.
            log.set_value("epoch", plan.epoch)
    return plan


def _plan(reader: Reader, own: RaftId, log: LogStore) -> Recovery:
    mesh, members = reader.mesh(), reader.members()
    mine = next((member for member in members if member.raft_id == own), None)
    if mesh is None or mine is None:
        raise NotFoundError(
            "this node's ledger holds no mesh that it belongs to",
            "recover a node that has worked in the mesh, or start this one with a token",
        )
    if mine.state != "active":
        raise ConflictError(
            f"this node was {mine.state} from its mesh", "recover a node that belongs to it"
        )
    epoch = mesh.epoch + 1 + secrets.randbelow(EPOCH_STEP_MAX)
    if epoch > EPOCH_MAX:
        raise ConflictError("this mesh was recovered too often", "export it and form a new one")
    others = [m for m in members if m.state == "active" and m.node != mine.node]
    return Recovery(
        node=mine.node,
        mesh=mesh.id,
        epoch=epoch,
        last_index=log.last_index(),
        lost=tuple(sorted(member.name for member in others)),
    )


def _write(log: LogStore, own: RaftId, plan: Recovery) -> None:
    term, index = log.hard_state().term + 1, log.last_index()
    command = seal(
        RecoverMesh(node=plan.node, epoch=plan.epoch),
        command_id=secrets.token_hex(12),
        proposer=plan.node,
        proposed_at_ms=clock.wall_ms(),
        cause="recover",
    )
    configuration = Configuration.of([own]).encode()
    log.persist(
        HardState(term=term, vote=own, commit=index + 2),
        (
            Entry(index + 1, term, "configuration", configuration),
            Entry(index + 2, term, "command", command),
        ),
    )
