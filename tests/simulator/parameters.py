"""What a seed decides: size of the mesh, and the rate of every fault.

Fixed mild rates find little (a planted lost vote in 0 of 1,500 seeds); so each rate is drawn, and
for each kind of fault many seeds have none of it at all.
"""

from dataclasses import dataclass, replace
from random import Random


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Rates are per message or per virtual second and node; times are milliseconds."""

    seed: int
    nodes: int
    faults_ms: int
    loss: float
    duplicates: float
    delay_ms_max: int
    partitions_per_s: float
    one_way: bool
    partition_ms_max: int
    crashes_per_s: float
    leader_crashes_per_s: float
    aimed_at_new_leaders: float
    aimed_at_tails: float
    aimed_at_votes: float
    aimed_at_commits: float
    aimed_crashes_max: int
    aimed_crash_takes_sent: float
    aimed_down_ms_max: int
    aimed_partitions: float
    aimed_at_changes: float
    bursts_max: int
    crashes_after_partitions: float
    poor_hints: float
    drift: float
    jumps_per_s: float
    jump_ms_max: int
    failing_writes: float
    full_disks_per_s: float
    full_ms_max: int
    reads: float
    transfers_per_s: float
    images: float
    compactions: float
    compaction_keeps_max: int
    snapshot_ms_max: int
    snapshots_fail: float
    heartbeat_ms: int
    election_min_ms: int
    election_max_ms: int
    down_ms_max: int
    pauses_per_s: float
    pause_ms_max: int
    wipes_per_s: float
    removals_per_s: float
    disk_ms_max: int
    slow_disk_ms_max: int
    ledger_loses_tail: bool
    append_entries_max: int
    window_appends_max: int
    applying_entries_max: int
    proposals_per_s: float
    batch_max: int
    over_the_wire: bool
    join_every_ms: int
    skew_ms_max: int
    broken_links: float

    @classmethod
    def draw(cls, seed: int) -> "Parameters":
        """The parameters of a seed."""
        random = Random(f"parameters {seed}")

        def sometimes(chance: float, low: float, high: float) -> float:
            value = random.uniform(low, high)
            return round(value, 3) if random.random() < chance else 0.0

        # Quick elections against slow links: many terms a virtual second, split votes, late answers.
        heartbeat_ms = random.choice([20, 20, 100])
        drawn = cls(
            seed=seed,
            nodes=random.choice([1, 2, 3, 3, 3, 3, 3, 4, 5, 5, 5, 6, 7, 8, 9]),
            faults_ms=heartbeat_ms * random.randrange(60, 160) + 1_500,
            loss=sometimes(0.6, 0.0, 0.4),
            duplicates=sometimes(0.5, 0.0, 0.3),
            delay_ms_max=random.choice([1, 5, 20, 100, 400]),
            partitions_per_s=sometimes(0.6, 0.05, 0.8),
            one_way=random.random() < 0.5,
            partition_ms_max=random.choice([300, 1_500, 5_000]),
            crashes_per_s=sometimes(0.6, 0.02, 0.5),
            leader_crashes_per_s=sometimes(0.5, 0.1, 1.5),
            aimed_at_new_leaders=sometimes(0.5, 0.1, 0.9),
            aimed_at_tails=sometimes(0.2, 0.5, 0.9),
            aimed_at_votes=sometimes(0.4, 0.1, 0.9),
            aimed_at_commits=sometimes(0.5, 0.02, 0.5),
            aimed_crashes_max=40,
            aimed_crash_takes_sent=random.choice([0.0, 0.5, 1.0]),
            aimed_down_ms_max=random.choice([2, 50, 1_000]),
            aimed_partitions=sometimes(0.5, 0.2, 1.0),
            aimed_at_changes=sometimes(0.3, 0.1, 0.8),
            bursts_max=random.choice([0, 0, 5, 30]),
            crashes_after_partitions=sometimes(0.3, 0.2, 0.9),
            poor_hints=sometimes(0.3, 0.1, 1.0),
            drift=sometimes(0.3, 0.0, 0.05),
            jumps_per_s=sometimes(0.2, 0.02, 0.3),
            jump_ms_max=random.choice([100, 3_000]),
            failing_writes=sometimes(0.2, 0.0, 0.02),
            full_disks_per_s=sometimes(0.2, 0.01, 0.1),
            full_ms_max=random.choice([500, 3_000]),
            reads=sometimes(0.5, 0.01, 0.3),
            transfers_per_s=sometimes(0.3, 0.1, 1.0),
            images=random.choice([0.1, 0.1, 1.0]),
            compactions=sometimes(0.5, 0.1, 1.0),
            compaction_keeps_max=random.choice([0, 5, 50]),
            snapshot_ms_max=random.choice([1, 50, 500]),
            snapshots_fail=sometimes(0.4, 0.1, 0.6),
            heartbeat_ms=heartbeat_ms,
            election_min_ms=heartbeat_ms * random.choice([3, 5]),
            election_max_ms=heartbeat_ms * random.choice([8, 10]),
            down_ms_max=random.choice([50, 500, 3_000]),
            pauses_per_s=sometimes(0.3, 0.02, 0.3),
            pause_ms_max=random.choice([200, 2_000]),
            wipes_per_s=sometimes(0.3, 0.02, 0.2),
            removals_per_s=sometimes(0.2, 0.02, 0.2),
            disk_ms_max=random.choice([0, 2, 10]),
            slow_disk_ms_max=random.choice([0, 0, 40, 300]),
            ledger_loses_tail=random.random() < 0.5,
            append_entries_max=random.choice([1, 1, 2, 8, 64]),
            window_appends_max=random.choice([1, 2, 8, 64]),
            applying_entries_max=random.choice([1, 8, 512]),
            proposals_per_s=random.choice([1.0, 5.0, 20.0, 40.0]),
            batch_max=random.choice([1, 4, 64]),
            over_the_wire=random.random() < 0.05,
            join_every_ms=random.choice([50, 300, 1_000]),
            skew_ms_max=random.choice([0, 5, 1_000_000]),
            # Drawn apart: the others stay what they were for each seed.
            broken_links=Random(f"links {seed}").choice([0.0, 0.0, 0.01, 0.1, 0.5]),
        )
        weather = random.random()
        if weather < 0.35:
            return drawn._pressed(random)
        if weather < 0.5:
            return drawn._churning(random)
        if weather < 0.6:
            return drawn._compacting(random)
        return drawn._diverging(random) if weather < 0.75 else drawn

    def at_work(self) -> "Parameters":
        """For a mesh with jobs: fewer proposals, and for most seeds leaders that last longer than a lease."""
        # Ledgers cost more than counters.
        busy = replace(self, proposals_per_s=6.0)
        if Random(f"work {self.seed}").random() < 0.4:
            return busy
        return replace(
            busy,
            loss=min(self.loss, 0.1),
            partitions_per_s=min(self.partitions_per_s, 0.3),
            crashes_per_s=min(self.crashes_per_s, 0.1),
            leader_crashes_per_s=min(self.leader_crashes_per_s, 0.3),
            aimed_at_new_leaders=0.0,
            aimed_at_tails=0.0,
            aimed_at_votes=0.0,
            aimed_at_commits=0.0,
            aimed_at_changes=0.0,
            failing_writes=0.0,
            full_disks_per_s=0.0,
            heartbeat_ms=20,
            election_min_ms=100,
            election_max_ms=200,
            join_every_ms=50,
        )

    def _pressed(self, random: Random) -> "Parameters":
        """Elections all the time, and crashes at the moments at which a rule of Raft matters.

        Figure 8 needs a leader that dies before anybody has its first entry, another that dies just
        after it decided, and both back in the right order: in milder weather that takes thousands
        of seeds.  `aimed_at_tails` knows the figure: a leader without an undecided tail of another's
        dies with its first entry, one that has inherited such a tail dies when it decides.
        """
        heartbeat_ms = 20
        election_min_ms = random.choice([60, 100])
        tails = random.choice([0.0, 0.9])
        return replace(
            self,
            nodes=random.choice([3, 3, 5]),
            faults_ms=random.randrange(4_000, 9_000),
            loss=random.choice([0.0, 0.0, 0.05]),
            duplicates=0.0,
            delay_ms_max=random.choice([2, 10, 30]),
            partitions_per_s=0.0,
            crashes_per_s=0.0,
            leader_crashes_per_s=3.0 if tails else random.choice([0.0, 2.0]),
            aimed_at_changes=0.0,
            drift=0.0,
            jumps_per_s=0.0,
            failing_writes=0.0,
            full_disks_per_s=0.0,
            reads=0.0,
            transfers_per_s=0.0,
            compactions=0.0,
            aimed_at_new_leaders=random.choice([0.3, 0.7]),
            aimed_at_tails=tails,
            aimed_at_votes=random.choice([0.0, 0.0, 0.3, 0.7]),
            aimed_at_commits=random.choice([0.1, 0.5]),
            aimed_crashes_max=400,
            aimed_crash_takes_sent=1.0 if tails else random.choice([0.5, 1.0]),
            aimed_down_ms_max=600 if tails else random.choice([2, 200, 600]),
            heartbeat_ms=heartbeat_ms,
            election_min_ms=election_min_ms,
            election_max_ms=election_min_ms * 3 // 2,
            pauses_per_s=0.0,
            wipes_per_s=0.0,
            removals_per_s=0.0,
            disk_ms_max=random.choice([0, 2]),
            slow_disk_ms_max=random.choice([0, 40]),
            append_entries_max=1,
            proposals_per_s=40.0,
            join_every_ms=50,
        )

    def _diverging(self, random: Random) -> "Parameters":
        """Leaders that are cut off collect what nobody else sees; back again, they are told little at a time.

        What a follower may take for decided matters only while its log still ends in such a tail.
        """
        return replace(
            self,
            nodes=random.choice([3, 3, 5]),
            faults_ms=random.randrange(4_000, 9_000),
            loss=random.choice([0.0, 0.0, 0.1]),
            duplicates=random.choice([0.0, 0.3]),
            delay_ms_max=random.choice([2, 10, 30]),
            partitions_per_s=random.choice([1.0, 3.0]),
            one_way=random.random() < 0.3,
            partition_ms_max=random.choice([300, 800]),
            aimed_partitions=1.0,
            bursts_max=random.choice([5, 30]),
            crashes_after_partitions=random.choice([0.0, 0.5]),
            poor_hints=random.choice([0.5, 1.0]),
            crashes_per_s=0.0,
            leader_crashes_per_s=0.0,
            aimed_at_new_leaders=0.0,
            aimed_at_votes=0.0,
            aimed_at_commits=0.0,
            aimed_at_changes=0.0,
            heartbeat_ms=20,
            election_min_ms=60,
            election_max_ms=random.choice([90, 200]),
            disk_ms_max=random.choice([0, 2]),
            slow_disk_ms_max=random.choice([0, 40]),
            compactions=0.0,
            append_entries_max=1,
            proposals_per_s=40.0,
            join_every_ms=50,
        )

    def _churning(self, random: Random) -> "Parameters":
        """Members come, go and come back while the mesh is split: changes of the voters overlap."""
        heartbeat_ms = 20
        return replace(
            self,
            nodes=random.choice([3, 4, 5, 6, 7]),
            faults_ms=random.randrange(4_000, 9_000),
            loss=random.choice([0.0, 0.0, 0.1]),
            delay_ms_max=random.choice([2, 10, 30]),
            partitions_per_s=random.choice([0.5, 1.5]),
            partition_ms_max=random.choice([300, 1_500]),
            aimed_partitions=random.choice([0.0, 0.5]),
            aimed_at_changes=random.choice([0.2, 0.6]),
            aimed_at_new_leaders=0.0,
            aimed_at_votes=0.0,
            aimed_at_commits=0.0,
            crashes_per_s=random.choice([0.0, 0.1]),
            leader_crashes_per_s=random.choice([0.0, 0.5]),
            heartbeat_ms=heartbeat_ms,
            election_min_ms=100,
            election_max_ms=200,
            wipes_per_s=random.choice([0.0, 0.4]),
            removals_per_s=random.choice([0.3, 1.0]),
            disk_ms_max=random.choice([0, 2]),
            slow_disk_ms_max=random.choice([0, 40]),
            append_entries_max=random.choice([1, 8]),
            join_every_ms=random.choice([50, 300]),
        )

    def _compacting(self, random: Random) -> "Parameters":
        """Logs that begin just behind what is applied, and leaders that know little of their followers.

        Whether a snapshot may replace a log matters only to a follower that holds more than the
        snapshot and does not know yet that it is decided.
        """
        heartbeat_ms = 20
        return replace(
            self,
            nodes=random.choice([3, 3, 4, 5]),
            faults_ms=random.randrange(4_000, 9_000),
            loss=random.choice([0.0, 0.05, 0.2]),
            duplicates=random.choice([0.0, 0.3]),
            delay_ms_max=random.choice([5, 20, 60]),
            poor_hints=random.choice([0.3, 1.0]),
            reads=random.choice([0.0, 0.2]),
            images=1.0,
            compactions=1.0,
            compaction_keeps_max=random.choice([0, 0, 3]),
            snapshot_ms_max=random.choice([0, 5, 50]),
            snapshots_fail=random.choice([0.0, 0.3]),
            leader_crashes_per_s=random.choice([0.5, 2.0]),
            crashes_per_s=random.choice([0.0, 0.2]),
            aimed_at_new_leaders=0.0,
            aimed_at_votes=0.0,
            aimed_at_commits=random.choice([0.0, 0.1]),
            heartbeat_ms=heartbeat_ms,
            election_min_ms=60,
            election_max_ms=random.choice([90, 200]),
            down_ms_max=random.choice([50, 500]),
            disk_ms_max=random.choice([0, 2, 10]),
            slow_disk_ms_max=random.choice([0, 40]),
            append_entries_max=random.choice([1, 2]),
            proposals_per_s=40.0,
            join_every_ms=50,
        )
