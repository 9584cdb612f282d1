"""A node takes the descriptors that the system allows it, and no more than it wants."""

import subprocess
import sys

import pytest

from mesh.descriptors_posix import DESCRIPTORS_WANTED, raise_descriptor_limit
from mesh.transport import STRANGERS_MAX

RAISE = """
import resource, sys
from mesh.descriptors_posix import raise_descriptor_limit
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
soft, hard = int(sys.argv[1]), min(hard, int(sys.argv[2]))
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(raise_descriptor_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
@pytest.mark.parametrize(("soft", "hard"), [(256, 4_096), (1_024, 1_024)])
def test_the_soft_limit_becomes_the_hard_one(soft: int, hard: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RAISE, str(soft), str(hard)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(hard)] * 3


def test_it_is_enough_for_three_ports_full_of_strangers() -> None:
    assert DESCRIPTORS_WANTED > 8 * 3 * STRANGERS_MAX
    if sys.platform != "win32":
        assert raise_descriptor_limit() > 0
