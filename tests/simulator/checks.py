"""The safety properties of Raft (paper, figure 3), checked against everything all nodes ever did."""

from collections.abc import Iterable, Mapping, Sequence

from mesh.election import Role
from mesh.ids import RaftId
from mesh.log import Base, Entry, LogStorage
from mesh.messages import AppendAck, ConsensusMessage, Vote, VoteRequest
from mesh.protocol import Raft


class Violation(Exception):  # noqa: N818 - a finding of the simulator, not an error of it
    """A property that does not hold."""


class Checks:
    """Looks at every step of every node."""

    def __init__(self) -> None:
        self._leaders: dict[int, RaftId] = {}
        self._written: dict[tuple[int, int], tuple[str, bytes, int]] = {}
        self.decided: list[Entry] = []
        self._decided_in: list[int] = []
        self._checksums: dict[int, str] = {}
        self._commit_as_leader: dict[RaftId, int] = {}
        self._votes: dict[tuple[RaftId, int], RaftId] = {}
        self._terms: dict[RaftId, int] = {}
        self._effects: dict[str, int] = {}
        self._acknowledged: dict[RaftId, tuple[int, int]] = {}
        self.leaders_seen = 0

    def written(self, node: RaftId, prev_term: int, entries: Iterable[Entry]) -> None:
        """Log matching, by induction: one (index, term) has one content and one predecessor."""
        for entry in entries:
            value = (entry.kind, entry.data, prev_term)
            known = self._written.setdefault((entry.index, entry.term), value)
            if known != value:
                raise Violation(
                    f"log matching: {node} writes {entry!r} after term {prev_term}, "
                    f"but another node wrote {known!r}"
                )
            prev_term = entry.term

    def promised(self, message: ConsensusMessage, disk: LogStorage) -> None:
        """What leaves a host is true for ever, also after its next crash."""
        sender = message.sender
        if isinstance(message, Vote | VoteRequest) and message.pre:
            return
        if message.term < self._terms.get(sender, 0):
            raise Violation(
                f"terms grow: {sender} speaks in term {message.term}, "
                f"and has spoken in {self._terms[sender]}"
            )
        self._terms[sender] = message.term
        match message:
            case Vote(granted=True):
                known = self._votes.setdefault((sender, message.term), message.to)
                if known != message.to:
                    raise Violation(
                        f"one vote a term: {sender} votes for {message.to} in term "
                        f"{message.term}, and has voted for {known}"
                    )
            case AppendAck(ok=True):
                if disk.last_index() < message.index:
                    raise Violation(
                        f"durability: {sender} acknowledges {message.index}, "
                        f"its disk ends at {disk.last_index()}"
                    )
                before = self._acknowledged.get(sender, (0, 0))
                # A later term may replace what an earlier one was told.
                self._acknowledged[sender] = max(before, (message.term, message.index))
            case _:
                pass

    def forgets(self, raft: Raft, base: Base, disk: LogStorage) -> None:
        """A snapshot takes the place of the whole log: what stands behind it may be needed by others.

        Neither what was decided with this node's help, nor what it acknowledged to the present leader.
        """
        term, acknowledged = self._acknowledged.get(raft.raft_id, (0, 0))
        decided = [
            entry.index
            for entry in self.decided[base.index : disk.last_index()]
            if disk.term(entry.index) == entry.term
        ]
        if decided or (term == raft.term and acknowledged > base.index):
            raise Violation(
                f"durability: {raft.raft_id} takes a snapshot at {base.index}, and with it forgets "
                f"{decided or acknowledged}, which it holds and has acknowledged"
            )

    def survived(self, node: RaftId, disk: LogStorage) -> None:
        """After a loss of power: what the node has promised is on its disk."""
        state = disk.hard_state()
        spoken = self._terms.get(node, 0)
        if state.term < spoken:
            raise Violation(
                f"durability: {node} has spoken in {spoken}, its disk knows {state.term}"
            )
        voted = self._votes.get((node, state.term))
        if voted is not None and voted != state.vote:
            raise Violation(
                f"durability: {node} voted for {voted} in {state.term}, its disk says {state.vote}"
            )
        term, index = self._acknowledged.get(node, (0, 0))
        if term == state.term and disk.last_index() < index:
            raise Violation(
                f"durability: {node} acknowledged {index}, its disk ends at {disk.last_index()}"
            )

    def read(self, node: RaftId, decided: int, index: int) -> None:
        """A linearizable read sees everything that was decided anywhere when it came."""
        if index < decided:
            raise Violation(
                f"linearizable reads: {node} serves one at {index}, it came when {decided} "
                "was decided"
            )

    def took_effect(self, node: RaftId, command_id: str, index: int) -> None:
        """A command takes effect once, everywhere at the same index, however often it is proposed."""
        known = self._effects.setdefault(command_id, index)
        if known != index:
            raise Violation(
                f"applied once: {command_id} takes effect at {index} on {node}, and did at {known}"
            )

    def stepped(self, raft: Raft, disks: Mapping[RaftId, LogStorage]) -> None:
        """Election safety, leader completeness, durability of what a leader decides."""
        before = self._commit_as_leader.pop(raft.raft_id, None)
        if raft.role is not Role.LEADER:
            return
        if before is not None and before < raft.commit_index:
            self._durable(raft, disks)
        self._commit_as_leader[raft.raft_id] = raft.commit_index
        known = self._leaders.get(raft.term)
        if known is None:
            self._leaders[raft.term] = raft.raft_id
            self.leaders_seen += 1
            self._complete(raft, disks[raft.raft_id].base().index)
        elif known != raft.raft_id:
            raise Violation(f"election safety: {known} and {raft.raft_id} lead term {raft.term}")

    def _complete(self, raft: Raft, base_index: int) -> None:
        # What is compacted is in the ledger, whose checksum is compared.
        decided = list(zip(self.decided, self._decided_in, strict=True))
        for entry, term in decided[max(0, base_index - 1) :]:
            if term < raft.term and raft.term_at(entry.index) != entry.term:
                raise Violation(
                    f"leader completeness: {raft.raft_id} leads term {raft.term} without entry "
                    f"{entry.index} of term {entry.term}, decided in term {term}"
                )

    def crashed(self, node: RaftId) -> None:
        """The node's memory is gone."""
        self._commit_as_leader.pop(node, None)

    def committed(self, raft: Raft, entries: Sequence[Entry]) -> None:
        """State machine safety: all nodes decide the same."""
        for entry in entries:
            if entry.index <= len(self.decided):
                known = self.decided[entry.index - 1]
                if known != entry:
                    raise Violation(
                        f"state machine safety: {raft.raft_id} decides {entry!r}, others {known!r}"
                    )
                continue
            if entry.index != len(self.decided) + 1:
                raise Violation(f"{raft.raft_id} decides {entry.index} before its predecessor")
            self.decided.append(entry)
            self._decided_in.append(raft.term)

    def _durable(self, raft: Raft, disks: Mapping[RaftId, LogStorage]) -> None:
        configuration = raft.configuration
        assert configuration is not None
        index = raft.commit_index
        term = raft.term_at(index)
        holders = [
            voter
            for voter in configuration.voters
            if disks[voter].term(index) == term or disks[voter].base().index > index
        ]
        if len(holders) < configuration.quorum:
            raise Violation(
                f"durability: {raft.raft_id} decides entry {index} of term {term}, "
                f"which only {holders} of {configuration.voters} hold"
            )

    def applied(self, node: RaftId, index: int, checksum: str) -> None:
        """Replicas that applied as far are equal."""
        known = self._checksums.setdefault(index, checksum)
        if known != checksum:
            raise Violation(f"replicas differ at index {index}: {node} {checksum}, others {known}")
