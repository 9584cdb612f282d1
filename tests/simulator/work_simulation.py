"""The mesh at work: real SQLite ledgers in memory, the real scheduler and lease clocks, and actors.

Owners plan, accept, refuse and publish; workers run attempts under the lease rules, fail, finish
and vanish; whoever leads grants and expires.  All of them act on their own replica, which may be
far behind.  Films that were published outlive crashes and wiped data directories.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any, Literal

from ledger.commands import (
    AcceptResult,
    AddMember,
    AttemptReport,
    Command,
    ExpireLeases,
    FailAttempt,
    FinishAttempt,
    FinishJob,
    FormMesh,
    MemberSpec,
    PieceSpec,
    PlanJob,
    PlanPieces,
    RefuseResult,
    ReleaseLeases,
    ReportNode,
    RevokeMember,
    SpeculateLeases,
    SpeculativeLease,
    StartPlanning,
    TaskSpec,
    seal,
)
from ledger.estimates import with_estimates
from ledger.jobs import Attempt, Job
from ledger.orders import ReleaseNode
from ledger.queries import Reader
from ledger.scheduler import plan
from ledger.scheduler_view import SchedulerView
from ledger.schema import SCHEMA_VERSION
from ledger.submissions import JobSpec, SubmitJobs
from mesh.ids import NodeId, RaftId, node_of
from node.work.leases import Fence, LeaseClock, LeaseTiming, WorkerHeartbeat
from tests.simulator.checks import Violation
from tests.simulator.ledger_machine import LedgerMachine
from tests.simulator.machine import Machine
from tests.simulator.mesh_simulation import MeshSimulation, Result, name_of
from tests.simulator.node import Node
from tests.simulator.parameters import Parameters

TIMING = LeaseTiming(heartbeat_ms=100, suspect_ms=250, fence_ms=450, expiry_ms=600)
ACT_EVERY_MS = 100
RETRY_MS = 500
LATE_MS_MAX = 1_500
SILENT_MS_MAX = 2_000
JOBS_MAX = 32
PARTS_MAX = 4
SLOW = 0.3
"""Of the looks at an attempt that find it slow, as if its progress told so."""
SLOW_MS = 1_000_000
REPORT = AttemptReport(
    command_line="[]",
    stderr_tail="",
    encoder="x",
    ffmpeg="1",
    started_at_ms=0,
    fetch_ms=0,
    encode_ms=0,
    verify_ms=0,
    fetched_bytes=0,
    frames=0,
)


class Actor:
    """Owner and worker of one life of a node; everything it remembers dies with it."""

    def __init__(self, mesh: "WorkSimulation", node: NodeId, machine: LedgerMachine) -> None:
        self.mesh = mesh
        self.node = node
        self.machine = machine
        self.random = Random(f"actor {mesh.parameters.seed} {node} {mesh.time.now_ms}")
        self.fence = Fence(TIMING, mesh.nodes[node].now_ms)
        self.running: dict[str, int] = {}
        self.handed: set[str] = set()
        self.held: dict[str, Attempt] = {}
        self.asked: dict[tuple[str, ...], tuple[str, bytes, int]] = {}
        self.heartbeat_ms = 0
        self.silent_until_ms = 0
        mesh.time.after(1, self._act)

    @property
    def host(self) -> Node | None:
        node = self.mesh.nodes.get(self.node)
        return node if node is not None and node.machine is self.machine else None

    def _act(self) -> None:
        host = self.host
        if host is None:
            return
        self.mesh.time.after(ACT_EVERY_MS, self._act)
        if host.is_paused:
            return
        reader = self.machine.reader
        if reader.member(self.node) is None:
            return
        now_ms = host.now_ms
        # What was answered needs no second asking; what was lost does.
        self.asked = {k: v for k, v in self.asked.items() if not self.machine.done(v[0])}
        for key, (_, data, again_ms) in tuple(self.asked.items()):
            if now_ms >= again_ms:
                self._propose(key, data)
        row = reader.node(self.node)
        if row is None:
            self.ask(("report",), self._report())
        elif row.quarantine:
            # It proves its encoder anew, and nothing is wrong with that.
            self.ask(("release node",), ReleaseNode(node=self.node, by=self.node))
        if self.mesh.is_faulty(self.random, 0.04):
            # Its heartbeats are lost and nothing else is: leases end under workers that go on.
            self.silent_until_ms = now_ms + self.random.randrange(SILENT_MS_MAX)
        if now_ms >= max(self.heartbeat_ms, self.silent_until_ms):
            self.heartbeat_ms = now_ms + TIMING.heartbeat_ms
            self.mesh.heartbeat(self, now_ms)
        self._own(reader)
        self._work(reader, now_ms)

    def _report(self) -> Command:
        return ReportNode(
            node=self.node,
            ffmpeg="1",
            encoders=("x",),
            slots=2,
            cpus=2,
            platform="simulated",
            version="0",
            devices="[]",
        )

    # --- the owner ----------------------------------------------------------------------------

    def _own(self, reader: Reader) -> None:
        for job in reader.jobs_to_plan(self.node, 16):
            if job.state == "queued":
                self.ask(("start", job.id), StartPlanning(job=job.id))
            else:
                self.ask(("plan", job.id), self._plan(job))
        # While it runs, a film in pieces hands back its parts.
        for job in reader.jobs_of_owner(self.node, ("running", "verifying")):
            self._judge(reader, job)
        for job in reader.jobs_of_owner(self.node, ("publishing",)):
            (attempt,) = (a for a in reader.attempts(job.id) if a.state == "accepted")
            self.mesh.check_parts(job, reader.attempts(job.id))
            self.mesh.publish(job, attempt)
            done = FinishJob(job=job.id, token=attempt.token, finished_at_ms=1)
            self.ask(("finish", job.id), done)

    def _plan(self, job: Job) -> Command:
        told: dict[str, Any] = {
            "job": job.id,
            "source_digest": "0" * 64,
            "source_bytes": 1,
            "probe_json": "{}",
            "plan_json": "{}",
        }
        if not job.split:
            whole = TaskSpec(id=f"t{job.id}", kind="whole", needs=("x",), cost=1)
            return PlanJob(tasks=(whole,), **told)
        tasks = [
            PieceSpec(id=f"t{job.id}-{number}", kind="chunk", needs=("x@1",), cost=1)
            for number in range(self.random.randrange(1, PARTS_MAX))
        ]
        if self.random.random() < 0.5:
            tasks.append(PieceSpec(id=f"t{job.id}-s", kind="audio", needs=(), cost=1))
        tasks.append(PieceSpec(id=f"t{job.id}-e", kind="assemble", needs=(), cost=1))
        return PlanPieces(tasks=tuple(tasks), **told)

    def _judge(self, reader: Reader, job: Job) -> None:
        finished = [a for a in reader.attempts(job.id) if a.state == "finished"]
        for attempt in finished:
            if self.mesh.is_faulty(self.random, 0.15):
                refuse = RefuseResult(
                    job=job.id, attempt=attempt.id, token=attempt.token, code="x", what="x", todo=""
                )
                self.ask(("judge", attempt.id), refuse)
            else:
                accept = AcceptResult(
                    job=job.id,
                    attempt=attempt.id,
                    token=attempt.token,
                    output=job.output,
                    result_bytes=1,
                    result_digest=attempt.result_digest,
                )
                self.ask(("judge", attempt.id), accept)

    # --- the worker ---------------------------------------------------------------------------

    def _work(self, reader: Reader, now_ms: int) -> None:
        leased = {attempt.id: attempt for attempt in reader.active_attempts(node=self.node)}
        for attempt_id, attempt in tuple(self.held.items()):
            if attempt_id not in leased:
                del self.held[attempt_id]
                # It had looked at its fence, was stopped, and goes on after the lease is another's.
                if attempt_id not in self.handed and self.mesh.is_faulty(self.random, 0.5):
                    self._finish(attempt)
        self.held.update(leased)
        # What runs for a lease that was taken back is killed.
        self.running = {a: until_ms for a, until_ms in self.running.items() if a in leased}
        for attempt in leased.values():
            if attempt.id in self.handed:
                continue
            if attempt.id not in self.running:
                if self.mesh.is_faulty(self.random, 0.1):
                    self._release(attempt)
                    continue
                # Parts are short: one node that is left alone has to end them all in time.
                whole = attempt.task == f"t{attempt.job}"
                took_ms = self.random.randrange(50, 1_500 if whole else 400)
                self.running[attempt.id] = now_ms + took_ms
            elif now_ms >= self.running[attempt.id] and self.fence.may_hand_back(now_ms):
                self.handed.add(attempt.id)
                self._hand_back(attempt)

    def _release(self, attempt: Attempt) -> None:
        released = ReleaseLeases(node=self.node, attempts=(attempt.id,), what="shutdown")
        self.ask(("release", attempt.id), released)

    def _hand_back(self, attempt: Attempt) -> None:
        kinds: tuple[Literal["encoder", "transient", "input"], ...] = ("encoder", "transient")
        if self.mesh.is_faulty(self.random, 0.2):
            failed = FailAttempt(
                attempt=attempt.id,
                token=attempt.token,
                node=self.node,
                failure=self.random.choice([*kinds, "transient", "transient"]),
                code="x",
                what="x",
                todo="",
                backoff_ms=self.random.choice([0, 200, 800]),
                report=REPORT,
            )
            self.ask(("result", attempt.id), failed)
            return
        self._finish(attempt)

    def _finish(self, attempt: Attempt) -> None:
        finished = FinishAttempt(
            attempt=attempt.id,
            token=attempt.token,
            result_bytes=1,
            # Each run of an encoder makes another file.
            result_digest=f"{self.random.getrandbits(256):064x}",
            result_json="{}",
            report=REPORT,
        )
        self.ask(("result", attempt.id), finished)

    # --- proposing ----------------------------------------------------------------------------

    def ask(self, key: tuple[str, ...], command: Command) -> None:
        """Proposes until it is answered, always the same command under the same id."""
        if key not in self.asked:
            command_id, data = self.mesh.sealed(self.node, command)
            self.asked[key] = (command_id, data, 0)
            self._propose(key, data)

    def _propose(self, key: tuple[str, ...], data: bytes) -> None:
        self.asked[key] = (self.asked[key][0], data, self.mesh.time.now_ms + RETRY_MS)
        host = self.host
        if host is not None and host.raft is not None and host.raft.leader is not None:
            leader = node_of(host.raft.leader)
            self.mesh.call(self.node, leader, lambda node: node.propose(data))


class WorkSimulation(MeshSimulation):
    """One run of one seed with jobs."""

    members_return = False  # the ledger never takes back whom it revoked

    def __init__(self, parameters: Parameters, node_class: type[Node] = Node) -> None:
        super().__init__(parameters.at_work(), node_class)
        self.published: dict[str, str] = {}
        self.jobs = 0
        self.twice: set[str] = set()
        """Tasks that had two leases at a time."""
        self.submitted: dict[str, str] = {}
        self.clocks: dict[tuple[RaftId, int], LeaseClock] = {}
        self.seen_ms: dict[tuple[RaftId, int], dict[str, int]] = {}
        self.eligible_ms: dict[tuple[RaftId, int], dict[str, int]] = {}

    # --- the ledger in place of the list --------------------------------------------------------

    def open_machine(self, raft: RaftId, image: Any) -> Machine:
        machine = LedgerMachine(image, Random(f"{self.parameters.seed} {raft}"))
        Actor(self, node_of(raft), machine)
        return machine

    def sealed(self, proposer: NodeId, command: Command) -> tuple[str, bytes]:
        self.made += 1
        command_id = f"c{self.made}"
        data = seal(
            command,
            command_id=command_id,
            proposer=proposer,
            proposed_at_ms=self.random.randrange(1 << 40),
            cause="simulator",
        )
        return command_id, data

    def command(self, verb: str, argument: str) -> tuple[str, bytes]:
        founder = name_of(0)
        match verb:
            case "join":
                member = self._member(RaftId(argument))
                formed = any(
                    node.machine is not None and node.machine.members()
                    for node in self.nodes.values()
                )
                if formed:
                    return self.sealed(founder, AddMember(member=member, invitation=None))
                return self.sealed(
                    founder, FormMesh(mesh="0" * 32, founder=member, schema=SCHEMA_VERSION)
                )
            case "leave":
                revoke = RevokeMember(node=node_of(RaftId(argument)), by="simulator")
                return self.sealed(self._somebody(), revoke)
            case _:
                sealed = self.sealed(self._somebody(), SubmitJobs(jobs=(self._job(),)))
                self.submitted[f"j{self.jobs}"] = sealed[0]
                return sealed

    def _member(self, raft: RaftId) -> MemberSpec:
        node = node_of(raft)
        key = node.encode().ljust(32, b"k")
        return MemberSpec(node=node, raft_id=raft, public_key=key, name=node, role="full")

    def _somebody(self) -> NodeId:
        return self.random.choice(
            [node for node in sorted(self.nodes) if not self.nodes[node].retired]
        )

    def _job(self) -> JobSpec:
        self.jobs += 1
        return JobSpec(
            id=f"j{self.jobs}",
            owner=self._somebody(),
            source=f"/films/{self.jobs}",
            source_bytes=1,
            source_mtime_ns=1,
            source_inode=1,
            output=f"/films/{self.jobs}.out",
            overwrite=False,
            profile="web",
            profile_json="{}",
            priority=self.random.randrange(3),
            tenant="",
            split=self.random.random() < 0.4,
        )

    def _joiner(self, number: int) -> Callable[[], None]:
        joining = super()._joiner(number)

        def join() -> None:
            formed = any(n.machine is not None and n.machine.members() for n in self.nodes.values())
            if formed:
                joining()
            else:
                self.time.after(100, join)

        return join

    def add(self, raft: RaftId, disk: Any = None) -> Node:
        node = super().add(raft, disk)
        node.act_as_leader = lambda: self.coordinate(node)
        return node

    def work(self) -> None:
        if self.jobs < JOBS_MAX and any(
            n.machine is not None and n.machine.members() for n in self.nodes.values()
        ):
            self.request("work", "")

    def work_at(self, node: Node) -> None:
        """Nothing: `MeshSimulation` covers the tails that nobody else sees."""

    def is_faulty(self, random: Random, chance: float) -> bool:
        return not self.network.healed and random.random() < chance

    # --- calls beside consensus -----------------------------------------------------------------

    def call(self, caller: NodeId, callee: NodeId, act: Callable[[Node], object]) -> None:
        """A request over the same network; lost, late, or acted upon."""
        if caller != callee and not self.network.passes(caller, callee):
            return

        def arrive() -> None:
            node = self.nodes.get(callee)
            if node is not None and node.is_up and not node.is_paused:
                act(node)

        self.time.after(self.network.delay_ms(), arrive)

    def heartbeat(self, actor: Actor, sent_ms: int) -> None:
        host = actor.host
        if host is None or host.raft is None or host.raft.leader is None:
            return
        beat = WorkerHeartbeat(attempts=tuple(actor.running), accepting=True)

        def receive(leader: Node) -> None:
            if leader.is_leader and leader.raft is not None:
                clock = self._clock(leader, leader.raft.term)
                clock.heard(actor.node, beat, leader.now_ms)
                self.call(
                    node_of(leader.raft_id),
                    actor.node,
                    lambda _: actor.fence.acknowledged(sent_ms),
                )

        self.call(actor.node, node_of(host.raft.leader), receive)

    # --- the coordinator --------------------------------------------------------------------------

    def _clock(self, leader: Node, term: int) -> LeaseClock:
        key = (leader.raft_id, term)
        if key not in self.clocks:
            self.clocks[key] = LeaseClock(TIMING, leader.now_ms)
            self.seen_ms[key] = {}
            self.eligible_ms[key] = {}
        return self.clocks[key]

    def coordinate(self, node: Node) -> None:
        """What the node's coordinator does in one round, with the same pure parts."""
        machine, raft = node.machine, node.raft
        assert isinstance(machine, LedgerMachine)
        assert raft is not None
        if machine.reader.mesh() is None:
            return
        key, now_ms = (raft.raft_id, raft.term), node.now_ms
        clock = self._clock(node, raft.term)
        active = [attempt.id for attempt in machine.reader.active_attempts()]
        seen = self.seen_ms[key] = {a: self.seen_ms[key].get(a, now_ms) for a in active}
        expired = clock.expired(seen.items(), now_ms)
        if expired:
            silent = ExpireLeases(attempts=expired, what="silent")
            self._propose_as_coordinator(node, silent)
        view = machine.reader.schedulable()
        # Speeds that are known make of all nodes one line; in half of the runs nobody measures any.
        twice = bool(self.parameters.seed % 2)
        waiting = {
            f"{task.task}/{task.attempts}": self.eligible_ms[key].get(
                f"{task.task}/{task.attempts}", now_ms + task.backoff_ms
            )
            for task in view.tasks
            if task.backoff_ms
        }
        self.eligible_ms[key] = waiting
        view = replace(
            view,
            tasks=tuple(
                replace(task, eligible_at_ms=waiting.get(f"{task.task}/{task.attempts}", 0))
                for task in view.tasks
            ),
            nodes=tuple(
                replace(
                    peer,
                    alive=clock.takes_work(NodeId(peer.node), now_ms),
                    speeds={"web": 1} if twice else {},
                )
                for peer in view.nodes
            ),
            running=tuple(
                replace(run, told_ms=SLOW_MS if self.is_faulty(self.random, SLOW) else None)
                if twice
                else run
                for run in view.running
            ),
            new_attempt_id=self._attempt_id,
        )
        held = Counter(run.task.task for run in view.running)
        self.twice |= {task for task, count in held.items() if count > 1}
        for command in plan(with_estimates(view, seen, now_ms), now_ms):
            self._propose_as_coordinator(node, command)
        if twice:
            self._speculate(node, view)

    def _speculate(self, node: Node, view: SchedulerView) -> None:
        """Second leases also where the scheduler grants none, for in so small a mesh few nodes idle."""
        for run in view.running:
            if run.is_alone and self.is_faulty(self.random, SLOW):
                lease = SpeculativeLease(
                    task=run.task.task,
                    attempt=self._attempt_id(),
                    node=self.random.choice(view.nodes).node,
                    device="",
                    beside=run.attempt,
                )
                command = SpeculateLeases(leases=(lease,), granted_at_ms=0)
                self._propose_as_coordinator(node, command)

    def _propose_as_coordinator(self, node: Node, command: Command) -> None:
        """At once, or late and to whoever leads then: what it rested on may have changed."""
        data = self.sealed(node_of(node.raft_id), command)[1]
        if not self.is_faulty(self.random, 0.3):
            node.propose(data)
            return

        def propose() -> None:
            for other in self.nodes.values():
                other.propose(data)

        self.time.after(self.random.randrange(LATE_MS_MAX), propose)

    def _attempt_id(self) -> str:
        self.made += 1
        return f"a{self.made}"

    # --- what must hold -------------------------------------------------------------------------

    def check_parts(self, job: Job, attempts: tuple[Attempt, ...]) -> None:
        """What is published rests on each part once, and was assembled when all of them were kept."""
        kept = [a for a in attempts if a.state == "kept"]
        if len({a.task for a in kept}) != len(kept):
            raise Violation(f"{job.id} is published of a part that is kept twice")
        (last,) = (a for a in attempts if a.state == "accepted")
        if any(a.token >= last.token for a in kept):
            raise Violation(f"{job.id} was assembled before its parts were there")

    def publish(self, job: Job, attempt: Attempt) -> None:
        """Renames into place, never over another file; done twice by digest it is one."""
        digest = self.published.setdefault(job.output, attempt.result_digest)
        if digest != attempt.result_digest:
            raise Violation(f"{job.output} is published twice: {digest}, {attempt.result_digest}")

    def is_work_done(self) -> bool:
        for node in self.members():
            if not isinstance(node.machine, LedgerMachine):
                return False
            reader = node.machine.reader
            active = {member.node for member in reader.members(active_only=True)}
            if any(not job.is_final and job.owner in active for job in reader.jobs(limit=1_000)):
                return False
        return True

    def verify(self) -> None:
        for node in self.members():
            assert isinstance(node.machine, LedgerMachine)
            node.machine.verify()
            reader = node.machine.reader
            jobs = {job.id: job for job in reader.jobs(limit=1_000)}
            for name, command_id in self.submitted.items():
                outcome, job = reader.outcome(command_id), jobs.get(name)
                if outcome is None or outcome.ok != (job is not None):
                    raise Violation(f"{name} was answered {outcome}, and the ledger holds {job}")
                if job is None:
                    continue
                accepted = [a for a in reader.attempts(job.id) if a.state == "accepted"]
                digests = [attempt.result_digest for attempt in accepted]
                if job.state == "done" and digests != [self.published.get(job.output)]:
                    raise Violation(f"{job.id} is done, but not what was accepted is published")


def simulate_work(seed: int, node_class: type[Node] = Node) -> Result:
    """Runs one seed with jobs on real ledgers."""
    return WorkSimulation(Parameters.draw(seed), node_class).run()
