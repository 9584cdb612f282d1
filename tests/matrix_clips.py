"""The films of the acceptance matrix: every kind of container, codec, clock, shape and sound that people have.

Most are made here, six seconds long with a keyframe each second so that they can be split, three where
they cannot; the real ones lie in a package of the test environment or beside the checkout.
"""

from collections.abc import Callable
from pathlib import Path

from tests.media_clips import (
    AAC,
    LONG,
    LONG_SOUND,
    OPEN,
    RECIPES,
    SRT,
    SWEEP,
    X264,
    Clips,
    make,
    packaged_clip,
    shared_clip,
)

Recipe = Callable[[Clips, Path], object]
GOP = ["-preset", "medium", "-g", "24"]
SHORT = ["-f", "lavfi", "-i", "testsrc2=s=160x120:r=25:d=3"]
SHORT_SOUND = [*LONG_SOUND, "-t", "3"]


def _at(rate: str) -> Recipe:
    def recipe(_: Clips, path: Path) -> None:
        picture = ["-f", "lavfi", "-i", f"testsrc2=s=160x120:r={rate}:d=6"]
        make(path, *picture, *LONG_SOUND, *X264, "-preset", "medium", "-x264-params", OPEN, *AAC)

    return recipe


def _made(
    *words: str, sound: tuple[str, ...] = ("-c:a", "aac", "-b:a", "64k"), short: bool = False
) -> Recipe:
    def recipe(_: Clips, path: Path) -> None:
        make(
            path,
            *(SHORT if short else LONG),
            *(SHORT_SOUND if short else LONG_SOUND),
            *words,
            *sound,
        )

    return recipe


def _copied(source: str, *words: str) -> Recipe:
    def recipe(clips: Clips, path: Path) -> None:
        make(
            path,
            *[str(clips.get(source)) if word == "FILM" else word for word in words],
            "-c",
            "copy",
        )

    return recipe


def _hdr10(_: Clips, path: Path) -> None:
    colour = "format=yuv420p10le,setparams=color_primaries=bt2020:color_trc=smpte2084:colorspace=bt2020nc"
    params = (
        "log-level=error:hdr10=1:repeat-headers=1:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc:"
        "keyint=24:master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1):"
        "max-cll=1000,400"
    )
    make(path, *SHORT, *SHORT_SOUND, "-vf", colour, "-c:v", "libx265", "-preset", "ultrafast",
         "-x265-params", params, *AAC)  # fmt: skip


def _hlg(_: Clips, path: Path) -> None:
    colour = "format=yuv420p10le,setparams=color_primaries=bt2020:color_trc=arib-std-b67:colorspace=bt2020nc"
    params = "log-level=error:colorprim=bt2020:transfer=arib-std-b67:colormatrix=bt2020nc:keyint=24"
    make(path, *LONG, *LONG_SOUND, "-vf", colour, "-c:v", "libx265", "-preset", "ultrafast",
         "-x265-params", params, *AAC)  # fmt: skip


def _two_sounds(clips: Clips, path: Path) -> None:
    words = clips.folder / "two.srt"
    words.write_text(SRT)
    chapters = clips.folder / "two.txt"
    chapters.write_text(
        ";FFMETADATA1\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=2500\ntitle=One\n"
        "[CHAPTER]\nTIMEBASE=1/1000\nSTART=2500\nEND=6000\ntitle=Two\n"
    )
    film, other = str(clips.get("split_open.mp4")), str(clips.get("split_2997.mp4"))
    make(
        path, "-i", film, "-i", other, "-i", str(words), "-i", str(words), "-i", str(chapters),
        "-map", "0:v", "-map", "0:a", "-map", "1:a", "-map", "2:s", "-map", "3:s", "-map_chapters", "4",
        "-c", "copy", "-c:s", "mov_text", "-metadata:s:a:0", "language=eng", "-metadata:s:a:1", "language=jpn",
        "-metadata:s:s:0", "language=eng", "-metadata:s:s:1", "language=spa",
    )  # fmt: skip


def _sound_of(seconds: float) -> Recipe:
    def recipe(_: Clips, path: Path) -> None:
        make(path, *LONG, "-f", "lavfi", "-i", f"{SWEEP}:d={seconds}", *X264, *GOP, *AAC)

    return recipe


def _surround(_: Clips, path: Path) -> None:
    around = [
        "-filter_complex",
        "[1:a]pan=5.1|FL=c0|FR=0.8*c0|FC=0.5*c0|LFE=0.1*c0|BL=0.3*c0|BR=0.2*c0[a]",
    ]
    make(
        path, *LONG, *LONG_SOUND, *around, "-map", "0:v", "-map", "[a]", *X264, *GOP, "-c:a", "ac3"
    )


FLAGS = ("-flags", "+ilme+ildct")
RECIPES |= {
    "film_23976.mkv": _at("24000/1001"),
    "film_23976.mp4": _at("24000/1001"),
    "film_5994.mp4": _at("60000/1001"),
    "film_5994.ts": _at("60000/1001"),
    "interlaced_6s.mkv": _made("-vf", "interlace", *FLAGS, "-x264-params", "tff=1", *X264, *GOP),
    "ten_bit.mp4": _made("-c:v", "libx265", "-preset", "ultrafast", "-pix_fmt", "yuv420p10le",
                         "-x265-params", "log-level=error:keyint=24", "-tag:v", "hvc1"),
    "ten_bit.mkv": _made("-c:v", "libx264", "-preset", "fast", "-g", "24", "-pix_fmt", "yuv420p10le"),
    "hdr10.mkv": _hdr10,
    "hlg.mp4": _hlg,
    "upside_down.mp4": _copied("split_open.mp4", "-display_rotation", "180", "-i", "FILM"),
    "mirrored.mp4": _copied("split_open.mp4", "-display_hflip", "-i", "FILM"),
    "wide_pixels.mkv": _made("-vf", "setsar=16/11", *X264, *GOP),
    "wide_pixels_6s.mp4": _made("-vf", "setsar=8/9", *X264, *GOP),
    "starts_late.mkv": _copied("split_open.mp4", "-itsoffset", "7.5", "-i", "FILM", "-map", "0"),
    "starts_late.mp4": _copied("split_2997.mp4", "-itsoffset", "7.5", "-i", "FILM", "-map", "0"),
    "late_picture.mp4": _copied("split_open.mp4", "-i", "FILM", "-itsoffset", "1.3", "-i", "FILM",
                                "-map", "1:v", "-map", "0:a"),
    "late_sound_6s.mp4": _copied("split_open.mp4", "-i", "FILM", "-itsoffset", "0.9", "-i", "FILM",
                                 "-map", "0:v", "-map", "1:a"),
    "edited_twice.mp4": _copied("split_edited.mp4", "-ss", "1.3", "-i", "FILM"),
    "fragmented.mp4": _copied("split_open.mp4", "-i", "FILM", "-movflags", "+frag_keyframe+empty_moov"),
    "two_sounds.mp4": _two_sounds,
    "long_sound.mp4": _sound_of(8),
    "long_sound.mkv": _sound_of(8),
    "short_sound.mp4": _sound_of(3.5),
    "short_sound.mkv": _sound_of(3.5),
    "no_sound.mkv": lambda _, path: make(path, *LONG, *X264, *GOP),
    "no_sound.mp4": lambda _, path: make(path, *LONG, *X264, *GOP),
    "odd_6s.mkv": lambda _, path: make(
        path, "-f", "lavfi", "-i", "testsrc2=s=161x121:r=25:d=6", "-c:v", "libx264", *GOP, "-pix_fmt", "yuv444p"
    ),
    "surround.mkv": _surround,
    "pcm.mov": _made(*X264, *GOP, sound=("-c:a", "pcm_s24le")),
    "opus.mkv": _made(*X264, *GOP, sound=("-c:a", "libopus")),
    "mpeg2.ts": _made("-c:v", "mpeg2video", "-g", "12", "-bf", "2", "-b:v", "1M", sound=("-c:a", "mp2"), short=True),
    "mpeg2.mpg": _made("-c:v", "mpeg2video", "-g", "12", "-bf", "2", "-b:v", "1M", sound=("-c:a", "mp2"), short=True),
    "asp.avi": _made("-c:v", "libxvid", "-bf", "2", "-g", "25", sound=("-c:a", "libmp3lame"), short=True),
    "asp.mkv": _made("-c:v", "mpeg4", "-bf", "2", "-g", "25", short=True),
    "asp.mp4": _made("-c:v", "mpeg4", "-bf", "2", "-g", "25", short=True),
    "theora.ogv": _made("-c:v", "libtheora", "-g", "24", "-b:v", "400k", sound=("-c:a", "libvorbis"), short=True),
    "vp8.webm": _made("-c:v", "libvpx", "-cpu-used", "8", "-deadline", "realtime", "-g", "24", "-auto-alt-ref", "1",
                      "-b:v", "300k", sound=("-c:a", "libvorbis"), short=True),
    "av1.mkv": _made("-c:v", "libsvtav1", "-preset", "12", "-g", "24", "-pix_fmt", "yuv420p10le"),
    "prores.mov": _made("-c:v", "prores_ks", sound=("-c:a", "pcm_s16le"), short=True),
    "prores_alpha.mov": _made("-c:v", "prores_ks", "-profile:v", "4444", "-pix_fmt", "yuva444p10le", short=True),
    "dnxhr.mov": _made("-vf", "scale=256:144", "-c:v", "dnxhd", "-profile:v", "dnxhr_lb", "-pix_fmt", "yuv422p",
                       sound=("-c:a", "pcm_s16le"), short=True),
    "mjpeg.avi": _made("-c:v", "mjpeg", "-pix_fmt", "yuvj420p", sound=("-c:a", "pcm_s16le"), short=True),
    "mjpeg.mov": _made("-c:v", "mjpeg", "-pix_fmt", "yuvj422p", sound=("-c:a", "pcm_s16le")),
    "wmv.asf": _made("-c:v", "wmv2", "-g", "25", sound=("-c:a", "wmav2"), short=True),
    "sorenson.flv": _made("-c:v", "flv", "-g", "25", sound=("-c:a", "libmp3lame"), short=True),
    "h264.flv": _made(*X264, *GOP, short=True),
    "rgb.mkv": _made("-c:v", "libx264rgb", "-preset", "ultrafast", "-g", "24", "-crf", "10"),
    "grey.mkv": _made("-c:v", "libx264", "-preset", "fast", "-g", "24", "-pix_fmt", "gray"),
    "full_range.mp4": _made("-c:v", "libx264", "-preset", "fast", "-g", "24", "-pix_fmt", "yuvj420p"),
    "tiny.mp4": lambda _, path: make(path, "-f", "lavfi", "-i", "testsrc2=s=32x18:r=25:d=3", *X264),
}  # fmt: skip

CUTTABLE = (
    "split_open.mkv", "split_open.mp4", "split_open.ts", "film_23976.mkv", "film_23976.mp4", "split_2997.mkv",
    "split_2997.mp4", "film_5994.mp4", "film_5994.ts", "split_vfr.mp4", "split_vfr.mkv", "ten_bit.mp4",
    "ten_bit.mkv", "hlg.mp4", "split_turned.mp4", "upside_down.mp4", "wide_pixels.mkv", "wide_pixels_6s.mp4",
    "starts_late.mkv", "starts_late.mp4", "late_picture.mp4", "late_sound_6s.mp4", "split_edited.mp4",
    "fragmented.mp4", "split_many.mkv", "two_sounds.mp4", "long_sound.mp4",
    "long_sound.mkv", "short_sound.mp4", "short_sound.mkv", "no_sound.mkv", "no_sound.mp4", "odd_6s.mkv",
    "surround.mkv", "pcm.mov", "opus.mkv", "split_mpeg2.mkv", "split_vp9.webm", "split_av1.mp4", "av1.mkv",
    "split_hevc.mkv", "split_hevc.mp4", "split_ffv1.mkv", "mjpeg.mov", "rgb.mkv", "grey.mkv", "full_range.mp4",
)  # fmt: skip
"""Films that are split (here too, short as they are) and converted whole."""
WHOLE = (
    "one_frame.mp4", "mid_gop.ts", "field_coded.ts", "hdr10.mkv", "mirrored.mp4", "mpeg2.ts", "mpeg2.mpg", "asp.avi", "asp.mkv", "asp.mp4",
    "theora.ogv", "vp8.webm", "prores.mov", "prores_alpha.mov", "dnxhr.mov", "mjpeg.avi", "wmv.asf", "sorenson.flv",
    "h264.flv",
)  # fmt: skip
"""Films that may not be split, each for a reason that the plan says."""
OTHERS = (
    "vfr.mkv",
    "interlaced_6s.mkv",
    "film_with_cover.mp4",
    "styled.mkv",
    "large.mp4",
    "tiny.mp4",
    "edited_twice.mp4",
)
"""Films that are split by some profiles, or at some lengths."""
PACKAGED = ("bikes.mp4", "bigbuckbunny.mp4", "carphone_distorted.mp4", "carphone_pristine.mp4")
SHARED = ("vtest.avi", "VID_20191220_170832.mp4")


def film(clips: Clips, name: str) -> Path:
    """A film of the matrix by its name; the test is skipped where a real one is missing."""
    if name in PACKAGED:
        return packaged_clip(name)
    if name in SHARED:
        return shared_clip(name)
    return clips.get(name)
