"""A film in pieces: index, slices, chunks, sound and the film put together again, each in a child.

The owner indexes, cuts, joins and assembles, because it has the source; any node encodes a chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from node.media.child import GIB, MINUTE_MS, AnyPath, Limits, OnProgress, RunResult, text_of
from node.media.command import (
    Parts,
    assembly_command,
    command_line,
    encoded_sound,
    sound_command,
    sounds_of,
)
from node.media.convert import ConversionError, Converted, Media, RunReport, looks
from node.media.encoders import needs
from node.media.errors import (
    ERRORS,
    BadResultError,
    EncodeFailedError,
    EncoderUnavailableError,
    MediaError,
    ProbeLimitError,
    WorkDiskFullError,
)
from node.media.index import CutTable
from node.media.judge import ResultFacts, TimesFound, Verdict, judge_end, judge_times
from node.media.plan import EncodePlan, plan_whole
from node.media.probe import Beside, Probe, probe_limits
from node.media.profiles import Profile
from node.media.quality import Shown
from node.media.split import SplitPlan, chunk_ms, chunk_plan, plan_split, why_whole, workers_of

TABLE_JSON_BYTES_MAX: Final = 8 << 20
"""20,000 cuts of some 150 bytes, with room."""
INDEX_BYTES_MAX: Final = 512 << 20
"""8,000,000 packets of 33 bytes, with room."""
SLICE_SLACK_BYTES: Final = 64 << 20
"""For the slice's container: some 20 bytes a packet."""
COPY_TIME_BASE_MS: Final = 30 * MINUTE_MS
COPY_BYTES_PER_MS: Final = 1_000
"""Slowest copying that is waited for, 1 MB/s."""
CHILD_MEMORY_BYTES: Final = 4 * GIB
SEAMS_MAX: Final = 16
"""Seams that are decoded: a tenth of a second each; all packets were compared."""
_TABLE = TypeAdapter(CutTable)
_SAID = TypeAdapter(dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Film:
    """What owner and workers know alike of a film in pieces."""

    probe: Probe
    profile: Profile
    split: SplitPlan
    encoder: str
    """Of all its chunks."""

    @property
    def plan(self) -> EncodePlan:
        """How it would be converted whole: what the assembled film is judged by."""
        return plan_whole(self.probe, self.profile, (self.encoder,))


class Pieces:
    """Splitting on top of a machine's `Media`."""

    def __init__(self, media: Media) -> None:
        self._media = media

    async def plan(
        self,
        source: AnyPath,
        index_file: AnyPath,
        probe: Probe,
        profile: Profile,
        *,
        speeds: Sequence[float],
    ) -> SplitPlan | str:
        """How the film is split among workers of these relative speeds, or why it is done whole.

        Writes `index_file`, which slices and assembly need, when the film may be split.
        """
        # Any encoder will do: what it is changes no reason.
        reason = why_whole(probe, plan_whole(probe, profile, needs(profile)))
        if reason:
            return reason
        try:
            await self._media.may_measure(profile)
        except MediaError:
            return "the FFmpeg of its node has no libvmaf, and that node would have to measure the film"
        table = await self.index(source, index_file, size=probe.bytes)
        if not table.fault and table.frames != probe.frames:
            return f"its index names {table.frames} frames, {probe.frames} were counted"
        length_ms = chunk_ms(probe.video.duration_us // 1000, speeds)
        return plan_split(table, length_ms=length_ms, workers=workers_of(speeds))

    async def index(self, source: AnyPath, index_file: AnyPath, *, size: int) -> CutTable:
        """Reads the packet index into `index_file`.  A film without a usable one has a `fault`."""
        limits = replace(
            probe_limits(size), output_bytes=INDEX_BYTES_MAX, stdout_bytes=TABLE_JSON_BYTES_MAX
        )
        run = await self._child("cut_av", ("index", text_of(source), text_of(index_file)), limits)
        if not run.ok:
            raise ProbeLimitError(f"indexing it failed: {_last(run)}", "convert it with --no-split")
        try:
            return _TABLE.validate_json(run.stdout)
        except ValidationError:
            said = _SAID.validate_json(run.stdout)
            return CutTable(fault=str(said.get("fault", "it has no index")))

    async def cut(
        self, source: AnyPath, index_file: AnyPath, target: AnyPath, split: SplitPlan, number: int
    ) -> None:
        """Writes the slice of one chunk: what its worker fetches.

        Raises `MediaError`: `film_changed` when the source is not the indexed one any more.
        """
        chunk = split.chunks[number]
        words = ("slice", text_of(source), text_of(index_file), text_of(target))
        part = (chunk.first, chunk.stop, chunk.base, split.depth)
        size = chunk.bytes + SLICE_SLACK_BYTES
        await self._said("cut_av", (*words, *map(str, part)), size, writes=target)

    async def encode_chunk(
        self,
        piece: AnyPath,
        output: AnyPath,
        film: Film,
        number: int,
        *,
        on_progress: OnProgress,
        on_verify: OnProgress | None = None,
        threads: int = 0,
        from_film: bool = False,
    ) -> Converted:
        """Encodes one slice, and proves that it holds exactly the chunk's frames.  As `Media.convert`.

        `from_film`: `piece` is the film itself, which is decoded from its beginning.
        """
        media = self._media
        if film.encoder not in media.encoders:
            raise EncoderUnavailableError(
                f"{film.encoder}, which makes the other chunks, does not work on this node",
                "see `mesh-node detect`",
            )
        plan = chunk_plan(
            film.plan, film.split, film.split.chunks[number], film.probe, from_film=from_film
        )
        command = command_line(plan, media.ffmpeg.path, piece, output, threads=threads, exact=True)
        return await media.make(
            command,
            output,
            plan,
            on_progress=on_progress,
            on_verify=on_verify,
            threads=threads,
            sliced=not from_film,
            silent_ms=film.probe.duration_ms if from_film else 0,
        )

    async def check_chunk(
        self, path: AnyPath, film: Film, number: int, claimed: ResultFacts, source: AnyPath
    ) -> Verdict:
        """The owner's judgement of a chunk: it is whole, and begins as its part of the film does."""
        chunk = film.split.chunks[number]
        plan = chunk_plan(film.plan, film.split, chunk, film.probe)
        # Both begin with a keyframe there, so a look at the beginning costs a few frames.
        beside = None
        if looks(film.probe, film.profile):
            beside = Beside(film=source, first=chunk.start, places=(0,))
        return await self._media.check(path, plan, claimed, beside)

    async def encode_sound(
        self, source: AnyPath, output: AnyPath, film: Film, *, on_progress: OnProgress
    ) -> RunReport | None:
        """Encodes all sound that is not copied, once and whole, and decodes it.  None when there is none.

        Its streams are judged with the assembled film.  Raises `ConversionError`.
        """
        media, plan = self._media, film.plan
        if not encoded_sound(plan):
            return None
        zero_us = film.split.zero_us
        command = sound_command(plan, media.ffmpeg.path, source, output, zero_us=zero_us)
        limits = media.encode_limits(plan, output)
        run = await media.runner.run(command, limits=limits, on_progress=on_progress)
        report = media.report(plan, run)
        verdict = judge_end(run, plan)
        if not verdict.ok:
            raise ConversionError(verdict.error(), report)
        return await media.prove_sound(output, plan, report)

    async def assemble(
        self,
        film: Film,
        parts: Parts,
        output: AnyPath,
        *,
        on_progress: OnProgress,
        on_verify: OnProgress | None = None,
    ) -> Converted:
        """Puts the film together and proves it as a whole, each frame's time against the contract.

        Raises `ConversionError`, or `MediaError` where a chunk cannot be used.
        """
        plan, media = film.plan, self._media
        words = ("join", text_of(parts.index), text_of(parts.picture), *map(text_of, parts.chunks))
        size = media.encode_limits(plan, output).output_bytes
        joined = await self._said("join_av", words, size, writes=parts.picture)
        command = assembly_command(plan, film.split, parts, ffmpeg=media.ffmpeg.path, output=output)
        report = await media.run_judged(command, output, plan, on_progress)
        words = ("times", text_of(parts.index), text_of(output), *_sounds(parts, plan))
        found = await self._said("join_av", words, 0)
        copied, heard = found.pop("packets") == joined["packets"], bool(found.pop("sounds"))
        verdict = judge_times(TimesFound.model_validate(found), plan)
        if not verdict.ok:
            raise ConversionError(verdict.error(), report)
        if copied:
            # Each part was decoded whole by its maker; what must still be proven is what is new.
            sounds = sounds_of(plan, encoded=False)
            if not heard:
                sounds += sounds_of(plan, encoded=True)
            seams = seams_us(film.split)
            made = await media.prove_copied(output, plan, report, seams_us=seams, sounds=sounds)
        else:
            made = await media.prove(output, plan, report, on_verify or (lambda _: None), 0)
        shown = Shown(parts.source, film.probe.video.start_us)
        return await media.looked_at(made, shown, output, plan, film.profile)

    async def _said(
        self,
        module: str,
        words: Sequence[str],
        output_bytes: int | None,
        *,
        writes: AnyPath | None = None,
    ) -> dict[str, Any]:
        """What a child says; its faults are raised."""
        limits = Limits(
            time_ms=COPY_TIME_BASE_MS + (output_bytes or 0) // COPY_BYTES_PER_MS,
            memory_bytes=CHILD_MEMORY_BYTES,
            output_bytes=output_bytes,
            writes=writes,
        )
        run = await self._child(module, words, limits)
        if not run.ok:
            if run.reason == "disk" or run.stderr.said("disk_full"):
                raise WorkDiskFullError(_last(run), "free space in the node's data directory")
            raise EncodeFailedError(f"{module} failed: {_last(run)}", "retry the job")
        said = _SAID.validate_json(run.stdout)
        fault = said.get("fault")
        if fault:
            error = ERRORS.get(str(said.get("code", "")), BadResultError)
            raise error(str(fault), "retry the job; --no-split converts it in one piece")
        return said

    async def _child(self, module: str, words: Sequence[str], limits: Limits) -> RunResult:
        command = (self._media.python, "-P", "-m", f"node.media.{module}", *words)
        return await self._media.runner.run(command, limits=limits)


def _sounds(parts: Parts, plan: EncodePlan) -> tuple[str, ...]:
    """The sound that is proven, and which of the film's are to be the same."""
    if parts.sound is None or not parts.sound_is_proven:
        return ()
    return (text_of(parts.sound), *map(str, sounds_of(plan, encoded=True)))


def seams_us(split: SplitPlan) -> tuple[int, ...]:
    """When chunks begin, from the start of the film with all its streams; evenly chosen where there are many."""
    numerator, denominator = split.time_base
    first = split.chunks[0].start
    starts = [
        split.start_us + (chunk.start - first) * 1_000_000 * numerator // denominator
        for chunk in split.chunks[1:]
    ]
    step = -(-len(starts) // SEAMS_MAX)
    return tuple(starts[::step])


def _last(run: RunResult) -> str:
    line = run.stderr.tail.strip().rpartition("\n")[2]
    how = f"signal {run.signal}" if run.exit_code is None else f"code {run.exit_code}"
    return f"{run.reason}, {how} {line[:200]}".rstrip()
