"""A node's hands on films in pieces: slices for workers, parts kept by the owner, and their assembly.

Everything of a job lies in one folder of its owner: the packet index, slices while their leases last,
and the parts (encoded chunks, the sound) until the job is over.  All of it can be made or fetched anew.
"""

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from ledger.commands import SINCE, PlanPieces
from ledger.jobs import Attempt, Job, Task
from ledger.placing import lacks
from ledger.queries import Reader
from mesh.codec import Vocabulary
from mesh.errors import BusyError, NotAllowedError, PathError, TransferError
from mesh.ids import NodeId
from mesh.transfer import Manifest
from mesh.transfer_files import FileSource, digest_file, make_manifest, require_space
from node.media.child import AnyPath
from node.media.command import Parts
from node.media.convert import Media
from node.media.errors import (
    BadResultError,
    DamagedSourceError,
    EncodeFailedError,
    FilmChangedError,
    ProbeLimitError,
)
from node.media.judge import ResultFacts
from node.media.pieces import Film, Pieces
from node.media.plan import EncodePlan, plan_whole
from node.media.probe import Probe
from node.media.profiles import profile_from_json
from node.membership.foreign import is_plain_id
from node.requests import Requests
from node.work.attempts import ReportBytes
from node.work.conversion import SOUND_PROVEN, UNCUT, film_of
from node.work.order import Order
from node.work.owner import Plan
from node.work.splitting import (
    JobPlan,
    chips_of,
    choose_group,
    joinable,
    number_of,
    tasks_of,
)

CUT: Final = "film.cut"
CUT_TIMEOUT_S: Final = 300.0
"""A slice of a minute is copied in a second; a disk under load may need many."""
CUTS_AT_ONCE: Final = 2
"""More only seek against each other."""
LAG_TRIES: Final = 20
LAG_S: Final = 0.25
"""A worker may hear of its lease before the owner does: refusals are asked again for five seconds."""

_UNCUTTABLE: Final = (
    DamagedSourceError,
    FilmChangedError,
    EncodeFailedError,
    BadResultError,
    ProbeLimitError,
)
"""What cutting can meet that the film as a whole need not: its bytes were checked when it was opened."""

SLICES = Vocabulary("slice")
_log = structlog.get_logger("transfer")


@SLICES.kind("slice.wanted")
@dataclass(frozen=True, slots=True, kw_only=True)
class SliceWanted:
    """A worker asks the owner to cut what its lease needs."""

    attempt: str


@SLICES.kind("slice.ready")
@dataclass(frozen=True, slots=True, kw_only=True)
class SliceReady:
    """It lies there, under the handle `slice/<attempt>`."""

    size: int
    digest: str


class Bring(Protocol):
    """Fetches and verifies what a peer has behind a handle."""

    async def __call__(
        self, peer: NodeId, handle: str, path: Path, expected: Manifest, on_bytes: ReportBytes
    ) -> None:
        """Raises what a transfer can meet."""
        ...


class RunInThread(Protocol):
    """Runs blocking work in a thread that a cancelled caller waits for."""

    async def __call__(self, work: Callable[[Callable[[], bool]], Any], /) -> Any:  # noqa: ANN401 - whatever the work gives
        """What the work gave."""
        ...


LabelsOf = Callable[[str], Collection[str]]
"""What a node's owner says of it, by the node's id."""


class FilmPieces:
    """What owner and worker do with films in pieces."""

    def __init__(
        self,
        *,
        own: NodeId,
        folder: Path,
        opened: Callable[[Job], AbstractAsyncContextManager[AnyPath]],
        kept: Callable[[Attempt], Path],
        reader: Reader,
        media: Callable[[], Awaitable[Media]],
        run: RunInThread,
        bring: Bring,
        labels_of: LabelsOf,
    ) -> None:
        """`opened` holds a job's source if it is still what was planned, `kept` is a result of this node."""
        self._labels = labels_of
        self._own = own
        self._folder = folder
        self._opened = opened
        self._kept = kept
        self._reader = reader
        self._media = media
        self._run = run
        self._bring = bring
        self._requests: Requests | None = None
        self._cutting = asyncio.Semaphore(CUTS_AT_ONCE)
        self._indexing: dict[str, asyncio.Lock] = {}
        self._planning: set[str] = set()
        """Films that are being planned: the ledger may not know the job yet."""
        self._slices: dict[str, Manifest] = {}

    def serve(self, requests: Requests) -> None:
        """From here on members can ask this node for slices, and it can ask them."""
        self._requests = requests
        requests.register(CUT, self._on_wanted)

    # --- planning ---------------------------------------------------------------------------------

    async def plan(
        self, job: Job, path: AnyPath, probe: Probe, plan: Plan, whole: EncodePlan
    ) -> Plan:
        """The plan with its pieces, or with the reason why it has none."""
        self._planning.add(job.id)
        try:
            made = await self._split(job, path, probe, plan)
        finally:
            self._planning.discard(job.id)
        if isinstance(made, str):
            return _told(plan, JobPlan(**dict(whole), why_whole=made))
        group, split = made
        whole = plan_whole(probe, profile_from_json(job.profile_json), (group.encoder,))
        return replace(
            _told(plan, JobPlan(**dict(whole), split=split, ffmpeg=group.ffmpeg)),
            tasks=tasks_of(job.id, whole, split, group),
        )

    async def _split(self, job: Job, path: AnyPath, probe: Probe, plan: Plan) -> Any:  # noqa: ANN401 - a pair or a reason
        if not job.split:
            return "it was asked for"
        if await self._run(lambda _: self._reader.schema()) < SINCE[PlanPieces]:
            return "a member runs an older version, which knows no pieces"
        nodes, members, measured = await self._run(
            lambda _: (self._reader.nodes(), self._reader.members(), self._reader.speeds())
        )
        own = next((node for node in nodes if node.node == self._own), None)
        nodes = tuple(n for n in nodes if not any(lacks(job.place, n.node, self._labels(n.node))))
        role = next((member.role for member in members if member.node == self._own), "witness")
        if own is None or own.slots < 1 or role == "witness":
            return "the node that has the film does no work, and it has to put the pieces together"
        chip = chips_of(nodes, members, plan.needs)
        if chip:
            return f"{chip} makes it, and chunks of chips were not proven to fit together"
        group = choose_group(
            nodes,
            members,
            joinable(plan.needs),
            {node: speeds.get(job.profile, 0) for node, speeds in measured.items()},
        )
        if group is None or len(group.speeds) < 2:
            return "no two workers have the same FFmpeg and encoder"
        index = self._index_file(job)
        await self._run(lambda _: index.parent.mkdir(parents=True, exist_ok=True))
        profile = profile_from_json(job.profile_json)
        pieces = Pieces(await self._media())
        split = await pieces.plan(path, index, probe, profile, speeds=group.speeds)
        return split if isinstance(split, str) else (group, split)

    # --- slices -----------------------------------------------------------------------------------

    async def fetch(self, order: Order, folder: Path, on_bytes: ReportBytes) -> tuple[Path, int]:
        """The slice of a chunk, and how many bytes travelled for it.

        Where its owner cannot cut it, a file `UNCUT` that says why: the chunk is made of the film then.
        """
        try:
            return await self._fetch_slice(order, folder, on_bytes)
        except _UNCUTTABLE as error:
            _log.warning("no slice could be cut", job=order.job.id, reason=error.what)
            told, what = folder / UNCUT, error.what
            await self._run(lambda _: told.write_text(what, encoding="utf-8"))
            return told, 0

    async def _fetch_slice(
        self, order: Order, folder: Path, on_bytes: ReportBytes
    ) -> tuple[Path, int]:
        target = folder / "slice.nut"
        if order.job.owner == self._own:
            await self._cut(order.job, number_of(order.task.id), target)
            return target, 0
        ready = await self._ask(order)
        expected = Manifest(size=ready.size, digest=ready.digest)
        await self._run(lambda _: require_space(folder, 2 * ready.size))
        handle = f"slice/{order.attempt.id}"
        await self._bring(NodeId(order.job.owner), handle, target, expected, on_bytes)
        return target, ready.size

    async def _ask(self, order: Order) -> SliceReady:
        assert self._requests is not None, "work begins when the node belongs to a mesh"
        wanted = SLICES.encode(SliceWanted(attempt=order.attempt.id))
        for left in reversed(range(LAG_TRIES)):
            try:
                said = await self._requests.call(
                    NodeId(order.job.owner),
                    CUT,
                    wanted,
                    timeout_s=CUT_TIMEOUT_S,
                    cause=order.job.id,
                )
            except (NotAllowedError, BusyError):
                if not left:
                    raise
                await asyncio.sleep(LAG_S)
            else:
                ready: SliceReady = SLICES.decode(said)
                return ready
        raise AssertionError("the last try raises")

    async def _on_wanted(self, caller: NodeId, body: bytes) -> bytes:
        wanted: SliceWanted = SLICES.decode(body)
        attempt, job, task = await self._run(lambda _: self._leased(wanted.attempt))
        if attempt is None or attempt.node != caller or job.owner != self._own:
            raise NotAllowedError("this slice is not yours", "wait for the replica")
        target = self._slice_file(attempt)
        async with self._cutting:
            if attempt.id not in self._slices or not target.exists():
                await self._cut(job, number_of(task.id), target)
                self._slices[attempt.id] = await self._run(
                    lambda should_stop: make_manifest(target, should_stop=should_stop)
                )
        made = self._slices[attempt.id]
        return SLICES.encode(SliceReady(size=made.size, digest=made.digest))

    def _leased(
        self, attempt_id: str
    ) -> tuple[Attempt | None, Job, Task] | tuple[None, None, None]:
        attempt = self._reader.attempt(plain(attempt_id))
        task = None if attempt is None else self._reader.task(attempt.task)
        job = None if attempt is None else self._reader.job(attempt.job)
        if attempt is None or job is None or task is None:
            return None, None, None
        if attempt.state != "leased" or task.kind != "chunk":
            return None, None, None
        return attempt, job, task

    def slice_source(self, attempt: Attempt) -> FileSource:
        """The slice of a lease, for the bulk server's thread; who may have it was checked."""
        manifest = self._slices.get(attempt.id)
        if manifest is None:
            raise NotAllowedError("this slice is not cut yet", "ask for it first")
        return FileSource(self._slice_file(attempt), manifest)

    async def _cut(self, job: Job, number: int, target: Path) -> None:
        film, pieces = film_of(job), Pieces(await self._media())
        part = target.with_suffix(".part")
        async with self._opened(job) as source:
            index = await self._index(job, film, source, pieces)
            await self._run(lambda _: require_space(target.parent, film.split.chunks[number].bytes))
            try:
                await pieces.cut(source, index, part, film.split, number)
                await self._run(lambda _: part.replace(target))
            finally:
                await self._run(lambda _: part.unlink(missing_ok=True))

    async def _index(self, job: Job, film: Film, path: AnyPath, pieces: Pieces) -> Path:
        """The packet index; read again when it is lost."""
        index = self._index_file(job)
        async with self._indexing.setdefault(job.id, asyncio.Lock()):
            if not await self._run(lambda _: index.exists()):
                await self._run(lambda _: index.parent.mkdir(parents=True, exist_ok=True))
                table = await pieces.index(path, index, size=film.probe.bytes)
                if table.contract != film.split.contract:
                    await self._run(lambda _: index.unlink(missing_ok=True))
                    raise FilmChangedError(
                        f"{Path(job.source).name} has other frames than when it was planned",
                        "submit it again",
                    )
        return index

    # --- parts ------------------------------------------------------------------------------------

    async def take(self, job: Job, task: Task, attempt: Attempt, on_bytes: ReportBytes) -> None:
        """Brings a part to the owner and judges it.  Raises `TransferError` with what is wrong."""
        target = await self._bring_part(job, attempt, on_bytes)
        if task.kind != "chunk":
            return
        claimed = _facts(attempt)
        others = await self._run(lambda _: self._reader.attempts(job.id, "kept"))
        known = {_headers(other) for other in others} - {""}
        if known and claimed.extradata not in known:
            raise TransferError(
                "wrong_picture: its parameter sets are not those of the other chunks",
                "it is encoded again",
            )
        if attempt.node == self._own:
            return  # these very bytes were judged here, by the same rules
        film, pieces = film_of(job), Pieces(await self._media())
        async with self._opened(job) as source:
            number = number_of(task.id)
            verdict = await pieces.check_chunk(target, film, number, claimed, source)
        if not verdict.ok:
            raise TransferError(f"{verdict.code}: {verdict.what}", verdict.todo)

    async def _bring_part(self, job: Job, attempt: Attempt, on_bytes: ReportBytes) -> Path:
        target = self._part_file(job, attempt)
        expected = Manifest(size=attempt.result_bytes, digest=attempt.result_digest)
        if await self._run(lambda _: holds(target, expected)):
            return target
        await self._run(lambda _: target.parent.mkdir(parents=True, exist_ok=True))
        if attempt.node == self._own:
            await self._run(lambda _: copy_kept(self._kept(attempt), target, expected))
        else:
            handle = f"result/{attempt.id}"
            await self._bring(NodeId(attempt.node), handle, target, expected, on_bytes)
        return target

    async def parts(self, order: Order, folder: Path, source: AnyPath) -> Parts:
        """Everything that the film is assembled of; parts that were lost are fetched again."""
        job, film = order.job, film_of(order.job)
        pieces = Pieces(await self._media())
        index = await self._index(job, film, source, pieces)
        attempts, tasks = await self._run(
            lambda _: (self._reader.attempts(job.id, "kept"), self._reader.tasks(job.id))
        )
        kinds = {task.id: task.kind for task in tasks}
        chunks: dict[int, Path] = {}
        sound, sound_is_proven = None, False
        for attempt in attempts:
            part = await self._bring_part(job, attempt, lambda _, __: None)
            if kinds.get(attempt.task) == "audio":
                sound, sound_is_proven = part, attempt.result_json == SOUND_PROVEN
            else:
                chunks[number_of(attempt.task)] = part
        if sorted(chunks) != [chunk.number for chunk in film.split.chunks]:
            raise TransferError("not all chunks are known here yet", "it is assembled again")
        return Parts(
            source=source,
            index=index,
            chunks=tuple(chunks[number] for number in sorted(chunks)),
            sound=sound,
            picture=folder / "picture",
            sound_is_proven=sound_is_proven,
        )

    # --- files ------------------------------------------------------------------------------------

    def sweep(self, reader: Reader) -> None:
        """Deletes slices whose leases are over, parts that are not kept, and all of jobs that are."""
        if not self._folder.exists():
            return
        for folder in self._folder.iterdir():
            if folder.name in self._planning:
                continue
            job = reader.job(folder.name)
            if job is None or job.is_final:
                shutil.rmtree(folder, ignore_errors=True)
                self._indexing.pop(folder.name, None)
                continue
            for path in folder.glob("slice-*"):
                attempt = reader.attempt(path.stem.removeprefix("slice-"))
                if attempt is None or attempt.state != "leased":
                    path.unlink(missing_ok=True)
                    self._slices.pop(path.stem.removeprefix("slice-"), None)
            # Also what lies beside a part while it comes.
            parts = {p: p.name.removeprefix("part-").split(".")[0] for p in folder.glob("part-*")}
            states = reader.attempt_states(list(parts.values())) if parts else {}
            for path, name in parts.items():
                if states.get(name) not in ("finished", "kept"):
                    path.unlink(missing_ok=True)

    def _of(self, job: Job) -> Path:
        return self._folder / plain(job.id)

    def _index_file(self, job: Job) -> Path:
        return self._of(job) / "index"

    def _slice_file(self, attempt: Attempt) -> Path:
        return self._folder / plain(attempt.job) / f"slice-{plain(attempt.id)}.nut"

    def _part_file(self, job: Job, attempt: Attempt) -> Path:
        return self._of(job) / f"part-{plain(attempt.id)}.mkv"


def _told(plan: Plan, made: JobPlan) -> Plan:
    return replace(plan, plan_json=made.model_dump_json())


def _headers(attempt: Attempt) -> str:
    """The digest of a kept chunk's parameter sets; sound has none."""
    try:
        return _facts(attempt).extradata
    except TransferError:
        return ""


def _facts(attempt: Attempt) -> ResultFacts:
    try:
        return ResultFacts.model_validate_json(attempt.result_json)
    except ValueError:
        raise TransferError("the worker's facts cannot be read", "it is converted again") from None


def plain(text: str) -> str:
    """An id as part of a file's name.  Raises `PathError`."""
    # Ids come from whoever proposed them: one with a separator would be a path of its own.
    if not is_plain_id(text):
        raise PathError(f"{text[:80]!a} is no id", "submit the job again")
    return text


def holds(path: Path, expected: Manifest) -> bool:
    """Whether the file is exactly this content, as it lies on the disk now."""
    try:
        return path.stat().st_size == expected.size and digest_file(path) == expected.digest
    except FileNotFoundError:
        return False


def copy_kept(kept: Path, staging: Path, expected: Manifest) -> None:
    """Copies a result of this node's own worker.  Raises `TransferError` when it is not right."""
    staging.parent.mkdir(parents=True, exist_ok=True)
    require_space(staging.parent, expected.size)
    try:
        shutil.copyfile(kept, staging)
    except FileNotFoundError:
        raise TransferError("the result is not here any more", "it is converted again") from None
    if not holds(staging, expected):
        staging.unlink(missing_ok=True)
        raise TransferError("the result on this disk is damaged", "it is converted again")
