"""A mesh that grows, shrinks and dies node by node while every node writes all the time.

`Growth` starts, removes and kills nodes and says what the others promise after each step: how many
vote, that everybody of them lives, and how long nobody's write was acknowledged.
"""

import contextlib
import json
import os
import random
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, Final

from ledger.queries import AppliedState, Reader
from mesh.clock import monotonic_ms
from tests.cluster import Node, wait_for
from tests.films import make_film
from tests.mesh_clients import Api, NoAnswerError, RefusedError

PACE_S: Final = 0.1
"""Between two writes of one node: many see every pause, few load nine nodes on a small machine."""
JOB_EVERY: Final = 30
"""One write in so many is a job, which its owner plans; the others are tokens, which cost little."""
TOKEN: Final = {"uses": 1, "ttl_s": 1}
_NEVER = threading.Event()


@dataclass(frozen=True, slots=True)
class Ack:
    """A write that was acknowledged."""

    node: str
    begin_ms: int
    end_ms: int


@dataclass(slots=True)
class Written:
    """What all writers know together."""

    acks: list[Ack] = field(default_factory=list)
    jobs: dict[str, str] = field(default_factory=dict)
    """Id of each acknowledged job by its film."""
    refused: dict[tuple[str, str], int] = field(default_factory=dict)
    """Writes that were not acknowledged, by node and answer."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, ack: Ack) -> None:
        with self._lock:
            self.acks.append(ack)

    def refuse(self, node: str, answer: str) -> None:
        with self._lock:
            self.refused[node, answer] = self.refused.get((node, answer), 0) + 1

    def gap_ms(self, begin_ms: int, end_ms: int, nodes: Sequence[str] | None = None) -> int:
        """The longest time within these bounds in which no write of these nodes was acknowledged."""
        with self._lock:
            ends = sorted(a.end_ms for a in self.acks if nodes is None or a.node in nodes)
        marks = [begin_ms, *(e for e in ends if begin_ms < e < end_ms), end_ms]
        return max(after - before for before, after in pairwise(marks))


class Writer(threading.Thread):
    """Writes on one node without pause until it is told to stop; a dead node is asked again."""

    def __init__(self, node: Node, written: Written) -> None:
        super().__init__(name=f"writer-{node.name}", daemon=True)
        self._node = node
        self._written = written
        self._film = node.films / "film.mp4"
        if not self._film.exists():  # jobs of before are links to it
            make_film(self._film, seconds=1)
        self.stopping = threading.Event()
        self._made = 0

    def run(self) -> None:
        api = Api(self._node.home)
        while not self.stopping.wait(PACE_S):
            begin_ms = monotonic_ms()
            try:
                status, body = self._write(api)
            except RefusedError:
                self._written.refuse(self._node.name, "not there")
                continue
            except NoAnswerError:
                self._written.refuse(self._node.name, "no answer")
                continue
            if status == 200:
                self._written.note(Ack(self._node.name, begin_ms, monotonic_ms()))
            else:
                self._written.refuse(self._node.name, str(body.get("code", status)))
        api.close()

    def _write(self, api: Api) -> tuple[int, Any]:
        self._made += 1
        if self._made % JOB_EVERY:
            return api.ask("/api/v1/tokens", TOKEN)
        path = self._node.films / f"{self._made}-{random.randrange(1 << 30)}.mp4"
        os.link(self._film, path)
        status, body = api.ask("/api/v1/jobs", {"paths": [str(path)], "profile": "web"})
        if status == 200:
            (job,) = body["jobs"]
            self._written.jobs[str(path)] = job["id"]
        return status, body


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step did, and what held after it."""

    what: str
    members: int
    alive: int
    voters: tuple[str, ...]
    settled_ms: int
    """Until the voters were as they should be."""
    gap_ms: int
    """The longest time in which no write was acknowledged anywhere."""
    node_gap_ms: int
    """The same on that node, of those that were there all the time, which waited longest."""


class Growth:
    """Nodes that come and go, a writer on each that lives, and the table of steps."""

    def __init__(
        self,
        nodes: Sequence[Node],
        options: Sequence[str],
        tell: Callable[[Step], None] = lambda _: None,
    ) -> None:
        self._tell = tell
        self.nodes = list(nodes)
        self.written = Written()
        self.steps: list[Step] = []
        self.alive: list[Node] = []
        self.dead: list[Node] = []
        """Killed and still members."""
        self._options = tuple(options)
        self._writers: dict[str, Writer] = {}

    @property
    def members(self) -> int:
        """How many should belong."""
        return len(self.alive) + len(self.dead)

    def status(self, node: Node) -> Any:
        """A node's word over one short connection, or None."""
        with contextlib.closing(Api(node.home)) as api:
            try:
                status, body = api.ask("/api/v1/status")
            except (RefusedError, NoAnswerError):
                return None
        return body if status == 200 else None

    def coordinator(self) -> Node:
        """Whom a living node names, once that one lives as well."""

        def named() -> Node | None:
            told = self.status(self.alive[0])
            return next((n for n in self.alive if told and n.name == told["coordinator"]), None)

        return wait_for("a coordinator", named, 60)

    def voters(self) -> list[Node]:
        """Those of the living that vote."""
        told = wait_for("a status", lambda: self.status(self.alive[0]), 20)
        return [node for node in self.alive if node.name in told["voters"]]

    def follower(self) -> Node:
        """A voter that does not lead."""
        lead = self.coordinator()
        return next(node for node in self.voters() if node is not lead)

    def other(self) -> Node:
        """A node that does not lead, one that does not vote first."""
        lead, voters = self.coordinator(), self.voters()
        others = [node for node in self.alive if node is not lead]
        return min(others, key=lambda node: node in voters)

    # --- steps ------------------------------------------------------------------------------------

    def found(self) -> None:
        """The first node forms a mesh."""
        first = self.nodes[0]
        with self.step("forms a mesh", voters=1):
            first.start("--new-mesh", *self._options)
            self.alive.append(first)
            wait_for("a first coordinator", lambda: self._ready(first), 60)
            self._write_on(first)

    def grow(self, count: int, voters: int) -> None:
        """As many join at once as are missing to `count`."""
        new = [n for n in self.nodes if n not in self.alive and n not in self.dead]
        new = new[: count - self.members]
        with self.step(f"{len(new)} join", voters=voters):
            token = self._token(len(new))
            for node in new:
                node.start("--join", token, *self._options)
            for node in new:
                wait_for(f"{node.name} is there", partial(self._ready, node), 90)
                self.alive.append(node)
                self._write_on(node)

    def remove(self, node: Node, by: Node, voters: int) -> None:
        """`nodes remove`: the node hands over what it has, says why, and stops."""
        what = f"{node.name} ({self._part(node)}) is removed"
        with self.step(what, voters=voters):
            self._ask(by, f"/api/v1/nodes/{node.name}/remove", {})
            self.alive.remove(node)
            assert node.process is not None
            code = node.process.wait(timeout=30)
            assert code == 4, f"{node.name} ended with {code}: {node.log_tail()}"
            self._stop_writer(node.name)

    def kill(self, node: Node, voters: int) -> None:
        """SIGKILL; the others wait as long as they must and replace its vote where they can."""
        with self.step(f"{node.name} ({self._part(node)}) is killed", voters=voters):
            self.alive.remove(node)
            self.dead.append(node)
            node.kill()
            self._stop_writer(node.name)

    def go(self, node: Node, voters: int) -> None:
        """SIGTERM: the node hands over what it has and stops, and remains a member."""
        with self.step(f"{node.name} ({self._part(node)}) goes", voters=voters):
            self.alive.remove(node)
            self.dead.append(node)
            code = node.stop()
            assert code == 0, f"{node.name} ended with {code}: {node.log_tail()}"
            self._stop_writer(node.name)

    def undecided(self, node: Node) -> str:
        """One goes too many: what the others say then, which is the same everywhere.

        Nothing is acknowledged any more, and reading goes on.
        """
        self.alive.remove(node)
        self.dead.append(node)
        node.stop()
        self._stop_writer(node.name)

        def said() -> str | None:
            told = [self.status(one) for one in self.alive]
            notes = {n for t in told if t for n in t["notes"] if "are needed" in n}
            return notes.pop() if len(notes) == 1 and all(told) else None

        said_so = wait_for("all say that nothing is decided", said, 30)
        seen_ms = monotonic_ms()
        with contextlib.closing(Api(self.alive[0].home)) as api:
            status, _ = api.ask("/api/v1/jobs?limit=1")
        assert status == 200
        assert not [ack for ack in self.written.acks if ack.begin_ms > seen_ms]
        return said_so

    def return_all(self, voters: int) -> None:
        """All that are away start again, as they are."""
        with self.step(f"{len(self.dead)} return", voters=voters):
            back, self.dead = self.dead, []
            for node in back:
                node.start(*self._options)
            for node in back:
                wait_for(f"{node.name} is back", partial(self._ready, node), 90)
                self.alive.append(node)
                self._write_on(node)

    def bury(self, voters: int) -> None:
        """`nodes remove` of all that were killed: fewer members, hence fewer voters."""
        with self.step(f"the {len(self.dead)} dead are removed", voters=voters):
            for node in self.dead:
                self._ask(self.alive[0], f"/api/v1/nodes/{node.name}/remove", {})
            self.dead.clear()

    @contextlib.contextmanager
    def step(self, what: str, voters: int) -> Generator[None]:
        """Notes what happens within, until so many vote and nothing is on its way any more."""
        begin_ms = monotonic_ms()
        before = [node.name for node in self.alive]
        yield
        names = wait_for(f"{what}: {voters} voters", lambda: self._settled(voters), 120)
        settled_ms = monotonic_ms()
        self._all_write(settled_ms)
        stayed = [node.name for node in self.alive if node.name in before]
        end_ms = monotonic_ms()
        done = Step(
            what=what,
            members=self.members,
            alive=len(self.alive),
            voters=tuple(names),
            settled_ms=settled_ms - begin_ms,
            gap_ms=self.written.gap_ms(begin_ms, end_ms) if before else 0,
            node_gap_ms=max(
                (self.written.gap_ms(begin_ms, end_ms, [name]) for name in stayed), default=0
            ),
        )
        self.steps.append(done)
        self._tell(done)

    def _settled(self, voters: int) -> list[str] | None:
        """The voters, when all living nodes name the same ones, of whom as many live as can."""
        told = [self.status(node) for node in self.alive]
        if not all(told):
            return None
        sets = {(s["coordinator"], tuple(sorted(s["voters"])), len(s["learners"])) for s in told}
        if len(sets) != 1:
            return None
        ((coordinator, names, learners),) = sets
        living = {node.name for node in self.alive}
        right = coordinator in living and len(names) == voters and learners + voters == self.members
        as_many = len(living & set(names)) == min(voters, len(living))
        return list(names) if right and as_many else None

    def _all_write(self, since_ms: int) -> None:
        """Until each living node's write was acknowledged that began after this moment."""

        def wrote() -> bool:
            names = {ack.node for ack in list(self.written.acks) if ack.begin_ms >= since_ms}
            return names >= {node.name for node in self.alive}

        wait_for("every node's write is acknowledged", wrote, 60)

    # --- small things -------------------------------------------------------------------------------

    def finish(self) -> None:
        """Ends all writers and waits until the living ledgers are equal."""
        for name in list(self._writers):
            self._stop_writer(name)
        wait_for("all ledgers are equal", lambda: len({applied(n) for n in self.alive}) == 1, 60)

    def lost(self) -> list[str]:
        """Films whose acknowledged job a living node's ledger lacks or holds twice."""
        found: list[str] = []
        for node in self.alive:
            there: dict[str, list[str]] = {}
            with contextlib.closing(Reader(str(node.home / "ledger.db"))) as reader:
                for job in reader.jobs(limit=1_000_000):
                    there.setdefault(job.source, []).append(job.id)
            found += [f for f, job in self.written.jobs.items() if there.get(f, []) != [job]]
        return found

    def _part(self, node: Node) -> str:
        if node is self.coordinator():
            return "coordinator"
        return "voter" if node in self.voters() else "learner"

    def _ready(self, node: Node) -> bool:
        assert node.process is not None
        assert node.process.poll() is None, f"{node.name} ended: {node.log_tail()}"
        told = self.status(node)
        return told is not None and told["state"] == "member" and told["coordinator"] is not None

    def _token(self, uses: int) -> str:
        return str(self._ask(self.alive[0], "/api/v1/tokens", {"uses": uses})["token"])

    def _ask(self, node: Node, path: str, body: object) -> Any:
        with contextlib.closing(Api(node.home)) as api:
            status, answer = api.ask(path, body)
        assert status == 200, json.dumps(answer)
        return answer

    def _write_on(self, node: Node) -> None:
        writer = self._writers[node.name] = Writer(node, self.written)
        writer.start()

    def _stop_writer(self, name: str) -> None:
        writer = self._writers.pop(name)
        writer.stopping.set()
        writer.join(timeout=30)
        assert not writer.is_alive(), f"{writer.name} hangs"


def applied(node: Node) -> AppliedState:
    """How far a node's ledger is, and the checksum there."""
    with contextlib.closing(Reader(str(node.home / "ledger.db"))) as reader:
        return reader.applied()


HEAD: Final = (
    f"{'step':34}{'members':>8}{'alive':>6}{'settled':>10}{'no write':>10}{'one node':>10}  voters"
)


def line(step: Step) -> str:
    """For people."""
    return (
        f"{step.what:34}{step.members:>8}{step.alive:>6}{step.settled_ms / 1000:>8.1f} s"
        f"{step.gap_ms:>7} ms{step.node_gap_ms:>7} ms  {len(step.voters)}: {' '.join(step.voters)}"
    )


def errors_in(node: Node) -> list[str]:
    """Lines of a node's log that should make somebody look."""
    text = node.errors.read_text(errors="replace") if node.errors.exists() else ""
    return [line for line in text.splitlines() if "Traceback" in line or " error " in line]
