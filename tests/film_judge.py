"""What a conversion kept of a film, measured by decoding both: an opinion that owes nothing to the product."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from tests.fingerprint import Print, Shown, farthest, numbers_of, print_of

SILENCE = 1e-4
"""Mean power below which a piece of sound tells no time."""
LIKENESS_MIN = 0.4
"""Correlation of what is heard: mixing five channels to two leaves some 0.8."""
SEARCH_S = 0.3
COVER = 0x400
JITTER_MS = 2
"""Matroska and FLV round each frame's time to a millisecond; what is farther off is a gap."""
Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Heard:
    """One sound: all samples as one channel from `start_s` on; times count from the first picture."""

    start_s: float
    rate: int
    frame: int
    """Samples in one frame of its codec."""
    samples: Samples

    @property
    def seconds(self) -> float:
        """From its first to its last sample."""
        return len(self.samples) / self.rate


@dataclass(frozen=True, slots=True)
class Seen:
    """A film as a person meets it."""

    frames: list[Shown]
    tick: Fraction
    """Of the picture's clock, in seconds."""
    sounds: list[Heard]
    words: list[tuple[str, list[float]]]
    """Of each subtitle stream: its language, and when each text appears."""
    languages: list[str]
    """Of each sound."""
    chapters: list[tuple[str, float]]
    kinds: list[str]


def see(path: Path) -> Seen:
    """Decodes everything in a film."""
    frames, zero, tick = _picture(path)
    with av.open(str(path)) as film:
        kinds = [stream.type or "data" for stream in film.streams]
        languages = [_language(stream) for stream in film.streams.audio]
        chapters = [
            (str(c["metadata"].get("title", "")), float(c["start"] * c["time_base"] - zero))
            for c in film.chapters()
        ]
        audio = [stream.index for stream in film.streams.audio]
        subtitles = [stream.index for stream in film.streams.subtitles]
    return Seen(
        frames=frames,
        tick=tick,
        sounds=[_sound(path, index, zero) for index in audio],
        words=[_words(path, index, zero) for index in subtitles],
        languages=languages,
        chapters=chapters,
        kinds=kinds,
    )


def _language(stream: Any) -> str:
    named = str(stream.language or "")
    return "" if named == "und" else named


def _picture(path: Path) -> tuple[list[Shown], Fraction, Fraction]:
    with av.open(str(path)) as film:
        stream = next(v for v in film.streams.video if not v.disposition.value & COVER)
        stream.thread_type = "AUTO"
        tick = stream.time_base
        assert tick is not None
        found: list[tuple[int, Print]] = []
        for packet in film.demux(stream):
            try:
                found += [(f.pts, print_of(f)) for f in packet.decode() if f.pts is not None]
            except FFmpegError:
                if (
                    found
                ):  # a recording that begins between two keyframes is silent until the second
                    raise
        # AVI tells no presentation times: decoders give their order.
        if film.format.name == "avi":
            times = sorted(pts for pts, _ in found)
            found = [(pts, one) for pts, (_, one) in zip(times, found, strict=True)]
    found.sort(key=lambda shown: shown[0])
    zero = found[0][0]
    return [((pts - zero) * tick, one) for pts, one in found], zero * tick, tick


def _sound(path: Path, index: int, zero: Fraction) -> Heard:
    pieces: list[tuple[int, Samples]] = []
    start: Fraction | None = None
    rate = frame = end = 0
    with av.open(str(path)) as film:
        stream: Any = film.streams[index]
        resampler = av.AudioResampler(format="fltp")
        for decoded in film.decode(stream):
            rate, frame = decoded.sample_rate, max(frame, decoded.samples)
            first = end
            if decoded.pts is not None:
                at = decoded.pts * decoded.time_base - zero
                start = at if start is None else start
                told = round((at - start) * rate)
                first = told if abs(told - end) * 1000 > JITTER_MS * rate else end
            parts = [part.to_ndarray() for part in resampler.resample(decoded)]
            heard = np.concatenate(parts, axis=1).mean(axis=0).astype(np.float32)
            pieces.append((first, heard))
            end = first + len(heard)
    assert start is not None, "no sound can be decoded"
    samples = np.zeros(max(first + len(heard) for first, heard in pieces), np.float32)
    for first, heard in pieces:
        samples[first : first + len(heard)] = heard
    return Heard(float(start), rate, frame, samples)


def _words(path: Path, index: int, zero: Fraction) -> tuple[str, list[float]]:
    with av.open(str(path)) as film:
        stream = film.streams[index]
        packets = [p for p in film.demux(stream) if p.size > 2 and p.pts is not None]
        times = [float(p.pts * p.time_base - zero) for p in packets]  # type: ignore[operator]  # asked above
        return _language(stream), times


def lag_s(result: Heard, source: Heard, part: tuple[float, float]) -> float | None:
    """How much later the same sound is heard in a part (of 0 to 1) of the film; None where it is silent.

    Raises `AssertionError` when it is another sound.
    """
    rate = source.rate
    assert result.rate == rate
    begin = max(source.start_s, result.start_s)
    end = min(source.start_s + source.seconds, result.start_s + result.seconds)
    begin, end = begin + (end - begin) * part[0], begin + (end - begin) * part[1]
    one, other = _between(result, begin, end), _between(source, begin, end)
    if len(other) < rate // 10 or float(np.mean(other**2)) < SILENCE:
        return None
    size = 1 << (2 * len(other) - 1).bit_length()
    spectrum = np.fft.rfft(one, size) * np.conj(np.fft.rfft(other, size))
    alike = np.fft.irfft(spectrum, size)
    reach = int(SEARCH_S * rate)
    around = np.concatenate([alike[-reach:], alike[: reach + 1]])
    best = int(np.argmax(around))
    strength = float(around[best]) / float(np.linalg.norm(one) * np.linalg.norm(other) + 1e-9)
    assert strength > LIKENESS_MIN, f"another sound: likeness {strength:.2f}"
    return (best - reach) / rate


def _between(sound: Heard, begin: float, end: float) -> Samples:
    first = round((begin - sound.start_s) * sound.rate)
    return sound.samples[max(0, first) : first + round((end - begin) * sound.rate)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What differs; times in milliseconds, of sounds the worst."""

    frames_in: int
    frames_out: int
    wrong: int
    """Frames that show another picture than the source's of that number."""
    off_ms: float
    tick_ms: float
    sound_longer_ms: float
    sound_frame_ms: float
    sound_starts_ms: float
    """MP4 of FFmpeg does not hide an encoder's priming (silence) where the sound begins after the picture."""
    sound_lag_ms: float
    """How much later the same is heard."""

    def faults(self) -> list[str]:
        """What the issue's acceptance does not allow."""
        checks = (
            (self.frames_in == self.frames_out, "frames"),
            (self.wrong == 0, f"{self.wrong} frames out of order"),
            (self.off_ms <= self.tick_ms * 1.001, f"a frame is {self.off_ms:.3f} ms off its time"),
            (abs(self.sound_longer_ms) <= self.sound_frame_ms * 1.001, "the sound's length"),
            (-self.sound_frame_ms * 1.001 <= self.sound_starts_ms < SYNC_MS, "the sound's start"),
            (abs(self.sound_lag_ms) < SYNC_MS, "the sound's place"),
        )
        return [what for holds, what in checks if not holds]


SYNC_MS = 5.0
PARTS = ((0.0, 1.0), (0.0, 0.3), (0.7, 1.0))
"""All of it, its beginning and its end: gaps and drift show in the last."""


def compare(result: Seen, source: Seen) -> Comparison:
    """The result of a conversion against its source."""
    same = len(result.frames) == len(source.frames)
    shown = numbers_of(result.frames, source.frames)
    sounds = list(zip(result.sounds, source.sounds, strict=True))
    lags = [lag_s(a, b, part) or 0.0 for a, b in sounds for part in PARTS]
    return Comparison(
        frames_in=len(source.frames),
        frames_out=len(result.frames),
        wrong=sum(number != at for at, number in enumerate(shown)),
        off_ms=float(farthest(result.frames, source.frames)) * 1000 if same else float("inf"),
        tick_ms=float(max(result.tick, source.tick)) * 1000,
        sound_longer_ms=_worst([(a.seconds - b.seconds) * 1000 for a, b in sounds]),
        sound_frame_ms=max((max(a.frame, b.frame) / a.rate * 1000 for a, b in sounds), default=0.0),
        sound_starts_ms=_worst([(a.start_s - b.start_s) * 1000 for a, b in sounds]),
        sound_lag_ms=_worst([lag * 1000 for lag in lags]),
    )


def _worst(values: Sequence[float]) -> float:
    return max(values, key=abs, default=0.0)
