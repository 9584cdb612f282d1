"""A handful of cores stepped by hand: nothing moves unless it is told to."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from mesh.effects import (
    Commit,
    Effect,
    InstallSnapshot,
    LeaderChanged,
    Persist,
    ReadReady,
    Send,
    SnapshotNeeded,
)
from mesh.ids import RaftId
from mesh.log import Base, Entry, HardState
from mesh.membership import Configuration, founding_entries
from mesh.messages import (
    Append,
    AppendAck,
    ConsensusMessage,
    Heartbeat,
    HeartbeatAck,
    SnapshotOffer,
    TimeoutNow,
    Vote,
    VoteRequest,
)
from mesh.protocol import Limits, Raft, Role, Timing
from tests.simulator.storage import MemoryLog

ROUNDS_MAX = 64


class Shortest:
    """The random source of these tests: always the shortest time-out."""

    def randrange(self, start: int, stop: int, /) -> int:
        assert start < stop
        return start


class Cluster:
    """Nodes, their disks, and messages under way, in the order of their sending."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.now_ms = 0
        self.limits = limits or Limits()
        self.disks: dict[str, MemoryLog] = {}
        self.nodes: dict[str, Raft] = {}
        self.messages: list[ConsensusMessage] = []
        self.held: dict[str, list[list[Effect]]] = {}
        self.applied: dict[str, list[Entry]] = {}
        self.kept: list[ConsensusMessage] = []
        self.isolated: set[str] = set()
        self.offers: dict[str, SnapshotOffer] = {}
        self.lines: list[str] = []

    # --- making -------------------------------------------------------------------------------

    def mesh(self, voters: Iterable[str], learners: Iterable[str] = ()) -> None:
        """Nodes that all hold the configuration as entry 1 of term 1."""
        configuration = configuration_of(voters, learners)
        for name in configuration.ids:
            self.node(name, [1], configuration)

    def node(
        self,
        name: str,
        terms: Sequence[int],
        configuration: Configuration,
        *,
        term: int | None = None,
        vote: str | None = None,
        commit: int = 0,
    ) -> None:
        """A node whose log has entries of these terms; the first holds the configuration."""
        disk = MemoryLog()
        entries = [
            Entry(index, of, "command", f"{index}/{of}".encode())
            for index, of in enumerate(terms, 1)
        ]
        entries[0] = Entry(1, terms[0], "configuration", configuration.encode())
        hard_state = HardState(
            term=terms[-1] if term is None else term,
            vote=None if vote is None else RaftId(vote),
            commit=commit,
        )
        disk.persist(hard_state, entries)
        self.disks[name] = disk
        self.start(name)

    def empty(self, name: str) -> None:
        """A node that knows nothing yet."""
        self.disks[name] = MemoryLog()
        self.start(name)

    def found(self, name: str) -> None:
        """The first node of a mesh."""
        self.disks[name] = MemoryLog()
        self.disks[name].persist(*founding_entries(RaftId(name)))
        self.start(name)

    def start(self, name: str) -> None:
        """Starts, or starts again from the disk, with nothing applied but what is compacted."""
        self.applied[name] = []
        self.held.pop(name, None)
        self.offers.pop(name, None)
        self.nodes[name] = Raft(
            raft_id=RaftId(name),
            storage=self.disks[name],
            timing=Timing(),
            random=Shortest(),
            applied_index=self.disks[name].base().index,
            now_ms=self.now_ms,
            limits=self.limits,
        )

    # --- stepping -----------------------------------------------------------------------------

    def campaign(self, name: str) -> None:
        """Silence until everybody would give a vote; then only this node's time-out is noticed."""
        self.now_ms += 2_000
        self.tick(name)

    def lead(self, name: str) -> None:
        """Elects this node and lets everybody commit, without a word (campaign.txt has them)."""
        said = tuple(self.lines)
        self.campaign(name)
        self.deliver()
        self.tick(name)
        self.deliver()
        raft = self.nodes[name]
        assert raft.role is Role.LEADER
        self.lines = [*said, f"{name} leads term {raft.term}, commit {raft.commit_index}"]

    def tick(self, name: str) -> None:
        """Time goes on to this node's next deadline, unless that is over already."""
        self.now_ms = max(self.now_ms, self.nodes[name].next_deadline_ms())
        self.perform(name, self.nodes[name].tick(self.now_ms))

    def propose(self, name: str, *datas: str) -> None:
        _, effects = self.nodes[name].propose([data.encode() for data in datas], self.now_ms)
        self.perform(name, effects)

    def change(self, name: str, configuration: Configuration) -> None:
        self.perform(name, self.nodes[name].change_configuration(configuration, self.now_ms))

    def transfer(self, name: str, to: str | None = None) -> None:
        target = None if to is None else RaftId(to)
        self.perform(name, self.nodes[name].transfer_leadership(target, self.now_ms))

    def read(self, name: str) -> int:
        """Asks for a linearizable read; returns its id."""
        read_id, effects = self.nodes[name].read_index(self.now_ms)
        self.lines.append(f"{name}: read {read_id}")
        self.perform(name, effects)
        return read_id

    # --- snapshots ----------------------------------------------------------------------------

    def compact(self, name: str, index: int) -> Base:
        """The node forgets its log up to here, which it has applied."""
        base = self.nodes[name].base_at(index)
        assert base is not None, "nothing to compact to"
        self.disks[name].compact(base)
        self.nodes[name].compacted(base)
        return base

    def offer(self, name: str, to: str, index: int | None = None) -> None:
        """The leader's driver has a snapshot ready, of what is applied now or of this index."""
        raft = self.nodes[name]
        base = raft.base_at(raft.applied_index if index is None else index)
        assert base is not None, "no such snapshot"
        handle = f"snapshot-{base.index}"
        effects = raft.offer_snapshot(RaftId(to), base, 1_000, "d1", handle, self.now_ms)
        self.perform(name, effects)

    def unavailable(self, name: str, to: str) -> None:
        """The leader's driver has no snapshot."""
        self.perform(name, self.nodes[name].snapshot_unavailable(RaftId(to), self.now_ms))

    def install(self, name: str) -> None:
        """The follower's driver has replaced the ledger by what was offered."""
        offer = self.offers.pop(name)
        base = Base(offer.base_index, offer.base_term, offer.configuration)
        disk = self.disks[name]
        disk.restart_from(base, replace(disk.hard_state(), commit=base.index))
        self.applied[name] = []
        self.perform(name, self.nodes[name].installed(base, self.now_ms))

    def fail_install(self, name: str) -> None:
        """The follower's driver could not fetch or verify it."""
        del self.offers[name]
        self.perform(name, self.nodes[name].install_failed(self.now_ms))

    def receive(self, message: ConsensusMessage) -> None:
        """Hands a message to its receiver."""
        self.perform(message.to, self.nodes[message.to].receive(message, self.now_ms))

    def deliver(self, sender: str | None = None, to: str | None = None, rounds: int = 0) -> None:
        """Delivers matching messages, and the answers they cause, until none is left (or rounds are over)."""
        for _ in range(rounds or ROUNDS_MAX):
            ready = self.take(sender, to)
            if not ready:
                return
            for message in ready:
                if message.to in self.nodes and not {message.to, message.sender} & self.isolated:
                    self.receive(message)
                else:
                    self.lines.append(f"lost: {describe(message)}")
        assert rounds, "messages without end"

    def take(self, sender: str | None = None, to: str | None = None) -> list[ConsensusMessage]:
        """Takes matching messages out of the network."""
        taken = [m for m in self.messages if sender in (None, m.sender) and to in (None, m.to)]
        self.messages = [m for m in self.messages if m not in taken]
        return taken

    def keep(self, sender: str, to: str) -> None:
        """Remembers copies of matching messages."""
        self.kept += [m for m in self.messages if (m.sender, m.to) == (sender, to)]

    def again(self) -> None:
        """The copies are under way too."""
        self.messages += self.kept
        self.kept = []

    # --- the driver's duties ------------------------------------------------------------------

    def hold(self, name: str) -> None:
        """From now on this node's syncs do not end."""
        self.held[name] = []

    def sync(self, name: str) -> None:
        """The held syncs end."""
        for effects in self.held.pop(name):
            self._finish(name, effects)

    def crash(self, name: str) -> None:
        """What was not synced is gone."""
        del self.nodes[name]
        self.held.pop(name, None)

    def perform(self, name: str, effects: list[Effect]) -> None:
        self.lines += [f"{name}: {describe_effect(effect)}" for effect in effects]
        self.messages += [e.message for e in effects if isinstance(e, Send) and e.before_sync]
        if name in self.held:
            self.held[name].append(effects)
        else:
            self._finish(name, effects)

    def _finish(self, name: str, effects: list[Effect]) -> None:
        last: Entry | None = None
        applied: int | None = None
        for effect in effects:
            match effect:
                case Persist(hard_state=hard_state, entries=entries):
                    self.disks[name].persist(hard_state, entries)
                    last = entries[-1] if entries else last
                case Send(message=message, before_sync=False):
                    self.messages.append(message)
                case Commit(entries=entries):
                    self.applied[name].extend(entries)
                    applied = entries[-1].index
                case InstallSnapshot(offer=offer):
                    self.offers[name] = offer
                case _:
                    pass
        raft = self.nodes[name]
        if last is not None:
            self.perform(name, raft.persisted(last.index, last.term, self.now_ms))
        if applied is not None:
            self.perform(name, raft.applied(applied, self.now_ms))


def configuration_of(voters: Iterable[str], learners: Iterable[str] = ()) -> Configuration:
    return Configuration.of(map(RaftId, voters), map(RaftId, learners))


def describe_effect(effect: Effect) -> str:  # noqa: PLR0911 - one line a kind
    match effect:
        case Send(message=message, before_sync=early):
            return ("send early " if early else "send ") + describe(message)
        case Persist(hard_state=state, entries=entries):
            parts = ["persist"]
            if state is not None:
                parts.append(f"term={state.term} vote={state.vote or '-'} commit={state.commit}")
            return " ".join([*parts, describe_entries(entries)] if entries else parts)
        case Commit(entries=entries):
            return f"commit {describe_entries(entries)}"
        case LeaderChanged(term=term, leader=leader):
            return f"leader of term {term}: {leader or '-'}"
        case SnapshotNeeded(to=to):
            return f"snapshot needed for {to}"
        case InstallSnapshot(offer=offer):
            return f"install snapshot {offer.base_index}/{offer.base_term}"
        case ReadReady(read_ids=ids, index=index):
            return f"read ready {','.join(map(str, ids))} at {index}"


def describe_entries(entries: Sequence[Entry]) -> str:
    return " ".join(f"{e.index}/{e.term}{_content(e)}" for e in entries) or "-"


def _content(entry: Entry) -> str:
    match entry.kind:
        case "command":
            return f"({entry.data.decode()})"
        case "configuration":
            found = Configuration.decode(entry.data)
            return f"(voters {','.join(found.voters)} learners {','.join(found.learners) or '-'})"
        case "empty":
            return "()"


def describe(message: ConsensusMessage) -> str:  # noqa: PLR0911 - one line a kind
    head = f"{message.sender}>{message.to} term={message.term}"
    match message:
        case VoteRequest(pre=pre, last_index=index, last_term=term, transfer=transfer):
            kind = "pre_vote_request" if pre else "vote_request"
            return f"{head} {kind} last={index}/{term}{' transfer' if transfer else ''}"
        case Vote(pre=pre, granted=granted):
            return f"{head} {'pre_' if pre else ''}vote {'granted' if granted else 'refused'}"
        case Append(prev_index=index, prev_term=term, commit=commit, entries=entries):
            return f"{head} append prev={index}/{term} commit={commit} {describe_entries(entries)}"
        case AppendAck(ok=True, index=index):
            return f"{head} append_ack ok={index}"
        case AppendAck(index=index, hint_index=hint, hint_term=term):
            return f"{head} append_ack refused={index} hint={hint}/{term}"
        case Heartbeat(commit=commit, round=number):
            return f"{head} heartbeat commit={commit}{_round(number)}"
        case HeartbeatAck(round=number):
            return f"{head} heartbeat_ack{_round(number)}"
        case SnapshotOffer(base_index=index, base_term=term):
            return f"{head} snapshot_offer {index}/{term}"
        case TimeoutNow():
            return f"{head} timeout_now"


def _round(number: int) -> str:
    return f" round={number}" if number else ""
