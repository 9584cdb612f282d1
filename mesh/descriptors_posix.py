"""How many files and connections this process may hold open."""

import sys
from typing import Final

DESCRIPTORS_WANTED: Final = 65_536
"""Strangers at three ports (`mesh.transport.STRANGERS_MAX`) need 1,536; the usual 1,024 are gone at
once.  More would only make tables of children large that allocate by it."""


def raise_descriptor_limit() -> int:
    """Takes what the system allows without asking anybody; how many it is now, 0 if nobody knows.

    With the usual soft limit of 1,024 a thousand silent connections of strangers left a node
    nothing to open its own files with (it ended).
    """
    if sys.platform == "win32":
        return 0
    import resource  # noqa: PLC0415 - not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_WANTED)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError):  # macOS allows less than it says
        return soft
    return wanted
