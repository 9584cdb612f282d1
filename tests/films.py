"""Small real films for tests, made by the FFmpeg that the product would use, once a session."""

import functools
import os
import subprocess
from pathlib import Path

import imageio_ffmpeg


@functools.cache
def ffmpeg() -> str:
    """The FFmpeg that comes with the package."""
    return str(imageio_ffmpeg.get_ffmpeg_exe())


def make_film(path: Path, seconds: float = 2, size: str = "320x180", rate: int = 25) -> Path:
    """H.264 with AAC: a test picture with a running counter, `seconds * rate` frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [
            *(ffmpeg(), "-v", "error", "-nostdin", "-y"),
            *("-f", "lavfi", "-i", f"testsrc2=size={size}:rate={rate}:duration={seconds}"),
            *("-f", "lavfi", "-i", f"sine=frequency=440:duration={seconds}"),
            *("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-c:a", "aac"),
            *("-shortest", str(path)),
        ],
        check=True,
        timeout=120,
    )
    return path


def make_raw_film(path: Path, seconds: float, size: str = "640x360") -> Path:
    """Uncompressed: quickly made, quickly read, and large (8.6 MB a second of film)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = f"testsrc2=size={size}:rate=25:duration={seconds}"
    subprocess.run(
        [
            *(ffmpeg(), "-v", "error", "-nostdin", "-y", "-f", "lavfi", "-i", picture),
            *("-c:v", "rawvideo", "-pix_fmt", "yuv420p", str(path)),
        ],
        check=True,
        timeout=120,
    )
    return path


def make_noise_film(path: Path, size_bytes: int) -> Path:
    """About so many bytes of raw pictures that no packing shrinks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame_bytes, noise = 1280 * 720 * 3 // 2, os.urandom(64 << 20)
    argv = [
        *(ffmpeg(), "-v", "error", "-nostdin", "-y", "-f", "rawvideo", "-pix_fmt", "yuv420p"),
        *("-s", "1280x720", "-r", "25", "-i", "-", "-c:v", "copy", str(path)),
    ]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as made:
        assert made.stdin is not None
        for number in range(size_bytes // frame_bytes):
            # Another stretch of it for each picture: chunks must not repeat.
            start = number * 9_973 % (len(noise) - frame_bytes)
            made.stdin.write(noise[start : start + frame_bytes])
        made.stdin.close()
    assert made.returncode == 0
    return path
