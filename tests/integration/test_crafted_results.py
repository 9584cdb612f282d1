"""Results that a lying or broken node could hand in: each decodes, and only its owner can see that it is none.

Each is made of the film's own frames, rearranged or painted over, by the same encoder with as many frames
at the same times; and what its maker claims of it is true of the file that was handed in.
"""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from node.media.convert import Media
from node.media.errors import MediaError
from node.media.judge import facts_of
from node.media.likeness import places
from node.media.probe import Probe
from node.media.profiles import Profile
from tests.film_apart import Apart, media_of, now, quick
from tests.media_clips import AAC, LONG_SOUND, X264, ffmpeg, make

WIDTH, HEIGHT, RATE, SECONDS = 160, 120, 25, 6
LUMA, BYTES = WIDTH * HEIGHT, WIDTH * HEIGHT * 3 // 2
PICTURE = ["-f", "lavfi", "-i", f"testsrc2=s={WIDTH}x{HEIGHT}:r={RATE}:d={SECONDS}"]
OTHER = ["-f", "lavfi", "-i", f"mandelbrot=s={WIDTH}x{HEIGHT}:r={RATE}"]
Frames = list[bytes]


def frames_of(*words: str) -> Frames:
    argv = [ffmpeg(), "-v", "error", *words, "-frames:v", str(RATE * SECONDS), "-an"]
    argv += ["-pix_fmt", "yuv420p", "-f", "rawvideo", "pipe:1"]
    raw = subprocess.run(argv, capture_output=True, check=True, timeout=60).stdout
    return [raw[at : at + BYTES] for at in range(0, len(raw), BYTES)]


def film_of(frames: Frames, target: Path, *sound: str) -> Path:
    """A film of these frames, as the profile web makes it."""
    raw = target.with_suffix(".yuv")
    raw.write_bytes(b"".join(frames))
    shape = ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", f"{WIDTH}x{HEIGHT}", "-r", str(RATE)]
    words = [*shape, "-i", str(raw), *(sound or LONG_SOUND), "-map", "0", "-map", "1"]
    return make(target, *words, *X264, "-preset", "ultrafast", *AAC)


def exchanged(frames: Frames) -> Frames:
    return [frames[at ^ 1] for at in range(len(frames))]


def late_by_one(frames: Frames) -> Frames:
    """The first frame doubled, the last one lost."""
    return [frames[0], *frames[:-1]]


def chunks_exchanged(frames: Frames) -> Frames:
    return [*frames[100:], *frames[50:100], *frames[:50]]


def colours_exchanged(frames: Frames) -> Frames:
    quarter = LUMA // 4
    return [f[:LUMA] + f[LUMA + quarter :] + f[LUMA : LUMA + quarter] for f in frames]


def colourless(frames: Frames) -> Frames:
    return [f[:LUMA] + bytes([128]) * (LUMA // 2) for f in frames]


def half_grey(frames: Frames) -> Frames:
    return [f[: LUMA // 2] + bytes([128]) * (LUMA // 2) + f[LUMA:] for f in frames]


def frozen(frames: Frames) -> Frames:
    """From the second on a second long."""
    return [*frames[:RATE], *[frames[RATE]] * RATE, *frames[2 * RATE :]]


def black(frames: Frames) -> Frames:
    return [bytes([16]) * LUMA + bytes([128]) * (LUMA // 2)] * len(frames)


EVERYWHERE: dict[str, tuple[Callable[[Frames], Frames], str]] = {
    "nothing is wrong": (list, ""),
    "frames exchanged": (exchanged, "unlike"),
    "a frame doubled, another lost": (late_by_one, "unlike"),
    "chunks exchanged": (chunks_exchanged, "unlike"),
    "colours exchanged": (colours_exchanged, "unlike"),
    "colours gone": (colourless, "unlike"),
    "half of it grey": (half_grey, "unlike"),
    "black": (black, "unlike"),
    "the last group missing": (lambda frames: frames[:-RATE], "frame_count"),
    "a film of its own": (lambda _: frames_of(*OTHER), "unlike"),
}


@pytest.fixture(scope="module")
def media() -> Media:
    return media_of(ffmpeg())


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("film") / "film.mp4"
    return make(target, *PICTURE, *LONG_SOUND, *X264, "-g", "50", *AAC)


class Owner:
    """Judges what it was handed, with the seed that lets it look at `at` seconds as well."""

    def __init__(self, media: Media, film: Path, profile: Profile) -> None:
        self.media, self.film, self.profile = media, film, profile
        self.probe: Probe = now(media.probe(film))

    def judges(self, result: Path, *, at: float | None = None) -> str:
        claimed = facts_of(now(self.media.probe(result)))
        span = self.probe.video.span_us
        seeds = map(str, range(10_000))
        seed = next(s for s in seeds if at is None or abs(places(span, s)[1] - at * 1e6) < 20_000)
        judged = self.media.check_delivered(
            result, self.probe, self.profile, claimed,
            encoder="libx264", source=self.film, seed=seed,
        )  # fmt: skip
        return now(judged).code


@pytest.mark.parametrize("craft", EVERYWHERE)
def test_what_shows_something_else_is_refused(
    media: Media, film: Path, tmp_path: Path, craft: str
) -> None:
    change, code = EVERYWHERE[craft]
    made = film_of(change(frames_of("-i", str(film))), tmp_path / "made.mp4")
    owner = Owner(media, film, quick("web"))
    assert owner.judges(made) == code


def test_what_is_wrong_in_one_place_is_seen_there(media: Media, film: Path, tmp_path: Path) -> None:
    made = film_of(frozen(frames_of("-i", str(film))), tmp_path / "made.mp4")
    owner = Owner(media, film, quick("web"))
    assert owner.judges(made, at=1.5) == "unlike"
    # All frames of both would have to be decoded for that: a tenth of what the conversion costs.
    assert owner.judges(made, at=4.0) == "", "and nowhere else"


def test_sound_that_begins_late_is_refused(media: Media, film: Path, tmp_path: Path) -> None:
    frames, owner = frames_of("-i", str(film)), Owner(media, film, quick("web"))
    late = film_of(frames, tmp_path / "late.mp4", "-itsoffset", "0.06", *LONG_SOUND)
    assert owner.judges(late) == "duration"


def test_a_frame_at_another_time_is_refused(media: Media, film: Path, tmp_path: Path) -> None:
    made = film_of(frames_of("-i", str(film)), tmp_path / "made.mp4")
    late = "setts=pts=PTS+if(eq(N\\,70)\\,5/TB/1000\\,0)"
    moved = make(tmp_path / "moved.mp4", "-i", str(made), "-c", "copy", "-bsf:v", late)
    assert Owner(media, film, quick("web")).judges(moved) == "duration"


def test_a_film_of_which_one_frame_lies_on_anothers_time_is_refused(
    media: Media, film: Path, tmp_path: Path
) -> None:
    """Source and result would agree about it."""
    spoilt = tmp_path / "spoilt.mkv"
    onto = "setts=pts=PTS+if(eq(N\\,70)\\,0.04/TB\\,0)"
    make(spoilt, "-i", str(film), "-c", "copy", "-an", "-bsf:v", onto)
    with pytest.raises(MediaError, match="lie on the time of another") as refused:
        now(media.probe(spoilt))
    assert refused.value.code == "damaged_source"


@pytest.mark.parametrize("profile", ["web", "archive"])
def test_a_chunk_of_another_place_is_refused(
    media: Media, film: Path, tmp_path: Path, profile: str
) -> None:
    apart = Apart(media, film, quick(profile), tmp_path, 2_000).encode_all()
    assert len(apart.chunks) == 3

    def judged(made: int, as_number: int) -> str:
        claimed = facts_of(now(media.probe(apart.chunks[made])))
        checked = apart.pieces.check_chunk(apart.chunks[made], apart.film, as_number, claimed, film)
        return now(checked).code

    assert [judged(n, n) for n in range(3)] == ["", "", ""]
    assert judged(0, 1) == judged(1, 0) == judged(1, 2) == "unlike"
