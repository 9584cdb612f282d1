"""Keeps the voter set right while this node leads, and lets this node go politely.

What to change is decided by the autopilot (`mesh.membership.next_change`); here it meets clocks,
the ledger's members and the calls of nodes that go.
"""

import asyncio
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Final

import structlog

from ledger.jobs import Member
from mesh import clock
from mesh.errors import BusyError, ConflictError, DarkStreamError, NotLeaderError
from mesh.ids import NodeId, RaftId, node_of
from mesh.membership import (
    AutopilotView,
    Configuration,
    MemberView,
    PeerView,
    PeerWatch,
    is_growing,
    next_change,
)
from node.consensus.driver import Driver
from node.consensus.replica import Replica
from node.requests import Requests

LEAVE: Final = "voters.leave"
ROUND_S: Final = 0.5
"""Looks at least this often, also when nothing was applied: voters fall silent by time."""
CHANGE_ROUND_S: Final = 0.05
"""While the voter set is on its way: a mesh that forms should stand within a second."""
LEAVE_S: Final = 5.0
"""A node that goes waits no longer for others to take over: some lost messages and an election."""
LEAVE_STEP_S: Final = 0.05
CALL_S: Final = 0.5
TRANSFER_S: Final = 1.0
"""A transfer of the lead that took no effect for so long is asked for again: an election time-out."""
LEAVING_MS: Final = 10_000
"""Who said that it goes is taken at its word for so long after it said so last: it may be back by then."""
REMOVED_LEARNER_MS: Final = 1_000
"""A removed member is told by the log: some heartbeats, until it has applied its own removal."""
REMOVED_VOTER_MS: Final = 7_000
"""And hands over its vote: LEAVE_S, and the same again for the heartbeats."""
_GO: Final = b"go"
_WAIT: Final = b"wait"

_log = structlog.get_logger("node")


class Voters:
    """The autopilot's hands and eyes."""

    def __init__(
        self,
        *,
        driver: Driver,
        requests: Requests,
        replica: Replica,
        is_heard: Callable[[NodeId], bool],
        replace_ms: int,
    ) -> None:
        self._driver = driver
        self._requests = requests
        self._replica = replica
        self._is_heard = is_heard
        self._replace_ms = replace_ms
        self._own = node_of(driver.raft.raft_id)
        self._watch = PeerWatch()
        self._leaving_until_ms: dict[NodeId, int] = {}
        self._removed_ms: dict[NodeId, int] = {}
        self._suspects: frozenset[RaftId] = frozenset()
        requests.register(LEAVE, self._leave_for)

    # --- while this node leads ------------------------------------------------------------------

    async def keep(self) -> None:
        """One change after the other, until the lead is lost."""
        self._watch = PeerWatch()
        while self._driver.is_leader:
            seen = self._driver.ledger_changed.count
            view = await self._view()
            self._tell_suspects(view)
            wanted = next_change(view)
            if wanted is not None:
                await self._change(wanted)
            moving = wanted is not None or view.change_pending or is_growing(view)
            await self._driver.ledger_changed.wait(seen, CHANGE_ROUND_S if moving else ROUND_S)

    async def _change(self, wanted: Configuration) -> None:
        _log.info("voters change", voters=len(wanted.voters), learners=len(wanted.learners))
        try:
            await self._driver.change_configuration(wanted)
        except (NotLeaderError, ConflictError, BusyError) as error:
            _log.debug("voters do not change yet", reason=error.what)

    async def _view(self) -> AutopilotView:
        members = await self._replica.read(lambda reader: reader.members())
        raft = self._driver.raft
        configuration = raft.configuration
        assert configuration is not None, "a leader without a configuration"
        now_ms = clock.monotonic_ms()
        peers = self._watch.look(raft.progress(), now_ms)
        leaving = {node for node, until in self._leaving_until_ms.items() if until > now_ms}
        here = self._removed_here(members, configuration, leaving)
        going = self._going(here, configuration, peers, now_ms)
        return AutopilotView(
            leader=raft.raft_id,
            configuration=configuration,
            members=tuple(
                MemberView(
                    raft_id=RaftId(member.raft_id),
                    role=member.role,
                    heard=self._is_heard(NodeId(member.node)),
                    leaving=member.node in leaving or member.node in going,
                )
                for member in members
                if member.raft_id and (member.state == "active" or member.node in going)
            ),
            peers=peers,
            last_index=raft.last_index,
            change_pending=raft.pending_configuration is not None,
            term_committed=raft.term_committed,
            replace_ms=self._replace_ms,
        )

    def _removed_here(
        self, members: Iterable[Member], configuration: Configuration, leaving: Container[NodeId]
    ) -> dict[NodeId, RaftId]:
        """Removed members that still have a place and may not know of it.

        One that said itself that it goes knows, and once it votes no more it loses its place: as the
        learner of two it would be waited for when it is gone.
        """
        return {
            NodeId(member.node): RaftId(member.raft_id)
            for member in members
            if member.state == "removed"
            and member.raft_id in configuration.ids
            and not (member.raft_id in configuration.learners and NodeId(member.node) in leaving)
        }

    def _going(
        self,
        here: Mapping[NodeId, RaftId],
        configuration: Configuration,
        peers: Iterable[PeerView],
        now_ms: int,
    ) -> frozenset[NodeId]:
        """Those of them that answer: they learn of it and hand over before they are left out."""
        active = {peer.raft_id for peer in peers if peer.active} | {self._driver.raft.raft_id}
        self._removed_ms = {node: self._removed_ms.get(node, now_ms) for node in here}
        return frozenset(
            node
            for node, raft in here.items()
            if raft in active
            and now_ms - self._removed_ms[node]
            < (REMOVED_VOTER_MS if raft in configuration.voters else REMOVED_LEARNER_MS)
        )

    def _tell_suspects(self, view: AutopilotView) -> None:
        voters = set(view.configuration.voters)
        suspects = frozenset(
            peer.raft_id for peer in view.peers if peer.is_suspect and peer.raft_id in voters
        )
        for raft in sorted(suspects - self._suspects):
            _log.warning("a voter is silent", node=node_of(raft))
        for raft in sorted(self._suspects - suspects):
            _log.info("a silent voter answers again, or votes no more", node=node_of(raft))
        self._suspects = suspects

    # --- going ------------------------------------------------------------------------------------

    async def leave(self, limit_s: float) -> bool:
        """Hands over lead and vote, as far as others can take them; False when time was over before.

        Where nobody can take the vote, this node keeps it: it will return.
        """
        try:
            async with asyncio.timeout(limit_s):
                while not await self._may_go():
                    seen = self._driver.leader_changed.count
                    await self._driver.leader_changed.wait(seen, LEAVE_STEP_S)
        except TimeoutError:
            _log.warning("lead or vote could not be handed over", limit_s=limit_s)
            return False
        return True

    async def _may_go(self) -> bool:
        leader = self._driver.leader
        if leader is None:
            return False
        if self._driver.is_leader:
            return await self._hand_over()
        try:
            answer = await self._requests.call(node_of(leader), LEAVE, b"", timeout_s=CALL_S)
        except DarkStreamError as error:
            _log.debug("the coordinator does not let go yet", reason=error.what)
            return False
        return answer == _GO

    async def _hand_over(self) -> bool:
        """One step of a leader that goes: a stand-in for its vote first, then the lead."""
        view = await self._goes(self._own)
        if not _is_settled(view):
            return False
        heir = _heir(view)
        if heir is None:
            return True
        try:
            successor = await self._driver.transfer_leadership(heir, TRANSFER_S)
            _log.info("handed over the lead", node=successor)
        except (NotLeaderError, ConflictError, BusyError) as error:
            _log.debug("the lead is not handed over yet", reason=error.what)
        except TimeoutError:
            _log.info("nobody took over the lead yet")
        return False

    async def _leave_for(self, caller: NodeId, _: bytes) -> bytes:
        if not self._driver.is_leader:
            raise NotLeaderError("this node is not the coordinator", "ask the coordinator")
        view = await self._goes(caller)
        votes = caller in {node_of(voter) for voter in view.configuration.voters}
        return _WAIT if votes and not _is_settled(view) else _GO

    async def _goes(self, node: NodeId) -> AutopilotView:
        now_ms = clock.monotonic_ms()
        current = {n: until for n, until in self._leaving_until_ms.items() if until > now_ms}
        if node not in current:
            _log.info("a node goes", node=node)
        self._leaving_until_ms = {**current, node: now_ms + LEAVING_MS}
        return await self._view()


def _is_settled(view: AutopilotView) -> bool:
    """Whether nothing remains to be done that could be done now."""
    return view.term_committed and not view.change_pending and next_change(view) is None


def _heir(view: AutopilotView) -> NodeId | None:
    """The voter that should lead next: one that answers and stays, the one that lacks least."""
    fit = [
        peer
        for peer in view.peers
        if peer.active
        and peer.raft_id in view.configuration.voters
        and not view.is_leaving(peer.raft_id)
    ]
    if not fit:
        return None
    return node_of(max(fit, key=lambda peer: (peer.match, peer.raft_id)).raft_id)
