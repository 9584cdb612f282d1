"""A `mesh-node` whose films cost nothing: everything else is the product's (bench_dispatch.py).

Reads, encodes and writes nothing; notes when each task starts in the file that DISPATCH_STARTS names.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ledger.jobs import Attempt, Job
from node import assembly
from node.cli.mesh_node import main
from node.consensus.replica import Replica
from node.work.attempts import Conversion, ReportBytes
from node.work.films import Films
from node.work.order import Order
from node.work.owner import Plan

STARTS = os.environ["DISPATCH_STARTS"]
DIGEST = "0" * 64


class IdleFilms(Films):
    """Films that are there at once."""

    async def plan(self, job: Job) -> Plan:
        return Plan(
            source_digest=DIGEST,
            source_bytes=job.source_bytes,
            probe_json="{}",
            plan_json="{}",
            needs=(),
            cost=1,
        )

    async def fetch(self, order: Order, folder: Path, on_bytes: ReportBytes) -> tuple[Path, int]:
        return folder / "source", 0

    async def keep(self, order: Order, result: Path) -> tuple[int, str]:
        return 1, DIGEST

    async def sweep(self, replica: Replica) -> None:
        pass

    async def take(self, job: Job, attempt: Attempt, on_bytes: Callable[[int, int], None]) -> None:
        pass

    async def publish(self, job: Job, attempt: Attempt) -> None:
        pass

    async def discard(self, job: Job) -> None:
        pass


class IdleConverter:
    """An encoder that is done as soon as it has begun."""

    def __init__(self, *_: object) -> None:
        pass

    async def convert(self, order: Order, *_: object, **__: object) -> Conversion:
        begun = time.time_ns()
        with open(STARTS, "a", encoding="utf-8") as file:  # noqa: ASYNC230, PTH123 - one line
            file.write(f"{order.job.source} {begun}\n")
        return Conversion(
            command_line="[]",
            stderr_tail="",
            encoder="none",
            ffmpeg="none",
            encode_ms=1,
            verify_ms=0,
            frames=1,
            result_json="{}",
        )


if __name__ == "__main__":
    made: Any = assembly
    made.Films, made.MediaConverter = IdleFilms, IdleConverter
    main()
