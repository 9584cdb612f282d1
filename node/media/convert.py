"""The worker's and the owner's way to films: probe, convert with proof, judge what was delivered.

Composed of pure decisions and one port, the runner of child processes.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from node.media.child import (
    GIB,
    MINUTE_MS,
    AnyPath,
    ChildRunner,
    Limits,
    OnProgress,
    RunResult,
    text_of,
)
from node.media.command import (
    command_line,
    decode_command,
    decode_parts_command,
    decode_sounds_command,
    encoded_sound,
)
from node.media.devices import Devices
from node.media.encoders import FORMS
from node.media.errors import BadResultError, MediaError
from node.media.ffmpeg_binary import FFmpegBinary
from node.media.judge import (
    ResultFacts,
    TimesFound,
    Verdict,
    judge_decode,
    judge_decode_end,
    judge_packets,
    judge_result,
    judge_run,
    judge_sounds,
    judge_times,
)
from node.media.likeness import places, tells
from node.media.plan import EncodePlan, plan_whole
from node.media.probe import Beside, Probe, probe_file, probe_limits
from node.media.profiles import Profile
from node.media.progress import FFmpegProgress
from node.media.quality import Shown, can_measure, require_quality, unable
from node.media.stderr_log import StderrSummary

STALL_MS: Final = 5 * MINUTE_MS
"""A lookahead of slow presets on a loaded machine fills for a minute; five without a sign is a hang."""
TIME_BASE_MS: Final = 30 * MINUTE_MS
TIME_PER_FILM_MS: Final = 400
"""Times the film's length: slower than 0.0025 times real time no one waits for; stalls are found much earlier."""
OUTPUT_BASE_BYTES: Final = 1 * GIB
OUTPUT_PER_SOURCE: Final = 20
"""A result of twenty times its source is a fault (lossless from a phone is about ten)."""
SEAM_US: Final = 400_000
"""What is decoded behind a seam: ten frames; each part begins with a keyframe."""
SEAMS_AT_ONCE: Final = 4
"""In one FFmpeg, whose start takes as long as a seam; of a film in 8K their pictures take 2 GB."""
DECODE_MEMORY_BYTES: Final = 8 * GIB
TIMES_JSON_BYTES_MAX: Final = 4 << 10
"""Seven numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """What is kept of an attempt, for people, whether it succeeded or not."""

    command_line: tuple[str, ...]
    stderr_tail: str
    encoder: str
    ffmpeg: str
    encode_ms: int
    verify_ms: int
    frames: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A result that was proven whole."""

    report: RunReport
    facts: ResultFacts
    start_us: int = 0
    """When its first picture is shown, on its own clock."""


class ConversionError(Exception):
    """A conversion that failed: the `MediaError` with its class, and what is kept of the attempt."""

    def __init__(self, error: MediaError, report: RunReport) -> None:
        super().__init__(error.line())
        self.error = error
        self.report = report


class Media:
    """One machine's means: a runner of children, an FFmpeg, the encoders that work, a Python with PyAV."""

    def __init__(
        self,
        *,
        runner: ChildRunner,
        ffmpeg: FFmpegBinary,
        encoders: frozenset[str],
        python: str,
        stall_ms: int = STALL_MS,
        devices: Mapping[str, tuple[str, ...]] | None = None,
        cards: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        """`devices` are those of each encoder that needs one named; `cards` the same the other way round.

        A card is a device by the name that leases have, with FFmpeg's name of it for each encoder.
        """
        self.runner = runner
        self.ffmpeg = ffmpeg
        self.encoders = encoders
        self.python = python
        self.stall_ms = stall_ms
        self._devices = Devices(devices or {})
        self._measures: bool | None = None
        self.cards = dict(cards or {})

    async def probe(self, path: AnyPath, *, size: int = 0, beside: Beside | None = None) -> Probe:
        """Reads a film in a child, or a result `beside` its film.  Raises `SourceError` when it is not a sound film."""
        return await probe_file(self.runner, self.python, path, size=size, beside=beside)

    async def convert(
        self,
        source: AnyPath,
        output: AnyPath,
        probe: Probe,
        profile: Profile,
        *,
        on_progress: OnProgress,
        on_verify: OnProgress | None = None,
        threads: int = 0,
        without: Collection[str] = (),
        card: str = "",
    ) -> Converted:
        """Makes `output` (which must not exist) of `source` and proves it; `without` these encoders.

        On this `card`, with its encoders alone; on any where none is named.

        `probe` is the owner's, from the ledger: a source that changed or was cut since is noticed.
        Raises `ConversionError`, or `MediaError` before anything was started; the caller removes what
        lies at `output` then.  Cancelling kills FFmpeg and everything it started before it returns.
        """
        await self.may_measure(profile)
        plan = plan_whole(probe, profile, self.encoders_at(card).difference(without))
        with self._devices.lent(plan.encoder, self.cards.get(card, {}).get(plan.encoder)) as device:
            command = command_line(
                plan, self.ffmpeg.path, source, output, threads=threads, device=device
            )
            report = await self.run_judged(command, output, plan, on_progress)
        made = await self.prove(output, plan, report, on_verify or _ignore, threads)
        made = await self.timed(made, source, output, plan, how=probe.frames_by)
        film = Shown(source, probe.video.start_us)
        return await self.looked_at(made, film, output, plan, profile)

    @property
    def chips_at_work(self) -> bool:
        """Whether a film is on a chip now."""
        return self._devices.chips_at_work

    def encoders_at(self, card: str) -> frozenset[str]:
        """What works on a card; scalers and encoders of sound count everywhere.  Unknown cards: all of it."""
        places = self.cards.get(card)
        if places is None:
            return self.encoders
        return frozenset(name for name in self.encoders if name not in FORMS or name in places)

    async def timed(
        self, made: Converted, source: AnyPath, output: AnyPath, plan: EncodePlan, *, how: str
    ) -> Converted:
        """The result, if each frame keeps its time; `how` the source's are read.  Raises `ConversionError`.

        Span and number do not tell: of a flipped bit in a table of times FFmpeg made frames 160 ms off.
        """
        run = await self._times(source, output, plan, how)
        report = replace(made.report, verify_ms=made.report.verify_ms + run.duration_ms)
        verdict = times_verdict(run, plan)
        if not verdict.ok:
            raise ConversionError(verdict.error(), report)
        return replace(made, report=report)

    async def _times(
        self, source: AnyPath, output: AnyPath, plan: EncodePlan, how: str
    ) -> RunResult:
        sounds = (str(s.source) for s in plan.streams if s.kind == "audio")
        words = ("-P", "-m", "node.media.times_av", text_of(source), text_of(output), how, *sounds)
        limits = replace(probe_limits(plan.source_bytes), stdout_bytes=TIMES_JSON_BYTES_MAX)
        return await self.runner.run((self.python, *words), limits=limits)

    async def may_measure(self, profile: Profile) -> None:
        """Raises `EncoderUnavailableError` where the profile's floor cannot be measured: before an hour of encoding."""
        if profile.quality is None:
            return
        if self._measures is None:
            self._measures = await can_measure(self.runner, self.ffmpeg.path)
        if not self._measures:
            raise unable()

    async def looked_at(
        self,
        made: Converted,
        film: Shown,
        output: AnyPath,
        plan: EncodePlan,
        profile: Profile,
    ) -> Converted:
        """The result, if it looks like its film as the profile asks.  Raises `ConversionError`."""
        if profile.quality is None:
            return made
        result = Shown(output, made.start_us)
        try:
            vmaf = await require_quality(
                self.runner, self.ffmpeg.path, film, result, plan=plan, policy=profile.quality
            )
        except MediaError as error:
            raise ConversionError(error, made.report) from None
        told = f"VMAF of the samples: {vmaf:.1f} and more\n"
        return replace(
            made,
            report=replace(made.report, stderr_tail=told + made.report.stderr_tail),
            facts=made.facts.model_copy(update={"vmaf": vmaf}),
        )

    async def make(
        self,
        command: Sequence[str],
        output: AnyPath,
        plan: EncodePlan,
        *,
        on_progress: OnProgress,
        on_verify: OnProgress | None = None,
        threads: int = 0,
        sliced: bool = False,
        silent_ms: int = 0,
    ) -> Converted:
        """Runs the command that makes `output`, and proves that it is what was planned.

        `silent_ms`: how long it may read on top of the stall limit before its first frame is due.
        Raises `ConversionError`.  Cancelling kills FFmpeg and everything it started.
        """
        report = await self.run_judged(
            command, output, plan, on_progress, sliced=sliced, silent_ms=silent_ms
        )
        return await self.prove(output, plan, report, on_verify or _ignore, threads)

    async def run_judged(
        self,
        command: Sequence[str],
        output: AnyPath,
        plan: EncodePlan,
        on_progress: OnProgress,
        *,
        sliced: bool = False,
        silent_ms: int = 0,
    ) -> RunReport:
        """Runs the command; the first half of a proof.  Raises `ConversionError`."""
        limits = self.encode_limits(plan, output)
        limits = replace(limits, stall_ms=self.stall_ms + silent_ms)
        if plan.smaller:  # what follows would be thrown away
            limits = replace(limits, output_bytes=plan.source_bytes)
        run = await self.runner.run(command, limits=limits, on_progress=on_progress)
        report = self.report(plan, run)
        verdict = judge_run(run, plan, sliced=sliced)
        if not verdict.ok:
            raise ConversionError(verdict.error(), report)
        return report

    async def prove(
        self,
        output: AnyPath,
        plan: EncodePlan,
        report: RunReport,
        on_verify: OnProgress,
        threads: int,
    ) -> Converted:
        """The second half: all of the result is decoded and compared with the plan.

        `on_verify` is told at once that encoding is over.
        """
        on_verify(FFmpegProgress())
        decode = await self.runner.run(
            decode_command(self.ffmpeg.path, output, threads=threads),
            limits=self.decode_limits(plan),
            on_progress=on_verify,
        )
        report = _verified(report, decode)
        return await self._prove_facts(judge_decode(decode, plan), output, plan, report)

    async def prove_copied(
        self,
        output: AnyPath,
        plan: EncodePlan,
        report: RunReport,
        *,
        seams_us: Sequence[int],
        sounds: Sequence[int],
    ) -> Converted:
        """The second half for what was copied from parts that are proven: seams and other sounds are decoded.

        `seams_us` are the beginnings of parts, from the start of the file; `sounds` the numbers of those
        that no part holds.
        """
        ffmpeg = self.ffmpeg.path
        commands = [
            decode_parts_command(ffmpeg, output, part, length_us=SEAM_US)
            for part in _in_batches(seams_us, SEAMS_AT_ONCE)
        ]
        if sounds:
            commands.append(decode_sounds_command(ffmpeg, output, sounds))
        verdict = Verdict(ok=True)
        for command in commands:
            report, verdict = await self._decoded(command, plan, report)
            if not verdict.ok:
                break
        return await self._prove_facts(verdict, output, plan, report)

    async def prove_sound(self, output: AnyPath, plan: EncodePlan, report: RunReport) -> RunReport:
        """The second half for sounds alone: all of them are decoded.  Raises `ConversionError`."""
        numbers = range(len(encoded_sound(plan)))
        command = decode_sounds_command(self.ffmpeg.path, output, numbers)
        report, verdict = await self._decoded(command, plan, report)
        if not verdict.ok:
            raise ConversionError(verdict.error(), report)
        return report

    async def _decoded(
        self, command: Sequence[str], plan: EncodePlan, report: RunReport
    ) -> tuple[RunReport, Verdict]:
        limits = self.decode_limits(plan)
        decode = await self.runner.run(command, limits=limits, on_progress=_ignore)
        return _verified(report, decode), judge_decode_end(decode)

    async def _prove_facts(
        self, verdict: Verdict, output: AnyPath, plan: EncodePlan, report: RunReport
    ) -> Converted:
        start_us = 0
        if verdict.ok:
            try:
                result = await self._read(output, plan.source_bytes)
            except MediaError as error:
                verdict = _unreadable(error)
            else:
                verdict, start_us = judge_result(result, plan), result.video.start_us
        if not verdict.ok or verdict.facts is None:
            raise ConversionError(verdict.error(), report)
        return Converted(report=report, facts=verdict.facts, start_us=start_us)

    async def check_delivered(
        self,
        path: AnyPath,
        probe: Probe,
        profile: Profile,
        claimed: ResultFacts,
        *,
        encoder: str,
        source: AnyPath | None = None,
        seed: str = "",
    ) -> Verdict:
        """The owner's judgement of a file that another node made with `encoder`.

        With `source` each frame's time, and the look of some, is compared by its own reading; the worker's
        word counts for nothing.
        """
        try:
            plan = plan_whole(probe, profile, (encoder,))
        except MediaError as error:
            return _unreadable(error)
        beside = None
        if source is not None and looks(probe, profile):
            looked = places(probe.video.span_us, seed)
            beside = Beside(film=source, first=None, places=looked)
        verdict = await self.check(path, plan, claimed, beside)
        if source is None or not verdict.ok:
            return verdict
        timed = times_verdict(await self._times(source, path, plan, probe.frames_by), plan)
        return verdict if timed.ok else replace(timed, facts=verdict.facts)

    async def check(
        self,
        path: AnyPath,
        plan: EncodePlan,
        claimed: ResultFacts,
        beside: Beside | None = None,
    ) -> Verdict:
        """Whether a file is what was planned, and the one that its maker judged."""
        try:
            delivered = await self._read(path, claimed.bytes, beside)
        except MediaError as error:
            return _unreadable(error)
        return judge_packets(delivered, plan, claimed)

    async def _read(self, path: AnyPath, size: int, beside: Beside | None = None) -> Probe:
        """What a result holds, and whether it looks like the film it lies beside."""
        return await probe_file(self.runner, self.python, path, size=size, made=True, beside=beside)

    def encode_limits(self, plan: EncodePlan, output: AnyPath) -> Limits:
        """Bounds of one conversion, from the film's length and size."""
        return Limits(
            time_ms=TIME_BASE_MS + plan.source_ms * TIME_PER_FILM_MS,
            stall_ms=self.stall_ms,
            output_bytes=OUTPUT_BASE_BYTES + plan.source_bytes * OUTPUT_PER_SOURCE,
            writes=output,
        )

    def decode_limits(self, plan: EncodePlan) -> Limits:
        """Bounds of decoding the result: it writes nothing."""
        return Limits(
            time_ms=TIME_BASE_MS + plan.source_ms * TIME_PER_FILM_MS,
            stall_ms=self.stall_ms,
            output_bytes=0,
            memory_bytes=DECODE_MEMORY_BYTES,
        )

    def report(self, plan: EncodePlan, run: RunResult) -> RunReport:
        """What is kept of a run."""
        return RunReport(
            command_line=run.command,
            stderr_tail=run.stderr.tail,
            encoder=plan.encoder,
            ffmpeg=self.ffmpeg.group,
            encode_ms=run.duration_ms,
            verify_ms=0,
            frames=0 if run.progress is None else run.progress.frame,
            notes=plan.notes,
        )


def looks(probe: Probe, profile: Profile) -> bool:
    """Whether frames of a result can be laid beside its film's."""
    return tells(profile.video.codec, profile.video.crf) and not probe.video.mirrored


def times_verdict(run: RunResult, plan: EncodePlan) -> Verdict:
    """What the child that compares times found; a reader that broke down proves nothing."""
    try:
        if not run.ok:
            raise ValueError(run.reason)
        found = TimesFound.model_validate_json(run.stdout)
    except ValueError as error:
        what = f"comparing its frames' times failed: {str(error)[:200]}"
        return _refused(BadResultError.code, what)
    verdict = judge_times(found, plan)
    return judge_sounds(found) if verdict.ok else verdict


def _in_batches(items: Sequence[int], size: int) -> list[Sequence[int]]:
    return [items[at : at + size] for at in range(0, len(items), size)]


def _refused(code: str, what: str) -> Verdict:
    return Verdict(ok=False, code=code, what=what, todo="retry the job")


def _verified(report: RunReport, decode: RunResult) -> RunReport:
    return RunReport(
        command_line=report.command_line,
        stderr_tail=_joined(report.stderr_tail, decode.stderr),
        encoder=report.encoder,
        ffmpeg=report.ffmpeg,
        encode_ms=report.encode_ms,
        verify_ms=report.verify_ms + decode.duration_ms,
        frames=report.frames,
        notes=report.notes,
    )


def _joined(tail: str, decode: StderrSummary) -> str:
    # What decoding complains of is the reason of a refusal: it stands in for FFmpeg's first words.
    return decode.tail if decode.errors else tail


def _unreadable(error: MediaError) -> Verdict:
    return _refused("result_damaged", f"the result cannot be read: {error.what}")


def _ignore(_: object) -> None:
    return
