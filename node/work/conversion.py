"""Between the work loops and the media package: ledger rows in, films and judgements out."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

import structlog

from ledger.commands import TEXT_BYTES_MAX
from ledger.device_slots import CPU
from ledger.jobs import Attempt, Job
from mesh.errors import TransferError
from node.consensus.proposer import bounded_text
from node.media.child import AnyPath, OnProgress
from node.media.command import Parts
from node.media.convert import ConversionError, Converted, Media, RunReport
from node.media.encoders import FORMS, needs
from node.media.errors import (
    BadResultError,
    DamagedSourceError,
    EncodeFailedError,
    EncoderUnavailableError,
    FrameCountError,
    MediaError,
    StalledError,
)
from node.media.judge import ResultFacts
from node.media.pieces import Film, Pieces
from node.media.plan import EncodePlan, able, chosen_for, plan_whole
from node.media.probe import Probe, probe_from_json
from node.media.profiles import profile_from_json
from node.media.progress import FFmpegProgress
from node.work.attempts import AttemptError, Conversion, ReportFrames, Turn
from node.work.order import Order
from node.work.owner import Plan
from node.work.splitting import job_plan_from_json, number_of

UNCUT: Final = "uncut"
"""The name of a file that is there in place of a slice, and says why."""

_log = structlog.get_logger("media")


class Shelf(Protocol):
    """What a task works on, as children may open it."""

    def opened(self, order: Order, source: Path) -> AbstractAsyncContextManager[AnyPath]:
        """What was fetched for the task."""
        ...

    def film(self, order: Order, folder: Path) -> AbstractAsyncContextManager[AnyPath]:
        """All of the film, for a task that was to do with a part."""
        ...

    async def parts(self, order: Order, folder: Path, source: AnyPath) -> Parts:
        """What a film is assembled of, on its owner's node."""
        ...


async def _at_once(_: Order) -> bool:
    """For whoever counts no slots."""
    return True


class MediaConverter:
    """The worker's `Converter`: FFmpeg and the judgement of its result."""

    def __init__(
        self,
        media: Callable[[], Awaitable[Media]],
        shelf: Shelf,
        threads: Callable[[], int] = lambda: 0,
    ) -> None:
        self.to_processor: Callable[[Order], Awaitable[bool]] = _at_once
        """Waits for a slot of the processor when a chip failed; False: there is none."""
        self._media = media
        self._shelf = shelf
        self._threads = threads

    async def convert(
        self,
        order: Order,
        source: Path,
        result: Path,
        *,
        turn: Turn,
        on_frames: ReportFrames,
        on_verifying: Callable[[int], None],
    ) -> Conversion:
        """Writes `result`, proven whole against the owner's probe.  Raises `AttemptError`."""
        frames = frames_of(order)

        def on_progress(block: FFmpegProgress) -> None:
            on_frames(block.frame, frames, block.fps, block.speed or 0.0)

        def on_verify(block: FFmpegProgress) -> None:
            turn.lend()
            on_verifying(block.frame)

        watch = Watch(on_progress, on_verify, turn.encode_again)
        try:
            async with self._shelf.opened(order, source) as film:
                if order.task.kind == "audio":
                    return await self._sound(order, film, result, watch)
                converted = await self._picture(order, film, result, watch)
        except ConversionError as error:
            kept = _conversion(error.report, "")
            raise AttemptError(error.error, error.error.failure, kept) from None
        except MediaError as error:
            raise AttemptError(error, error.failure) from None
        return _conversion(converted.report, converted.facts.to_json())

    async def _picture(
        self, order: Order, source: AnyPath, result: Path, watch: "Watch"
    ) -> Converted:
        media = await self._media()
        match order.task.kind:
            case "chunk":
                return await self._chunk(Pieces(media), order, source, result, watch)
            case "assemble":
                return await Pieces(media).assemble(
                    film_of(order.job),
                    await self._shelf.parts(order, result.parent, source),
                    result,
                    on_progress=watch.encoding,
                    on_verify=watch.verifying,
                )
            case _:
                return await self._whole(media, order, source, result, watch)

    async def _chunk(
        self, pieces: Pieces, order: Order, source: AnyPath, result: Path, watch: "Watch"
    ) -> Converted:
        """A chunk of its slice; where that cannot be cut or decoded, of the film, as one done whole is."""
        film, number = film_of(order.job), number_of(order.task.id)

        async def encoded(piece: AnyPath, *, from_film: bool) -> Converted:
            await watch.slot()
            return await pieces.encode_chunk(
                piece,
                result,
                film,
                number,
                on_progress=watch.encoding,
                on_verify=watch.verifying,
                threads=self._threads(),
                from_film=from_film,
            )

        why = await asyncio.to_thread(_why_uncut, source)
        if not why:
            try:
                return await encoded(source, from_film=False)
            except ConversionError as error:
                if not isinstance(error.error, _SLICES_FAULTS):
                    raise
                why = f"its slice did not do: {error.error.what}"
        _log.warning("falls back to the whole film", job=order.job.id, chunk=number, reason=why)
        await asyncio.to_thread(result.unlink, True)
        told = f"made of the whole film, {why}\n"
        try:
            async with self._shelf.film(order, result.parent) as whole:
                made = await encoded(whole, from_film=True)
        except ConversionError as error:
            raise ConversionError(error.error, _beginning(told, error.report)) from None
        return replace(made, report=_beginning(told, made.report))

    async def _whole(
        self, media: Media, order: Order, source: AnyPath, result: Path, watch: "Watch"
    ) -> Converted:
        """The film in one piece; where a chip fails, by the next encoder that its profile allows."""
        probe = probe_from_json(order.job.probe_json)
        profile = profile_from_json(order.job.profile_json)
        failed: dict[str, str] = {}
        card = order.attempt.device
        while True:
            await watch.slot()
            try:
                made = await media.convert(
                    source,
                    result,
                    probe,
                    profile,
                    on_progress=watch.encoding,
                    on_verify=watch.verifying,
                    threads=self._threads(),
                    without=failed,
                    card=card,
                )
            except ConversionError as error:
                encoder = error.report.encoder
                if not may_fall_back(error.error, encoder):
                    raise
                failed[encoder] = error.error.what
                if not chosen_for(probe, profile, media.encoders_at(card).difference(failed)):
                    # The processor makes what the chip could not, in a slot of its own.
                    left = media.encoders_at(CPU).difference(failed)
                    if not chosen_for(probe, profile, left) or not await self.to_processor(order):
                        raise
                    card = CPU
                _log.warning(
                    "falls back", job=order.job.id, encoder=encoder, reason=error.error.what
                )
                await asyncio.to_thread(result.unlink, True)
            else:
                return replace(made, report=_with_fallbacks(made.report, failed))

    async def _sound(
        self, order: Order, source: AnyPath, result: Path, watch: "Watch"
    ) -> Conversion:
        pieces = Pieces(await self._media())
        film = film_of(order.job)
        report = await pieces.encode_sound(source, result, film, on_progress=watch.encoding)
        if report is None:
            raise TransferError("the film has no sound to encode", "retry the job")
        return _conversion(report, SOUND_PROVEN)


SOUND_PROVEN: Final = '{"decoded":true}'
"""What the ledger keeps of a sound: older versions left its decoding to the assembly."""


def _why_uncut(source: AnyPath) -> str:
    """Why no slice was cut; "" where there is one."""
    path = Path(source)
    return (
        f"no slice could be cut: {path.read_text(encoding='utf-8')}" if path.name == UNCUT else ""
    )


_SLICES_FAULTS = (DamagedSourceError, FrameCountError)
"""A slice lacks what stands before it, and its container is not the film's: the film itself may do."""
_CHIPS_FAULTS = (EncoderUnavailableError, EncodeFailedError, StalledError, BadResultError)


def may_fall_back(error: MediaError, encoder: str) -> bool:
    """Whether another encoder may do better: a chip failed, and not the film or the disk."""
    form = FORMS.get(encoder)
    if form is None or form.family == "CPU":
        return False
    return isinstance(error, _CHIPS_FAULTS)


def _with_fallbacks(report: RunReport, failed: Mapping[str, str]) -> RunReport:
    told = "".join(f"fell back from {name}: {what}\n" for name, what in failed.items())
    return _beginning(told, report)


def _beginning(told: str, report: RunReport) -> RunReport:
    """What was tried before stands first in what is kept of the attempt, which is cut at its beginning."""
    half = TEXT_BYTES_MAX // 2
    head, tail = (text.encode("utf-8", "replace") for text in (told, report.stderr_tail))
    kept = head[:half] + tail[-half:]
    return replace(report, stderr_tail=kept.decode("utf-8", "ignore"))


@dataclass(frozen=True, slots=True)
class Watch:
    """Who is told how far a run is, and who lets it encode."""

    encoding: OnProgress
    verifying: OnProgress
    slot: Callable[[], Awaitable[None]]


def frames_of(order: Order) -> int:
    """How many frames a task encodes."""
    if order.task.kind == "chunk":
        return film_of(order.job).split.chunks[number_of(order.task.id)].frames
    return probe_from_json(order.job.probe_json).frames


def _conversion(report: RunReport, result_json: str) -> Conversion:
    return Conversion(
        command_line=json.dumps(report.command_line),
        stderr_tail=bounded_text(report.stderr_tail),
        encoder=report.encoder,
        ffmpeg=report.ffmpeg,
        encode_ms=report.encode_ms,
        verify_ms=report.verify_ms,
        frames=report.frames,
        result_json=result_json,
    )


def whole_plan(job: Job, probe: Probe) -> EncodePlan:
    """How the film would be converted in one piece.  Raises `MediaError` when the profile cannot be met."""
    profile = profile_from_json(job.profile_json)
    return plan_whole(probe, profile, needs(profile))


def film_of(job: Job) -> Film:
    """What the ledger tells of a film in pieces."""
    plan = job_plan_from_json(job.plan_json)
    if plan.split is None:
        raise TransferError(
            f"job {job.id} has a task of a film in pieces and no pieces", "retry it"
        )
    return Film(
        probe=probe_from_json(job.probe_json),
        profile=profile_from_json(job.profile_json),
        split=plan.split,
        encoder=plan.encoder,
    )


def plan_of(job: Job, probe: Probe, digest: str) -> Plan:
    """The plan for a probed source.  Raises `MediaError` when the profile cannot be met at all."""
    plan = whole_plan(job, probe)
    return Plan(
        source_digest=digest,
        source_bytes=job.source_bytes,
        probe_json=probe.to_json(),
        plan_json=plan.to_json(),
        needs=able(probe, profile_from_json(job.profile_json)),
        cost=plan.cost,
    )


async def judge_delivered(
    media: Media, job: Job, attempt: Attempt, path: Path, source: AnyPath | None
) -> None:
    """The owner's own judgement of a delivered result.  Raises `TransferError` with what is wrong.

    `source` is the film, where frames are to be compared with it here once more.
    """
    try:
        claimed = ResultFacts.model_validate_json(attempt.result_json)
    except ValueError:
        raise TransferError("the worker's facts cannot be read", "it is converted again") from None
    verdict = await media.check_delivered(
        path,
        probe_from_json(job.probe_json),
        profile_from_json(job.profile_json),
        claimed,
        encoder=attempt.encoder,
        source=source,
        seed=attempt.result_digest,
    )
    if not verdict.ok:
        raise TransferError(f"{verdict.code}: {verdict.what}", verdict.todo)
