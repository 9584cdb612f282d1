"""Small real films for tests, made by the FFmpeg that the product would use, once a session."""

import functools
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
