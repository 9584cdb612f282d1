"""What a follower does with its leader's log: take entries, learn what is decided, take a snapshot."""

from mesh.effects import InstallSnapshot
from mesh.ids import RaftId
from mesh.log import Base
from mesh.messages import Append, Heartbeat, HeartbeatAck, SnapshotOffer
from mesh.outbox import Outbox
from mesh.raftlog import RaftLog


class Following:
    """The follower's side of replication; whoever calls has checked the term."""

    def __init__(self, raft_id: RaftId, log: RaftLog, outbox: Outbox) -> None:
        self._raft_id = raft_id
        self._log = log
        self._outbox = outbox
        self.installing: SnapshotOffer | None = None
        """The snapshot that the driver installs.  Until it is done the log stands still: the driver
        replaces the ledger, and whether the snapshot may replace this log was judged at its offer."""

    def receive(self, message: Append | Heartbeat | SnapshotOffer) -> None:
        """What the leader of this term says."""
        match message:
            case Append():
                self._append(message)
            case Heartbeat():
                self._heartbeat(message)
            case SnapshotOffer():
                self._offer(message)

    def _append(self, append: Append) -> None:
        """Takes entries that follow on this log, else says where the logs may agree."""
        if self.installing is not None:
            return
        if append.prev_index < self._log.commit_index:
            # Old news; what is committed here cannot differ (Raft paper, 5.4.3).
            self._outbox.acknowledge(append.sender, append.term, self._log.commit_index)
            return
        matched = self._log.match_and_append(append.prev_index, append.prev_term, append.entries)
        if matched is None:
            self._outbox.refuse(append.sender, append.term, append.prev_index, append.prev_term)
            return
        # Never past the last entry that came: what stands behind it here may differ (figure 2).
        self._log.commit_to(min(append.commit, matched))
        self._outbox.acknowledge(append.sender, append.term, matched)

    def _heartbeat(self, heartbeat: Heartbeat) -> None:
        """Answers, and commits what the leader knows to be here."""
        if self.installing is None:
            self._log.commit_to(heartbeat.commit)
        self._outbox.send(
            HeartbeatAck(
                sender=self._raft_id,
                to=heartbeat.sender,
                term=heartbeat.term,
                round=heartbeat.round,
            )
        )

    def _offer(self, offer: SnapshotOffer) -> None:
        """Has the snapshot installed, unless this log holds what is in it."""
        if self.installing is not None:
            return
        log = self._log
        if offer.base_index > log.commit_index and log.term(offer.base_index) == offer.base_term:
            # All of it is here and now known to be decided: to install it would forget the entries
            # behind it, which this node may have acknowledged (dissertation, 5.1).
            log.commit_to(offer.base_index)
        if offer.base_index <= log.commit_index:
            self._outbox.acknowledge(offer.sender, offer.term, log.commit_index)
            return
        self.installing = offer
        self._outbox.ask(InstallSnapshot(offer))

    def installed(self, base: Base, leader: RaftId | None, term: int) -> None:
        """Log and ledger are at `base`; the present leader, which may be another, goes on there."""
        self.installing = None
        self._log.restart(base)
        if leader is not None:
            self._outbox.acknowledge(leader, term, base.index)

    def install_failed(self, leader: RaftId | None, term: int) -> None:
        """Nothing changed; the leader may offer it, or a newer one, again."""
        offer, self.installing = self.installing, None
        if offer is not None and leader is not None:
            self._outbox.refuse(leader, term, offer.base_index, offer.base_term)
