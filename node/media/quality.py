"""How much a result looks like its film: VMAF on samples, and the floor below which it is refused.

The film is filtered as for the encoder (size, tones, fields), so what is measured is what encoding took.
Frames are paired by their times from the first picture on, which a result has from its source: what each
version of FFmpeg takes for the start of a file (sound may be primed before it) plays no part.
"""

import re
from dataclasses import dataclass
from typing import Final

from node.media.child import AnyPath, ChildRunner, Limits, text_of
from node.media.command import GLOBAL, input_options
from node.media.errors import EncodeFailedError, EncoderUnavailableError, PoorPictureError
from node.media.plan import VULKAN_SCALER, EncodePlan, PlannedFilter
from node.media.profiles import QualityPolicy

SAMPLE_US: Final = 2_000_000
"""Long enough for a keyframe's neighbours, short enough to be measured in seconds."""
AHEAD_US: Final = 2_000_000
ROUNDED_US: Final = 1_000
"""What Matroska may be off."""
TRIAL_LIMITS: Final = Limits(time_ms=30_000, output_bytes=0, stdout_bytes=64 << 10)
LIMITS: Final = Limits(time_ms=600_000, output_bytes=0, stdout_bytes=64 << 10)
"""A sample of 4K takes half a minute on two processors."""
_SCORE: Final = re.compile(r"VMAF score: (\d{1,3}(?:\.\d+)?)")
_DEVICE_STEPS: Final = frozenset({"hwupload", VULKAN_SCALER})


def samples(span_us: int, count: int) -> tuple[tuple[int, int], ...]:
    """(beginning, length) in microseconds of evenly spread samples; all of a film that is not longer."""
    if span_us <= 2 * SAMPLE_US * count:
        return ((0, span_us + SAMPLE_US),)
    return tuple(
        ((2 * n + 1) * span_us // (2 * count) - SAMPLE_US // 2, SAMPLE_US) for n in range(count)
    )


@dataclass(frozen=True, slots=True)
class Shown:
    """A file, and when its first picture is shown on its own clock."""

    path: AnyPath
    start_us: int


def vmaf_command(
    ffmpeg: str, film: Shown, result: Shown, plan: EncodePlan, sample: tuple[int, int]
) -> tuple[str, ...]:
    """Measures one sample; FFmpeg tells the mean of its frames at its end."""
    told = {"level+warning": "level+info"}
    words = [told.get(word, word) for word in GLOBAL if word not in ("-progress", "pipe:1")]
    size = PlannedFilter(name="scale", arguments=(str(plan.width), str(plan.height)))
    same = PlannedFilter(name="format", arguments=(plan.pixel_format,))
    steps = (*(step for step in plan.filters if step.name not in _DEVICE_STEPS), size, same)
    reference = ",".join((_part(film, sample), *map(_text, steps)))
    graph = (
        f"[0:v:0]{_part(result, sample)},{_text(same)}[made];"
        f"[1:{plan.streams[0].source}]{reference}[film];"
        "[made][film]libvmaf=ts_sync_mode=nearest:n_threads=4"
    )
    words += ["-copyts", *_opened(result, sample), *_opened(film, sample)]
    return (ffmpeg, *words, "-lavfi", graph, "-an", "-f", "null", "-")


def _opened(shown: Shown, sample: tuple[int, int]) -> list[str]:
    """An input that begins well before the sample, so that no picture of it lacks its references."""
    words = [word for key, value in input_options(0).items() for word in (f"-{key}", str(value))]
    if sample[0] > AHEAD_US:
        at = shown.start_us + sample[0] - AHEAD_US
        words += ["-seek_timestamp", "1", "-ss", f"{at}us", "-noaccurate_seek"]
    return [*words, "-i", "file:" + text_of(shown.path)]


def _part(shown: Shown, sample: tuple[int, int]) -> str:
    """The sample alone, with times from the first picture on."""
    begin = shown.start_us + sample[0] - ROUNDED_US
    end = begin + sample[1]
    return f"trim=start={begin}us:end={end}us,setpts=PTS-{shown.start_us / 1e6:.6f}/TB"


def _text(step: PlannedFilter) -> str:
    given = (*step.arguments, *(f"{key}={value}" for key, value in step.options))
    return step.name + ("=" + ":".join(given) if given else "")


async def can_measure(runner: ChildRunner, ffmpeg: str) -> bool:
    """Whether this FFmpeg measures VMAF: shown by a measurement of nothing much."""
    graph = "testsrc2=s=64x64:r=25:d=0.08,split[a][b];[a][b]libvmaf"
    words = (*GLOBAL[:2], "-v", "info", "-filter_complex", graph, "-f", "null", "-")
    run = await runner.run((ffmpeg, *words), limits=TRIAL_LIMITS)
    return run.ok and _SCORE.search(run.stderr.tail) is not None


def unable() -> EncoderUnavailableError:
    """What to raise where it does not."""
    return EncoderUnavailableError(
        "the job asks for a floor of VMAF, and this node's FFmpeg has no libvmaf",
        "install an FFmpeg with libvmaf there (the one of imageio-ffmpeg has it), or leave out --vmaf-min",
    )


async def measure_vmaf(
    runner: ChildRunner,
    ffmpeg: str,
    film: Shown,
    result: Shown,
    *,
    plan: EncodePlan,
    count: int,
) -> tuple[float, ...]:
    """The VMAF of each sample."""
    scores: list[float] = []
    for sample in samples(plan.span_us, count):
        command = vmaf_command(ffmpeg, film, result, plan, sample)
        run = await runner.run(command, limits=LIMITS)
        found = _SCORE.search(run.stderr.tail)
        if not run.ok or found is None:
            what = run.stderr.first_error or f"FFmpeg ended with code {run.exit_code}"
            raise EncodeFailedError(f"VMAF cannot be measured: {what}", "see the end of its log")
        scores.append(float(found[1]))
    return tuple(scores)


async def require_quality(
    runner: ChildRunner,
    ffmpeg: str,
    film: Shown,
    result: Shown,
    *,
    plan: EncodePlan,
    policy: QualityPolicy,
) -> float:
    """The lowest VMAF of the samples.  Raises `PoorPictureError` below the policy's floor."""
    scores = await measure_vmaf(runner, ffmpeg, film, result, plan=plan, count=policy.samples)
    worst = min(scores)
    if worst < policy.vmaf_min:
        raise PoorPictureError(
            f"a sample of the result has VMAF {worst:.1f}, {policy.vmaf_min:g} was asked for",
            "choose a profile with more quality, or a lower floor",
        )
    return worst
