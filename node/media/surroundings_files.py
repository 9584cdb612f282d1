"""What files of this machine say about its encoders: render nodes, drivers, a folder for test pictures."""

import platform
import shutil
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from node.media.hardware import Around

RENDER_NODES_MAX: Final = 64
DRIVER_FILES: Final = ("/sys/module/nvidia/version", "/sys/module/amdgpu/version")
TEXT_BYTES_MAX: Final = 256


@contextmanager
def surroundings(*, software_vulkan: bool = False, below: Path | None = None) -> Generator[Around]:
    """The facts, with a folder that is gone afterwards.

    A node's own lies in its cache (`below`), where its next start removes what a killed one left.
    """
    with ExitStack() as stack:
        scratch = (_own(below, stack) if below else "") or stack.enter_context(_lent())
        yield Around(
            scratch=scratch,
            render_nodes=_render_nodes(),
            # Drivers inside the kernel change with it.
            drivers=" ".join((platform.release(), *map(_text, DRIVER_FILES))).strip(),
            system=platform.system(),
            software_vulkan=software_vulkan,
        )


def _lent() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="darkstream-proof-", ignore_cleanup_errors=True)


def _own(below: Path, stack: ExitStack) -> str:
    """Empty where nothing can be written there: test pictures may lie elsewhere."""
    folder = below / "proof"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True, mode=0o700)
    except OSError:
        return ""
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    return str(folder)


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
