"""What a watched folder on disk tells, also of names that no message can carry."""

import asyncio
import os
from pathlib import Path

from node.work.watch_files import WatchedFolder

WAIT_S = 20
ROUND_S = 0.2


async def _told(folder: Path, wanted: object) -> None:
    """Touches a file until the folder tells what is wanted, twice; None: its name is no text."""
    stop, times = asyncio.Event(), 0
    changes = WatchedFolder(folder, lambda _: True, 1).changes(stop)
    odd = Path(os.fsdecode(os.fsencode(folder) + b"/\xff.mkv"))

    loop = asyncio.get_running_loop()

    def touch() -> None:
        if not stop.is_set():
            (odd if wanted is None else folder / "good.mkv").write_bytes(b"x")
            loop.call_later(ROUND_S, touch)

    touch()
    async with asyncio.timeout(WAIT_S):
        async for names in changes:
            times += names == wanted
            if times == 2:
                stop.set()
    assert times == 2


def test_a_name_that_is_no_text_ends_nothing(tmp_path: Path) -> None:
    asyncio.run(_told(tmp_path, None))


def test_changed_files_are_named(tmp_path: Path) -> None:
    asyncio.run(_told(tmp_path, {"good.mkv"}))
