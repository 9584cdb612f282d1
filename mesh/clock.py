"""The only clock reads of the project."""

import time


def monotonic_ms() -> int:
    """Milliseconds that never go back: for time-outs and leases of this process."""
    return time.monotonic_ns() // 1_000_000


def wall_ms() -> int:
    """Milliseconds since 1970 by the machine's clock, which may be wrong: for people and records only."""
    return time.time_ns() // 1_000_000
