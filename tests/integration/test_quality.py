"""VMAF as a floor of a profile: of every kind of film, in one piece and in pieces, and where it cannot be measured."""

import sys
from pathlib import Path

import pytest

from node.media.convert import Media
from node.media.errors import EncoderUnavailableError
from node.media.pieces import Pieces
from node.media.profiles import BUILT_IN, Profile, QualityPolicy
from node.media.quality import Shown, measure_vmaf
from tests.film_apart import Apart, media_of, nothing, now
from tests.matrix_clips import RECIPES as OF_THE_MATRIX
from tests.media_clips import Clips, ffmpeg

NEARLY_THE_SAME = 93.0
"""Of results at CRF 4; a frame beside the right one is far from it, because everything moves."""
FILMS = {
    "split_2997.ts": "archive",
    "split_open.ts": "web",
    "split_vfr.mp4": "archive",
    "split_turned.mp4": "web",
    "large.mp4": "web",
    "odd.mkv": "web",
    "late_sound.mkv": "web",
    "hdr.mkv": "archive",
    "xvid.avi": "web",
}
assert "asp.avi" in OF_THE_MATRIX


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    return Clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def media() -> Media:
    return media_of(ffmpeg())


def fine(name: str, floor: float = NEARLY_THE_SAME) -> Profile:
    """The profile at nearly no loss; one sample, from the middle where the film is long enough."""
    profile = BUILT_IN[name]
    video = profile.video.model_copy(update={"crf": 4, "speed": "ultrafast"})
    quality = QualityPolicy(vmaf_min=floor, samples=1)
    return profile.model_copy(update={"video": video, "quality": quality})


@pytest.mark.parametrize("name", FILMS)
def test_what_is_nearly_the_same_is_told_so(
    media: Media, clips: Clips, tmp_path: Path, name: str
) -> None:
    source, wanted = clips.get(name), fine(FILMS[name])
    probe = now(media.probe(source))
    made = now(
        media.convert(source, tmp_path / "out", probe, wanted, on_progress=nothing)
    )  # refused below the floor
    assert made.facts.vmaf is not None


def test_mapped_tones_are_measured_against_mapped_tones(
    media: Media, clips: Clips, tmp_path: Path
) -> None:
    source = clips.get("hdr.mkv")
    probe = now(media.probe(source))
    made = now(media.convert(source, tmp_path / "out", probe, fine("web"), on_progress=nothing))
    assert made.facts.vmaf is not None


def test_a_film_in_pieces_is_measured_as_a_whole(
    media: Media, clips: Clips, tmp_path: Path
) -> None:
    apart = Apart(media, clips.get("split_open.ts"), fine("web"), tmp_path, 2_000).encode_all()
    result = apart.assemble()
    shown = [Shown(path, now(media.probe(path)).video.start_us) for path in (apart.source, result)]
    scores = now(
        measure_vmaf(media.runner, media.ffmpeg.path, *shown, plan=apart.film.plan, count=3)
    )
    assert min(scores) >= NEARLY_THE_SAME
    late = Shown(result, shown[1].start_us + 40_000)
    wrong = measure_vmaf(
        media.runner, media.ffmpeg.path, shown[0], late, plan=apart.film.plan, count=1
    )
    assert max(now(wrong)) < NEARLY_THE_SAME, "one frame off is seen"


WITHOUT = """#!/bin/sh
case "$*" in *libvmaf*) echo "No such filter: 'libvmaf'" >&2; exit 1 ;; esac
echo run >> "{log}"
exec {real} "$@"
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
def test_an_ffmpeg_that_cannot_measure_says_so_before_it_encodes(
    clips: Clips, tmp_path: Path
) -> None:
    log, program = tmp_path / "log", tmp_path / "ffmpeg"
    program.write_text(WITHOUT.format(log=log, real=ffmpeg()))
    program.chmod(0o755)
    media = media_of(str(program))
    assert media.ffmpeg.path == str(program)
    source = clips.get("split_open.mp4")
    probe = now(media.probe(source))
    log.unlink()
    with pytest.raises(EncoderUnavailableError, match="libvmaf"):
        now(media.convert(source, tmp_path / "out", probe, fine("web"), on_progress=nothing))
    assert not log.exists(), "nothing was encoded"
    index = tmp_path / "index"
    long = probe.model_copy(
        update={
            "streams": tuple(
                s.model_copy(update={"duration_us": 60_000_000}) for s in probe.streams
            )
        }
    )
    why = now(Pieces(media).plan(source, index, long, fine("web"), speeds=(1.0, 1.0)))
    assert "libvmaf" in str(why)
