"""Between the work loops and the media package: ledger rows in, films and judgements out."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from ledger.jobs import Attempt, Job
from mesh.errors import TransferError
from node.media.convert import ConversionError, Media, RunReport
from node.media.errors import MediaError
from node.media.judge import ResultFacts
from node.media.plan import needs, plan_whole
from node.media.probe import Probe, probe_from_json
from node.media.profiles import profile_from_json
from node.media.progress import FFmpegProgress
from node.owner import Plan
from node.proposer import bounded_text
from node.worker import AttemptError, Conversion, Order, ReportFrames


class MediaConverter:
    """The worker's `Converter`: FFmpeg and the judgement of its result."""

    def __init__(self, media: Callable[[], Awaitable[Media]], threads: int = 0) -> None:
        self._media = media
        self._threads = threads

    async def convert(
        self,
        order: Order,
        source: Path,
        result: Path,
        *,
        on_frames: ReportFrames,
        on_verifying: Callable[[int], None],
    ) -> Conversion:
        """Writes `result`, proven whole against the owner's probe.  Raises `AttemptError`."""
        probe = probe_from_json(order.job.probe_json)
        profile = profile_from_json(order.job.profile_json)

        def on_progress(block: FFmpegProgress) -> None:
            on_frames(block.frame, probe.frames, block.fps, block.speed or 0.0)

        try:
            converted = await (await self._media()).convert(
                source,
                result,
                probe,
                profile,
                on_progress=on_progress,
                on_verify=lambda block: on_verifying(block.frame),
                threads=self._threads,
            )
        except ConversionError as error:
            kept = _conversion(error.report, "")
            raise AttemptError(error.error, error.error.failure, kept) from None
        except MediaError as error:
            raise AttemptError(error, error.failure) from None
        return _conversion(converted.report, converted.facts.to_json())


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


def plan_of(job: Job, probe: Probe, digest: str) -> Plan:
    """The plan for a probed source.  Raises `MediaError` when the profile cannot be met at all."""
    profile = profile_from_json(job.profile_json)
    encoders = needs(profile)
    plan = plan_whole(probe, profile, encoders)
    return Plan(
        source_digest=digest,
        source_bytes=job.source_bytes,
        probe_json=probe.to_json(),
        plan_json=plan.to_json(),
        needs=encoders,
        cost=plan.cost,
    )


async def judge_delivered(media: Media, job: Job, attempt: Attempt, path: Path) -> None:
    """The owner's own judgement of a delivered result.  Raises `TransferError` with what is wrong."""
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
    )
    if not verdict.ok:
        raise TransferError(f"{verdict.code}: {verdict.what}", verdict.todo)
