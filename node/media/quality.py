"""How much a result looks like its film: VMAF on samples, and the floor below which it is refused.

The film is filtered as for the encoder (size, tones, fields), so what is measured is what encoding took.
Frames are paired by their times, which a result has from its source.
"""

import re
from typing import Final

from node.media.child import AnyPath, ChildRunner, Limits, text_of
from node.media.command import GLOBAL, input_options
from node.media.errors import EncodeFailedError, EncoderUnavailableError, PoorPictureError
from node.media.plan import VULKAN_SCALER, EncodePlan, PlannedFilter
from node.media.profiles import QualityPolicy

SAMPLE_US: Final = 2_000_000
"""Long enough for a keyframe's neighbours, short enough to be measured in seconds."""
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


def vmaf_command(
    ffmpeg: str, source: AnyPath, result: AnyPath, plan: EncodePlan, sample: tuple[int, int]
) -> tuple[str, ...]:
    """Measures one sample; FFmpeg tells the mean of its frames at its end."""
    begin, length = sample
    cut = ("-ss", f"{begin}us", "-t", f"{length}us")
    opened = [word for key, value in input_options(0).items() for word in (f"-{key}", str(value))]
    told = {"level+warning": "level+info"}
    words = [told.get(word, word) for word in GLOBAL if word not in ("-progress", "pipe:1")]
    size = PlannedFilter(name="scale", arguments=(str(plan.width), str(plan.height)))
    same = PlannedFilter(name="format", arguments=(plan.pixel_format,))
    steps = (*(step for step in plan.filters if step.name not in _DEVICE_STEPS), size, same)
    reference = ",".join(_text(step) for step in steps)
    graph = (
        f"[0:v:0]{_text(same)}[made];[1:{plan.streams[0].source}]{reference}[film];"
        "[made][film]libvmaf=ts_sync_mode=nearest:n_threads=4"
    )
    for path in (result, source):
        words += [*cut, *opened, "-i", "file:" + text_of(path)]
    return (ffmpeg, *words, "-lavfi", graph, "-an", "-f", "null", "-")


def _text(step: PlannedFilter) -> str:
    given = (*step.arguments, *(f"{key}={value}" for key, value in step.options))
    return step.name + ("=" + ":".join(given) if given else "")


async def measure_vmaf(
    runner: ChildRunner,
    ffmpeg: str,
    source: AnyPath,
    result: AnyPath,
    *,
    plan: EncodePlan,
    count: int,
) -> tuple[float, ...]:
    """The VMAF of each sample.  Raises `EncoderUnavailableError` where FFmpeg has no libvmaf."""
    scores: list[float] = []
    for sample in samples(plan.span_us, count):
        command = vmaf_command(ffmpeg, source, result, plan, sample)
        run = await runner.run(command, limits=LIMITS)
        found = _SCORE.search(run.stderr.tail)
        if not run.ok or found is None:
            missing = run.stderr.said("encoder")
            what = missing or run.stderr.first_error or f"FFmpeg ended with code {run.exit_code}"
            error = EncoderUnavailableError if missing else EncodeFailedError
            raise error(f"VMAF cannot be measured: {what}", "use an FFmpeg with libvmaf")
        scores.append(float(found[1]))
    return tuple(scores)


async def require_quality(
    runner: ChildRunner,
    ffmpeg: str,
    source: AnyPath,
    result: AnyPath,
    *,
    plan: EncodePlan,
    policy: QualityPolicy,
) -> float:
    """The lowest VMAF of the samples.  Raises `PoorPictureError` below the policy's floor."""
    scores = await measure_vmaf(runner, ffmpeg, source, result, plan=plan, count=policy.samples)
    worst = min(scores)
    if worst < policy.vmaf_min:
        raise PoorPictureError(
            f"a sample of the result has VMAF {worst:.1f}, {policy.vmaf_min:g} was asked for",
            "choose a profile with more quality, or a lower floor",
        )
    return worst
