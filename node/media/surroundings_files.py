"""What files of this machine say about its encoders: render nodes, drivers, a folder for test pictures."""

import platform
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from node.media.hardware import Around

RENDER_NODES_MAX: Final = 64
DRIVER_FILES: Final = ("/sys/module/nvidia/version", "/sys/module/amdgpu/version")
TEXT_BYTES_MAX: Final = 256


@contextmanager
def surroundings(*, software_vulkan: bool = False) -> Generator[Around]:
    """The facts, with a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(
        prefix="darkstream-proof-", ignore_cleanup_errors=True
    ) as scratch:
        yield Around(
            scratch=scratch,
            render_nodes=_render_nodes(),
            # Drivers inside the kernel change with it.
            drivers=" ".join((platform.release(), *map(_text, DRIVER_FILES))).strip(),
            system=platform.system(),
            software_vulkan=software_vulkan,
        )


def _render_nodes() -> tuple[str, ...]:
    try:
        found = sorted(str(path) for path in Path("/dev/dri").glob("renderD*"))
    except OSError:
        return ()
    return tuple(found[:RENDER_NODES_MAX])


def _text(path: str) -> str:
    with suppress(OSError, UnicodeDecodeError), Path(path).open("rb") as file:
        return file.read(TEXT_BYTES_MAX).decode("utf-8").strip()
    return ""
