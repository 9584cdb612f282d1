"""One film cut and encoded in a folder, as its owner and workers do it: for tests of films in pieces."""

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from node.media.child import AnyPath
from node.media.command import Parts
from node.media.convert import Converted, Media
from node.media.ffmpeg_binary import FFmpegBinary, choose
from node.media.locate_ffmpeg import ffmpeg_candidates
from node.media.pieces import Film, Pieces
from node.media.plan import plan_whole
from node.media.probe import Probe
from node.media.profiles import BUILT_IN, Profile
from node.media.run_ffmpeg import FFmpegRunner
from node.media.split import SplitPlan, plan_split, why_whole

T = TypeVar("T")
TOO_SHORT = "it is shorter than"
"""The one reason against splitting that tests overrule: their films are short."""
ENCODERS = frozenset({"libx264", "libx265", "libsvtav1", "ffv1", "prores_ks"})


def now(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def media_of(program: str) -> Media:
    binary: FFmpegBinary = now(choose(FFmpegRunner(), ffmpeg_candidates(program)))
    return Media(runner=FFmpegRunner(), ffmpeg=binary, encoders=ENCODERS, python=sys.executable)


def quick(name: str) -> Profile:
    profile = BUILT_IN[name]
    return profile.model_copy(
        update={"video": profile.video.model_copy(update={"speed": "ultrafast"})}
    )


def nothing(_: object) -> None:
    return


class MayNotBeSplitError(Exception):
    """The film is done whole; says why."""


class Apart:
    """One film, cut and encoded in a folder; each slice lies alone, as on a worker."""

    def __init__(
        self, media: Media, source: AnyPath, profile: Profile, folder: Path, ms: int
    ) -> None:
        self.media, self.source, self.folder = media, source, folder
        self.pieces = Pieces(media)
        self.probe: Probe = now(media.probe(source))
        table = now(self.pieces.index(source, folder / "index", size=self.probe.bytes))
        reason = why_whole(self.probe, plan_whole(self.probe, profile, ENCODERS))
        if reason and not reason.startswith(TOO_SHORT):
            raise MayNotBeSplitError(reason)
        if not table.fault and table.frames != self.probe.frames:
            raise MayNotBeSplitError(f"{table.frames} packets, {self.probe.frames} frames")
        split = plan_split(table, length_ms=ms)
        if not isinstance(split, SplitPlan):
            raise MayNotBeSplitError(split)
        encoder = plan_whole(self.probe, profile, ENCODERS).encoder
        self.film = Film(probe=self.probe, profile=profile, split=split, encoder=encoder)
        self.chunks: dict[int, Path] = {}

    async def cut(self, number: int) -> Path:
        target = self.folder / f"slice{number}"
        index = self.folder / "index"
        await self.pieces.cut(self.source, index, target, self.film.split, number)
        return target

    async def encode(self, number: int) -> Converted:
        piece, chunk = await self.cut(number), self.folder / f"chunk{number}.mkv"
        self.chunks[number] = chunk
        pieces, film = self.pieces, self.film
        made = await pieces.encode_chunk(piece, chunk, film, number, on_progress=nothing)
        verdict = await pieces.check_chunk(chunk, film, number, made.facts, self.source)
        assert verdict.ok, verdict
        return made

    def encode_all(self) -> "Apart":
        async def work() -> None:
            await asyncio.gather(*(self.encode(c.number) for c in self.film.split.chunks))

        now(work())
        return self

    def assemble(self, *, sound_is_proven: bool = True) -> Path:
        sound = self.folder / "sound.mp4"
        sound.unlink(missing_ok=True)
        made = self.pieces.encode_sound(self.source, sound, self.film, on_progress=nothing)
        parts = Parts(
            source=self.source,
            index=self.folder / "index",
            chunks=tuple(self.chunks[number] for number in sorted(self.chunks)),
            sound=sound if now(made) else None,
            picture=self.folder / "picture",
            sound_is_proven=sound_is_proven,
        )
        output = self.folder / "out"
        output.unlink(missing_ok=True)
        now(self.pieces.assemble(self.film, parts, output, on_progress=nothing))
        return output


def whole(media: Media, probe: Probe, source: AnyPath, profile: Profile, folder: Path) -> Path:
    """Made by a worker, and judged by its owner."""
    output = folder / "whole"

    async def work() -> None:
        made = await media.convert(source, output, probe, profile, on_progress=nothing)
        verdict = await media.check_delivered(
            output, probe, profile, made.facts,
            encoder=made.report.encoder, source=source, seed=output.name,
        )  # fmt: skip
        assert verdict.ok, verdict

    now(work())
    return output
