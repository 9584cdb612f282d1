"""NVIDIA's driver at the edge of `GpuUse`: a library of its name answers as a file says, in a process of its own.

No chip is needed: nvidia-ml-py loads `libnvidia-ml.so.1` from the library path, and what is built from
`nvml_driver.c` has NVML's own calls and structures.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from node.work.gpu_files import Busiest, ChipFiles
from node.work.gpu_nvml import LOOKS_UNTIL_RETRY, MEMORY_BYTES_MIN

SOURCE: Final = Path(__file__).parent.parent / "nvml_driver.c"
READER: Final = """
import json, structlog, sys
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
from node.work.gpu_nvml import GpuUse
asked = {}
use = GpuUse(lambda: asked["own"], lambda: asked["at_work"])
for line in sys.stdin:
    asked = json.loads(line)
    print(json.dumps([use.percent() for _ in range(asked["times"])]), flush=True)
"""
OWN, OTHER = 7, 8
UNINITIALIZED, NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND = 1, 3, 4, 6
NOT_LOADED, NO_FUNCTION, GPU_IS_LOST, MISMATCH, UNKNOWN = 9, 13, 15, 18, 999


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the library."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no C compiler for a stand-in of the driver")
    folder = tmp_path_factory.mktemp("driver")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(SOURCE)], check=True)
    return folder


class Chip:
    """A process that reads the use of chips by others, with a driver that says what it is told to."""

    def __init__(self, folder: Path, libraries: Path) -> None:
        self.answers = folder / "answers"
        self.answers.write_text("")
        self.process = subprocess.Popen(
            [sys.executable, "-c", READER],
            env={
                **os.environ,
                "LD_LIBRARY_PATH": str(libraries),
                "FAKE_NVML": str(self.answers),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def says(self, *lines: str) -> None:
        self.answers.write_text("count 0 1\n" + "".join(f"{line}\n" for line in lines))

    def seen(self, times: int = 1, *, at_work: bool = False) -> Any:
        """What is read now; of several reads all."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        asked = {"own": [OWN], "at_work": at_work, "times": times}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.process.stderr and self.process.stderr.read()
        found = json.loads(line)
        return found if times > 1 else found[0]

    def end(self) -> str:
        """What it logged; it ended only now, and well."""
        _, told = self.process.communicate()
        assert self.process.returncode == 0, told
        return told


@pytest.fixture
def chip(tmp_path: Path, driver: Path) -> Iterator[Chip]:
    made = Chip(tmp_path, driver)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.communicate()


def test_others_are_counted_and_our_own_are_not(chip: Chip) -> None:
    chip.says(f"use {OTHER} 30 0 5", f"use {OWN} 60 90 0", "use 9 10 20 0")
    assert chip.seen() == 40
    chip.says(f"use {OWN} 99 99 99")
    assert chip.seen(at_work=True) == 0
    chip.says(f"use {OTHER} 0 100 0")
    assert chip.seen() == 100
    chip.says()
    assert chip.seen() == 0


@pytest.mark.parametrize("code", [NOT_FOUND, 21])
def test_nobody_lately_is_no_use(chip: Chip, code: int) -> None:
    chip.says(f"util {code}")
    assert chip.seen() == 0


def test_memory_that_others_filled_is_use_and_our_own_part_is_not(chip: Chip) -> None:
    chip.says(f"memory 0 {MEMORY_BYTES_MIN - 1}", f"holds {OTHER} {7 << 30}")
    assert chip.seen() == 100
    chip.says(
        f"memory 0 {MEMORY_BYTES_MIN - 1}", f"holds {OTHER} {6 << 30}", f"holds {OWN} {1 << 30}"
    )
    assert chip.seen() == 0
    chip.says(f"memory 0 {MEMORY_BYTES_MIN}")
    assert chip.seen() == 0
    # A chip that tells nothing of its memory is judged by what it does.
    chip.says(f"memory {NOT_SUPPORTED}", f"use {OTHER} 50 0 0")
    assert chip.seen() == 50


@pytest.mark.parametrize("code", [NO_PERMISSION, NOT_SUPPORTED, NO_FUNCTION])
def test_where_it_is_not_told_by_process_the_whole_chip_counts_while_nothing_of_ours_is_there(
    chip: Chip, code: int
) -> None:
    chip.says(f"util {code}", "whole 0 40 70 10")
    assert chip.seen() == 70
    assert chip.seen(at_work=True) is None, "whose use it is nobody knows"
    chip.says(f"util {code}", f"whole {NO_PERMISSION}")
    assert chip.seen() is None
    chip.says(f"use {OTHER} 20 0 0")
    assert chip.seen() == 20


@pytest.mark.parametrize("code", [NOT_LOADED, NO_PERMISSION, UNKNOWN])
def test_a_driver_that_does_not_answer_is_told_once_and_looked_for_again(
    chip: Chip, code: int
) -> None:
    chip.says(f"init {code}", f"use {OTHER} 80 0 0")
    assert chip.seen(3) == [None] * 3
    chip.says(f"use {OTHER} 80 0 0")
    assert chip.seen(LOOKS_UNTIL_RETRY)[-1] == 80
    assert chip.end().count("nobody knows how much others use") == 1


@pytest.mark.parametrize(
    ("call", "code"),
    [("util", UNINITIALIZED), ("util", GPU_IS_LOST), ("util", UNKNOWN), ("memory", MISMATCH)],
)
def test_a_driver_that_goes_while_the_node_runs_is_nobodys_end(
    chip: Chip, call: str, code: int
) -> None:
    chip.says(f"use {OTHER} 80 0 0")
    assert chip.seen() == 80
    chip.says(f"{call} {code}")
    assert chip.seen(5) == [None] * 5
    chip.says(f"use {OTHER} 60 0 0")
    found = chip.seen(LOOKS_UNTIL_RETRY)
    assert (found[0], found[-1]) == (None, 60)
    chip.end()


def test_of_two_chips_the_busier_counts_and_one_that_is_lost_is_left_out(chip: Chip) -> None:
    chip.answers.write_text(f"count 0 2\nhandle {GPU_IS_LOST} 0\nuse {OTHER} 30 0 0\n")
    assert chip.seen() == 30


def test_without_a_driver_nobody_knows(tmp_path: Path, driver: Path) -> None:
    """The library is not there at all: as on every machine without such a chip."""
    bare = Chip(tmp_path, tmp_path)
    try:
        assert bare.seen(2) == [None, None]
        # Installed meanwhile, it would need a restart of the node: the system looks for libraries once.
        assert "nobody knows" in bare.end()
    finally:
        bare.process.kill()
        bare.process.communicate()


# --- drivers that tell in files -------------------------------------------------------------------------


def card(folder: Path, number: int, text: str) -> Path:
    file = folder / f"card{number}" / "device" / "gpu_busy_percent"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return file


def test_files_of_chips_tell_while_nothing_of_ours_is_there(tmp_path: Path) -> None:
    ours: list[int] = []
    files = ChipFiles(lambda: bool(ours), tmp_path)
    assert files.percent() is None, "no chip tells so here"
    first = card(tmp_path, 0, "7\n")
    assert files.percent() == 7
    card(tmp_path, 1, "93\n")
    assert files.percent() == 93
    ours.append(1)
    assert files.percent() is None
    ours.clear()
    (tmp_path / "card1" / "device" / "gpu_busy_percent").write_text("not a number")
    assert files.percent() == 7
    first.unlink()
    first.mkdir()  # reading it fails, as of a chip that sleeps
    assert files.percent() is None


def test_of_all_sources_the_most_counts(tmp_path: Path) -> None:
    card(tmp_path, 0, "50")
    known, none = ChipFiles(lambda: False, tmp_path), ChipFiles(lambda: True, tmp_path)
    assert Busiest((none, known)).percent() == 50
    assert Busiest((none, none)).percent() is None
