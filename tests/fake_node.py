"""A whole `NodeService` in memory, behind the real gateway on loopback: what the faces are tested against.

It keeps the port's promises (ids, cursors, errors, events), so that the faces' tests show how they
treat a node; `tests/integration/test_walking_mesh.py` asks real nodes the same questions.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Generator
from pathlib import Path
from typing import Any, TypeVar

from ledger.jobs import JobState
from mesh import clock
from mesh.errors import (
    ConflictError,
    DarkStreamError,
    NotAllowedError,
    NotFoundError,
    UsageError,
)
from node.faces.validation import validated
from node.gateway.config_models import Validated, ValidateRequest
from node.gateway.device_models import Detection, EncoderInfo
from node.gateway.events import EventRing
from node.gateway.models import (
    Approved,
    AttemptInfo,
    Check,
    Event,
    Fault,
    Health,
    JobDetail,
    JobFilter,
    JobsPage,
    JobSummary,
    Metric,
    NodeInfo,
    NodesPage,
    PathFault,
    PendingJoin,
    Progress,
    Removed,
    Restored,
    ResultInfo,
    Revoked,
    Status,
    SubmitRequest,
    SubmitResult,
    Submitted,
    TaskInfo,
    TokenResult,
)
from node.gateway.server import Gateway, address_of, bind_api
from node.gateway.work_models import Limited, LimitRequest
from node.settings.home_files import write_api_files

T = TypeVar("T")
PROFILES = ("web", "mobile", "archive")
FRAMES = 100
WAIT_S = 10


class FakeNode:
    """One node named `one`, with a second one `two` that works."""

    def __init__(self) -> None:
        self.ring = EventRing(clock.wall_ms() * 1_000)
        self.failure: DarkStreamError | Exception | None = None
        self.hold = False
        """Jobs stay queued until it is False and `release` is called."""
        self.ready = True
        self.calls: list[str] = []
        self.listeners = 0
        self._jobs: dict[str, JobDetail] = {}
        self._nodes = [
            _node("id-one", "one", this=True, coordinator=True),
            _node("id-two", "two"),
        ]
        self.pending = [
            PendingJoin(
                id="id-new", name="new", code="123456", address="10.0.0.9:7440", asked_at_ms=1
            )
        ]
        self.caught_up = asyncio.Event()
        self.caught_up.set()
        self.profiles: Any = None
        self.work: Any = None  # the tests of these faces ask real nodes
        self._runs: set[asyncio.Task[None]] = set()

    def _enter(self, call: str) -> None:
        self.calls.append(call)
        if self.failure is not None:
            raise self.failure

    async def status(self) -> Status:
        self._enter("status")
        counts: dict[str, int] = {}
        for job in self._jobs.values():
            counts[job.state] = counts.get(job.state, 0) + 1
        return Status(
            node="one",
            node_id="id-one",
            version="0",
            mesh="m" * 32,
            state="member",
            coordinator="one",
            quorum=True,
            voters=["one"],
            learners=["two"],
            nodes_alive=2,
            nodes_total=2,
            jobs=counts,
        )

    async def catch_up(self) -> None:
        self._enter("catch_up")
        await self.caught_up.wait()

    async def nodes(self) -> NodesPage:
        self._enter("nodes")
        return NodesPage(nodes=list(self._nodes), pending=list(self.pending))

    async def jobs(self, wanted: JobFilter) -> JobsPage:
        self._enter("jobs")
        found = [
            job
            for job in sorted(self._jobs.values(), key=lambda job: job.id, reverse=True)
            if (wanted.status is None or job.state == wanted.status)
            and (wanted.node is None or wanted.node in (job.owner, *job.nodes))
            and (wanted.since_ms is None or job.submitted_at_ms >= wanted.since_ms)
            and (wanted.tenant is None or job.tenant == wanted.tenant)
        ]
        if wanted.cursor is not None:
            if wanted.cursor not in self._jobs:
                raise UsageError("the cursor is none of ours", "start again")
            found = [job for job in found if job.id < wanted.cursor]
        page = found[: wanted.limit]
        more = page[-1].id if len(found) > len(page) else None
        return JobsPage(jobs=[_summary(job) for job in page], next=more)

    async def job(self, job: str) -> JobDetail:
        self._enter("job")
        found = [one for key, one in self._jobs.items() if key.startswith(job)]
        if len(found) != 1:
            raise NotFoundError(f"no job {job!r} is known", "mesh-cli jobs lists them")
        return found[0]

    async def submit(self, request: SubmitRequest) -> SubmitResult:
        self._enter("submit")
        if request.profile not in PROFILES:
            raise UsageError(f"unknown profile {request.profile!r}", f"one of {PROFILES}")
        jobs: list[Submitted] = []
        faults: list[PathFault] = []
        for text in request.paths:
            source, size = Path(text), _size_of(text)
            if size is None:
                faults.append(
                    PathFault(path=text, code="not_found", what=f"{text} does not exist", todo="x")
                )
                continue
            folder = Path(request.output) if request.output else source.parent
            output = str(folder / f"{source.stem}.{request.profile}.mp4")
            made = None if request.dry_run else f"j{len(self._jobs):04d}"
            jobs.append(Submitted(id=made, source=text, output=output))
            if made is not None:
                self._jobs[made] = _job(made, request, text, output, size)
                self._start(made)
        return SubmitResult(jobs=jobs, faults=faults, dry_run=request.dry_run)

    def _start(self, job: str) -> None:
        if not self.hold:
            task = asyncio.get_running_loop().create_task(self._run(job))
            self._runs.add(task)
            task.add_done_callback(self._runs.discard)

    def release(self) -> None:
        """Runs every queued job; call it on the node's loop."""
        self.hold = False
        for job in self._jobs.values():
            if job.state == "queued":
                self._start(job.id)

    async def _run(self, job: str) -> None:
        self._change(job, state="running", nodes=["two"])
        for done in range(0, FRAMES + 1, 5):
            progress = Progress(
                job=job,
                attempt="a",
                node="two",
                phase="encoding",
                done=done,
                total=FRAMES,
                fps=50.0,
                speed=2.0,
            )
            self.ring.publish(Event(id=0, kind="progress", at_ms=0, progress=progress))
            await asyncio.sleep(0)
        source = self._jobs[job].source
        if "broken" in source:
            told = Fault(code="not_a_video", what=f"{source} is no video", todo="look", node="two")
            self._change(job, state="failed", fault=told)
            return
        result = ResultInfo(
            output=self._jobs[job].output,
            bytes=1_234,
            digest="d" * 64,
            frames_in=FRAMES,
            frames_out=FRAMES,
            duration_ms=4_000,
            node="two",
            encoder="libx264",
            encode_ms=2_500,
            total_ms=3_000,
        )
        self._change(job, state="done", result=result, finished_at_ms=2)

    def _change(self, job: str, **changes: object) -> None:
        self._jobs[job] = self._jobs[job].model_copy(update=changes)
        summary = _summary(self._jobs[job])
        self.ring.publish(Event(id=0, kind="job", at_ms=0, job=summary))

    async def create_token(self, uses: int, ttl_s: int) -> TokenResult:
        self._enter("create_token")
        return TokenResult(token="ds-token", uses=uses, expires_at_ms=ttl_s * 1_000)

    async def approve(self, name: str, code: str | None) -> Approved:
        self._enter(f"approve {name} {code}")
        asking = [one for one in self.pending if name in (one.id, one.name)]
        if not asking:
            raise NotFoundError(f"no node {name!r} asks to join", "mesh-cli nodes lists them")
        if len(asking) > 1:
            raise ConflictError(f"several nodes named {name!r} ask to join", "give the id")
        if code is not None and code != asking[0].code:
            raise NotAllowedError("the code is another one", "compare again")
        self.pending.remove(asking[0])
        return Approved(id=asking[0].id, name=asking[0].name, code=asking[0].code)

    async def restore(self, job: str) -> Restored:
        self._enter(f"restore {job}")
        found = await self.job(job)
        return Restored(id=found.id, source=found.source, result=found.output)

    async def remove(self, name: str) -> Removed:
        return Removed(id=(await self.revoke(name)).id, name=name)

    async def revoke(self, name: str) -> Revoked:
        self._enter(f"revoke {name}")
        for node in self._nodes:
            if name in (node.id, node.name):
                return Revoked(id=node.id, name=node.name)
        raise NotFoundError(f"no node {name!r} is known", "mesh-cli nodes lists them")

    async def limit(self, name: str, request: LimitRequest) -> Limited:
        self._enter(f"limit {name}")
        for node in self._nodes:
            if name in (node.id, node.name):
                rates = [rate or 0 for rate in (request.up, request.down)]
                return Limited(
                    id=node.id,
                    name=node.name,
                    slots=request.slots,
                    up=rates[0],
                    down=rates[1],
                    devices=request.devices,
                )
        raise NotFoundError(f"no node {name!r} is known", "mesh-cli nodes lists them")

    async def validate(self, request: ValidateRequest) -> Validated:
        self._enter("validate")
        return validated(request, "fake")

    async def detect(self) -> Detection:
        self._enter("detect")
        encoder = EncoderInfo(name="libx264", family="CPU", works=True)
        return Detection(
            ffmpeg="/bin/ffmpeg",
            ffmpeg_version="9",
            cpus=2,
            platform="test",
            devices=[],
            encoders=[encoder],
        )

    def events(self, after_id: int | None) -> AsyncIterator[Event]:
        return self._counted(self.ring.listen(after_id))

    async def _counted(self, events: AsyncIterator[Event]) -> AsyncIterator[Event]:
        self.listeners += 1
        try:
            async for event in events:
                yield event
        finally:
            self.listeners -= 1

    async def health(self) -> Health:
        why = "two of three voters answer" if self.ready else "no quorum"
        return Health(ready=self.ready, checks=[Check(name="quorum", ok=self.ready, reason=why)])

    async def metrics(self) -> list[Metric]:
        return [
            Metric(
                name="refused_total",
                kind="counter",
                help="Refused.",
                value=3,
                labels={"why": 'a "key"\n'},
            )
        ]


def _size_of(path: str) -> int | None:
    return Path(path).stat().st_size if Path(path).exists() else None


def _node(node: str, name: str, *, this: bool = False, coordinator: bool = False) -> NodeInfo:
    return NodeInfo(
        id=node,
        name=name,
        role="full",
        state="member",
        alive=True,
        coordinator=coordinator,
        vote="voter" if coordinator else "learner",
        this=this,
    )


def _job(job: str, request: SubmitRequest, source: str, output: str, size: int) -> JobDetail:
    attempt = AttemptInfo(
        id="a",
        number=1,
        node="two",
        state="finished",
        command_line=["ffmpeg", "-i", "a b.mp4"],
        stderr_tail="one\ntwo \x1b[31mred",
    )
    task = TaskInfo(
        id="t", kind="whole", state="done", needs=["libx264"], cost=1, attempts=[attempt]
    )
    state: JobState = "queued"
    return JobDetail(
        id=job,
        state=state,
        source=source,
        output=output,
        profile=request.profile,
        owner="one",
        nodes=[],
        tenant=request.tenant,
        priority=request.priority,
        source_bytes=size,
        submitted_at_ms=clock.wall_ms(),
        tasks=[task],
        why_waiting="no node is free",
    )


def _summary(job: JobDetail) -> JobSummary:
    return JobSummary.model_validate({k: getattr(job, k) for k in JobSummary.model_fields})


class Served:
    """A fake node behind a real gateway, on a loop of its own in a thread."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.node: FakeNode
        self.address = ""
        self.token = ""
        self.loop = asyncio.new_event_loop()
        self._gateway: Gateway
        self._serving: asyncio.Task[None] | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="fake-node")

    def start(self) -> None:
        self._thread.start()
        assert self._started.wait(WAIT_S)

    def _serve(self) -> None:
        with (
            asyncio.Runner(loop_factory=lambda: self.loop) as runner,
            contextlib.suppress(asyncio.CancelledError),
        ):
            runner.run(self._main())

    async def _main(self) -> None:
        self._serving = asyncio.current_task()
        self.node = FakeNode()
        listener = bind_api("127.0.0.1", 0)
        self.address = address_of(listener)
        self.token = write_api_files(self.home, self.address)
        self._gateway = Gateway(self.node, listener, token=self.token, version="0")
        self._started.set()
        await self._gateway.serve()

    def on_loop(self, call: Callable[[], T]) -> T:
        """Runs a call where the node lives and returns its answer."""

        async def called() -> T:
            return call()

        return asyncio.run_coroutine_threadsafe(called(), self.loop).result(WAIT_S)

    def fail(self) -> None:
        """Ends the gateway as a node does that cannot go on."""
        assert self._serving is not None
        self.loop.call_soon_threadsafe(self._serving.cancel)
        self._thread.join(WAIT_S)

    def stop(self) -> None:
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._gateway.stop)
            self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), "the gateway does not stop"


@contextlib.contextmanager
def served(home: Path) -> Generator[Served]:
    """A fake node whose API answers, until the end of the block."""
    home.mkdir(parents=True, exist_ok=True)
    one = Served(home)
    one.start()
    try:
        yield one
    finally:
        one.stop()
